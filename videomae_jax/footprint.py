"""What a step needs before anything is compiled: bytes kept for the backward pass, bytes of state, seconds of a roofline.

Exact in what it counts, rough in what it leaves out: the compiler fuses, computes again and lays arrays out as it likes.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import ingest, losses, optim, parallel
from videomae_jax.assembly import Assembly
from videomae_jax.models import layers as stacks
from videomae_jax.objectives import base
from videomae_jax.topologies import Topology

# Bytes of element-wise traffic for each token, channel and layer of a training step, all passes together. That of GPUs is fitted to the
# measured steps of ViT-S to g on one H100 (tests/test_gpu_plans.py), attention at less than the peak rate included.
TRAFFIC = {"gpu": 300}
OTHERS = 200
# Cycles of a TPU's core for the same: by what the compiler expects of the steps of ViT-B, L and g on v5e and v5p, it is not their memory that bounds
# them (tests/test_plan.py).
CYCLES = 1.0


@dataclasses.dataclass(frozen=True)
class Kept:
    """Bytes that the forward pass keeps for the backward pass: `activations`, copies of `weights`, and what lies in the `host`'s memory.

    Of a clip by itself: `pixels` in float32 where a phase makes floats of all of them, and what of it as `prepared` the batch does not hold.
    """

    activations: float
    weights: float
    host: float = 0.0
    pixels: float = 0.0
    prepared: float = 0.0

    def at(self, more: "Kept", rows: int, /) -> "Kept":
        """What `rows` clips keep, if this is one clip and `more` two: an equal part for each clip, and what does not grow, which are weights."""
        each = more.activations - self.activations
        constant = max(0.0, self.activations - each)
        return dataclasses.replace(self, activations=self.activations - constant + (rows - 1) * each, weights=self.weights + constant,
                                   host=self.host + (rows - 1) * (more.host - self.host))


def kept(run: Assembly, /, *, rows: int) -> Kept:
    """Of the phase that keeps most, from shapes alone. A saved array with the shape of a parameter counts as a weight."""
    params, extra, frozen, rng = run.abstract.params, run.abstract.extra, run.abstract_frozen, run.abstract.rng
    step = jnp.zeros((), jnp.int32)
    # `prepare` sees the global batch, as in a step; its rows are cut afterwards.
    given = run.abstract_batch()
    whole = jax.eval_shape(lambda batch, rng: run.objective.prepare(ingest.ingest(batch, fields=run.fields), rng, step=step, train=True), given, rng)
    prepared = sum(_bytes(x) for k, x in whole.items() if k not in given or (x.shape, x.dtype) != (given[k].shape, given[k].dtype)) / run.clips
    batch = {k: jax.ShapeDtypeStruct((x.shape[0] * rows // run.clips, *x.shape[1:]), x.dtype) for k, x in whole.items()}
    shapes = {x.shape for x in jax.tree.leaves(params)}
    most, pixels = Kept(0.0, 0.0), 0.0
    for phase in run.objective.phases():
        def saved(part: Any, params: Any, extra: Any, frozen: Any, rng: Any, batch: Any, phase: Any = phase) -> Any:
            def loss(part: Any) -> Any:
                out = phase.loss(optim.merge(params, part), base.with_frozen(extra, frozen), batch, rng, step=step, train=True)
                return losses.value(out.terms, denominators=losses.denominators(out.terms))
            return jax.tree.leaves(jax.vjp(loss, part)[1])

        traced = jax.make_jaxpr(saved)(optim.select(params, phase.trains), params, extra, frozen, rng, batch)
        weights = sum(_bytes(x) for x in traced.out_avals if x.shape in shapes and x.dtype != jnp.float32)
        activations = sum(_bytes(x) for x in traced.out_avals if x.shape not in shapes)
        if activations + weights > most.activations + most.weights:
            most = Kept(activations, weights)
        if "video" in batch and (batch["video"].dtype == jnp.float32 or math.prod(batch["video"].shape) in _made_floats(traced.jaxpr)):
            pixels = 4.0 * math.prod(batch["video"].shape[1:])
    return dataclasses.replace(most, pixels=pixels, prepared=prepared)


def _made_floats(jaxpr: Any, /) -> set[int]:
    """Sizes of the arrays of bytes that become float32, wherever in a traced function."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type":
            before, after = equation.invars[0].aval, equation.outvars[0].aval
            found |= {after.size} if (before.dtype, after.dtype) == (jnp.uint8, jnp.float32) else set()
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "jaxpr") or hasattr(x, "eqns")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                found |= _made_floats(getattr(inner, "jaxpr", inner))
    return found


def _bytes(x: Any, /) -> float:
    return 0.0 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else float(math.prod(x.shape) * x.dtype.itemsize)


def state_bytes(run: Assembly, sizes: dict[str, int], /) -> float:
    """Bytes of state, frozen weights and gradients on one device of a mesh of `sizes`."""
    mesh = parallel.abstract_mesh(**sizes)
    state = sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in
                zip(jax.tree.leaves(parallel.unbox(run.boxed)), jax.tree.leaves(parallel.state_shardings(run.boxed, mesh=mesh)), strict=True)
                if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key))
    params = parallel.nbytes(run.abstract.params)
    return state + (params + parallel.nbytes(run.abstract_frozen)) / (sizes["fsdp"] * sizes["tensor"])


def device_bytes(run: Assembly, sizes: dict[str, int], /, *, microbatches: int, saved: Kept, layer: float, margin: float) -> float:
    """Bytes of a step on one device: state, gradients, what is `saved`, the batches in flight, clips, and their pixels in float32 three times.

    `layer` are the activations of one layer without recomputation: what its backward pass holds beside them. `margin`
    multiplies what the compiler lays out as it likes, activations, and not what is known to the byte.
    """
    rows = run.clips // (sizes["data"] * sizes["fsdp"])
    pixels = 3 * saved.pixels * max(1, rows // microbatches)
    split = sizes["fsdp"] * sizes["tensor"]
    loose = (saved.activations + layer) / sizes["tensor"] + saved.weights / split + pixels
    return state_bytes(run, sizes) + margin * loose + clip_bytes(run, sizes, microbatches=microbatches, saved=saved) + in_flight(run, rows)


def gpu_bytes(run: Assembly, sizes: dict[str, int], /, *, microbatches: int, saved: Kept, layer: float) -> float:
    """`device_bytes` of a GPU, whose compiler pads nothing and fuses the conversion of clips.

    Within 5 % of what one H100 needed without recomputation and with all of it ("full"); the policies between were not measured. A loop
    over layers holds the gradients of all of them from the first on, beside the running sum of micro-batches. Without one they take the
    place of activations, and copies of weights are made anew where they need no gathering.
    """
    rows = run.clips // (sizes["data"] * sizes["fsdp"])
    split = sizes["fsdp"] * sizes["tensor"]
    gradients, kept = parallel.nbytes(run.abstract.params) / split, saved.activations / sizes["tensor"]
    block = layer / sizes["tensor"]
    if microbatches > 1 or looped(run):
        sums = 2 if microbatches > 1 and looped(run) else 1
        held = sums * gradients + kept + saved.weights / split + block
    else:
        held = max(gradients, kept) + (block if recomputed(run) else 0.0) + (saved.weights / sizes["tensor"] if sizes["fsdp"] > 1 else 0.0)
    return state_bytes(run, sizes) - gradients + held + clip_bytes(run, sizes, microbatches=microbatches, saved=saved) + in_flight(run, rows)


def clip_bytes(run: Assembly, sizes: dict[str, int], /, *, microbatches: int, saved: Kept) -> float:
    """Bytes of clips that a device holds beside their batch: those cut at a time, or all as they are prepared for several micro-batches."""
    ways = sizes["data"] * sizes["fsdp"]
    if microbatches > 1 and not run.defers(ways=ways, microbatches=microbatches):
        return saved.prepared * (run.clips // ways)
    return cut_clip(run) * rows_cut(run, sizes, microbatches=microbatches)


def cut_clip(run: Assembly, /) -> float:
    """Bytes of a clip that the step cuts from planes, 0 where clips arrive as they are."""
    if "luma" not in run.source.fields:
        return 0.0
    video = run.fields["video"]
    return _bytes(jax.ShapeDtypeStruct(video.shape, video.dtype))


def rows_cut(run: Assembly, sizes: dict[str, int], /, *, microbatches: int) -> int:
    """Clips of a device that are cut at a time: those of a micro-batch, or all of them."""
    ways = sizes["data"] * sizes["fsdp"]
    return run.clips // ways // (microbatches if run.defers(ways=ways, microbatches=microbatches) else 1)


def in_flight(run: Assembly, rows: int, /) -> float:
    """Bytes of the batches of `rows` clips that lie on a device."""
    return batch_bytes(run) / run.clips * rows * max(1, run.config.prefetch)


def looped(run: Assembly, /) -> bool:
    """Whether a stack of the model is a loop over its layers on the device that is compiled for."""
    return any((part.unroll or stacks.unrolled(part.depth, remat=part.remat)) < part.depth for part in _stacks(run))


def recomputed(run: Assembly, /) -> bool:
    """Whether a stack of the model computes something again in its backward pass."""
    return any(part.remat != "none" for part in _stacks(run))


def recompute(run: Assembly, more: Mapping[str, float], /) -> float:
    """Forward passes more of the model that its recomputation takes: `more` by policy, weighted by the products of each part that is trained."""
    parts = [(vars(run.objective)[name], size) for name, size in _sizes(run).items() if name in vars(run.objective) and name not in run.abstract_frozen]
    products = [(part.remat, size * part.width) for part, size in parts if hasattr(part, "remat")]
    return sum(more[remat] * size for remat, size in products) / (sum(size for _, size in products) or 1.0)


def _stacks(run: Assembly, /) -> list[Any]:
    return [part for part in vars(run.objective).values() if hasattr(part, "unroll")]


def batch_bytes(run: Assembly, /) -> float:
    """Bytes of a global batch."""
    return sum(_bytes(x) for x in run.abstract_batch().values())


def layers(run: Assembly, /) -> int:
    """Blocks of all stacks together; those of a probe's heads, which one pass computes side by side, count once."""
    depths = {}
    for path, x in zip(jax.tree.leaves(optim.paths(run.abstract.params)), jax.tree.leaves(run.abstract.params), strict=True):
        if (axis := optim.layer_axis(path)) is not None:
            depths[path.rpartition("stack/")[0]] = x.shape[axis]
    return max(1, sum(depths.values()))


def widths(run: Assembly, /, *, recompute: float = 0.0) -> float:
    """Tokens x width x layers of a clip, over the stacks of the model and the phases of a step: what element-wise work grows with.

    Both passes of training count one, and a third more for each of `recompute` forward passes. A stack that a phase does not train, of frozen weights too,
    runs forward alone in it: a third.
    """
    trained = [(phase.repeats, optim.select(run.abstract.params, phase.trains)) for phase in run.objective.phases()]
    return sum(size * repeats * (1 + recompute / 3 if name in chosen else 1 / 3)
               for name, size in _sizes(run).items() for repeats, chosen in trained) / run.draws


def _sizes(run: Assembly, /) -> dict[str, float]:
    """Tokens x width x layers of a clip in each part of the model; in stacks of heads, of all that run side by side."""
    tokens, heads = run.objective.cost().tokens, {}
    models = {name: part for name, part in vars(run.objective).items() if hasattr(part, "depth") and hasattr(part, "width")}
    for path, x in zip(jax.tree.leaves(optim.paths(run.abstract.params)), jax.tree.leaves(run.abstract.params), strict=True):
        name = path.partition("/")[0]
        if name not in models and path.endswith("/norm1/scale") and optim.layer_axis(path) is not None:  # one a block, as wide as its tokens
            heads[name] = heads.get(name, 0.0) + tokens.get(name, tokens["all"]) * math.prod(x.shape)
    whole = {name: part.grid.tokens if name in run.abstract_frozen else tokens["all"] for name, part in models.items()}
    return heads | {name: float(tokens.get("visible" if name == "encoder" else name, whole[name]) * part.width * part.depth) for name, part in models.items()}


def pretrains(run: Assembly, /) -> bool:
    """Whether a step is one pass of an encoder and a decoder, both trained, and of nothing else: the kind that the constants of GPUs are fitted to."""
    phases = run.objective.phases()
    return run.abstract.params.keys() == {"encoder", "decoder"} and not run.abstract_frozen and len(phases) == phases[0].repeats == 1


@dataclasses.dataclass(frozen=True)
class Wire:
    """Bytes that one device sends in a step, over the fast links and over the network between slices."""

    link: float
    network: float


def wire(run: Assembly, sizes: dict[str, int], slices: int, /, *, microbatches: int) -> Wire:
    """Parameters gathered twice and gradients scattered once in bfloat16 along fsdp, what is left all-reduced along data: for every micro-batch.

    The loop over layers, in which they are sent, lies in the loop over micro-batches, whose running sum is placed each time.
    Within a slice first: each device then exchanges its share of the sum with the other slices.
    """
    weights = 2.0 * microbatches * sum(math.prod(x.shape) for x in jax.tree.leaves(run.abstract.params)) / sizes["tensor"]
    across = math.gcd(sizes["data"], slices)
    sharded = 3 * weights * (1 - 1 / sizes["fsdp"])
    within = sizes["data"] // across
    reduced = 2 * weights / sizes["fsdp"]
    outside = reduced / within * (1 - 1 / across)
    if across < slices:  # the parameters themselves are gathered over the network
        return Wire(reduced * (1 - 1 / within), outside + sharded)
    return Wire(sharded + reduced * (1 - 1 / within), outside)


def seconds(run: Assembly, topology: Topology, sizes: dict[str, int], /, *, microbatches: int, recompute: float, efficiency: float, host: float = 0.0) -> float:
    """A step: matrix products (`recompute` times the forward pass more), then element-wise work, the state, wire, and `host` bytes to and fro;
    nothing overlaps."""
    chip, clips = topology.chip, run.clips * run.draws / topology.all_chips
    cost = run.objective.cost()
    compute = clips * (cost.train_flops + 2 * recompute * (cost.macs - cost.frozen)) / (chip.tflops * 1e12 * efficiency)
    memory, values = chip.bandwidth * efficiency, clips * widths(run, recompute=recompute)
    each_value = CYCLES / (chip.clock * chip.tensor_cores) if chip.platform == "tpu" else TRAFFIC.get(chip.platform, OTHERS) / memory
    state = 10 * state_bytes(run, sizes) / 4 * chip.devices
    sent = wire(run, sizes, topology.slices, microbatches=microbatches)
    each = sent.link / chip.link + sent.network / (chip.network / chip.per_host) + 2 * host / chip.pcie  # the devices of a chip share its ways
    return compute + values * each_value + state / memory + each * chip.devices
