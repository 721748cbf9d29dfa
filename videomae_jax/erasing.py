"""Random erasing on the device: a box of every clip becomes noise, before clips are mixed.

It lies here and not in the input because the noise is N(0, 1) in *standardised* pixels: 3 % of it are darker than black or
brighter than white, which no byte can hold.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.types import Array, Key

TRIES = 8  # one box in two hundred does not fit


@dataclasses.dataclass(frozen=True)
class Erasing:
    """timm's RandomErasing, mode "pixel", one box, the same in all frames, with noise of its own for every value.

    With chance `probability` a box of `area` (share of the frame, uniform) and `aspect` (height / width, log-uniform between it
    and its inverse) is drawn. V2 fine-tunes with chance .25 (V2 random_erasing; arXiv 1708.04896). Eight boxes are drawn where
    V2 draws up to a hundred until one fits: with a chance of 1e-18 none does, and nothing is erased.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1 or not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.aspect <= 1:
            raise UserError(f"erasing with probability {self.probability}, area {self.area}, aspect {self.aspect}; "
                            "allowed are a probability of 0 to 1, areas 0 < low <= high <= 1, an aspect above 0 and up to 1")

    def box(self, key: Key, /, *, height: int, width: int) -> Array:
        """bool [H W], True where a clip is erased."""
        apply, *keys = jax.random.split(key, 5)
        size = jax.random.uniform(keys[0], (TRIES,), jnp.float32, *self.area) * (height * width)
        bound = -math.log(self.aspect)
        aspect = jnp.exp(jax.random.uniform(keys[1], (TRIES,), jnp.float32, -bound, bound))
        tall, wide = jnp.rint(jnp.sqrt(size * aspect)).astype(jnp.int32), jnp.rint(jnp.sqrt(size / aspect)).astype(jnp.int32)
        fits = (tall < height) & (wide < width)
        first = jnp.argmax(fits)
        tall, wide = tall[first], wide[first]
        top = jax.random.randint(keys[2], (), 0, jnp.maximum(height - tall, 0) + 1)
        left = jax.random.randint(keys[3], (), 0, jnp.maximum(width - wide, 0) + 1)
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        return inside & fits.any() & jax.random.bernoulli(apply, self.probability)

    def __call__(self, video: Array, keys: Key, /, *, mean: Sequence[float], std: Sequence[float]) -> Array:
        """f32 [B T H W C] in [0, 1] with boxes of mean + std x N(0, 1), which may leave [0, 1]; `keys` [B], one a clip."""
        mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)

        def one(clip: Array, key: Key) -> Array:
            place, noise = jax.random.split(key)
            inside = self.box(place, height=clip.shape[1], width=clip.shape[2])
            drawn = mean + std * jax.random.normal(noise, clip.shape, jnp.float32)
            return jnp.where(inside[None, :, :, None], drawn, clip)
        return jax.vmap(one)(video, keys)
