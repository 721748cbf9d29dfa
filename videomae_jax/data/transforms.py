"""Spatial augmentation of decoded frames on the host: u8 [T H W 3] -> u8 [T size size 3], the same crop for all frames."""

import dataclasses
import math

import numpy as np
from PIL import Image

from videomae_jax.errors import UserError, allow

TAPS = 1 << 7  # steps between two pixels: 255 * 2^7 still is a 16-bit number


@dataclasses.dataclass(frozen=True)
class Box:
    """A crop in pixels."""

    left: int
    top: int
    width: int
    height: int


def resize(video: np.ndarray, /, *, width: int, height: int) -> np.ndarray:
    """u8 [T height width 3]: every frame with PIL's antialiased bilinear filter."""
    if video.shape[1:3] == (height, width):
        return np.ascontiguousarray(video)
    out = np.empty((len(video), height, width, 3), np.uint8)
    for place, frame in zip(out, video, strict=True):
        place[...] = Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), Image.Resampling.BILINEAR)
    return out


def linear(video: np.ndarray, /, *, width: int, height: int) -> np.ndarray:
    """u8 [T height width 3]: two-tap linear interpolation along both sides, whatever the scale (align_corners=False, no antialiasing).

    Weights are multiples of 2^-7, so that 16-bit integers do; a value is within 2 of the exact one, mostly within 1.
    """
    rows, columns = _taps(video.shape[1], height), _taps(video.shape[2], width)
    tallest = _blend(video[:, rows[0]], video[:, rows[1]], rows[2][:, None, None])
    # Pixels lie three bytes apart: gathering whole ones as records of three bytes moves each at once.
    pixels = tallest.view("V3")[..., 0]
    left, right = (np.take(pixels, ids, axis=2).view(np.uint8).reshape(len(video), height, width, 3) for ids in columns[:2])
    return _blend(left, right, columns[2][:, None])


def _taps(length: int, size: int, /) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids of the two neighbours of every place, and the weight of the second in units of 1 / TAPS."""
    place = np.maximum((np.arange(size) + 0.5) * length / size - 0.5, 0)
    first = np.minimum(place.astype(np.int64), length - 1)
    return first, np.minimum(first + 1, length - 1), np.rint((place - first) * TAPS).astype(np.int16)


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray, /) -> np.ndarray:
    """first + weight / TAPS (second - first), rounded."""
    change = second.astype(np.int16)
    change -= first
    change *= weight
    change += TAPS // 2
    change >>= 7
    change += first
    return change.astype(np.uint8)


def whole(video: np.ndarray, /, *, size: int, antialias: bool) -> np.ndarray:
    """u8 [T height width 3]: whole frames, their short side resized to `size`, the other one in proportion and rounded down."""
    height, width = video.shape[1:3]
    wide, high = (int(size * side / min(width, height)) for side in (width, height))
    return (resize if antialias else linear)(video, width=wide, height=high)


def crop_resize(video: np.ndarray, box: Box, /, *, size: int) -> np.ndarray:
    """Crops, then resizes to `size` squared: the filter sees nothing beyond the crop's border."""
    return resize(video[:, box.top: box.top + box.height, box.left: box.left + box.width], width=size, height=size)


@dataclasses.dataclass(frozen=True)
class MultiScaleCrop:
    """VideoMAE's pretraining crop: a size from `scales` of the short side, aspect distorted by at most `distort` scales.

    Widths and heights are int(short * scale), snapped to `size` when closer than 3 pixels; the place is one of 13 points
    of a 5 x 5 lattice (V2 transforms, GroupMultiScaleCrop with fix_crop and more_fix_crop). No flip.
    """

    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)
    distort: int = 1

    def __post_init__(self) -> None:
        if not self.scales:
            raise UserError("scales are none; allowed is at least one of the short side, such as 1.0")
        allow(self, scales=(0.01, 1), distort=(0, len(self.scales)))

    def pairs(self, *, width: int, height: int, size: int) -> list[tuple[int, int]]:
        """(width, height) of every crop that may be drawn."""
        lengths = [int(min(width, height) * scale) for scale in self.scales]
        lengths = [size if abs(length - size) < 3 else length for length in lengths]
        return [(w, h) for i, h in enumerate(lengths) for j, w in enumerate(lengths) if abs(i - j) <= self.distort]

    @staticmethod
    def offsets(*, room_x: int, room_y: int) -> list[tuple[int, int]]:
        """(left, top) of the 13 places: corners, centre, edge centres, quarter points."""
        x, y = room_x // 4, room_y // 4
        lattice = ((0, 0), (4, 0), (0, 4), (4, 4), (2, 2), (0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3))
        return [(i * x, j * y) for i, j in lattice]

    def box(self, *, width: int, height: int, size: int, rng: np.random.Generator) -> Box:
        """A crop drawn for frames of `width` x `height` pixels."""
        pairs = self.pairs(width=width, height=height, size=size)
        w, h = pairs[rng.integers(len(pairs))]
        w, h = min(w, width), min(h, height)  # snapping up to `size` may leave a frame that is a pixel or two smaller
        places = self.offsets(room_x=width - w, room_y=height - h)
        left, top = places[rng.integers(len(places))]
        return Box(left, top, w, h)

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3] -> u8 [T size size 3]."""
        return crop_resize(video, self.box(width=video.shape[2], height=video.shape[1], size=size, rng=rng), size=size)


@dataclasses.dataclass(frozen=True)
class CentreCrop:
    """The short side resized to `size`, then the central square: validation. V1 and V2 resize without `antialias` (OpenCV)."""

    antialias: bool = True

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3] -> u8 [T size size 3]; `rng` is not used."""
        frames = whole(video, size=size, antialias=self.antialias)
        left, top = (round((side - size) / 2) for side in frames.shape[2:0:-1])
        return np.ascontiguousarray(frames[:, top: top + size, left: left + size])


@dataclasses.dataclass(frozen=True)
class WholeFrame:
    """The whole frame resized to a square; changes the aspect ratio."""

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3] -> u8 [T size size 3]; `rng` is not used."""
        return crop_resize(video, Box(0, 0, video.shape[2], video.shape[1]), size=size)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """A crop of random area and log-uniform aspect ratio; ten tries, then the central crop of allowed ratio.

    V2 fine-tuning uses area (0.08, 1), MAE-ST pretraining (0.5, 1), and `flip` is the chance of a mirror image there. Both
    resize float frames without antialiasing.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.area[0] <= self.area[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"area {self.area}, ratio {self.ratio}; allowed are 0 < low <= high, and areas up to 1")
        allow(self, flip=(0, 1))

    def box(self, *, width: int, height: int, rng: np.random.Generator) -> Box:
        """A crop drawn for frames of `width` x `height` pixels."""
        for _ in range(10):
            area = width * height * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                return Box(int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h)
        w, h = min(width, round(height * self.ratio[1])), min(height, round(width / self.ratio[0]))
        return Box((width - w) // 2, (height - h) // 2, w, h)

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3] -> u8 [T size size 3]."""
        out = crop_resize(video, self.box(width=video.shape[2], height=video.shape[1], rng=rng), size=size)
        return np.ascontiguousarray(out[:, :, ::-1]) if rng.random() < self.flip else out
