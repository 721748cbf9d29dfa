"""The loop: its order, its one-interval-late metrics, what a checkpoint means, and draws that are keyed by the stream."""

import dataclasses
import json
import pathlib
import signal
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
import pytest
import runs
from runs import shared_programs  # noqa: F401 (a fixture)

from videomae_jax import api, card, journal, masking, metrics, optim, run_directory, upkeep
from videomae_jax import config as configs
from videomae_jax import train as loop
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.checkpoint import Checkpointer, load_params, named
from videomae_jax.data import pipeline, sources
from videomae_jax.errors import StorageError
from videomae_jax.evals.base import Context
from videomae_jax.models import vit
from videomae_jax.objectives import mae
from videomae_jax.stopping import Stop

ME = pathlib.Path(__file__).stem


@dataclasses.dataclass(frozen=True)
class Recorder:
    """An evaluator that notes when it runs, and what had been logged and saved by then."""

    every: str = "2"
    seen: ClassVar[list[tuple[int, list[int], list[str]]]] = []

    def run(self, context: Context, /) -> dict[str, float]:
        """The step as a result."""
        logged = [line["step"] for line in metrics.read(context.directory) if "loss" in line]
        self.seen.append((context.step, logged, sorted(p.name for p in (context.directory / "checkpoints").iterdir() if p.name.isdigit())))
        return {"step": context.step}


@dataclasses.dataclass(frozen=True)
class Weighed:
    """An evaluator that notes which weights it asks for."""

    weights: str
    every: str = ""
    order: ClassVar[list[str]] = []

    def run(self, context: Context, /) -> dict[str, float]:
        """The step as a result."""
        self.order.append(self.weights)
        return {"step": context.step}


def config_of(**fields: Any) -> ml_collections.ConfigDict:
    """The smallest masked autoencoder on noise; fields are named with __ for a dot."""
    config = configs.load(str(runs.ROOT / "configs" / "base.py")).copy_and_resolve_references()
    config.unlock()
    encoder = vit.Encoder(width=16, depth=2, heads=2, hidden=32, patch=(2, 8, 8), frames=4, size=16, drop_path=0.5)
    decoder = vit.Decoder(width=16, depth=1, heads=2, hidden=32)
    config.objective = configs.spec(mae.MAE, encoder=encoder, decoder=decoder, encoder_mask=masking.Random(ratio=0.5), decoder_mask=masking.Hidden())
    config.data = configs.spec(sources.NoiseClips, frames=4, size=16, length=64, repeats=2)
    config.optimizers.main = configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2, minimum=0.0, warmup="0", unit=0, shape="constant"))
    config.total, config.batch_size, config.log.every, config.checkpoint.every = "6", 4, "1", "3"
    config.evaluators.recorder = configs.spec(Recorder)
    configs.override(config, {k.replace("__", "."): str(v) for k, v in fields.items()})
    return config


def build(devices: int = 1, **fields: Any) -> Assembly:
    """The run of `config_of` on the first devices."""
    return assemble(config_of(**fields), trust=(ME,), devices=jax.devices()[:devices])


@dataclasses.dataclass(frozen=True)
class Seen:
    """An evaluator that keeps the weights it is shown."""

    every: str = ""
    params: ClassVar[list[Any]] = []

    def run(self, context: Context, /) -> dict[str, float]:
        """Nothing."""
        self.params.append(jax.device_get(context.params))
        return {}


class Asked(Stop):
    """A stop that comes at the given question of the loop."""

    def __init__(self, number: int = -1) -> None:
        super().__init__()
        self._number = number

    def requested(self) -> bool:
        """Whether this is that question."""
        if super().requested() or self._asked == self._number:
            self.signal = signal.SIGTERM
        return self.signal is not None


def go(run: Assembly, directory: pathlib.Path, *, stop: int = -1, say: Callable[[str], None] = lambda line: None) -> loop.Result:
    """Trains in `directory`, stopping at a question of the loop."""
    return loop.train(run, directory, stop=Asked(stop), say=say, trust=(ME,))


def equal(left: Any, right: Any) -> None:
    """Two trees are equal bit for bit."""
    one, two = named(left), named(right)
    assert one.keys() == two.keys()
    for key in one:
        np.testing.assert_array_equal(np.asarray(one[key]), np.asarray(two[key]), err_msg=key)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, loop.Result]:
    """Six steps without interruption."""
    directory = tmp_path_factory.mktemp("straight")
    Recorder.seen.clear()
    return directory, go(build(), directory)


def test_state_is_evaluated_then_saved_then_trained_on(straight: tuple[pathlib.Path, loop.Result]) -> None:
    """Each evaluation finds its own step logged and not yet saved; the first is of the fresh state, the last of the final one."""
    assert straight[1].finished and (straight[1].first, straight[1].step) == (0, 6)
    assert [step for step, _, _ in Recorder.seen] == [0, 2, 4, 6]
    for step, logged, saved in Recorder.seen:
        assert logged == list(range(1, step + 1))
        assert f"{step:08d}" not in saved
    lines = metrics.read(straight[0])
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["recorder/step"] for line in lines if "recorder/step" in line] == [0, 2, 4, 6]
    meta = Checkpointer(straight[0] / "checkpoints", read_only=True).meta(6)
    assert (meta["samples"], meta["step"]) == (24, 6)
    rebuilt = configs.build(configs.from_json(meta["config"]).objective)
    assert rebuilt == build().objective
    begun = [json.loads(line) for line in (straight[0] / "starts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in begun] == [0] and begun[0].items() >= meta["start"].items() and meta["start"]["libraries"]["jax"] == jax.__version__


def test_rates_leave_out_evaluations_and_saves(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps alone count, up to where the device is done with them, and each stretch between two of these has a rate once the step is compiled."""
    told: list[str] = []

    def note(kind: type, name: str) -> None:
        plain = getattr(kind, name)
        monkeypatch.setattr(kind, name, lambda self, *a, **k: told.append(name) or plain(self, *a, **k))

    for kind, name in ((metrics.Clock, "flush"), (metrics.Clock, "restart"), (upkeep.Upkeep, "evaluate"), (upkeep.Upkeep, "save")):
        note(kind, name)
    go(build(), tmp_path)
    evaluation, save = ["flush", "evaluate", "restart"], ["flush", "save", "restart"]
    assert told == [*evaluation * 2, *save, *evaluation * 2, *save]  # steps 0, 2, 3, 4, 6 and 6
    assert [line["step"] for line in metrics.read(tmp_path) if "clips_per_second" in line] == [3, 4, 6]


def test_the_best_weights_are_chosen_before_they_are_tested(tmp_path: pathlib.Path) -> None:
    """At the last step too, whatever the names: `test` comes before `val` in the alphabet."""
    config = config_of(total=1)
    config.evaluators = {"test": configs.spec(Weighed, weights="best"), "val": configs.spec(Weighed, weights="last")}
    Weighed.order.clear()
    go(assemble(config, trust=(ME,), devices=jax.devices()[:1]), tmp_path)
    assert Weighed.order == ["last", "best"] * 2


def test_stopped_run_repeats_neither_evaluation_nor_save(straight: tuple[pathlib.Path, loop.Result], tmp_path: pathlib.Path) -> None:
    """Stopped before step 3, with its evaluations done, and on: the same lines, the same bits; then once more: nothing to do."""
    first = go(build(), tmp_path, stop=4 + 2)  # questions: one a step, one more a batch of an evaluation; Recorder draws none
    assert not first.finished and first.step == 5
    Recorder.seen.clear()
    second = go(build(workers=0, threads=1, prefetch=3), tmp_path)
    assert second.finished and (second.first, second.step) == (5, 6)
    assert [step for step, _, _ in Recorder.seen] == [6]
    equal(second.state.params, straight[1].state.params)
    equal(second.state.opt, straight[1].state.opt)
    lines = [[{k: v for k, v in line.items() if k not in metrics.TIMING} for line in metrics.read(d)] for d in (tmp_path, straight[0])]
    assert lines[0] == lines[1]
    before = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "checkpoints").rglob("*"))
    third = go(build(), tmp_path)
    assert third.finished and (third.first, third.step) == (6, 6)
    assert [json.loads(line)["step"] for line in (tmp_path / "starts.jsonl").read_text().splitlines()] == [0, 5, 6]
    assert [step for step, _, _ in Recorder.seen] == [6]
    assert sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "checkpoints").rglob("*")) == before


def test_evaluation_added_to_a_finished_run_is_made_up(straight: tuple[pathlib.Path, loop.Result], tmp_path: pathlib.Path) -> None:
    """Results that metrics.jsonl does not hold are still due."""
    run = build(total=2)
    assert go(run, tmp_path).finished
    config = config_of(total=2)
    config.evaluators.other = configs.spec(Recorder)
    Recorder.seen.clear()
    assert go(assemble(config, trust=(ME,), devices=jax.devices()[:1]), tmp_path).finished
    assert [step for step, _, _ in Recorder.seen] == [2]
    assert [sorted(line) for line in metrics.read(tmp_path) if line["step"] == 2][-1] == ["other/step", "step"]


def test_damaged_newest_checkpoint_costs_its_interval_only(straight: tuple[pathlib.Path, loop.Result], tmp_path: pathlib.Path) -> None:
    """The run says so, goes back to the one before, saves the damaged step anew and ends with the same bits."""
    go(build(total=6), tmp_path, stop=5)  # stops at step 4; saved are 3 and 4
    path = tmp_path / "checkpoints" / "00000004" / "meta" / "metadata"
    path.write_bytes(path.read_bytes().replace(b'"samples": 16', b'"samples": 48'))
    said: list[str] = []
    result = go(build(), tmp_path, say=said.append)
    assert result.finished and result.first == 3
    assert any("checkpoint 4" in line and "damaged" in line for line in said) and (tmp_path / "checkpoints_damaged" / "00000004").is_dir()
    equal(result.state.params, straight[1].state.params)
    assert [line["step"] for line in metrics.read(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_failed_save_does_not_end_the_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk at step 3 is reported and step 6 is saved; at step 6 it is an error."""
    before, said, failing = ocp.JsonCheckpointHandler.finalize, [], ["00000003"]

    def finalize(self: Any, directory: Any) -> None:
        if any(name in str(directory) for name in failing):
            raise OSError(28, "No space left on device")
        before(self, directory)

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "finalize", finalize)
    monkeypatch.setattr(upkeep, "LAST", (0.0,))
    assert go(build(), tmp_path / "a", say=said.append).finished
    assert sum("checkpoint 3 cannot be written" in line for line in said) == 1
    assert sorted(p.name for p in (tmp_path / "a" / "checkpoints").iterdir() if p.name.isdigit()) == ["00000006"]
    failing.append("00000006")
    with pytest.raises(StorageError, match="the last checkpoint, of step 6, is not written"):
        go(build(), tmp_path / "b", say=said.append)


class Late:
    """A metric that may be read only once the next step is dispatched, or after the last one."""

    def __init__(self, step: int, dispatched: list[int], total: int) -> None:
        self._step, self._dispatched, self._total = step, dispatched, total

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        newest = len(self._dispatched)
        if newest == self._step and newest < self._total:
            raise AssertionError(f"the metrics of step {self._step} are read before step {self._step + 1} is dispatched")
        return np.asarray(float(self._step))


def test_no_step_waits_for_its_metrics(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With log.every=1 every reading comes after the next dispatch; the values are those of their step all the same."""
    run = build(checkpoint__every="", evaluators__recorder__every="")
    dispatched: list[int] = []

    def step(state: Any, *batches: Any) -> Any:
        dispatched.append(1)
        return state, {"loss": Late(len(dispatched), dispatched, run.total)}

    monkeypatch.setattr(Assembly, "step", lambda self, norms: step)
    assert go(run, tmp_path).finished
    assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path) if "loss" in line] == [(i, i) for i in range(1, 7)]


def test_implicit_transfers_within_a_step_are_errors(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host value that slips into the step would be copied to the device every time."""
    monkeypatch.setattr(Assembly, "step", lambda self, norms: lambda state, *batches: (state, {"loss": jnp.sin(np.ones(3, np.float32)).sum()}))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        go(build(), tmp_path)


def test_disk_holds_what_the_card_says(tmp_path: pathlib.Path) -> None:
    """keep_last=2, keep_every=5 over 12 steps: 5, 10, 11, 12; no more checkpoints and bytes than estimated."""
    run = build(total=12, checkpoint__every=1, checkpoint__keep_every=5, evaluators__recorder__every="")
    assert go(run, tmp_path).finished
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["00000005", "00000010", "00000011", "00000012"]
    told = card.card(run)
    assert len(kept) <= told["checkpoints_kept"] == 2 + 1 + 2
    arrays = sum(p.stat().st_size for p in (tmp_path / "checkpoints").rglob("*") if p.is_file() and p.parent.name == "d" and "ocdbt.process" in p.as_posix())
    assert 0 < arrays <= 1.1 * told["checkpoints_disk_bytes"]
    assert arrays >= 0.5 * len(kept) * told["checkpoint_bytes"]  # the estimate is of this state, compressed by zstd


def test_state_of_eight_devices_restores_on_one(tmp_path: pathlib.Path) -> None:
    """Parameters and moments sharded over fsdp=8 come back bit for bit on one device, and the other way round."""
    wide, narrow = build(8, mesh__data=1, mesh__fsdp=8), build(1)
    for one, other, name in ((wide, narrow, "a"), (narrow, wide, "b")):
        state = one.create()
        saver = Checkpointer(tmp_path / name)
        saver.save(1, state, meta={"samples": 0})
        saver.wait()
        restored = saver.restore(1, other.abstract, rng=other.rng()).state
        equal(restored.params, state.params)
        equal(restored.opt, state.opt)
        for leaf, wanted in zip(jax.tree.leaves(restored.params), jax.tree.leaves(other.abstract.params), strict=True):
            assert leaf.sharding == wanted.sharding
        saver.close()
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(wide.abstract.params))


def batch_of(run: Assembly, **options: Any) -> list[dict[str, np.ndarray]]:
    """The first three batches of the run's stream, with other options of reading."""
    with pipeline.stream(run.source, batch_size=run.config.batch_size, seed=run.config.seed, **options) as stream:
        return [next(stream) for _ in range(3)]


def test_masks_and_drop_path_are_keyed_by_the_stream(straight: tuple[pathlib.Path, loop.Result]) -> None:
    """Rows in another order draw the same masks and drop the same paths; another key, another draw; two copies, two masks."""
    run, rng, order = build(), jax.random.key(7), np.array([3, 0, 7, 5, 1, 2, 6, 4])
    batch, params = batch_of(run)[1], straight[1].state.params
    moved = batch | {"key": batch["key"] + np.uint32(64)}
    draw = jax.jit(lambda rows: run.objective.masks(rows, rng))

    @jax.jit
    def loss(rows: Any, masks: Any) -> Any:
        return run.objective.loss(params, {}, rows, rng, step=jnp.int32(0), train=True, masks=masks).terms["reconstruction"].total

    masks = draw(batch)
    shuffled = {k: v[order] for k, v in batch.items()}
    for one, other in zip(jax.tree.leaves(masks), jax.tree.leaves(draw(shuffled)), strict=True):
        np.testing.assert_array_equal(np.asarray(one)[order], other)
    assert (np.asarray(draw(moved).visible) != np.asarray(masks.visible)).any()
    copies = np.asarray(masks.visible).reshape(4, 2, -1)
    assert (copies[:, 0] != copies[:, 1]).any()
    # With given masks only drop-path draws. Matrix products over other row orders may differ in the last bits.
    total = np.asarray(loss(batch, masks))
    np.testing.assert_allclose(total[order], loss(shuffled, jax.tree.map(lambda x: x[order], masks)), rtol=2e-6)
    assert (np.abs(total - np.asarray(loss(moved, masks))) > 1e-4).any()


def test_microbatches_and_readers_see_the_same_draws(straight: tuple[pathlib.Path, loop.Result], tmp_path: pathlib.Path) -> None:
    """Two micro-batches, other threads and prefetch: the same batches; losses to 1e-4, for Adam enlarges sums in another order."""
    for one, other in zip(batch_of(build()), batch_of(build(), threads=3), strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)
    go(build(microbatches=2, threads=3, prefetch=1), tmp_path)
    for one, other in zip(metrics.read(straight[0]), metrics.read(tmp_path), strict=True):
        assert one["step"] == other["step"]
        for name in ("loss", "loss_zero") if "loss" in one else ():
            assert other[name] == pytest.approx(one[name], rel=1e-6 if one["step"] == 1 or name == "loss_zero" else 1e-4), (one["step"], name)


def test_faults_are_listed_once_over_restarts(tmp_path: pathlib.Path) -> None:
    """One line per source row; half a line, of a full disk or a killed process, costs no other; copies and restarts add nothing."""
    source = sources.NoiseClips()
    batch = {"fault": np.array([0, 2, 2, 1], np.int32), "row": np.array([5, 6, 6, 7], np.int32), "key": np.array([[1, 0], [2, 0], [2, 1], [3, 0]], np.uint32)}
    faults = run_directory.Faults(tmp_path, source=source)
    faults.note(batch)
    assert faults.count == 3
    lines = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [(line["row"], line["name"], line["position"]) for line in lines] == [(6, "noise 6", 2), (7, "noise 7", 3)]
    with (tmp_path / "faults.jsonl").open("a") as file:
        file.write('{"row": 9, "na')
    faults.note(batch | {"row": np.array([5, 8, 8, 7], np.int32)})
    for _ in range(2):
        again = run_directory.Faults(tmp_path, source=source)
        again.note(batch)
        again.note({k: v[:2] + (1 if k == "row" else 0) for k, v in batch.items()})  # row 7 once more
        assert [line["row"] for line in journal.read(tmp_path / "faults.jsonl")] == [6, 7, 8]


def test_averaged_weights_are_what_is_evaluated_and_opened(tmp_path: pathlib.Path) -> None:
    """In the run, from its checkpoint, and in Python; those that are trained are others by then."""
    config = config_of(total=2, ema=0.5)
    config.evaluators = {"seen": configs.spec(Seen)}
    Seen.params.clear()
    run = assemble(config, trust=(ME,), devices=jax.devices()[:1])
    run_directory.claim(run, tmp_path, extend=False, fork=False, say=lambda line: None)
    assert go(run, tmp_path).finished
    raw, averaged = (load_params(tmp_path / "checkpoints", item=item) for item in ("params", "ema"))
    assert any((one != other).any() for one, other in zip(jax.tree.leaves(raw), jax.tree.leaves(averaged), strict=True))
    for found in (Seen.params[-1], run_directory.context(tmp_path, trust=(ME,)).params, api.of_run(tmp_path, step=None).params):
        equal(found, averaged)
