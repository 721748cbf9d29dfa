"""Packing as a data set of TensorFlow Datasets: the clips of plain packing, made here or on Beam, read by the same source without TensorFlow."""

import contextlib
import json
import pathlib
import pickle
import shutil
import sys
import tempfile
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from test_decode import encode, flipped, spelt

from videomae_jax.data import clips, deadline, decode, index, packed, packing, sources, tfds_packing, tfds_source, transforms
from videomae_jax.errors import UserError

SETTINGS = packing.Settings(frames=6, stride=3, gop=4, preset="ultrafast", windows=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Seven videos of bars of two splits, rows of one between those of the other, one damaged where only decoding finds it, one without a label."""
    directory = tmp_path_factory.mktemp("videos")
    long, short = encode(frames=80, bf="0"), encode(frames=5, bf="0")
    for i in range(7):
        data = flipped(encode(frames=40, crf="5", g="500", bf="0"), at=0.7, length=100) if i == 3 else (long, short)[i == 5]
        (directory / f"{i}.mp4").write_bytes(data)
    lines = ["path,label,split", *(f"{i}.mp4,{'' if i == 6 else i % 2},{'val' if i in (1, 4) else 'train'}" for i in range(7))]
    (directory / "labels.csv").write_text("\n".join(lines))
    index.write(index.build(directory, labels=directory / "labels.csv"), directory / "index.parquet")
    return directory


def plan(folder: pathlib.Path, out: pathlib.Path, /, *, versions: int = 1) -> packing.Plan:
    """Of the folder."""
    return packing.planned(str(folder / "index.parquet"), out, settings=SETTINGS, versions=versions)


def source(out: pathlib.Path, /) -> packed.PackedClips:
    """Whole frames."""
    return packed.PackedClips(index=str(out / "index.parquet"), frames=6, size=128, split="all", sampling=clips.DenseRandom(stride=3), crop=transforms.WholeFrame())


def windows(out: pathlib.Path, /) -> dict[str, list[bytes]]:
    """The packed clips of every readable video."""
    made = source(out)
    records = [made.record(row) for row in range(len(made))]
    return {r["name"]: packed.fetch(made._opened.home / r["path"], int(r["packed"]), name=r["name"]) for r in records}


@pytest.fixture(scope="module")
def done(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The data set, made in this process."""
    out = tmp_path_factory.mktemp("out")
    made, manifests = tfds_packing.pack(plan(folder, out), None)
    assert made.shards == len(manifests) and packing.summary(made, manifests).startswith("16 clips of 6 videos (1 unreadable) in 2 of 2 shards, PSNR ")
    return out


def test_clips_are_those_of_plain_packing(folder: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """To the byte, and so are the two indices but for their places; a read gives the same pixels from the same draws."""
    packing.pack(plan(folder, tmp_path / "plain"))
    assert windows(done) == windows(tmp_path / "plain") and len(windows(done)) == 6
    ours, theirs = (index.load(str(out / "index.parquet")).drop_columns(["path", "packed"]).to_pylist() for out in (done, tmp_path / "plain"))
    assert ours == theirs and {r["status"].split(":")[0] for r in ours} == {"ok", "decode"}
    for row in range(6):
        one, other = (source(out).read(row, rng=np.random.default_rng(row)) for out in (done, tmp_path / "plain"))
        np.testing.assert_array_equal(one["video"], other["video"])
        assert one["label"].tolist() == other["label"].tolist()
        assert source(done).name(row)[0] == "5" or set(np.diff([spelt(p) for p in one["video"][0]]).tolist()) == {3}
    assert "tensorflow" not in sys.modules and len(pickle.dumps(source(done))) < 2000


def test_the_data_set_is_one_of_tfds(done: pathlib.Path) -> None:
    """Its own reader gives splits, names, labels, clips and what is told of them; an error where a video cannot be read."""
    builder = tfds.builder_from_directory(str(done / "packed_videos" / "1.0.0"))
    found = {split: list(builder.as_data_source(split=split)) for split in ("train", "val")}
    assert {split: [e["name"].decode() for e in rows] for split, rows in found.items()} == {"train": ["0.mp4", "2.mp4", "3.mp4", "5.mp4", "6.mp4"], "val": ["1.mp4", "4.mp4"]}
    assert [e["label"].decode() for e in found["train"]] == ["0", "0", "1", "1", ""]
    one, bad = found["val"][0], found["train"][2]
    assert list(one["clips"]) == windows(done)["1.mp4"] and one["psnr"] > 20 and one["error"] == b"" and b'"ids"' in one["about"]
    assert len(bad["clips"]) == 0 and bad["error"].startswith(b"decode: ")


def test_no_temporary_folder_stays(folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tfds makes one for every new data set, and forgets it."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    tfds_packing.PackedVideos(plan=plan(folder, tmp_path / "out"), on_beam=False, data_dir=str(tmp_path / "out"), file_format="array_record")
    assert not list((tmp_path / "temporary").iterdir())


def test_a_second_call_makes_nothing_again(folder: pathlib.Path, done: pathlib.Path) -> None:
    """The shards stay; the index is written again."""
    times = {p: p.stat().st_mtime_ns for p in done.rglob("*array_record*")}
    tfds_packing.pack(plan(folder, done), None)
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*array_record*")} == times


def test_what_was_written_is_read_back(folder: pathlib.Path, done: pathlib.Path) -> None:
    """Other rows than expected are an error, and so is a shard that ends early."""
    shard = next(p for p in done.rglob("*array_record*") if "val" in p.name)
    made = plan(folder, done)
    assert tfds_packing.verify(shard, [1, 4], plan=made)["clips"] == 6
    with pytest.raises(RuntimeError, match="is not 4.mp4 with all its clips"):
        tfds_packing.verify(shard, [4, 1], plan=made)
    with pytest.raises(RuntimeError, match="holds 2 records, not 3"):
        tfds_packing.verify(shard, [1, 4, 5], plan=made)


def failing(monkeypatch: pytest.MonkeyPatch, stage: str, /, *names: str) -> None:
    """Lets every read of these videos fail."""
    plain = sources.VideoClips.locate

    def locate(self: sources.VideoClips, record: dict[str, Any], /) -> decode.Video:
        if record["name"] in names:
            raise decode.DecodeError(record["name"], stage, "broken off")
        return plain(self, record)

    monkeypatch.setattr(deadline, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(sources.VideoClips, "locate", locate)


@pytest.mark.parametrize("stage", decode.PASSING)
def test_what_may_pass_does_not_cost_the_other_clips(stage: str, folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The builder throws away what it has made when an example raises: a row that cannot be read says why."""
    said: list[str] = []
    failing(monkeypatch, stage, "1.mp4")
    with contextlib.nullcontext() if stage == "timeout" else pytest.raises(UserError, match=r"1\.mp4: io: broken off; .*: remove .*/packed_videos/1\.0\.0, and"):
        tfds_packing.pack(plan(folder, tmp_path), None, say=said.append)
    assert said == [f"1.mp4 is without clips: {stage}: broken off"]
    found = tfds.builder_from_directory(str(tmp_path / "packed_videos/1.0.0")).as_data_source(split="val")
    assert [(e["error"].decode(), len(e["clips"])) for e in found] == [(f"{stage}: broken off", 0), ("", 3)]
    assert stage == "io" or {r["name"]: r["status"].split(":")[0] for r in index.load(str(tmp_path / "index.parquet")).to_pylist() if r["split"] == "val"} \
        == {"1.mp4": "timeout", "4.mp4": "ok"}


@pytest.mark.parametrize(("stage", "names", "told"), [
    ("io", "23456", r"2\.mp4: io: broken off; .*: remove .*/1\.0\.0, and the same command makes it again"),
    ("timeout", "23456", r"3\.mp4: timeout: broken off; nor was 2\.mp4 before it .*: the same command begins again"),
    ("timeout", "61", r"1\.mp4: timeout: broken off; nor was 6\.mp4 before it .*: remove .*/1\.0\.0, and the same command makes it again"),
    ("timeout", "45", r"5\.mp4: timeout: broken off; nor was 4\.mp4 before it .*: remove .*/1\.0\.0, and the same command makes it again")])
def test_an_outage_ends_in_no_index(stage: str, names: str, told: str, folder: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """From some row on, from one split to the next, and at the end, where one more is read; what is told to do helps, and nothing less does."""
    with monkeypatch.context() as patch:
        failing(patch, stage, *(f"{name}.mp4" for name in names))
        for _ in range(2):
            with pytest.raises(UserError, match=told):
                tfds_packing.pack(plan(folder, tmp_path), None)
            assert not (tmp_path / "index.parquet").exists() and not (tmp_path / "manifest.json").exists()
    home = tmp_path / "packed_videos/1.0.0"
    assert home.exists() == ("remove" in told)
    shutil.rmtree(home, ignore_errors=True)
    tfds_packing.pack(plan(folder, tmp_path), None)
    assert windows(tmp_path) == windows(done)


@pytest.mark.parametrize(("old", "new", "told"), [
    ("2.mp4,0,train", "2.mp4,0,val", "holds 5 records, not 4"), ("2.mp4,0,train", "2.mp4,1,train", "says label '0' of 2.mp4, not '1'"),
    ("0.mp4,0,train", "0.mp4,0,test", "no example in split 'test'"), ("6.mp4,,train", "6.mp4,0,train", "says label '' of 6.mp4, not '0'"),
    ("4.mp4,0,val", "4.mp4,0,train", "is not 4.mp4 with all its clips"), ("1.mp4,1,val\n", "1.mp4,1,train\n", "is not 1.mp4 with all its clips")])
def test_other_splits_or_labels_are_another_data_set(old: str, new: str, told: str, folder: pathlib.Path, done: pathlib.Path,
                                                     tmp_path: pathlib.Path) -> None:
    """Its examples keep what they were made with: the command says how it is made again, changes nothing before, and then makes that of the index."""
    shutil.copytree(folder, tmp_path / "v")
    shutil.copytree(done, out := tmp_path / "out")
    labels, before = tmp_path / "v/labels.csv", index.load(out / "index.parquet").to_pylist()
    assert old in labels.read_text()
    labels.write_text(labels.read_text().replace(old, new))
    index.write(index.build(tmp_path / "v", labels=labels), tmp_path / "v/index.parquet")
    said = rf"1\.0\.0 has other splits or labels than the index, or is damaged \(.*({told}).*\); remove it, and the same command makes it again"
    with pytest.raises(UserError, match=said):
        tfds_packing.pack(plan(tmp_path / "v", out), None)
    assert index.load(out / "index.parquet").to_pylist() == before
    shutil.rmtree(out / "packed_videos/1.0.0")
    tfds_packing.pack(plan(tmp_path / "v", out), None)
    rows = {row["name"]: f"{row['label'] or ''},{row['split']}" for row in index.load(out / "index.parquet").to_pylist()}
    assert new.strip().partition(",")[0::2] in rows.items() and windows(out) == windows(done)


def test_mistakes(folder: pathlib.Path, tmp_path: pathlib.Path, done: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, plain shards in the folder, no Beam, records of something else."""
    with pytest.raises(UserError, match="--tfds with 2 versions; allowed is 1"):
        tfds_packing.pack(plan(folder, tmp_path / "a", versions=2), None)
    packing.pack(plan(folder, tmp_path / "plain"))
    with pytest.raises(UserError, match="holds plain shards of this packing; use another --out"):
        tfds_packing.pack(plan(folder, tmp_path / "plain"), None)
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    with pytest.raises(UserError, match="--beam needs the package apache-beam"):
        tfds_packing.pack(plan(folder, tmp_path / "b"), "")
    for data in (b"\xab\xab\xab\xabnothing", b""):
        with pytest.raises(ValueError, match="is no example"):
            packed.features(data)


def test_beam_makes_the_same_data_set(folder: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The embedded runner: examples in the same order, to the byte."""
    pytest.importorskip("apache_beam")
    tfds_packing.pack(plan(folder, tmp_path / "out"), "")
    assert windows(tmp_path / "out") == windows(done)
    names = [[p.name for p in sorted(out.rglob("*array_record*"))] for out in (done, tmp_path / "out")]
    assert names[0] == names[1]
    assert index.load(str(done / "index.parquet")).drop_columns(["path"]).equals(index.load(str(tmp_path / "out" / "index.parquet")).drop_columns(["path"]))


@pytest.mark.slow
def test_beam_with_a_thousand_clips(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """250 videos, four windows each: every clip is the one that its record tells of."""
    pytest.importorskip("apache_beam")
    (tmp_path / "v").mkdir()
    data = (folder / "0.mp4").read_bytes()
    for i in range(250):
        (tmp_path / "v" / f"{i:03}.mp4").write_bytes(data)
    index.write(index.build(tmp_path / "v", val_fraction=0.1), tmp_path / "index.parquet")
    settings = packing.Settings(frames=6, stride=3, gop=4, preset="ultrafast", windows=4)
    made, manifests = tfds_packing.pack(packing.planned(str(tmp_path / "index.parquet"), tmp_path / "out", settings=settings), "")
    assert sum(m["clips"] for m in manifests) == 1000 and not any(m["failed"] for m in manifests)
    told = {}
    for path, count, _ in tfds_source._shards(tmp_path / "out/packed_videos/1.0.0", tfds_source._json(tmp_path / "out/packed_videos/1.0.0/dataset_info.json"), split="all"):
        for place in range(count):
            found = packed.features(packed.record(path, place, name=""))
            name, text = (found[k].bytes_list.value[0].decode() for k in ("name", "about"))
            told[name] = [[spelt(p) for p in decode.decode(blob, range(6))] for blob in found["clips"].bytes_list.value]
            assert told[name] == json.loads(text)["ids"]
    assert len(told) == 250 and len({str(ids) for ids in told.values()}) > 200, "windows are drawn by name"


def test_command(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How to train on it, and the last line; options that tfds leaves no choice in are refused."""
    pytest.importorskip("jax")
    from videomae_jax import __main__ as entry

    words = ["pack", str(folder / "index.parquet"), "--tfds", "--frames=6", "--stride=3", "--preset=ultrafast"]
    assert entry.main([*words, f"--out={tmp_path / 'out'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith(f"--config.data.index={tmp_path / 'out' / 'index.parquet'}") and lines[-1].startswith("6 clips of 6 videos (1 unreadable) in 2 of 2 shards")
    assert len(windows(tmp_path / "out")) == 6
    assert entry.main([*words, f"--out={tmp_path / 'other'}", "--shards=2"]) == 2 and "with --tfds not --shards" in capsys.readouterr().err
