"""RandAugment and the crop of fine-tuning, on the host: u8 [T H W 3] -> u8 [T size size 3], one draw for all frames of a clip.

Every operation changes each frame as Pillow does, to the bit. What does not mix neighbouring rows runs once on all frames, laid
one below the other, and thresholds and masks run on the array itself.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from videomae_jax.data import transforms
from videomae_jax.errors import UserError

MOST = 10.0  # magnitudes are 0 to 10
FILL = (128, 128, 128)  # what an affine map brings in from outside the frame


def tall(video: np.ndarray, /) -> Image.Image:
    """All frames, one below the other."""
    return Image.fromarray(np.ascontiguousarray(video).reshape(-1, *video.shape[2:]))


def frames_of(image: Image.Image, video: np.ndarray, /) -> np.ndarray:
    """The frames of a tall image, in the shape of `video`."""
    return np.asarray(image).reshape(video.shape)


def each(video: np.ndarray, change: Callable[[Image.Image], Image.Image], /) -> np.ndarray:
    """Every frame changed on its own."""
    return np.stack([np.asarray(change(Image.fromarray(np.ascontiguousarray(frame)))) for frame in video])


def _affine(video: np.ndarray, matrix: tuple[float, ...], /) -> np.ndarray:
    return each(video, lambda i: i.transform(i.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=FILL))


def rotate(video: np.ndarray, degrees: float, /) -> np.ndarray:
    """Round the centre, anticlockwise."""
    return each(video, lambda i: i.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=FILL))


def posterize(video: np.ndarray, bits: float, /) -> np.ndarray:
    """Keeps the `bits` leading bits; 0 is black, which Pillow no longer takes and V2's version did."""
    return video & np.uint8(256 - 2 ** (8 - int(bits)))


def solarize(video: np.ndarray, threshold: float, /) -> np.ndarray:
    """Inverts what is not below the threshold, 0 to 256."""
    return np.where(video < threshold, video, 255 - video)


def solarize_add(video: np.ndarray, amount: float, /) -> np.ndarray:
    """Adds at most 110 to what is below 128."""
    return np.where(video < 128, video + np.uint8(amount), video)


def colour(video: np.ndarray, factor: float, /) -> np.ndarray:
    """Saturation: 0 is grey, 1 no change."""
    return frames_of(ImageEnhance.Color(tall(video)).enhance(factor), video)


def brightness(video: np.ndarray, factor: float, /) -> np.ndarray:
    """0 is black, 1 no change."""
    return frames_of(ImageEnhance.Brightness(tall(video)).enhance(factor), video)


def contrast(video: np.ndarray, factor: float, /) -> np.ndarray:
    """Distance to the mean grey of each frame: 0 leaves that grey alone, 1 is no change."""
    image = tall(video)
    means = np.asarray(image.convert("L")).reshape(len(video), -1).mean(1)
    grey = np.broadcast_to((means + 0.5).astype(np.uint8)[:, None, None, None], video.shape)
    return frames_of(Image.blend(tall(grey), image, factor), video)


def sharpness(video: np.ndarray, factor: float, /) -> np.ndarray:
    """0 is smoothed, 1 no change; the outermost pixels of a frame never change."""
    out = frames_of(ImageEnhance.Sharpness(tall(video)).enhance(factor), video).copy()
    out[:, [0, -1]] = video[:, [0, -1]]  # there the filter saw the next frame
    return out


@dataclasses.dataclass(frozen=True)
class Operation:
    """`apply(video, argument(magnitude, sign))`: magnitudes are 0 to 10, `sign` is 1 or -1."""

    apply: Callable[[np.ndarray, float], np.ndarray]
    argument: Callable[[float, int], float] = lambda magnitude, sign: 0.0


def _enhance(magnitude: float, sign: int, /) -> float:
    return 1 + sign * 0.9 * magnitude / MOST


def _signed(most: float, /) -> Callable[[float, int], float]:
    return lambda magnitude, sign: sign * most * magnitude / MOST


# timm's "increasing" operations in its order (V2 rand_augment). Shear is a share of the other side, shifts one of their own.
OPERATIONS: Mapping[str, Operation] = types.MappingProxyType({
    "AutoContrast": Operation(lambda video, _: each(video, ImageOps.autocontrast)),
    "Equalize": Operation(lambda video, _: each(video, ImageOps.equalize)),
    "Invert": Operation(lambda video, _: 255 - video),
    "Rotate": Operation(rotate, _signed(30.0)),
    "Posterize": Operation(posterize, lambda magnitude, sign: 4 - int(4 * magnitude / MOST)),
    "Solarize": Operation(solarize, lambda magnitude, sign: 256 - int(256 * magnitude / MOST)),
    "SolarizeAdd": Operation(solarize_add, lambda magnitude, sign: int(110 * magnitude / MOST)),
    "Color": Operation(colour, _enhance),
    "Contrast": Operation(contrast, _enhance),
    "Brightness": Operation(brightness, _enhance),
    "Sharpness": Operation(sharpness, _enhance),
    "ShearX": Operation(lambda video, share: _affine(video, (1, share, 0, 0, 1, 0)), _signed(0.3)),
    "ShearY": Operation(lambda video, share: _affine(video, (1, 0, 0, share, 1, 0)), _signed(0.3)),
    "TranslateX": Operation(lambda video, share: _affine(video, (1, 0, share * video.shape[2], 0, 1, 0)), _signed(0.45)),
    "TranslateY": Operation(lambda video, share: _affine(video, (1, 0, 0, 0, 1, share * video.shape[1])), _signed(0.45)),
})


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """timm's `rand-m7-n4-mstd0.5-inc1`: `count` operations drawn with replacement, each applied with a chance, all frames alike.

    An operation's magnitude is N(`magnitude`, `deviation`) cut to 0..10. Source: arXiv 1909.13719, V1 and V2 rand_augment.
    """

    magnitude: float = 7.0
    count: int = 4
    deviation: float = 0.5
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= MOST or self.count < 0 or self.deviation < 0 or not 0 <= self.probability <= 1:
            raise UserError(f"RandAugment with magnitude {self.magnitude}, count {self.count}, deviation {self.deviation}, probability {self.probability}; "
                            "allowed are a magnitude of 0 to 10, a count and a deviation of 0 and more, a probability of 0 to 1")

    def draw(self, rng: np.random.Generator, /) -> list[tuple[str, float]]:
        """(name, argument) of the operations to apply, in order."""
        names, drawn = list(OPERATIONS), []
        for place in rng.integers(len(names), size=self.count):
            applied, noise, positive = rng.random() < self.probability, rng.normal(), rng.random() < 0.5
            magnitude = min(MOST, max(0.0, self.magnitude + self.deviation * noise))
            if applied:
                drawn.append((names[place], OPERATIONS[names[place]].argument(magnitude, 1 if positive else -1)))
        return drawn

    def __call__(self, video: np.ndarray, /, *, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3] -> u8 [T H W 3]."""
        for name, argument in self.draw(rng):
            video = OPERATIONS[name].apply(video, argument)
        return video


@dataclasses.dataclass(frozen=True)
class AugmentedCrop:
    """Input of V1 and V2 fine-tuning: RandAugment at the size of the file, a random resized crop, a mirror image with chance `flip`.

    As there the crop is resized without antialiasing. Deviation: what the crop interpolates is rounded to bytes. Random erasing
    follows on the device (`erasing`), since its noise does not fit into bytes.
    """

    policy: RandAugment = RandAugment()
    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        transforms.RandomResizedCrop(area=self.area, ratio=self.ratio, flip=self.flip)  # the same limits

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3] -> u8 [T size size 3]."""
        video = self.policy(video, rng=rng)
        crop = transforms.RandomResizedCrop(area=self.area, ratio=self.ratio)
        box = crop.box(width=video.shape[2], height=video.shape[1], rng=rng)
        out = transforms.linear(video[:, box.top: box.top + box.height, box.left: box.left + box.width], width=size, height=size)
        return np.ascontiguousarray(out[:, :, ::-1]) if rng.random() < self.flip else out
