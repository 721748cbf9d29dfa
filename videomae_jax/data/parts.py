"""Part maps that travel with the crops of their video."""

import dataclasses
import functools
import zipfile
from typing import Any

import numpy as np

from videomae_jax.data import decode, index, sources, transforms
from videomae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Window:
    """The part of a frame that a crop shows, in pixels of the frame, and whether it is mirrored."""

    left: float
    top: float
    width: float
    height: float
    mirrored: bool = False

    def nearest(self, maps: np.ndarray, /, *, frame: tuple[int, int], size: int) -> np.ndarray:
        """[T size size] of maps [T h w] over frames of (height, width) pixels: the value under the centre of every output pixel.

        The maps may be coarser or finer than the frames; both span the same picture.
        """
        steps = (np.arange(size) + 0.5) / size
        rows = (self.top + steps * self.height) * maps.shape[1] / frame[0]
        columns = (self.left + (steps[::-1] if self.mirrored else steps) * self.width) * maps.shape[2] / frame[1]
        rows, columns = (np.clip(np.floor(x).astype(np.int64), 0, n - 1) for x, n in zip((rows, columns), maps.shape[1:], strict=True))
        return maps[:, rows[:, None], columns]


@functools.singledispatch
def window(crop: Any, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    """The window of a crop object on frames of `width` x `height`; draws from `rng` what the crop draws. Raises UserError for other crops."""
    raise UserError(f"part maps cannot follow the crop {type(crop).__name__}; allowed are {', '.join(sorted(k.__name__ for k in window.registry if k is not object))}")


@window.register
def _(crop: transforms.MultiScaleCrop, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    return Window(**vars(crop.box(width=width, height=height, size=size, rng=rng)))


@window.register
def _(crop: transforms.RandomResizedCrop, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    box = crop.box(width=width, height=height, rng=rng)
    return Window(**vars(box), mirrored=bool(rng.random() < crop.flip))


@window.register
def _(crop: transforms.WholeFrame, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    return Window(0, 0, width, height)


@window.register
def _(crop: transforms.CentreCrop, /, *, width: int, height: int, size: int, rng: np.random.Generator) -> Window:
    # The crop lies on whole pixels of the resized frame.
    wide, high = (int(size * side / min(width, height)) for side in (width, height))
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return Window(left * width / wide, top * height / high, size * width / wide, size * height / high)


@dataclasses.dataclass(frozen=True)
class PartClips(sources.VideoClips):
    """Clips with part maps: `video` and `label` of VideoClips, bit for bit, and `parts` u8 [K T size size] under the same crops.

    `parts` names the index column with the file of a video's maps, relative to the index: an .npz with an array called
    `array` ("objects" = the instances of moving shapes) or an .npy, u8 [frames h w] in the orientation of the displayed
    picture. Maps are cut and resized by the nearest value.
    """

    parts: str = "truth"
    array: str = "parts"

    @property
    def fields(self) -> dict[str, sources.Field]:
        return super().fields | {"parts": sources.Field((self.frames, self.size, self.size), "uint8", "labels")}

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        before = rng.bit_generator.state
        example, record = super().read(row, rng=rng), self.record(row)
        after = rng.bit_generator.state
        rng.bit_generator.state = before  # the draws of the video once more
        info = index.info_of(record)
        ids = self.sampling.ids(info.frames, clip=self.frames, rng=rng)
        maps = self.maps(record, frames=info.frames)[ids]
        windows = [window(self.crop, width=info.width, height=info.height, size=self.size, rng=rng) for _ in range(self.repeats)]
        if repr(rng.bit_generator.state) != repr(after):
            raise RuntimeError(f"{type(self.crop).__name__} draws otherwise for the video than for its window")
        parts = np.stack([w.nearest(maps, frame=(info.height, info.width), size=self.size) for w in windows])
        return {**example, "parts": parts}

    def maps(self, record: dict[str, Any], /, *, frames: int) -> np.ndarray:
        """u8 [frames h w] of a row of the index. Raises DecodeError for a missing or damaged file, UserError for a missing column."""
        if self.parts not in record:
            raise UserError(f"index {self.index} has no column {self.parts!r} with part maps; it has {', '.join(record)}")
        path = self._opened.home / (record[self.parts] or "")
        try:
            loaded = np.load(path)
            maps = loaded if isinstance(loaded, np.ndarray) else loaded[self.array]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zipfile.zlib.error) as error:
            raise decode.DecodeError(str(path), "open", f"no part maps: {error}") from error
        if maps.dtype != np.uint8 or maps.ndim != 3 or len(maps) < frames:
            raise decode.DecodeError(str(path), "short", f"part maps {maps.dtype} {list(maps.shape)} for {frames} frames; needed is u8 [frames h w]")
        return maps
