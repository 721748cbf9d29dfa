"""Merging indexes: one class for one name, planted leaks of every kind, nothing lost untold, maps of classes in all directions."""

import json
import pathlib
from typing import Any

import pyarrow as pa
import pytest

from videomae_jax import __main__ as entry
from videomae_jax import head_rows
from videomae_jax.data import index, merge, sources
from videomae_jax.errors import UserError

FACTS = {"status": "ok", "codec": "h264", "width": 8, "height": 8, "rotation": 0, "frames": 8, "fps_num": 8, "fps_den": 1, "duration": 1.0,
         "time_base_num": 1, "time_base_den": 8, "pts_start": 0, "pts_step": 1, "pts": None, "keys": [0]}
CLIP = "{:_<11}_000001_000011.mp4"  # a Kinetics name


def written(folder: pathlib.Path, part: str, rows: list[tuple[Any, ...]], /, *, extra: str = "") -> pathlib.Path:
    """An index of (file, label, split[, facts]) rows; files hold their own name, or the "bytes" that the facts give."""
    table = []
    for name, label, split, *facts in rows:
        path = folder / part / name
        path.parent.mkdir(parents=True, exist_ok=True)
        given = dict(*facts)
        path.write_text(given.pop("bytes", f"{part} {name}"))
        table.append({"path": str(path), "name": name, "label": label, "split": split} | FACTS | given | ({extra: "x"} if extra else {}))
    schema = pa.schema([*index.SCHEMA, *([pa.field(extra, pa.string())] if extra else [])])
    index.write(pa.Table.from_pylist(table, schema=schema), folder / f"{part}.parquet")
    return folder / f"{part}.parquet"


@pytest.fixture
def parts(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    """Three little Kinetics with what the real ones share: clips, leaks into training, spellings."""
    def k(name: str) -> str:
        return CLIP.format(name)
    return [written(tmp_path, "k400", [
                (k("own4"), "abseiling", "train"), (k("shared"), "playing cards", "train"), (k("leak6"), "abseiling", "train"),
                (k("val4"), "abseiling", "val"), (k("both"), "zumba", "val"), (k("copied"), "zumba", "train", {"bytes": "same bytes"})]),
            written(tmp_path, "k600", [
                (f"sub/{k('shared')}", "Playing Cards", "train"), (k("leak4").replace("leak4", "val4_"), "abseiling", "train"),
                (k("leak6"), "abseiling", "val"), (k("both"), "zumba", "val"), (k("test7"), "zumba", "train"), (k("own6"), "tossing coin", "train"), (k("broken"), "tossing coin", "train", {"status": "open: x"}),
                (k("other6"), "knitting", "val", {"bytes": "same bytes"})], extra="source"),
            written(tmp_path, "k700", [
                (k("broken"), "flipping a coin", "train"), (k("val4").replace("_000001_000011", "_000007_000017"), "knitting", "train"),
                (k("own4"), "knitting", "train"), (k("test7"), "knitting", "test"), (k("own7"), "person's hand", "train")])]


def video(name: str) -> str:
    """The YouTube id of a Kinetics name."""
    return pathlib.PurePosixPath(name).name[:11]


def rows_of(path: pathlib.Path) -> dict[str, tuple[str, str]]:
    """{name: (label, split)} of an index."""
    table = index.load(path)
    return {row["name"]: (row["label"], row["split"]) for row in table.select(["name", "label", "split"]).to_pylist()}


def test_planted_leaks_and_repeats(parts: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """By YouTube id whatever folder, seconds and part; the rest stays, with merged names, and every file is found again."""
    out = tmp_path / "k710.parquet"
    (tmp_path / "aliases.json").write_text(json.dumps({"flipping a coin": "tossing coin"}))
    assert entry.main(["index", f"--merge={','.join(map(str, parts))}", f"--out={out}", f"--aliases={tmp_path / 'aliases.json'}"]) == 0
    kept = rows_of(out)
    train = {name: label for name, (label, split) in kept.items() if split == "train"}
    assert train == {f"k400/{CLIP.format('own4')}": "abseiling", f"k400/{CLIP.format('shared')}": "playing cards", f"k400/{CLIP.format('copied')}": "zumba",
                     f"k600/{CLIP.format('own6')}": "tossing coin", f"k700/{CLIP.format('broken')}": "tossing coin", f"k700/{CLIP.format('own7')}": "person's hand"}
    held = {video(name) for name, (_, split) in kept.items() if split != "train"}
    assert held == {f"{v:_<11}" for v in ("val4", "both", "leak6", "other6", "test7")} and len(kept) == len(train) + len(held)
    assert not held & {video(name) for name in train}
    table = index.load(out)
    assert all((out.parent / path).is_file() for path in table.column("path").to_pylist())
    assert set(table.column("part").to_pylist()) == {"k400", "k600", "k700"} and set(table.column("source").to_pylist()) == {None, "x"}
    text = capsys.readouterr().out
    for line in ("1 clips of k400 left out: held out elsewhere", "2 clips of k600 left out: held out elsewhere", "1 clips of k700 left out: held out elsewhere",
                 "1 clips of k700 left out: repeated under another class", "3 clips of k600 left out: repeated", "playing cards and Playing Cards are one class",
                 "train: 6 clips (k400 3, k600 1, k700 2)", "val: 4 clips", "6 classes"):
        assert line in text, line


def test_equal_bytes_under_another_name(parts: list[pathlib.Path]) -> None:
    """Only --verify sees them."""
    name = f"k400/{CLIP.format('copied')}"
    for verify in (False, True):
        done = merge.merge(parts, aliases={}, verify=verify)
        assert (name in done.table.column("name").to_pylist()) is not verify
        assert len(done.dropped["held out elsewhere", "k400"]) == 1
        copies = done.dropped.get(("held out elsewhere under another name", "k400"), [])
        assert copies == [(name, f"k600/{CLIP.format('other6')}")] * verify


def test_maps_of_classes_in_all_directions(parts: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    """Entry i is the number of class i in the other head, as the loader numbers classes; unknown ones are -1."""
    out = tmp_path / "k710.parquet"
    merge.merged(",".join(map(str, parts)), out=out)
    classes = sources.VideoClips(index=str(out), split="all").classes
    assert classes == ("abseiling", "flipping a coin", "knitting", "person's hand", "playing cards", "tossing coin", "zumba")
    want = {"k710_to_k400": ([0, 4, 6], 3), "k400_to_k710": ([0, -1, -1, -1, 1, -1, 2], 7), "k710_to_k600": ([4, 0, 2, 5, 6], 5),
            "k600_to_k710": ([1, -1, 2, -1, 0, 3, 4], 7), "k710_to_k700": ([1, 2, 3], 3), "k700_to_k710": ([-1, 0, 1, 2, -1, -1, -1], 7)}
    for name, (rows, length) in want.items():
        found = head_rows.read(str(tmp_path / f"{name}.json"))
        assert found["rows"].tolist() == rows and len(found["target"]) == length, name
        part = name.split("_to_")[1]
        assert tuple(found["target"]) == sources.VideoClips(index=str(tmp_path / f"{part}.parquet"), split="all").classes


@pytest.mark.parametrize(("name", "video"), [
    # YouTube ids, which may hold hyphens and underscores
    ("x/-bcdefghij__000001_000011.webm", "-bcdefghij_"), ("a4cdefgHijk.mp4", "a4cdefgHijk"), ("a/a4cdefgHijk.mp4#30", "a4cdefgHijk"),
    ("abcdefghijk.mp4", "abcdefghijk of 7 bytes"), ("a/subject_one.mp4#30", "subject_one of 7 bytes"),
    ("a/b/abcdefghi-_ 1.mp4", "p/a/b/abcdefghi-_ 1"), ("v_Archery_g01_c01.avi", "p/v_Archery_g01_c01"), ("a/clip_000001.mp4", "p/a/clip_000001"),
    ("001.mp4", "p/001")])
def test_what_a_name_tells(name: str, video: str) -> None:
    """An id is the video wherever it lies; another name means something with its folder, or where it stands in one folder alone."""
    facts = {"folder": False, "status": "ok", "size": 7, "frames": 8, "duration": 1.0}
    rows = [{"part": "p", "name": n, **facts} for n in (name, f"other/{pathlib.PurePosixPath(name).name}")]
    merge.identify(rows)
    assert rows[0]["video"] == video and (rows[1]["video"] == video) is not video.startswith("p/")
    alone = [{"part": part, "name": n, **facts} for part, n in (("p", name), ("q", f"other/{pathlib.PurePosixPath(name).name}"))]
    merge.identify(alone)
    counts = merge.COUNTER.fullmatch(video.rpartition("/")[2])
    assert alone[0]["video"] == alone[1]["video"] == video.rpartition("/")[2].removesuffix(" of 7 bytes") + " of 7 bytes" * bool(counts)


@pytest.mark.parametrize(("one", "two"), [("a/001.mp4", "b/001.mp4"), ("a/clip_000001.mp4", "b/clip_000001.mp4"), ("a/v-12.mp4", "b/v-12.mp4")])
def test_parts_that_count_their_files_alike(one: str, two: str, tmp_path: pathlib.Path) -> None:
    """Each in one flat folder: the same number is the same video where a second sign says so, the size, or frames and duration where no size is known."""
    def kept(first: dict[str, Any], second: dict[str, Any]) -> int:
        paths = [written(tmp_path, "one", [(one, "run", "train", first)]), written(tmp_path, "two", [(two, "run", "train", second)])]
        return len(merge.merge(paths, aliases={}).table)

    assert kept({"size": 5}, {"size": 6}) == 2 and kept({"size": 5}, {"size": 5}) == 1
    assert kept({}, {}) == kept({"size": 5}, {}) == 1 and kept({}, {"frames": 9}) == kept({"size": 5}, {"duration": 2.0}) == 2
    assert kept({"status": "open: x"}, {}) == 2


def test_words_of_eleven_letters_are_no_ids(tmp_path: pathlib.Path) -> None:
    """Views of one subject lie in several folders under one name; those of one size are repeats, and windows of one file stay one video."""
    rows = [(f"{view}/subject_one.mp4", "run", "train", {"size": size}) for view, size in (("front", 5), ("side", 6), ("back", 5))]
    held = [("cuts/subject_two.mp4#30", "run", "train", {"frames": 5}), ("cuts/subject_two.mp4#60", "run", "val"),
            ("more/subject_two.mp4", "run", "train", {"frames": 9})]
    done = merge.merge([written(tmp_path, "own", rows), written(tmp_path, "held", held)], aliases={})
    kept = ["own/front/subject_one.mp4", "own/side/subject_one.mp4", "held/cuts/subject_two.mp4#60", "held/more/subject_two.mp4"]
    assert done.table.column("name").to_pylist() == kept
    assert done.dropped == {("repeated", "own"): [("own/back/subject_one.mp4", "own/front/subject_one.mp4")],
                            ("held out elsewhere", "held"): [("held/cuts/subject_two.mp4#30", "held/cuts/subject_two.mp4#60")]}


def test_class_folders_that_count_their_clips_from_one(tmp_path: pathlib.Path) -> None:
    """Nothing of them is taken for a repeat; a name that stands once in each part is one video in both."""
    paths = [written(tmp_path, "own", [(f"{c}/{number:03}.mp4", c, "val" if number == 2 else "train") for c in ("run", "walk") for number in (1, 2)]),
             written(tmp_path, "more", [("jump/001.mp4", "jump", "train"), ("jump/unique.mp4", "jump", "train")]),
             written(tmp_path, "held", [("x/unique.webm", "jump", "val")])]
    done = merge.merge(paths, aliases={})
    own = [f"own/{c}/{number:03}.mp4" for c in ("run", "walk") for number in (1, 2)]
    assert sorted(done.table.column("name").to_pylist()) == ["held/x/unique.webm", "more/jump/001.mp4", *own]
    assert done.dropped == {("held out elsewhere", "more"): [("more/jump/unique.mp4", "held/x/unique.webm")]}


def test_windows_of_one_video_stay(tmp_path: pathlib.Path) -> None:
    """They are no repeats of each other, though none of a held-out video stays in training."""
    facts = {"template": "image_{:06}.jpg", "bytes": "x"}
    paths = [written(tmp_path, "cuts", [(f"AVA2.2/film{n}.v#{start}", "talk", "train", facts) for n in (1, 2) for start in (30, 60)]),
             written(tmp_path, "held", [("film2.v#90", "talk", "val", facts)])]
    done = merge.merge(paths, aliases={})
    assert done.table.column("name").to_pylist() == ["cuts/AVA2.2/film1.v#30", "cuts/AVA2.2/film1.v#60", "held/film2.v#90"]
    assert len(done.dropped["held out elsewhere", "cuts"]) == 2


def test_numbers_are_no_classes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Indexes of official lists need the names of their classes; then those decide, and maps count what the lists count."""
    paths = [written(tmp_path, "k4", [(CLIP.format("a1"), "0", "train"), (CLIP.format("a2"), "1", "train"), (CLIP.format("a10"), "10", "val")]),
             written(tmp_path, "k6", [(CLIP.format("b0"), "0", "train"), (CLIP.format("b1"), "1", "train")])]
    out, command = tmp_path / "k.parquet", ["index", f"--merge={paths[0]},{paths[1]}", f"--out={tmp_path / 'k.parquet'}"]
    (tmp_path / "4.txt").write_text("zumba\nabseiling\n" + "".join(f"filler {i}\n" for i in range(8)) + "knitting")
    (tmp_path / "6.txt").write_text("Abseiling\nmarching\n\n")
    for name, text in (("short", "zumba\nabseiling"), ("twice", "a\nb\na\n"), ("gap", "a\n\nb\n"), ("none", "")):
        (tmp_path / f"{name}.txt").write_text(text)
    for words, message in (((), "the labels of k4 are numbers (0, 1, 10, ...)"), ((f"--names=k4={tmp_path / '4.txt'}",), "the labels of k6 are numbers"),
                           (("--names=k4",), "allowed is PART=FILE"), ((f"--names=k5={tmp_path / '4.txt'}",), "no index to merge is called k5"),
                           ((f"--names=k4={tmp_path / 'short.txt'}",), "k4 has the label 10, and the file 2 names"),
                           ((f"--names=k4={tmp_path / 'no.txt'}",), "cannot be read"),
                           ((f"--names=k4={tmp_path / 'twice.txt'}",), "line 3 'a'"), ((f"--names=k4={tmp_path / 'gap.txt'}",), "line 2 ''"),
                           ((f"--names=k4={tmp_path / 'none.txt'}",), "no line at all")):
        assert entry.main([*command, *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not out.exists(), error
    assert entry.main([*command, f"--names=k4={tmp_path / '4.txt'}", f"--names=k6={tmp_path / '6.txt'}"]) == 0
    assert sorted(label for label, _ in rows_of(out).values()) == ["abseiling", "abseiling", "knitting", "marching", "zumba"]
    assert head_rows.read(str(tmp_path / "k_to_k4.json"))["rows"].tolist() == [3, 0, 1]  # of 0 zumba, 1 abseiling, 10 knitting
    for part, labels in (("k4", ["0", "1", "10"]), ("k6", ["0", "1"])):
        found = head_rows.read(str(tmp_path / f"k_to_{part}.json"))
        assert found["target"] == labels == list(sources.VideoClips(index=str(tmp_path / f"{part}.parquet"), split="all").classes)
    named = written(tmp_path, "named", [(CLIP.format("c"), "zumba", "train")])
    with pytest.raises(UserError, match="labels of named are names already, such as 'zumba'"):
        merge.merge([named, paths[0]], aliases={}, names={"named": ["a"]})
    with pytest.raises(UserError, match="the labels of k4 are numbers"):
        merge.merge([paths[0], named], aliases={})
    bare = written(tmp_path, "bare", [(CLIP.format("d"), None, "train"), (CLIP.format("e"), "-1", "train")])
    assert merge.merge([paths[0], bare], aliases={}).names == ("0", "1", "10")  # nothing that they could be confused with: lists write -1 for none


def test_aliases_that_do_not_fit(parts: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """A pair that differs in case alone, as V2's table has one, changes nothing; others are counted; a name that no index has is taken as it is."""
    out = tmp_path / "k710.parquet"
    (tmp_path / "aliases.json").write_text(json.dumps({
        "Tossing coin": "tossing Coin", "nothing": "zumba", "nobody": "no class", "tossing coin ": "flipping a coin", "knitting": "Needlework",
        "person's hand": "Needlework"}))
    assert entry.main(["index", f"--merge={','.join(map(str, parts))}", f"--out={out}", f"--aliases={tmp_path / 'aliases.json'}"]) == 0
    text = capsys.readouterr().out
    for line in ("2 aliases are names of no class, first 'nothing'", "2 aliases give classes a name that no index has, first 'knitting' -> 'Needlework'",
                 "knitting and person's hand are one class"):
        assert f"{line}\n" in text, line
    assert merge.merge(parts, aliases={"zumba": "ZUMBA"}).remarks == ()
    assert {label for label, _ in rows_of(out).values()} == {"abseiling", "playing cards", "zumba", "Needlework", "flipping a coin"}


def test_a_class_without_clips_is_told(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """All of its clips are of other classes in a part before."""
    for part, label in (("a", "zumba"), ("b", "dancing")):
        written(tmp_path, part, [(CLIP.format("same"), label, "train")])
    assert entry.main(["index", f"--merge={tmp_path / 'a.parquet'},{tmp_path / 'b.parquet'}", f"--out={tmp_path / 'ab.parquet'}"]) == 0
    text = capsys.readouterr().out
    assert "1 classes have no clip left, first 'dancing'" in text
    assert f"1 clips of b left out: repeated under another class (first b/{CLIP.format('same')}, because of a/{CLIP.format('same')})" in text


def test_what_stays_of_a_held_out_video(tmp_path: pathlib.Path) -> None:
    """A clip of a validation set, whatever part it is of, before one of a test set, whose labels are often secret; a readable one before all."""
    w, x, y, z = (CLIP.format(name) for name in "wxyz")
    paths = [written(tmp_path, "a", [(w, "zumba", "test"), (x, None, "test"), (y, None, "val"), (z, "zumba", "val", {"status": "open: x"})]),
             written(tmp_path, "b", [(w, "zumba", "val"), (x, "zumba", "val"), (y, "zumba", "val"), (z, None, "test")])]
    done = merge.merge(paths, aliases={})
    assert done.table.column("name").to_pylist() == [f"b/{name}" for name in (w, x, y, z)]
    assert {reason for reason, _ in done.dropped} == {"repeated"}  # what has no label is of no other class


def test_folders_of_pictures(tmp_path: pathlib.Path) -> None:
    """They are merged like files, are compared by all pictures, and classes are counted without opening a loader of files."""
    def framed(part: str, rows: list[tuple[str, str, str, str]]) -> pathlib.Path:
        for name, _, _, text in rows:
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for number in (1, 2):
                (folder / f"{part}_{number:05}.jpg").write_text(f"{number}{text}")
        table = [{"path": str(tmp_path / part / name), "name": name, "label": label, "split": split, "template": f"{part}_{{:05}}.jpg"} | FACTS
                 for name, label, split, _ in rows]
        index.write(pa.Table.from_pylist(table, schema=index.SCHEMA), tmp_path / f"{part}.parquet")
        return tmp_path / f"{part}.parquet"
    paths = [framed("a", [("v.1", "zumba", "train", "same"), ("v.2", "zumba", "train", "else")]), framed("b", [("w", "knitting", "val", "same")])]
    out = tmp_path / "ab.parquet"
    for verify, count in ((True, 2), (False, 3)):
        lines = merge.merged(",".join(map(str, paths)), out=out, verify=verify)
        assert "2 classes" in lines and len(index.load(out)) == count
        assert json.loads((tmp_path / "ab_to_b.json").read_text())["rows"] == [0]


def test_packed_clips_are_refused(parts: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Their shards belong to a folder with a manifest, which an index of several would not have."""
    packed = written(tmp_path, "packed", [(CLIP.format("p"), "zumba", "train")], extra=index.PACKED)
    assert entry.main(["index", f"--merge={parts[0]},{packed}", f"--out={tmp_path / 'out.parquet'}"]) == 2
    error = capsys.readouterr().err
    assert "packed.parquet is of packed clips; allowed are indexes of videos" in error and error.count("\n") == 1
    assert not (tmp_path / "out.parquet").exists()


def test_videos_that_are_gone(parts: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that are not there cannot be compared: one line with their number, nothing written. Without --verify nobody asks for them."""
    out, command = tmp_path / "out.parquet", ["index", f"--merge={','.join(map(str, parts))}", f"--out={tmp_path / 'out.parquet'}"]
    with monkeypatch.context() as patch:
        patch.setattr(merge.hashlib, "file_digest", lambda file, name: (_ for _ in ()).throw(OSError(5, "Input/output error", file.name)))
        assert entry.main([*command, "--verify"]) == 2
    assert "Input/output error" in capsys.readouterr().err and not out.exists()
    for name in ("own4", "leak6"):
        (tmp_path / "k400" / CLIP.format(name)).unlink()
    assert entry.main([*command, "--verify"]) == 2
    error = capsys.readouterr().err
    assert f"--verify: 2 videos cannot be read, first {tmp_path / 'k400' / CLIP.format('own4')} (No such file or directory)" in error and error.count("\n") == 1
    assert not out.exists() and not list(tmp_path.glob("*.json"))
    assert entry.main(command) == 0


def test_mistakes(parts: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """One line each, and nothing is written."""
    out, names = tmp_path / "out.parquet", ",".join(map(str, parts))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    (tmp_path / "chain.json").write_text('{"zumba": "abseiling", "abseiling": "knitting"}')
    for words, message in (([f"--merge={parts[0]}", f"--out={out}"], "allowed are two indexes and more"),
                           ([f"--merge={parts[0]},{parts[0]}", f"--out={out}"], "need different file names"),
                           ([f"--merge={names}", f"--out={parts[0]}"], "is one of the indexes to merge"),
                           ([f"--merge={names}", f"--out={tmp_path / 'out.csv'}"], "ends in .parquet"),
                           ([f"--merge={names},{tmp_path / 'none.parquet'}", f"--out={out}"], "no index"),
                           ([f"--merge={names},{tmp_path / 'loop.parquet'}", f"--out={out}"], "no index"),
                           ([f"--merge={names}", f"--out={out}", f"--aliases={tmp_path / 'list.json'}"], "no JSON object"),
                           ([f"--merge={names}", f"--out={tmp_path / 'new' / 'k600.parquet'}"], "is called like one of the indexes to merge"),
                           ([f"--merge={names}", f"--out={out}", f"--aliases={tmp_path / 'chain.json'}"], "itself an alias"),
                           ([f"--merge={names}", f"--out={out}", f"--aliases={tmp_path / 'no.json'}"], "cannot be read")):
        assert entry.main(["index", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not out.exists()
    with pytest.raises(UserError, match="two indexes"):
        merge.merge([], aliases={})


def test_addresses_stay_addresses(tmp_path: pathlib.Path) -> None:
    """Videos in an object store are merged by name; their bytes are not fetched to be compared."""
    paths = [written(tmp_path, part, [(CLIP.format(f"own{part}"), "zumba", "train")]) for part in ("a", "b")]
    table = index.load(paths[1])
    index.write(table.set_column(table.schema.get_field_index("path"), "path", pa.array(["gs://bucket/own.mp4"])), paths[1])
    out = tmp_path / "ab.parquet"
    assert entry.main(["index", f"--merge={paths[0]},{paths[1]}", f"--out={out}"]) == 0
    assert "gs://bucket/own.mp4" in index.load(out).column("path").to_pylist()
    assert entry.main(["index", f"--merge={paths[0]},{paths[1]}", f"--out={out}", "--verify"]) == 2
