"""Masking: a logit map plus a layout gives sorted token ids with static counts.

Random, tube, motion-guided, text-guided and learned masks differ only in the logits. Ids are raster ordered over
(t, h, w); boolean masks never leave this module, because XLA needs static shapes.
"""

import dataclasses
import enum

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.types import Array, Key

FLOOR = -1e4  # logit of a token that is taken last: finite, because ties among -inf would not be broken at random


class Layout(enum.Enum):
    """What is drawn: tokens anywhere; one spatial pattern for all times; whole times; a fixed count in every time."""

    TOKEN = "token"
    TUBE = "tube"
    FRAME = "frame"
    SLICE = "slice"


@flax.struct.dataclass
class Mask:
    """Token ids of one batch.

    `visible` i32 [B V] tokens the encoder sees; `target` i32 [B M] tokens the decoder predicts; `weight` f32 [B M] of
    each target in the loss (0 where V2 decodes a token that the encoder saw); `visible_valid` bool [B V] False marks
    padding among the visible tokens.
    """

    visible: Array
    target: Array
    weight: Array
    visible_valid: Array


@dataclasses.dataclass(frozen=True)
class Grid:
    """Token grid (t, h, w)."""

    t: int
    h: int
    w: int

    @property
    def slice(self) -> int:
        """Tokens of one time step."""
        return self.h * self.w

    @property
    def tokens(self) -> int:
        """Tokens of a clip."""
        return self.t * self.h * self.w


def select(rng: Key | None, logits: Array, /, *, keep: int, layout: Layout) -> Array:
    """Sorted ids i32 [B V] drawn without replacement with probability proportional to exp(logits).

    `rng` holds one key per row [B] (Gumbel top-k), or is None for the exact top-k. `logits` f32 [B t s]. `keep` counts
    tokens for TOKEN, positions of the s for TUBE and SLICE, time steps for FRAME. TUBE sums the logits over t.
    """
    batch, t, s = logits.shape
    scores = {Layout.TOKEN: logits.reshape(batch, t * s), Layout.TUBE: logits.sum(1), Layout.FRAME: logits.sum(2),
              Layout.SLICE: logits}[layout]
    if not 0 < keep <= scores.shape[-1]:
        raise UserError(f"cannot keep {keep} of {scores.shape[-1]} ({layout.value}); allowed are 1 to {scores.shape[-1]}")
    scores = scores.astype(jnp.float32)
    if rng is not None:
        scores = scores + jax.vmap(lambda key: jax.random.gumbel(key, scores.shape[1:]))(rng)
    chosen = jnp.sort(jax.lax.top_k(scores, keep)[1], axis=-1).astype(jnp.int32)
    steps = jnp.arange(t, dtype=jnp.int32)
    if layout is Layout.TUBE:
        return (steps[None, :, None] * s + chosen[:, None, :]).reshape(batch, t * keep)
    if layout is Layout.FRAME:
        return (chosen[:, :, None] * s + jnp.arange(s, dtype=jnp.int32)).reshape(batch, keep * s)
    if layout is Layout.SLICE:
        return (steps[None, :, None] * s + chosen).reshape(batch, t * keep)
    return chosen


def indicator(ids: Array, /, *, tokens: int) -> Array:
    """f32 [B N]: 1 at `ids`, 0 elsewhere."""
    rows = jnp.arange(ids.shape[0])[:, None]
    return jnp.zeros((ids.shape[0], tokens), jnp.float32).at[rows, ids].set(1.0)


def complement(ids: Array, /, *, tokens: int) -> Array:
    """Sorted ids i32 [B N-V] of the tokens that are not in `ids` [B V]; `ids` must be distinct within a row."""
    absent = 1.0 - indicator(ids, tokens=tokens)
    order = jnp.argsort(-absent, axis=-1, stable=True)
    return order[:, : tokens - ids.shape[1]].astype(jnp.int32)


def take(tokens: Array, /, *, ids: Array) -> Array:
    """Per-row gather: [B N ...] at `ids` [B V] -> [B V ...]."""
    return jax.vmap(lambda row, row_ids: row[row_ids])(tokens, ids)


def kept(ratio: float, /, *, of: int, truncate: str = "masked") -> int:
    """Positions left of `of`: VideoMAE truncates the *masked* count (masking_generator), MAE-ST the *visible* one.

    "masked": of - int(ratio * of), 157 of 1568 tokens at .9; "visible": int(of * (1 - ratio)), 156.
    """
    if truncate == "masked":
        return of - int(ratio * of)
    if truncate == "visible":
        return int(of * (1 - ratio))
    raise UserError(f"truncate {truncate!r}; allowed are 'masked' and 'visible'")


# -- encoder strategies: which tokens the encoder sees --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Random:
    """Uniform mask of ratio `ratio` under a layout: TUBE is VideoMAE's, TOKEN MAE-ST's, FRAME hides whole times.

    `truncate` says which count is rounded down, see `kept`; MAE-ST is layout "token" with truncate "visible".
    """

    ratio: float = 0.9
    layout: str = "tube"
    truncate: str = "masked"

    def __post_init__(self) -> None:
        if self.layout not in [x.value for x in Layout]:
            raise UserError(f"mask layout {self.layout!r}; allowed are {', '.join(x.value for x in Layout)}")
        _check_ratio(self.ratio)

    def visible(self, rng: Key, /, *, grid: Grid) -> Array:
        """Ids i32 [B V] of visible tokens; `rng` holds a key per row."""
        layout = Layout(self.layout)
        of = {Layout.TOKEN: grid.tokens, Layout.FRAME: grid.t}.get(layout, grid.slice)
        keep = kept(self.ratio, of=of, truncate=self.truncate)
        return select(rng, jnp.zeros((rng.shape[0], grid.t, grid.slice)), keep=keep, layout=layout)

    def count(self, grid: Grid, /) -> int:
        """Visible tokens of a clip."""
        return jax.eval_shape(lambda: self.visible(jax.random.key(0)[None], grid=grid)).shape[1]


@dataclasses.dataclass(frozen=True)
class Centre:
    """HVM-1's completion mask: the middle of the clip is hidden, both temporal ends are visible (hvm-1 models_mae).

    The map is the distance to the nearer end of the flattened index, so a time step on the border may be visible in part.
    Every distance occurs twice; of equals the earlier token is kept.
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def visible(self, rng: Key, /, *, grid: Grid) -> Array:
        """Ids i32 [B V] of visible tokens, the same for every row; of `rng` [B] only the length counts."""
        place = np.arange(grid.tokens)
        return _nearest_first(np.minimum(place, place[::-1]), rows=rng.shape[0], grid=grid, ratio=self.ratio)


@dataclasses.dataclass(frozen=True)
class Future:
    """HVM-1's `temporal` mask: the first tokens are visible, the rest of the clip is hidden (hvm-1 models_mae)."""

    ratio: float = 0.5

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def visible(self, rng: Key, /, *, grid: Grid) -> Array:
        """Ids i32 [B V] of visible tokens, the same for every row; of `rng` [B] only the length counts."""
        return _nearest_first(np.arange(grid.tokens), rows=rng.shape[0], grid=grid, ratio=self.ratio)


def _nearest_first(distance: np.ndarray, /, *, rows: int, grid: Grid, ratio: float) -> Array:
    """Ids i32 [rows V] of the int(N * (1 - ratio)) tokens with the smallest distance [N], exactly."""
    logits = jnp.broadcast_to(jnp.asarray(-distance, jnp.float32).reshape(1, grid.t, grid.slice), (rows, grid.t, grid.slice))
    return select(None, logits, keep=kept(ratio, of=grid.tokens, truncate="visible"), layout=Layout.TOKEN)


def _check_ratio(ratio: float, /) -> None:
    if not 0 <= ratio < 1:
        raise UserError(f"mask ratio {ratio}; allowed are 0 to below 1")


# -- decoder strategies: which tokens the decoder predicts ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Hidden:
    """All tokens that the encoder does not see (VideoMAE V1)."""

    def target(self, rng: Key, visible: Array, /, *, grid: Grid) -> Array:
        """Ids i32 [B M] of the tokens to predict."""
        return complement(visible, tokens=grid.tokens)


@dataclasses.dataclass(frozen=True)
class RunningCell:
    """VideoMAE V2's running cell: a 2x2 pattern that shifts by one position each time step; `ratio` is *not* decoded.

    Only 0.25, 0.5 and 0.75 exist. There are four masks, one per start of the pattern; each clip draws one. The pointer
    advances before it is read, so time step k of a clip that starts at p uses p + k + 1 (V2 masking_generator).
    """

    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.ratio not in (0.25, 0.5, 0.75):
            raise UserError(f"running cell ratio {self.ratio}; allowed are 0.25, 0.5 and 0.75")

    def maps(self, grid: Grid, /) -> np.ndarray:
        """bool [4 t h w]: True where the token is decoded, for each start of the pattern."""
        if grid.h % 2 or grid.w % 2:
            raise UserError(f"running cell on a grid of {grid.h}x{grid.w} tokens; both must be even")
        queue = np.arange(4) < int(4 * self.ratio)  # True = masked = not decoded
        start = np.arange(4)[:, None] + np.arange(grid.t)[None] + 1
        cell = queue[(start[..., None] + np.arange(4)) % 4].reshape(4, grid.t, 2, 2)
        return ~np.tile(cell, (1, 1, grid.h // 2, grid.w // 2))

    def target(self, rng: Key, visible: Array, /, *, grid: Grid) -> Array:
        """Ids i32 [B M] of the tokens to predict."""
        maps = self.maps(grid).reshape(4, grid.tokens)
        ids = jnp.asarray(np.stack([np.flatnonzero(m) for m in maps]), jnp.int32)
        start = jax.vmap(lambda key: jax.random.randint(key, (), 0, 4))(rng)
        return ids[start]


@dataclasses.dataclass(frozen=True)
class RandomDecoded:
    """Uniform decoder mask of the ablation: TOKEN or FRAME layout, `ratio` not decoded, independent of the encoder's."""

    ratio: float = 0.5
    layout: str = "token"

    def __post_init__(self) -> None:
        Random(ratio=self.ratio, layout=self.layout)  # the same limits

    def target(self, rng: Key, visible: Array, /, *, grid: Grid) -> Array:
        """Ids i32 [B M] of the tokens to predict."""
        return Random(ratio=self.ratio, layout=self.layout).visible(rng, grid=grid)


def draw(rng: Key, /, *, encoder: Random | Centre | Future, decoder: Hidden | RunningCell | RandomDecoded, grid: Grid) -> Mask:
    """Dual mask of a batch; `rng` holds one key per row [B].

    The weight is 1 where the encoder does not see the target and 0 where it does, as in V2's loss.
    """
    keys = jax.vmap(lambda key: jax.random.split(key, 2))(rng)
    visible = encoder.visible(keys[:, 0], grid=grid)
    target = decoder.target(keys[:, 1], visible, grid=grid)
    hidden = 1.0 - indicator(visible, tokens=grid.tokens)
    return Mask(visible=visible, target=target, weight=take(hidden, ids=target), visible_valid=jnp.ones(visible.shape, bool))
