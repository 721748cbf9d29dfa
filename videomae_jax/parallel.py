"""Mesh, axis rules, shardings: the only module that names jax.sharding.

Parameters carry *logical* axes (`models/layers.py`); rules map them to mesh axes. Three mesh axes exist: `data`
(replicated parameters), `fsdp` (sharded parameters, also splits the batch) and `tensor` (heads and MLP).
"""

import collections
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from videomae_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")
# Logical axis: its mesh axis, those that split it together (tuple), or those of which the first that has devices does (list).
RULES: dict[str, Any] = {"batch": ("data", "fsdp"), "embed": "fsdp", "heads": "tensor", "mlp": "tensor", "rows": ["tensor", "fsdp"]}


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of the mesh axes; one of them may be -1 (the rest of the devices).

    `replicated` is the share of the state's bytes that may stay whole although a rule would split it: a length that the
    mesh does not divide costs memory on every device, and nothing else tells (`check_replication`).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    replicated: float = 0.001

    def mesh(self, devices: list[Any] | None = None, /) -> Mesh:
        """The mesh over `devices` (all by default).

        Raises UserError when the sizes do not multiply to the number of devices, or the processes have not equally many: each reads as many rows.
        """
        devices = jax.devices() if devices is None else devices
        counts = sorted(set(collections.Counter(d.process_index for d in devices).values()))
        if len(counts) > 1:
            raise UserError(f"processes have {' and '.join(map(str, counts))} devices; allowed are equally many (JAX_LOCAL_DEVICE_IDS, CUDA_VISIBLE_DEVICES)")
        # Linen's logical constraints assert under the Explicit axis type that jax.make_mesh defaults to.
        return Mesh(arrange(self.sizes(len(devices)), devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))

    def sizes(self, devices: int, /) -> tuple[int, int, int]:
        """(data, fsdp, tensor) over so many devices. Raises UserError as `mesh` does."""
        sizes = [self.data, self.fsdp, self.tensor]
        if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
            raise UserError(f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor}; sizes are positive and at most one is -1")
        known = math.prod(s for s in sizes if s != -1)
        if -1 in sizes and devices % known == 0:
            sizes[sizes.index(-1)] = devices // known
        if math.prod(sizes) != devices:
            raise UserError(f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor} does not fit {devices} devices; allowed are sizes whose "
                            f"product is {devices}, or divides it where one is -1")
        return tuple(sizes)


def arrange(sizes: tuple[int, ...], devices: list[Any], /) -> np.ndarray:
    """`devices` as an array of `sizes` that follows the network: neighbours of an axis lie close together.

    Where the devices form several slices (TPU pods joined by the data-centre network, GPU nodes), `data` runs over the
    slices as far as it can and `fsdp` over the rest; raises UserError where the tensor axis would leave a slice, or a
    process: its devices hold the same rows, and every process reads rows of its own.
    """
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    data = math.gcd(sizes[0], slices)
    outer = (data, math.gcd(sizes[1], slices // data), 1)
    if math.prod(outer) != slices:
        raise UserError(f"mesh data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]} over {slices} slices of {len(devices) // slices} devices; "
                        f"data x fsdp must be a multiple of {slices}, so that the tensor axis stays within a slice")
    inner = tuple(s // o for s, o in zip(sizes, outer, strict=True))
    if sizes[2] > 1:
        parts = [_by_process(inner, [d for d in devices if getattr(d, "slice_index", 0) == s]) for s in sorted({getattr(d, "slice_index", 0) for d in devices})]
        grid = np.stack(parts).reshape(*outer[:2], *inner).transpose(0, 2, 1, 3, 4)
        return grid.reshape(sizes)
    # An axis of 128 on a 4 x 8 x 8 torus needs half of one of its axes.
    return _on_torus(sizes, devices) if slices == 1 else mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)


def _by_process(sizes: tuple[int, ...], devices: list[Any], /) -> np.ndarray:
    """The devices of a slice with the tensor axis within processes, which follow each other as they lie in the slice."""
    def place(device: Any) -> tuple[Any, ...]:
        return (*getattr(device, "coords", ()), getattr(device, "core_on_chip", 0), device.id)

    groups: dict[int, list[Any]] = {}
    for device in sorted(devices, key=place):
        groups.setdefault(device.process_index, []).append(device)  # in the order of their first devices
    data, fsdp, tensor = sizes
    each = len(devices) // len(groups)
    along = math.gcd(fsdp, each // tensor)
    if each % tensor or data % (each // tensor // along):
        raise UserError(f"the tensor axis of {tensor} devices would span processes of {each}; allowed is a tensor axis within one process")
    rest = each // tensor // along
    found = np.empty((len(groups), each), object)
    for row, group in zip(found, groups.values(), strict=True):
        row[:] = group
    return found.reshape(data // rest, fsdp // along, rest, along, tensor).transpose(0, 2, 1, 3, 4).reshape(sizes)


def _on_torus(sizes: tuple[int, ...], devices: list[Any], /) -> np.ndarray:
    try:
        return mesh_utils.create_device_mesh(sizes, devices)
    except NotImplementedError:  # no whole axes of the torus multiply to these sizes
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def abstract_mesh(*, data: int, fsdp: int, tensor: int) -> AbstractMesh:
    """A mesh without devices, for partitions and shapes alone."""
    return AbstractMesh((data, fsdp, tensor), AXES)


_ACTIVE: list[tuple[Mesh, Mapping[str, Any]]] = []


@contextlib.contextmanager
def use(mesh: Mesh, /, *, rules: Mapping[str, Any] = RULES) -> Iterator[None]:
    """Within this context `shard` constrains activations to `mesh`; outside it does nothing."""
    _ACTIVE.append((mesh, rules))
    try:
        yield
    finally:
        _ACTIVE.pop()


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program is compiled for: "cpu", "gpu" or "tpu", on how many devices it runs, and the compute capability of GPUs ("" = unknown)."""

    platform: str
    devices: int
    capability: str = ""


_TARGETS: list[Target] = []


@contextlib.contextmanager
def aim(target: Target, /) -> Iterator[None]:
    """Within this context what is traced is meant for `target`, whatever is here: for estimates of other hardware."""
    _TARGETS.append(target)
    try:
        yield
    finally:
        _TARGETS.pop()


def target() -> Target:
    """What the program that is being traced is compiled for: the devices of the mesh in use, else those that JAX sees."""
    if _TARGETS:
        return _TARGETS[-1]
    devices = _ACTIVE[-1][0].devices.ravel() if _ACTIVE else jax.devices()
    return Target(devices[0].platform, len(devices), getattr(devices[0], "compute_capability", ""))


def estimating() -> bool:
    """Whether what is traced is meant for hardware that is not here (`aim`)."""
    return bool(_TARGETS)


def per_device(fn: Callable[..., jax.Array], /, *names: tuple[str | None, ...]) -> Callable[..., jax.Array]:
    """`fn` of arrays with these logical axes, run by every device on its own part; the result has the axes of the first.

    For what the compiler cannot split: kernels. Without a mesh in use it is `fn`.
    """
    def run(*arrays: jax.Array) -> jax.Array:
        if not _ACTIVE or _ACTIVE[-1][0].size == 1:
            return fn(*arrays)
        mesh, rules = _ACTIVE[-1]
        specs = tuple(fit(n, shape=x.shape, mesh=mesh, rules=rules) for n, x in zip(names, arrays, strict=True))
        # A kernel's outputs carry no record of the axes over which they vary.
        return jax.shard_map(fn, mesh=mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(*arrays)
    return run


def shard(x: jax.Array, /, *names: str | None) -> jax.Array:
    """Constrains an activation to the mesh axes of its logical axis names (None = not sharded)."""
    if not _ACTIVE:
        return x
    mesh, rules = _ACTIVE[-1]
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, fit(names, shape=x.shape, mesh=mesh, rules=rules)))


def fit(names: tuple[str | None, ...], /, *, shape: tuple[int, ...], mesh: Mesh, rules: Mapping[str, Any]) -> PartitionSpec:
    """The partition of an array with logical axis `names`; a mesh axis is dropped where it does not divide the length."""
    spec, used = [], set()
    for name, length in zip(names, shape, strict=True):
        axes = tuple(a for a in _meant(name, mesh=mesh, rules=rules) if a not in used)
        if axes and length % math.prod(mesh.shape[a] for a in axes):
            axes = ()
        used.update(axes)
        spec.append(axes if len(axes) > 1 else (axes[0] if axes else None))
    return PartitionSpec(*spec)


def _meant(name: str | None, /, *, mesh: Mesh, rules: Mapping[str, Any]) -> tuple[str, ...]:
    """The mesh axes of more than one device that the rules give to a name."""
    rule = rules.get(name) if name else None
    axes = [a for a in ((rule,) if isinstance(rule, str) else rule or ()) if mesh.shape[a] > 1]
    return tuple(axes[:1] if isinstance(rule, list) else axes)


def box(array: jax.Array, /, *names: str | None) -> nn.LogicallyPartitioned:
    """An array with logical axes, for state that is no module's parameter: queues, moments, prototypes."""
    return nn.LogicallyPartitioned(array, names)


def logical_axes(boxed: Any, /) -> Any:
    """Tuples of logical axis names for every leaf of a boxed tree (Nones for leaves without a box)."""
    return jax.tree.map(_names, boxed, is_leaf=_is_box)


def unbox(tree: Any, /) -> Any:
    """The tree without Linen's partitioning boxes."""
    return nn.meta.unbox(tree)


def _is_box(leaf: Any, /) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _names(leaf: Any, /) -> tuple[str | None, ...]:
    return leaf.names if _is_box(leaf) else (None,) * leaf.ndim


def _mesh_axes(parts: Iterable[Any], /) -> set[str]:
    """The mesh axes in the parts of a PartitionSpec or in values of the rules."""
    return {axis for part in parts if part for axis in ((part,) if isinstance(part, str) else part)}


def state_shardings(boxed: Any, /, *, mesh: Mesh, rules: Mapping[str, Any] = RULES) -> Any:
    """A NamedSharding for every leaf of a boxed abstract state (parameters, moments, teacher, counters)."""
    def sharding(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh, fit(_names(leaf), shape=unbox(leaf).shape, mesh=mesh, rules=rules))
    return jax.tree.map(sharding, boxed, is_leaf=_is_box)


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A leaf that stays whole over mesh `axes`; the reason is a length they do not divide, or a leaf without axis names."""

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    size: int

    def __str__(self) -> str:
        return f"{self.path} {self.shape} is replicated over {', '.join(self.axes)} ({self.size} bytes)"


def dropped_axes(boxed: Any, /, *, mesh: Mesh, rules: Mapping[str, Any] = RULES) -> list[Dropped]:
    """Leaves that a rule would shard but whose length the mesh does not divide, and arrays without a box where fsdp is on."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box):
        value = unbox(leaf)
        wanted = {a for n in _names(leaf) for a in _meant(n, mesh=mesh, rules=rules)}
        if not _is_box(leaf) and value.ndim and mesh.shape["fsdp"] > 1:
            wanted = {"fsdp"}
        missing = sorted(wanted - _mesh_axes(fit(_names(leaf), shape=value.shape, mesh=mesh, rules=rules)))
        if missing:
            found.append(Dropped(jax.tree_util.keystr(path), value.shape, tuple(missing), nbytes(value)))
    return found


def nbytes(tree: Any, /) -> int:
    """Bytes of the arrays of a (boxed, abstract) tree; PRNG keys count nothing."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(unbox(tree)) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))


def check_replication(boxed: Any, /, *, mesh: Mesh, limit: float, rules: Mapping[str, Any] = RULES) -> None:
    """Raises UserError when the leaves of `dropped_axes` hold more than the share `limit` of the state's bytes.

    ViT-g's width 1408 = 2^7 x 11 is the case in point: fsdp=256 would leave it whole on every device.
    """
    dropped = sorted(dropped_axes(boxed, mesh=mesh, rules=rules), key=lambda d: -d.size)
    lost, total = sum(d.size for d in dropped), nbytes(boxed)
    if lost > limit * total:
        raise UserError(f"{lost} of {total} bytes of state stay whole on every device of mesh {dict(mesh.shape)}, first of all "
                        f"{'; '.join(map(str, dropped[:3]))}; allowed is a share of {limit:g} (mesh.replicated). Use axes that divide these lengths")


def thin(boxed: Any, /, *, mesh: Mesh, least: int, rules: Mapping[str, Any] = RULES) -> float:
    """The share of a state's bytes in leaves of which a device has fewer than `least` values along an axis that the mesh splits."""
    found = 0
    for leaf in jax.tree.leaves(boxed, is_leaf=_is_box):
        value = unbox(leaf)
        spec = fit(_names(leaf), shape=value.shape, mesh=mesh, rules=rules)
        ways = [math.prod(mesh.shape[a] for a in _mesh_axes([part])) for part in spec]
        if any(n > 1 and length // n < least for n, length in zip(ways, value.shape, strict=True)):
            found += nbytes(value)
    return found / nbytes(boxed)


def replicated(mesh: Mesh, /) -> NamedSharding:
    """Fully replicated over `mesh`."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, /, *, rules: Mapping[str, Any] = RULES) -> NamedSharding:
    """The batch axis over its mesh axes, everything else replicated."""
    return NamedSharding(mesh, PartitionSpec(rules["batch"]))


def batch_ways(mesh: Mesh, /, *, rules: Mapping[str, Any] = RULES) -> int:
    """Into how many parts the mesh cuts the batch."""
    return math.prod(mesh.shape[a] for a in rules["batch"])


def check_batch(size: int, /, *, mesh: Mesh, microbatches: int = 1) -> None:
    """Raises UserError when `size` clips cannot be split evenly over the mesh and the micro-batches."""
    ways = batch_ways(mesh)
    if size % (ways * microbatches):
        raise UserError(f"batch of {size} clips (decoded clips x repeats) is not divisible by {ways} batch devices x {microbatches} micro-batches")


def rows(mesh: Mesh, decodes: int, /, *, repeats: int = 1) -> tuple[tuple[int, int], ...]:
    """Which of the `decodes` positions of a global batch this process reads: ascending blocks (start, stop) of those whose rows its devices hold.

    A mesh follows the network, where the devices of a process need not be neighbours, so that its rows may lie apart. A position
    has `repeats` consecutive rows. Raises UserError where two processes would hold rows of one: each of them would have to read it.
    """
    ways = batch_ways(mesh)
    each = decodes * repeats // ways
    blocks: list[list[int]] = []
    for part, devices in enumerate(mesh.devices.reshape(ways, -1)):  # the axes of the batch come first
        if devices[0].process_index != jax.process_index():
            continue
        if blocks and blocks[-1][1] == part * each:
            blocks[-1][1] += each
        else:
            blocks.append([part * each, (part + 1) * each])
    if any(row % repeats for block in blocks for row in block):
        raise UserError(f"batch of {decodes} decoded clips x {repeats} repeats over {ways} batch devices: rows of one decoded clip would lie on "
                        f"devices of two processes; allowed are multiples of {ways} decoded clips")
    return tuple((start // repeats, stop // repeats) for start, stop in blocks)


def to_device(batch: Mapping[str, np.ndarray], /, *, mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays from what this host read of every array of a batch: the rows of its devices, ascending (`rows`)."""
    sharding = batch_sharding(mesh)
    hosts = jax.process_count()
    return {k: jax.make_array_from_process_local_data(sharding, v, (v.shape[0] * hosts, *v.shape[1:])) for k, v in batch.items()}


def place(tree: Any, shardings: Any, /) -> Any:
    """Host arrays that every process holds whole, as global arrays under `shardings`."""
    def one(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    return jax.tree.map(one, tree, shardings)


@functools.cache
def _spread(mesh: Mesh, /) -> Any:
    """The identity with a replicated result; one function for each mesh, so that it compiles once for each shape."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def put(value: Any, /, *, mesh: Mesh) -> Any:
    """A host value, the same on every process, replicated over the mesh."""
    # device_put refuses a typed key for a mesh that other processes share.
    return _spread(mesh)(value)


def spread(tree: Any, /, *, mesh: Mesh) -> Any:
    """Every leaf as an array that each device has whole."""
    return _spread(mesh)(tree)


def gather(tree: Any, /, *, mesh: Mesh) -> Any:
    """Every leaf as a numpy array with its global value, on every process."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), spread(tree, mesh=mesh))


def is_lead() -> bool:
    """Whether this process writes the run's files."""
    return jax.process_index() == 0


def barrier(name: str, /) -> None:
    """Waits for every process of the run."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
