"""Meshes, partitions of state and batch, and the gate against state that stays whole."""

import types
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import toy
from jax.sharding import NamedSharding, PartitionSpec as P

from videomae_jax import config as configs
from videomae_jax import cluster, optim, parallel
from videomae_jax.assembly import assemble
from videomae_jax.errors import UserError
from videomae_jax.parallel import Layout

RULES = parallel.RULES


def mesh(data: int = 1, fsdp: int = 1, tensor: int = 1) -> Any:
    """A mesh on as many devices as it has."""
    return Layout(data=data, fsdp=fsdp, tensor=tensor).mesh(jax.devices()[:data * fsdp * tensor])


def abstract(*shape: int, names: tuple[str | None, ...] | None = None) -> Any:
    """A float32 leaf without values, boxed where it has names."""
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    return leaf if names is None else nn.LogicallyPartitioned(leaf, names)


# -- processes ------------------------------------------------------------------------------------------------------


def test_a_silent_peer_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its limit and that of the start are given to JAX, whose own are 100 and 300 s; an address without a port is one line."""
    asked: dict[str, Any] = {}
    monkeypatch.delenv("JAX_PLATFORMS")  # with which the collectives of this process would be changed
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: asked.update(given))
    cluster.initialize(coordinator="host:1", processes=2, process=1, timeout=7)
    assert asked == {"coordinator_address": "host:1", "num_processes": 2, "process_id": 1, "initialization_timeout": 7, "heartbeat_timeout_seconds": 15}
    cluster.initialize(coordinator="host:1", processes=2, process=1, peer_limit=9)
    assert asked["heartbeat_timeout_seconds"] == 9
    for wrong in ("nonsense", "host:", "host:port"):
        with pytest.raises(UserError, match=f"--coordinator={wrong}; allowed are HOST:PORT with --processes=N --process=I, and auto"):
            cluster.initialize(coordinator=wrong, processes=2, process=0)


# -- layout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "shape"), [
    ((-1, 1, 1), (8, 1, 1)), ((-1, 2, 2), (2, 2, 2)), ((1, -1, 1), (1, 8, 1)), ((2, 2, -1), (2, 2, 2)), ((2, 4, 1), (2, 4, 1))])
def test_layout_fills_in_the_rest(sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    """-1 takes the devices that are left."""
    assert tuple(Layout(*sizes).mesh().shape.values()) == shape
    assert tuple(Layout(*sizes).mesh().shape) == parallel.AXES


@pytest.mark.parametrize(("sizes", "message"), [
    ((-1, -1, 1), "data=-1 fsdp=-1 tensor=1; sizes are positive and at most one is -1"), ((0, 1, 1), "data=0 fsdp=1 tensor=1; sizes are positive"),
    ((-2, 1, 1), "data=-2 .* sizes are positive"), ((2, 2, 1), "data=2 fsdp=2 tensor=1 does not fit 8 devices"),
    ((-1, 3, 1), "data=-1 fsdp=3 tensor=1 does not fit 8 devices"), ((4, 4, 1), "does not fit 8 devices")])
def test_layouts_that_do_not_fit_are_refused(sizes: tuple[int, ...], message: str) -> None:
    """The error shows the sizes and the number of devices."""
    with pytest.raises(UserError, match=message):
        Layout(*sizes).mesh()


def devices_of(slices: int, *torus: int, kind: str = "cpu") -> list[Any]:
    """Devices as far as a mesh looks at them: `slices` tori of one chip a place."""
    places = [tuple(int(i) for i in place) for place in np.ndindex(*torus)]
    return [types.SimpleNamespace(id=n * len(places) + i, slice_index=n, coords=place, core_on_chip=0, device_kind=kind, process_index=0,
                                  platform="tpu" if kind != "cpu" else "cpu") for n in range(slices) for i, place in enumerate(places)]


def test_processes_with_unequal_devices_are_refused() -> None:
    """Before JAX puts rows together that do not fit."""
    devices = devices_of(1, 12)
    for device in devices:
        device.process_index = int(device.id >= 4)
    with pytest.raises(UserError, match="^processes have 4 and 8 devices; allowed are equally many"):
        Layout().mesh(devices)


@pytest.mark.parametrize(("sizes", "slices_of_data", "slices_of_fsdp"), [((8, 2, 1), 4, 1), ((2, 8, 1), 2, 2), ((1, 16, 1), 1, 4), ((4, 2, 2), 4, 1), ((2, 4, 2), 2, 2)])
def test_slices_lie_along_data_first(sizes: tuple[int, ...], slices_of_data: int, slices_of_fsdp: int) -> None:
    """Four slices of four: parameters are gathered over the slow network only where `data` is shorter than the number of slices."""
    mesh = parallel.arrange(sizes, devices_of(4, 4, 1, 1))
    number = np.vectorize(lambda d: d.slice_index)(mesh)
    assert mesh.shape == sizes and sorted(d.id for d in mesh.flat) == list(range(16))
    assert {len(set(number[:, f, t])) for f in range(sizes[1]) for t in range(sizes[2])} == {slices_of_data}
    assert {len(set(number[d, :, t])) for d in range(sizes[0]) for t in range(sizes[2])} == {slices_of_fsdp}
    assert all(len(set(number[d, f])) == 1 for d in range(sizes[0]) for f in range(sizes[1]))


def test_the_tensor_axis_stays_within_a_slice() -> None:
    """Its collectives run in every layer."""
    with pytest.raises(UserError, match=r"tensor=8 over 4 slices of 4 devices; data x fsdp must be a multiple of 4"):
        parallel.arrange((1, 2, 8), devices_of(4, 4, 1, 1))


def test_the_tensor_axis_stays_within_a_process() -> None:
    """Two processes of four devices: the rows of a tensor group would come from two readers."""
    devices = devices_of(1, 8)
    for place, device in enumerate(devices):
        device.process_index = place // 4
    assert parallel.arrange((2, 1, 4), devices).shape == (2, 1, 4)
    with pytest.raises(UserError, match="tensor axis of 8 devices would span processes of 4"):
        parallel.arrange((1, 1, 8), devices)


@pytest.mark.parametrize(("slices", "torus"), [(1, (4, 8, 8)), (1, (16, 16, 1)), (2, (4, 4, 4))])
@pytest.mark.parametrize("tensor", [2, 4])
def test_the_chips_of_a_host_make_a_tensor_axis(slices: int, torus: tuple[int, ...], tensor: int) -> None:
    """Hosts of 2 x 2 chips: every tensor group lies on one of them, every device is there once, and `fsdp` stays within a slice."""
    devices = devices_of(slices, *torus, kind="TPU v5")
    for device in devices:
        x, y, z = device.coords
        device.process_index = int(np.ravel_multi_index((device.slice_index, x // 2, y // 2, z), (slices, -(-torus[0] // 2), -(-torus[1] // 2), torus[2])))
    for fsdp in (1, 8, len(devices) // slices // tensor):
        mesh = parallel.arrange((len(devices) // fsdp // tensor, fsdp, tensor), devices)
        assert len({d.id for d in mesh.flat}) == len(devices)
        assert all(len({d.process_index for d in group}) == 1 for group in mesh.reshape(-1, tensor))
        assert all(len({d.slice_index for d in row.flat}) == 1 for row in mesh)


def test_an_axis_may_take_a_part_of_a_torus() -> None:
    """fsdp=128 is no product of whole axes of a 4 x 8 x 8 torus, and 256 does not divide ViT-g's width."""
    mesh = parallel.arrange((2, 128, 1), devices_of(1, 4, 8, 8, kind="TPU v5"))
    assert mesh.shape == (2, 128, 1) and len({d.id for d in mesh.flat}) == 256
    assert {tuple(len({d.coords[axis] for d in half.flat}) for axis in range(3)) for half in mesh} in ({(2, 8, 8)}, {(4, 4, 8)}, {(4, 8, 4)})


# -- partitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "shape", "want"), [
    (("embed", "mlp"), (8, 8), P("fsdp", "tensor")), (("rows", "embed"), (8, 8), P("tensor", "fsdp")), (("rows", "embed"), (7, 8), P(None, "fsdp")),
    (("layers", "embed", None, "heads", None), (3, 8, 3, 2, 5), P(None, "fsdp", None, "tensor", None)),
    (("batch", None), (8, 7), P(("data", "fsdp"), None)), (("norm",), (8,), P(None)), ((None, None), (8, 8), P(None, None)),
    (("embed", "mlp"), (7, 8), P(None, "tensor")), (("embed", "heads"), (8, 3), P("fsdp", None)), (("batch",), (6,), P(None)),
    (("embed", "embed"), (8, 8), P("fsdp", None)), (("batch", "embed"), (8, 8), P(("data", "fsdp"), None)), ((), (), P())])
def test_fit(names: tuple[str | None, ...], shape: tuple[int, ...], want: P) -> None:
    """Names become mesh axes; an axis is left out where it does not divide the length, and is used once."""
    assert parallel.fit(names, shape=shape, mesh=mesh(2, 2, 2), rules=RULES) == want


def test_rows_are_split_by_fsdp_where_there_is_no_tensor_axis() -> None:
    """A layer's matrix is then gathered along its first axis; where that is no multiple, along the other."""
    for size, want in ((8, P("fsdp", None)), (6, P(None, "fsdp"))):
        assert parallel.fit(("rows", "embed"), shape=(size, 8), mesh=mesh(2, 4), rules=RULES) == want


def test_axes_of_one_device_are_not_named() -> None:
    """So that a partition on one device equals none."""
    assert parallel.fit(("embed", "mlp"), shape=(7, 7), mesh=mesh(4), rules=RULES) == P(None, None)
    assert parallel.fit(("batch",), shape=(4,), mesh=mesh(4), rules=RULES) == P("data")


def test_a_name_without_its_length_is_an_error() -> None:
    """A box of the wrong rank must not be cut short."""
    with pytest.raises(ValueError, match="argument"):
        parallel.fit(("embed",), shape=(8, 8), mesh=mesh(1, 2), rules=RULES)


def test_activations_are_constrained_only_within_a_mesh() -> None:
    """`shard` does nothing outside `use`."""
    x = jnp.zeros((8, 4))
    assert parallel.shard(x, "batch", None) is x
    where = mesh(2, 2)
    with parallel.use(where):
        y = jax.jit(lambda x: parallel.shard(x, "batch", None))(x)
    assert y.sharding.is_equivalent_to(NamedSharding(where, P(("data", "fsdp"), None)), 2)
    assert parallel.shard(x, "batch", None) is x


def config(width: int = 16, **fields: Any) -> Any:
    """configs/tiny.py on random data with Adam, an encoder of `width` and a moving average."""
    small = tiny.tiny(configs.load("configs/tiny.py"))
    small.objective.encoder.width = width
    small.optimizers.main = configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, warmup="0", unit=0))
    small.update(fields)
    return small


def test_every_leaf_of_a_model_has_the_partition_of_its_parameter() -> None:
    """Parameters, both moments and the average, as the rules say."""
    run = assemble(config(mesh={"data": 2, "fsdp": 2, "tensor": 2}), trust=tiny.TRUST)
    block = run.shardings.params["encoder"]["stack"]["block"]
    assert block["attn"]["qkv"].spec == P(None, "fsdp", None, "tensor", None)
    assert block["mlp"]["fc1"]["kernel"].spec == P(None, "fsdp", "tensor")
    assert block["mlp"]["fc2"]["kernel"].spec == P(None, "tensor", "fsdp")
    assert block["norm1"]["scale"].spec == P(None, None)
    adam = next(s for s in run.shardings.opt["train"] if hasattr(s, "mu"))
    for tree in (adam.mu, adam.nu, run.shardings.ema):
        assert tree == run.shardings.params


def test_states_lie_where_the_partition_says() -> None:
    """What `create` and a step return: parameters, moments, average, teacher, counters."""
    adam = {"main": configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, warmup="0", unit=0))}
    run = assemble(toy.run_config(toy.Toy(teacher=True), mesh={"data": 2, "fsdp": 2, "tensor": 2}, optimizers=adam, ema=0.5), trust=toy.TRUST)
    state = run.create()
    batch = parallel.to_device(toy.batch(8), mesh=run.mesh)
    for made in (state, run.step()(state, batch)[0]):
        for (path, leaf), want in zip(jax.tree_util.tree_leaves_with_path(made), jax.tree.leaves(run.shardings), strict=True):
            assert leaf.sharding.is_equivalent_to(want, leaf.ndim), jax.tree_util.keystr(path)
    for leaf in (made.params["left"]["w"], made.ema["left"]["w"], made.extra["teacher"]["w"], made.extra["number"], run.frozen["target"]["w"],
                 made.opt["train"][1].nu["left"]["w"]):
        assert leaf.addressable_shards[0].data.shape == (toy.WIDTH // 2, toy.WIDTH)


def test_initial_parameters_do_not_depend_on_the_mesh() -> None:
    """Random draws are cut, not repeated: every mesh starts from the same bits."""
    runs = [assemble(toy.run_config(mesh={"data": d, "fsdp": f, "tensor": 1}), trust=toy.TRUST, devices=jax.devices()[:d * f]) for d, f in ((1, 1), (2, 2))]
    one, four = (parallel.gather(r.create().params, mesh=r.mesh) for r in runs)
    jax.tree.map(np.testing.assert_array_equal, one, four)
    assert not runs[1].create().params["left"]["w"].sharding.is_fully_replicated


# -- what stays whole -----------------------------------------------------------------------------------------------


def test_dropped_axes_are_listed_once() -> None:
    """One entry for each leaf that a rule would split, with the axes, and none for those that fit or that no rule names."""
    boxed = {"fits": abstract(8, 8, names=("embed", "mlp")), "odd": abstract(7, 8, names=("embed", "mlp")),
             "both": abstract(7, 9, names=("embed", "mlp")), "norm": abstract(7, names=("norm",)), "count": abstract()}
    found = parallel.dropped_axes(boxed, mesh=mesh(2, 2, 2))
    assert [(d.path, d.shape, d.axes, d.size) for d in found] == [
        ("['both']", (7, 9), ("fsdp", "tensor"), 252), ("['odd']", (7, 8), ("fsdp",), 224)]
    assert str(found[1]) == "['odd'] (7, 8) is replicated over fsdp (224 bytes)"
    assert parallel.dropped_axes(boxed, mesh=mesh(4)) == []


def test_an_array_without_names_counts_where_fsdp_is_on() -> None:
    """A teacher, queue or moment that lost its box is the accident that nobody sees; a box without axes is a decision."""
    boxed = {"queue": abstract(64, 8), "kept": abstract(64, 8, names=(None, None)), "count": abstract()}
    assert [d.path for d in parallel.dropped_axes(boxed, mesh=mesh(1, 2))] == ["['queue']"]
    assert parallel.dropped_axes(boxed, mesh=mesh(4)) == parallel.dropped_axes(boxed, mesh=mesh(1, 1, 2)) == []
    assert parallel.unbox(parallel.box(jnp.ones(3), "embed")).shape == (3,)
    assert parallel.logical_axes({"a": parallel.box(jnp.ones(3), "embed"), "b": jnp.ones((2, 2))}) == {"a": ("embed",), "b": (None, None)}


def test_the_gate_compares_bytes_with_a_share_of_the_state() -> None:
    """At the limit it holds, above it the largest leaves are named."""
    boxed = {"odd": abstract(7, 10, names=("embed", None)), "fits": abstract(930, names=("embed",))}
    parallel.check_replication(boxed, mesh=mesh(1, 2), limit=0.07)
    parallel.check_replication(boxed, mesh=mesh(4), limit=0.0)
    with pytest.raises(UserError, match=r"280 of 4000 bytes of state stay whole .*\['odd'\] \(7, 10\) is replicated over fsdp .* allowed is a share of 0.069"):
        parallel.check_replication(boxed, mesh=mesh(1, 2), limit=0.069)


def test_vit_g_does_not_fit_fsdp_256() -> None:
    """1408 = 2^7 x 11: 128 divides it, 256 does not; on an abstract mesh, since nobody has 256 devices here."""
    from jax.sharding import AbstractMesh

    boxed = {"qkv": abstract(40, 1408, 3, 16, 88, names=("layers", "embed", None, "heads", None)), "rest": abstract(1024, 1 << 20, names=("embed", None))}
    parallel.check_replication(boxed, mesh=AbstractMesh((1, 128, 1), parallel.AXES), limit=0.001)
    with pytest.raises(UserError, match=r"\(40, 1408, 3, 16, 88\) is replicated over fsdp"):
        parallel.check_replication(boxed, mesh=AbstractMesh((1, 256, 1), parallel.AXES), limit=0.001)


def test_assemble_closes_the_gate() -> None:
    """A width that fsdp does not divide is an error before anything is allocated, unless mesh.replicated allows it."""
    odd = config(width=18, mesh={"data": 1, "fsdp": 4, "tensor": 1})
    with pytest.raises(UserError, match=r"bytes of state stay whole on every device of mesh .*'fsdp': 4.*mesh.replicated"):
        assemble(odd, trust=tiny.TRUST, devices=jax.devices()[:4])
    odd.mesh = {"data": 1, "fsdp": 4, "tensor": 1, "replicated": 1.0}
    run = assemble(odd, trust=tiny.TRUST, devices=jax.devices()[:4])
    listed = [d.path for d in parallel.dropped_axes(run.boxed, mesh=run.mesh)]
    assert len(listed) == len(set(listed)) > 0
    assert any("mu" in path for path in listed) and any("ema" in path for path in listed)


# -- batches --------------------------------------------------------------------------------------------------------


def test_a_batch_is_split_over_data_and_fsdp() -> None:
    """Rows in the order of the devices; tensor-parallel devices hold the same rows."""
    where = mesh(2, 2, 2)
    rows = parallel.to_device({"x": np.arange(16).reshape(8, 2), "key": np.arange(8)}, mesh=where)
    assert rows["x"].shape == (8, 2) and parallel.batch_ways(where) == 4
    seen = [shard.data[:, 0].tolist() for shard in rows["x"].addressable_shards]
    assert sorted(map(tuple, seen)) == sorted(2 * [(0, 2), (4, 6), (8, 10), (12, 14)])
    np.testing.assert_array_equal(rows["key"], np.arange(8))


@pytest.mark.parametrize(("size", "microbatches", "fits"), [(8, 1, True), (8, 2, True), (12, 2, False), (6, 1, False), (16, 4, True), (8, 4, False)])
def test_check_batch(size: int, microbatches: int, fits: bool) -> None:
    """Every device gets the same number of rows of every micro-batch."""
    if fits:
        parallel.check_batch(size, mesh=mesh(2, 2, 2), microbatches=microbatches)
        return
    with pytest.raises(UserError, match=f"batch of {size} clips .* not divisible by 4 batch devices x {microbatches} micro-batches"):
        parallel.check_batch(size, mesh=mesh(2, 2, 2), microbatches=microbatches)


def test_assemble_checks_the_batch() -> None:
    """Before anything is compiled."""
    with pytest.raises(UserError, match="batch of 8 clips .* 4 batch devices x 4 micro-batches"):
        assemble(toy.run_config(mesh={"data": 4, "fsdp": 1, "tensor": 1}, microbatches=4), trust=toy.TRUST, devices=jax.devices()[:4])


def test_place_put_and_gather() -> None:
    """Host values arrive under their shardings and come back whole."""
    where = mesh(1, 2)
    values = {"a": np.arange(8, dtype=np.float32).reshape(4, 2), "b": np.float32(3)}
    shardings = {"a": NamedSharding(where, P("fsdp", None)), "b": NamedSharding(where, P())}
    placed = parallel.place(values, shardings)
    assert jax.tree.map(lambda x: x.sharding, placed) == shardings
    jax.tree.map(np.testing.assert_array_equal, parallel.gather(placed, mesh=where), values)
    assert parallel.put(jax.random.key(0), mesh=where).sharding.is_fully_replicated


def test_bytes_count_what_a_checkpoint_holds() -> None:
    """Boxes and keys add nothing."""
    assert parallel.nbytes({"a": abstract(3, 5, names=("embed", None)), "b": jnp.zeros(4, jnp.bfloat16), "rng": jax.random.key(0)}) == 68
