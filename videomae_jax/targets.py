"""Prediction targets made from patches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import parallel
from videomae_jax.errors import UserError
from videomae_jax.types import Array

EPS = 1e-6
MAE_ST_STD = 0.225  # MAE-ST's loader divides by it before the target is made, so its eps acts on these units


def _centred(x: Array, /, *, axis: int) -> tuple[Array, Array]:
    """x minus its mean, and the unbiased variance.

    The mean is taken off twice: a float32 sum over 512 equal values is off by up to 2e-7, against eps 1e-6 enough to
    give a flat patch a target of .2 instead of 0.
    """
    x = x - x.mean(axis, keepdims=True)
    x = x - x.mean(axis, keepdims=True)
    return x, jnp.sum(x * x, axis, keepdims=True) / (x.shape[axis] - 1)


def standardise_per_channel(patches: Array, /, *, channels: int = 3) -> Array:
    """VideoMAE's target: per token and channel (x - mean) / (sqrt(var) + 1e-6), var unbiased, eps outside the root.

    patches: f32 [B N P] in [0, 1], channel fastest. Returns the same shape (V1 and V2 engine_for_pretraining). Raises UserError for a P
    that is no multiple of `channels`.
    """
    if patches.shape[-1] % channels:
        raise UserError(f"target.channels={channels} of patches of {patches.shape[-1]} values; allowed are divisors of that")
    how = _by_planes if parallel.target().platform == "gpu" else _by_products
    return how(patches.astype(jnp.float32), channels)


def _by_planes(x: Array, channels: int, /) -> Array:
    """`standardise_per_channel` for GPUs, which are slow at sums whose innermost axis has three colours: a copy has one colour after the other."""
    planes = jax.lax.optimization_barrier(jnp.swapaxes(x.reshape(*x.shape[:-1], -1, channels), -1, -2))
    planes, var = _centred(planes, axis=-1)
    return jnp.swapaxes(planes / (jnp.sqrt(var) + EPS), -1, -2).reshape(x.shape)


def _by_products(x: Array, channels: int, /) -> Array:
    """`standardise_per_channel` by matrices of zeros and ones, exact as sums are: of 128 lanes of a TPU three colours would fill three."""
    member = jnp.asarray(np.arange(x.shape[-1])[:, None] % channels == np.arange(channels), jnp.float32)
    pixels = x.shape[-1] // channels

    def total(x: Array) -> Array:
        return jnp.matmul(x, member, precision="highest")

    for _ in range(2):  # as `_centred` does
        x = x - _spread(total(x) / pixels, member)
    return x / _spread(jnp.sqrt(total(x * x) / (pixels - 1)) + EPS, member)


def _spread(x: Array, member: Array, /) -> Array:
    """f32 [B N C] at every pixel [B N P]: exact, and compiled in half the time of a product that takes all bits at once."""
    return jnp.concatenate(_parts(x), -1) @ jnp.tile(member.T, (3, 1))


def _parts(x: Array, /) -> list[Array]:
    """Three arrays whose sum is `x`, each of as few bits as a TPU multiplies at once."""
    parts = []
    for _ in range(3):
        parts.append(jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7))
        x = x - parts[-1]
    return parts


def standardise_jointly(patches: Array, /) -> Array:
    """MAE-ST's target: per token over all values, channels included; var unbiased, eps 1e-6 inside the root.

    patches: f32 [B N P] in [0, 1]. Returns the same shape (models_mae of MAE-ST). There the frames are divided by a std
    of .225 first, which leaves the result as it is but for eps; hence its square here.
    """
    x, var = _centred(patches.astype(jnp.float32), axis=-1)
    return x / _joint_scale(var)


def _joint_scale(var: Array, /) -> Array:
    return jnp.sqrt(var + EPS * MAE_ST_STD**2)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """Pixel targets; `normalise` is "channel" (VideoMAE), "joint" (MAE-ST) or "none" (raw values in [0, 1])."""

    normalise: str = "channel"
    channels: int = 3

    def __post_init__(self) -> None:
        if self.normalise not in ("channel", "joint", "none"):
            raise UserError(f"target normalisation {self.normalise!r}; allowed are 'channel', 'joint' and 'none'")

    def __call__(self, patches: Array, /) -> Array:
        """f32 [B N P] targets of patches [B N P] in [0, 1]."""
        if self.normalise == "channel":
            return standardise_per_channel(patches, channels=self.channels)
        if self.normalise == "joint":
            return standardise_jointly(patches)
        return patches.astype(jnp.float32)

    def invert(self, prediction: Array, patches: Array, /) -> Array:
        """Pixels in [0, 1] from a prediction [B N P], with the mean and variance of the *true* patches [B N P].

        With normalised targets the model does not predict them; whoever draws the result must say so.
        """
        if self.normalise == "none":
            return prediction
        shape = (*patches.shape[:-1], -1, self.channels) if self.normalise == "channel" else patches.shape
        axis = -2 if self.normalise == "channel" else -1
        x = patches.astype(jnp.float32).reshape(shape)
        mean, (_, var) = x.mean(axis, keepdims=True), _centred(x, axis=axis)
        scale = jnp.sqrt(var) + EPS if self.normalise == "channel" else _joint_scale(var)
        return (prediction.reshape(shape) * scale + mean).reshape(patches.shape)
