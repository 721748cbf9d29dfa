"""Video to tubelet patches and back; position tables."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import parallel
from videomae_jax.errors import UserError
from videomae_jax.masking import Grid
from videomae_jax.types import Array, Batch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Tubelets:
    """Token grid and patch of what has `frames`, `size`, `channels` and a `patch` (time, rows, columns)."""

    @property
    def grid(self) -> Grid:
        """Token grid of a clip."""
        return grid_of(frames=self.frames, size=self.size, patch=self.patch)

    @property
    def values(self) -> int:
        """Values of a patch, P."""
        return self.patch[0] * self.patch[1] * self.patch[2] * self.channels


def grid_of(*, frames: int, size: int, patch: tuple[int, int, int]) -> Grid:
    """Token grid of a clip of `frames` frames of `size` x `size` pixels under a (time, row, column) patch."""
    if frames % patch[0] or size % patch[1] or size % patch[2]:
        raise UserError(f"clip {frames}x{size}x{size} is not a multiple of the patch {patch[0]}x{patch[1]}x{patch[2]}")
    return Grid(frames // patch[0], size // patch[1], size // patch[2])


def patchify(video: Array, /, *, patch: tuple[int, int, int]) -> Array:
    """[B T H W C] -> [B N P], tokens in raster order (t, h, w), values in the order (frame, row, column, channel)."""
    if video.dtype == jnp.uint8 and parallel.target().platform == "tpu":
        return _relaid(video, patch=patch)
    b, frames, height, width, c = video.shape
    p0, p1, p2 = patch
    x = video.reshape(b, frames // p0, p0, height // p1, p1, width // p2, p2, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, -1, p0 * p1 * p2 * c)


def _relaid(video: Array, /, *, patch: tuple[int, int, int]) -> Array:
    """`patchify` of bytes on a TPU, whose memory has tiles of 16 x 128 values: as one transposition pieces of 16 x 3 bytes would each fill a tile.

    Clips and times come innermost, which leaves patches to be moved whole; then they go back, and a product with a matrix of zeros
    and ones brings the channels of a pixel together. Bytes are exact in bfloat16. By the compiler's own cycles a third of the time.
    """
    b, frames, height, width, c = video.shape
    p0, p1, p2 = patch
    apart, values = jax.lax.optimization_barrier, math.prod(patch) * c  # which keeps the steps from becoming one transposition
    x = video.transpose(0, 1, 4, 2, 3).astype(jnp.bfloat16)
    x = apart(x.reshape(b * (frames // p0), -1).T)
    x = apart(x.reshape(p0 * c, height // p1, p1, width // p2, p2, -1).transpose(1, 3, 0, 2, 4, 5))
    x = apart(x.reshape(-1, values, x.shape[-1]).transpose(2, 0, 1)).reshape(b, -1, values)
    place = np.arange(values).reshape(p0, p1, p2, c).transpose(0, 3, 1, 2).ravel()
    return jnp.einsum("bnp,pq->bnq", x, jnp.asarray(place[:, None] == np.arange(values), jnp.bfloat16)).astype(video.dtype)


def stored(video: Array, /, *, to: Tubelets) -> Array:
    """Patches [B N P] of clips in their own dtype: where few are taken, `to_unit` comes afterwards, so that no grid of floats is ever made.

    Raises UserError for clips of another shape than `to`'s.
    """
    wanted = (to.frames, to.size, to.size, to.channels)
    if video.shape[1:] != wanted:
        raise UserError(f"clips of {video.shape[1:]} reach an encoder built for {wanted} (frames, rows, columns, channels)")
    return patchify(video, patch=to.patch)


def unpatchify(patches: Array, /, *, grid: Grid, patch: tuple[int, int, int]) -> Array:
    """Inverse of `patchify`: [B N P] -> [B T H W C]."""
    p0, p1, p2 = patch
    x = patches.reshape(patches.shape[0], grid.t, grid.h, grid.w, p0, p1, p2, -1)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(x.shape[0], grid.t * p0, grid.h * p1, grid.w * p2, -1)


def to_unit(video: Array, /) -> Array:
    """uint8 in 0..255 -> float32 in [0, 1]; float input is taken to be in [0, 1] already."""
    if video.dtype == jnp.uint8:
        return video.astype(jnp.float32) * jnp.float32(1 / 255)
    return video.astype(jnp.float32)


def standardise(patches: Array, /, *, mean: tuple[float, ...], std: tuple[float, ...]) -> Array:
    """Loader normalisation of patches [B N P] in [0, 1] with per-channel statistics, channel fastest."""
    repeat = patches.shape[-1] // len(mean)
    scale = np.tile(1 / np.asarray(std, np.float64), repeat).astype(np.float32)
    shift = np.tile(np.asarray(mean, np.float64) / np.asarray(std, np.float64), repeat).astype(np.float32)
    return patches * scale - shift


def present(batch: Batch, /, *, grid: Grid, patch: tuple[int, int, int]) -> Array | None:
    """Tokens bool [B N] that show at least one real frame, where a batch says how many of its frames are real; else None = all.

    `batch["length"]` i32 [B] is that number: the tail of a long video is padded to a whole clip (`extract`).
    """
    if "length" not in batch:
        return None
    real = jnp.arange(grid.t) * patch[0] < batch["length"][:, None]
    return jnp.repeat(real, grid.slice, axis=1)


def lengths(given: Any, /, *, rows: int, frames: int) -> np.ndarray:
    """`length` i32 [rows] of clips, from a number or one a clip. Raises UserError: a clip without a real frame has no mean token."""
    found = np.asarray(given)
    whole = found.dtype.kind in "iuf" and ((found >= 1) & (found <= frames) & (found == np.floor(found))).all()
    if not whole or found.shape not in ((), (1,), (rows,)):
        raise UserError(f"length {found.tolist()} of {rows} clips; allowed are whole numbers from 1 to {frames}, one for all or one a clip")
    return np.broadcast_to(found.astype(np.int32), (rows,))


def mean(tokens: Array, valid: Array | None, /) -> Array:
    """Mean [B D] over the `valid` bool [B N] tokens [B N D]; None = all of them."""
    if valid is None:
        return tokens.mean(1)
    return jnp.where(valid[..., None], tokens, 0).sum(1) / valid.sum(1, keepdims=True)


@functools.lru_cache(maxsize=16)
def sincos(tokens: int, width: int, /) -> np.ndarray:
    """VideoMAE's fixed table f32 [N D]: 1-D over the flattened (t, h, w) index, sine and cosine interleaved.

    angle(pos, j) = pos / 10000 ** (2 * (j // 2) / D); sine for even j, cosine for odd j; computed in float64, because
    positions reach 2047 (V1 and V2 modeling_finetune).
    """
    channel = np.arange(width)
    angle = np.arange(tokens, dtype=np.float64)[:, None] / np.power(10000.0, 2 * (channel // 2) / width)[None]
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


def looked_up(table: np.ndarray, ids: Array, /, *, dtype: jnp.dtype) -> Array:
    """Rows [B V D] of a constant table f32 [N D] at `ids` i32 [B V], in `dtype`.

    The compiler is kept from looking them up itself where the ids are constants too: for all tokens of long clips that takes it longer than the rest.
    """
    return jax.lax.optimization_barrier(jnp.asarray(table).astype(dtype))[ids]
