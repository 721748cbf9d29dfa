"""Transformer layers with VideoMAE's numerics: the only place where parameters get logical axes.

Logical axes: `embed` (model width), `heads`, `mlp` (hidden), `rows` (hidden, of the matrix that takes it in), None (never sharded); the
stack of layers adds `layers`. What fsdp splits is gathered for every layer, along its first axis without a copy into another order.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import parallel
from videomae_jax.errors import UserError, is_number
from videomae_jax.models import attention
from videomae_jax.parallel import shard
from videomae_jax.types import Array, Key

DTYPES = ("float32", "bfloat16", "float16", "float64")  # of the computation
EXACT = jax.lax.Precision.HIGHEST  # products of float32 that stay float32: by default TPUs round their factors to bfloat16, GPUs to TF32
LN_EPS = 1e-6  # every LayerNorm of V1 and V2 (factories); MARLIN has others


def uniform(bound: float, /) -> Any:
    """Initialiser U(-bound, bound)."""
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def xavier(fan_in: int, fan_out: int, /) -> Any:
    """Xavier-uniform on the matrix [fan_in, fan_out] whatever the shape the kernel is stored in."""
    return uniform(math.sqrt(6 / (fan_in + fan_out)))


def truncated(stddev: float, /) -> Any:
    """Normal with `stddev`, cut at one `stddev` (the mask token of V1 and V2; true deviation 0.54 * stddev)."""
    return nn.initializers.truncated_normal(stddev, lower=-1.0, upper=1.0)


def boxed(init: Any, /, *axes: str | None) -> Any:
    """Initialiser whose result carries logical axes."""
    return nn.with_logical_partitioning(init, axes)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis, in float32 with the two-pass variance."""

    eps: float = LN_EPS
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, /) -> Array:
        """[... D] -> [... D]."""
        width = x.shape[-1]
        scale = self.param("scale", boxed(nn.initializers.ones, "norm"), (width,), jnp.float32)
        bias = self.param("bias", boxed(nn.initializers.zeros, "norm"), (width,), jnp.float32)
        return standardise(x, scale, bias, self.eps).astype(self.dtype)


# The two element-wise functions below keep only their argument for the backward pass. Their intermediate values, which
# are cheap to compute, would otherwise be stored for every layer: a third of the activations of a step. On GPUs, whose stacks are
# unrolled unless they recompute, GELU is behind a barrier: without it the compiler finds the same erf in both passes and stores two
# arrays instead of computing it. Within a loop a barrier only keeps it from fusing (5 % of ViT-g's compiled step on v5p).


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=3)
def standardise(x: Array, scale: Array, bias: Array, eps: float) -> Array:
    """(x - mean) / sqrt(variance + eps) * scale + bias over the last axis, in float32."""
    x = x.astype(jnp.float32)
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    return x * scale + bias


def gelu(x: Array, /) -> Array:
    """Exact GELU, x (1 + erf(x / sqrt 2)) / 2, in float32 at the least; erf is half the work of the erfc that jax.nn.gelu takes."""
    def exact(x: Array) -> Array:
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)
    return jax.checkpoint(exact, prevent_cse=parallel.target().platform == "gpu")(x)


class Linear(nn.Module):
    """Dense layer [... I] -> [... O] with named axes and an explicit initialiser; without a `precision` the device has its own way to multiply."""

    features: int
    axes: tuple[str | None, str | None]
    kernel_init: Any
    bias_init: Any = nn.initializers.zeros
    use_bias: bool = True
    dtype: Any = jnp.float32
    precision: Any = None

    @nn.compact
    def __call__(self, x: Array, /) -> Array:
        kernel = self.param("kernel", boxed(self.kernel_init, *self.axes), (x.shape[-1], self.features), jnp.float32)
        y = jnp.matmul(x.astype(self.dtype), kernel.astype(self.dtype), precision=self.precision)
        if self.use_bias:
            y = y + self.param("bias", boxed(self.bias_init, self.axes[1]), (self.features,), jnp.float32).astype(self.dtype)
        return y


def apart(x: Array, kernel: Array, /, *, flat: bool, dtype: Any) -> tuple[Array, ...]:
    """Queries, keys and values of x [B N D] by a product each with kernel [D 3 h d]: [B N D] where `flat`, else [B h d N].

    Parts of one product have to be copied for the attention kernel of a GPU or TPU, and their gradients transposed; TPUs read tokens innermost. Over fsdp
    the kernel is gathered once, not each part by itself, and under `jax.checkpoint` once more for the backward pass: kept, every device would have that of all layers.
    """
    kernel, width = shard(kernel.astype(dtype), None, None, "heads", None), x.shape[-1]
    if flat:
        return tuple(x @ kernel[:, part].reshape(width, width) for part in range(3))
    return tuple(jnp.einsum("bnd,dhk->bhkn", x, kernel[:, part]) for part in range(3))


class Attention(nn.Module):
    """Self-attention with one fused qkv kernel, biases on q and v only, output projection with bias.

    The key bias is absent because softmax is invariant to it. The fused kernel [D 3 h d] keeps VideoMAE's Xavier bound
    sqrt(6 / (D + 3D)). What is computed again in the backward pass is behind a barrier, unless a loop between the passes (`looped`) keeps the
    compiler from finding it twice.
    """

    heads: int
    implementation: str = "xla"
    dtype: Any = jnp.float32
    looped: bool = False

    @nn.compact
    def __call__(self, x: Array, /, *, valid: Array | None = None) -> Array:
        """[B N D] -> [B N D]."""
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(f"width {width} is not divisible by {self.heads} heads")
        size = width // self.heads
        kernel = self.param("qkv", boxed(xavier(width, 3 * width), "embed", None, "heads", None), (width, 3, self.heads, size), jnp.float32)
        zeros = boxed(nn.initializers.zeros, "heads", None)
        q_bias = self.param("q_bias", zeros, (self.heads, size), jnp.float32).astype(self.dtype)
        v_bias = self.param("v_bias", zeros, (self.heads, size), jnp.float32).astype(self.dtype)
        out = self.param("out", boxed(xavier(width, width), "heads", None, "embed"), (self.heads, size, width), jnp.float32).astype(self.dtype)
        bias = self.param("out_bias", boxed(nn.initializers.zeros, "norm"), (width,), jnp.float32).astype(self.dtype)
        platform = parallel.target().platform
        flat = platform == "gpu"
        if flat or platform == "tpu":
            q, k, v = jax.checkpoint(functools.partial(apart, flat=flat, dtype=self.dtype), prevent_cse=not self.looped)(x, kernel)
        if flat:
            q, k, v = (y.reshape(*x.shape[:2], self.heads, size) for y in (q + q_bias.reshape(width), k, v + v_bias.reshape(width)))
        elif platform == "tpu":
            q, k, v = (y.transpose(0, 3, 1, 2) for y in (q + q_bias[..., None], k, v + v_bias[..., None]))
        else:
            q, k, v = jnp.moveaxis(jnp.einsum("bnd,dchk->bnchk", x, kernel.astype(self.dtype)), 2, 0)
            q, v = q + q_bias, v + v_bias
        q, k, v = (shard(y, "batch", None, "heads", None) for y in (q, k, v))
        y = attention.attend(q, k, v, implementation=self.implementation, valid=valid, scale=size**-0.5, looped=self.looped)
        return (y.reshape(x.shape) @ out.reshape(width, width) if flat else jnp.einsum("bnhk,hkd->bnd", y, out)) + bias


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, /) -> Array:
        """[B N D] -> [B N D]."""
        width = x.shape[-1]
        y = Linear(self.hidden, ("embed", "mlp"), xavier(width, self.hidden), dtype=self.dtype, name="fc1")(x)
        y = gelu(shard(y, "batch", None, "mlp"))
        return Linear(width, ("rows", "embed"), xavier(self.hidden, width), dtype=self.dtype, name="fc2")(y)


def check_sizes(module: Any, /) -> None:
    """Raises UserError for sizes of an encoder or decoder that are no whole numbers from 1 on, statistics that are not one a channel, and an unknown dtype."""
    for name in ("width", "depth", "heads", "hidden", "frames", "size", "channels"):
        value = getattr(module, name, 1)
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise UserError(f"{name} {value!r}; allowed are whole numbers from 1 on")
    patch = getattr(module, "patch", (1, 1, 1))
    if not isinstance(patch, (tuple, list)) or len(patch) != 3 or not all(isinstance(n, (int, np.integer)) and n > 0 for n in patch):
        raise UserError(f"patch {patch!r}; allowed are three whole numbers: frames, rows and columns")
    check_statistics(module)
    if module.dtype not in DTYPES:
        raise UserError(f"dtype {module.dtype!r}; allowed are {', '.join(DTYPES)}")


def check_statistics(module: Any, /) -> None:
    """Raises UserError where `mean` and `std` of an encoder's input, if it has them, are not one number a channel."""
    for name in ("mean", "std") if hasattr(module, "mean") else ():
        value = getattr(module, name)
        if not isinstance(value, (tuple, list)) or len(value) != module.channels or not all(map(is_number, value)) or name == "std" and 0 in value:
            raise UserError(f"{name} {value!r}; allowed are as many numbers as channels, {module.channels}{', none of them 0' * (name == 'std')}")


def check_drop_path(rate: float, /) -> None:
    """Raises UserError for a rate of stochastic depth at which nothing would be left to scale up, or none at all."""
    if not 0 <= rate < 1:
        raise UserError(f"drop_path {rate}; allowed are 0 <= drop_path < 1")


def drop_path(x: Array, keys: Key | None, /, *, rate: Array) -> Array:
    """Stochastic depth: zeroes rows of [B N D] with probability `rate` and scales the rest by 1 / (1 - rate).

    `keys` [B] per row, or None for evaluation.
    """
    if keys is None:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    return jnp.where(kept[:, None, None], (x / (1 - rate)).astype(x.dtype), 0)  # 1 - rate, f32, is not rounded to the precision of x


class Block(nn.Module):
    """Pre-LN transformer block: x += drop(attn(norm1(x))); x += drop(mlp(norm2(x)))."""

    heads: int
    hidden: int
    attention: str = "xla"
    dtype: Any = jnp.float32
    eps: float = LN_EPS
    looped: bool = False

    @nn.compact
    def __call__(self, x: Array, /, *, layer: Array, rate: Array, keys: Key | None, valid: Array | None) -> Array:
        """[B N D] -> [B N D]."""
        drops = (None, None)
        if keys is not None:
            folded = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, layer), 2))(keys)
            drops = (folded[:, 0], folded[:, 1])
        x = shard(x, "batch", None, None)
        y = LayerNorm(self.eps, self.dtype, name="norm1")(x)
        y = Attention(self.heads, self.attention, self.dtype, self.looped, name="attn")(y, valid=valid)
        x = x + drop_path(y, drops[0], rate=rate)
        y = Mlp(self.hidden, self.dtype, name="mlp")(LayerNorm(self.eps, self.dtype, name="norm2")(x))
        return x + drop_path(y, drops[1], rate=rate)


@flax.struct.dataclass
class Stacked:
    """Output of a stack: `tokens` [B N D] after the last block, `kept` [K B N D] after the blocks asked for."""

    tokens: Array
    kept: Array


REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
    "full": jax.checkpoint_policies.nothing_saveable,
}


def unrolled(depth: int, /, *, remat: str) -> int:
    """Blocks that an iteration of the loop over `depth` blocks has on the device that is compiled for.

    A loop stores what the backward pass needs by copying it into stacked arrays, which takes a GPU a quarter of a step of
    ViT-B; "full" stores so little that a short compilation is worth more. TPUs and CPUs copy little.
    """
    return depth if parallel.target().platform == "gpu" and remat != "full" else 1


class Stack(nn.Module):
    """`depth` blocks with stacked parameters [depth ...]: one compiled block, one checkpoint layout.

    `remat` says what the backward pass finds: "none" everything, "dots" the matrix products, "offload" the same in the host's
    memory, "full" the input of each block alone; `unroll` trades compile time for speed, 0 leaves it to `unrolled`.
    """

    depth: int
    heads: int
    hidden: int
    drop_path: float = 0.0
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"
    dtype: Any = jnp.float32
    eps: float = LN_EPS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_drop_path(self.drop_path)

    @nn.compact
    def __call__(self, x: Array, /, *, keys: Key | None = None, valid: Array | None = None, keep: tuple[int, ...] = ()) -> Stacked:
        """[B N D] -> Stacked; `keys` [B] turn drop-path on, `keep` lists blocks whose output is returned."""
        if self.remat not in REMAT:
            raise UserError(f"remat {self.remat!r}; allowed are {', '.join(REMAT)}")
        if any(not 0 <= k < self.depth for k in keep):
            raise UserError(f"layers {keep} asked of a stack of {self.depth} blocks")
        keys = keys if self.drop_path else None
        unroll = self.unroll or unrolled(self.depth, remat=self.remat)

        def body(block: nn.Module, carry: tuple[Array, Array], per_layer: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
            x, kept = carry
            layer, rate = per_layer
            x = block(x, layer=layer, rate=rate, keys=keys, valid=valid)
            if keep:
                kept = jnp.where((jnp.asarray(keep) == layer)[:, None, None, None], x[None], kept)
            return (x, kept), None

        if self.remat != "none":
            # Without a loop between the passes the compiler would find that both compute the same, and keep it.
            body = nn.remat(body, policy=REMAT[self.remat], prevent_cse=unroll > 1)
        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth, unroll=unroll,
                       metadata_params={nn.PARTITION_NAME: "layers"})
        block = Block(self.heads, self.hidden, self.attention, self.dtype, self.eps, looped=unroll == 1, name="block")
        per_layer = (jnp.arange(self.depth), jnp.asarray(np.linspace(0, self.drop_path, self.depth), jnp.float32))
        (x, kept), _ = scan(block, (x, jnp.zeros((len(keep), *x.shape), x.dtype)), per_layer)
        return Stacked(tokens=x, kept=kept)
