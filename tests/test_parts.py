"""Part maps follow the crops of their video: colours of the pixels against the classes of the map."""

import errno
import os
import pathlib
from typing import Any

import numpy as np
import pytest

from videomae_jax.data import clips, decode, faces, framing, index, parts, pipeline, sources, synthetic, three_crop, transforms
from videomae_jax.errors import UserError

COLOURS = np.array([(20, 20, 20), (230, 40, 40), (40, 220, 40), (50, 60, 240), (230, 230, 50)], np.uint8)
FRAMES, HEIGHT, WIDTH = 6, 120, 160


def blocks() -> np.ndarray:
    """u8 [FRAMES HEIGHT WIDTH]: unsymmetric blocks of five classes that drift from frame to frame."""
    maps = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    for t in range(FRAMES):
        maps[t, 10 + 4 * t: 50 + 4 * t, 12: 70] = 1
        maps[t, 60: 110, 8 + 8 * t: 60 + 8 * t] = 2
        maps[t, 20: 100, 110: 150] = 3
        maps[t, 40 + 2 * t: 70 + 2 * t, 90 - 6 * t: 125 - 6 * t] = 4
    return maps


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four videos of the blocks with maps at full size, at half size, as npy, and one without."""
    directory = tmp_path_factory.mktemp("blocks")
    maps = blocks()
    for name in "abcd":
        (directory / f"{name}.mp4").write_bytes(synthetic.encode(COLOURS[maps], fps=10))
    np.savez_compressed(directory / "a.npz", parts=maps)
    np.savez_compressed(directory / "b.npz", parts=maps[:, ::2, ::2])
    np.save(directory / "c.npy", maps)
    (directory / "labels.csv").write_text("path,label,split,maps,short\na.mp4,x,train,a.npz,a.npz\nb.mp4,x,val,b.npz,b.npz\nc.mp4,x,test,c.npy,short.npy\nd.mp4,x,val,d.npz,a.npz\n")
    np.save(directory / "short.npy", maps[:2])
    index.write(index.build(directory, labels=directory / "labels.csv"), directory / "index.parquet")
    return directory


def source(folder: pathlib.Path, /, **kw: object) -> parts.PartClips:
    """Part clips of the folder."""
    options = {"split": "train", "frames": 3, "size": 48, "sampling": clips.DenseRandom(stride=1), "parts": "maps"} | kw
    return parts.PartClips(index=str(folder / "index.parquet"), **options)


CROPS = {"multi_scale": transforms.MultiScaleCrop(), "resized": transforms.RandomResizedCrop(area=(0.3, 1.0)),
         "mirrored": transforms.RandomResizedCrop(area=(0.3, 1.0), flip=1.0), "sometimes": transforms.RandomResizedCrop(flip=0.5),
         "centre": transforms.CentreCrop(), "whole": transforms.WholeFrame(), "three": three_crop.ThreeCrop(view=2)}


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_maps_match_the_colours_of_the_batch(crop: object, split: str, folder: pathlib.Path) -> None:
    """Away from borders, the class whose colour a pixel has is the class of the map, for every crop, copy and frame of a stream."""
    with pipeline.stream(source(folder, crop=crop, split=split, repeats=2), batch_size=4, seed=1) as stream:
        for _ in range(3):
            batch = next(stream)
            assert not batch["fault"].any()
            assert batch["parts"].shape == (8, 3, 48, 48) and batch["parts"].dtype == np.uint8
            wrong, seen = disagreement(batch, reach=1)
            assert wrong == 0 and seen > 0.7 * batch["parts"].size


def disagreement(batch: dict[str, np.ndarray], /, *, reach: int) -> tuple[int, int]:
    """Pixels whose colour tells another class than the map, and pixels compared: those further than `reach` from a border of the map."""
    told = np.abs(batch["video"][..., None, :].astype(int) - COLOURS).sum(-1).argmin(-1)
    maps, size, span = batch["parts"], batch["parts"].shape[-1], range(2 * reach + 1)
    pads = np.pad(maps, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    inner = np.logical_and.reduce([pads[..., y: y + size, x: x + size] == maps for y in span for x in span])
    return int((told != maps)[inner].sum()), int(inner.sum())


def test_only_the_frames_of_a_clip_are_read(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Of an .npy of 20 GB (it is sparse), in any order, and of one whose last axis is the slowest; the maps are the same."""
    opened = source(folder, crop=transforms.CentreCrop(), split="test")
    for ids in ([0, 1, 2, 3, 4, 5], [4, 4, 1]):
        np.testing.assert_array_equal(opened.maps(opened.record(0), np.asarray(ids), frames=FRAMES), blocks()[ids])
    long = np.lib.format.open_memmap(tmp_path / "long.npy", mode="w+", dtype=np.uint8, shape=(2**20, HEIGHT, WIDTH))
    long[7] = blocks()[1]
    found = opened.maps({"maps": str(tmp_path / "long.npy")}, np.asarray([7, 6]), frames=2**20)
    np.testing.assert_array_equal(found, [blocks()[1], np.zeros_like(blocks()[1])])
    np.save(tmp_path / "turned.npy", np.asfortranarray(blocks()))
    np.testing.assert_array_equal(opened.maps({"maps": str(tmp_path / "turned.npy")}, np.asarray([5, 2]), frames=FRAMES), blocks()[[5, 2]])


def test_maps_that_are_cut_while_they_are_read_are_a_fault(folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an error of the disk is; under a mapping either would end the process by a signal."""
    opened, path, plain = source(folder), tmp_path / "cut.npy", parts._header
    np.save(path, blocks())

    def cut(file: Any) -> Any:
        found = plain(file)
        os.truncate(path, file.tell() + 4 * HEIGHT * WIDTH)
        return found

    monkeypatch.setattr(parts, "_header", cut)
    with pytest.raises(decode.DecodeError, match=r"cut\.npy: short: the file ends within the part map of frame 4"):
        opened.maps({"maps": str(path)}, np.asarray([3, 4]), frames=FRAMES)
    monkeypatch.setattr(parts, "_header", lambda file: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(decode.DecodeError, match=r"cut\.npy: io: no part maps"):
        opened.maps({"maps": str(path)}, np.asarray([3]), frames=FRAMES)


def test_coarser_maps(folder: pathlib.Path) -> None:
    """Maps at half the size of the frames span the same picture: they agree two pixels away from borders."""
    with pipeline.stream(source(folder, split="val", crop=transforms.MultiScaleCrop(), limit=1), batch_size=4, seed=0) as stream:
        batch = next(stream)
    assert disagreement(batch, reach=2)[0] == 0


def test_nearest_takes_the_value_under_the_centre() -> None:
    """A window of whole pixels at its own size is a plain cut; doubled, every value repeats; mirrored, columns turn round."""
    maps = np.arange(48, dtype=np.uint8).reshape(1, 6, 8)
    window = framing.Window(2, 1, 4, 4)
    np.testing.assert_array_equal(window.nearest(maps, frame=(6, 8), size=4), maps[:, 1:5, 2:6])
    np.testing.assert_array_equal(window.nearest(maps, frame=(6, 8), size=8), maps[:, 1:5, 2:6].repeat(2, 1).repeat(2, 2))
    np.testing.assert_array_equal(framing.Window(2, 1, 4, 4, mirrored=True).nearest(maps, frame=(6, 8), size=4), maps[:, 1:5, 2:6][:, :, ::-1])
    np.testing.assert_array_equal(framing.Window(4, 2, 8, 8).nearest(maps, frame=(12, 16), size=4), maps[:, 1:5, 2:6])


def test_video_is_that_of_the_plain_source(folder: pathlib.Path) -> None:
    """Reading maps changes no draw: video, label and key equal those of VideoClips bit for bit."""
    crop = CROPS["sometimes"]
    plain = sources.VideoClips(index=str(folder / "index.parquet"), split="train", frames=3, size=48, repeats=2, sampling=clips.DenseRandom(stride=1), crop=crop)
    with pipeline.stream(source(folder, crop=crop, repeats=2), batch_size=4, seed=3) as ours, pipeline.stream(plain, batch_size=4, seed=3) as theirs:
        for _ in range(2):
            mine, other = next(ours), next(theirs)
            assert mine.keys() - other.keys() == {"parts"}
            for key, value in other.items():
                np.testing.assert_array_equal(mine[key], value)


def test_face_maps_arrive_whole(tmp_path: pathlib.Path) -> None:
    """Of a written world of faces, at full size and uncropped, the maps of the stream are those of the generator."""
    plan = synthetic.Plan(world=faces.Faces(size=64, frames=6), train=3, val=0, test=0, truth=True)
    synthetic.write(tmp_path, plan)
    index.write(index.build(tmp_path, labels=tmp_path / "labels.csv"), tmp_path / "index.parquet")
    sampling = clips.DenseCentre(stride=2)
    clipped = parts.PartClips(index=str(tmp_path / "index.parquet"), frames=3, size=64, sampling=sampling, crop=transforms.WholeFrame())
    with pipeline.sweep(clipped, batch_size=3) as stream:
        batch = next(stream)
    ids = sampling.ids(6, clip=3, rng=np.random.default_rng(0))
    for place in range(3):
        np.testing.assert_array_equal(batch["parts"][place], synthetic.example(place, plan=plan).truth["parts"][ids])


def test_missing_and_short_maps_are_faults(folder: pathlib.Path) -> None:
    """A video without maps is replaced and marked; maps of too few frames are named; a missing column is the user's mistake."""
    rng = np.random.default_rng(0)
    with pytest.raises(decode.DecodeError, match=r"d\.npz: open: no part maps"):
        source(folder, split="val").read(1, rng=rng)
    with pipeline.sweep(source(folder, split="val"), batch_size=2, seed=1) as stream:
        batch = next(stream)
    assert batch["fault"].tolist() == [0, 1 + decode.STAGES.index("open")]
    with pytest.raises(decode.DecodeError, match=r"short: part maps uint8 \[2, 120, 160\] for 6 frames"):
        source(folder, split="test", parts="short").read(0, rng=rng)
    with pytest.raises(UserError, match="no column 'masks'"):
        source(folder, parts="masks").read(0, rng=rng)


def test_damaged_maps_are_faults(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Half an archive, a text file and an archive without "parts" raise DecodeError."""
    clipped = source(folder)
    whole = (folder / "a.npz").read_bytes()
    np.savez(tmp_path / "other.npz", masks=blocks())
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("parts")
    (tmp_path / "empty.npz").write_bytes(b"")
    names = ["other", "half", "text", "empty"]
    for place in np.linspace(100, len(whole) - 200, 20).astype(int):  # within the compressed data, where zlib or the checksum objects
        flipped = bytearray(whole)
        flipped[place] ^= 0xFF
        names.append(f"flipped_{place}")
        (tmp_path / f"{names[-1]}.npz").write_bytes(bytes(flipped))
    for name in names:
        with pytest.raises(decode.DecodeError, match="no part maps"):
            clipped.maps({"maps": str(tmp_path / f"{name}.npz")}, np.arange(FRAMES), frames=FRAMES)
    (tmp_path / "text.npy").write_text("parts")
    with pytest.raises(decode.DecodeError, match="no part maps"):
        clipped.maps({"maps": str(tmp_path / "text.npy")}, np.arange(FRAMES), frames=FRAMES)


def test_other_crops_are_refused(folder: pathlib.Path) -> None:
    """A crop whose window is not known cannot be followed."""
    def crop(video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        return video[:, :size, :size]

    with pytest.raises(UserError, match="no window is known of the crop function; allowed are AugmentedCrop, CentreCrop, MultiScaleCrop, RandomResizedCrop, ThreeCrop, WholeFrame"):
        source(folder, crop=crop).read(0, rng=np.random.default_rng(0))


def test_an_index_that_is_a_link_finds_its_maps(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Maps, like videos, are relative to the index itself, not to a link that points to it."""
    (tmp_path / "index.parquet").symlink_to(folder / "index.parquet")
    direct, linked = (source(home).read(0, rng=np.random.default_rng(3)) for home in (folder, tmp_path))
    np.testing.assert_array_equal(linked["parts"], direct["parts"])
