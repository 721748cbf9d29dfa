"""Crops: their boxes against the official rule, their pixels against PIL on single frames."""

import collections

import numpy as np
import pytest
from PIL import Image

from videomae_jax.data import transforms
from videomae_jax.errors import UserError


@pytest.fixture
def video() -> np.ndarray:
    """Noise u8 [3 256 340 3]; every frame differs."""
    return np.random.default_rng(0).integers(0, 256, (3, 256, 340, 3), np.uint8)


def test_multi_scale_pairs() -> None:
    """Ten (width, height) pairs from int(short side x scale); lengths closer than 3 to the output are snapped to it."""
    crop = transforms.MultiScaleCrop()
    lengths = [256, 224, 192, 168]
    expected = [(w, h) for i, h in enumerate(lengths) for j, w in enumerate(lengths) if abs(i - j) <= 1]
    assert crop.pairs(width=340, height=256, size=224) == expected
    assert len(expected) == 10
    assert {w for w, _ in crop.pairs(width=400, height=258, size=224)} == {258, 224, 193, 170}, "int(258 * 0.875) = 225 is snapped"
    assert {w for w, _ in crop.pairs(width=400, height=260, size=224)} == {260, 227, 195, 171}, "227 is 3 away and stays"
    assert {w for w, _ in crop.pairs(width=320, height=222, size=224)} >= {224}


def test_multi_scale_offsets() -> None:
    """Thirteen places on a lattice of quarter steps, rounded down."""
    places = transforms.MultiScaleCrop.offsets(room_x=103, room_y=42)
    x, y = 25, 10
    assert places == [(0, 0), (4 * x, 0), (0, 4 * y), (4 * x, 4 * y), (2 * x, 2 * y), (0, 2 * y), (4 * x, 2 * y), (2 * x, 4 * y), (2 * x, 0),
                      (x, y), (3 * x, y), (x, 3 * y), (3 * x, 3 * y)]


def test_multi_scale_boxes_are_uniform_and_inside() -> None:
    """All 10 x 13 boxes are drawn about equally often; none leaves the frame, also when snapping enlarges it."""
    crop, rng = transforms.MultiScaleCrop(), np.random.default_rng(0)
    count = collections.Counter(crop.box(width=340, height=256, size=224, rng=rng) for _ in range(13_000))
    sizes = collections.Counter((b.width, b.height) for b in count.elements())
    assert len(sizes) == 10 and max(sizes.values()) < 1.15 * min(sizes.values())
    assert all(0 <= b.left and b.left + b.width <= 340 and 0 <= b.top and b.top + b.height <= 256 for b in count)
    for _ in range(200):
        box = crop.box(width=300, height=222, size=224, rng=rng)
        assert box.left + box.width <= 300 and box.top + box.height <= 222


def test_multi_scale_pixels(video: np.ndarray) -> None:
    """Crop first, then PIL's bilinear filter: nothing beyond the border enters. One crop for all frames."""
    crop = transforms.MultiScaleCrop()
    box = crop.box(width=340, height=256, size=112, rng=np.random.default_rng(5))
    out = crop(video, size=112, rng=np.random.default_rng(5))
    for frame, result in zip(video, out, strict=True):
        cut = Image.fromarray(frame).crop((box.left, box.top, box.left + box.width, box.top + box.height))
        np.testing.assert_array_equal(result, np.asarray(cut.resize((112, 112), Image.Resampling.BILINEAR)))
    surroundings = video.copy()
    surroundings[:, : box.top], surroundings[:, box.top + box.height:] = 0, 0
    surroundings[:, :, : box.left], surroundings[:, :, box.left + box.width:] = 255, 255
    np.testing.assert_array_equal(out, crop(surroundings, size=112, rng=np.random.default_rng(5)))


def test_centre_crop(video: np.ndarray) -> None:
    """Short side to the size, then the middle; the generator is left alone."""
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    out = transforms.CentreCrop()(video, size=128, rng=rng)
    small = np.asarray(Image.fromarray(video[1]).resize((170, 128), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(out[1], small[:, 21:149])
    assert rng.bit_generator.state == before
    tall = transforms.CentreCrop()(video.swapaxes(1, 2), size=128, rng=rng)
    assert tall.shape == (3, 128, 128, 3)
    # Those of V1 and V2 look at the four nearest pixels alone, however much smaller the frame becomes.
    small = transforms.linear(video, width=170, height=128)
    np.testing.assert_array_equal(transforms.CentreCrop(antialias=False)(video, size=128, rng=rng), small[:, :, 21:149])
    assert np.abs(small.astype(int) - transforms.resize(video, width=170, height=128)).mean() > 5


def test_whole_frame(video: np.ndarray) -> None:
    """Everything is kept, the aspect ratio is not."""
    out = transforms.WholeFrame()(video, size=64, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(out[2], np.asarray(Image.fromarray(video[2]).resize((64, 64), Image.Resampling.BILINEAR)))


def test_random_resized_crop(video: np.ndarray) -> None:
    """Areas and ratios stay in their ranges; a frame too narrow for them gives its central part; flips mirror."""
    crop, rng = transforms.RandomResizedCrop(area=(0.5, 1.0)), np.random.default_rng(0)
    for _ in range(300):
        box = crop.box(width=340, height=256, rng=rng)
        assert 0.49 <= box.width * box.height / (340 * 256) <= 1.0 and 0.74 <= box.width / box.height <= 1.34
        assert box.left + box.width <= 340 and box.top + box.height <= 256
    assert crop.box(width=400, height=30, rng=rng) == transforms.Box(180, 0, 40, 30)
    plain = crop(video, size=96, rng=np.random.default_rng(3))
    mirrored = transforms.RandomResizedCrop(area=(0.5, 1.0), flip=1.0)(video, size=96, rng=np.random.default_rng(3))
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])
    with pytest.raises(UserError, match="allowed"):
        transforms.RandomResizedCrop(area=(0.0, 1.0))


@pytest.mark.parametrize("crop", [transforms.MultiScaleCrop(), transforms.CentreCrop(), transforms.WholeFrame(), transforms.RandomResizedCrop()])
@pytest.mark.parametrize("shape", [(1, 1), (98, 126), (224, 224), (500, 40)])
def test_any_frame_size(crop: object, shape: tuple[int, int]) -> None:
    """Small, odd, exact and extreme frames give a contiguous square of their own."""
    video = np.zeros((2, *shape, 3), np.uint8)
    out = crop(video, size=224, rng=np.random.default_rng(0))
    assert out.shape == (2, 224, 224, 3) and out.dtype == np.uint8 and out.flags.c_contiguous


@pytest.mark.parametrize("crop", [transforms.MultiScaleCrop(), transforms.RandomResizedCrop(flip=0.5)])
def test_draws_come_from_the_generator_alone(crop: object, video: np.ndarray) -> None:
    """Equal generators give equal crops."""
    first, second = (crop(video, size=64, rng=np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
