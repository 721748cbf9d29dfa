"""Plans of GPUs: estimates beside what a GPU measured, and programs compiled for GPUs that are not there."""

import dataclasses
import importlib.util
import re
from typing import Any

import jax
import pytest

from videomae_jax import config as configs
from videomae_jax import footprint, forecast, parallel, plan, topologies
from videomae_jax.assembly import assemble
from videomae_jax.data import sources
from videomae_jax.errors import UserError
from videomae_jax.objectives.base import Phase
from videomae_jax.objectives.mae import MAE
from videomae_jax.plan import Choice, Compiled, Planner

# bench step on one H100 80GB, bfloat16, dual masks, 2026-11-26, jax 0.11.2: clips, remat, milliseconds a step, peak GiB of the device.
H100 = {"s": (256, "none", 62.3, 13.55), "b": (128, "none", 67.1, 13.63), "l": (64, "none", 74.6, 16.15), "h": (48, "none", 97.5, 21.13),
        "g": (32, "none", 127.9, 28.14), "g, recomputed": (32, "full", 172.9, 16.93)}


@pytest.mark.parametrize("name", H100)
def test_estimates_of_gpus_are_those_that_an_h100_measured(name: str) -> None:
    """What the label of a plan says of them: steps within 12 %, memory within 5 %."""
    count, remat, milliseconds, gibibytes = H100[name]
    found = Planner(noise(name[0], count), topologies.find("h100x1"), fixed=frozenset(), trust=()).of(Choice(remat, 1, 1, 1, 1))
    assert 1e3 * found.seconds == pytest.approx(milliseconds, rel=0.12) and found.bytes / 2**30 == pytest.approx(gibibytes, rel=0.05)


def of(name: str, **changes: str) -> Any:
    """The run of a published config on one H100, with changes of its objective."""
    config = configs.load(f"configs/{name}.py")
    configs.override(config, {f"objective.{field}": value for field, value in changes.items()})
    return Planner(forecast.without_index(config, videos=240_000), topologies.find("h100x1"), fixed=frozenset(), trust=()).run


def test_what_runs_forward_alone_counts_a_third() -> None:
    """The encoder under a probe; heads side by side each in all passes. By hand: layers x width x tokens."""
    large, base = 24 * 1024 * 1568, 12 * 768 * 1568
    assert footprint.widths(of("probe/linear_k400_b")) == pytest.approx(base / 3)
    pooled = 20 * 3 * 1024 * 1568
    assert footprint.widths(of("probe/attentive_k400_l")) == pytest.approx(large / 3 + pooled)
    assert footprint.widths(of("probe/attentive_k400_l", layers="(5, 11, 17, 23)")) == pytest.approx(large / 3 + 4 * pooled)
    pretraining = of("pretrain/vit_b")
    n = pretraining.objective.counts()
    assert footprint.widths(pretraining) == pytest.approx(12 * 768 * n["visible"] + 4 * 384 * n["decoder"])
    twofold = Twofold(**{f.name: getattr(pretraining.objective, f.name) for f in dataclasses.fields(MAE)})
    assert footprint.widths(dataclasses.replace(pretraining, objective=twofold, draws=2)) == footprint.widths(pretraining)  # of a clip, each of which one phase sees
    assert [footprint.pretrains(run) for run in (pretraining, of("finetune/k400_b"))] == [True, False]


class Twofold(MAE):
    """Two phases, each on a batch of its own."""

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("first", self.loss, data="fresh"), Phase("train", self.loss))


def noise(size: str, clips: int, remat: str = "none") -> Any:
    """A published config on noise, a batch of which is on its way."""
    config = configs.load(f"configs/pretrain/vit_{size}.py")
    config.unlock()
    config.batch_size, config.prefetch, config.data = clips, 1, configs.spec(sources.NoiseClips, frames=16, size=224)
    config.objective.encoder.remat = config.objective.decoder.remat = remat
    return config


# The longest clip, 64 frames of 266 pixels; tests/measured.md has the command and the compiler's memory.
LONGEST = {"objective.encoder.__symbol__": "videomae_jax.models.resized.Encoder", "objective.encoder.trained": "(8, 16, 16)",
           "objective.encoder.frames": "64", "objective.encoder.size": "266", "objective.encoder.remat": "full",
           "objective.mixing.rows": "1", "data.frames": "64", "data.size": "266",
           "data.repeats": "1", "batch_size": "1", "data.index": "/absent.parquet"}


def test_the_longest_clip_of_vit_g_assembles() -> None:
    """11,552 tokens; its float32 parameters, moments and gradients, counted by hand."""
    config = configs.load("configs/finetune/k400_g.py")
    configs.override(config, LONGEST)
    run = assemble(forecast.without_index(config, videos=240_000), devices=jax.devices()[:1])
    assert run.objective.encoder.grid.tokens == 32 * 19 * 19 == 11_552 and run.objective.encoder.trained == (8, 16, 16)
    width, hidden = 1408, 6144
    block = 3 * width**2 + 2 * width + width**2 + width + 2 * width * hidden + hidden + width + 2 * 2 * width
    count = (2 * 14 * 14 * 3 + 1) * width + 40 * block + 2 * width + (width + 1) * 400
    assert parallel.nbytes(run.abstract.params) == 4 * count == 4_048_697_408
    state = footprint.state_bytes(run, {"data": 1, "fsdp": 1, "tensor": 1})
    assert 4 * 4 * count <= state < 4 * 4 * count + 1000  # the rest are counters


@pytest.mark.parametrize("chip", [c for c in topologies.CHIPS.values() if c.platform == "gpu"], ids=lambda c: c.name)
def test_every_gpu_has_a_target(chip: topologies.Chip) -> None:
    """One that is found again by the name it is given, with its memory, and numbers alone."""
    text = topologies.gpu_target(chip)
    name = re.search(r'device_description_str: "(.*)"', text)[1]
    assert topologies.chip_of(name) is chip and f"device_memory_size: {chip.hbm:.0f} " in text and text.count("{") == text.count("}") == 4
    assert all(re.fullmatch(r"[\d.]+", value) for value in re.findall(r"(?:_\w+|major|minor|count): ([^\s\"]+)", text.replace('"CUDA"', "0")))


def test_without_the_plug_in_gpus_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled; one that refuses is one line."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert topologies.gpu_devices(topologies.find("h100x8")) == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "jax_plugins.xla_cuda12")
    asked: dict[str, Any] = {}

    def refused(name: str, platform: str, **kw: Any) -> Any:
        asked.update(kw, name=name, platform=platform)
        raise RuntimeError("INVALID: no such thing\nmore")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refused)
    with pytest.raises(UserError, match="^JAX's CUDA plug-in refuses --topology=h100x16: INVALID: no such thing; without the plug-in it is estimated$"):
        topologies.gpu_devices(topologies.find("h100x16"))
    assert asked["topology"] == "1x2x8" and asked["platform"] == "cuda" and "H100" in asked["target_config"]


def test_with_the_plug_in_the_compiled_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice whose program does not fit is followed by one that does; the time stays the estimate's, and the plan says so."""
    tried: list[Choice] = []

    def compiled(self: Planner, choice: Choice) -> Compiled:
        tried.append(choice)
        return Compiled(2 * self.limit if len(tried) == 1 else 0.5 * self.limit, 7.0, 8.0, None)

    monkeypatch.setattr(topologies, "gpu_devices", lambda topology: [object()])
    monkeypatch.setattr(Planner, "compile", compiled)
    result = forecast.make(noise("b", 128), "h100x1", fixed=frozenset())
    assert len(tried) == 2 and tried[0] != tried[1] and result["fits"] and result["bytes_per_chip"] == pytest.approx(0.5 * 80e9 * plan.USABLE)
    assert result["from"] == "compiled step's memory, estimated time" and result["compile_seconds"] == 7.0 and result["step_seconds"] > 0
    assert result["label"] == plan.MEASURED


@pytest.mark.slow
@pytest.mark.parametrize("size", ["s", "b"])
def test_real_steps_compile_for_gpus(size: str) -> None:
    """JAX's CUDA plug-in, no GPU: within 2 % of the memory that the H100 needed."""
    pytest.importorskip("jax_plugins.xla_cuda13")
    count, _, _, gibibytes = H100[size]
    config = noise(size, count)
    result = forecast.make(config, "h100x1", fixed=frozenset({"microbatches", "objective.encoder.remat", "mesh.data"}))
    assert result["from"] != "estimate" and result["bytes_per_chip"] / 2**30 == pytest.approx(gibibytes, rel=0.02)
