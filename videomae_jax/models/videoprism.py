"""VideoPrism's factorised encoder: a ViT within every frame, then one along time at every place; logits are capped.

Source: VideoPrism (arXiv 2402.13217) and its released code (google-deepmind/videoprism, encoders and layers): patches of one
frame, learned separable positions, biases on q, k and v (a key bias is not inert where logits are capped), pixels in [0, 1]
without statistics. Here to use its published weights (`convert --from=videoprism`); masks are not supported.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.models import layers, patches, vit
from videomae_jax.types import Array, Key

START = nn.initializers.normal(0.02)  # of positions; the published ones replace it


class Attention(nn.Module):
    """Self-attention with biases everywhere and logits cap * tanh(logits / cap); softmax in float32."""

    heads: int
    cap: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, /, *, valid: Array | None) -> Array:
        """[B N D] -> [B N D]; `valid` bool [B N] of keys."""
        width, size = x.shape[-1], x.shape[-1] // self.heads
        if width % self.heads:
            raise UserError(f"width {width} is not divisible by {self.heads} heads")
        kernel = self.param("qkv", layers.boxed(layers.xavier(width, 3 * width), "embed", None, "heads", None), (width, 3, self.heads, size), jnp.float32)
        bias = self.param("qkv_bias", layers.boxed(nn.initializers.zeros, None, "heads", None), (3, self.heads, size), jnp.float32)
        q, k, v = jnp.moveaxis(jnp.einsum("bnd,dchk->bnchk", x, kernel.astype(self.dtype)) + bias.astype(self.dtype), 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", q * np.float32(size**-0.5).astype(self.dtype), k, preferred_element_type=jnp.float32)
        logits = self.cap * jnp.tanh(logits / self.cap)
        if valid is not None:
            logits = jnp.where(valid[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)
        out = self.param("out", layers.boxed(layers.xavier(width, width), "heads", None, "embed"), (self.heads, size, width), jnp.float32)
        shift = self.param("out_bias", layers.boxed(nn.initializers.zeros, "norm"), (width,), jnp.float32)
        return jnp.einsum("bnhk,hkd->bnd", y, out.astype(self.dtype)) + shift.astype(self.dtype)


class Block(nn.Module):
    """Pre-LN block."""

    heads: int
    hidden: int
    cap: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, /, *, valid: Array | None) -> Array:
        """[B N D] -> [B N D]."""
        x = x + Attention(self.heads, self.cap, self.dtype, name="attn")(layers.LayerNorm(dtype=self.dtype, name="norm1")(x), valid=valid)
        return x + layers.Mlp(self.hidden, self.dtype, name="mlp")(layers.LayerNorm(dtype=self.dtype, name="norm2")(x))


class Tower(nn.Module):
    """`depth` blocks with stacked parameters, and the output [depth B N D] of each where it is asked for."""

    depth: int
    heads: int
    hidden: int
    cap: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, /, *, valid: Array | None = None, keep: bool = False) -> tuple[Array, Array | None]:
        """[B N D] -> the same, and the kept outputs or None."""
        def body(block: nn.Module, carry: Array, _: None) -> tuple[Array, Array | None]:
            carry = block(carry, valid=valid)
            return carry, carry if keep else None

        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth, metadata_params={nn.PARTITION_NAME: "layers"})
        return scan(Block(self.heads, self.hidden, self.cap, self.dtype, name="block"), x, None)


class Encoder(patches.Tubelets, nn.Module):
    """All tokens of a clip through the spatial tower, a norm, the temporal tower, a norm. Block numbers run through both towers."""

    width: int
    spatial_depth: int
    temporal_depth: int
    heads: int
    hidden: int
    patch: tuple[int, int, int] = (1, 18, 18)
    frames: int = 16
    size: int = 288
    channels: int = 3
    cap: float = 50.0
    dtype: str = "float32"

    @property
    def depth(self) -> int:
        """Blocks of both towers."""
        return self.spatial_depth + self.temporal_depth

    @nn.compact
    def __call__(self, x: Array, /, *, ids: Array, keys: Key | None = None, valid: Array | None = None, keep: tuple[int, ...] = ()) -> vit.Encoded:
        """All patches f32 [B N P] in [0, 1] and their ids i32 [B N] -> Encoded, whose `tokens` and `last` are both normed.

        A shorter x initialises the parameters alone; `keys` are not used, for there is no drop-path. Frames that are not
        `valid` are attended by no other.
        """
        dtype, grid = jnp.dtype(self.dtype), self.grid
        if x.shape[1] != grid.tokens and not self.is_initializing():
            raise UserError(f"{x.shape[1]} of {grid.tokens} tokens reach VideoPrism's encoder, which takes whole clips: masks are not supported")
        if any(not 0 <= k < self.depth for k in keep):
            raise UserError(f"layers {keep} asked of {self.depth} blocks")
        space = self.param("space", layers.boxed(START, None, "embed"), (grid.slice, self.width), jnp.float32)
        time = self.param("time", layers.boxed(START, None, "embed"), (grid.t, self.width), jnp.float32)
        if self.is_initializing():
            x = jnp.broadcast_to(x[:, :1], (x.shape[0], grid.tokens, x.shape[2]))
        rows = x.shape[0]
        x = layers.Linear(self.width, (None, "embed"), layers.xavier(self.values, self.width), dtype=dtype, name="embed")(x)
        x = x.reshape(rows * grid.t, grid.slice, -1) + space.astype(dtype)
        within = Tower(self.spatial_depth, self.heads, self.hidden, self.cap, dtype, name="spatial")
        x, first = within(x, keep=any(k < self.spatial_depth for k in keep))
        x = layers.LayerNorm(dtype=dtype, name="spatial_norm")(x)
        x = x.reshape(rows, grid.t, grid.slice, -1).swapaxes(1, 2).reshape(rows * grid.slice, grid.t, -1) + time.astype(dtype)
        real = None if valid is None else valid.reshape(rows, grid.t, grid.slice).swapaxes(1, 2).reshape(rows * grid.slice, grid.t)
        along = Tower(self.temporal_depth, self.heads, self.hidden, self.cap, dtype, name="temporal")
        x, second = along(x, valid=real, keep=any(k >= self.spatial_depth for k in keep))

        def ordered(y: Array) -> Array:
            return y.reshape(rows, grid.slice, grid.t, -1).swapaxes(1, 2).reshape(rows, grid.tokens, -1)

        kept = [first[k].reshape(rows, grid.tokens, -1) if k < self.spatial_depth else ordered(second[k - self.spatial_depth]) for k in keep]
        out = ordered(layers.LayerNorm(dtype=dtype, name="temporal_norm")(x))
        return vit.Encoded(tokens=out, kept=jnp.stack(kept) if kept else jnp.zeros((0, *out.shape), dtype), last=out)
