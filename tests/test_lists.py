"""Official lists, folders of pictures, single pictures and files at addresses, from the command to the frames that are read."""

import dataclasses
import gc
import json
import pathlib
import tracemalloc
from fractions import Fraction
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_decode import bars, encode, spelt

from videomae_jax import __main__ as entry
from videomae_jax import config as configs
from videomae_jax import head_rows
from videomae_jax.commands.index import summary
from videomae_jax.data import clips, columns, decode, frame_folders, index, lists, merge, packed, pictures, pipeline, remote, sources, splits, transforms
from videomae_jax.errors import UserError
from videomae_jax.evals.base import evaluation_source
from videomae_jax.objectives.base import External


def draw(folder: pathlib.Path, numbers: Any, template: str = "img_{:05}.jpg", /, **options: Any) -> None:
    """Pictures that spell their numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(bars(number % 256)).save(folder / template.format(number), **({"quality": 95} | options if ".jpg" in template else options))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A hybrid data set: SSv2 and AVA frames, other frames, video files, one with spaces in its path."""
    folder = tmp_path_factory.mktemp("hybrid")
    draw(folder / "SomethingV2/frames/7", range(1, 41))
    draw(folder / "AVA2.2/frames/x", range(100, 141), "image_{:06}.jpg")
    draw(folder / "own/frames/y", range(1, 31), "f{:03}.png")
    for name in ("K400/air drumming/a b.mp4", "K400/c.mp4", "K400/d.webm.mp4"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(frames=80, bf="0"))
    return folder


def command(*words: object) -> int:
    """The exit code of the `index` command."""
    return entry.main(["index", *map(str, words)])


def source(path: pathlib.Path, /, **kw: Any) -> frame_folders.FrameClips:
    """Whole frames, 4 of them at stride 4."""
    return frame_folders.FrameClips(**({"index": str(path), "split": "train", "frames": 4, "size": 128, "crop": transforms.WholeFrame(),
                                        "sampling": clips.DenseRandom(stride=4)} | kw))


def numbers(made: sources.VideoClips, row: int, seed: int = 0, /) -> list[int]:
    """The frame numbers that a read spells."""
    return [spelt(p) for p in made.read(row, rng=np.random.default_rng(seed))["video"][0]]


# -- lists -------------------------------------------------------------------------------------------------------------


def test_a_v2_pretraining_list(root: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Total below 0 is a video; frames are numbered from start; SSv2 has stride 2 and five digits, AVA six; windows of one folder are two clips."""
    (tmp_path / "hybrid.csv").write_text("\n".join([
        "K400/air drumming/a b.mp4 0 -1", "SomethingV2/frames/7 1 40 ignored columns", "AVA2.2/frames/x 100 20", "AVA2.2/frames/x 121 20", "own/frames/y 3 25", ""]))
    assert command("--list", tmp_path / "hybrid.csv", "--format=v2", "--root", root, "--out", tmp_path / "i.parquet", "--template=f{:03}.png") == 0
    assert "videomae_jax.data.frame_folders.FrameClips" in capsys.readouterr().out
    made = source(tmp_path / "i.parquet")
    assert [made.name(r) for r in range(5)] == ["K400/air drumming/a b.mp4", "SomethingV2/frames/7", "AVA2.2/frames/x#100", "AVA2.2/frames/x#121", "own/frames/y"]
    assert [made.record(r)["frames"] for r in range(5)] == [80, 40, 20, 20, 25] and made.classes == ()
    for row, first, last, stride in ((0, 0, 79, 4), (1, 1, 40, 2), (2, 100, 119, 4), (3, 121, 140, 4), (4, 3, 27, 4)):
        drawn = [numbers(made, row, seed) for seed in range(40)]
        assert all(np.diff(ids).tolist() == [stride] * 3 for ids in drawn)
        starts = {ids[0] for ids in drawn}
        room = last - first + 1 - 4 * stride + 1  # V2's number of starts
        assert starts <= set(range(first, first + room)) and {min(starts), max(starts)} <= set(range(first, first + room)) and len(starts) > min(room, 10) // 2
    with pytest.raises(UserError, match="lists folders of pictures; read it with .*FrameClips"):
        len(sources.VideoClips(index=str(tmp_path / "i.parquet")))


def test_a_v1_list(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """`path label`; .mp4 is added to a name without a dot; absolute paths; train.csv and val.csv are splits; missing files are kept as damaged."""
    (tmp_path / "train.csv").write_text(f"K400/c 10\nK400/air drumming/a b.mp4 9\n{root}/K400/d.webm.mp4 9\nK400/gone.mp4 100\n")
    (tmp_path / "val.csv").write_text("K400/c.mp4 100\n")
    assert command("--list", tmp_path / "train.csv", "--list", tmp_path / "val.csv", "--root", root, "--out", tmp_path / "i.parquet") == 0
    made = sources.VideoClips(index=str(tmp_path / "i.parquet"), frames=4, size=32)
    assert made.classes == ("9", "10", "100") and [made.record(r)["label"] for r in range(len(made))] == ["10", "9", "9"]
    assert made.read(0, rng=np.random.default_rng(0))["label"].tolist() == [1]
    val = sources.VideoClips(index=str(tmp_path / "i.parquet"), split="val", frames=4, size=32)
    assert len(val) == 1 and val.read(0, rng=np.random.default_rng(0))["label"].tolist() == [2]
    rows = index.load(tmp_path / "i.parquet").to_pylist()
    assert [r["status"] for r in rows if r["name"] == "K400/gone.mp4"] == ["open: No such file or directory"]


@pytest.mark.parametrize("fraction", [0.4, 0.0001])
def test_one_list_with_videos_held_out(fraction: float, root: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """A list for pretraining tells none: what is drawn is what configs evaluate on, by the path, so that windows of one video stay together."""
    (tmp_path / "train.csv").write_text("K400/c.mp4 0\nK400/air drumming/a b.mp4 0\nK400/d.webm.mp4 0\nK400/c.mp4 1\nK400/air drumming/a b.mp4 1\n")
    (tmp_path / "test.csv").write_text("K400/c.mp4 0\n")
    listed = [f"--list={tmp_path}/train.csv", f"--root={root}", "--format=v1", f"--out={tmp_path}/i.parquet"]
    config = configs.load("configs/tiny.py")
    config.data.index = str(tmp_path / "i.parquet")
    held = evaluation_source(config, split="val")
    assert command(*listed) == 0 and "no video is held out" in capsys.readouterr().out
    with pytest.raises(UserError, match="no readable video in split 'val'"):
        len(evaluation_source(config, split="val"))
    assert command(*listed, f"--list={tmp_path}/test.csv", f"--val-fraction={fraction}") == 0 and "no video is held out" not in capsys.readouterr().out
    rows = index.load(tmp_path / "i.parquet").to_pylist()
    sides = {(row["path"], row["split"]) for row in rows[:-1]}
    assert len(held) == sum(row["split"] == "val" for row in rows) > 0 and rows[-1]["split"] == "test"
    assert len(sides) == 3 and {split for _, split in sides} == {"train", "val"}


@pytest.mark.parametrize("fraction", [0.4, 0.0001])
def test_windows_of_one_video_are_held_out_together(fraction: float, tmp_path: pathlib.Path) -> None:
    """Whatever their starts are, by which their names differ, and also where the first of them is damaged: one video is held out at least."""
    folders = [f"own/frames/{letter}" for letter in "abcdefgh"]
    for folder in folders:
        draw(tmp_path / folder, range(1, 21), "f{:03}.png")
    (tmp_path / "train.csv").write_text("".join(f"{folder} {start} 5\n" for folder in folders for start in (40, 1, 6, 11, 16)))
    table = lists.build([tmp_path / "train.csv"], root=str(tmp_path), form="v2", template="f{:03}.png", val_fraction=fraction)
    rows = table.to_pylist()
    assert [row["status"] == "ok" for row in rows] == [False, True, True, True, True] * len(folders) and len({row["name"] for row in rows}) == len(rows)
    sides = {(row["path"], row["split"]) for row in rows}
    assert len(sides) == len(folders) and {split for _, split in sides} == {"train", "val"}


@pytest.mark.parametrize("line", ["a.mp4", "sub/../a.mp4"])
def test_a_root_that_links_to_itself(line: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Nothing can be read there, which one line says; so for a line whose folder is such a link."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "l.csv").write_text(f"{line} 0\n")
    assert command("--list", tmp_path / "l.csv", f"--root={tmp_path}/loop", "--out", tmp_path / "i.parquet") == 2
    assert capsys.readouterr().err == f"error: none of the 1 videos in {tmp_path}/loop can be read\n"
    (tmp_path / "l.csv").write_text(f"loop/{line} 0\n")
    assert command("--list", tmp_path / "l.csv", f"--root={tmp_path}", "--out", tmp_path / "i.parquet") == 2
    assert capsys.readouterr().err == f"error: none of the 1 videos in {tmp_path} can be read\n"


@pytest.mark.parametrize("where", ["beside", "behind a link", "in the line", "absolute"])
def test_paths_with_two_dots(where: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clip is read that the list means, also once the index lies elsewhere, and not one that its text would name without the link."""
    meant, wrong = tmp_path / "far/vids", tmp_path / "here/vids"
    for folder, count in ((meant, 8), (wrong, 4)):
        folder.mkdir(parents=True)
        (folder / "a.mp4").write_bytes(encode(frames=count, bf="0"))
    (tmp_path / "far/real").mkdir()
    (tmp_path / "here/link").symlink_to(tmp_path / "far/real")
    monkeypatch.chdir(tmp_path / "here")
    base, line = {"beside": ("../far", "vids/a.mp4"), "behind a link": ("link/../vids", "a.mp4"), "in the line": (".", "link/../vids/a.mp4"),
                  "absolute": (".", f"{tmp_path}/here/link/../vids/a.mp4")}[where]
    pathlib.Path("train.csv").write_text(f"{line} 0\n")
    assert command("--list=train.csv", f"--root={base}", "--out=i.parquet") == 0
    stored = index.load("i.parquet").column("path").to_pylist()
    assert stored == [str(meant / "a.mp4")]
    (tmp_path / "a/b/c").mkdir(parents=True)
    moved = pathlib.Path("i.parquet").rename(tmp_path / "a/b/c/i.parquet")
    made = sources.VideoClips(index=str(moved), frames=2, size=32)
    assert made.record(0)["frames"] == 8 and made.read(0, rng=np.random.default_rng(0))["video"].shape == (1, 2, 32, 32, 3)


def test_a_list_in_a_folder_behind_a_link(tmp_path: pathlib.Path) -> None:
    """What lies below the folder of the index is stored relative to it, also where both were named through the link."""
    (tmp_path / "set/vids").mkdir(parents=True)
    (tmp_path / "set/vids/a.mp4").write_bytes(encode(frames=4, bf="0"))
    (tmp_path / "link").symlink_to(tmp_path / "set")
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    assert command("--list", tmp_path / "train.csv", f"--root={tmp_path}/link/vids", "--out", tmp_path / "link/i.parquet") == 0
    assert index.load(tmp_path / "set/i.parquet").column("path").to_pylist() == ["vids/a.mp4"]


def test_an_index_keeps_paths_with_two_dots(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Text alone does not tell whether they lie below its folder."""
    (tmp_path / "train.csv").write_text("K400/c.mp4 0\n")
    table = lists.build([tmp_path / "train.csv"], root=str(root), form="v1")
    odd, plain = f"{tmp_path.resolve()}/link/../c.mp4", f"{tmp_path.resolve()}/v/c.mp4"
    for path, stored in ((odd, odd), (plain, "v/c.mp4")):
        index.write(table.set_column(0, "path", pa.array([path])), tmp_path / "i.parquet")
        assert index.load(tmp_path / "i.parquet").column("path").to_pylist() == [stored]


def test_a_label_of_minus_one_is_none(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Classes keep the order of their numbers, and the clip has no label; also in an index that still holds it as text. Maps of merged lists fit."""
    (tmp_path / "train.csv").write_text("K400/c.mp4 0\nK400/air drumming/a b.mp4 2\nK400/d.webm.mp4 10\nK400/c.mp4 -1\n")
    assert command("--list", tmp_path / "train.csv", "--root", root, "--out", tmp_path / "i.parquet") == 0
    table = index.load(tmp_path / "i.parquet")
    assert table.column("label").to_pylist() == ["0", "2", "10", None]
    place = table.schema.get_field_index("label")
    index.write(table.set_column(place, "label", pa.array(["0", "2", "10", "-1"])), tmp_path / "old.parquet")
    for name in ("i", "old"):
        made = sources.VideoClips(index=str(tmp_path / f"{name}.parquet"), frames=4, size=32)
        assert made.classes == ("0", "2", "10")
        assert [int(made.read(row, rng=np.random.default_rng(0))["label"][0]) for row in range(4)] == [0, 1, 2, -1]
    (tmp_path / "other.csv").write_text("own/frames/y 3 25\n")
    assert command("--list", tmp_path / "other.csv", "--format=v2", "--root", root, "--out", tmp_path / "bare.parquet", "--template=f{:03}.png") == 0
    assert command(f"--merge={tmp_path / 'old.parquet'},{tmp_path / 'bare.parquet'}", f"--out={tmp_path / 'k.parquet'}") == 0
    np.savez(tmp_path / "weights.npz", x=np.zeros(1))
    external = External("params", str(tmp_path / "weights.npz"), rows=((".*", str(tmp_path / "k_to_old.json")),))
    (tmp_path / "classes.json").write_text(json.dumps(["0", "2", "10"]))
    head_rows.check([external], source=sources.VideoClips(index=str(tmp_path / "old.parquet")))


@pytest.mark.parametrize(("labels", "column", "classes", "said"), [
    (["-1", "walk", "run"], "label", ("-1", "run", "walk"), "label (3 classes, 0 videos without)"),
    (["-1", "-3", "1"], "label", ("-3", "-1", "1"), "label (3 classes, 0 videos without)"),
    (["-1", "0", "1"], "label", ("0", "1"), "label (2 classes, 1 videos without; -1 is none where all others are whole numbers, as in official lists)"),
    (["-1", "2", "10"], "mood", ("-1", "2", "10"), "label (1 classes, 0 videos without)"),
    (["1", "", "0"], "mood", ("0", "1"), "label (1 classes, 0 videos without)"), (["1", "", "0"], "label", ("0", "1"), "label (2 classes, 1 videos without)")])
def test_minus_one_in_a_csv(labels: list[str], column: str, classes: tuple[str, ...], said: str, root: pathlib.Path, tmp_path: pathlib.Path,
                            capsys: pytest.CaptureFixture) -> None:
    """It is none in the column `label` beside whole numbers from 0, and else a class: the command counts those that training and merging have.

    An empty cell is none in every column.
    """
    names = ("air drumming/a b.mp4", "c.mp4", "d.webm.mp4")
    head, more = ("path,label,split", "") if column == "label" else ("path,mood,split,label", ",x")
    (tmp_path / "l.csv").write_text("\n".join([head, *(f"{name},{label},train{more}" for name, label in zip(names, labels, strict=True))]))
    assert command(root / "K400", "--labels", tmp_path / "l.csv", "--out", tmp_path / "i.parquet") == 0
    assert f"  {said}\n" in capsys.readouterr().out
    made = sources.VideoClips(index=str(tmp_path / "i.parquet"), label=column, frames=2, size=32)
    assert made.classes == classes
    assert [int(made.read(row, rng=np.random.default_rng(0))["label"][0]) for row in range(3)] == [classes.index(v) if v in classes else -1 for v in labels]
    if column == "label":
        (tmp_path / "bare.csv").write_text("own/frames/y 1 25\n")
        index.write(lists.build([tmp_path / "bare.csv"], root=str(root), form="v2", template="f{:03}.png"), tmp_path / "bare.parquet")
        assert merge.merge([tmp_path / "i.parquet", tmp_path / "bare.parquet"], aliases={}).names == classes


def test_what_a_merge_leaves_of_a_class_stays_one(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """-2, -1 and 1 are classes; that the only video of -2 is held out elsewhere does not make -1 an official list's "none"."""
    names = ("air drumming/a b.mp4", "c.mp4", "d.webm.mp4")
    for out, text in (("mood", "\n".join(f"{n},{v},train" for n, v in zip(names, ("-2", "-1", "1"), strict=True))), ("held", f"{names[0]},,val")):
        (tmp_path / f"{out}.csv").write_text(f"path,label,split\n{text}\n")
        assert command(root / "K400", "--labels", tmp_path / f"{out}.csv", "--out", tmp_path / f"{out}.parquet") == 0
    both = tmp_path / "both.parquet"
    assert command(f"--merge={tmp_path / 'mood.parquet'},{tmp_path / 'held.parquet'}", f"--out={both}") == 0
    made = sources.VideoClips(index=str(both), split="train", frames=2, size=32)
    assert made.classes == merge.merge([tmp_path / "mood.parquet", tmp_path / "held.parquet"], aliases={}).names == ("-1", "1")
    assert {made.classes[int(made.read(row, rng=np.random.default_rng(0))["label"][0])] for row in range(len(made))} == {"-1", "1"}
    assert any(line.startswith("  label (2 classes, 1 videos without)") for line in summary(index.load(both)))
    assert command(f"--merge={both},{tmp_path / 'held.parquet'}", f"--out={tmp_path / 'again.parquet'}") == 0
    assert sources.VideoClips(index=str(tmp_path / "again.parquet"), split="train").classes == ("-1", "1")
    table = index.load(both)  # edited by hand
    index.write(table.set_column(table.schema.get_field_index("label"), "label", pa.array(["", "-1", "1"])), both)
    assert sources.VideoClips(index=str(both), split="train").classes == ("-1", "1")


def test_a_fine_tuning_list_of_frames(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """`folder total label`, numbered from 1 as V2's SSv2; a folder that is shorter than its line is damaged, not cut."""
    (tmp_path / "train.csv").write_text("SomethingV2/frames/7 40 173\nSomethingV2/frames/7 41 2\n")
    assert command("--list", tmp_path / "train.csv", "--format=frames", f"--root={root}", "--out", tmp_path / "i.parquet", "--fps=12") == 0
    made = source(tmp_path / "i.parquet", sampling=clips.SparseFinetune(position="centre"))
    assert len(made) == 1 and made.classes == ("2", "173") and numbers(made, 0) == [6, 16, 26, 36]
    info = columns.info(made.record(0))
    assert info.fps == 12 and info.duration == pytest.approx(40 / 12)
    status = index.load(tmp_path / "i.parquet").column("status").to_pylist()
    assert status == ["ok", "open: No such file or directory"]
    (tmp_path / "rate.csv").write_text("own/frames/y 30 0\n")
    index.write(lists.build([tmp_path / "rate.csv"], root=str(root), form="frames", template="f{:03}.png", fps=Fraction(30)), tmp_path / "rate.parquet")
    by_rate = source(tmp_path / "rate.parquet", sampling=clips.PerSecond(rate=5.0, position="centre"))
    assert np.diff(numbers(by_rate, 0)).tolist() == [6, 6, 6]


@pytest.mark.parametrize(("form", "text", "said"), [
    ("v1", "a.mp4\n", ":1: 'a.mp4' is no line of format v1: v1 path label"), ("v2", "a.mp4 0 -1\nb.mp4 3\n", ":2: 'b.mp4 3' is no line of format v2: v2 path start total"),
    ("frames", "a 3 4\nb x 4\n", ":2: 'b x 4' is no line of format frames: frames folder total label"), ("v1", "\n", "lists no video"), ("v3", "", "format 'v3'; allowed are v1, v2, frames")])
def test_lines_of_another_form(form: str, text: str, said: str, tmp_path: pathlib.Path) -> None:
    """The line is named, and what is expected."""
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(UserError) as caught:
        lists.read(tmp_path / "l.csv", form=form)
    assert said in str(caught.value)


def test_a_list_of_nothing_readable(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """The usual mistake is the root; it is named. A list and a folder exclude each other."""
    (tmp_path / "l.csv").write_text("a.mp4 0\n")
    assert command("--list", tmp_path / "l.csv", "--root=/nowhere", "--out", tmp_path / "i.parquet") == 2
    assert "none of the 1 videos in /nowhere can be read" in capsys.readouterr().err
    assert command(tmp_path, "--list", tmp_path / "l.csv", "--out", tmp_path / "i.parquet") == 2 and "not both" in capsys.readouterr().err
    assert command("--out", tmp_path / "i.parquet") == 2 and "needed is a folder, or --list" in capsys.readouterr().err


# -- pictures ----------------------------------------------------------------------------------------------------------


def test_folders_of_pictures_of_ones_own(tmp_path: pathlib.Path) -> None:
    """Found by their template, numbered from anywhere with gaps; class folders are labels; other files do not matter; videos mix in."""
    for name, ids in (("train/run/a", [5, 6, 8, 9, 12]), ("train/walk/b", range(30)), ("val/run/c", range(9))):
        draw(tmp_path / "v" / name, ids, "p{:d}.png")
    (tmp_path / "v/train/run/a/notes.txt").write_text("x")
    (tmp_path / "v/train/run/a/p07.png").write_text("not called so")
    assert command(tmp_path / "v", "--template=p{:d}.png", "--verify", "--out", tmp_path / "i.parquet") == 0
    made = source(tmp_path / "i.parquet", split="all", frames=3, sampling=clips.DenseCentre(stride=1))
    assert [made.name(r) for r in range(3)] == ["train/run/a", "train/walk/b", "val/run/c"] and made.classes == ("run", "walk")
    assert numbers(made, 0) == [6, 8, 9] and made.record(0)["pts"].tolist() == [5, 6, 8, 9, 12] and made.record(2)["split"] == "val"
    with pipeline.stream(made, batch_size=3, seed=0, workers=1) as stream:
        assert not next(stream)["fault"].any()
    assert pictures.numbers(["img_00001.jpg", "img_1.jpg", "img_100000.jpg", "img_00003.jpg.part"], "img_{:05}.jpg") == [1, 100000]


def test_pictures_as_clips(tmp_path: pathlib.Path) -> None:
    """A picture is a video of one frame, in every mode of colour, turned as its EXIF says."""
    (tmp_path / "v/cat").mkdir(parents=True)
    Image.fromarray(bars(7)).convert("L").save(tmp_path / "v/cat/grey.png")
    Image.fromarray(bars(9)).convert("RGBA").save(tmp_path / "v/cat/alpha.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: stored turned by 180 degrees
    Image.fromarray(bars(11)[::-1, ::-1]).save(tmp_path / "v/cat/turned.jpg", quality=95, exif=exif)
    assert command(tmp_path / "v", "--pictures", "--verify", "--out", tmp_path / "i.parquet", "--val-fraction=0") == 0
    made = source(tmp_path / "i.parquet")
    assert {made.name(r): numbers(made, r) for r in range(3)} == {"cat/alpha.webp": [9] * 4, "cat/grey.png": [7] * 4, "cat/turned.jpg": [11] * 4}
    assert made.classes == ("cat",)


def test_damaged_pictures(tmp_path: pathlib.Path) -> None:
    """Missing, cut, emptied, another size, text: typed errors with the picture's own path; --verify keeps them out."""
    for name in "abcdef":
        draw(tmp_path / "v" / name, range(1, 9))
    index.write(index.build(tmp_path / "v", template="img_{:05}.jpg", val_fraction=0), tmp_path / "i.parquet")
    third = {name: tmp_path / "v" / name / "img_00003.jpg" for name in "abcdef"}
    third["a"].unlink()
    third["b"].write_bytes(third["b"].read_bytes()[:500])
    third["c"].write_bytes(b"")
    Image.fromarray(bars(3, width=64)).save(third["d"])
    third["e"].write_text("text")
    made = source(tmp_path / "i.parquet", frames=8, sampling=clips.DenseRandom(stride=1))
    for row, said in enumerate(("open: No such file", "decode: .*[Tt]runcated", "decode: cannot identify", "decode: 64 x 64 pixels, 128 x 64 when",
                                "decode: cannot identify")):
        with pytest.raises(decode.DecodeError, match=f"v/{'abcde'[row]}/img_00003.jpg: ({said})"):
            made.read(row, rng=np.random.default_rng(0))
    assert made.read(5, rng=np.random.default_rng(0))["video"].shape == (1, 8, 128, 128, 3)
    table = index.build(tmp_path / "v", template="img_{:05}.jpg", val_fraction=0, verify=True)
    assert [status == "ok" for status in table.column("status").to_pylist()] == [True, False, False, False, False, True], "a gap is no damage"


@pytest.mark.parametrize(("template", "said"), [("img.jpg", "names no file by its number"), ("{}/{}", "is not understood|names no file"), ("a/{:03}.jpg", "names no file"), ("{:q}.jpg", "is not understood")])
def test_templates_are_checked(template: str, said: str, tmp_path: pathlib.Path) -> None:
    """Before anything is scanned; so is a folder that holds none."""
    with pytest.raises(UserError, match=said):
        index.build(tmp_path, template=template)
    with pytest.raises(UserError, match=r"no folder in .* holds pictures called img_\{:05\}\.jpg"):
        index.build(tmp_path, template="img_{:05}.jpg")


def test_videos_read_alike(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """FrameClips of an index of files is VideoClips, bit for bit."""
    index.write(index.build(root / "K400", val_fraction=0), tmp_path / "i.parquet")
    one, other = sources.VideoClips(index=str(tmp_path / "i.parquet"), frames=4, size=32, repeats=2), frame_folders.FrameClips(
        index=str(tmp_path / "i.parquet"), frames=4, size=32, repeats=2)
    for row in range(3):
        np.testing.assert_array_equal(*(s.read(row, rng=np.random.default_rng(5))["video"] for s in (one, other)))


def test_pictures_are_packed(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """With the stride of their own rows."""
    (tmp_path / "l.csv").write_text("SomethingV2/frames/7 1 40\nAVA2.2/frames/x 100 20\n")
    index.write(lists.build([tmp_path / "l.csv"], root=str(root), form="v2"), tmp_path / "i.parquet")
    assert entry.main(["pack", str(tmp_path / "i.parquet"), f"--out={tmp_path}/p", "--frames=4", "--stride=4", "--workers=1", "--preset=ultrafast"]) == 0
    made = packed.PackedClips(index=f"{tmp_path}/p/index.parquet", frames=4, size=128, crop=transforms.WholeFrame())
    assert [np.diff(numbers(made, row)).tolist() for row in range(2)] == [[2, 2, 2], [4, 4, 4]]
    assert [numbers(made, row)[0] in allowed for row, allowed in ((0, range(1, 34)), (1, range(100, 105)))] == [True, True]


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.fixture()
def memory(root: pathlib.Path) -> str:
    """The data set at an address of fsspec's memory, which only this process sees."""
    system = fsspec.filesystem("memory")
    for path in root.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/bucket/{path.relative_to(root)}", path.read_bytes())
    system.pipe_file("/bucket/.hidden/x.mp4", b"x")
    yield "memory://bucket"
    system.rm("/bucket", recursive=True)


def test_videos_at_an_address(memory: str, root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Listed, probed and read there, bit for bit as from a disk; what is gone or exchanged is a typed error."""
    assert command(f"{memory}/K400", "--out", tmp_path / "i.parquet", "--val-fraction=0") == 0
    index.write(index.build(root / "K400", val_fraction=0), tmp_path / "disk.parquet")
    made, disk = (sources.VideoClips(index=str(tmp_path / f"{n}.parquet"), frames=4, size=32) for n in ("i", "disk"))
    assert [made.name(r) for r in range(3)] == [disk.name(r) for r in range(3)] and made.record(0)["path"].startswith("memory://bucket/K400/")
    for row in range(3):
        np.testing.assert_array_equal(*(s.read(row, rng=np.random.default_rng(5))["video"] for s in (made, disk)))
    fsspec.filesystem("memory").pipe_file("/bucket/K400/c.mp4", encode(frames=90, bf="0"))
    fsspec.filesystem("memory").rm("/bucket/K400/d.webm.mp4")
    for row, said in ((1, "open: exchanged since it was indexed"), (2, "open: FileNotFoundError")):
        with pytest.raises(decode.DecodeError, match=said):
            made.read(row, rng=np.random.default_rng(0))


def test_a_list_at_an_address(memory: str, tmp_path: pathlib.Path) -> None:
    """Videos and pictures below an address as --root; folders of pictures there cannot be listed without one."""
    (tmp_path / "l.csv").write_text("K400/c.mp4 0 -1\nSomethingV2/frames/7 1 40\nSomethingV2/frames/8 1 40\n")
    assert command("--list", tmp_path / "l.csv", "--format=v2", f"--root={memory}", "--out", tmp_path / "i.parquet") == 0
    made = source(tmp_path / "i.parquet")
    assert len(made) == 2 and np.diff(numbers(made, 0)).tolist() == [4] * 3 and np.diff(numbers(made, 1)).tolist() == [2] * 3
    with pytest.raises(UserError, match="folders of pictures in memory://bucket cannot be listed; allowed are an official list"):
        index.build(memory, template="img_{:05}.jpg")


def test_workers_read_addresses(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The protocol of local files through fsspec, from other processes."""
    index.write(index.build(f"file://{root}/K400", val_fraction=0), tmp_path / "i.parquet")
    made = sources.VideoClips(index=str(tmp_path / "i.parquet"), frames=4, size=32)
    assert made.record(0)["path"].startswith("file://")
    with pipeline.stream(made, batch_size=3, seed=0, workers=1) as stream:
        assert not next(stream)["fault"].any()


def test_what_must_be_local(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """An index and packed shards are mapped; unknown protocols and missing clients are the user's to mend; all are one line."""
    for made in (sources.VideoClips(index="gs://bucket/i.parquet"), packed.PackedClips(index="gs://bucket/p/index.parquet")):
        with pytest.raises(UserError, match="index gs://bucket/.* is an address; allowed are paths, because it is mapped into memory: copy it, or mount the bucket"):
            len(made)
    with pytest.raises(UserError, match="nope://x/y.mp4 cannot be reached: .*nope"):
        remote.read("nope://x/y.mp4")
    assert command("nope://x", "--out", tmp_path / "i.parquet") == 2
    assert command("memory://empty", "--out", tmp_path / "i.parquet") == 2
    assert "no videos in memory://empty" in capsys.readouterr().err
    assert entry.main(["pack", "gs://b/i.parquet", f"--out={tmp_path}/p"]) == 2 and entry.main(["pack", str(tmp_path), "--out=gs://b/p"]) == 2
    assert "packed folder gs://b/p is an address" in capsys.readouterr().err


def test_rows_of_an_index_say_how_they_are_stored(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The index survives its two files and the columns that other programs may drop."""
    (tmp_path / "l.csv").write_text("SomethingV2/frames/7 1 40\nK400/c.mp4 0 -1\n")
    index.write(lists.build([tmp_path / "l.csv"], root=str(root), form="v2"), tmp_path / "i.parquet")
    rows = index.load(tmp_path / "i.parquet").to_pylist()
    assert json.dumps([(r["template"], r["stride"], r["size"] is None) for r in rows]) == '[["img_{:05}.jpg", 2, true], [null, null, false]]'


@pytest.mark.parametrize("listed", [True, False])
def test_rows_of_a_large_index_are_small(listed: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uneven times are no numbers of Python on the way into an index, and rows that are done are not kept as objects."""
    template = decode.probe(encode(frames=2, bf="0"))

    def describe(job: index.Job, /) -> dict[str, Any]:
        number = int(pathlib.PurePath(job.path).stem)
        times = np.cumsum(np.random.default_rng(number).integers(30, 40, 300))
        return columns.of(dataclasses.replace(template, pts=times, keys=times[::50]))

    monkeypatch.setattr(index, "describe_job", describe)
    names = [f"{number}.mp4" for number in range(1000)]
    monkeypatch.setattr(index, "find", lambda directory, **kw: names)
    (tmp_path / "train.csv").write_text("".join(f"{name} 0\n" for name in names))

    def built() -> Any:
        return lists.build([tmp_path / "train.csv"], root="/v", form="v1") if listed else index.build(tmp_path)

    built()  # what is made once a process is not of the rows
    gc.collect()
    tracemalloc.start()
    try:
        table = built()
        assert tracemalloc.get_traced_memory()[1] < 3200 * len(names)
    finally:
        tracemalloc.stop()
    last, wanted = table.slice(999).to_pylist()[0], describe(index.Job(names[-1]))
    assert table.num_rows == 1000 and last["name"] == names[-1] and last["split"] in splits.SPLITS
    assert last["pts"] == wanted["pts"].tolist() and last["keys"] == wanted["keys"].tolist()
    assert wanted["keys"].base is None, "a part of all times would keep them"
