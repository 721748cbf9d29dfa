"""Crops as geometry: which part of a frame each of them shows, without touching a pixel."""

import dataclasses
import functools
from typing import Any

import numpy as np

from videomae_jax.data import augment, three_crop, transforms
from videomae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of a frame that a crop shows, in pixels of the frame, and whether it is mirrored.

    `seen` says what the filter of the resize sees: the "crop" alone, because it is cut out first, or the "frame" around it,
    because the frame is resized first. `changes` (name, argument) are operations of `augment` on the whole frame before the
    crop, which is then resized without antialiasing; None for a crop that has no such operations.
    """

    left: float
    top: float
    width: float
    height: float
    mirrored: bool = False
    seen: str = "crop"
    changes: tuple[tuple[str, float], ...] | None = None

    def nearest(self, maps: np.ndarray, /, *, frame: tuple[int, int], size: int) -> np.ndarray:
        """[T size size] of maps [T h w] over frames of (height, width) pixels: the value under the centre of every output pixel.

        The maps may be coarser or finer than the frames; both span the same picture. Raises UserError for a crop that moves pixels.
        """
        if self.changes is not None:
            raise UserError("maps cannot follow a crop with RandAugment, which moves pixels; allowed are crops without it")
        steps = (np.arange(size) + 0.5) / size
        rows = (self.top + steps * self.height) * maps.shape[1] / frame[0]
        columns = (self.left + (steps[::-1] if self.mirrored else steps) * self.width) * maps.shape[2] / frame[1]
        rows, columns = (np.clip(np.floor(x).astype(np.int64), 0, n - 1) for x, n in zip((rows, columns), maps.shape[1:], strict=True))
        return maps[:, rows[:, None], columns]

    def reach(self, *, width: int, height: int, size: int) -> tuple[int, int, int, int]:
        """(left, top, right, bottom): the pixels that a resize to `size` squared reads of frames of `width` x `height`."""
        if self.seen == "crop":
            return int(self.left), int(self.top), int(self.left + self.width), int(self.top + self.height)
        # The bilinear filter is two output pixels wide, two input pixels where it enlarges.
        x, y = (max(side / size, 1) for side in (self.width, self.height))
        low, high = (np.floor([self.left - x, self.top - y]), np.ceil([self.left + self.width + x, self.top + self.height + y]))
        left, top = np.maximum(low, 0).astype(int).tolist()
        right, bottom = np.minimum(high, [width, height]).astype(int).tolist()
        return left, top, right, bottom


@functools.singledispatch
def window(crop: Any, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    """The window of a crop object on frames of `width` x `height`; draws from `rng` what the crop draws. Raises UserError for other crops."""
    raise UserError(f"no window is known of the crop {type(crop).__name__}; allowed are {', '.join(known())}")


def known() -> list[str]:
    """Names of the crops that have a window."""
    return sorted(kind.__name__ for kind in window.registry if kind is not object)


@functools.singledispatch
def most(crop: Any, /) -> int | None:
    """Changes of a window of this crop at most; None where it never has any."""
    return None


@most.register
def _(crop: augment.AugmentedCrop, /) -> int:
    return crop.policy.count


@window.register
def _(crop: transforms.MultiScaleCrop, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    return Window(**vars(crop.box(width=width, height=height, size=size, rng=rng)))


@window.register
def _(crop: transforms.RandomResizedCrop, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    box = crop.box(width=width, height=height, rng=rng)
    return Window(**vars(box), mirrored=bool(rng.random() < crop.flip))


@window.register
def _(crop: augment.AugmentedCrop, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    changes = tuple(crop.policy.draw(rng))
    box = transforms.RandomResizedCrop(area=crop.area, ratio=crop.ratio).box(width=width, height=height, rng=rng)
    return Window(**vars(box), mirrored=bool(rng.random() < crop.flip), changes=changes)


@window.register
def _(crop: transforms.WholeFrame, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    return Window(0, 0, width, height)


@window.register
def _(crop: transforms.CentreCrop, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    wide, high = (int(size * side / min(width, height)) for side in (width, height))
    return _resized((round((wide - size) / 2), round((high - size) / 2)), (wide, high), width=width, height=height, size=size)


@window.register
def _(crop: three_crop.ThreeCrop, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    wide, high = (int(size * side / min(width, height)) for side in (width, height))
    left, top = (int(crop.view * (side - size) / max(crop.views - 1, 1)) for side in (wide, high))
    return _resized((left, top), (wide, high), width=width, height=height, size=size)


def _resized(corner: tuple[int, int], sides: tuple[int, int], /, *, width: int, height: int, size: int) -> Window:
    """A square at whole pixels of the frame that was resized to `sides`."""
    x, y = width / sides[0], height / sides[1]
    return Window(corner[0] * x, corner[1] * y, size * x, size * y, seen="frame")
