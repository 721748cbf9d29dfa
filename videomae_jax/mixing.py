"""Mixup and CutMix on the device: convex combinations of clips and of their soft labels.

Both are one map of pixels: a share of the clip itself in [0, 1], constant for mixup, 0 inside a box and 1 outside it for
CutMix; the partner has the rest. The share of the label is the mean of the map, so that a box cut by the border counts
with its true area.
"""

import dataclasses

import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.parallel import shard
from videomae_jax.types import Array, Key

PARTNERS = ("reversed", "opposite")


@dataclasses.dataclass(frozen=True)
class Mixing:
    """timm's Mixup in mode "batch", as V2 fine-tunes with it (V2 run_class_finetuning; arXiv 1710.09412, 1905.04899).

    `mixup` and `cutmix` are the alphas of Beta(alpha, alpha), 0 = off; with both on, CutMix has the chance `switch`.
    With `probability` a batch is mixed at all. `rows` neighbouring rows share a draw and mix among themselves (0 = the
    whole global batch): V2 draws once for the clips of every GPU. The box is the same in all frames.

    `partner` "reversed" is V2's: row i with row R - 1 - i. With several copies of a decode and an odd number of videos its
    middle video mixes with itself (V2 does so in every ViT-g script). "opposite" pairs row i with row i + R / 2, which
    is another video whenever the rows hold two or more.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    rows: int = 0
    partner: str = "reversed"

    def __post_init__(self) -> None:
        if self.partner not in PARTNERS:
            raise UserError(f"mixing partner {self.partner!r}; allowed are {', '.join(PARTNERS)}")
        for field in ("probability", "switch"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"mixing {field} {getattr(self, field)}; allowed are 0 to 1")
        for field in ("mixup", "cutmix", "rows"):
            if getattr(self, field) < 0:
                raise UserError(f"mixing {field} {getattr(self, field)}; allowed are 0 and more")

    @property
    def active(self) -> bool:
        """Whether any batch is ever mixed."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    def draw(self, rng: Key, /, *, batch: int, height: int, width: int) -> Array:
        """Pixel shares f32 [G H W] of the G = batch / rows groups; a group's draw depends on `rng` and its number alone."""
        each = self.rows or batch
        if batch % each:
            raise UserError(f"mixing.rows is {each}, but the batch has {batch} clips; allowed are divisors of it, and 0 for all of them")
        keys = jax.vmap(lambda group: jax.random.fold_in(rng, group))(jnp.arange(batch // each))
        return jax.vmap(lambda key: self._share(key, height=height, width=width))(keys)

    def _share(self, key: Key, /, *, height: int, width: int) -> Array:
        """One map f32 [H W]."""
        apply, choose, strength, row, column = jax.random.split(key, 5)
        cut = jax.random.bernoulli(choose, self.switch) if self.mixup and self.cutmix else jnp.asarray(self.cutmix > 0)
        ratio = jnp.where(cut, beta(strength, self.cutmix), beta(strength, self.mixup))
        ratio = jnp.where(jax.random.bernoulli(apply, self.probability), ratio, 1)
        inside = box(ratio, jax.random.randint(row, (), 0, height), jax.random.randint(column, (), 0, width), height=height, width=width)
        return jnp.where(cut, jnp.where(inside, 0, 1).astype(ratio.dtype), ratio)

    def partners(self, x: Array, /, *, groups: int) -> Array:
        """[B ...] whose row i is the partner of row i of `x`."""
        y = x.reshape(groups, -1, *x.shape[1:])
        y = y[:, ::-1] if self.partner == "reversed" else jnp.roll(y, -(y.shape[1] // 2), axis=1)
        return shard(y.reshape(x.shape), "batch", *(None,) * (x.ndim - 1))

    def blend(self, x: Array, share: Array, /) -> Array:
        """share * x + (1 - share) * partner for x [B ...] and shares [G ...] that broadcast against a row of x."""
        own = jnp.repeat(share, x.shape[0] // share.shape[0], axis=0)
        return shard(own * x + (1 - own) * self.partners(x, groups=share.shape[0]), "batch", *(None,) * (x.ndim - 1))


def beta(key: Key, alpha: float, /) -> Array:
    """A draw f32 [] of Beta(alpha, alpha); 1, which changes nothing, where alpha is 0."""
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32) if alpha else jnp.asarray(1, jnp.float32)


def box(ratio: Array, row: Array, column: Array, /, *, height: int, width: int) -> Array:
    """bool [H W], True inside the box of area 1 - `ratio` round a centre, cut at the borders (timm rand_bbox).

    Sides are int(side * sqrt(1 - ratio)), and half of one, rounded down, lies on either side of the centre.
    """
    def within(side: int, centre: Array) -> Array:
        half = jnp.floor(side * jnp.sqrt(1 - ratio)).astype(jnp.int32) // 2
        place = jnp.arange(side)
        return (place >= centre - half) & (place < centre + half)
    return within(height, row)[:, None] & within(width, column)[None]
