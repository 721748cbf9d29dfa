"""RandAugment against Pillow frame by frame, its draws, the crop of fine-tuning, and random erasing."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from videomae_jax.data import transforms
from videomae_jax.data.augment import OPERATIONS, AugmentedCrop, RandAugment
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.models.patches import IMAGENET_MEAN, IMAGENET_STD


def textured(*shape: int, seed: int = 0) -> np.ndarray:
    """u8 frames of different brightness and contrast, with structure larger than a pixel."""
    rng = np.random.default_rng(seed)
    t, height, width, _ = shape
    coarse = rng.uniform(0, 1, (t, height // 4 + 1, width // 4 + 1, 3)).repeat(4, 1).repeat(4, 2)[:, :height, :width]
    low, high = rng.uniform(0, 90, (t, 1, 1, 3)), rng.uniform(150, 255, (t, 1, 1, 3))
    return np.uint8(low + (high - low) * (0.8 * coarse + 0.2 * rng.uniform(0, 1, shape)))


def affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    """Pillow's own map."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))


def add(image: Image.Image, amount: int) -> Image.Image:
    """A table of 256 values for each band."""
    return image.point([min(255, i + amount) if i < 128 else i for i in range(256)] * 3)


# What timm calls for one frame, and the argument at magnitudes 7 and 10 with a positive sign.
REFERENCE: dict[str, tuple[Callable[..., Image.Image], float, float]] = {
    "AutoContrast": (lambda i, _: ImageOps.autocontrast(i), 0, 0),
    "Equalize": (lambda i, _: ImageOps.equalize(i), 0, 0),
    "Invert": (lambda i, _: ImageOps.invert(i), 0, 0),
    "Rotate": (lambda i, v: i.rotate(v, resample=Image.Resampling.BICUBIC, fillcolor=(128, 128, 128)), 21, 30),
    "Posterize": (lambda i, v: i.point([x & (256 - 2 ** (8 - v)) for x in range(256)] * 3), 2, 0),
    "Solarize": (lambda i, v: ImageOps.solarize(i, v), 77, 0),
    "SolarizeAdd": (add, 77, 110),
    "Color": (lambda i, v: ImageEnhance.Color(i).enhance(v), 1.63, 1.9),
    "Contrast": (lambda i, v: ImageEnhance.Contrast(i).enhance(v), 1.63, 1.9),
    "Brightness": (lambda i, v: ImageEnhance.Brightness(i).enhance(v), 1.63, 1.9),
    "Sharpness": (lambda i, v: ImageEnhance.Sharpness(i).enhance(v), 1.63, 1.9),
    "ShearX": (lambda i, v: affine(i, (1, v, 0, 0, 1, 0)), 0.21, 0.3),
    "ShearY": (lambda i, v: affine(i, (1, 0, 0, v, 1, 0)), 0.21, 0.3),
    "TranslateX": (lambda i, v: affine(i, (1, 0, v * i.size[0], 0, 1, 0)), 0.315, 0.45),
    "TranslateY": (lambda i, v: affine(i, (1, 0, 0, 0, 1, v * i.size[1])), 0.315, 0.45),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pillow(name: str) -> None:
    """Every frame as if it were alone, to the bit, at several magnitudes and both signs; the arguments are the published ones."""
    call, seven, ten = REFERENCE[name]
    operation, video = OPERATIONS[name], textured(3, 37, 52, 3)
    assert operation.argument(7.0, 1) == pytest.approx(seven, rel=1e-12) and operation.argument(10.0, 1) == pytest.approx(ten, rel=1e-12)
    for magnitude in (0.0, 3.3, 7.0, 10.0):
        for sign in (1, -1):
            argument = operation.argument(magnitude, sign)
            got = operation.apply(video, argument)
            want = np.stack([np.asarray(call(Image.fromarray(frame), argument)) for frame in video])
            assert got.dtype == np.uint8 and got.shape == video.shape
            np.testing.assert_array_equal(got, want, err_msg=f"{name} {magnitude} {sign}")
    assert not np.array_equal(operation.apply(video, operation.argument(7.0, 1)), video)


def test_the_list_is_that_of_timm() -> None:
    """All fifteen, each signed where it has a sign: rotation, enhancement, shear and shift."""
    assert set(OPERATIONS) == set(REFERENCE) and len(OPERATIONS) == 15
    signed = {name for name, op in OPERATIONS.items() if op.argument(7.0, 1) != op.argument(7.0, -1)}
    assert signed == {"Rotate", "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"}


def test_posterize_to_nothing_is_black() -> None:
    """Magnitude 10 keeps no bit: the Pillow of V2 made black of it, the present one raises."""
    assert not OPERATIONS["Posterize"].apply(textured(1, 5, 5, 3), 0).any()


def test_draws_of_a_policy() -> None:
    """Binomial(4, 1/2) operations, uniform over the fifteen, magnitudes N(7, .5), both signs; a generator decides everything."""
    drawn = [RandAugment().draw(np.random.default_rng(i)) for i in range(4000)]
    counts = np.bincount([len(d) for d in drawn], minlength=5) / len(drawn)
    np.testing.assert_allclose(counts, np.array([1, 4, 6, 4, 1]) / 16, atol=0.03)  # 4 deviations of a share of 4000
    names = [name for d in drawn for name, _ in d]
    shares = np.array([names.count(name) for name in OPERATIONS]) / len(names)
    np.testing.assert_allclose(shares, 1 / 15, atol=4 * np.sqrt(1 / 15 / len(names)))
    angles = np.array([v for d in drawn for name, v in d if name == "Rotate"])
    assert abs(np.abs(angles).mean() - 21) < 0.3 and abs(np.abs(angles).std() - 1.5) < 0.2 and abs((angles > 0).mean() - 0.5) < 0.1
    assert RandAugment().draw(np.random.default_rng(3)) == drawn[3] and any(d != drawn[0] for d in drawn[1:5])
    assert RandAugment(probability=0.0).draw(np.random.default_rng(3)) == []
    extreme = [v for i in range(300) for name, v in RandAugment(magnitude=10.0).draw(np.random.default_rng(i)) if name == "Rotate"]
    assert max(map(abs, extreme)) == 30


def test_all_frames_of_a_clip_change_alike() -> None:
    """Equal frames stay equal, through every policy."""
    video = np.broadcast_to(textured(1, 24, 31, 3), (3, 24, 31, 3))
    for seed in range(12):
        out = RandAugment(probability=1.0)(video, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(out, np.broadcast_to(out[:1], out.shape))


def two_taps(image: np.ndarray, size: int, axis: int) -> np.ndarray:
    """align_corners=False, no antialiasing, in float64."""
    place = np.maximum((np.arange(size) + 0.5) * image.shape[axis] / size - 0.5, 0)
    low = place.astype(int)
    share = (place - low).reshape(-1, *(1,) * (image.ndim - 1 - axis))
    return np.take(image, low, axis) * (1 - share) + np.take(image, np.minimum(low + 1, image.shape[axis] - 1), axis) * share


@pytest.mark.parametrize(("height", "width"), [(13, 9), (16, 40), (50, 61), (16, 16), (1, 3)])
def test_linear_interpolation(height: int, width: int) -> None:
    """Within two grey values; frames larger than the crop are not smoothed first, as antialiasing would."""
    video = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), np.uint8)
    got, want = transforms.linear(video, width=16, height=16), two_taps(two_taps(video.astype(np.float64), 16, 1), 16, 2)
    assert got.dtype == np.uint8 and got.shape == (2, 16, 16, 3)
    assert np.abs(got - want).max() <= 2.1 and abs((got - want).mean()) < 0.15  # halves are rounded up
    if (height, width) == (16, 16):
        np.testing.assert_array_equal(got, video)
    if height == 50:
        assert np.abs(got - transforms.resize(video, width=16, height=16).astype(int)).mean() > 10


def test_the_crop_of_fine_tuning() -> None:
    """RandAugment on the whole frame, then the box, then the mirror, all from one generator."""
    video = textured(2, 40, 60, 3)
    rng = np.random.default_rng(5)
    changed = RandAugment()(video, rng=rng)
    box = transforms.RandomResizedCrop().box(width=60, height=40, rng=rng)
    want = transforms.linear(changed[:, box.top: box.top + box.height, box.left: box.left + box.width], width=24, height=24)
    assert not np.array_equal(changed, video)
    np.testing.assert_array_equal(AugmentedCrop(flip=0.0)(video, size=24, rng=np.random.default_rng(5)), want)
    mirrored = AugmentedCrop(flip=1.0)(video, size=24, rng=np.random.default_rng(5))
    np.testing.assert_array_equal(mirrored, want[:, :, ::-1])
    assert mirrored.flags["C_CONTIGUOUS"]
    share = np.mean([np.array_equal(AugmentedCrop(RandAugment(count=0), area=(1.0, 1.0), ratio=(1.5, 1.5))(video, size=8, rng=np.random.default_rng(i)),
                                    transforms.linear(video, width=8, height=8)) for i in range(200)])
    assert 0.36 < share < 0.64


def test_mistakes() -> None:
    """Each with its value."""
    for make, message in ((lambda: RandAugment(magnitude=11.0), "magnitude 11.0"), (lambda: RandAugment(probability=2.0), "probability 2.0"),
                          (lambda: AugmentedCrop(area=(0.0, 1.0)), "area"), (lambda: Erasing(area=(0.5, 0.2)), r"area \(0.5, 0.2\)"),
                          (lambda: Erasing(aspect=0.0), "aspect 0.0")):
        with pytest.raises(UserError, match=message):
            make()


# -- erasing ------------------------------------------------------------------------------------------------------------


def test_boxes() -> None:
    """A quarter of the clips; areas uniform in 2 to 33 %, aspects log-uniform in .3 to 3.3; always inside the frame."""
    erasing = Erasing()
    boxes = np.asarray(jax.jit(jax.vmap(lambda key: erasing.box(key, height=60, width=90)))(jax.random.split(jax.random.key(0), 3000)))
    some = boxes.any((1, 2))
    assert abs(some.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 3000)
    tall, wide = boxes[some].any(2).sum(1), boxes[some].any(1).sum(1)
    np.testing.assert_array_equal(boxes[some].sum((1, 2)), tall * wide)  # one rectangle, not cut by a border
    share = tall * wide / 5400
    assert 0.017 < share.min() < 0.03 and 0.32 < share.max() < 0.345 and abs(share.mean() - 0.1767) < 0.015
    aspect = np.log(tall / wide)
    assert np.abs(aspect).max() < -np.log(0.3) + 0.15 and abs(aspect.mean()) < 0.12 and abs(aspect.std() - 1.204 / np.sqrt(3)) < 0.06
    centres = np.array([np.argwhere(b).mean(0) for b in boxes[some]])
    assert (np.abs(centres.mean(0) - [29.5, 44.5]) < [2.5, 4]).all()


def test_erased_clips() -> None:
    """N(0, 1) in standardised pixels, drawn for every value; the same box in all frames; the rest keeps its bits; rows follow keys."""
    video = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 3, 20, 30, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(2), 6)
    erase = jax.jit(lambda v, k: Erasing(probability=1.0, area=(0.2, 0.33))(v, k, mean=IMAGENET_MEAN, std=IMAGENET_STD))
    out = np.asarray(erase(video, keys))
    inside = (out != np.asarray(video)).any(-1)
    np.testing.assert_array_equal(inside, np.broadcast_to(inside[:, :1], inside.shape))
    assert inside.any((1, 2, 3)).all() and not inside.all((1, 2, 3)).any()
    noise = (out[inside] - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    assert (np.abs(noise.mean(0)) < 0.06).all() and (np.abs(noise.std(0) - 1) < 0.05).all() and np.abs(noise).max() > 3
    assert len(np.unique(noise)) > 0.99 * noise.size and (out < 0).any() and (out > 1).any()
    np.testing.assert_array_equal(np.asarray(erase(video[::-1], keys[::-1])), out[::-1])


def test_never_means_never() -> None:
    """Chance 0 changes nothing."""
    video = jnp.ones((2, 1, 8, 8, 3))
    off = dataclasses.replace(Erasing(), probability=0.0)
    np.testing.assert_array_equal(off(video, jax.random.split(jax.random.key(0)), mean=IMAGENET_MEAN, std=IMAGENET_STD), video)
