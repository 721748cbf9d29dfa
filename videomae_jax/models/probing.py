"""Heads on frozen tokens, many at once: parameters and logits of all heads lie along a first axis."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.models import attention, layers
from videomae_jax.types import Array

START = nn.initializers.normal(0.02)
EPS = 1e-5  # of every LayerNorm of a pooler: PyTorch's default, which V-JEPA 2 keeps there


class CrossAttention(nn.Module):
    """One learned query over all tokens: q + softmax(q (LN kv)) V, then LN and MLP with a residual; no output projection (V-JEPA 2)."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, tokens: Array, /) -> Array:
        """f32 [B N D] -> [B D]."""
        width = tokens.shape[-1]
        if width % self.heads:
            raise UserError(f"width {width} is not divisible by {self.heads} heads of the pooler")
        query = self.param("query_token", layers.boxed(START, "norm"), (width,), jnp.float32)
        x = layers.LayerNorm(EPS, jnp.float32, name="norm1")(tokens)
        q = layers.Linear(width, ("embed", None), START, dtype=jnp.float32, name="q")(query)
        kv = layers.Linear(2 * width, ("embed", None), START, dtype=jnp.float32, name="kv")(x)
        k, v = (part.reshape(*x.shape[:2], self.heads, -1) for part in jnp.split(kv, 2, axis=-1))
        q = jnp.broadcast_to(q.reshape(1, 1, self.heads, -1), (x.shape[0], 1, *k.shape[2:])) * k.shape[-1] ** -0.5
        pooled = query + attention.attend(q, k, v, implementation="xla", valid=None).reshape(x.shape[0], width)
        y = layers.LayerNorm(EPS, jnp.float32, name="norm2")(pooled)
        y = layers.gelu(layers.Linear(self.hidden, ("embed", "mlp"), START, dtype=jnp.float32, name="fc1")(y))
        return pooled + layers.Linear(width, ("rows", "embed"), nn.initializers.normal(0.02 / math.sqrt(2)), dtype=jnp.float32, name="fc2")(y)


class Pooler(nn.Module):
    """`blocks` - 1 self-attention blocks, one of cross-attention, a linear layer, which starts as PyTorch's do."""

    classes: int
    blocks: int
    heads: int
    ratio: int

    @nn.compact
    def __call__(self, tokens: Array, /) -> Array:
        """f32 [B N D] -> logits f32 [B classes]."""
        hidden = self.ratio * tokens.shape[-1]
        if self.blocks > 1:
            tokens = layers.Stack(self.blocks - 1, self.heads, hidden, dtype=jnp.float32, eps=EPS, name="stack")(tokens).tokens
        pooled = CrossAttention(self.heads, hidden, name="cross")(tokens)
        start = layers.uniform(tokens.shape[-1] ** -0.5)
        return layers.Linear(self.classes, ("embed", None), start, start, dtype=jnp.float32, precision=layers.EXACT, name="linear")(pooled)


class Attentive(nn.Module):
    """`count` attentive poolers on the same tokens [V-JEPA 2: 4 blocks of 16 heads, 20 poolers; V-JEPA, unverified: a single block], in float32.

    Products within the blocks, most of a step, are the device's own: of float32 factors TPUs round to bfloat16, in which V-JEPA 2 computes
    all, and GPUs to TF32. JAX_DEFAULT_MATMUL_PRECISION=highest makes them exact, on a TPU of six products each. Logits always are.

    Deviations, in the self-attention blocks: Xavier instead of a truncated normal at the start, without its division of the output
    projection and of fc2 in layer i by sqrt(2 i), and no bias on keys, to which softmax is blind.
    """

    classes: int
    count: int = 20
    blocks: int = 4
    heads: int = 16
    ratio: int = 4

    def macs(self, *, tokens: int, width: int) -> int:
        """Forward multiply-adds of one pooler for a clip."""
        hidden = self.ratio * width
        block = tokens * (4 * width + 2 * hidden) * width + 2 * tokens * tokens * width
        cross = (1 + 2 * tokens) * width * width + 2 * tokens * width + 2 * hidden * width
        return (self.blocks - 1) * block + cross + width * self.classes

    @nn.compact
    def __call__(self, tokens: Array, /) -> Array:
        """[B N D] -> logits f32 [B count classes]."""
        if self.classes < 1 or self.count < 1 or self.blocks < 1:
            raise UserError(f"{self.count} poolers of {self.blocks} blocks for {self.classes} classes; allowed are 1 and more of each")
        many = nn.vmap(Pooler, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, out_axes=1, axis_size=self.count,
                       metadata_params={nn.PARTITION_NAME: None})
        return many(self.classes, self.blocks, self.heads, self.ratio, name="pooler")(tokens.astype(jnp.float32))


class Linear(nn.Module):
    """`count` linear layers on standardised features, N(0, .01) at the start (the linear probe of MAE); in float32."""

    classes: int
    count: int = 1

    def macs(self, *, tokens: int, width: int) -> int:
        """Forward multiply-adds of one layer for a clip, whose tokens are already averaged."""
        return width * self.classes

    @nn.compact
    def __call__(self, features: Array, /) -> Array:
        """f32 [B E] -> logits f32 [B count classes]."""
        if self.classes < 1 or self.count < 1:
            raise UserError(f"{self.count} linear heads for {self.classes} classes; allowed are 1 and more of each")
        shape = (self.count, features.shape[-1], self.classes)
        kernel = self.param("kernel", layers.boxed(nn.initializers.normal(0.01), None, "embed", None), shape, jnp.float32)
        bias = self.param("bias", layers.boxed(nn.initializers.zeros, None, None), (self.count, self.classes), jnp.float32)
        return jnp.einsum("be,hek->bhk", features, kernel, precision=layers.EXACT) + bias


def normalised(x: Array, mean: Array, variance: Array, /) -> Array:
    """BatchNorm without affine parameters: eps 1e-6."""
    return (x - mean) * jax.lax.rsqrt(variance + jnp.asarray(1e-6, x.dtype))


def statistics(x: Array, weight: Array, /) -> dict[str, Any]:
    """Weighted `mean` and biased `var` [E] of features f32 [B E], and `rows`, the sum of weights f32 [B]."""
    rows = jnp.maximum(weight.sum(), 1)
    mean = (x * weight[:, None]).sum(0) / rows
    return {"mean": mean, "var": ((x - mean) ** 2 * weight[:, None]).sum(0) / rows, "rows": rows}
