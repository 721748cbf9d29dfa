"""Masks guided by label maps: which kinds of pixels a token must touch to be seen, in an order of priority."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import masking
from videomae_jax.errors import UserError
from videomae_jax.masking import FLOOR, Grid, Layout, Mask
from videomae_jax.types import Array, Batch, Key, row_keys

Groups = tuple[tuple[int | tuple[int, ...], ...], ...]
# Classes of a face map, in the numbering of LaPa: 0 background, 1 skin, 2 3 brows, 4 5 eyes, 6 nose, 7 8 9 mouth, 10 hair.
COMPONENTS: Groups = ((2, 4), (3, 5), (6,), (7, 8, 9), (10,))
BACKGROUND_FIRST: tuple[Groups, ...] = (((0,),), ((1,),), COMPONENTS)
SURROUNDINGS_FIRST: tuple[Groups, ...] = ((((0, 1),),), COMPONENTS)
COMPONENTS_FIRST: tuple[Groups, ...] = (COMPONENTS, ((1,),), ((0,),))


@dataclasses.dataclass(frozen=True)
class Guided:
    """MARLIN's facial-region guided mask ("fasking"), for any label map (released dataset code, arXiv 2211.06627).

    `tiers` are groups of classes that are taken one tier after the other, the groups of a tier in an order that every clip draws,
    the same for all its times, the classes of a group as they stand; a tuple of classes in place of one is taken at once. A class
    makes each token a candidate that one of its pixels lies in; a time step stops as soon as its candidates reach the share
    1 - ratio, within a group too. So the rest, the face, is hidden first. At last int(N * (1 - ratio)) of all candidates of the
    clip are drawn at random. A map without face is all background, and the draw uniform.

    Where background touches a tenth of the tokens, as in usual face crops, BACKGROUND_FIRST, the released order, shows nothing
    else. SURROUNDINGS_FIRST [this project's] takes background and skin at once; COMPONENTS_FIRST is the released opposite. Where
    classes outside the tiers leave too few candidates, any tokens fill up.
    """

    ratio: float = 0.9
    tiers: tuple[Groups, ...] = BACKGROUND_FIRST

    def __post_init__(self) -> None:
        masking.Random(ratio=self.ratio)  # the same limits
        classes = [c for _, taken in self.queue for c in taken]
        if not classes or len(set(classes)) != len(classes) or not all(self.groups) or not all(taken for _, taken in self.queue):
            raise UserError(f"tiers {self.tiers}; allowed are tuples of groups of classes, each class once and no group empty")

    @property
    def groups(self) -> Groups:
        """All groups, tier by tier."""
        return tuple(group for tier in self.tiers for group in tier)

    @property
    def queue(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(number of the group, classes that are taken at once) in the order of the groups."""
        return tuple((number, taken if isinstance(taken, tuple) else (taken,)) for number, group in enumerate(self.groups) for taken in group)

    def count(self, grid: Grid, /) -> int:
        """Visible tokens of a clip."""
        return masking.kept(self.ratio, of=grid.tokens, truncate="visible")

    def order(self, rng: Key, /) -> Array:
        """f32 [B G] for keys [B]: the smaller, the earlier a group is taken."""
        tiers = jnp.asarray(np.repeat(np.arange(len(self.tiers)), [len(tier) for tier in self.tiers]), jnp.float32)
        return tiers + jax.vmap(lambda key: jax.random.uniform(key, tiers.shape))(rng)

    def candidates(self, parts: Array, order: Array, /, *, grid: Grid) -> Array:
        """bool [B t s] of maps u8 [B T H W], of which the first frame of every time step is read, under `order` [B G]."""
        b, frames, height, width = parts.shape
        first = parts[:, :: frames // grid.t].reshape(b, grid.t, grid.h, height // grid.h, grid.w, width // grid.w)
        touched = [jnp.isin(first, np.asarray(taken, np.uint8)).any((3, 5)).reshape(b, grid.t, grid.slice) for _, taken in self.queue]
        owner = np.asarray([number for number, _ in self.queue])
        turn = jnp.argsort(jnp.argsort(order))[:, owner] * len(owner) + np.arange(len(owner))  # i32 [B C]: groups by their order, classes as they stand
        until = turn[:, None, :] <= turn[:, :, None]  # [B C C]: what has been taken when a class is
        seen = (jnp.stack(touched, -1)[..., None, :] & until[:, None, None]).any(-1)  # [B t s C]
        # The tolerance takes back what 1 - ratio rounds up, so that .95 of 20 leaves 1.
        enough = seen.sum(2) >= math.ceil(grid.slice * (1 - self.ratio) - 1e-9)
        last = jnp.where(enough, turn[:, None], jnp.inf).argmin(-1)  # the first class that is enough
        last = jnp.where(enough.any(-1), last, turn.argmax(-1)[:, None])
        return jnp.take_along_axis(seen, last[:, :, None, None], axis=-1)[..., 0]

    def visible(self, rng: Key, parts: Array, /, *, grid: Grid) -> Array:
        """Sorted ids i32 [B V] of visible tokens for keys [B] and maps u8 [B T H W]."""
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(rng)
        found = self.candidates(parts, self.order(keys[:, 0]), grid=grid)
        return masking.select(keys[:, 1], jnp.where(found, 0.0, FLOOR), keep=self.count(grid), layout=Layout.TOKEN)


def draw(rng: Key, batch: Batch, /, *, encoder: Guided | masking.Random, grid: Grid) -> Mask:
    """The mask of every row, keyed by its place in the stream; every hidden token is predicted.

    Raises UserError for a guided mask and a batch without `parts`.
    """
    keys = row_keys(rng, batch["key"])
    if not isinstance(encoder, Guided):
        return masking.draw(keys, encoder=encoder, decoder=masking.Hidden(), grid=grid)
    if "parts" not in batch:
        raise UserError(f"a mask guided by part maps needs `parts` in the batch, which has {', '.join(batch)}; data.parts.PartClips gives them")
    return hide(encoder.visible(keys, batch["parts"], grid=grid), grid=grid)


def hide(visible: Array, /, *, grid: Grid) -> Mask:
    """The mask that shows `visible` i32 [B V] and predicts all other tokens, each with weight 1."""
    target = masking.complement(visible, tokens=grid.tokens)
    return Mask(visible=visible, target=target, weight=jnp.ones(target.shape, jnp.float32), visible_valid=jnp.ones(visible.shape, bool))
