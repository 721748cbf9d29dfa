"""The writer of synthetic worlds: files that the real pipeline reads back, the same bytes every time, safe to interrupt."""

import concurrent.futures.process
import csv
import dataclasses
import hashlib
import json
import pathlib
import subprocess
import sys
import wave

import numpy as np
import pytest

from videomae_jax import __main__ as program
from videomae_jax.data import clips, columns, decode, faces, index, pipeline, shapes, sources, synthetic, transforms
from videomae_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
TINY = synthetic.Plan(world=faces.Faces(size=16, frames=2), train=66, val=3, test=3, truth=True)
FEW = dataclasses.replace(TINY, train=6, val=1, test=1)
PSNR_FLOOR = 38.0  # dB after box-averaging to half size: what yuv420p at crf 18 keeps of smooth shapes


def contents(directory: pathlib.Path, /) -> dict[str, str]:
    """{relative path: sha256} of all files of a folder."""
    return {p.relative_to(directory).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in directory.rglob("*") if p.is_file()}


def times(directory: pathlib.Path, /) -> dict[str, int]:
    """{relative path: modification time in nanoseconds}."""
    return {p.relative_to(directory).as_posix(): p.stat().st_mtime_ns for p in directory.rglob("*") if p.is_file()}


def psnr(a: np.ndarray, b: np.ndarray, /) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of levels 0 .. 255."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def halved(video: np.ndarray, /) -> np.ndarray:
    """Box average over 2 x 2 pixels."""
    t, h, w, c = video.shape
    return video.reshape(t, h // 2, 2, w // 2, 2, c).astype(np.float64).mean((2, 4))


def test_bytes_do_not_depend_on_run_or_workers(tmp_path: pathlib.Path) -> None:
    """Videos, truth and tables are the same files from one process and from two."""
    assert synthetic.write(tmp_path / "one", TINY, workers=1)
    assert synthetic.write(tmp_path / "two", TINY, workers=2)
    one = contents(tmp_path / "one")
    assert one == contents(tmp_path / "two")
    assert len([name for name in one if name.startswith("videos/")]) == len([name for name in one if name.startswith("truth/")]) == 72
    assert not [name for name in one if name.endswith(".jsonl") and name != "manifest.jsonl"], "the journal is gone"


def test_encoding_is_reproducible() -> None:
    """Eight encodes of a longer clip are one file; with B-frames x264 writes several."""
    video = shapes.clip(0, world=shapes.Shapes(size=64, frames=32), seed=0).video
    assert len({synthetic.encode(video, fps=12) for _ in range(8)}) == 1


@pytest.mark.parametrize("world", [shapes.Shapes(frames=8), faces.Faces(frames=8)], ids=["shapes", "faces"])
def test_written_then_read_by_the_pipeline(world: object, tmp_path: pathlib.Path) -> None:
    """Frame count, times, size, labels and pixels come back through index, decoder and stream; every frame at its own place."""
    plan = synthetic.Plan(world=world, train=3, val=1, test=1, seed=4, truth=True)
    synthetic.write(tmp_path, plan)
    out = tmp_path / "index.parquet"
    index.write(index.build(tmp_path, labels=tmp_path / "labels.csv"), out)
    rows = index.load(out).to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 5
    for row in rows:
        info = columns.info(row)
        assert (info.frames, info.width, info.height, float(info.fps), info.codec) == (8, world.size, world.size, world.fps, "h264")
        np.testing.assert_allclose(info.pts * float(info.time_base), np.arange(8) / world.fps, atol=1e-6)
    source = sources.VideoClips(index=str(out), split="train", frames=8, size=world.size, sampling=clips.DenseCentre(stride=1),
                                crop=transforms.WholeFrame())
    with pipeline.sweep(source, batch_size=3) as stream:
        batch = next(stream)
    assert not batch["fault"].any()
    for place in range(3):
        example = synthetic.example(place, plan=plan)
        assert source.name(place) == f"videos/train_{place:06d}.mp4"
        assert source.classes[batch["label"][place]] == example.labels["label"]
        # DenseCentre repeats the last frame that fits: V2 never reaches the final one.
        ids = clips.DenseCentre(stride=1).ids(8, clip=8, rng=np.random.default_rng(0))
        read, made = halved(batch["video"][place]), halved(example.video)
        assert psnr(read, made[ids]) > PSNR_FLOOR
        for t, frame in enumerate(read):
            assert np.argmax([psnr(frame, other) for other in made]) == ids[t]
        with np.load(tmp_path / "truth" / f"train_{place:06d}.npz") as stored:
            assert set(stored) == set(example.truth)
            for key, value in example.truth.items():
                assert len(value.shape) == 0 or len(value) in (7, 8)
                np.testing.assert_array_equal(stored[key], value)


def test_tables(tmp_path: pathlib.Path) -> None:
    """labels.csv, manifest.jsonl, the lists of the original code and world.json of the shapes."""
    plan = synthetic.Plan(world=shapes.Shapes(size=16, frames=2), train=4, val=2, test=1, seed=5)
    synthetic.write(tmp_path, plan)
    with (tmp_path / "labels.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["path", "label", "split", "appearance", "motion"]
        rows = list(reader)
    assert [row["split"] for row in rows] == ["train"] * 4 + ["val"] * 2 + ["test"]
    assert all(row["label"] == f"{row['appearance']}_{row['motion']}" for row in rows)
    manifest = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [m["path"] for m in manifest] == [row["path"] for row in rows]
    assert {"id", "split", "frames", "fps", "height", "width", "duration", "label"} <= manifest[0].keys()
    assert manifest[0]["duration"] == 2 / plan.world.fps
    assert (tmp_path / "lists/train_pretrain.csv").read_text() == "".join(f"videos/train_{i:06d}.mp4 0 -1\n" for i in range(4))
    classes = sorted({row["label"] for row in rows})
    assert (tmp_path / "lists/val.csv").read_text() == "".join(f"{r['path']} {classes.index(r['label'])}\n" for r in rows[4:6])
    card = json.loads((tmp_path / "world.json").read_text())
    assert (card["family"], card["seed"], card["train"], card["world"]["size"]) == ("shapes", 5, 4, 16)
    assert "bframes=0" in card["encoder"]["x264-params"] and set(card["libraries"]) == {"av", "numpy"}


def test_splits_share_no_index() -> None:
    """Train, validation and test draw from ranges that cannot meet."""
    plan = synthetic.Plan(train=50, val=50, test=50)
    numbers = [i for _, _, i in plan.clips()]
    assert len(set(numbers)) == 150
    assert {split: min(i for _, s, i in plan.clips() if s == split) for split in ("train", "val", "test")} == {
        "train": 0, "val": synthetic.SPLIT_STRIDE, "test": 2 * synthetic.SPLIT_STRIDE}
    with pytest.raises(UserError, match="train is 10000001"):
        synthetic.Plan(train=synthetic.SPLIT_STRIDE + 1)


def interrupt(monkeypatch: pytest.MonkeyPatch, directory: pathlib.Path, plan: synthetic.Plan, /, *, after: int) -> None:
    """Writes `after` clips, then is interrupted."""
    real, count = synthetic.write_clip, iter(range(10**6))

    def stop(job: tuple) -> dict:
        if next(count) == after:
            raise KeyboardInterrupt
        return real(job)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "write_clip", stop)
        with pytest.raises(KeyboardInterrupt):
            synthetic.write(directory, plan)


def test_an_interrupted_writing_goes_on(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole clips are kept as they are; a torn row, an empty or a missing file is made again; the result is that of one go."""
    half, whole = tmp_path / "half", tmp_path / "whole"
    interrupt(monkeypatch, half, FEW, after=5)
    assert not (half / "world.json").exists() and not (half / "labels.csv").exists()
    journal = half / synthetic.JOURNAL
    lines = journal.read_text().splitlines()
    assert len(lines) == 6
    journal.write_text("\n".join([*lines[:5], lines[5][:40]]))  # a power cut in the fifth row
    (half / "videos/train_000001.mp4").write_bytes(b"")
    (half / "truth/train_000002.npz").unlink()
    before = times(half)
    assert synthetic.write(half, FEW)
    after = times(half)
    for name in ("train_000000", "train_000003"):
        assert after[f"videos/{name}.mp4"] == before[f"videos/{name}.mp4"]
        assert after[f"truth/{name}.npz"] == before[f"truth/{name}.npz"]
    for name in ("train_000001", "train_000002", "train_000004"):
        assert after[f"videos/{name}.mp4"] != before[f"videos/{name}.mp4"]
    synthetic.write(whole, FEW)
    assert contents(half) == contents(whole)


def test_a_complete_folder_is_left_alone(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """The same plan changes nothing, also under other library versions; another one is refused and the difference named."""
    synthetic.write(tmp_path, FEW)
    card = json.loads((tmp_path / "world.json").read_text())
    card["libraries"]["numpy"] = "0.0"
    (tmp_path / "world.json").write_text(json.dumps(card))
    before = times(tmp_path)
    assert not synthetic.write(tmp_path, FEW)
    assert "complete already" in capsys.readouterr().err
    with pytest.raises(UserError, match="seed is 0 there and 1 here"):
        synthetic.write(tmp_path, dataclasses.replace(FEW, seed=1))
    with pytest.raises(UserError, match="world.size is 16 there and 32 here"):
        synthetic.write(tmp_path, dataclasses.replace(FEW, world=faces.Faces(size=32, frames=2)))
    assert times(tmp_path) == before


def test_foreign_folders_are_refused(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unfinished folder of another plan, and videos of unknown origin, are not mixed with new clips."""
    interrupt(monkeypatch, tmp_path / "unfinished", FEW, after=2)
    with pytest.raises(UserError, match="seed is 0 there and 3 here"):
        synthetic.write(tmp_path / "unfinished", dataclasses.replace(FEW, seed=3))
    (tmp_path / "holiday/videos").mkdir(parents=True)
    (tmp_path / "holiday/videos/beach.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match="belong to no world"):
        synthetic.write(tmp_path / "holiday", FEW)
    assert [p.name for p in (tmp_path / "holiday").rglob("*") if p.is_file()] == ["beach.mp4"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/labels.csv").write_text("precious")
    with pytest.raises(UserError, match="mine holds files that belong to no world, such as labels.csv; use a new folder"):
        synthetic.write(tmp_path / "mine", FEW)
    assert (tmp_path / "mine/labels.csv").read_text() == "precious"


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.RLIM_INFINITY))
from videomae_jax.__main__ import main
sys.exit(main(["synthesize", {directory!r}, "--family=faces", "--world.size=64", "--world.frames=4", "--train=3", "--val=1", "--test=1"]))
"""


def test_a_write_that_fails_is_one_line(tmp_path: pathlib.Path) -> None:
    """No room for a file (here by a size limit, which fails like a full disk): one line, no remains, and the next run goes on."""
    directory = tmp_path / "world"
    done = subprocess.run([sys.executable, "-c", LIMITED.format(limit=2000, directory=str(directory))], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: cannot write {directory}") and "too large" in done.stderr
    assert [p.name for p in directory.rglob("*") if p.is_file()] == [synthetic.JOURNAL]
    assert program.main(["synthesize", str(directory), "--family=faces", "--world.size=64", "--world.frames=4", "--train=3", "--val=1", "--test=1"]) == 0
    assert len(index.load(directory / "index.parquet")) == 5


def test_a_first_write_that_fails_leaves_no_foreign_folder(tmp_path: pathlib.Path) -> None:
    """No room even for the journal: what there is of the folder is not taken for somebody else's by the next run."""
    directory = tmp_path / "world"
    done = subprocess.run([sys.executable, "-c", LIMITED.format(limit=50, directory=str(directory))], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(f"error: cannot write {directory}")
    assert not list(directory.iterdir())
    assert program.main(["synthesize", str(directory), "--family=faces", "--world.size=64", "--world.frames=4", "--train=3", "--val=1", "--test=1"]) == 0


def test_unwritable_places_and_lost_workers_are_one_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file where the folder should be; a worker that the system kills."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*file"):
        synthetic.write(tmp_path / "file" / "world", FEW)

    def killed(*_: object, **__: object) -> None:
        raise concurrent.futures.process.BrokenProcessPool("a process was terminated")

    monkeypatch.setattr(synthetic, "made", killed)
    with pytest.raises(UserError, match="fewer workers"):
        synthetic.write(tmp_path / "world", FEW)


def test_command_writes_and_indexes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """The default family is the shapes; the index has their labels; a second call changes nothing."""
    command = ["synthesize", str(tmp_path / "shapes"), "--train=4", "--val=1", "--test=1", "--world.size=16", "--world.frames=2", "--workers=1"]
    assert program.main(command) == 0
    assert capsys.readouterr().out == f"{tmp_path}/shapes/index.parquet\n"
    table = index.load(tmp_path / "shapes/index.parquet")
    assert {"appearance", "motion"} <= set(table.schema.names) and table.column("status").to_pylist() == ["ok"] * 6
    assert table.column("split").to_pylist().count("train") == 4
    before = times(tmp_path)
    assert program.main(command) == 0
    assert times(tmp_path) == before
    (tmp_path / "shapes/index.parquet").unlink()
    assert program.main(command) == 0
    assert (tmp_path / "shapes/index.parquet").exists()


@pytest.mark.parametrize(("words", "told"), [
    (["--family=cats"], "family 'cats'; allowed are collisions, faces, shapes"),
    (["--family=faces", "--world.hat=1"], "no field 'hat'"), (["--family=collisions", "--world.duration=3"], "no field 'duration'; it has "),
    (["--family=faces", "--world.size=big"], "world.size is 'big'"),
    (["--family=faces", "--world.period=3"], "world.period is '3'; allowed is a value like (9.0, 14.0)"),
    (["--family=faces", "--world.crop=loose"], "crop 'loose'; allowed are generous, tight"),
    (["--world.size=15", "--train=1"], "15x15 cannot be stored"),
    (["--world.size"], "--world.size needs a value"),
    (["--train=-1"], "train is -1"),
    (["--train=0", "--val=0", "--test=0"], "no clips"),
    (["--seed=-1"], "seed -1")])
def test_mistakes_are_one_line(words: list[str], told: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture) -> None:
    """Exit code 2 and one line that names the value."""
    assert program.main(["synthesize", str(tmp_path / "new"), *words]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_family_without_its_module_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the absence of the module itself is taken for a missing family."""
    monkeypatch.setattr(synthetic, "FAMILIES", ("unicorns",))
    with pytest.raises(UserError, match="'unicorns' is not part of this installation"):
        synthetic.world("unicorns")


def test_world_values_are_typed() -> None:
    """Integers serve as floats, tuples keep their length, words stay words."""
    world = synthetic.world("faces", changes={"forged": "1", "period": "(5.0, 6.0)", "crop": "tight", "quality": "40"})
    assert world == faces.Faces(forged=1.0, period=(5.0, 6.0), crop="tight", quality=40)
    assert isinstance(world.forged, float)


def test_sound_lies_at_its_events(tmp_path: pathlib.Path) -> None:
    """The AAC track decodes to the waveform of the wav without lag; onsets lie within a hop (10 ms) of the event times."""
    collisions = pytest.importorskip("videomae_jax.data.collisions")
    audio = pytest.importorskip("videomae_jax.data.audio")
    plan = synthetic.Plan(world=collisions.Collisions(size=32), train=3, val=0, test=0, seed=2, truth=True)
    synthetic.write(tmp_path, plan)
    checked = 0
    for name, _, number in plan.clips():
        example = synthetic.example(number, plan=plan)
        with wave.open(str(tmp_path / f"audio/{name}.wav")) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, plan.world.audio_rate)
            exact = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32767
        np.testing.assert_allclose(exact, example.audio, atol=0.51 / 32767)
        path = tmp_path / f"videos/{name}.mp4"
        assert decode.probe(path).frames == plan.world.frames
        sound = audio.decode_audio(path, start=0.0, duration=len(exact) / plan.world.audio_rate, rate=plan.world.audio_rate)
        assert sound.valid.all()
        assert 10 * np.log10((exact**2).mean() / ((sound.samples - exact) ** 2).mean()) > 25, "a lag of one sample already falls below"
        with np.load(tmp_path / f"truth/{name}.npz") as truth:
            loud = truth["event_time"][truth["event_pitch"] > 0]
        level = np.sqrt(np.convolve(sound.samples.astype(np.float64) ** 2, np.ones(16) / 16, "same"))
        for time in np.unique(loud):
            first = round(float(time) * plan.world.audio_rate)
            if np.abs(loud - time)[loud != time].min(initial=1.0) < 0.2 or not 800 < first < len(exact) - 800:
                continue  # another tone still sounds, or the clip begins or ends
            quiet = level[first - 400: first - 160].max()
            onset = first - 160 + np.argmax(level[first - 160: first + 400] > 3 * quiet + 0.01)
            assert abs(onset - first) <= 160
            checked += 1
    assert checked >= 2
