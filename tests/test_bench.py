"""`bench step`: the arithmetic of its figures by hand, its turns and its peak, and the command end to end on a small model."""

import dataclasses
import functools
import json
import math
import pathlib
import time
import types
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

from videomae_jax import __main__ as command_line
from videomae_jax import assembly, benchmarks, masking
from videomae_jax import config as configs
from videomae_jax.benchmarks import Lap, Peak
from videomae_jax.commands import bench
from videomae_jax.errors import UserError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"

# Everything that makes configs/tiny.py small enough for a test on eight forced devices.
SMALL = ["--config.objective.encoder.width=32", "--config.objective.encoder.hidden=64", "--config.objective.encoder.depth=1",
         "--config.objective.decoder.width=32", "--config.objective.decoder.hidden=64", "--config.objective.encoder.size=32", "--config.data.size=32"]


def options(*argv: str) -> tuple[Any, str]:
    """The config and dtype that a command line of `bench step` leads to."""
    return bench.prepared(*bench.options_of_step(list(argv)))


# -- figures -----------------------------------------------------------------------------------------------------------


def test_figures_by_hand() -> None:
    """Medians, not means, and FLOPs against the peak."""
    laps = [Lap(0.1, 0.4), Lap(0.2, 0.3), Lap(0.9, 0.5)]
    found = benchmarks.figures(laps, clips=4, flops=5e9, peak=Peak(0.5, "given"))
    assert found["ms_per_step"] == {"median": 200, "min": 100, "max": 900} and found["cpu_ms_per_step"] == {"median": 400, "min": 300, "max": 500}
    assert found["clips_per_second"] == 20 and found["mfu"] == 4 * 5e9 / 0.2 / 0.5e12


def test_ratio_by_hand() -> None:
    """Theirs over ours: above 1 means that ours is faster; extremes are of pairs, not of extremes."""
    theirs, ours = [Lap(2.0, 6.0), Lap(4.0, 6.0), Lap(6.0, 6.0)], [Lap(1.0, 2.0), Lap(4.0, 2.0), Lap(2.0, 2.0)]
    assert benchmarks.ratio(theirs, ours) == {"of_medians": 2, "min": 1, "max": 3, "of_cpu_medians": 3}
    assert benchmarks.ratio(theirs, ours, size=2) == {"of_medians": 1, "min": 0.5, "max": 1.5, "of_cpu_medians": 1.5}  # of twice as many clips


@pytest.mark.parametrize(("kind", "tflops"), [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312), ("TPU v5 lite", 197),
                                              ("TPU v5e", 197), ("TPU v5", 459), ("TPU v5p", 459), ("TPU v6 lite", 918), ("TPU v6e", 918),
                                              ("TPU7x", 1153.5), ("NVIDIA B200", 2250)])
def test_known_peaks(kind: str, tflops: float) -> None:
    """The names that jax gives to devices; a chip may be several devices."""
    assert benchmarks.known_peak(types.SimpleNamespace(device_kind=kind)).tflops == tflops


@pytest.mark.parametrize("kind", ["cpu", "TPU v4", "NVIDIA L4"])
def test_unknown_peaks(kind: str) -> None:
    """A device that is not listed has no peak; it is measured instead."""
    assert benchmarks.known_peak(types.SimpleNamespace(device_kind=kind)) is None


def test_repeats_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """a b a b, each with its own number of steps, and times are per step: of the wall, and of the processor, which works half of it."""
    calls: list[tuple[str, int]] = []
    now = [0.0]
    monkeypatch.setattr(benchmarks, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(benchmarks, "cpu_seconds", lambda: now[0] / 2)

    def work(name: str, steps: int) -> None:
        calls.append((name, steps))
        now[0] += steps * {"a": 1.0, "b": 4.0}[name]

    laps = benchmarks.interleaved({name: (functools.partial(work, name), steps) for name, steps in (("a", 2), ("b", 3))}, repeats=2)
    assert calls == [("a", 2), ("b", 3)] * 2 and laps == {"a": [Lap(1.0, 0.5)] * 2, "b": [Lap(4.0, 2.0)] * 2}


def test_cpu_time_is_of_this_process() -> None:
    """Work counts, by what the system says of the process."""
    def work(steps: int) -> None:
        end = time.process_time() + 0.05 * steps
        while time.process_time() < end:
            pass
    assert benchmarks.lap(work, steps=2).cpu >= 0.045 and benchmarks.cpu_seconds() == pytest.approx(time.process_time(), rel=0.1, abs=5)


@pytest.mark.parametrize(("wall", "steps"), [(0.2, 5), (0.4, 2), (1.7, 1), (2.5, 1), (1e-5, 1000)])
def test_steps_of_a_repeat(wall: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A given number stays; otherwise about a second, from one step to a thousand; warm-up steps come before, the last of which is timed."""
    calls: list[int] = []
    monkeypatch.setattr(benchmarks, "lap", lambda run, steps: (run(steps), Lap(wall, 0.0))[1])
    assert benchmarks.warmed(calls.append, steps=7, warmup=3) == 7 and calls == [2, 1]
    assert benchmarks.warmed(calls.append, steps=0, warmup=1) == steps and calls == [2, 1, 1]


def test_memory() -> None:
    """The largest device where devices count; else this process, which holds at least what it was just given."""
    devices = [types.SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n}) for n in (5, 9, 7)]
    assert benchmarks.device_bytes(devices) == {"peak_bytes": 9, "of": "one device"}
    block = np.ones(2**27, np.uint8)
    found = benchmarks.device_bytes(jax.devices()[:1])
    assert found["of"] == "process, resident set" and 2**27 < found["peak_bytes"] < 2**38 and block.all()


# -- the step ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> assembly.Assembly:
    """The small model on eight devices."""
    config, _ = options("--config=configs/tiny.py", "--batch=8", *SMALL)
    return assembly.assemble(config)


def test_the_step_is_the_trainers(run: assembly.Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves the state on, waits for it, and gives figures that fit together, beside a rival that sleeps."""
    class Rival:
        name, about, clips = "sleeper", {"versions": {"torch": "0"}}, 16

        def __call__(self, steps: int) -> None:
            time.sleep(0.05 * steps)

    trainings: list[Any] = []
    training = benchmarks.Training
    monkeypatch.setattr(benchmarks, "Training", lambda r: trainings.append(training(r)) or trainings[0])
    found = benchmarks.step(run, steps=2, repeats=3, warmup=2, peak_tflops=0.0, dtype="float32", rival=Rival)
    assert int(trainings[0]._state.step) == 2 + 3 * 2 and 0.5 < trainings[0].loss < 2
    assert found["clips_per_step"] == 8 and found["devices"] == 8 and found["steps"] == 2 and found["repeats"] == 3
    assert found["train_flops_per_clip"] == run.objective.cost().train_flops
    seconds = found["ms_per_step"]["median"] / 1e3
    assert found["clips_per_second"] == pytest.approx(8 / seconds, rel=1e-2)
    assert found["peak"]["source"].startswith("measured: 2048x2048x2048 matrix product in float32")
    assert found["mfu"] == pytest.approx(8 * found["train_flops_per_clip"] / seconds / (found["peak"]["tflops"] * 1e12), rel=0.05, abs=1e-4)
    against = found["against"]
    assert against["ms_per_step"]["min"] >= 50 and against["clips_per_step"] == 16
    assert against["times_longer"]["of_medians"] == pytest.approx(against["ms_per_step"]["median"] / 1e3 / 16 / (seconds / 8), rel=1e-2, abs=1e-3)
    assert against["clips_per_second"] == pytest.approx(16e3 / against["ms_per_step"]["median"], rel=1e-2)
    assert set(found["versions"]) == set(benchmarks.LIBRARIES) and found["date"][:2] == "20"
    text = "\n".join(benchmarks.lines(found))
    assert "sleeper" in text and "ms a step of 16 clips" in text and "measured" in text and "process, resident set" in text


def test_a_step_that_means_nothing_is_refused(run: assembly.Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    """A NaN loss is a mistake of the user."""
    monkeypatch.setattr(benchmarks, "Training", Done)
    monkeypatch.setattr(Done, "loss", math.nan)
    with pytest.raises(UserError, match="loss of the benchmarked step is nan"):
        benchmarks.step(run, steps=1, repeats=1, warmup=1, peak_tflops=1.0, dtype="float32")


class Done:
    """A training whose steps take no time."""

    compile_seconds, loss, compiled = 0.0, 1.0, types.SimpleNamespace(as_text=str)

    def __init__(self, run: Any) -> None:
        pass

    def __call__(self, steps: int) -> None:
        pass


@pytest.mark.parametrize(("platform", "count", "tflops"), [("gpu", 1, 50.0), ("gpu", 4, 200.0), ("cpu", 4, 50.0)])
def test_the_measured_peak_is_of_all_devices(platform: str, count: int, tflops: float, run: assembly.Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many times one's as there are; those of a CPU share its cores."""
    device = types.SimpleNamespace(device_kind="NVIDIA L4", platform=platform, memory_stats=dict)
    monkeypatch.setattr(benchmarks, "Training", Done)
    monkeypatch.setattr(benchmarks, "Product", lambda dtype: mock.Mock(flops=100e12))
    monkeypatch.setattr(benchmarks, "lap", lambda run, steps: Lap(2.0, 2.0))
    mesh = types.SimpleNamespace(devices=np.array([device] * count), shape={"data": count})
    there = types.SimpleNamespace(mesh=mesh, **{name: getattr(run, name) for name in ("objective", "clips", "draws", "config", "abstract")})
    found = benchmarks.step(there, steps=1, repeats=2, warmup=1, peak_tflops=0.0, dtype="float32")
    assert found["peak"]["tflops"] == tflops and found["devices"] == count


def test_figures_outlast_a_trace_that_tells_nothing(run: assembly.Assembly, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are measured by then; what is wrong with the trace is said."""
    said: list[str] = []
    monkeypatch.setattr(benchmarks, "Training", Done)
    monkeypatch.setattr(benchmarks.profiling, "read", lambda folder: [])
    found = benchmarks.step(run, steps=1, repeats=1, warmup=1, peak_tflops=1.0, dtype="float32", profile=str(tmp_path), say=said.append)
    assert "profile" not in found and found["ms_per_step"]["median"] >= 0
    assert said[-1] == f"no profile: the trace under {tmp_path} has no operations: the profiler of this device does not tell them"


@pytest.mark.parametrize(("owner", "name"), [(assembly.Assembly, "compile"), (assembly.Assembly, "create"), (benchmarks.Training, "__call__"), (benchmarks, "Product")])
def test_exhausted_memory_is_one_line(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where it compiles, as on TPUs, where it makes the state, at a step and in the product that measures the peak; the advice is given for that error only."""
    said = ["RESOURCE_EXHAUSTED: out of memory\nbuffers", "INTERNAL: broken"]

    def exhausted(*_: Any, **__: Any) -> Any:
        raise jax.errors.JaxRuntimeError(said[0])

    if owner is not assembly.Assembly:
        monkeypatch.setattr(benchmarks.Training, "__init__", Done.__init__)
        monkeypatch.setattr(benchmarks.Training, "__call__", Done.__call__)
        monkeypatch.setattr(benchmarks.Training, "compile_seconds", 0.0, raising=False)
    monkeypatch.setattr(owner, name, exhausted)
    words = ["bench", "step", "--config=configs/tiny.py", "--batch=8", "--steps=1", "--repeats=1", "--warmup=1", *SMALL]
    assert command_line.main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: the run does not fit into the memory of its devices (RESOURCE_EXHAUSTED: out of memory); what helps: a smaller --batch")
    said.pop(0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        command_line.main(words)


# -- the command -------------------------------------------------------------------------------------------------------


def test_command_prints_one_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Everything for people goes to standard error."""
    assert command_line.main(["bench", "step", "--config=configs/tiny.py", "--mode=v1", "--batch=8", "--steps=1", "--repeats=2", "--warmup=1",
                              "--peak-tflops=0.25", *SMALL]) == 0
    output = capsys.readouterr()
    assert output.out.count("\n") == 1 and "ms a step of 8 clips" in output.err
    found = json.loads(output.out)
    assert found["bench"] == "step" and found["dtype"] == "float32" and found["mode"] == "v1" and found["peak"] == {"tflops": 2.0, "source": "given"}
    assert found["tokens_per_clip"]["visible"] + found["tokens_per_clip"]["decoded"] == found["tokens_per_clip"]["all"] == 64
    assert found["encoder"] == {"remat": "none", "unroll": 1, "attention": "xla"}


def test_sizes_modes_and_dtypes() -> None:
    """A size is its pretraining config on noise: the published widths, V2's or V1's decoder mask, the dtype asked for."""
    config, dtype = options("--size=B", "--mode=v1", "--dtype=bfloat16", "--batch=16", "--attention=cudnn")
    assert (config.objective.encoder.width, config.objective.encoder.depth, config.objective.decoder.depth) == (768, 12, 4)
    assert dtype == config.objective.encoder.dtype == config.objective.decoder.dtype == "bfloat16" and config.objective.encoder.attention == "cudnn"
    assert configs.build(config.objective).cost().tokens["decoded"] == 1408 and config.batch_size == 16
    assert config.data["__symbol__"].endswith("NoiseClips") and config.data.repeats == 1 and config.data.size == 224
    config, dtype = options("--size=S")
    assert configs.build(config.objective).cost().tokens["decoded"] == 784
    assert dtype == config.objective.encoder.dtype == "float32" and config.batch_size == bench.ON_CPU * 8


BFLOAT16 = [f"--config.objective.{part}.dtype=bfloat16" for part in ("encoder", "decoder")]


def test_the_dtype_is_that_of_the_step() -> None:
    """The overrides' where they name one; several, another than --dtype, and one that --dtype has not are refused: figures would bear a wrong name."""
    assert options("--size=B", *BFLOAT16)[1] == options("--size=B", "--dtype=bfloat16", *BFLOAT16)[1] == "bfloat16"
    for words, told in ((BFLOAT16[:1], "objective.decoder.dtype=float32, objective.encoder.dtype=bfloat16; "),
                        (["--dtype=float32", *BFLOAT16], "--dtype=float32, objective.decoder.dtype=bfloat16, objective.encoder.dtype=bfloat16; "),
                        ([word.replace("bfloat", "float") for word in BFLOAT16], "objective.decoder.dtype=float16, objective.encoder.dtype=float16; ")):
        with pytest.raises(UserError, match=f"^{told}a step is timed in one dtype, so allowed is one of float32, bfloat16 for all of them$"):
            options("--size=B", *words)


def test_a_config_keeps_its_batch() -> None:
    """Without --batch the clips of a step are those of the run, copies included; overrides come last."""
    config, _ = options("--config=configs/tiny.py", "--config.objective.decoder.depth=3")
    assert config.batch_size == 4 and config.data.repeats == 2 and config.objective.decoder.depth == 3
    assert configs.build(config.objective).cost().tokens["decoded"] == 128


@pytest.mark.parametrize("path", sorted(f"configs/{p.relative_to(CONFIGS).as_posix()}" for p in CONFIGS.glob("*/*.py")
                                        if p.stem != "base" and p.parent.name != "data"))
def test_no_config_waits_for_files(path: str) -> None:
    """Weights of a stage before and lists of classes are left aside: a step takes as long without them."""
    objective = configs.build(options(f"--config={path}")[0].objective)
    assert objective.externals() == () and not getattr(objective, "classes", "")


@pytest.mark.parametrize(("argv", "message"), [
    ([], "arguments are required: kind"), (["nothing"], "invalid choice: 'nothing'"), (["step"], "either --size or --config"),
    (["step", "--size=B", "--config=configs/tiny.py"], "either --size or --config"), (["step", "--size=X"], "invalid choice: 'X'"),
    (["step", "--size=B", "--repeats=0"], "--repeats=0; allowed are 1 and more"), (["step", "--size=B", "--peak-tflops=-1"], "--peak-tflops=-1.0; allowed are 0"),
    (["step", "--size=B", "--config.objective.nothing=1"], "unknown config key"),
])
def test_mistakes_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and the permitted set."""
    assert command_line.main(["bench", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_configs_without_video_are_refused() -> None:
    """Noise has frames and a size; a decoder mask is needed to choose a mode."""
    loaded = configs.load("configs/tiny.py")
    loaded.unlock()
    parsed = types.SimpleNamespace(config="configs/tiny.py", size=None, dtype=None, attention=None, mode="v1", batch=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "load", lambda path: loaded)
        del loaded.data["size"]
        with pytest.raises(UserError, match="noise of `frames` x `size` x `size`"):
            bench.prepared(parsed, {})
        del loaded.objective["decoder_mask"]
        with pytest.raises(UserError, match="--mode=v1: the objective of this config has no decoder_mask"):
            bench.prepared(parsed, {})


# -- the rival ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference() -> Any:
    """The module that needs PyTorch and transformers."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from videomae_jax import torch_reference

    return torch_reference


def test_the_rival_is_the_same_model(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parameters, a loss near that of predicting nothing, and weights that move; the faster attention is taken."""
    config, _ = options("--config=configs/tiny.py", "--mode=v1", "--batch=8", *SMALL)
    run = assembly.assemble(config)
    said: list[str] = []
    seconds = iter([0.5, 0.2])
    monkeypatch.setattr(benchmarks, "lap", lambda trial, steps: (trial(steps), Lap(next(seconds), 0.0))[1])
    rival = reference.fastest(run, dtype="float32", say=said.append)
    assert rival.about["attention"] == "eager" and len(said) == 2
    assert rival.about["parameters"] == sum(math.prod(x.shape) for x in jax.tree.leaves(run.abstract.params))
    assert int(rival._masked.sum()) == 8 * config_tokens(run)["decoded"] and rival._pixels.shape == (8, 8, 3, 32, 32)
    before = [p.detach().clone() for p in rival._model.parameters()]
    rival(2)
    assert 0.5 < rival.loss < 2.5
    moved = [bool((a != b).any()) for a, b in zip(before, rival._model.parameters(), strict=True) if b.requires_grad]
    assert sum(moved) >= len(moved) - 2 * 2  # the key biases of HF have no gradient


def config_tokens(run: assembly.Assembly) -> Any:
    """Tokens of a clip by kind."""
    return run.objective.cost().tokens


def test_the_rival_is_compiled_as_asked(reference: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every block, or the loss; another way is refused."""
    import torch

    done: list[Any] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: done.append(type(self).__name__))
    monkeypatch.setattr(torch, "compile", lambda fn: done.append("loss") or fn)
    run = assembly.assemble(options("--config=configs/tiny.py", "--mode=dual", "--batch=8", *SMALL)[0])
    for how in reference.COMPILED:
        reference.Step(run.objective, clips=8, dtype="float32", attention="sdpa", device="cpu", compiled=how)
    with pytest.raises(UserError, match="--torch-compile=none goes with --against=torch"):
        bench.main(["step", "--config=configs/tiny.py", "--torch-compile=none"])
    for words, message in ((["--torch-batch=8"], "--torch-batch=8 goes with --against=torch"),
                           (["--against=torch", "--torch-batch=8,0"], "--torch-batch=8,0; allowed are whole numbers of 1 and more")):
        with pytest.raises(UserError, match=message):
            bench.main(["step", "--config=configs/tiny.py", *words])
    with pytest.raises(UserError, match="--profile=/proc/nope cannot be made"):
        bench.main(["step", "--config=configs/tiny.py", "--profile=/proc/nope"])
    blocks = run.objective.encoder.depth + run.objective.decoder.depth
    assert done == ["VideoMAELayer"] * blocks + ["loss"]
    with pytest.raises(UserError, match="--torch-compile=blocks,all: 'all'; allowed are none, blocks, whole"):
        bench.main(["step", "--config=configs/tiny.py", "--mode=dual", "--batch=8", "--against=torch", "--torch-compile=blocks,all", *SMALL])


@pytest.mark.parametrize(("seconds", "best"), [
    ({8: 1.0, 4: 0.4, 16: 3.0}, ("eager", 4)),  # a clip takes 1/8, 1/10 and 3/16 s
    ({8: 1.0, 4: 0.6, 16: 1.9}, ("eager", 16)), ({8: 1.0, 4: 0.5, 16: 2.0}, ("eager", 8)), ({8: 1.0, 4: 0.6, 16: None}, ("eager", 8)),
    ({8: None, 4: 0.6, 16: None}, ("eager", 4)), ({8: None, 4: None, 16: None}, None)])
def test_the_rival_has_its_best_batch(reference: Any, run: assembly.Assembly, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float | None], best: Any) -> None:
    """The least time a clip counts, under the better attention; a batch that does not fit (None) ends nothing, unless none does."""
    class Step:
        def __init__(self, objective: Any, /, *, clips: int, attention: str, **_: Any) -> None:
            self.clips, self.attention = clips, attention

        def __call__(self, steps: int) -> None:
            if seconds[self.clips] is None:
                raise reference.Exhausted(f"{self.clips} clips do not fit")

    said: list[str] = []
    monkeypatch.setattr(reference, "Step", Step)
    monkeypatch.setattr(benchmarks, "lap", lambda trial, steps: (trial(steps), Lap(seconds[trial.clips] * (2 if trial.attention == "sdpa" else 1), 0.0))[1])
    if best is None:
        with pytest.raises(UserError, match="no rival ran; tried none compiled, 8, 4, 16 clips a step"):
            reference.fastest(run, dtype="float32", clips=(8, 4, 16), say=said.append)
        return
    rival = reference.fastest(run, dtype="float32", clips=(8, 4, 16), say=said.append)
    assert (rival.attention, rival.clips) == best
    assert len(said) == (4 if seconds[8] else 5) and sum("is left out" in line for line in said) == {1: 1, 2: 3}.get(list(seconds.values()).count(None), 0)
    assert reference.batches(8, "cuda") == (8, 4, 16) and reference.batches(1, "cuda") == (1, 2) and reference.batches(8, "cpu") == (8,)


def test_a_rival_that_does_not_fit_is_one_line(reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own error for it, by the number of its clips; other failures of the plain way are not hidden."""
    import torch

    run = assembly.assemble(options("--config=configs/tiny.py", "--mode=dual", "--batch=8", *SMALL)[0])
    rival = reference.Step(run.objective, clips=8, dtype="float32", attention="sdpa", device="cpu")
    for error, alone, searched in ((torch.OutOfMemoryError("CUDA out of memory"), "8 clips a step of VideoMAE V2 .* do not fit", "no rival ran"),
                                   (RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
                                    "8 clips a step of VideoMAE V2 .* do not fit", "no rival ran"),
                                   (RuntimeError("broken"), "broken", "broken")):
        def forward(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(reference.Dual, "forward", forward)
        with pytest.raises(type(error) if alone == "broken" else UserError, match=alone):
            rival(1)
        with pytest.raises(type(error) if alone == "broken" else UserError, match=searched):
            reference.fastest(run, dtype="float32", say=lambda line: None)


def test_v2_has_a_rival_too(reference: Any) -> None:
    """Half of the tokens are decoded on their blocks, beside ours in one run; it says what it is."""
    config, _ = options("--config=configs/tiny.py", "--mode=dual", "--batch=8", *SMALL)
    run = assembly.assemble(config)
    rival = reference.Step(run.objective, clips=8, dtype="float32", attention="sdpa", device="cpu")
    rival(2)
    assert 0.5 < rival.loss < 2.5 and rival.name.startswith("VideoMAE V2 on the blocks of Hugging Face")
    assert rival.about["parameters"] == sum(math.prod(x.shape) for x in jax.tree.leaves(run.abstract.params))


def test_another_model_is_refused(reference: Any, run: assembly.Assembly) -> None:
    """Theirs takes tubes and has square patches."""
    with pytest.raises(UserError, match="needs a tube mask; this one sees 7 of 64 tokens"):
        reference.settings(dataclasses.replace(run.objective, encoder_mask=masking.Random(layout="token", ratio=0.9)))
    with pytest.raises(UserError, match="SimpleNamespace is something else"):
        reference.settings(types.SimpleNamespace())
