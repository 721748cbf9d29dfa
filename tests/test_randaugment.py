"""RandAugment on the device: every operation against the host's, which is Pillow to the bit; the crop of fine-tuning against the host path."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import pytest
from test_augment import textured
from test_planes import encode, scene

from videomae_jax import ingest, parallel, randaugment
from videomae_jax.data import augment, clips, framing, index, mixture, pipeline, planes, sources, transforms
from videomae_jax.data.parts import PartClips
from videomae_jax.errors import UserError

CANVAS, EXTENT = (40, 56), (37, 52)
# Mean and largest difference in grey levels over all magnitudes: none where Pillow counts in integers. The others round down what they compute
# in float32 or float64, so that a value next to an integer may fall on its other side.
EXACT = {"Invert", "Posterize", "Solarize", "SolarizeAdd", "Equalize"}
MEAN, LARGEST = 0.01, 1
changed = jax.jit(randaugment.changed)


def on_device(video: np.ndarray, *named: tuple[str, float]) -> np.ndarray:
    """u8 [T H W 3] after named operations, padded by pixels that must not count."""
    codes = np.asarray([1 + list(augment.OPERATIONS).index(name) for name, _ in named] + [0] * (2 - len(named)), np.int32)
    arguments = np.asarray([value for _, value in named] + [0.0] * (2 - len(named)), np.float32)
    padded = np.random.default_rng(9).integers(0, 256, (*CANVAS, len(video), 3), np.uint8)
    padded[: EXTENT[0], : EXTENT[1]] = np.moveaxis(video, 0, 2)
    out = np.asarray(changed(padded, codes, arguments, np.asarray(EXTENT, np.int32), np.float32(1)))
    assert out.dtype == np.uint8 and out.shape == padded.shape
    return np.moveaxis(out[: EXTENT[0], : EXTENT[1]], 2, 0)


def test_every_operation_is_there_once() -> None:
    """Either it changes values or it moves pixels."""
    assert sorted([*randaugment.VALUES, *randaugment.MAPS]) == sorted(augment.OPERATIONS)


@pytest.mark.parametrize("name", augment.OPERATIONS)
def test_operations_are_those_of_the_host(name: str) -> None:
    """At several magnitudes and both signs, on frames of different contrast, an even one and a constant one among them."""
    video = np.concatenate([textured(3, *EXTENT, 3), np.full((1, *EXTENT, 3), 77, np.uint8)])
    operation, found = augment.OPERATIONS[name], []
    for magnitude in (0.0, 3.3, 7.0, 10.0):
        for sign in (1, -1):
            argument = operation.argument(magnitude, sign)
            found.append(np.abs(on_device(video, (name, argument)).astype(int) - operation.apply(video, argument)))
    assert np.mean(found) <= (0 if name in EXACT else MEAN) and np.max(found) <= (0 if name in EXACT else LARGEST)


def test_operations_follow_one_another() -> None:
    """In the order of the draws; code 0 changes nothing."""
    video, both = textured(4, *EXTENT, 3), (("Posterize", 2.0), ("Invert", 0.0))
    expected = augment.OPERATIONS["Invert"].apply(augment.OPERATIONS["Posterize"].apply(video, 2.0), 0.0)
    np.testing.assert_array_equal(on_device(video, *both), expected)
    assert not np.array_equal(on_device(video, *both[::-1]), expected)
    np.testing.assert_array_equal(on_device(video), video)


# -- the crop of fine-tuning --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two videos of 128 x 96, and a larger one in split val."""
    directory = tmp_path_factory.mktemp("scenes")
    made = {"a": encode(scene(width=128, height=96), matrix="bt601"), "b": encode(scene(width=128, height=96), matrix="bt709", full=True),
            "large": encode(scene(width=192, height=144, cell=24))}
    for name, data in made.items():
        (directory / f"{name}.mkv").write_bytes(data)
    (directory / "labels.csv").write_text("\n".join(["path,label,split", *(f"{n}.mkv,x,{'val' if n == 'large' else 'train'}" for n in made)]))
    index.write(index.build(directory, labels=directory / "labels.csv"), directory / "index.parquet")
    return directory


def source(folder: pathlib.Path, /, **kw: Any) -> sources.VideoClips:
    """Clips of the scenes with two operations of magnitude 7 on every crop."""
    crop = augment.AugmentedCrop(augment.RandAugment(count=2, probability=1.0), area=(0.3, 1.0))
    options = {"frames": 2, "size": 48, "repeats": 2, "sampling": clips.DenseRandom(stride=1), "canvas": (96, 136), "crop": crop} | kw
    return sources.VideoClips(index=str(folder / "index.parquet"), **options)


cut = jax.jit(ingest.augmented, static_argnames="size")


def both(made: sources.VideoClips, row: int, /, *, seed: int) -> tuple[np.ndarray, set[str]]:
    """Device minus host of the crops of a row, and the operations drawn; both leave the generator in the same state."""
    rngs = [np.random.default_rng(seed) for _ in range(2)]
    host, shipped = made.read(row, rng=rngs[0]), planes.PlaneClips(made).read(row, rng=rngs[1])
    assert repr(rngs[0].bit_generator.state) == repr(rngs[1].bit_generator.state)
    names = {list(augment.OPERATIONS)[code - 1] for code in shipped["operation"].ravel().tolist() if code}
    return np.asarray(cut({k: v for k, v in shipped.items() if k in ingest.CONSUMED}, size=48)).astype(float) - host["video"], names


def test_crops_are_those_of_the_host(folder: pathlib.Path) -> None:
    """From the same draws, whatever matrix and range: within a grey level on average, though thresholds and tables make more of one."""
    made, seen = source(folder), set()
    for seed in range(24):
        found, names = both(made, seed % 2, seed=seed)
        seen |= names
        assert np.abs(found).mean() < 1, (seed, names)
    assert seen == set(augment.OPERATIONS), "all of them are met"


def test_what_changes_on_the_way(folder: pathlib.Path) -> None:
    """Without operations it is a crop without antialiasing, mirrored or not; of frames larger than the canvas one that is reduced twice."""
    plain = augment.AugmentedCrop(augment.RandAugment(count=2, probability=0.0), area=(0.3, 1.0))
    for flip in (0.0, 1.0):
        made = source(folder, crop=dataclasses.replace(plain, flip=flip))
        found = [np.abs(both(made, 0, seed=seed)[0]) for seed in range(4)]
        assert np.mean(found) < 0.6 and np.max(found) <= 4
    reduced = source(folder, crop=dataclasses.replace(plain, area=(1.0, 1.0), ratio=(4 / 3, 4 / 3)), split="val")
    assert 0.5 < np.abs(both(reduced, 0, seed=0)[0]).mean() < 15, "linear interpolation takes two pixels where the host's have more detail"


@dataclasses.dataclass(frozen=True)
class Always(augment.RandAugment):
    """One operation with one argument."""

    change: tuple[str, float] = ("Rotate", 30.0)

    def draw(self, rng: np.random.Generator, /) -> list[tuple[str, float]]:
        return [self.change]


@pytest.mark.parametrize("change", [("Rotate", 30.0), ("Rotate", -20.0), ("ShearX", 0.3), ("ShearY", -0.3), ("TranslateX", 0.2)])
@pytest.mark.parametrize("canvas", [(96, 72), (48, 136)], ids=["narrower", "lower"])
def test_frames_squeezed_on_one_side_are_changed_as_they_were(folder: pathlib.Path, canvas: tuple[int, int], change: tuple[str, float]) -> None:
    """A file of another shape than the canvas: turns and shears are those of the picture, not of the squeezed one."""
    crop = augment.AugmentedCrop(Always(count=1, change=change), area=(1.0, 1.0), ratio=(4 / 3, 4 / 3), flip=0.0)
    found, names = both(source(folder, crop=crop, canvas=canvas), 0, seed=0)
    assert names == {change[0]} and np.abs(found).mean() < 3


def test_a_batch_of_several_devices(folder: pathlib.Path) -> None:
    """Each device changes its own clips: nothing crosses, and the batch is that of one device."""
    mesh = parallel.Layout().mesh(jax.devices()[:2])
    shipped = planes.PlaneClips(source(folder))
    with pipeline.stream(shipped, batch_size=2, seed=0) as stream:
        batch = next(stream)

    def traced(batch: Any) -> Any:
        with parallel.use(mesh):
            return ingest.ingest(batch, fields=shipped.source.fields)

    placed = parallel.to_device(batch, mesh=mesh)
    compiled = jax.jit(traced).lower(placed).compile()
    assert not [line for line in compiled.as_text().splitlines() if "all-" in line or "collective-" in line]
    found = compiled(placed)
    assert found["video"].sharding.is_equivalent_to(placed["box"].sharding, 5) and found.keys().isdisjoint(ingest.CONSUMED)
    for row in range(2):
        own = {k: batch[k].reshape(2, -1, *batch[k].shape[1:])[row] for k in ingest.CONSUMED}
        np.testing.assert_array_equal(np.asarray(found["video"]).reshape(2, 2, *found["video"].shape[1:])[row], np.asarray(cut(own, size=48)))


def test_where_it_happens(folder: pathlib.Path) -> None:
    """"auto" means GPU; a TPU only where asked for. Sources of a mixture agree; maps cannot follow."""
    made, options = source(folder), {"batch_size": 4, "ways": 2}
    assert ingest.placed(made, platform="gpu", **options) == planes.PlaneClips(made)
    assert ingest.placed(made, platform="tpu", **options) is made
    asked = dataclasses.replace(made, crops="device")
    assert ingest.placed(asked, platform="tpu", **options) == planes.PlaneClips(asked)
    other = source(folder, crop=transforms.MultiScaleCrop())
    mixed = mixture.Concat(parts={"a": mixture.Part(made), "b": mixture.Part(other)}, split="train")
    assert ingest.placed(mixed, platform="gpu", **options) is mixed and "changes of RandAugment" in planes.refusal(mixed)
    same = mixture.Concat(parts={"a": mixture.Part(made), "b": mixture.Part(made)}, split="train")
    assert ingest.placed(same, platform="gpu", **options).fields.keys() >= {"operation", "argument", "extent", "aspect"}
    assert ingest.placed(same, platform="tpu", **options) is same
    np.save(folder / "a.npy", np.zeros((9, 96, 128), np.uint8))
    (folder / "maps.csv").write_text("path,label,split,maps\na.mkv,x,train,a.npy\nb.mkv,x,train,a.npy\nlarge.mkv,x,val,a.npy")
    index.write(index.build(folder, labels=folder / "maps.csv"), folder / "maps.parquet")
    parts = PartClips(index=str(folder / "maps.parquet"), frames=2, size=48, sampling=clips.DenseRandom(stride=1), parts="maps", crop=made.crop)
    with pytest.raises(UserError, match="maps cannot follow a crop with RandAugment"):
        parts.read(0, rng=np.random.default_rng(0))


def test_windows_of_the_crop() -> None:
    """The policy is drawn first, then box and mirror, as the crop itself does."""
    crop, rng = augment.AugmentedCrop(), np.random.default_rng(4)
    found = framing.window(crop, width=60, height=40, size=24, rng=np.random.default_rng(4))
    assert found.changes == tuple(crop.policy.draw(rng)) and framing.most(crop) == 4 and framing.most(transforms.WholeFrame()) is None
    box = transforms.RandomResizedCrop().box(width=60, height=40, rng=rng)
    assert (found.left, found.top, found.width, found.height, found.mirrored) == (box.left, box.top, box.width, box.height, bool(rng.random() < 0.5))
