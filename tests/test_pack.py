"""Packing: every packed frame is the one it claims to be, work can be shared, killed and repeated, and training reads it like an index."""

import dataclasses
import json
import os
import pathlib
import pickle
import re
import signal
import subprocess
import sys
import types
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from test_decode import bars, encode, encoded, flipped, spelt, timed

from videomae_jax import __main__ as entry
from videomae_jax import config as configs
from videomae_jax.commands import pack
from videomae_jax.data import clips, columns, decode, encoding, footage, index, mixture, packed, packing, pipeline, sources, three_crop, transforms
from videomae_jax.errors import UserError
from videomae_jax.evals import attentive, classification
from videomae_jax.evals.base import evaluation_source

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS = ("cfr", "vfr", "open_gop", "hevc", "mpeg4_avi", "vp9", "av1")
SMALL = {"frames": 6, "stride": 3, "gop": 4, "preset": "ultrafast"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Videos of bars of several codecs with labels and an added column, a short one, and one whose damage only decoding finds."""
    directory = tmp_path_factory.mktemp("videos")
    (directory / "bad.mp4").write_bytes(flipped(encode(frames=40, crf="5", g="500", bf="0"), at=0.7, length=100))
    (directory / "short.mp4").write_bytes(encode(frames=5, bf="0"))
    for kind in KINDS:
        (directory / kind).write_bytes(encoded(kind))
        (directory / kind).rename(directory / f"{kind}.{'avi' if 'avi' in kind else 'mp4'}")
    lines = ["path,label,split,motion"]
    for i, path in enumerate(sorted(directory.iterdir())):
        lines.append(f"{path.name},{i % 3},{'val' if i == 4 else 'train'},{('up', 'down')[i % 2]}")
    (directory / "labels.csv").write_text("\n".join(lines))
    index.write(index.build(directory, labels=directory / "labels.csv"), directory / "index.parquet")
    return directory


def command(folder: pathlib.Path, out: pathlib.Path, /, *words: object) -> list[str]:
    """The command line that packs the folder small."""
    options = [f"--{k}={v}" for k, v in ({"windows": 3, "shards": 4, "workers": 1} | SMALL).items()]
    return ["pack", str(folder / "index.parquet"), f"--out={out}", *options, *map(str, words)]


@pytest.fixture(scope="module")
def done(folder: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The folder packed in two versions."""
    out = tmp_path_factory.mktemp("packed") / "out"
    assert entry.main(command(folder, out, "--versions=2")) == 0
    return out


def content(out: pathlib.Path, /) -> dict[str, bytes]:
    """Every file that training reads, and the manifests."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.suffix != ".arrow" and p.name[0] != "."}


def source(out: pathlib.Path, /, **kw: Any) -> packed.PackedClips:
    """Whole frames of the packed folder."""
    return packed.PackedClips(**({"index": str(out / "index.parquet"), "frames": 6, "size": 128, "split": "all", "sampling": clips.DenseRandom(stride=3),
                                  "crop": transforms.WholeFrame()} | kw))


def rng(seed: int = 0, /) -> np.random.Generator:
    """A generator."""
    return np.random.default_rng(seed)


def numbers(made: sources.VideoClips, row: int, seed: int = 0, /) -> list[int]:
    """The frame numbers that a read spells."""
    return [spelt(p) for p in made.read(row, rng=rng(seed))["video"][0]]


# -- conformance -------------------------------------------------------------------------------------------------------


def test_every_packed_frame_is_the_one_it_claims_to_be(done: pathlib.Path) -> None:
    """Every window of every record, of both versions, spells the source frames that the record lists; the index knows its size and times."""
    made, seen = source(done), set()
    for row in range(len(made)):
        record = made.record(row)
        info = columns.info(record)
        for version in range(2):
            shard = done / record["path"].replace("v0", f"v{version}")
            data = packed._reader(str(shard)).read([int(record["packed"])])[0]
            told, blobs = packing.about(data), packing.windows(data)
            assert told["name"] == record["name"] and told["version"] == version and len(told["ids"]) == len(blobs)
            for blob, ids in zip(blobs, told["ids"], strict=True):
                assert [spelt(p) for p in decode.decode(blob, range(6), info=info)] == ids
                probed = decode.probe(blob)
                assert (probed.width, probed.height, probed.fps, probed.time_base) == (info.width, info.height, info.fps, info.time_base)
                assert probed.pts.tolist() == info.pts.tolist() and probed.keys.tolist() == info.keys.tolist()
                seen.add((row, tuple(ids)))
    assert len({r for r, _ in seen}) == len(KINDS) + 1 and len(seen) > 5 * len(KINDS), "versions and windows differ"


def test_windows_are_drawn_by_the_sampling(done: pathlib.Path) -> None:
    """Random reads visit all windows of both versions with the source's stride; the centre is one window of version 0."""
    made = source(done)
    row = next(r for r in range(len(made)) if made.name(r) == "cfr.mp4")
    drawn = {tuple(numbers(made, row, seed)) for seed in range(60)}
    assert len(drawn) == 6 and all((np.diff(ids) == 3).all() for ids in drawn)
    assert len({ids[0] // 35 for ids in drawn}) == 3, "a window from each third of the video"
    centre = source(done, sampling=clips.DenseCentre(stride=3))
    assert len({tuple(numbers(centre, row, seed)) for seed in range(8)}) == 1 and tuple(numbers(centre, row)) in drawn
    wide = source(done, frames=3, sampling=clips.DenseRandom(stride=6))
    assert {tuple(np.diff(numbers(wide, row, seed))) for seed in range(20)} == {(6, 6)}
    assert len({numbers(wide, row, seed)[0] for seed in range(60)}) > 6, "cut at a random place of the window"
    short = next(r for r in range(len(made)) if made.name(r) == "short.mp4")
    assert numbers(made, short) == [0, 3, 3, 3, 3, 3], "V2's rule for videos that are too short"


def test_rates(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Packed by frames a second; a rate that divides it may be drawn."""
    settings = packing.Settings(**SMALL | {"rate": 10.0, "windows": 2})
    packing.pack(packing.planned(str(folder / "index.parquet"), tmp_path / "p", settings=settings))
    made = source(tmp_path / "p", frames=3, sampling=clips.PerSecond(rate=5.0))
    rates = {made.record(r)["name"]: columns.info(made.record(r)).fps for r in range(len(made))}
    assert rates["cfr.mp4"] == 10
    row = next(r for r in range(len(made)) if made.name(r) == "cfr.mp4")
    assert np.diff(numbers(made, row)).tolist() == [6, 6]
    with pytest.raises(UserError, match=r"allowed are PerSecond with a rate that divides 10"):
        source(tmp_path / "p", frames=3, sampling=clips.PerSecond(rate=4.0)).read(0, rng=rng())


@pytest.mark.parametrize("fps", [Fraction(1, 3600), Fraction(1, 100), Fraction(9_510_000, 1001), Fraction(4_003_999, 1001)], ids=str)
@pytest.mark.parametrize("stride", [1, 4, 32])
def test_any_frame_rate_is_packed(fps: Fraction, stride: int) -> None:
    """At the nearest rate that the clock of an mp4 carries."""
    settings = packing.Settings(**SMALL | {"stride": stride})
    facts = settings.facts({"fps_num": fps.numerator, "fps_den": fps.denominator, "width": 64, "height": 32})
    packed_fps = Fraction(facts["fps_num"], facts["fps_den"])
    assert packed_fps == pytest.approx(min(max(fps / stride, 1 / 1001), 4000), rel=1e-3)
    video = np.stack([bars(number, width=64, height=32) for number in range(6)])
    encoding.compare(video, encoding.encode(video, fps=packed_fps, preset="ultrafast", crf=20, gop=4), facts=facts, name="a")


def test_slides_with_minutes_between_them_are_packed(tmp_path: pathlib.Path) -> None:
    """They end no packing."""
    (tmp_path / "slides.mov").write_bytes(timed([0, 900_000, 1_800_000], codec="mjpeg", container="mov"))
    assert entry.main(["index", str(tmp_path), f"--out={tmp_path / 'index.parquet'}"]) == 0
    assert entry.main(command(tmp_path, tmp_path / "out", "--shards=1", "--stride=4")) == 0
    made = source(tmp_path / "out")
    assert len(made) == 1 and columns.info(made.record(0)).fps == Fraction(1, 1001)
    told = packing.about(packed._reader(str(tmp_path / "out/v0/00000.array_record")).read([0])[0])
    assert set(told["pts"][0]) <= {0, 14_400_000, 28_800_000}


def test_pixels_stay(real_videos: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A real clip that keeps its size differs from the decoded one by what x264 at crf 12 costs: 1.5 grey levels on average."""
    (tmp_path / "v").mkdir()
    (tmp_path / "v/a.mp4").write_bytes((real_videos / "arm_wrestling.mp4").read_bytes())
    index.write(index.build(tmp_path / "v", val_fraction=0), tmp_path / "i.parquet")
    packing.pack(packing.planned(str(tmp_path / "i.parquet"), tmp_path / "p", settings=packing.Settings(frames=4, crf=12)))
    made, raw = source(tmp_path / "p", frames=4, sampling=clips.DenseRandom(stride=4)), sources.VideoClips(index=str(tmp_path / "i.parquet"))
    ids = packing.about(packed._reader(str(tmp_path / "p/v0/00000.array_record")).read([0])[0])["ids"][0]
    before = decode.decode(raw.locate(raw.record(0)), ids)
    after = made.decode(made.clip(0, rng=rng()))
    assert np.abs(before.astype(int) - after).mean() < 1.5 and before.shape == after.shape


def test_sizes(folder: pathlib.Path) -> None:
    """Never larger than the source, the short side as asked, even sides."""
    settings = packing.Settings(short_side=256)
    assert settings.size(width=1920, height=1080) == (454, 256) and settings.size(width=340, height=256) == (340, 256)
    assert settings.size(width=127, height=65) == (126, 64) and settings.size(width=720, height=1280) == (256, 454)
    small = packing.Settings(**SMALL | {"short_side": 32})
    made = sources.VideoClips(index=str(folder / "index.parquet"), split="all")
    blob = packing.windows(packing.pack_row(made, 2, version=0, settings=small).data)[0]
    assert decode.probe(blob).width == 64 and decode.probe(blob).height == 32


def test_one_thread_encodes() -> None:
    """x264 says so itself, in every stream: with more threads it would give other bytes, and how many it takes depends on the machine."""
    video = footage.scene(frames=4, seed=0)  # x264 takes one thread for smaller pictures anyway
    blobs = {encoding.encode(video, fps=decode.Fraction(10), preset="medium", crf=20, gop=16) for _ in range(3)}
    assert len(blobs) == 1 and re.findall(rb"(\w*)threads=(\d+)", next(iter(blobs))) == [(b"", b"1"), (b"lookahead_", b"1"), (b"sliced_", b"0")]


# -- shared, killed, repeated work ---------------------------------------------------------------------------------------


KILLED = """
import os, signal, sys
from videomae_jax.__main__ import main
from videomae_jax.data import packing
whole, rows = packing._write_shard, []

def begun(plan, version, shard, records, temporary):
    if not rows:
        rows.append(whole(plan, version, shard, records, temporary))
        return rows[0]

    def killed():
        yield next(records)
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(plan, version, shard, killed(), temporary)

packing._write_shard = begun
main(sys.argv[1:])
"""


def test_a_killed_packing_goes_on_to_the_same_bytes(folder: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """SIGKILL after the first shard, in the middle of another; then two parts in turn, one of them with processes."""
    out = tmp_path / "out"
    process = subprocess.run([sys.executable, "-c", KILLED, *command(folder, out, "--versions=2")], cwd=ROOT, stderr=subprocess.DEVNULL, timeout=300, check=False)
    assert process.returncode == -signal.SIGKILL
    assert len(list(out.glob("v*/*.json"))) == 1 and list(out.glob("v*/.*partial*")) and not (out / "index.parquet").exists()
    assert entry.main(command(folder, out, "--versions=2", "--shard=1/2", "--workers=2")) == 0
    assert not (out / "index.parquet").exists(), "the other part is missing"
    assert entry.main(command(folder, out, "--versions=2", "--shard=0/2")) == 0
    assert content(out) == content(done)
    assert not list(out.rglob(".*partial*"))


def test_a_faster_process_takes_away_what_a_slower_one_writes(folder: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that share the work by accident: the slower one ends well, with the shards of the faster."""
    plan = packing.planned(str(folder / "index.parquet"), tmp_path / "p", settings=packing.Settings(**SMALL, windows=3), shards=4)
    plain, faster = packing._write_shard, []

    def overtaken(plan: packing.Plan, version: int, shard: int, records: Any, temporary: pathlib.Path) -> dict[str, Any]:
        if shard == 3 and not faster:
            faster.append(True)
            temporary.write_bytes(b"half")
            packing.pack(plan)
            assert not temporary.exists()
            packing.array_record.ArrayRecordReader(str(temporary)).num_records()
            raise RuntimeError("open() failed")
        return plain(plan, version, shard, records, temporary)

    monkeypatch.setattr(packing, "_write_shard", overtaken)
    assert len(packing.pack(plan)) == 4 and faster
    assert not list((tmp_path / "p").rglob(".*partial*"))


def test_a_shard_that_cannot_be_written_is_not_the_damaged_one_there(folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--verify finds damage, and the disk is full: an error, not the old manifest."""
    plan = packing.planned(str(folder / "index.parquet"), tmp_path / "p", settings=packing.Settings(**SMALL), shards=2)
    packing.pack(plan)
    path = plan.path(0, 1)
    path.write_bytes(bytes(path.stat().st_size))

    def full(*_: Any) -> None:
        raise RuntimeError("no space")

    monkeypatch.setattr(packing.array_record, "ArrayRecordWriter", full)
    with pytest.raises(RuntimeError, match="no space"):
        packing.pack(plan, verify=True)


def test_more_parts_than_shards(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Said, with the option that helps; a packed folder that says nothing of itself is refused."""
    assert entry.main(command(folder, tmp_path / "p", "--shard=5/8")) == 0
    assert "part 5 of 8 has nothing to do: the packing has 4 shards a version; more of them with --shards=N" in capsys.readouterr().err
    (tmp_path / "p" / "pack.json").write_text("{")
    assert entry.main(command(folder, tmp_path / "p")) == 2
    error = capsys.readouterr().err
    assert "pack.json does not say how" in error and error.count("\n") == 1


def test_finished_shards_stay_and_damaged_ones_are_repeated(folder: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path,
                                                            capsys: pytest.CaptureFixture) -> None:
    """A second call writes no shard; a cut one is seen by its size, a changed one by --verify; a further version is added."""
    out = tmp_path / "out"
    assert entry.main(command(folder, out)) == 0
    first, shards = content(out), sorted(out.rglob("*.array_record"))
    times = [p.stat().st_mtime_ns for p in shards]
    assert entry.main(command(folder, out)) == 0 and [p.stat().st_mtime_ns for p in shards] == times
    shards[0].write_bytes(shards[0].read_bytes()[:-9])
    shards[1].write_bytes(shards[1].read_bytes()[:-9] + b"x" * 9)
    assert entry.main(command(folder, out)) == 0 and shards[0].read_bytes() == first["v0/00000.array_record"]
    assert content(out) != first
    assert entry.main(command(folder, out, "--verify")) == 0 and content(out) == first
    assert "v0/00001 is damaged" in capsys.readouterr().err
    assert entry.main(command(folder, out, "--versions=2")) == 0 and content(out) == content(done)


def test_the_last_line(folder: pathlib.Path, done: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Clips, videos, shards, and gigabytes of a million clips, which is the bytes of a clip in units of 1000."""
    assert entry.main(command(folder, done, "--versions=2")) == 0
    told = json.loads((done / "manifest.json").read_text())
    size = sum(p.stat().st_size for p in done.rglob("*.array_record"))
    assert told["bytes"] == size and told["clips"] == 2 * (3 * len(KINDS) + 1) and told["failed"] == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"{told['clips']} clips of {len(KINDS) + 1} videos (1 unreadable) in 8 of 8 shards, PSNR ")
    assert last.endswith(f"{size / told['clips'] * 1e6 / 1e9:.2f} GB per million clips")


@pytest.mark.parametrize(("words", "text"), [
    (["--stride=2"], "holds another packing: stride is 3 there and 2 here"), (["--shards=2"], "shards is 4 there and 2 here"), (["--shard=2/2"], "allowed is I/N"),
    (["--crf=60"], "crf is 60"), (["--preset=warp"], "preset is 'warp'; allowed are ultrafast"),
    *((["--rate", rate], f"rate is {float(rate)}; allowed are 0 ") for rate in ("nan", "inf", "0.00001")), (["--shards=99"], "99 shards of 9 readable videos"), (["--workers=0"], "--workers=0; allowed are 1")])
def test_mistakes(words: list[str], text: str, folder: pathlib.Path, done: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """One line, before anything is written."""
    before = content(done)
    assert entry.main(command(folder, done, "--versions=2", *words)) == 2
    assert text in capsys.readouterr().err and content(done) == before


def test_other_videos_of_the_same_names_are_another_packing(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """A finished shard would be told by the facts of a video that it does not hold; one that is copied, or was labelled, is the same video."""
    out = tmp_path / "out"
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_bytes(encode(frames=40, bf="0"))

    def again(**labels: str) -> int:
        (tmp_path / "labels.csv").write_text("\n".join(["path,label", *(f"{name}.mp4,{labels.get(name, 0)}" for name in "ab")]))
        index.write(index.build(tmp_path, labels=tmp_path / "labels.csv"), tmp_path / "index.parquet")
        return entry.main(command(tmp_path, out, "--shards=2", "--windows=1"))

    assert again() == 0
    before = content(out)
    os.utime(tmp_path / "a.mp4", (0, 0))
    assert again(a="1") == 0 and [row["label"] for row in index.load(out / "index.parquet").to_pylist()] == ["1", "0"]
    assert again() == 0 and content(out) == before
    footage.write(tmp_path / "a.mp4", seconds=2, seed=2)
    assert again() == 2 and "holds another packing: its videos differ in size, frames, " in capsys.readouterr().err and content(out) == before
    told = json.loads((out / "pack.json").read_text())
    del told["facts_sha256"]
    (out / "pack.json").write_text(json.dumps(told))
    assert again() == 0, "a folder made before says nothing of it"


@pytest.mark.parametrize(("variables", "expected"), [
    ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "TPU_WORKER_ID": "1"}, (3, 8)), ({"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, (2, 4)),
    ({"SLURM_NTASKS": "8"}, None), ({}, None)])
def test_parts_from_a_launcher(variables: dict[str, str], expected: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """--shard=auto is the process among those that were started together, and an error where nobody started any."""
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if expected:
        assert pack._part("auto") == expected
    else:
        with pytest.raises(UserError, match="--shard=auto finds neither SLURM_PROCID"):
            pack._part("auto")


def test_beam_writes_the_same_bytes(folder: pathlib.Path, done: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The embedded runner, over a folder in which one shard is finished."""
    pytest.importorskip("apache_beam")
    assert entry.main(command(folder, tmp_path / "out", "--versions=2", "--shard=0/4")) == 0
    assert entry.main(command(folder, tmp_path / "out", "--versions=2", "--beam=")) == 0
    assert content(tmp_path / "out") == content(done)


def test_beam_is_an_extra(folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """What is not installed is named; Beam shares the work by itself."""
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert entry.main(command(folder, tmp_path / "out", "--beam=")) == 2 and "needs the package apache-beam" in capsys.readouterr().err
    assert entry.main(command(folder, tmp_path / "out", "--beam=", "--shard=0/2")) == 2 and "allowed with them is neither --shard nor" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Nothing is mixed into a folder of the user's."""
    (tmp_path / "letter.txt").write_text("dear")
    assert entry.main(command(folder, tmp_path)) == 2 and "is no packed folder" in capsys.readouterr().err


def test_what_is_encoded_is_checked(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Other pictures, other times and a disk that gives back something else are errors, not data."""
    settings = packing.Settings(**SMALL)
    made = sources.VideoClips(index=str(folder / "index.parquet"), split="all")
    facts = settings.facts(made.record(2))
    video = made.decode(made.clip(2, rng=rng()))[:6]
    options = {name: getattr(settings, name) for name in ("preset", "crf", "gop")}
    blob = encoding.encode(video, fps=decode.Fraction(10), **options)
    assert encoding.compare(video, blob, facts=facts, name="x") > 20
    with pytest.raises(RuntimeError, match="grey levels on average"):
        encoding.compare(video[::-1], blob, facts=facts, name="x")
    with pytest.raises(RuntimeError, match="differs from what its index would say.*frames"):
        encoding.compare(video, encoding.encode(video[:5], fps=decode.Fraction(10), **options), facts=facts, name="x")
    plan = packing.planned(str(folder / "index.parquet"), tmp_path / "p", settings=settings, shards=1)
    plain = packing.array_record.ArrayRecordReader.read
    monkeypatch.setattr(packing.array_record.ArrayRecordReader, "read", lambda self, places: [plain(self, places)[0][:-1] + b"?"])
    with pytest.raises(RuntimeError, match="does not give back what was written"):
        packing.pack(plan)
    assert plan.finished() == [] and not list((tmp_path / "p").glob("v0/*.array_record"))


# -- the source ---------------------------------------------------------------------------------------------------------


def test_the_packed_index_is_an_index(done: pathlib.Path, folder: pathlib.Path) -> None:
    """Labels, splits, limits and further columns are those of the videos; what could not be packed is not read."""
    made, raw = source(done), sources.VideoClips(index=str(folder / "index.parquet"), split="all")
    assert made.classes == raw.classes and len(made) == len(raw) - 1 and "bad.mp4" not in {made.name(r) for r in range(len(made))}
    assert len(source(done, split="val")) == 1 and len(source(done, limit=3)) == 3 and source(done, label="motion").classes == ("down", "up")
    labels = {raw.name(r): raw.record(r)["label"] for r in range(len(raw))}
    assert all(made.classes[made.read(r, rng=rng())["label"][0]] == labels[made.name(r)] for r in range(len(made)))
    assert [f.name for f in dataclasses.fields(made)] == [f.name for f in dataclasses.fields(raw)], "so that a config changes its symbol alone"


def test_a_recipe_changes_its_symbol_and_its_index(done: pathlib.Path) -> None:
    """Training and evaluation data of a config, from the command line; a stride that was not packed is refused."""
    config = configs.load(str(ROOT / "configs/tiny.py"))
    symbol = f"{packed.PackedClips.__module__}.{packed.PackedClips.__qualname__}"
    configs.override(config, {"data.__symbol__": symbol, "data.index": str(done / "index.parquet"), "data.frames": "6", "data.sampling.stride": "3"})
    made = configs.build(config.data)
    assert {k: (v.shape, v.dtype.name) for k, v in made.read(0, rng=rng()).items()} == {k: ((2, *f.shape), f.dtype) for k, f in made.fields.items()}
    with pytest.raises(UserError, match=r"cannot be drawn from this packing; allowed are DenseRandom and DenseCentre with stride 3 or a multiple"):
        evaluation_source(config, split="val").read(0, rng=rng())
    with pytest.raises(UserError, match=r"with stride 3 or a multiple$"):
        source(done, sampling=clips.DenseFinetune(stride=3)).read(0, rng=rng())
    configs.override(config, {"eval_data.sampling.stride": "3"})
    assert evaluation_source(config, split="val").read(0, rng=rng())["video"].shape == (1, *made.fields["video"].shape)


def test_fine_tuning_reads_windows_of_every_frame(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The spacing clip x stride / (clip - 1) of V2 within windows of 16 frames, at random and at the centre; a packing with gaps is refused."""
    assert entry.main(command(folder, tmp_path / "out", "--stride=1", "--frames=16", "--windows=1")) == 0

    def made(position: str, **kw: Any) -> packed.PackedClips:
        return source(tmp_path / "out", **({"frames": 4, "sampling": clips.DenseFinetune(stride=3, position=position)} | kw))

    centre, random = made("centre"), made("random")
    row = next(r for r in range(len(centre)) if centre.name(r) == "cfr.mp4")
    (window,) = packing.about(packed.record(tmp_path / "out" / centre.record(row)["path"], int(centre.record(row)["packed"]), name="x"))["ids"]
    assert window == list(range(window[0], window[0] + 16))
    assert numbers(centre, row) == [window[i] for i in (2, 6, 10, 13)], "12 frames about the middle, the last of which is one less"
    seen = {tuple(n - window[0] for n in numbers(random, row, seed)) for seed in range(40)}
    assert seen == {(e - 12, e - 8, e - 4, e - 1) for e in range(12, 16)}
    with pytest.raises(UserError, match="clips of 6 frames need 18 packed ones, and .* has 16 a window; allowed are up to 5 frames, or a packing with --frames=18"):
        made("random", frames=6).read(row, rng=rng())


@pytest.mark.parametrize("test", [classification.Classification, attentive.Heads])
def test_views_that_were_not_packed_are_told_before_training(test: Any, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A test over many views has its first result at the end of a run; that packed clips do not hold them is said at step 0, also of parts of a mixture."""
    assert entry.main(command(folder, tmp_path / "out", "--stride=1", "--frames=16", "--windows=1")) == 0
    made = source(tmp_path / "out", frames=4, sampling=clips.DenseFinetune(stride=3, position="centre"))
    objective = types.SimpleNamespace(head=types.SimpleNamespace(classes=len(made.classes)), head_kind="classes", judge=None)

    def evaluate(found: Any, views: Any) -> dict[str, float]:
        return test(first=1, views=views).run(types.SimpleNamespace(assembly=types.SimpleNamespace(objective=objective), step=0, directory=tmp_path, source=lambda split: found))

    many = classification.Views(sampling=clips.DenseView(stride=3, views=2), crop=three_crop.ThreeCrop())
    with pytest.raises(UserError, match="views: sampling DenseView.* cannot be drawn from this packing; .* many views need the index of the videos in eval_data"):
        evaluate(made, many)
    assert evaluate(made, classification.OneView()) == {}
    strided = dataclasses.replace(made, sampling=clips.DenseView(stride=3, views=2))
    for wrong in (strided, mixture.Concat({"a": mixture.Part(made), "b": mixture.Part(strided)})):
        with pytest.raises(UserError, match="sampling DenseView.* cannot be drawn from this packing"):
            evaluate(wrong, classification.OneView())
    both = mixture.Concat({"a": mixture.Part(made)})
    assert evaluate(both, classification.OneView()) == {}
    with pytest.raises(UserError, match="views need a source with `sampling` and `crop`, and Concat has none; name one of its parts in eval_data"):
        evaluate(both, many)


@pytest.mark.parametrize("kind", ["raw", "packed"])
def test_the_stream_is_the_same_for_any_number_of_workers(kind: str, folder: pathlib.Path, done: pathlib.Path) -> None:
    """Of files, one of them damaged, and of shards, which the process that reads opens: bit-identical batches, and what travels to a worker is small."""
    options = {"repeats": 2, "size": 32, "crop": transforms.MultiScaleCrop()}
    made = source(done, **options) if kind == "packed" else sources.VideoClips(index=str(folder / "index.parquet"), split="all", frames=4, **options)
    assert len(pickle.dumps(made)) < 2000

    def drawn(**options: Any) -> list[dict[str, np.ndarray]]:
        with pipeline.stream(made, batch_size=4, seed=9, **options) as stream:
            return [next(stream) for _ in range(4)]

    threads = drawn(threads=3)
    assert kind == "packed" or any(batch["fault"].any() for batch in threads), "a substitute is read too"
    for one, other in zip(threads, drawn(workers=2), strict=True):
        for key, value in one.items():
            np.testing.assert_array_equal(value, other[key], err_msg=key)


def test_a_folder_that_moves(done: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Index and shards are one folder."""
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name, data in content(done).items():
        (moved / name).parent.mkdir(exist_ok=True)
        (moved / name).write_bytes(data)
    np.testing.assert_array_equal(source(moved).read(1, rng=rng())["video"], source(done).read(1, rng=rng())["video"])


@pytest.mark.parametrize(("damage", "text"), [
    (lambda p: p.unlink(), "open: .*No such file"), (lambda p: p.write_bytes(p.read_bytes()[:70000]), "short: the shard holds 0 records|open:"),
    (lambda p: p.write_bytes(b""), "short: the shard holds 0 records|open:"), (lambda p: p.write_bytes(p.read_bytes().replace(packing.MAGIC, b"\xab" * 4)), "open: ")])
def test_damaged_shards_are_decode_errors(damage: Any, text: str, done: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Path, place and stage are told, and the stream goes on with substitutes from other shards."""
    for name, data in content(done).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    made = source(tmp_path)
    rows = [r for r in range(len(made)) if made.record(r)["path"] == "v0/00001.array_record"]
    for version in range(2):
        damage(tmp_path / f"v{version}/00001.array_record")
    with pytest.raises(decode.DecodeError, match=text):
        made.read(rows[0], rng=rng())
    with pipeline.sweep(made, batch_size=len(made)) as stream:
        assert np.flatnonzero(next(stream)["fault"]).tolist() == rows


def test_packed_and_raw_indices_are_told_apart(done: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Each source refuses the other's index and says what to do."""
    with pytest.raises(UserError, match=r"is of packed clips; read it with .*PackedClips"):
        len(sources.VideoClips(index=str(done / "index.parquet")))
    with pytest.raises(UserError, match=r"is not of packed clips; make them with: python -m videomae_jax pack"):
        len(source(folder))
    with pytest.raises(UserError, match=r"clips of 16 frames need 16 packed ones, and .* has 6 a window; allowed are up to 6 frames, or a packing with --frames=16"):
        source(done, frames=16).read(0, rng=rng())
    os.link(done / "index.parquet", tmp_path / "index.parquet")
    with pytest.raises(UserError, match="is no manifest of a packed folder"):
        source(tmp_path).read(0, rng=rng())
