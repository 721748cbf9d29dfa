"""MAE-ST's encoder and decoder: learned separable positions and class tokens around VideoMAE's blocks.

Source: MAE-ST (arXiv 2205.09113), models_mae and video_vit. Deviations: q, k and v start with the Xavier bound of the fused
kernel, sqrt(6 / 4D) and not sqrt(6 / 2D); the key bias is absent, because softmax is invariant to it. Weight decay spares
1-D parameters alone there, so positions and tokens are stored as matrices under names that `optim.decays` lets pass; its fine-tuning spares them as well, here they
decay in every run.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.masking import Grid
from videomae_jax.models import layers, patches, vit
from videomae_jax.types import Array, Key

MEAN, STD = (0.45,) * 3, (0.225,) * 3  # statistics of MAE-ST's loader
START = nn.initializers.normal(0.02)  # of positions and tokens, but for the decoder's class token, which starts at 0


class Sequence(nn.Module):
    """Adds learned positions, one of s spatial plus one of t temporal, and puts a class token with its own position first.

    The class token starts by `token`.
    """

    grid: Grid
    width: int
    token: Any = START

    @nn.compact
    def __call__(self, x: Array, /, *, ids: Array) -> Array:
        """[B V D] at `ids` i32 [B V] -> [B 1 + V D]."""
        space = self.param("space", layers.boxed(START, None, "embed"), (self.grid.slice, self.width), jnp.float32)
        time = self.param("time", layers.boxed(START, None, "embed"), (self.grid.t, self.width), jnp.float32)
        head = [self.param(name, layers.boxed(start, None, "embed"), (1, self.width), jnp.float32)
                for name, start in (("class", self.token), ("class_position", START))]
        x = x + (space[ids % self.grid.slice] + time[ids // self.grid.slice]).astype(x.dtype)
        first = jnp.broadcast_to((head[0] + head[1]).astype(x.dtype), (x.shape[0], 1, self.width))
        return jnp.concatenate([first, x], axis=1)


def with_class(valid: Array | None, /) -> Array | None:
    """bool [B V] -> [B 1 + V]: the class token is always valid."""
    return None if valid is None else jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)


class Encoder(vit.Encoder):
    """ViT over the visible tubelets and a class token, which is dropped at the end."""

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @nn.compact
    def __call__(self, x: Array, /, *, ids: Array, keys: Key | None = None, valid: Array | None = None,
                 keep: tuple[int, ...] = ()) -> vit.Encoded:
        """Visible patches f32 [B V P] in [0, 1] and their ids i32 [B V] -> Encoded."""
        dtype = jnp.dtype(self.dtype)
        x = patches.standardise(x, mean=self.mean, std=self.std)
        x = layers.Linear(self.width, (None, "embed"), layers.xavier(self.values, self.width), layers.uniform(self.values**-0.5), dtype=dtype, name="embed")(x)
        x = Sequence(self.grid, self.width, name="sequence")(x, ids=ids)
        stack = layers.Stack(self.depth, self.heads, self.hidden, self.drop_path, self.remat, self.unroll, self.attention, dtype, self.eps, name="stack")
        out = stack(x, keys=keys, valid=with_class(valid), keep=keep)
        kept = out.kept[:, :, 1:] if keep else out.kept
        return vit.Encoded(tokens=layers.LayerNorm(self.eps, dtype, name="norm")(out.tokens)[:, 1:], kept=kept, last=out.tokens[:, 1:])


class Decoder(vit.Decoder):
    """MAE-ST's decoder: bridge with bias, its own positions and class token, a head for one frame in `every` of a tubelet.

    The tokens of the encoder and the mask tokens at `target` attend together; where `target` is everything hidden, these
    are all tokens of the clip.
    """

    every: int = 1

    @nn.compact
    def __call__(self, tokens: Array, /, *, visible: Array, target: Array, grid: Grid, values: int, valid: Array | None = None) -> Array:
        """Encoder tokens [B V D], ids i32 [B V] and [B M] -> predictions f32 [B M P / every]."""
        if values % self.every:
            raise UserError(f"every={self.every} does not divide the {values} values of a patch")
        dtype = jnp.dtype(self.dtype)
        bridge = layers.Linear(self.width, ("embed", None), layers.xavier(tokens.shape[-1], self.width), dtype=dtype, name="bridge")
        mask = self.param("mask", layers.boxed(START, None, "embed"), (1, self.width), jnp.float32).astype(dtype)
        x = jnp.concatenate([bridge(tokens), jnp.broadcast_to(mask, (*target.shape, self.width))], axis=1)
        x = Sequence(grid, self.width, nn.initializers.zeros, name="sequence")(x, ids=jnp.concatenate([visible, target], axis=1))
        if valid is not None:
            valid = jnp.concatenate([valid, jnp.ones(target.shape, bool)], axis=1)
        stack = layers.Stack(self.depth, self.heads, self.hidden, 0.0, self.remat, self.unroll, self.attention, dtype, self.eps, name="stack")
        x = stack(x, valid=with_class(valid)).tokens[:, 1 + visible.shape[1]:]
        x = layers.LayerNorm(self.eps, dtype, name="norm")(x)
        values //= self.every
        head = layers.Linear(values, ("embed", None), layers.xavier(self.width, values), dtype=dtype, name="head")
        return head(x).astype(jnp.float32)


def encoder(size: str, /, **kw: object) -> Encoder:
    """The published encoder of size B, L or H, all with patches of 16 pixels (SlowFast); keywords override fields, HVM-1's `patch` above all."""
    if size not in ("B", "L", "H"):
        raise UserError(f"MAE-ST of size {size!r}; allowed are B, L and H")
    width, depth, heads, hidden, side = vit.SIZES[size]["encoder"]
    return Encoder(**({"width": width, "depth": depth, "heads": heads, "hidden": hidden, "patch": (2, side, side)} | vit.FOR_THE_DEVICE | kw))


def decoder(**kw: object) -> Decoder:
    """mae_st's decoder, for every size: 4 blocks of width 512 with 16 heads (the code's default depth 8 is not the recipe's)."""
    return Decoder(**({"width": 512, "depth": 4, "heads": 16, "hidden": 2048} | vit.FOR_THE_DEVICE | kw))
