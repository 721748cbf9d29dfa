"""Softmax attention: the plain form, the kernels of GPUs and TPUs, and an exact one over blocks of queries for everything else.

In blocks the matrix of all queries and keys never exists: a block's logits stay in the processor's cache, and the backward
pass computes them again from the log-sum-exp of every query (FlashAttention's recomputation, arXiv 2205.14135). Beside the plain
form that is one matrix product of six more, and memory linear in the number of tokens.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import parallel
from videomae_jax.errors import UserError
from videomae_jax.models import kernels
from videomae_jax.types import Array

LONG = 1024  # tokens from which blocks are faster on a CPU than the plain form: ViT-B's 1568, 13 % of a step on one core
SHORT = 320  # keys up to which TPUs have the plain form: splash pads them to 256 or 384, and its arrays are copied (compiler's cycles of ViT-B, ViT-g)
BLOCK = 98  # most queries of a block: 98 x 1568 float32 logits are 0.6 MB, two of them within a core's second-level cache
FLOOR = float(jnp.finfo(jnp.float32).min)  # logit of a padded key


def attend(q: Array, k: Array, v: Array, /, *, implementation: str, valid: Array | None, scale: float = 1.0, looped: bool = False) -> Array:
    """Softmax attention, [B N h d] x3 -> [B N h d], of `scale` times the queries; softmax in float32; `valid` bool [B N] of keys.

    `implementation` "xla" keeps the weights of all queries and keys for the backward pass, "recomputed" makes them once more there,
    "chunked" has those of a block of queries, "cudnn" (GPUs, half precision) and "splash" (TPUs) none; "auto" is what `chosen` says. `looped` says that a loop over layers keeps the passes apart.
    """
    if implementation == "auto":
        implementation = chosen(tokens=k.shape[1], size=q.shape[-1], dtype=q.dtype)
    if parallel.estimating() and (implementation == "cudnn" or implementation == "splash" and parallel.target().platform in ("cpu", "export")):
        # It keeps the same arrays for the backward pass. JAX traces cuDNN's kernel only where cuDNN is; an interpreted one serves no program.
        implementation = "chunked"
    if implementation not in IMPLEMENTATIONS:
        raise UserError(f"attention {implementation!r}; allowed are {', '.join(map(repr, IMPLEMENTATIONS))} and 'auto'")
    if implementation == "cudnn":  # which scales within its kernel
        return kernels.cudnn(q, k, v, valid=valid, scale=scale)
    # In float32, whatever the precision of the queries: a scale rounded to bfloat16 would move all logits in one direction.
    q = q if scale == 1 else (q * np.float32(scale)).astype(q.dtype)
    return recomputed(q, k, v, valid=valid, looped=looped) if implementation == "recomputed" else IMPLEMENTATIONS[implementation](q, k, v, valid=valid)


def chosen(*, tokens: int, size: int, dtype: Any) -> str:
    """The implementation for the device that the program is compiled for, `tokens` keys and heads of `size` channels."""
    here = parallel.target()
    if here.platform == "gpu" and kernels.runs_on_cudnn(size=size, dtype=dtype, capability=here.capability):
        return "cudnn"
    if here.platform == "tpu":
        return "splash" if tokens > SHORT else "recomputed"
    return "chunked" if tokens >= LONG else "xla"


def plain(q: Array, k: Array, v: Array, /, *, valid: Array | None) -> Array:
    """Attention of scaled queries by two matrix products, the logits in float32 between them."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if valid is not None:
        logits = jnp.where(valid[:, None, None, :], logits, FLOOR)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


def recomputed(q: Array, k: Array, v: Array, /, *, valid: Array | None, looped: bool = False) -> Array:
    """The plain form of scaled queries, of which only queries, keys and values are kept for the backward pass."""
    return jax.checkpoint(functools.partial(plain, valid=valid), prevent_cse=not looped)(q, k, v)


def chunked(q: Array, k: Array, v: Array, /, *, valid: Array | None) -> Array:
    """Softmax attention of scaled queries, [B N h d] x3 -> [B N h d]; softmax in float32; `valid` bool [B N] of keys.

    A row needs one valid key. On one CPU device clips and heads run one after the other, which keeps their logits in
    cache; elsewhere only the blocks do, so that batch and heads stay sharded.
    """
    batch, tokens, heads, size = q.shape
    keys = jnp.ones((batch, k.shape[1]), bool) if valid is None else valid
    keys = jnp.broadcast_to(keys[:, None, None], (batch, heads, 1, k.shape[1]))
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    blocks = -(-tokens // BLOCK)
    rows = -(-tokens // blocks)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, blocks * rows - tokens), (0, 0)))  # zero queries: their outputs are cut off
    q = q.reshape(batch, heads, blocks, rows, size)
    if parallel.target() == parallel.Target("cpu", 1):
        merged = [x.reshape(batch * heads, *x.shape[2:]) for x in (q, k, v, keys)]
        y = jax.lax.map(lambda part: in_blocks(*part, valid is not None), tuple(merged))
        y = y.reshape(batch, heads, -1, size)
    else:
        y = in_blocks(q, k, v, keys, valid is not None).reshape(batch, heads, -1, size)
    return y[:, :, :tokens].transpose(0, 2, 1, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def in_blocks(q: Array, k: Array, v: Array, keys: Array, masked: bool) -> Array:
    """Query blocks [... n r d], keys and values [... N d], valid keys bool [... 1 N] -> [... n r d].

    `masked` False says that every key is valid.
    """
    return forward(q, k, v, keys, masked)[0]


def forward(q: Array, k: Array, v: Array, keys: Array, masked: bool) -> tuple[Array, Any]:
    """The result, and what `backward` needs."""
    def block(rows: Array) -> tuple[Array, Array]:
        logits = product("...qd,...kd->...qk", rows, k)
        logits = jnp.where(keys, logits, FLOOR) if masked else logits
        top = logits.max(-1, keepdims=True)
        weight = jnp.exp(logits - top)
        total = weight.sum(-1, keepdims=True)
        # Dividing the few results instead of the many weights saves a pass over the logits.
        y = product("...qk,...kd->...qd", weight.astype(v.dtype), v) / total
        return y.astype(v.dtype), (top + jnp.log(total))[..., 0]

    y, lse = jax.lax.map(block, jnp.moveaxis(q, -3, 0))
    y, lse = jnp.moveaxis(y, 0, -3), jnp.moveaxis(lse, 0, -2)
    return y, (q, k, v, keys, y, lse)


def backward(masked: bool, kept: Any, gradient: Array) -> tuple[Array, Array, Array, None]:
    """Gradients of queries, keys and values; logits are laid out [keys, queries], which spares transposed products."""
    q, k, v, keys, y, lse = kept
    slope = (y.astype(jnp.float32) * gradient.astype(jnp.float32)).sum(-1)  # [... n r]

    def block(sums: tuple[Array, Array], part: tuple[Array, Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        rows, lse, slope, gradient = part
        logits = product("...kd,...qd->...kq", k, rows)
        logits = jnp.where(jnp.swapaxes(keys, -1, -2), logits, FLOOR) if masked else logits
        weight = jnp.exp(logits - lse[..., None, :])
        inner = weight * (product("...kd,...qd->...kq", v, gradient) - slope[..., None, :])
        weight, inner = weight.astype(v.dtype), inner.astype(v.dtype)
        dk = sums[0] + product("...kq,...qd->...kd", inner, rows)
        dv = sums[1] + product("...kq,...qd->...kd", weight, gradient)
        return (dk, dv), product("...kq,...kd->...qd", inner, k).astype(q.dtype)

    zeros = jnp.zeros(k.shape, jnp.float32)
    blocks = tuple(jnp.moveaxis(x, axis, 0) for x, axis in ((q, -3), (lse, -2), (slope, -2), (gradient, -3)))
    (dk, dv), dq = jax.lax.scan(block, (zeros, zeros), blocks)
    return jnp.moveaxis(dq, 0, -3), dk.astype(k.dtype), dv.astype(v.dtype), None


in_blocks.defvjp(forward, backward)


def product(spec: str, a: Array, b: Array, /) -> Array:
    """einsum with a float32 result."""
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


IMPLEMENTATIONS = {"xla": plain, "recomputed": recomputed, "chunked": chunked, "cudnn": kernels.cudnn, "splash": kernels.splash}
