"""Spectrogram to patches and back.

A spectrogram is a video one pixel high: grid t is time and grid w frequency, so that the layouts of `masking` apply
(FRAME hides whole times) and tokens are in raster order (time, frequency), values in the order (frame, mel).
"""

import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.masking import Grid
from videomae_jax.models import patches
from videomae_jax.types import Array


def grid_of(*, frames: int, mels: int, patch: tuple[int, int]) -> Grid:
    """Token grid under a (time, mel) patch; frames beyond the last whole patch are left out (Audiovisual MAE: 1000 / 16 -> 62)."""
    if mels % patch[1] or frames < patch[0]:
        raise UserError(f"spectrogram {frames}x{mels} and patch {patch[0]}x{patch[1]}; needed are a multiple of {patch[1]} mels and {patch[0]} frames or more")
    return Grid(frames // patch[0], 1, mels // patch[1])


def patchify(spectrogram: Array, /, *, patch: tuple[int, int]) -> Array:
    """[B S mels] -> [B N P], P = patch[0] * patch[1]; trailing frames that fill no patch are left out."""
    grid = grid_of(frames=spectrogram.shape[1], mels=spectrogram.shape[2], patch=patch)
    return patches.patchify(spectrogram[:, : grid.t * patch[0], None, :, None], patch=(patch[0], 1, patch[1]))


def unpatchify(tokens: Array, /, *, grid: Grid, patch: tuple[int, int]) -> Array:
    """Inverse of `patchify`: [B N P] -> [B t * patch[0], mels]."""
    return patches.unpatchify(tokens, grid=grid, patch=(patch[0], 1, patch[1]))[:, :, 0, :, 0]


def valid_tokens(valid: Array, /, *, grid: Grid, patch: tuple[int, int]) -> Array:
    """bool [B S] of frames -> bool [B N]: a token is valid where all of its frames are."""
    whole = valid[:, : grid.t * patch[0]].reshape(valid.shape[0], grid.t, patch[0]).all(-1)
    return jnp.repeat(whole, grid.slice, axis=1)
