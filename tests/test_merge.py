"""Merging indexes: one class for one name, planted leaks of every kind, maps of classes in all directions."""

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
    held = {merge.identity(name) for name, (_, split) in kept.items() if split != "train"}
    assert held == {f"{v:_<11}" for v in ("val4", "both", "leak6", "other6", "test7")} and len(kept) == len(train) + len(held)
    assert not held & {merge.identity(name) for name in train}
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
        assert done.dropped["held out elsewhere", "k400"] == 1 + verify


def test_maps_of_classes_in_all_directions(parts: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    """Entry i is the number of class i in the other head, as the loader numbers classes; unknown ones are -1."""
    out = tmp_path / "k710.parquet"
    merge.merged(",".join(map(str, parts)), out=out, aliases=None, verify=False)
    classes = sources.VideoClips(index=str(out), split="all").classes
    assert classes == ("abseiling", "flipping a coin", "knitting", "person's hand", "playing cards", "tossing coin", "zumba")
    want = {"k710_to_k400": ([0, 4, 6], 3), "k400_to_k710": ([0, -1, -1, -1, 1, -1, 2], 7), "k710_to_k600": ([4, 0, 2, 5, 6], 5),
            "k600_to_k710": ([1, -1, 2, -1, 0, 3, 4], 7), "k710_to_k700": ([1, 2, 3], 3), "k700_to_k710": ([-1, 0, 1, 2, -1, -1, -1], 7)}
    for name, (rows, length) in want.items():
        found = head_rows.read(str(tmp_path / f"{name}.json"))
        assert found["rows"].tolist() == rows and len(found["target"]) == length, name
        part = name.split("_to_")[1]
        assert tuple(found["target"]) == sources.VideoClips(index=str(tmp_path / f"{part}.parquet"), split="all").classes


@pytest.mark.parametrize(("name", "video"), [("a/b/abcdefghi-_ 1.mp4", "abcdefghi-_ 1"), ("x/-bcdefghij__000001_000011.webm", "-bcdefghij_"),
                                             ("v_Archery_g01_c01.avi", "v_Archery_g01_c01"), ("abcdefghijk.mp4", "abcdefghijk")])
def test_identity(name: str, video: str) -> None:
    """YouTube ids may hold hyphens and underscores; other names are taken whole."""
    assert merge.identity(name) == video


def test_mistakes(parts: list[pathlib.Path], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """One line each, and nothing is written."""
    out, names = tmp_path / "out.parquet", ",".join(map(str, parts))
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "stray.json").write_text('{"nothing": "zumba"}')
    (tmp_path / "chain.json").write_text('{"zumba": "abseiling", "abseiling": "knitting"}')
    for words, message in (([f"--merge={parts[0]}", f"--out={out}"], "allowed are two indexes and more"),
                           ([f"--merge={parts[0]},{parts[0]}", f"--out={out}"], "need different file names"),
                           ([f"--merge={names}", f"--out={parts[0]}"], "is one of the indexes to merge"),
                           ([f"--merge={names}", f"--out={tmp_path / 'out.csv'}"], "ends in .parquet"),
                           ([f"--merge={names},{tmp_path / 'none.parquet'}", f"--out={out}"], "no index"),
                           ([f"--merge={names}", f"--out={out}", f"--aliases={tmp_path / 'list.json'}"], "no JSON object"),
                           ([f"--merge={names}", f"--out={out}", f"--aliases={tmp_path / 'stray.json'}"], "alias 'nothing' is the name of no class"),
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
