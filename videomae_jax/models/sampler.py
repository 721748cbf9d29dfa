"""AdaMAE's token sampling network: a logit for every token of a clip, from the embeddings of all of them.

Source: AdaMAE (arXiv 2211.09120), models/pretrain/vit. The figure's "MHA" is a whole transformer block there: pre-LN with eps
1e-5, no biases on q, k and v, dropout after the projection and after the MLP. Deviations: the last layer has no bias, because
softmax is invariant to it; it runs in float32; a logit that is not a number stays one, so that the run stops.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.models import attention, layers, patches, vit
from videomae_jax.parallel import shard
from videomae_jax.types import Array, Key, Params

LN_EPS = 1e-5  # PyTorch's default: the sampler does not take the encoder's 1e-6


def embed(encoder: vit.Encoder, params: Params, x: Array, /) -> Array:
    """[B N D] of patches f32 [B N P] in [0, 1]: the embedding of `encoder` with its parameters, without positions."""
    bound = layers.uniform(encoder.values**-0.5)  # only shapes count: the parameters are there
    linear = layers.Linear(encoder.width, (None, "embed"), bound, bound, dtype=jnp.dtype(encoder.dtype))
    return linear.apply({"params": params["embed"]}, patches.standardise(x, mean=encoder.mean, std=encoder.std))


def coverage(parts: Array, /, *, patch: tuple[int, int, int]) -> Array:
    """f32 [B N]: the part of a token's pixels that the map `parts` u8 [B T H W] gives to anything but the background, 0."""
    return patches.patchify((parts > 0).astype(jnp.float32)[..., None], patch=patch).mean(-1)


def dropout(x: Array, keys: Key | None, /, *, rate: float) -> Array:
    """Zeroes entries of [B ...] with probability `rate` and scales the rest; `keys` [B] per row, or None for evaluation."""
    if keys is None or not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x.astype(jnp.promote_types(x.dtype, jnp.float32)) / (1 - rate), 0).astype(x.dtype)  # 1 - rate is not rounded to the precision of x


class Attention(nn.Module):
    """Self-attention without biases on q, k and v; the Xavier bound of the fused kernel, as in `layers.Attention`."""

    heads: int
    implementation: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, /) -> Array:
        """[B N D] -> [B N D]."""
        width = x.shape[-1]
        if width % self.heads:
            raise UserError(f"width {width} is not divisible by {self.heads} heads")
        size = width // self.heads
        kernel = self.param("qkv", layers.boxed(layers.xavier(width, 3 * width), "embed", None, "heads", None), (width, 3, self.heads, size), jnp.float32)
        q, k, v = jnp.moveaxis(jnp.einsum("bnd,dchk->bnchk", x, kernel.astype(self.dtype)), 2, 0)
        q, k, v = (shard(y, "batch", None, "heads", None) for y in (q, k, v))
        y = attention.attend(q, k, v, implementation=self.implementation, valid=None, scale=size**-0.5)
        out = self.param("out", layers.boxed(layers.xavier(width, width), "heads", None, "embed"), (self.heads, size, width), jnp.float32)
        bias = self.param("out_bias", layers.boxed(nn.initializers.zeros, "norm"), (width,), jnp.float32)
        return jnp.einsum("bnhk,hkd->bnd", y, out.astype(self.dtype)) + bias.astype(self.dtype)


class Sampler(nn.Module):
    """Learned positions (start 0), one transformer block over all N tokens, one logit a token."""

    heads: int = 8
    hidden: int = 3072
    dropout: float = 0.1
    attention: str = "xla"
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Array, /, *, keys: Key | None = None) -> Array:
        """Embeddings [B N D] -> logits f32 [B N]; `keys` [B] turn dropout on."""
        dtype, width = jnp.dtype(self.dtype), tokens.shape[-1]
        positions = self.param("positions", layers.boxed(nn.initializers.zeros, None, "embed"), tokens.shape[1:], jnp.float32)
        drops = (None, None)
        if keys is not None:
            folded = jax.vmap(lambda key: jax.random.split(key, 2))(keys)
            drops = (folded[:, 0], folded[:, 1])
        x = shard(tokens.astype(dtype) + positions.astype(dtype), "batch", None, None)
        y = layers.LayerNorm(LN_EPS, dtype, name="norm1")(x)
        x = x + dropout(Attention(self.heads, self.attention, dtype, name="attn")(y), drops[0], rate=self.dropout)
        y = layers.LayerNorm(LN_EPS, dtype, name="norm2")(x)
        x = x + dropout(layers.Mlp(self.hidden, dtype, name="mlp")(y), drops[1], rate=self.dropout)
        head = layers.Linear(1, ("embed", None), layers.xavier(width, 1), use_bias=False, dtype=jnp.float32, precision=layers.EXACT, name="head")
        return head(x.astype(jnp.float32))[..., 0]
