"""Pixel targets of the MAE-ST family: in the units of its loader, and from one frame in `every` of a tubelet."""

import dataclasses

import jax.numpy as jnp

from videomae_jax import targets
from videomae_jax.errors import UserError
from videomae_jax.types import Array


@dataclasses.dataclass(frozen=True)
class LoaderPixels(targets.Pixels):
    """Frames 0, every, 2 * every, ... of a tubelet of `tubelet` frames; raw values ("none") become (x - mean) / std.

    MAE-ST (arXiv 2205.09113) predicts 8 of 16 frames: every 2 with tubelets of 2, so frames 0, 2, ..., 14 as SlowFast's
    implementation takes them (the other one ends with 15 instead of 14). HVM-1 predicts all frames, not normalised.
    """

    tubelet: int = 2
    every: int = 1
    mean: float = 0.45
    std: float = 0.225

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every < 1 or self.tubelet % self.every:
            raise UserError(f"every={self.every} frame of a tubelet of {self.tubelet}; allowed are the divisors of {self.tubelet}")

    def __call__(self, patches: Array, /) -> Array:
        """f32 [B N P / every] targets of patches [B N P] in [0, 1]."""
        result = super().__call__(self.chosen(patches))
        return (result - self.mean) / self.std if self.normalise == "none" else result

    def chosen(self, patches: Array, /) -> Array:
        """[B N P] -> [B N P / every]: the frames that are predicted."""
        if patches.shape[-1] % self.tubelet:
            raise UserError(f"patches of {patches.shape[-1]} values are no tubelets of {self.tubelet} frames")
        x = patches.reshape(*patches.shape[:-1], self.tubelet, -1)[..., :: self.every, :]
        return x.reshape(*patches.shape[:-1], -1)

    def invert(self, prediction: Array, patches: Array, /) -> Array:
        """Pixels [B N P] from a prediction [B N P / every]; a frame that is not predicted repeats the one before.

        With normalised targets the mean and variance are those of the *true* patches [B N P].
        """
        if self.normalise == "none":
            prediction = prediction * self.std + self.mean
        x = super().invert(prediction, self.chosen(patches))
        frames = x.reshape(*x.shape[:-1], self.tubelet // self.every, -1)
        return jnp.repeat(frames, self.every, axis=-2).reshape(patches.shape)
