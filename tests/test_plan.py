"""Plans: topologies, estimates against known sizes, the choice of the lightest policy that fits, ways out, the command's output."""

import dataclasses
import importlib
import importlib.util
import json
import math
import os
import pathlib
import re
import types
from typing import Any
from unittest import mock

import jax
import pytest

from videomae_jax import config as configs
from videomae_jax import benchmarks, footprint, forecast, hlo, parallel, plan, program_text, topologies
from videomae_jax.assembly import assemble
from videomae_jax.commands import plan as command
from videomae_jax.data import audiovisual, sources
from videomae_jax.errors import UserError
from videomae_jax.objectives.base import Phase
from videomae_jax.objectives.mae import MAE
from videomae_jax.plan import Choice, Compiled, Estimate, Input, Planner

pytestmark = pytest.mark.usefixtures("optimised")

SMALL = {"objective.encoder.width": "32", "objective.encoder.hidden": "64", "objective.encoder.depth": "2", "objective.decoder.width": "32",
         "objective.decoder.hidden": "64", "objective.encoder.size": "32", "data.size": "32", "batch_size": "16"}


def small(**overrides: str) -> Any:
    """configs/tiny.py, smaller, without data."""
    config = configs.load("configs/tiny.py")
    configs.override(config, SMALL | {k.replace("__", "."): v for k, v in overrides.items()})
    return forecast.without_index(config, videos=1000)


# -- topologies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "chips", "devices", "hosts", "torus"), [
    ("v5e-256", 256, 256, 64, "16x16"), ("v5p-512", 256, 256, 64, "4x8x8"), ("v6e-256", 256, 256, 64, "16x16"), ("tpu7x-512", 256, 512, 64, "4x8x8"),
    ("2xv5p-512", 512, 512, 128, "4x8x8"), ("h100x512", 512, 512, 64, ""), ("h200x1", 1, 1, 1, ""), ("v5e-4", 4, 4, 1, "2x2")])
def test_topologies(name: str, chips: int, devices: int, hosts: int, torus: str) -> None:
    """v5p and tpu7x count cores in their names."""
    found = topologies.find(name)
    assert (found.all_chips, found.devices, found.hosts, found.torus) == (chips, devices, hosts, torus)


@pytest.mark.parametrize("name", ["v5p-500", "v4-128", "h100x12", "h100x0", "0xv5p-512", "v5p", "", "v5e-256x", "local"])
def test_an_unknown_topology_is_one_line(name: str) -> None:
    """With what is known; the devices here are known where they can be planned for."""
    with pytest.raises(UserError, match=r"^topology '.*'; allowed are v5e-4, .* or a multiple of 8\)$"):
        topologies.find(name)
    if name != "local":
        with pytest.raises(UserError, match=r"^topology '.*'; allowed are v5e-4, .* or a multiple of 8\); local$"):
            forecast.make(small(), name, fixed=frozenset())


@pytest.mark.parametrize(("kind", "name"), [
    ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"), ("TPU v6 lite", "v6e"), ("TPU v6e", "v6e"), ("TPU7x", "tpu7x"),
    ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA H200", "h200"), ("NVIDIA B200", "b200"),
    ("NVIDIA RTX A1000", ""), ("NVIDIA GH200 480GB", ""), ("NVIDIA GB200", ""), ("TPU v4", ""), ("cpu", "")])
def test_a_chip_is_a_word_of_the_name_that_jax_gives(kind: str, name: str) -> None:
    """Another device in whose name it lies has other figures."""
    assert topologies.chip_of(kind) is topologies.CHIPS.get(name)


def test_larger_topologies_have_more_memory_in_all() -> None:
    """Each once, and never the one that was asked for; all chips of its kind have the memory that it is planned with."""
    names = [f"{chip}-{size}" for chip, sizes in topologies.TORUS.items() for size in sizes]
    for name in (*names, "2xv5p-512", "8xv5e-256", "a100x4", "h100x1", "h100x6", "h100x8", "h100x24", "h200x8", "b200x8", "b200x512"):
        asked = topologies.find(name)
        for memory in (asked.chip.hbm / asked.chip.devices, 8e9):
            found = topologies.larger(asked, memory=memory)
            assert len({one.name for one in found}) == len(found) and name not in {one.name for one in found}
            for one in found:
                each = memory if one.chip is asked.chip else one.chip.hbm / one.chip.devices
                assert one.devices * each > asked.devices * memory, (name, one.name)
    def listed(name: str) -> list[str]:
        asked = topologies.find(name)
        return [one.name for one in topologies.larger(asked, memory=asked.chip.hbm / asked.chip.devices)]
    assert listed("v5p-512") == ["v5p-1024", "v5p-2048", "v5p-4096", "tpu7x-512"] and listed("v5p-4096") == []
    assert listed("tpu7x-512") == ["tpu7x-1024"] and listed("tpu7x-128") == ["tpu7x-512", "tpu7x-1024", "v5p-512"]
    assert listed("v5p-256") == ["v5p-512", *listed("v5p-512")] and listed("v5e-128") == ["v5e-256", "v5p-512", "tpu7x-512"]
    every = [f"{kind}x{n}" for n in (16, 32) for kind in ("h100", "h200", "b200")]
    assert listed("h100x8") == ["h200x8", "b200x8", *every] and listed("h200x8") == [
        "b200x8", *(f"{kind}x{n}" for n in (16, 32) for kind in ("h200", "h100", "b200"))]
    assert listed("b200x8") == ["b200x16", "h200x16", "b200x32", "h100x32", "h200x32"]
    assert listed("h100x6")[:3] == ["h200x6", "b200x6", "h100x16"] and "a100x8" in listed("a100x1") and "a100x8" not in listed("h100x1")


def machine(monkeypatch: pytest.MonkeyPatch, kind: str, count: int, platform: str) -> None:
    """JAX sees so many devices of a kind here."""
    device = types.SimpleNamespace(device_kind=kind, platform=platform, memory_stats=lambda: {"bytes_limit": 72e9})
    for name, found in (("devices", [device] * count), ("local_devices", [device] * count), ("device_count", count), ("local_device_count", count)):
        monkeypatch.setattr(jax, name, lambda found=found: found)


@pytest.mark.parametrize(("kind", "count", "platform", "chips"), [
    ("NVIDIA H100 80GB HBM3", 1, "gpu", 1), ("NVIDIA H100 80GB HBM3", 8, "gpu", 8), ("TPU v5 lite", 8, "tpu", 8), ("TPU7x", 8, "tpu", 4)])
def test_the_hosts_of_local_chips_are_this_machine(kind: str, count: int, platform: str, chips: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cores and its chips, not those of the cloud's machine with such chips; rates are the data sheet's."""
    machine(monkeypatch, kind, count, platform)
    monkeypatch.setattr(topologies.os, "cpu_count", lambda: 13)
    found = forecast.here()
    assert (found.all_chips, found.hosts, found.chip.per_host, found.chip.cores) == (chips, 1, chips, 13) and found.devices == count
    listed = topologies.chip_of(kind)
    assert found.chip.hbm == 72e9 * listed.devices and (found.chip.tflops, found.chip.network) == (listed.tflops, listed.network)


@pytest.mark.parametrize(("platform", "count", "tflops"), [("gpu", 1, 50.0), ("gpu", 4, 50.0), ("cpu", 1, 50.0), ("cpu", 4, 12.5)])
def test_devices_that_are_not_listed_have_the_rate_of_a_product(platform: str, count: int, tflops: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that of one; devices of a CPU share its cores."""
    machine(monkeypatch, "NVIDIA L4", count, platform)
    monkeypatch.setattr(benchmarks, "Product", lambda dtype: mock.Mock(flops=100e12))
    monkeypatch.setattr(benchmarks, "lap", lambda run, steps: benchmarks.Lap(2.0, 2.0))
    assert forecast.here().chip.tflops == tflops


def test_without_libtpu_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is traced."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(forecast, "Planner", None)
    with pytest.raises(UserError, match=r"--topology=v5p-512 compiles with libtpu, .* pip install 'libtpu=="):
        forecast.make(small(), "v5p-512", fixed=frozenset())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", lambda **kw: types.SimpleNamespace(devices=[]))
    pinned = next(r.split(";")[0].strip() for r in importlib.metadata.requires("jax") if r.startswith("libtpu")).partition("==")[2]
    for good in (pinned.removesuffix(".*"), pinned.replace("*", "7")):
        monkeypatch.setattr(importlib.metadata, "version", lambda name, good=good: good)
        assert topologies.tpu_devices(topologies.find("v5p-512")) == []
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(UserError, match=r"libtpu 0.0.1 is not the one of jax .*: pip install 'libtpu=="):
        topologies.tpu_devices(topologies.find("v5p-512"))


@pytest.mark.parametrize(("given", "used"), [
    (None, "--fibers_default_thread_stack_size=8388608"), ("--mine=1", "--fibers_default_thread_stack_size=8388608 --mine=1"),
    ("--fibers_default_thread_stack_size=65536", "--fibers_default_thread_stack_size=65536")])
def test_the_compiler_of_tpus_has_stacks_that_it_does_not_overflow(given: str | None, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before libtpu is loaded, which reads them once; what the user sets is kept."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: topologies.libtpu().partition("==")[2].replace("*", "7"))
    if given is not None:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
    seen: list[str] = []

    def described(**asked: Any) -> Any:
        seen.append(os.environ["LIBTPU_INIT_ARGS"])
        return types.SimpleNamespace(devices=[])

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", described)
    topologies.tpu_devices(topologies.find("v5p-512"))
    assert seen == [used]


@pytest.fixture(autouse=True)
def flags_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What planning for TPUs adds to the environment is gone after each test, that launchers of later ones do not inherit it."""
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")  # which remembers that it was not there
    monkeypatch.delenv("LIBTPU_INIT_ARGS")


@pytest.fixture(autouse=True)
def no_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of GPUs are estimates here, whatever is installed."""
    monkeypatch.setattr(topologies, "gpu_devices", lambda topology: [])


# -- estimates --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run() -> Any:
    """The small run on one device."""
    return assemble(small(), devices=jax.devices()[:1])


def test_state_is_counted_by_the_shardings(run: Any) -> None:
    """Parameters, two moments and gradients whole on one device; split where fsdp divides them."""
    params = parallel.nbytes(run.abstract.params)
    one = footprint.state_bytes(run, {"data": 4, "fsdp": 1, "tensor": 1})
    assert 4 * params <= one <= 4 * params + 64  # counters
    split = footprint.state_bytes(run, {"data": 1, "fsdp": 4, "tensor": 1})
    norms = sum(4 * math.prod(x.shape) for x, s in zip(jax.tree.leaves(run.abstract.params), jax.tree.leaves(parallel.state_shardings(
        run.boxed.params, mesh=parallel.abstract_mesh(data=1, fsdp=4, tensor=1))), strict=True) if s.is_fully_replicated)
    assert split == pytest.approx(params + 3 * norms * 3 / 4, abs=64)


def test_blocks_of_all_stacks_are_counted() -> None:
    """Of two modalities and what they share, and the layers of a probe, not its heads."""
    def layers(**params: Any) -> int:
        return footprint.layers(types.SimpleNamespace(abstract=types.SimpleNamespace(params=params)))

    def stack(*shape: int) -> dict[str, Any]:
        return {"block": {"a": jax.ShapeDtypeStruct((*shape, 4, 5), "float32"), "b": jax.ShapeDtypeStruct((*shape, 4), "float32")}}

    embed = {"kernel": jax.ShapeDtypeStruct((9, 4), "float32")}
    assert layers(encoder={"embed": embed, "stack": stack(12)}, decoder={"stack": stack(4)}) == 16
    assert layers(encoder={"audio_stack": stack(5), "stack": stack(2), "video_stack": stack(5)}, decoder={"stack": stack(4)}) == 16
    assert layers(heads={"pooler": {"stack": stack(20, 3), "cross": embed}}) == 3 and layers(head=embed) == 1


def test_what_is_kept_grows_with_rows_and_shrinks_with_recomputation(run: Any) -> None:
    """Linear in the rows; "full" keeps the inputs of blocks alone, "dots" the products too."""
    kept = {remat: footprint.kept(assemble(Choice(remat, 1, 1, 1, 1).apply(small()), devices=jax.devices()[:1]), rows=4) for remat in plan.RECOMPUTE}
    assert kept["none"].activations > kept["dots"].activations > kept["full"].activations > 0
    line = footprint.kept(run, rows=1).at(footprint.kept(run, rows=2), 4)
    assert line.activations == pytest.approx(kept["none"].activations, rel=2e-3)  # one row keeps a few broadcasts less
    inputs = 2 * 4 * run.objective.counts()["visible"] * 32 * 4  # two encoder blocks, four rows, float32
    assert kept["full"].activations > inputs


def test_wire_by_hand(run: Any) -> None:
    """3 x 2 P bytes along fsdp in bfloat16, 2 x 2 P along data; over the network what crosses slices."""
    def wire(sizes: dict[str, int], slices: int, microbatches: int = 1) -> footprint.Wire:
        return footprint.wire(run, sizes, slices, microbatches=microbatches)

    p = sum(math.prod(x.shape) for x in jax.tree.leaves(run.abstract.params))
    assert wire({"data": 1, "fsdp": 4, "tensor": 1}, 1) == footprint.Wire(pytest.approx(6 * p * 3 / 4), 0)
    assert wire({"data": 4, "fsdp": 1, "tensor": 1}, 1) == footprint.Wire(pytest.approx(4 * p * 3 / 4), 0)
    across = wire({"data": 64, "fsdp": 8, "tensor": 1}, 64)
    assert across == footprint.Wire(pytest.approx(6 * p * 7 / 8), pytest.approx(4 * p / 8 * 63 / 64))
    assert wire({"data": 512, "fsdp": 1, "tensor": 1}, 64).network == pytest.approx(4 * p / 8 * 63 / 64)  # a node's eight share its sum
    assert wire({"data": 1, "fsdp": 512, "tensor": 1}, 64).network > 10 * across.network  # FSDP over the network is the thing to avoid
    twice = wire({"data": 64, "fsdp": 8, "tensor": 1}, 64, 2)  # every micro-batch gathers, scatters and reduces anew
    assert twice == footprint.Wire(pytest.approx(2 * across.link), pytest.approx(2 * across.network))


def test_devices_that_share_a_chip_share_its_ways(run: Any) -> None:
    """Two devices of a chip send and read their own state each: twice the bytes over the chip's links, network, memory and way to the host."""
    sizes = {"data": 4, "fsdp": 4, "tensor": 1}
    def seconds(**rates: float) -> float:
        ways = dict.fromkeys(("bandwidth", "link", "network", "pcie"), math.inf) | rates
        chip = topologies.Chip("x", math.inf, 1e9, **ways, per_host=4, cores=1, devices=2)
        return footprint.seconds(run, topologies.Topology("x", chip, 2, 4), sizes, microbatches=1, recompute=0.0, efficiency=1.0, host=5e6)
    sent = footprint.wire(run, sizes, 2, microbatches=1)
    assert seconds(link=1e9) == pytest.approx(2 * sent.link / 1e9)
    assert seconds(network=1e9) == pytest.approx(2 * sent.network / (1e9 / 4))  # of which each of four chips has its part
    assert seconds(pcie=1e9) == pytest.approx(2 * 2 * 5e6 / 1e9)
    assert seconds(bandwidth=1e9) == pytest.approx(2 * 10 / 4 * footprint.state_bytes(run, sizes) / 1e9)
    values = run.clips * run.draws / 8 * footprint.widths(run)  # of the clips of a chip, whatever its devices
    assert seconds(clock=1e9, tensor_cores=2) == pytest.approx(footprint.CYCLES * values / 2e9)
    chip = topologies.Chip("x", math.inf, 1e9, 1e9, math.inf, math.inf, per_host=4, cores=1, devices=2, platform="cpu")
    both = footprint.seconds(run, topologies.Topology("x", chip, 2, 4), sizes, microbatches=1, recompute=0.0, efficiency=1.0)
    assert both == pytest.approx((footprint.OTHERS * values + 2 * 10 / 4 * footprint.state_bytes(run, sizes)) / 1e9)


@pytest.mark.parametrize(("size", "topology", "remat", "milliseconds"), [
    ("g", "v5p-512", "none", 251.1), ("g", "v5e-256", "dots", 570.6), ("l", "v5p-512", "none", 73.6), ("b", "v5p-512", "none", 25.4), ("b", "v5e-256", "none", 47.9)])
def test_estimates_of_tpus_are_what_their_compiler_expects(size: str, topology: str, remat: str, milliseconds: float) -> None:
    """Within 20 % of the cycles of the compiled step (jax 0.10.2, libtpu 0.0.42.1, 2026-11-27, data=2, fsdp=128), which costs minutes where this costs seconds."""
    config = forecast.without_index(configs.load(f"configs/pretrain/vit_{size}.py"), videos=10**6)
    one = Planner(config, topologies.find(topology), fixed=frozenset(), trust=())
    assert 1e3 * one.of(Choice(remat, 1, 2, 128, 1)).seconds == pytest.approx(milliseconds, rel=0.2)


def test_tpus_get_no_slivers_of_parameters() -> None:
    """ViT-L's width of 1024 over 256 devices would leave each 4 values of a row, half a tile; GPUs have no tiles."""
    config = forecast.without_index(configs.load("configs/pretrain/vit_l.py"), videos=10**6)
    def most(topology: str) -> int:
        return max(sizes["fsdp"] for sizes in Planner(config, topologies.find(topology), fixed=frozenset(), trust=()).meshes(frozenset()))
    assert most("v5e-256") == 128 and most("v5p-512") == 128
    run = assemble(config, devices=jax.devices()[:1])
    share = {n: parallel.thin(run.boxed, mesh=parallel.abstract_mesh(data=1, fsdp=n, tensor=1), least=8) for n in (1, 64, 128, 256)}
    assert share[1] == share[64] == 0 < share[128] < plan.THIN < 0.5 < share[256]


def test_a_loop_holds_its_gradients_beside_the_sum_of_micro_batches(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 bytes a parameter more, split as they are; without a loop they take the place of activations."""
    sizes, saved = {"data": 1, "fsdp": 4, "tensor": 1}, footprint.kept(run, rows=2)

    def bytes_(*, looped: bool, microbatches: int) -> float:
        monkeypatch.setattr(footprint, "looped", lambda run: looped)
        return footprint.gpu_bytes(run, sizes, microbatches=microbatches, saved=saved, layer=1e4)

    assert bytes_(looped=True, microbatches=1) == bytes_(looped=False, microbatches=2)
    assert bytes_(looped=True, microbatches=2) - bytes_(looped=True, microbatches=1) == pytest.approx(parallel.nbytes(run.abstract.params) / 4)


# -- the choice -------------------------------------------------------------------------------------------------------------


def planner(memory: float, **more: Any) -> Planner:
    """For eight chips with `memory` bytes each."""
    return Planner(small(mesh__data="8"), topologies.find("h100x8"), memory=memory, trust=(), **{"fixed": frozenset(), **more})


def test_the_lightest_policy_that_fits_is_chosen() -> None:
    """Ample memory: no recomputation, no accumulation; less and less memory asks for more and more."""
    ample = planner(1e12)
    best, _ = forecast.choose(ample)
    assert best.choice == Choice("none", 1, 8, 1, 1)
    sizes = {e.choice: e.bytes for e in map(ample.of, ample.choices())}
    least = min(sizes.values())
    tight, compiled = forecast.choose(planner(1.001 * least / plan.USABLE))
    assert tight.choice == Choice("full", 4, 8, 1, 1) and compiled.bytes == least  # four rows on a device, one at a time
    some = sizes[Choice("none", 2, 8, 1, 1)]
    chosen, _ = forecast.choose(planner(1.001 * some / plan.USABLE))
    assert chosen.bytes <= some and chosen.seconds == min(e.seconds for e in map(ample.of, ample.choices()) if e.bytes <= some)


def test_offloading_trades_memory_of_the_device_for_the_way_to_the_host() -> None:
    """It needs the bytes of "full", sends those that "dots" keeps beside them out and back, and is no choice where device and host are one."""
    one = planner(1e12)
    found = {remat: one.of(Choice(remat, 2, 8, 1, 1)) for remat in plan.RECOMPUTE}
    kept = {remat: one._kept(remat, 2)[1] for remat in plan.RECOMPUTE}
    assert found["offload"].bytes == found["full"].bytes < found["dots"].bytes
    assert kept["offload"].host == pytest.approx(kept["dots"].activations - kept["full"].activations, abs=100) and kept["dots"].host == 0  # scalars count as weights
    slower = found["offload"].seconds - found["dots"].seconds
    assert slower == pytest.approx(1.01 * 2 * 2 * kept["offload"].host / one.topology.chip.pcie, rel=1e-6)  # twice two micro-batches
    chip = topologies.Chip("cpu", 0.1, 4e9, 1e10, 1e9, 1e9, 8, 2, platform="cpu")
    here = Planner(small(mesh__data="8"), topologies.Topology("local", chip, 1, 8), fixed=frozenset(), trust=())
    assert "offload" not in {c.remat for c in here.choices()} and "offload" in {c.remat for c in one.choices()}
    asked = small(mesh__data="8", objective__encoder__remat="offload", objective__decoder__remat="offload")
    there = Planner(asked, here.topology, fixed=frozenset({"objective.encoder.remat", "objective.decoder.remat"}), trust=())
    assert {c.remat for c in there.choices()} == {"offload"}  # whoever asks for it has it


def test_estimates_are_of_the_attention_of_the_hardware() -> None:
    """What "auto" becomes on the topology, not on the machine that plans."""
    names = {"objective__encoder__dtype": "bfloat16", "objective__decoder__dtype": "bfloat16"}
    def bytes_(attention: str) -> float:
        config = small(mesh__data="8", objective__encoder__attention=attention, objective__decoder__attention=attention, **names)
        return Planner(config, topologies.find("v5e-8"), fixed=frozenset(), trust=())._kept("none", 2)[1].activations
    assert bytes_("auto") == bytes_("recomputed") < bytes_("xla")


def test_estimates_are_of_the_crops_of_the_hardware() -> None:
    """Cut on the GPU, from whole frames that cross to it, though the machine that plans would cut them itself."""
    config = forecast.without_index(configs.load("configs/pretrain/vit_b.py"), videos=10**6)
    planner = Planner(config, topologies.find("h100x8"), fixed=frozenset(), trust=())
    here = assemble(Choice("as given", 1, 1, 1, 1).apply(config), devices=jax.devices()[:1])
    assert [type(run.source.source).__name__ for run in (planner.run, planner._kept("none", 1)[0], here)] == ["PlaneClips", "PlaneClips", "VideoClips"]


def test_what_the_user_sets_is_not_chosen() -> None:
    """Mesh, accumulation, recomputation."""
    config = small(mesh__fsdp="4", microbatches="2", objective__encoder__remat="dots")
    fixed = frozenset({"mesh.fsdp", "microbatches", "objective.encoder.remat"})
    one = Planner(config, topologies.find("h100x8"), fixed=fixed, trust=())
    assert list(one.choices()) == [Choice("as given", 2, 2, 4, 1)]
    made = Choice("as given", 2, 2, 4, 1).apply(config)
    assert made.objective.encoder.remat == "dots" and made.objective.decoder.remat == "none" and made.mesh.data == 2 and config.mesh.data == -1
    free = set(one.choices(free=True))
    assert {c.fsdp for c in free} > {4} and {(c.remat, c.microbatches) for c in free if c.fsdp == 4} >= {("none", 1), ("full", 4)}


@pytest.mark.parametrize("remat", ["none", "dots", "offload", "full"])
def test_recomputation_costs_the_same_whoever_chose_it(remat: str) -> None:
    """Bytes and seconds of the user's policy are those of the planner's; where encoder and decoder differ, they lie between."""
    config = small(objective__encoder__remat=remat, objective__decoder__remat=remat)
    fixed = frozenset({"objective.encoder.remat", "objective.decoder.remat", "mesh.data", "microbatches"})
    given = Planner(config, topologies.find("h100x8"), fixed=fixed, trust=())
    free = Planner(small(), topologies.find("h100x8"), fixed=frozenset({"mesh.data", "microbatches"}), trust=())
    [own] = map(given.of, given.choices())
    chosen = {one.choice.remat: one for one in map(free.of, free.choices())}
    assert own == chosen[remat] and own.choice.options().startswith(f"remat {remat},")
    mixed = Planner(small(objective__encoder__remat=remat), topologies.find("h100x8"), fixed=fixed, trust=())
    [half] = map(mixed.of, mixed.choices())
    low, high = sorted((chosen["none"].seconds, own.seconds))
    assert low < half.seconds < high or remat == "none" and half == chosen["none"]
    low, high = sorted((own.bytes, chosen["none"].bytes))
    assert low < half.bytes < high or remat == "none"


@pytest.mark.parametrize(("fields", "message"), [
    ({"mesh__fsdp": "3"}, "mesh data=-1 fsdp=3 tensor=1 does not fit 8 devices; allowed are sizes whose product is 8, or divides it where one is -1"), ({"mesh__fsdp": "0"}, "sizes are positive"),
    ({"mesh__data": "-2", "mesh__fsdp": "-4"}, "sizes are positive"), ({"mesh__data": "8", "microbatches": "3"}, "is not divisible by 8 batch devices x 3 micro-batches"),
    ({"mesh__tensor": "8", "objective__encoder__width": "36", "objective__encoder__heads": "3"}, "bytes of state stay whole on every device"),
    ({"microbatches": "3"}, "in 3 micro-batches cannot be split evenly over the 8 devices of h100x8"), ({"batch_size": "3"}, "clips .* cannot be split evenly over the 8 devices")])
def test_what_a_run_would_refuse_is_no_plan(fields: dict[str, str], message: str) -> None:
    """Meshes, batches and micro-batches: one line, as `train` has."""
    fixed = frozenset(name.replace("__", ".") for name in fields)
    with pytest.raises(UserError, match=message):
        list(Planner(small(**fields), topologies.find("h100x8"), fixed=fixed, trust=()).choices())


def test_meshes_worth_trying() -> None:
    """ViT-g: 1408 = 2^7 x 11, so 128 of 256 chips; ViT-B's state may stay whole. On GPU nodes the split stays within a node. Nothing is compiled."""
    def meshes(size: str, name: str, *chosen: str) -> list[tuple[int, int]]:
        config = forecast.without_index(configs.load(f"configs/pretrain/vit_{size}.py"), videos=10**6)
        return [(m["data"], m["fsdp"]) for m in Planner(config, topologies.find(name), fixed=frozenset(), trust=()).meshes(frozenset(chosen))]
    assert meshes("g", "v5p-512") == meshes("g", "v5p-512", "mesh.replicated") == [(2, 128)]  # a gate is no mesh
    assert meshes("b", "v5p-512") == [(256, 1), (8, 32)]
    assert meshes("b", "h100x512") == [(512, 1), (64, 8)] and meshes("b", "h100x1") == [(1, 1)]


@dataclasses.dataclass
class Stub:
    """A planner whose compiled steps need `factor` times the estimate."""

    factor: float
    limit: float = 100.0
    compiled: list[str] = dataclasses.field(default_factory=list)
    topology: Any = topologies.find("v5e-4")
    said: Any = print
    table = {"none": (60.0, 1.0), "dots": (40.0, 1.1), "full": (20.0, 1.3)}

    def choices(self) -> list[str]:
        """Names."""
        return list(self.table)

    def of(self, name: str) -> Estimate:
        """From the table."""
        return Estimate(Choice(name, 1, 1, 1, 1), *self.table[name])

    def say(self, line: str) -> None:
        """Nothing."""

    def compile(self, choice: Choice) -> Compiled:
        """What it really needs."""
        self.compiled.append(choice.remat)
        return Compiled(self.table[choice.remat][0] * self.factor, 1.0, 1.0, None)


@pytest.mark.parametrize(("factor", "tried", "bytes_"), [(1.0, ["none"], 60), (2.0, ["none", "dots"], 80), (3.0, ["none", "full"], 60), (10.0, ["none"], 600)])
def test_a_compiled_step_corrects_the_estimates(factor: float, tried: list[str], bytes_: float) -> None:
    """What failed by a factor spares the compilations that would fail by it too."""
    stub = Stub(factor)
    _, compiled = forecast.choose(stub)
    assert stub.compiled == tried and compiled.bytes == bytes_


@pytest.mark.parametrize(("groups", "seconds"), [
    ("{{0,1,2,3},{4,5,6,7}}", 2 * 0.75 * 4e9 / 540e9),  # within each slice
    ("{{0,4},{1,5},{2,6},{3,7}}", 2 * 0.5 * 4e9 * 4 / 25e9),  # one partner over the host's network, which four chips share, and none within
    ("{{0,1,2,3,4,5,6,7}}", 2 * 0.75 * 4e9 / 540e9 + 2 * 0.5 * 4e9 / 4 * 4 / 25e9)])
def test_what_crosses_slices_takes_the_network(groups: str, seconds: float) -> None:
    """An all-reduce of 4 GB on two slices of four v5p chips.

    Over all eight it is three collectives. Reduced and scattered within a slice: a chip sends 3/4 of 4 GB over its links and has the sum of
    a quarter, 1 GB. That is reduced with the chip that has the same quarter in the other slice: 2 x 1/2 x 1 GB over the network, of which a chip has
    a quarter of its host's 25 GB/s. Gathered within the slice again: another 3/4 of 4 GB.
    """
    text = f"""ENTRY %main (g: f32[1000000000]) -> f32[1000000000] {{
  %g = f32[1000000000]{{0}} parameter(0)
  ROOT %all-reduce.1 = f32[1000000000]{{0}} all-reduce(%g), replica_groups={groups}, to_apply=%sum
}}"""
    time = forecast.timed(hlo.Program(text, devices=8), topologies.find("2xv5p-8"))
    assert time.step == time.exposed == pytest.approx(seconds)


COPY = "%copy.1 = f32[100000000]{0} copy(%big)"
SENT = """ENTRY %main (g: f32[1000000]) -> f32[1000000] {{
  %g = f32[1000000]{{0}} parameter(0)
  %after-all.1 = token[] after-all(), frontend_attributes={{MegascaleRendezvousKeyName="a_0"}}
  %send.1 = (f32[1000000]{{0:T(1024)}}, u32[], token[]) send(%g, %after-all.1), channel_id=6, is_host_transfer=true, \
frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="a_0",\
_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}, backend_config={{}}
  %recv.1 = (f32[1000000]{{0:T(1024)}}, u32[], token[]) recv(%after-all.1), channel_id=3, is_host_transfer=true
  {between}
  %send-done.1 = token[] send-done(%send.1), channel_id=6, is_host_transfer=true
  {late}
  %recv-done.1 = (f32[1000000]{{0:T(1024)}}, token[]) recv-done(%recv.1), channel_id=3, is_host_transfer=true
  ROOT %get-tuple-element.3 = f32[1000000]{{0:T(1024)}} get-tuple-element(%recv-done.1), index=0
}}"""  # as libtpu 0.0.42 writes it for two slices of four chips


@pytest.mark.parametrize(("kind", "target", "bytes_"), [
    ("ALL_REDUCE", '"{1,2}x{0:3}"', 4e6), ("ALL_GATHER", '"{1:2}x{0,1,2,3}"', 4e6), ("REDUCE_SCATTER", '"{1,2}x{0:3}"', 2e6), ("ALL_TO_ALL", '"{1,2}x{0:3}"', 2e6),
    ("ONE_TO_ONE", "{{100000->200000},{100001->200001},{200000->100000},{200001->100001}}", 4e6)])
@pytest.mark.parametrize(("between", "late", "hides"), [
    ("", "", False), (COPY, "", True), ("", COPY, True), ("", "%while.1 = (f32[]) while(%g), condition=%c, body=%b", True),
    (f"%recv-done.0 = (f32[1000000]{{0}}, token[]) recv-done(%recv.1)\n  {COPY}", "", False)])  # what waits for the answer does not run beside the exchange
def test_what_the_host_sends_to_other_slices_takes_the_network(kind: str, target: str, bytes_: float, between: str, late: str, hides: bool) -> None:
    """libtpu makes the exchanges between slices transfers of the host: of 4 MB, what a device sends to the one device of its place in the other slice."""
    text = SENT.format(kind=kind, target=target, between=between, late=late) + "\n%c (p: f32[]) -> pred[] {\n}\n%b (p: f32[]) -> f32[] {\n}\n"
    program = hlo.Program(text, devices=8, slices=2)
    [one] = program.collectives
    assert one.hidden is hides and one.crosses(lambda device: device // 4, 8) and forecast.sent(one, lambda device: device // 4, 8) == (0, bytes_)
    topology = topologies.find("2xv5p-8")
    assert forecast.timed(program, topology).wire == pytest.approx(topology.chip.devices * bytes_ / (topology.chip.network / topology.chip.per_host))


@pytest.mark.parametrize(("kind", "target"), [("ALL_REDUCE", '"everyone"'), ("GOSSIP", '"{1,2}x{0:3}"')])
def test_an_unknown_exchange_between_slices_is_an_error(kind: str, target: str) -> None:
    """What is not understood must not count as nothing."""
    with pytest.raises(ValueError, match="exchange between slices of "):
        _ = hlo.Program(SENT.format(kind=kind, target=target, between="", late=""), devices=8, slices=2).collectives


MOVED = """HloModule jit_step, is_scheduled=true

%body (state: (s32[], f32[1000])) -> (s32[], f32[1000]) {{
  %state = (s32[], f32[1000]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %layer = f32[1000]{{0}} get-tuple-element(%state), index=1
  %all-gather.1 = f32[8000]{{0}} all-gather(%layer), replica_groups={{{{0,1,2,3,4,5,6,7}}}}, dimensions={{0}}
  ROOT %tuple.1 = (s32[], f32[1000]{{0}}) tuple(%i, %layer)
}}

%condition (state.1: (s32[], f32[1000])) -> pred[] {{
  %constant.1 = s32[] constant(10)
  %state.1 = (s32[], f32[1000]{{0}}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  ROOT %lt.1 = pred[] compare(%i.1, %constant.1), direction=LT
}}

ENTRY %main (stack: f32[10000], start: (s32[], f32[1000])) -> f32[10000] {{
  %stack = f32[10000]{{0}} parameter(0)
  %start = (s32[], f32[1000]{{0}}) parameter(1)
  %while.1 = (s32[], f32[1000]{{0}}) while(%start), condition=%condition, body=%body
  {line}
  ROOT %y = f32[10000]{{0}} bitcast(%stack)
}}"""


@pytest.mark.parametrize(("line", "moved", "lines"), [
    ("", 320_000, []), ("", 310_000, []), ("", math.inf, []), ("", 160_000, ["gathers and scatters move 0.00032 GB a device, 2.00 times what parameters and gradients need"]),
    ("%z = f32[10000]{0} all-to-all(%stack), replica_groups={{0,1,2,3,4,5,6,7}}", 320_000, ["4e-05 GB a device go from all to all; none should"]),
    ("%z = f32[80000]{0} all-gather(%stack), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}", 640_000,
     ["0.00032 GB of parameters are gathered at once, not layer by layer"]),
    ("%z = f32[10000]{0} all-reduce(%stack), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%condition", 320_000, [])])
def test_what_a_sharded_step_must_not_do_is_told(line: str, moved: float, lines: list[str]) -> None:
    """Ten layers of 32 kB are gathered in a loop, which is in order; each of the rest is one line of the plan, and of its table."""
    program = hlo.Program(MOVED.format(line=line), devices=8)
    assert forecast.breaches(program, moved=moved, largest=320_000) == lines


def test_a_plan_asks_its_program_what_it_moves(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a TPU: three passes of all parameters in the bytes of the computation, for every micro-batch; no limit where a tensor axis moves activations."""
    asked: list[Any] = []
    monkeypatch.setattr(forecast, "breaches", lambda program, **limits: asked.append(limits) or ["told"])
    planner, program = Planner(small(), topologies.find("v5e-4"), fixed=frozenset(), trust=()), hlo.Program(MOVED.format(line=""), devices=8)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(parallel.unbox(planner.run.abstract.params)))
    for choice in (Choice("none", 1, 1, 4, 1), Choice("none", 2, 1, 4, 1), Choice("none", 1, 1, 2, 2)):
        assert forecast.broken(program, planner, choice) == ["told"]
    assert [one["moved"] for one in asked] == [12 * count, 24 * count, math.inf]
    assert forecast.broken(None, planner, choice) == [] and len(asked) == 3
    planner.run = dataclasses.replace(planner.run, objective=Twofold(**{f.name: getattr(planner.run.objective, f.name) for f in dataclasses.fields(MAE)}),
                                      stages=((1, planner.run.objective),), abstract_frozen={"teacher": jax.ShapeDtypeStruct((5,), "float32")})
    forecast.broken(program, planner, Choice("none", 1, 1, 4, 1))
    assert asked[-1]["moved"] == (12 * count + 20) * 3 * 2 and asked[-1]["largest"] == asked[0]["largest"]


class Twofold(MAE):
    """Three passes a step over one batch."""

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("critic", self.loss, repeats=2), Phase("train", self.loss))


def test_a_loop_over_micro_batches_excuses_no_gather() -> None:
    """A stack that each of two micro-batches gathers whole moves just what is due."""
    text = MOVED.format(line="").replace("f32[8000]", "f32[80000]").replace("f32[1000]", "f32[10000]")
    program = hlo.Program(text, devices=8)
    one = next(c for c in program.collectives if c.kind == "all-gather")
    assert one.loop and one.bytes == 320_000
    assert forecast.breaches(program, moved=math.inf, largest=320_000) == ["0.00032 GB of parameters are gathered at once, not layer by layer"]


@pytest.mark.parametrize(("kind", "groups", "link", "network"), [
    ("all-gather", "replica_groups={{0,1,2,3,4,5,6,7}}", 0.75, 0.5 / 4),  # an eighth to its partner in the other slice, then quarters within
    ("reduce-scatter", "replica_groups={{0,1,2,3,4,5,6,7}}", 0.75, 0.5 / 4),
    ("all-to-all", "replica_groups={{0,1,2,3,4,5,6,7}}", 3 / 8, 4 / 8),  # an eighth to every other device, of which three are near
    ("collective-permute", "source_target_pairs={{0,4},{4,0}}", 0, 1), ("all-reduce", "replica_groups={{0,1,4,5},{2,3,6,7}}", 2 * 0.5, 2 * 0.5 / 2)])
def test_shares_of_a_collective(kind: str, groups: str, link: float, network: float) -> None:
    """Of its array, what one of eight devices of two slices sends within and beyond its slice."""
    one = hlo.Collective(kind, 1e9, 1, program_text.groups(groups, kind), False, False, "a", "a")
    assert forecast.sent(one, lambda device: device // 4, 8) == pytest.approx((link * 1e9, network * 1e9))


# -- figures ----------------------------------------------------------------------------------------------------------------


def test_input_by_hand(run: Any) -> None:
    """16 decodes with two crops a step, half a second, one host: 32 decodes a second."""
    feed = Input(decode=0.5, crop=0.25, bytes=1e6, source="test")
    found = plan.fed(run, topologies.find("h100x8"), 0.5, feed)
    assert found["decodes_per_s_host"] == 32 and found["host_cores_needed"] == 32 and found["storage_gb_s"] == 0.032 and not found["input_bound"]
    slow = plan.fed(run, topologies.find("h100x8"), 0.05, feed)
    assert slow["input_bound"] and slow["input_slowdown"] == pytest.approx(320 / 208)


def test_measured_input(tmp_path: Any) -> None:
    """Any of three keys, or what `bench input` prints; anything else is one line."""
    file = tmp_path / "m.json"
    file.write_text('{"decode_seconds": 0.01, "bytes_per_decode": 100}')
    assert Input.read(str(file)) == Input(0.01, Input().crop, 100, f"measured: {file}")
    for rates, wanted in ((("null", "50.0"), 50), (("200.0", "50.0"), 200)):  # training clips a second and core: packed before raw
        file.write_text('{"packed_clips_per_s_core": %s, "raw_clips_per_s_core": %s}' % rates)
        assert Input.read(str(file)) == dataclasses.replace(Input(), decode=0.0, crop=1 / wanted, source=f"measured: {file}")
    for text, message in (("{", "is no readable JSON"), ("[]", "has none of the keys"), ('{"x": 1}', "has none of the keys"),
                          ('{"decode_seconds": "fast"}', 'has decode_seconds = "fast"; allowed are numbers of 0 and more'),
                          ('{"decode_seconds": null}', "has decode_seconds = null"), ('{"raw_clips_per_s_core": -5}', "has raw_clips_per_s_core = -5; allowed are positive"),
                          ('{"raw_clips_per_s_core": 0}', "has raw_clips_per_s_core = 0; allowed"), ('{"bytes_per_decode": NaN}', "has bytes_per_decode = NaN"),
                          ('{"packed_clips_per_s_core": null, "raw_clips_per_s_core": null}', "has no value for packed")):
        file.write_text(text)
        with pytest.raises(UserError, match=f"--measure={file} {message}"):
            Input.read(str(file))


def test_plan_of_gpus_end_to_end(tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table, then one line of JSON; hours are steps times the step, chips included; a later stage is costed."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    argv = [f"--config.{k}={v}" for k, v in SMALL.items() if not k.startswith("data")]
    assert command.main(["--config=configs/tiny.py", "--config.data.size=32", "--topology=h100x8", "--videos=1000", "--then=configs/finetune/k400_b.py",
                         "--then=configs/finetune/k400_b.py,2000,500", *argv]) == 0
    out = capsys.readouterr().out.splitlines()
    result = json.loads(out[-1])
    assert {"topology", "bytes_per_chip", "fits", "flops_per_step", "predicted_mfu", "chip_hours", "compile_seconds"} <= result.keys()
    assert result["fits"] and result["compile_seconds"] is None and "unvalidated" in result["label"] and result["from"] == "estimate"
    assert result["chip_hours"] == pytest.approx(8 * result["hours"]) and result["input_slowdown"] > 1  # a tiny model waits for its hosts
    assert result["hours"] == pytest.approx(result["steps"] * result["step_seconds"] * result["input_slowdown"] / 3600)
    assert result["predicted_mfu"] == pytest.approx(result["flops_per_step"] / result["step_seconds"] / (8 * 989e12))
    first, second = result["stages"][1:]
    assert [s["config"] for s in result["stages"]] == ["tiny", "finetune_k400_B", "finetune_k400_B"] and first["chip_hours"] > 0
    assert second["chip_hours"] == pytest.approx(2 * first["chip_hours"], rel=0.05) and "test_chip_hours" not in first
    assert (second["tested"], second["views"]) == (500, 15) and any("test of 500 videos in 15 views" in line for line in out)
    assert not first["input_bound"] and first["input_slowdown"] == 1 and not any("stage" in line and "input-bound" in line for line in out)
    assert any(line.strip().startswith("fits") for line in out) and out[0] == "plan of tiny"
    (tmp_path / "slow.json").write_text('{"decode_seconds": 100.0}')
    assert command.main(["--config=configs/tiny.py", "--config.data.size=32", "--topology=h100x8", "--videos=1000", "--then=configs/finetune/k400_b.py",
                         f"--measure={tmp_path}/slow.json", *argv]) == 0
    slow = capsys.readouterr().out.splitlines()
    stage = json.loads(slow[-1])["stages"][1]  # its hosts cannot keep up, either
    assert stage["input_bound"] and stage["chip_hours"] == pytest.approx(first["chip_hours"] * stage["input_slowdown"])
    assert stage["input_slowdown"] == pytest.approx(stage["host_cores_needed"] / stage["host_cores"]) and stage["input_slowdown"] > 2
    assert any(f"input-bound: {stage['input_slowdown']:.1f} times slower than the chips" in line for line in slow if "stage" in line.split())
    (tmp_path / "plans.jsonl").write_text(out[-1] + "\n")
    assert command.main([f"--table={tmp_path}/plans.jsonl"]) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    assert row.startswith("| tiny | h100x8 | ") and row.endswith("| estimate |")
    (tmp_path / "plans.jsonl").write_text('{"x": 1}\n')
    with pytest.raises(UserError, match="is no readable file of plans as JSON lines"):
        command.main([f"--table={tmp_path}/plans.jsonl"])
    for word in ("x.py,0", "x.py,a", "x.py,1,2,3"):
        with pytest.raises(UserError, match=f"--then={word}; allowed are FILE, FILE,N and FILE,N,TESTED"):
            command.main(["--config=configs/tiny.py", "--topology=h100x8", f"--then={word}"])
    for word, allowed in (("--memory=nan", "GB above 0"), ("--memory=0", "GB above 0"), ("--videos=0", "1 and more")):
        with pytest.raises(UserError, match=f"{word}; allowed .* {allowed}"):
            command.main(["--config=configs/tiny.py", "--topology=h100x8", word])


def test_a_plan_of_data_that_are_not_here_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is assumed of a published config's data, in the figures too; whoever names a place of data that is wrong gets no plan of others."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    argv = ["--config=configs/tiny.py", "--topology=h100x1", "--config.data.size=32", *(f"--config.{k}={v}" for k, v in SMALL.items() if k != "data.size")]
    assert command.main([*argv, "--config.total=1ep", "--then=configs/finetune/k400_b.py,2000"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out.splitlines()[-1])
    assert result["videos"] == 1_350_000 and result["steps"] == 1_350_000 // 16 and "84,375 steps over 1,350,000 videos, " in shown.out
    for count in ("1,350,000", "2,000"):
        assert f"the data cannot be opened here, {count} videos are assumed in their place: " in shown.err
    with pytest.raises(UserError, match="/absent.parquet.*; --videos=N plans for N videos without them$"):
        command.main([*argv, "--config.data.index=/absent.parquet"])
    assert command.main([*argv, "--config.data.index=/absent.parquet", "--videos=1000"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["videos"] == 1000


@pytest.mark.parametrize(("memory", "first"), [("24", "remat none, "), ("0.7", "--topology=h200x8, remat none, ")])
def test_a_way_out_costs_what_its_plan_says(memory: str, first: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts that cannot keep up are paid for, on other chips as well; of ways that they make equal the one whose chips are fastest comes first."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(plan, "larger", lambda topology, memory: [topologies.find("h200x8")])
    (tmp_path / "slow.json").write_text('{"decode_seconds": 5.0}')

    def planned(*words: str) -> dict[str, Any]:
        command.main(["--config=configs/pretrain/vit_b.py", "--videos=1000", f"--measure={tmp_path}/slow.json", "--config.total=100000", *words])
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    result = planned("--topology=h100x8", f"--memory={memory}", "--config.microbatches=1", *(f"--config.objective.{part}.remat=none" for part in ("encoder", "decoder")))
    assert not result["fits"] and result["input_bound"] and result["input_slowdown"] > 10 and result["ways_out"][0].startswith(first)
    text, hours = re.fullmatch(r"(.*): [\d.]+ GB a chip, ([\d,]+) chip-hours", result["ways_out"][0]).groups()
    remat, options = re.search(r"remat (\w+)", text)[1], re.findall(r"--\S+[^\s,]", text)
    where = () if "--topology" in text else ("--topology=h100x8", f"--memory={memory}")
    again = planned(*where, *options, *(f"--config.objective.{part}.remat={remat}" for part in ("encoder", "decoder")))
    assert again["fits"] and again["input_bound"] and again["chip_hours"] == pytest.approx(float(hours.replace(",", "")), rel=0.01)


def test_what_does_not_fit_comes_with_ways_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1, the numbers, three changes in the order of their cost that do fit."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    argv = ["--config=configs/pretrain/vit_b.py", "--topology=h100x8", "--videos=1000", "--memory=24", "--config.microbatches=1", "--config.objective.encoder.remat=none"]
    assert command.main(argv) == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not result["fits"] and result["bytes_per_chip"] > result["limit_bytes_per_chip"] == 22_800_000_000 and len(result["ways_out"]) == 3
    hours = [float(line.rsplit(", ", 1)[1].removesuffix(" chip-hours").replace(",", "")) for line in result["ways_out"]]
    assert hours == sorted(hours) and all("microbatches" in line for line in result["ways_out"])
    assert all(float(re.search(r"([\d.]+) GB a chip", line)[1]) <= 22.8 for line in result["ways_out"] if "=h200x" not in line)


def test_a_mesh_that_the_user_has_set_is_given_up_for_a_way_out() -> None:
    """Where the state does not fit whole its split does, on the same chips."""
    def of(memory: float) -> Planner:
        return planner(memory, fixed=frozenset({"mesh.data"}))

    ample = of(1e12)
    tight = of(0.9 * min(ample.of(choice).bytes for choice in ample.choices()) / plan.USABLE)
    estimate, compiled = forecast.choose(tight)
    assert compiled.bytes > tight.limit and estimate.choice.sizes == {"data": 8, "fsdp": 1, "tensor": 1}
    assert len(ways := tight.ways_out(1.0)) == 3 and all("--config.mesh.data=1 --config.mesh.fsdp=8 --config.mesh.tensor=1" in line for line in ways)


def test_other_topologies_have_meshes_of_their_own_and_the_cap_of_their_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mesh of eight devices is none of sixteen; a byte of memory is one of every H100, and none of an H200."""
    monkeypatch.setattr(plan, "larger", lambda topology, memory: [topologies.find("h100x16"), topologies.find("h200x16")])
    [line] = planner(1.0, fixed=frozenset({"mesh.data"})).ways_out(1.0)
    assert line.startswith("--topology=h200x16, ") and "--config.mesh.data=2 --config.mesh.fsdp=8 --config.mesh.tensor=1: " in line


def test_bfloat16_moments_are_a_way_out() -> None:
    """Where their two bytes are what is missing; what is printed is what fits."""
    one = Planner(small(), topologies.find("h100x1"), fixed=frozenset(), trust=(), memory=1e12)  # no mesh splits it
    best = min(map(one.of, one.choices()), key=lambda e: e.seconds)
    params = parallel.nbytes(one.run.abstract.params)
    one.limit = best.bytes - 0.4 * params
    first = one.ways_out(1.0)[0]
    assert first.startswith(f"{best.choice.options()} --config.optimizers.main.first_moment=bfloat16: {(best.bytes - params / 2) / 1e9:.1f} GB a chip")


@pytest.mark.parametrize(("size", "memory"), [("b", 24e9), ("b", 16e9), ("l", 24e9), ("l", 16e9)])
def test_a_cap_of_memory_leads_to_accumulation(size: str, memory: float) -> None:
    """B and L at the paper's batch, four copies a video, on one device: two batches of planes lie whole beside the state, and the clips of a
    micro-batch; all clips of the batch would need 9.9 and 14.8 GB more."""
    config = forecast.without_index(configs.load(f"configs/pretrain/vit_{size}.py"), videos=10**6)
    planner = Planner(config, topologies.find("h100x1"), fixed=frozenset(), trust=(), memory=memory)
    best, compiled = forecast.choose(planner)
    videos, clip = config.batch_size, 16 * 224 * 224 * 3
    assert planner.run.clips == 4 * videos == {"b": 4096, "l": 6144}[size]
    planes = videos * 16 * (256 * 342 * 3 // 2)
    parts = 12 * parallel.nbytes(planner.run.abstract.params) / 4 + 2 * planes + 4 * videos // best.choice.microbatches * clip
    assert parts < compiled.bytes <= plan.USABLE * memory and best.choice.microbatches > 1
    sizes = {"data": 1, "fsdp": 1, "tensor": 1}
    assert footprint.cut_clip(planner.run) == clip
    assert footprint.rows_cut(planner.run, sizes, microbatches=3) == 4 * videos // (3 if videos % 3 == 0 else 1)
    assert footprint.rows_cut(planner.run, sizes, microbatches=1) * clip == pytest.approx({"b": 9.87e9, "l": 14.8e9}[size], rel=1e-3)


def fine_tuning(**overrides: str) -> Planner:
    """ViT-B as published, 512 videos of two copies, on one H100; `overrides` of its config."""
    config = configs.load("configs/finetune/k400_b.py")
    configs.override(config, {k.replace("__", "."): v for k, v in overrides.items()})
    return Planner(forecast.without_index(config, videos=10**6), topologies.find("h100x1"), fixed=frozenset(), trust=())


def test_clips_that_are_mixed_stay_in_float32_through_every_micro_batch() -> None:
    """1,024 clips, blended before the first of 64 micro-batches; without mixing and erasing they are labelled in front of it, as bytes."""
    choice, sizes, clip = Choice("full", 64, 1, 1, 1), {"data": 1, "fsdp": 1, "tensor": 1}, 16 * 224 * 224 * 3
    mixing, plain = fine_tuning(), fine_tuning(objective__mixing__probability="0.0", objective__erasing__probability="0.0")
    planes = 512 * 16 * (256 * 342 * 3 // 2)
    found = [one.of(choice).bytes for one in (mixing, plain)]
    assert found[0] >= footprint.state_bytes(mixing.run, sizes) + 2 * planes + 1024 * 4 * clip and 4 * clip == 9_633_792
    assert found[0] - found[1] == pytest.approx(1024 * 3 * clip, rel=1e-3)
    for one, each in ((mixing, 4 * clip), (plain, clip)):
        saved = one._kept("full", 16)[1]
        assert saved.pixels == 4 * clip and saved.prepared == pytest.approx(each, rel=1e-3)  # labels and weights beside them
        same = {"microbatches": 64, "layer": 0.0}
        for count in (footprint.gpu_bytes, lambda *args, **kw: footprint.device_bytes(*args, **kw, margin=1.0)):
            less = count(one.run, sizes, **same, saved=dataclasses.replace(saved, prepared=0.0))
            assert count(one.run, sizes, **same, saved=saved) - less == pytest.approx(1024 * saved.prepared)
            one_pass = [count(one.run, sizes, **same | {"microbatches": 1}, saved=dataclasses.replace(saved, prepared=x)) for x in (0.0, saved.prepared)]
            assert one_pass[0] == one_pass[1]  # the blend goes into the patches


def test_pixels_that_stay_bytes_take_no_floats() -> None:
    """A device's sixteen clips more of masked pretraining: what their layers keep, their bytes and their planes, and no float32 copy."""
    config = forecast.without_index(configs.load("configs/pretrain/vit_b.py"), videos=10**6)
    planner = Planner(config, topologies.find("v5e-256"), fixed=frozenset(), trust=())
    clip, saved = 16 * 224 * 224 * 3, {rows: planner._kept("none", rows)[1] for rows in (16, 32)}
    few, many = (planner.of(Choice("none", 1, data, 128, 1)).bytes for data in (2, 1))
    layers = footprint.layers(planner.run)
    activations = plan.MARGIN["tpu"] * (saved[32].activations - saved[16].activations) * (1 + 1 / layers)
    planes = config.prefetch * footprint.batch_bytes(planner.run) / planner.run.clips
    assert 0 <= many - few - activations - 16 * (planes + clip) < 16 * 4 * clip and saved[16].pixels == 0


def test_plan_of_local_devices_compiles_the_real_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same machinery on this backend: bytes from the compiler, collectives from the program."""
    chip = topologies.Chip("cpu", 0.1, 4e9, 1e10, 1e9, 1e9, 8, 2, platform="cpu")
    monkeypatch.setattr(forecast, "here", lambda: topologies.Topology("local", chip, 1, 8))
    result = forecast.make(small(mesh__data="8"), "local", fixed=frozenset({"mesh.data"}))
    assert result["fits"] and result["from"] == "compiled step" and result["compile_seconds"] > 0 and result["mesh"] == {"data": 8, "fsdp": 1, "tensor": 1}
    assert result["collective_bytes"]["all-reduce"] > 4 * 30_000 and "all-to-all" not in result["collective_bytes"]
    assert result["step_seconds"] >= max(result["seconds"]["compute"], result["seconds"]["memory"] / 2) and 0 < result["predicted_mfu"] < 1


def test_what_is_compiled_is_what_the_launchers_run(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the flags that they set for the chip, but those that the user sets; here with those of the process, as a run."""
    asked: list[Any] = []

    def compiled(self: Any, *, options: Any) -> Any:
        asked.append(options)
        raise UserError("asked")

    monkeypatch.setattr(topologies, "devices", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(type(run), "compile", compiled)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_enable_async_all_gather=false --mine")
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_all_gather_combine_threshold_bytes=1")
    monkeypatch.delenv("JAX_OPTIMIZATION_LEVEL", raising=False)
    for name in ("v6e-4", "h100x4"):
        with pytest.raises(UserError, match="asked"):
            Planner(small(), topologies.find(name), fixed=frozenset(), trust=()).compile(Choice("none", 1, 4, 1, 1))
    tpu, gpu = asked
    assert tpu.keys() == topologies.flags("v6e").keys() - {"xla_enable_async_all_gather"} and tpu["xla_tpu_scoped_vmem_limit_kib"] == "98304"
    assert tpu["xla_tpu_enable_async_collective_fusion"] is True and gpu == {
        "optimization_level": 19, "xla_gpu_reduce_scatter_combine_threshold_bytes": "134217728"}
    levels = getattr(jax, "CompilerEffortLevel", None) or importlib.import_module("jax._src.config").EffortLevel
    assert "JAX_OPTIMIZATION_LEVEL:-O1" in (pathlib.Path(__file__).parents[1] / "launch" / "xla_flags.sh").read_text() and levels("O1").value == 19
    monkeypatch.setenv("JAX_OPTIMIZATION_LEVEL", "O2")
    assert "optimization_level" not in topologies.compiler_options(topologies.find("h100x4"))
    assert topologies.compiler_options(dataclasses.replace(topologies.find("v5e-4"), name="local")) == {}


COMPILER = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "


@pytest.mark.parametrize(("said", "told"), [
    (f"{COMPILER}vmem. Used 59.79M of 16.00M vmem. Exceeded vmem capacity by 43.79M.", r"a kernel does not fit into the vmem of its device \(.*59.79M of 16.00M.*attention=xla"),
    (f"{COMPILER}smem. Used 1.50M of 1.00M smem. Exceeded smem capacity by 512.0K.", "a kernel does not fit into the smem of .*--config.objective.encoder.attention=xla"),
    ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 5 bytes.", "the run does not fit into the memory of its devices .*--config.microbatches")])
def test_only_the_memory_of_a_device_that_is_too_small_is_a_size_of_the_step(said: str, told: str, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of the memories within a TPU's cores are no step's, which would fit; other errors of the compiler stay."""
    def compiled(*_: Any, **__: Any) -> Any:
        raise jax.errors.JaxRuntimeError(texts[0])

    monkeypatch.setattr(topologies, "devices", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(type(run), "compile", compiled)
    one, choice, texts = Planner(small(), topologies.find("v5e-4"), fixed=frozenset(), trust=()), Choice("none", 1, 4, 1, 1), [said]
    with pytest.raises(UserError, match=told):
        one.compile(choice)
    texts[0] = f"{COMPILER}hbm. Used 17.50G of 15.75G hbm. Exceeded hbm capacity by 1.75G.\nTotal hbm usage >= 18.00G"
    assert one.compile(choice).bytes == 17.5 * 2**30
    texts[0] = "INTERNAL: broken"
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        one.compile(choice)


def test_options_reach_the_compiler(run: Any) -> None:
    """Which refuses one that it does not know, and takes those of GPUs on any backend."""
    jax.jit(lambda x: x + 1).lower(1.0).compile(compiler_options=topologies.compiler_options(topologies.find("h100x1")))
    with pytest.raises(RuntimeError, match="No such compile option: 'no_such_flag'"):
        run.compile(options={"no_such_flag": "1"})


def test_data_that_are_not_here() -> None:
    """Their shapes and copies stay, of any modality; data that can be opened are left alone."""
    made = configs.build(forecast.without_index(configs.load("configs/pretrain/vit_b.py"), videos=77).data)
    assert (len(made), made.repeats, made.fields["video"].shape) == (77, 4, (16, 224, 224, 3))
    config = configs.load("configs/tiny.py")
    config.data = configs.spec(audiovisual.AudioVideoClips, index="index.parquet", frames=4, size=16, spectrogram=50)
    assert configs.build(forecast.without_index(config, videos=5).data).fields["audio_valid"].shape == (50,)
    config.data = configs.spec(sources.NoiseClips, length=3)
    assert len(configs.build(forecast.without_index(config, videos=77).data)) == 3


@pytest.mark.slow  # launch/test.sh --plans
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("size", "name", "low", "high"), [("b", "v5e-256", 2e9, 6e9), ("g", "v5p-512", 10e9, 60e9)])
def test_real_steps_compile_for_tpus(size: str, name: str, low: float, high: float, capsys: pytest.CaptureFixture[str]) -> None:
    """The public libtpu, no TPU: where parameters are split they are gathered once for either pass, 2 x 2 P bytes, and nothing is exchanged all to all."""
    pytest.importorskip("libtpu")
    config = forecast.without_index(configs.load(f"configs/pretrain/vit_{size}.py"), videos=1_350_000)
    result = forecast.make(config, name, fixed=frozenset())
    with capsys.disabled():  # the goal of g is 120 s of one core that is idle: seconds of a busy one are no fault of the program
        print(f"\n{size} on {name}: compiled in {result['compile_cpu_seconds']:.0f} s of CPU")
    assert result["fits"] and low < result["bytes_per_chip"] < high and 0.1 < result["predicted_mfu"] < 0.8
    assert result["step_seconds"] > 1.2 * result["seconds"]["roofline"]  # the compiler's cycles are in it
    assert result["breaches"] == []
    if size == "g":
        moved, parameters = result["collective_bytes"], 1_026_306_560
        assert moved["all-gather"] == pytest.approx(2 * 2 * parameters, rel=0.05)
        assert 1 <= (moved["reduce-scatter"] + moved["all-reduce"]) / (2 * parameters) < 1.25  # gradients of queries, keys and values are reduced whole
