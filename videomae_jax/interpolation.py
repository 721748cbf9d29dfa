"""Resizing along one axis as PyTorch's `interpolate` does it (align_corners=False, no antialiasing), in numpy.

Position tables were resized with it when published models were tuned at other sizes, and frames before features were taken.
"""

import numpy as np

from videomae_jax.errors import UserError

KINDS = ("linear", "cubic")
SHARPNESS = -0.75  # of PyTorch's bicubic kernel; Keys' kernel, which jax.image uses, has -0.5


def taps(old: int, new: int, /, *, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Places i64 [new K] among `old` values and their weights f64 [new K]; K is 2 for "linear" and 4 for "cubic".

    New value i lies at (i + 1/2) old / new - 1/2; places beyond the ends repeat the end.
    """
    if kind not in KINDS or old < 1 or new < 1:
        raise UserError(f"{kind!r} resizing from {old} to {new} values; allowed are {', '.join(KINDS)} and lengths of 1 and more")
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    if kind == "linear":
        at = np.maximum(at, 0.0)
        first = np.floor(at).astype(np.int64)
        part = at - first
        offsets, weights = (0, 1), [1 - part, part]
    else:
        first = np.floor(at).astype(np.int64)
        part = at - first
        offsets, weights = (-1, 0, 1, 2), [_far(1 + part), _near(part), _near(1 - part), _far(2 - part)]
    places = np.clip(first[:, None] + np.asarray(offsets), 0, old - 1)
    return places, np.stack(weights, 1)


def _near(x: np.ndarray, /) -> np.ndarray:
    """The cubic kernel for distances up to 1."""
    return ((SHARPNESS + 2) * x - (SHARPNESS + 3)) * x * x + 1


def _far(x: np.ndarray, /) -> np.ndarray:
    """The cubic kernel for distances from 1 to 2."""
    return ((SHARPNESS * x - 5 * SHARPNESS) * x + 8 * SHARPNESS) * x - 4 * SHARPNESS


def resize(x: np.ndarray, /, *, axis: int, size: int, kind: str) -> np.ndarray:
    """`x` with `size` values along `axis`, in the precision of a floating `x`; `x` itself where nothing changes."""
    if x.shape[axis] == size:
        return x
    places, weights = taps(x.shape[axis], size, kind=kind)
    shape = [1] * x.ndim
    shape[axis] = size
    return sum(np.take(x, places[:, k], axis=axis) * weights[:, k].astype(x.dtype).reshape(shape) for k in range(places.shape[1]))
