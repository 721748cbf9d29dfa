"""The index command and its files as a user meets them: any folder, labels, damage, moves, broken caches."""

import fractions
import hashlib
import json
import multiprocessing
import os
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_decode import encode, flipped, spelt

from videomae_jax import __main__ as entry
from videomae_jax.data import columns, decode, index, sources, splits
from videomae_jax.errors import UserError


@pytest.fixture(scope="module")
def clip() -> bytes:
    """Twelve frames that spell their numbers."""
    return encode(frames=12, bf="0")


def fill(directory: pathlib.Path, names: list[str], content: bytes, /) -> pathlib.Path:
    """Writes the same content under every name."""
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


def command(*words: object) -> int:
    """The exit code of the `index` command."""
    return entry.main(["index", *map(str, words)])


def table_of(out: pathlib.Path, /) -> dict[str, dict[str, Any]]:
    """{name: columns} of an index."""
    return {row["name"]: row for row in index.load(out).to_pylist()}


def test_a_bare_folder(clip: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Nested folders, capitals, spaces and umlauts; hidden files and others are passed over; no csv is needed."""
    names = ["b.MP4", "deep/er/still/a b.mp4", "Zürich/ü.mkv", "a.mp4"]
    fill(tmp_path / "videos", [*names, ".hidden.mp4", "deep/.cache/x.mp4", "notes.txt", "c.mp4.part"], clip)
    (tmp_path / "videos/folder.mp4").mkdir()
    assert command(tmp_path / "videos", "--out", tmp_path / "new/folder/index.parquet") == 0
    rows = table_of(tmp_path / "new/folder/index.parquet")
    assert list(rows) == sorted(names) and {r["status"] for r in rows.values()} == {"ok"}
    assert [rows[n]["label"] for n in sorted(names)] == ["Zürich", None, None, "deep"]
    assert {r["split"] for r in rows.values()} == {"train", "val"}
    row = rows["a.mp4"]
    assert (row["codec"], row["width"], row["height"], row["rotation"], row["frames"], row["fps_num"], row["fps_den"], row["duration"]) == (
        "h264", 128, 64, 0, 12, 30, 1, pytest.approx(0.4))
    out = capsys.readouterr().out
    assert "4 videos, 4 readable, 48 frames, 0.00 hours" in out and "label (2 classes, 2 videos without)" in out and "damaged" not in out


def test_links_are_followed_once(clip: bytes, tmp_path: pathlib.Path) -> None:
    """Class folders that are links to other disks count; a link back up does not make an endless list."""
    fill(tmp_path / "disk", ["x.mp4"], clip)
    fill(tmp_path / "videos", ["y/y.mp4"], clip)
    (tmp_path / "videos/x").symlink_to(tmp_path / "disk")
    (tmp_path / "videos/y/up").symlink_to(tmp_path / "videos")
    (tmp_path / "videos/dangling.mp4").symlink_to(tmp_path / "absent.mp4")
    assert index.find(tmp_path / "videos") == ["x/x.mp4", "y/y.mp4"]


def test_class_folders_and_split_folders(clip: bytes, tmp_path: pathlib.Path) -> None:
    """train/CLASS, validation/CLASS and test/CLASS give split and label; others get a drawn split."""
    fill(tmp_path, ["Train/run/a.mp4", "validation/run/b.mp4", "test/walk/c.mp4", "train/d.mp4", "run/e.mp4", "walk/train/f.mp4"], clip)
    index.write(index.build(tmp_path, val_fraction=0.0), tmp_path / "index.parquet")
    rows = table_of(tmp_path / "index.parquet")
    assert {n: (r["split"], r["label"]) for n, r in rows.items()} == {
        "Train/run/a.mp4": ("train", "run"), "validation/run/b.mp4": ("val", "run"), "test/walk/c.mp4": ("test", "walk"), "train/d.mp4": ("train", None),
        "run/e.mp4": ("train", "run"), "walk/train/f.mp4": ("train", "walk")}


def test_labels_from_a_csv(clip: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Exactly the named files; a byte-order mark, absolute paths, commas, spaces behind them, empty labels and further columns are understood."""
    fill(tmp_path / "v", ["a.mp4", "b.mp4", "c,1.mp4", "d.mp4"], clip)
    (tmp_path / "l.csv").write_text(f'path, label,split,view\n./a.mp4, cat,train,left\n{tmp_path}/v/b.mp4,,val,right\n"c,1.mp4","dog, big",test,\n',
                                    encoding="utf-8-sig")
    assert command(tmp_path / "v", "--out", tmp_path / "i.parquet", "--labels", tmp_path / "l.csv") == 0
    rows = table_of(tmp_path / "i.parquet")
    assert {n: (r["label"], r["split"], r["view"]) for n, r in rows.items()} == {
        "a.mp4": ("cat", "train", "left"), "b.mp4": (None, "val", "right"), "c,1.mp4": ("dog, big", "test", None)}
    assert "label (2 classes, 1 videos without)" in capsys.readouterr().out


@pytest.mark.parametrize(("text", "message"), [
    (None, "no label file"), ("", "begins with the columns (none); needed is the header path,label"), ("a.mp4 0\n", "begins with the columns a.mp4 0"),
    ("path,label\n", "lists no video"), ("path,label\na.mp4,x\nb.mp4,x,y\n", ":3 has more values than the 2 columns"),
    ("path,label\na.mp4,x\n./a.mp4,y\n", ":3 names 'a.mp4' a second time"), ("path,label,split\na.mp4,x,dev\n", ":2: split 'dev'; allowed are train, val, test"),
    ("path,label\na.mp4,x \n", ":2: label 'x '; allowed are labels without white space at their ends"),
    ("path,label,split\na.mp4,x\n", "split ''; allowed are"), ("path,label,frames\na.mp4,x,3\n", "column 'frames' is one that the index fills itself"),
    ("path,label,packed\na.mp4,x,3\n", "column 'packed' is one that the index fills itself"),
    ("path,label,part\na.mp4,-1,hand\n", "column 'part' is one that the index fills itself"),
    ("path,label,a,a\na.mp4,x,1,2\n", "column 'a' occurs 2 times"), ("path,label,\na.mp4,x,1\n", "column '' occurs 1 times"),
    ("path,label\na.mp4,x\nabsent.mp4,y\n../b.mp4,z\n", "names 2 files that are not videos in"), ("path,label\na.txt,x\n", "first 'a.txt'"),
    (b"path,label\na.mp4,\xff\xfe\n", "is no csv file in UTF-8")])
def test_mistakes_in_a_csv(text: str | bytes | None, message: str, clip: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Each is one line with the value, before any video is read; nothing is written."""
    fill(tmp_path / "v", ["a.mp4", "a.txt"], clip)
    labels = tmp_path / "labels.csv"
    if text is not None:
        labels.write_bytes(text if isinstance(text, bytes) else text.encode())
    code = command(tmp_path / "v", "--out", tmp_path / "i.parquet", "--labels", labels)
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message in error and not (tmp_path / "i.parquet").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["{}/absent", "--out={}/i.parquet"], "absent is not a folder"), (["{}/v/a.mp4", "--out={}/i.parquet"], "a.mp4 is not a folder"),
    (["{}/empty", "--out={}/i.parquet"], "no videos in"), (["{}/v", "--out={}/i.csv"], "allowed is a file name that ends in .parquet"),
    (["{}/v", "--out={}/v/a.mp4/i.parquet"], "cannot write to"), (["{}/v", "--out={}/f.parquet"], "f.parquet is a folder"),
    (["{}/v", "--out=/proc/i.parquet"], "cannot write to /proc"),
    *((["{}/v", "--out={}/i.parquet", f"--fps={x}"], f"--fps={x}; allowed are 0.01 to 1000") for x in ("nan", "inf", "0.0", "-1.0", "0.0003", "1e+300")),
    (["--list=l.csv", "--out={}/i.parquet", "--pictures", "--labels=l.csv"], "--labels, --pictures with --list; a list tells its labels itself, so allowed"),
    (["--list={}/val.csv", "--out={}/i.parquet", "--val-fraction=0"], "val_fraction is 0.0, but {}/val.csv lists videos that are held out; allowed is one of them"),
    (["--list={}/l.csv", "--out={}/i.parquet", "--format=v1", "--format=v2"], "2 formats (v1, v2) of 1 lists; allowed is one of all, or one of each in their order"),
    (["--list={}/l.csv", "--out={}/i.parquet", "--val-fraction=1"], "allowed is 0 <= val_fraction < 1"),
    (["{}/v", "--out={}/i.parquet", "--root={}", "--format=v1"], "--format, --root with the folder"),
    *((["--list=l.csv", "--out={}/i.parquet", "--template=f{{:03}}.png", *form], "--template=f{:03}.png with lists of format v1, which name video files; allowed are")
      for form in ([], ["--format=v1"])),
    *(([*which, "--out={}/i.parquet", "--fps=12"], "--fps=12 with video files, which tell their own; allowed is") for which in (["{}/v"], ["--list=l.csv"])),
    (["{}/v", "--out={}/i.parquet", "--pictures", "--template=x"], "--pictures with --template=x; allowed is one of them"),
    (["{}/v", "--out={}/i.parquet", "--workers=0"], "--workers=0; allowed are 1 and more"),
    *((["{}/v", "--out={}/i.parquet", f"--val-fraction={x}"], "allowed is 0 <= val_fraction < 1") for x in (1, -0.1, "nan"))])
def test_mistakes_in_the_command(words: list[str], message: str, clip: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one line, before the scan."""
    fill(tmp_path, ["v/a.mp4", "empty/notes.txt"], clip)
    (tmp_path / "f.parquet").mkdir()
    for name in ("l.csv", "val.csv"):
        (tmp_path / name).write_text("v/a.mp4 0\n")
    monkeypatch.setattr(index, "scan", lambda *a, **kw: pytest.fail("scanned"))
    code = command(*(w.format(tmp_path) for w in words))
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message.replace("{}", str(tmp_path)) in error


def test_a_name_that_is_no_text(clip: bytes, tmp_path: pathlib.Path) -> None:
    """Bytes from another encoding cannot be stored; the file is named."""
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(clip)
    except OSError:
        pytest.skip("this file system allows only UTF-8")
    with pytest.raises(UserError, match=r"caf\\udce9.mp4.*is not UTF-8"):
        index.find(tmp_path)


def test_a_class_of_damaged_videos_counts(clip: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The number printed is that of the classes of a run, whose head needs it; the class without a readable video is named."""
    fill(tmp_path, ["a/1.mp4", "b/1.mp4", "b/2.mp4"], clip)
    fill(tmp_path, ["c/1.mp4", "damaged.mp4"], b"no video")
    assert command(tmp_path, "--out", tmp_path / "i.parquet") == 0
    out = capsys.readouterr().out
    classes = sources.VideoClips(index=str(tmp_path / "i.parquet")).classes
    assert classes == ("a", "b", "c") and f"label ({len(classes)} classes, 0 videos without)" in out
    assert "classes without a readable video: c\n" in out


def test_an_index_on_a_full_disk(clip: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with its name; nothing half-written stays, and an older index as it was."""
    fill(tmp_path / "v", ["a.mp4"], clip)
    (tmp_path / "i.parquet").write_bytes(b"older")

    def full(table: pa.Table, where: pathlib.Path, **_: Any) -> None:
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.pq, "write_table", full)
    assert command(tmp_path / "v", "--out", tmp_path / "i.parquet") == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'i.parquet'} cannot be written (No space left on device)\n"
    assert {p.name for p in tmp_path.iterdir()} == {"v", "i.parquet"} and (tmp_path / "i.parquet").read_bytes() == b"older"


def test_no_readable_video(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """The index is written all the same, the reasons are printed, and the exit code says that it is of no use."""
    fill(tmp_path, ["a.mp4", "b.avi"], b"no video")
    fill(tmp_path, ["empty.mov"], b"")
    assert command(tmp_path, "--out", tmp_path / "i.parquet") == 2
    done = capsys.readouterr()
    assert "3 videos, 0 readable" in done.out and done.out.count("damaged:") == 3 and "none of the 3 videos" in done.err
    assert {r["status"].split(":")[0] for r in table_of(tmp_path / "i.parquet").values()} == {"open"}
    with pytest.raises(UserError, match="no readable video in split 'train'; it has no readable video at all"):
        len(sources.VideoClips(index=str(tmp_path / "i.parquet")))


def test_what_hangs_is_given_up_before_every_frame_is_decoded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody writes to, with and without --verify."""
    os.mkfifo(tmp_path / "a.mp4")
    monkeypatch.setattr(decode, "TIMEOUT", 0.25)
    for verify in (False, True):
        found = index.describe_job(index.Job(str(tmp_path / "a.mp4"), verify=verify))
        assert found["status"].startswith("timeout: ")


def test_what_may_not_be_read_is_one_line(written: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """An index, labels, and whatever else a command opens. (Root may read everything, so the refusal is made here.)"""
    def refuse(self: pathlib.Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", refuse)
        with pytest.raises(UserError, match=r"parquet cannot be read \(Permission denied\)"):
            index.load(written)
    labels = written.parent / "labels.csv"
    labels.write_text("path,label\na.mp4,x\n")
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", refuse)
        with pytest.raises(UserError, match=r"labels.csv cannot be read \(Permission denied\)"):
            index.read_labels(labels, directory=written.parent)
    with monkeypatch.context() as patch:
        patch.setattr("videomae_jax.commands.index.main", lambda argv: refuse(labels))
        assert entry.main(["index"]) == 2
    assert capsys.readouterr().err.endswith("labels.csv cannot be accessed: Permission denied\n")


def test_verify_finds_what_a_header_hides(clip: bytes, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Damage between the packets' headers shows only when frames are decoded; a cut file shows at once."""
    long = encode(frames=60, crf="5")
    fill(tmp_path, ["good.mp4"], clip)
    (tmp_path / "cut.mp4").write_bytes(long[: len(long) * 2 // 3])
    (tmp_path / "flipped.mp4").write_bytes(flipped(long, at=0.6, length=200))
    status = {}
    for option in ((), ("--verify",)):
        assert command(tmp_path, "--out", tmp_path / "i.parquet", *option) == 0
        status[option] = {n: r["status"].split(":")[0] for n, r in table_of(tmp_path / "i.parquet").items()}
    assert status[()] == {"good.mp4": "ok", "cut.mp4": "short", "flipped.mp4": "ok"}
    assert status["--verify",] == {"good.mp4": "ok", "cut.mp4": "short", "flipped.mp4": "decode"}
    assert "damaged: flipped.mp4: decode: " in capsys.readouterr().out


def test_split_by_name(clip: bytes, tmp_path: pathlib.Path) -> None:
    """The share is kept, a file keeps its side when others come, and no side is empty."""
    rows = [{"name": f"{i}.mp4", "split": None, "status": "ok"} for i in range(4000)]
    splits.draw(rows, val_fraction=0.25)
    assert 900 < sum(r["split"] == "val" for r in rows) < 1100
    first = {r["name"]: r["split"] for r in rows}
    more = [{"name": f"{i}.mp4", "split": None, "status": "ok"} for i in range(8000)]
    splits.draw(more, val_fraction=0.25)
    assert {r["name"]: r["split"] for r in more[:4000]} == first
    for fraction in (1e-9, 0.999999):
        two = [{"name": n, "split": None, "status": "ok"} for n in "ab"] + [{"name": "c", "split": None, "status": "open: no"}]
        splits.draw(two, val_fraction=fraction)
        assert {r["split"] for r in two[:2]} == {"train", "val"}
    none = [{"name": f"{i}.mp4", "split": None, "status": "ok"} for i in range(50)]
    splits.draw(none, val_fraction=0.0)
    assert {r["split"] for r in none} == {"train"}


def test_several_processes_list_the_same(clip: bytes, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same order, and long scans tell how far they are."""
    fill(tmp_path, [f"{i}.mp4" for i in range(5)], clip)
    fill(tmp_path, ["bad.mp4"], b"no")
    one = index.build(tmp_path)
    monkeypatch.setattr(index, "PARALLEL", 2)
    monkeypatch.setattr(index, "PATIENCE", 0.0)
    said: list[str] = []
    assert index.build(tmp_path, workers=2, say=said.append).equals(one)
    assert said[-1] == "5 of 6 videos read"


@pytest.mark.parametrize("kind", [{}, {"variable": True}, {"container": "matroska", "frames": 1}, {"codec": "mpeg4", "container": "avi"}])
def test_what_is_stored_is_what_the_probe_tells(kind: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """Regular times are stored as a start and a step, others in full; every field comes back."""
    data = encode(**({"frames": 40} | kind))
    (tmp_path / "a.mkv").write_bytes(data)
    index.write(index.build(tmp_path, val_fraction=0.0), tmp_path / "i.parquet")
    row = table_of(tmp_path / "i.parquet")["a.mkv"]
    info, stored = decode.probe(data), columns.info(row)
    assert (row["pts"] is None) == (len(np.unique(np.diff(info.pts))) <= 1)
    for field in vars(info):
        np.testing.assert_array_equal(getattr(stored, field), getattr(info, field))
    assert isinstance(stored.fps, fractions.Fraction)


def test_a_moved_folder(clip: bytes, tmp_path: pathlib.Path) -> None:
    """Below the index's folder paths are relative: rename or copy it and everything works; also through a link to the index."""
    fill(tmp_path / "set", ["videos/a.mp4", "videos/b.mp4"], clip)
    assert command(tmp_path / "set/videos", "--out", tmp_path / "set/index.parquet", "--val-fraction=0") == 0
    (tmp_path / "set").rename(tmp_path / "moved")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "moved/index.parquet")
    for path in ("moved/index.parquet", "link.parquet"):
        source = sources.VideoClips(index=str(tmp_path / path), frames=2, size=64)
        example = source.read(0, rng=np.random.default_rng(0))
        assert example["video"].shape == (1, 2, 64, 64, 3)
    assert command(tmp_path / "moved/videos", "--out", tmp_path / "elsewhere/index.parquet") == 0
    assert {r["path"] for r in table_of(tmp_path / "elsewhere/index.parquet").values()} == {str(tmp_path / "moved/videos" / n) for n in ("a.mp4", "b.mp4")}


def test_an_index_written_over_a_link(clip: bytes, tmp_path: pathlib.Path) -> None:
    """A link is replaced, not followed, and the paths fit where the file then lies."""
    fill(tmp_path / "set", ["a.mp4"], clip)
    (tmp_path / "index.parquet").touch()
    (tmp_path / "set/index.parquet").symlink_to(tmp_path / "index.parquet")
    index.write(index.build(tmp_path / "set", val_fraction=0.0), tmp_path / "set/index.parquet")
    assert sources.VideoClips(index=str(tmp_path / "set/index.parquet"), frames=1, size=32).read(0, rng=np.random.default_rng(0))


@pytest.fixture
def written(clip: bytes, tmp_path: pathlib.Path) -> pathlib.Path:
    """An index of three videos."""
    fill(tmp_path / "v", ["a.mp4", "b.mp4", "c.mp4"], clip)
    index.write(index.build(tmp_path / "v"), tmp_path / "i.parquet")
    return tmp_path / "i.parquet"


def broken_caches(whole: bytes) -> dict[str, bytes]:
    """What may lie where the cache should be."""
    batch = whole.find(b"\xff\xff\xff\xff", 12)  # the second message begins here
    return {"empty": b"", "garbage": b"garbage" * 100, "half": whole[: len(whole) // 2], "no footer": whole[:-10], "footer only": whole[-200:],
            "zeroed header": whole[:batch] + bytes(200) + whole[batch + 200:]}


@pytest.mark.parametrize("kind", broken_caches(b"x" * 1000))
def test_a_broken_cache_is_written_anew(kind: str, written: pathlib.Path) -> None:
    """Whatever stands there, the table is that of the Parquet file, and the next process maps a whole cache again."""
    cache, rows = written.with_suffix(".arrow"), index.load(written).to_pylist()
    whole = cache.read_bytes()
    cache.write_bytes(broken_caches(whole)[kind])
    assert index.load(written).to_pylist() == rows
    assert cache.read_bytes() == whole
    assert sorted(p.name for p in written.parent.iterdir()) == ["i.arrow", "i.parquet", "v"], "no temporary file stays"


def test_a_stale_cache_is_not_believed(written: pathlib.Path, clip: bytes) -> None:
    """An index that was made again, also with an older time stamp, is what counts."""
    assert len(index.load(written)) == 3
    fill(written.parent / "v", ["d.mp4"], clip)
    stale = written.with_suffix(".arrow").read_bytes()
    index.write(index.build(written.parent / "v"), written)
    written.with_suffix(".arrow").write_bytes(stale)
    os.utime(written, (0, 0))
    assert len(index.load(written)) == 4


def test_a_folder_that_cannot_be_written(written: pathlib.Path) -> None:
    """Without a place for the cache the table is held in memory."""
    rows, cache = index.load(written).to_pylist(), written.with_suffix(".arrow")
    cache.unlink()
    cache.mkdir()  # holds for every user, root included
    assert index.load(written).to_pylist() == rows
    cache.rmdir()
    if os.geteuid():
        written.parent.chmod(0o500)
        try:
            assert index.load(written).to_pylist() == rows and not cache.exists()
        finally:
            written.parent.chmod(0o700)
    assert sorted(p.name for p in written.parent.iterdir() if p.suffix != ".arrow") == ["i.parquet", "v"]


def loaded(path: str) -> int:
    """Rows of an index, in another process."""
    return len(index.load(path))


def test_processes_that_start_together(written: pathlib.Path) -> None:
    """All find the cache missing, all write it, none sees half of it."""
    written.with_suffix(".arrow").unlink()
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert pool.map(loaded, [str(written)] * 30, chunksize=1) == [3] * 30
    assert sorted(p.name for p in written.parent.iterdir()) == ["i.arrow", "i.parquet", "v"]


def test_the_table_is_mapped(written: pathlib.Path) -> None:
    """Loading takes no memory of its own, so that every worker can do it."""
    index.load(written)
    before = pa.total_allocated_bytes()
    table = index.load(written)
    assert pa.total_allocated_bytes() - before < 1000 and len(table) == 3


def test_more_times_than_32_bits_count(written: pathlib.Path) -> None:
    """Seven million clips of 10 s have them; an index of lists that end there is opened as one of those that do not, and so is its cache, in place."""
    kinds = {name: index.SCHEMA.field(name).type for name in columns.TIMES}
    assert set(kinds.values()) == {pa.large_list(pa.int64())}
    half = pa.table({"pts": pa.LargeListArray.from_arrays(pa.array([0, 1_500_000_000]), pa.nulls(1_500_000_000))})  # nulls take no memory
    assert pa.concat_tables([half, half]).combine_chunks().column("pts").num_chunks == 1
    rows, old = index.load(written).to_pylist(), pq.read_table(written)
    for name in kinds:
        old = old.set_column(old.schema.get_field_index(name), name, old.column(name).cast(pa.list_(pa.int64())))
    pq.write_table(old, written)
    old = old.replace_schema_metadata({index.DIGEST: hashlib.sha256(written.read_bytes()).hexdigest().encode()})
    with pa.OSFile(str(written.with_suffix(".arrow")), "wb") as sink, pa.ipc.new_file(sink, old.schema) as writer:
        writer.write_table(old)
    for kind in (pa.list_(pa.int64()), kinds["pts"]):
        table = index.load(written)
        assert {name: table.schema.field(name).type for name in kinds} == kinds and table.to_pylist() == rows
        assert pa.ipc.open_file(str(written.with_suffix(".arrow"))).schema.field("pts").type == kind
        written.with_suffix(".arrow").unlink()


def test_an_index_edited_by_other_programs(written: pathlib.Path) -> None:
    """Changed types and added columns are read; labels that became numbers are class names again."""
    table = pq.read_table(written)
    table = table.set_column(table.schema.names.index("label"), "label", pa.array([10, 9, None], pa.float64()).cast(pa.int64()))
    table = table.set_column(table.schema.names.index("width"), "width", table.column("width").cast(pa.float64()))
    table = table.append_column("score", pa.array([1, 2, 3]))
    pq.write_table(table.drop_columns(["name"]).append_column("name", table.column("name").cast(pa.large_string())), written)
    source = sources.VideoClips(index=str(written), split="all", frames=2, size=32)
    assert source.classes == ("9", "10") and sources.VideoClips(index=str(written), split="all", label="score").classes == ("1", "2", "3")
    assert [int(source.read(i, rng=np.random.default_rng(0))["label"][0]) for i in range(3)] == [1, 0, -1]


@pytest.mark.parametrize(("spoil", "message"), [
    (lambda path: path.unlink(), "no index .* make one with"), (lambda path: path.write_bytes(b"PAR1 no"), "is no Parquet file"),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is no Parquet file"),
    (lambda path: pq.write_table(pq.read_table(path).drop_columns(["keys", "pts"]), path), "lacks the columns pts, keys"),
    (lambda path: pq.write_table(pq.read_table(path).drop_columns(["frames"]).append_column("frames", pa.array(["a", "b", "c"])), path), "column 'frames' is string")])
def test_no_index(spoil: Any, message: str, written: pathlib.Path) -> None:
    """What is missing, cut or something else is a user's error."""
    spoil(written)
    with pytest.raises(UserError, match=message):
        index.load(written)


def test_real_folder(real_videos: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Files of many makers as they lie: every one is listed, the damaged ones with their reasons."""
    status = {}
    for option in ((), ("--verify",)):
        assert command(real_videos, "--out", tmp_path / "i.parquet", *option) == 0
        status[option] = {n: r["status"].split(":")[0] for n, r in table_of(tmp_path / "i.parquet").items()}
    names = {p.name for p in real_videos.iterdir() if p.suffix != ".md"}
    assert set(status[()]) == names and len(names) == 16
    assert {n: s for n, s in status[()].items() if s != "ok"} == {"instruction_7min.mp4": "short"}
    assert {n: s for n, s in status["--verify",].items() if s != "ok"} == {"instruction_7min.mp4": "short", "corrupted.mp4": "decode"}
    rows = table_of(tmp_path / "i.parquet")
    assert {r["codec"] for r in rows.values() if r["codec"]} == {"h264", "hevc", "mpeg4", "vp9"}
    assert (rows["rotated_90.mov"]["width"], rows["rotated_90.mov"]["height"], rows["rotated_90.mov"]["rotation"]) == (320, 568, 270)
    assert rows["arm_wrestling.mp4"]["frames"] == decode.count(real_videos / "arm_wrestling.mp4")
    assert "16 videos, 14 readable" in capsys.readouterr().out.split("index written")[1]


def test_frames_are_those_of_the_file(written: pathlib.Path) -> None:
    """Stored times lead to the right frames."""
    row = table_of(written)["a.mp4"]
    video = decode.decode(written.parent / row["path"], [11, 0, 5], info=columns.info(row))
    assert [spelt(p) for p in video] == [11, 0, 5]
    json.dumps(row)
