"""What a source promises: fields, labels, splits, limits, copies of one decode, short clips, draws from the given generator alone."""

import dataclasses
import os
import pathlib
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_decode import encode, spelt

from videomae_jax.data import clips, columns, decode, index, packing, pipeline, planes, sources, transforms
from videomae_jax.errors import UserError

LABELS = ["10", "9", "9", "100", "", "10", "9", "10", "100", "9", "", "9"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Twelve videos of 5 to 60 frames that spell their numbers; integer labels of which one occurs only in val; a named column."""
    directory = tmp_path_factory.mktemp("videos")
    made = {frames: encode(frames=frames, bf="0") for frames in (5, 20, 60)}
    lines = ["path,label,split,motion,empty"]
    for i, label in enumerate(LABELS):
        (directory / f"{i:02}.mp4").write_bytes(made[(60, 20, 5)[i % 3]])
        lines.append(f"{i:02}.mp4,{label},{'val' if label == '100' else 'train'},{('up', 'down')[i % 2]},")
    (directory / "labels.csv").write_text("\n".join(lines))
    index.write(index.build(directory, labels=directory / "labels.csv"), directory / "index.parquet")
    return directory


def source(folder: pathlib.Path, /, **kw: Any) -> sources.VideoClips:
    """Whole frames of 4 times in small."""
    return sources.VideoClips(**({"index": str(folder / "index.parquet"), "frames": 4, "size": 128, "crop": transforms.WholeFrame()} | kw))


def rng(seed: int = 0) -> np.random.Generator:
    """A generator."""
    return np.random.default_rng(seed)


def assert_fields(made: sources.Source, /) -> None:
    """Every example has the declared keys, shapes and types, with copies in front."""
    for row in range(len(made)):
        example = made.read(row, rng=rng(row))
        assert {k: (v.shape, v.dtype.name) for k, v in example.items()} == {k: ((made.repeats, *f.shape), f.dtype) for k, f in made.fields.items()}
        assert (-1 <= example["label"]).all() and (example["label"] < len(made.classes)).all()
        assert isinstance(made.name(row), str)


@pytest.mark.parametrize("make", [
    lambda folder: source(folder, repeats=3), lambda folder: source(folder, split="val", frames=7, size=32, crop=transforms.MultiScaleCrop()),
    lambda folder: sources.ArrayClips(np.zeros((3, 2, 8, 8, 3), np.uint8), np.array([2, 0, 1], np.int32), repeats=2),
    lambda folder: sources.NoiseClips(frames=2, size=8, length=6, repeats=2)])
def test_examples_are_what_the_fields_declare(make: Any, folder: pathlib.Path) -> None:
    """Also after a trip to another process."""
    made = make(folder)
    assert_fields(made)
    assert_fields(pickle.loads(pickle.dumps(made)))


def test_labels_are_numbered_by_value(folder: pathlib.Path) -> None:
    """Integers sort as numbers, over all splits, so that train and val agree; a video without a label has -1."""
    train, val = source(folder), source(folder, split="val")
    assert train.classes == val.classes == ("9", "10", "100")
    expected = {f"{i:02}.mp4": {"9": 0, "10": 1, "100": 2, "": -1}[label] for i, label in enumerate(LABELS)}
    for made in (train, val):
        for row in range(len(made)):
            assert made.read(row, rng=rng())["label"].tolist() == [expected[made.name(row)]]
    assert {len(train), len(val)} == {10, 2} and len(source(folder, split="all")) == 12


def test_labels_of_another_column(folder: pathlib.Path) -> None:
    """Words sort as words; a column without any value gives no classes and -1; every other column is refused with the choices."""
    made = source(folder, label="motion")
    assert made.classes == ("down", "up") and made.read(0, rng=rng())["label"].tolist() == [1]
    assert source(folder, label="codec").classes == ("h264",)
    with pytest.raises(UserError, match=r"has no column 'mood'; it has path, name, label.*motion, empty"):
        source(folder, label="mood").classes  # noqa: B018
    with pytest.raises(UserError, match=r"column 'frames' .* is int32; allowed as labels are path, name, label, split, status, codec, template, motion, empty"):
        len(source(folder, label="frames"))


def test_classes_from_folders(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A folder a class, nothing else to write."""
    for name, origin in (("walk/a.mp4", "00"), ("run/b.mp4", "03"), ("run/c.mp4", "06")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / f"{origin}.mp4").read_bytes())
    index.write(index.build(tmp_path, val_fraction=0.4), tmp_path / "index.parquet")
    found = {}
    for split in ("train", "val"):
        made = source(tmp_path, split=split)
        assert made.classes == ("run", "walk")
        found |= {made.name(row): int(made.read(row, rng=rng())["label"][0]) for row in range(len(made))}
    assert found == {"walk/a.mp4": 1, "run/b.mp4": 0, "run/c.mp4": 0}


def test_splits_and_limits(folder: pathlib.Path) -> None:
    """A limit takes videos at equal distances, so that sorted class folders are all represented; no split is silently empty."""
    whole, some = source(folder), source(folder, limit=4)
    assert [some.name(r) for r in range(4)] == [whole.name(r) for r in (0, 2, 5, 7)]
    assert len(source(folder, limit=99)) == 10 and len(source(folder, limit=10)) == 10
    with pytest.raises(UserError, match=r"no readable video in split 'test'; it has train \(10\), val \(2\)"):
        len(source(folder, split="test"))
    assert sources.spread(np.arange(100), limit=3).tolist() == [0, 33, 66]


@pytest.mark.parametrize("field", ["frames", "size", "repeats", "limit"])
def test_numbers_are_checked(field: str, folder: pathlib.Path) -> None:
    """At construction, with what is allowed."""
    with pytest.raises(UserError, match=f"{field} is -1; allowed are [01] and more"):
        source(folder, **{field: -1})
    with pytest.raises(UserError, match="field kind 'picture'; allowed are image, labels"):
        sources.Field((), "int32", "picture")


def test_copies_share_the_frames_and_differ_in_the_crop(folder: pathlib.Path) -> None:
    """One decode gives all copies: their frames have the same numbers, their pixels come from different boxes."""
    seen: list[tuple[np.ndarray, int]] = []
    source(folder, repeats=4, crop=Corner(seen), sampling=clips.DenseRandom(stride=2)).read(0, rng=rng(4))
    videos, lefts = zip(*seen, strict=True)
    assert len(videos) == 4 and all(v is videos[0] for v in videos), "the four crops see one and the same array"
    assert len(set(lefts)) > 2
    numbers = spelt_frames(source(folder, repeats=4, sampling=clips.DenseRandom(stride=2)).read(0, rng=rng(4))["video"])
    assert (numbers == numbers[:1]).all() and (np.diff(numbers[0]) == 2).all()


@dataclasses.dataclass(frozen=True)
class Corner:
    """A crop that notes which array it is given, and where it cuts."""

    seen: list[tuple[np.ndarray, int]]

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        left = int(rng.integers(1, 100))
        self.seen.append((video, left))
        return transforms.crop_resize(video, transforms.Box(left, 0, 128 - left, 64), size=size)


def spelt_frames(video: np.ndarray, /) -> np.ndarray:
    """Numbers [K T] that uncropped frames spell."""
    return np.array([[spelt(picture) for picture in copy] for copy in video])


def test_short_clips_through_the_pipeline(folder: pathlib.Path) -> None:
    """A video shorter than the window starts at 0 and repeats the last frame a step reaches, also in the stream."""
    made = source(folder, frames=8, sampling=clips.DenseRandom(stride=4), split="all")
    lengths = {made.name(row): made.record(row)["frames"] for row in range(len(made))}
    assert set(lengths.values()) == {5, 20, 60}
    with pipeline.stream(made, batch_size=6, seed=0) as stream:
        for _ in range(2):
            batch = next(stream)
            for row, numbers in zip(batch["row"], spelt_frames(batch["video"]), strict=True):
                expected = {5: [0] * 8, 20: [0, 4, 8, 12, 16, 16, 16, 16]}.get(lengths[made.name(int(row))])
                if expected is None:
                    assert numbers.tolist() == list(range(int(numbers[0]), int(numbers[0]) + 32, 4)) and numbers[-1] < 60
                else:
                    assert numbers.tolist() == expected


def test_draws_come_from_the_generator_alone(folder: pathlib.Path) -> None:
    """Equal generators give equal examples, others other times and crops."""
    made = source(folder, crop=transforms.MultiScaleCrop(), size=32)
    same = [made.read(0, rng=rng(1))["video"] for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert len({made.read(0, rng=rng(seed))["video"].tobytes() for seed in range(8)}) > 4


def test_a_large_index_travels_as_a_name(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A million rows: the pickle stays below 1 MB, for every process maps the file itself."""
    one = index.load(folder / "index.parquet").slice(0, 1)
    many = one.take(pa.array(np.zeros(10**6, np.int64)))
    many = many.set_column(1, "name", pa.array([f"{i}.mp4" for i in range(10**6)]))
    pq.write_table(many, tmp_path / "index.parquet")
    made = source(tmp_path)
    batches = pipeline.Batches(made, pipeline.Shuffled(len(made), 0), 0, 0, 4, 0, 1, 2)
    assert len(made) == 10**6 and made.name(made._opened.rows[-1]) == "999999.mp4"
    assert batches.rows[10**6 - 1] != batches.rows[2 * 10**6 - 1]
    assert len(pickle.dumps(batches)) < 10_000


def test_times_of_a_long_video_are_not_copied(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Three hours at a variable rate: neither the row, what it describes nor the name of it makes numbers of Python from them."""
    times = np.cumsum(np.random.default_rng(0).integers(1, 9, 10**6)).tolist()
    row = index.load(folder / "index.parquet").slice(0, 1).to_pylist()[0]
    table = pa.Table.from_pylist([row | {"frames": len(times), "pts": times, "keys": times[::2]}], schema=index.load(folder / "index.parquet").schema)
    pq.write_table(table, tmp_path / "index.parquet")
    made = source(tmp_path)
    assert len(made) == 1
    tracemalloc.start()
    try:
        assert made.name(0) == row["name"]
        info = columns.info(made.record(0))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert info.pts.tolist() == times and info.keys.tolist() == times[::2] and info.pts.dtype == info.keys.dtype == np.int64


def test_columns_of_a_large_index_are_taken_without_its_times(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """For the size of the canvas, what it costs and the facts that a packing compares: not a copy of what each video has a thousand of."""
    row, times = index.load(folder / "index.parquet").slice(0, 1).to_pylist()[0], np.cumsum(np.random.default_rng(0).integers(1, 9, 1000)).tolist()
    rows = [row | {"name": str(number), "frames": len(times), "pts": times, "keys": times} for number in range(300)]
    pq.write_table(pa.Table.from_pylist(rows, schema=index.SCHEMA), tmp_path / "index.parquet")
    plan = packing.planned(str(tmp_path / "index.parquet"), tmp_path / "packed", settings=packing.Settings())
    made, before = source(tmp_path), pa.default_memory_pool()
    assert len(made) == plan.rows == 300
    pa.set_memory_pool(pool := pa.proxy_memory_pool(before))
    try:
        assert planes.sides(made) and planes.report(planes.PlaneClips(made))
        packing.claim(plan)
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < 100_000


def test_a_file_that_went_away_is_replaced(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """An index is a promise that disks break: what is missing, emptied or exchanged for text is marked and replaced."""
    (tmp_path / "v").mkdir()
    for i in range(4):
        (tmp_path / f"v/{i}.mp4").write_bytes((folder / "00.mp4").read_bytes())
    index.write(index.build(tmp_path / "v", val_fraction=0.0), tmp_path / "index.parquet")
    (tmp_path / "v/0.mp4").unlink()
    (tmp_path / "v/1.mp4").write_bytes(b"")
    (tmp_path / "v/2.mp4").write_text("text " * 1000)
    with pipeline.sweep(source(tmp_path), batch_size=4) as stream:
        batch = next(stream)
    assert batch["fault"].tolist() == [1, 1, 1, 0] and batch["valid"].all()
    (tmp_path / "v/3.mp4").unlink()
    with pytest.raises(UserError, match=r"v/0\.mp4: open: No such file.*v/3\.mp4: open: No such file"), pipeline.sweep(source(tmp_path), batch_size=4) as stream:
        next(stream)


def test_array_clips() -> None:
    """Copies are identical, classes are the numbers up to the largest label."""
    video = rng().integers(0, 256, (3, 2, 4, 4, 3), np.uint8)
    made = sources.ArrayClips(video, np.array([0, 4, -1], np.int32), repeats=2)
    assert made.classes == ("0", "1", "2", "3", "4") and len(made) == 3
    example = made.read(1, rng=rng())
    np.testing.assert_array_equal(example["video"], np.stack([video[1]] * 2))
    assert example["label"].tolist() == [4, 4]


def test_noise_clips() -> None:
    """Seeded, four distinct ones, two classes."""
    made = sources.NoiseClips(frames=2, size=8, length=10, repeats=2)
    assert len(made) == 10 and len(dataclasses.replace(made, limit=3)) == 3 and len(dataclasses.replace(made, limit=30)) == 10
    examples = [made.read(row, rng=rng()) for row in range(8)]
    assert len({e["video"].tobytes() for e in examples}) == 4
    np.testing.assert_array_equal(examples[1]["video"], examples[5]["video"])
    assert [int(e["label"][0]) for e in examples[:4]] == [0, 1, 0, 1]


def test_exchanged_videos_are_noticed(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Another size is a fault at the price of a `stat`; another time alone, which copying changes, is a warning, once a folder."""
    for i in range(3):
        (tmp_path / f"{i}.mp4").write_bytes((folder / "00.mp4").read_bytes())
    index.write(index.build(tmp_path, val_fraction=0.0), tmp_path / "index.parquet")
    made = source(tmp_path)
    made.read(0, rng=rng())
    (tmp_path / "1.mp4").write_bytes((folder / "01.mp4").read_bytes())  # a good video, but one of other frames
    with pytest.raises(decode.DecodeError, match=r"1\.mp4: open: exchanged since it was indexed: \d+ bytes, \d+ then; run index again"):
        made.read(1, rng=rng())
    for name in ("0.mp4", "2.mp4"):
        os.utime(tmp_path / name, (1e9, 1e9))
    with pytest.warns(UserWarning, match="were written after they were indexed") as caught:
        for row in (0, 2, 0):
            made.read(row, rng=rng())
    assert len(caught) == 1


def test_an_index_without_sizes_is_read(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Columns that may be missing are empty then: nothing is compared."""
    pq.write_table(pq.read_table(folder / "index.parquet").drop_columns(list(index.OPTIONAL)), tmp_path / "index.parquet")
    for path in folder.glob("*.mp4"):
        (tmp_path / path.name).write_bytes(path.read_bytes() + b"longer")
    assert source(tmp_path).read(0, rng=rng())["label"].shape == (1,)
