"""Bad data: every kind of damage is a typed error with its path, replaced alike by every loader, listed, limited; nothing hangs."""

import dataclasses
import errno
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

import av
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_decode import encode, flipped, spelt

from videomae_jax import run_directory
from videomae_jax.data import clips, deadline, decode, frame_folders, index, pictures, pipeline, quarantine, remote, sources, transforms, workers
from videomae_jax.errors import UserError

TIMEOUT = 2.0  # seconds; a read of these files takes milliseconds


def sound() -> bytes:
    """An mp4 of a second of silence."""
    path = pathlib.Path(f"/tmp/{os.getpid()}.mp4")
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    data = path.read_bytes()
    path.unlink()
    return data


def fifo(path: pathlib.Path, /) -> None:
    """A pipe that nobody writes to: opening it does not return."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.fixture(scope="module")
def good() -> bytes:
    """Sixty frames that spell their numbers, in one group of pictures."""
    return encode(frames=60, bf="0", g="500", crf="5")


DAMAGE = {
    "truncated": lambda path, good: path.write_bytes(good[: len(good) * 2 // 3]), "bit_flipped": lambda path, good: path.write_bytes(flipped(good, at=0.7, length=100)),
    "zero_byte": lambda path, good: path.write_bytes(b""), "audio_only": lambda path, good: path.write_bytes(sound()),
    "one_frame": lambda path, good: path.write_bytes(encode(frames=1, bf="0")), "text": lambda path, good: path.write_text("no video\n" * 100),
    "another_container": lambda path, good: path.write_bytes(encode(frames=60, bf="0", container="matroska")),
    "missing": lambda path, good: path.unlink(), "hanging": lambda path, good: fifo(path)}
# What indexing says of each, and the stages at which a read may fail that was promised a good file of any size.
AT_INDEX = {"truncated": "short", "bit_flipped": "ok", "zero_byte": "open", "audio_only": "stream", "one_frame": "ok", "text": "open", "another_container": "ok",
            "missing": "open", "hanging": "timeout"}
AT_READ = {"truncated": ("decode", "short", "index", "open"), "bit_flipped": ("ok", "decode"), "zero_byte": ("open",), "audio_only": ("stream",),
           "one_frame": ("ok", "short", "decode"), "text": ("open",), "another_container": ("timestamps",), "missing": ("open",),
           "hanging": ("timeout",)}


def source(folder: pathlib.Path, /, **kw: Any) -> sources.VideoClips:
    """Whole frames of the folder's index."""
    return sources.VideoClips(**({"index": str(folder / "index.parquet"), "frames": 8, "size": 128, "crop": transforms.WholeFrame(), "split": "all",
                                  "sampling": clips.DenseRandom(stride=4), "timeout": TIMEOUT} | kw))


@pytest.fixture()
def folder(good: bytes, tmp_path: pathlib.Path) -> pathlib.Path:
    """Good files named after damages and three more, indexed without their sizes, then damaged."""
    for name in (*DAMAGE, "x", "y", "z"):
        (tmp_path / f"{name}.mp4").write_bytes(good)
    index.write(index.build(tmp_path), tmp_path / "index.parquet")
    pq.write_table(pq.read_table(tmp_path / "index.parquet").drop_columns(["size", "mtime"]), tmp_path / "index.parquet")
    for name, damage in DAMAGE.items():
        damage(tmp_path / f"{name}.mp4", good)
    return tmp_path


@pytest.mark.parametrize("kind", DAMAGE)
def test_at_indexing(kind: str, good: bytes, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status begins with the stage; a file of one frame is a video; --verify finds what only decoding shows."""
    monkeypatch.setattr(decode, "TIMEOUT", 0.3 if kind == "hanging" else 30.0)
    path = tmp_path / f"{kind}.mp4"
    path.write_bytes(good)
    DAMAGE[kind](path, good)
    found = index.describe_job(index.Job(str(path)))
    assert found["status"].split(":")[0] == AT_INDEX[kind]
    if kind == "bit_flipped":
        assert index.describe_job(index.Job(str(path), verify=True))["status"].startswith("decode: ")


@pytest.mark.parametrize("kind", [k for k in DAMAGE if k != "hanging"])
def test_at_reading(kind: str, folder: pathlib.Path) -> None:
    """Path and stage; what is read in spite of all is right."""
    made = source(folder, timeout=60.0)
    row = next(r for r in range(len(made)) if made.name(r) == f"{kind}.mp4")
    try:
        numbers = [spelt(p) for p in made.read(row, rng=np.random.default_rng(0))["video"][0]]
    except decode.DecodeError as error:
        assert error.path == str(folder / f"{kind}.mp4") and error.stage in AT_READ[kind] and error.cause
    else:
        assert "ok" in AT_READ[kind] and (kind == "one_frame" or np.diff(numbers).tolist() == [4] * 7)


def test_every_loader_replaces_alike(folder: pathlib.Path) -> None:
    """The same batches, faults and substitutes from threads and processes, at every position, the hanging file among them."""
    made = source(folder, timeout=8.0)

    def drawn(**options: Any) -> list[dict[str, np.ndarray]]:
        with pipeline.stream(made, batch_size=6, seed=4, **options) as stream:
            return [next(stream) for _ in range(4)]

    begin, one = time.monotonic(), drawn(threads=3)
    assert time.monotonic() - begin < 60
    for first, second in zip(one, drawn(workers=1, threads=2), strict=True):
        for key, value in first.items():
            np.testing.assert_array_equal(value, second[key], err_msg=key)
    rows, faults = (np.concatenate([b[k] for b in one]) for k in ("row", "fault"))
    stages = {made.name(int(r)): "ok" if not f else quarantine.stage(int(f)) for r, f in zip(rows, faults, strict=True)}
    assert len(stages) == len(DAMAGE) + 3 and stages["hanging.mp4"] == "timeout" and stages["x.mp4"] == stages["y.mp4"] == stages["z.mp4"] == "ok"
    for kind, allowed in AT_READ.items():
        assert stages[f"{kind}.mp4"] in allowed
    left = [t for t in threading.enumerate() if t.name == "read"]
    assert left and all(t.daemon for t in left), "a read that hangs does not keep the process from ending"


# -- time limits ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Slow(sources.NoiseClips):
    """Noise whose row 3 hangs while the file `hang` exists; every read is noted in `log`."""

    hang: str = ""
    log: str = ""
    timeout: float = 2.5  # each hang costs it; no other read may
    max_bad_fraction: float = 0.2

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        with open(self.log, "a") as file:
            file.write(f"{row} ")
        if row == 3 and pathlib.Path(self.hang).exists():
            threading.Event().wait()
        return super().read(row, rng=rng)


@pytest.fixture()
def slow(tmp_path: pathlib.Path) -> Slow:
    """Eight rows, one of them hanging."""
    (tmp_path / "hang").touch()
    (tmp_path / "log").touch()
    return Slow(frames=1, size=8, length=8, hang=str(tmp_path / "hang"), log=str(tmp_path / "log"))


def reads(made: Slow, row: int, /) -> int:
    """How often a row was read."""
    return pathlib.Path(made.log).read_text().split().count(str(row))


def test_what_took_too_long_is_not_waited_for_again(slow: Slow, tmp_path: pathlib.Path) -> None:
    """One wait in four passes, though the file answers again; a resumed run repeats that from quarantine.jsonl, whatever its start, and goes on so."""
    faults = run_directory.Faults(tmp_path, source=slow)
    straight = []
    with pipeline.stream(slow, batch_size=8, seed=1) as stream:
        for number in range(4):
            straight.append(next(stream))
            faults.note(straight[-1]) if number else None
            pathlib.Path(slow.hang).unlink(missing_ok=True)
    positions = [int(b["key"][b["row"] == 3, 0][0]) for b in straight]
    assert reads(slow, 3) == 1 and [int(b["fault"].max()) for b in straight] == [1 + decode.STAGES.index("timeout")] * 4
    until, *lines = map(json.loads, (tmp_path / "quarantine.jsonl").read_text().splitlines())
    assert until == {"until": 16 + 8 * faults.AHEAD}
    assert lines == [{"row": 3, "name": "noise 3", "stage": "timeout", "position": p, "attempts": [0]} for p in positions[1:]]
    again = run_directory.Faults(tmp_path, source=slow)
    for found in (again, run_directory.Faults(tmp_path, source=slow)):
        assert found.quarantine == quarantine.Quarantine({3: until["until"]}, {p: {0: "timeout"} for p in positions[1:]})
    for start in (0, 8, 16):
        with pipeline.stream(slow, batch_size=8, seed=1, start=start, quarantine=again.quarantine) as stream:
            for number in range(start // 8, 4):
                batch = next(stream)
                assert int(batch["fault"].max()) == (0 if number == 0 else 1 + decode.STAGES.index("timeout")), "before its position the row is read"
                if number:
                    np.testing.assert_array_equal(batch["video"], straight[number]["video"])
    assert reads(slow, 3) == 2
    with pipeline.stream(slow, batch_size=8, seed=1, start=until["until"], quarantine=again.quarantine) as stream:
        for _ in range(3):
            batch = next(stream)
            assert batch["fault"][batch["row"] == 3].tolist() == [1 + decode.STAGES.index("timeout")]
            again.note(batch)
    assert reads(slow, 3) == 2 and len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 5, "a row that nobody reads needs no further lines"


@dataclasses.dataclass(frozen=True)
class Failing(sources.NoiseClips):
    """Clips filled with their row. Row 2 is damaged; a read of a row that the folder `hang` or `broken` has a file for removes it, and hangs or breaks off."""

    hang: str = ""
    broken: str = ""
    timeout: float = 2.5  # each hang costs it; no other read may
    max_bad_fraction: float = 1.0

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if row == 2:
            raise decode.DecodeError(self.name(row), "decode", "damaged on purpose")
        for folder in (self.hang, self.broken):
            try:
                pathlib.Path(folder, str(row)).unlink()
            except FileNotFoundError:
                continue
            if folder == self.hang:
                threading.Event().wait()
            raise decode.DecodeError(self.name(row), "io", "broken off on purpose")
        found = super().read(row, rng=rng)
        return found | {"video": np.full_like(found["video"], row)}


@pytest.fixture()
def failing(tmp_path: pathlib.Path) -> Failing:
    """Eight rows that are all read well, but for the one."""
    for name in ("hang", "broken"):
        (tmp_path / name).mkdir()
    return Failing(frames=1, size=8, length=8, repeats=2, hang=str(tmp_path / "hang"), broken=str(tmp_path / "broken"))


@pytest.mark.parametrize(("stage", "row", "workers"), [("timeout", 3, 0), ("timeout", 3, 2), ("timeout", 1, 0), ("timeout", 1, 2), ("io", 3, 0), ("io", 1, 0)])
def test_a_resumed_run_repeats_what_does_not_repeat_itself(
        failing: Failing, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, stage: str, row: int, workers: int) -> None:
    """The failure comes once. Row 1 fails as the substitute of the damaged one, at position 0. Of two processes, the one that did not meet it reads on."""
    monkeypatch.setattr(deadline, "PAUSES", ())
    (tmp_path / ("hang" if stage == "timeout" else "broken") / str(row)).touch()
    options, faults, straight = {"batch_size": 8, "seed": 6, "threads": 1, "workers": workers}, run_directory.Faults(tmp_path, source=failing), []
    with pipeline.stream(failing, **options) as stream:
        for _ in range(10):
            straight.append(next(stream))
            faults.note(straight[-1])
    found = {int(key[0]): quarantine.attempts(int(code)) for batch in straight for key, code in zip(batch["key"], batch["fault"], strict=True)}
    if workers:  # either may meet it
        assert any(found.values())
    else:
        assert found[0 if row == 1 else straight[0]["row"].tolist().index(3) // 2] == [int(row == 1)]
    for start in (0, 40):
        again = run_directory.Faults(tmp_path, source=failing).quarantine
        with pipeline.stream(failing, **options, start=start, quarantine=again) as stream:
            for one in straight[start // 8:]:
                two = next(stream)
                assert one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one)


def test_the_earliest_quarantine_of_all_processes_holds(slow: Slow, tmp_path: pathlib.Path) -> None:
    """Another process may have the row after a change of their number; half a line, of one that lives too, is left alone."""
    (tmp_path / "quarantine.jsonl").write_text('{"row": 3, "position": 70}\n{"row": 7, "pos\n{"row": 5, "position": 9}\n')
    (tmp_path / "quarantine.1.jsonl").write_text('{"row": 3, "position": 40}\n{"row": 6, "po')
    assert run_directory.Faults(tmp_path, source=slow).quarantine == quarantine.Quarantine({3: 40, 5: 9})
    assert (tmp_path / "quarantine.1.jsonl").read_text().endswith('"po')


def test_threads_of_reads_are_used_again() -> None:
    """A hundred calls one after another need one thread, and what a call raises comes back as it is."""
    def count() -> int:
        return sum(t.name == "read" for t in threading.enumerate())

    before = count()
    assert [deadline.call(lambda n=n: n * n, seconds=30, name=str) for n in range(100)] == [n * n for n in range(100)]
    assert count() <= before + 1
    with pytest.raises(ZeroDivisionError):
        deadline.call(lambda: 1 / 0, seconds=30, name=str)
    with pytest.raises(decode.DecodeError, match="slow: timeout: no answer within 0.05 s"):
        deadline.call(lambda: time.sleep(0.5), seconds=0.05, name=lambda: "slow")


# -- input and output that fails -------------------------------------------------------------------------------------------


class Refusal(Exception):
    """What a client raises for an answer of HTTP."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def flaky(call: Any, errors: list[Exception], /) -> Any:
    """`call`, which raises these errors first."""
    def tried(*args: Any, **kw: Any) -> Any:
        if errors:
            raise errors.pop(0)
        return call(*args, **kw)

    return tried


@pytest.mark.parametrize(("error", "lasting"), [
    (ConnectionResetError("reset"), False), (Refusal(503), False), (Refusal(429), False), (RuntimeError("of a client"), False), (Refusal(403), True),
    (FileNotFoundError("gone"), True), (PermissionError("secret"), True)], ids=str)
def test_an_address_is_read_again(error: Exception, lasting: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What may pass is tried four times, and then called so; an answer that says no is one."""
    monkeypatch.setattr(deadline, "PAUSES", (0.0, 0.0, 0.0))
    system = fsspec.filesystem("memory")
    system.pipe_file("/flaky/a", b"whole")
    for count in (1, 3, 4):
        errors = [error] * count
        monkeypatch.setattr(type(system), "cat_file", flaky(type(system).cat_file, errors))
        if lasting or count == 4:
            with pytest.raises(decode.DecodeError) as found:
                deadline.call(lambda: remote.read("memory://flaky/a"), seconds=30, name=str)
            assert found.value.stage == ("open" if lasting else "io") and len(errors) == (count - 1 if lasting else 0)
        else:
            assert deadline.call(lambda: remote.read("memory://flaky/a"), seconds=30, name=str) == b"whole"
        monkeypatch.undo()
        monkeypatch.setattr(deadline, "PAUSES", (0.0, 0.0, 0.0))


def test_further_tries_end_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause that would not end within the limit is not made."""
    monkeypatch.setattr(deadline, "PAUSES", (0.01, 60.0))
    calls: list[int] = []

    def broken() -> None:
        calls.append(1)
        raise decode.DecodeError("a", "io", "broken off")

    begin = time.monotonic()
    with pytest.raises(decode.DecodeError, match="broken off"):
        deadline.call(broken, seconds=30, name=str)
    assert len(calls) == 2 and time.monotonic() - begin < 20


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EAGAIN])
@pytest.mark.parametrize("kind", ["video", "pictures"])
def test_a_file_is_read_again(kind: str, number: int, good: bytes, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the file system in the first read of a batch changes nothing; one in every read is called so, but not what is wrong with bytes in memory."""
    (tmp_path / "a.mp4").write_bytes(good)
    folder = tmp_path / "pictures" / "a"
    folder.mkdir(parents=True)
    for frame in (1, 2):
        Image.new("RGB", (32, 32), (frame, 0, 0)).save(folder / f"{frame}.png")
    table = index.build(tmp_path) if kind == "video" else index.build(tmp_path / "pictures", template="{}.png")
    index.write(table, tmp_path / "index.parquet")
    made = source(tmp_path, timeout=60.0) if kind == "video" else frame_folders.FrameClips(
        index=str(tmp_path / "index.parquet"), frames=2, size=32, crop=transforms.WholeFrame(), split="all", sampling=clips.DenseRandom(stride=1))
    wanted, fault = pipeline.read(made, 0, seed=0, position=0)
    owner, name = (av, "open") if kind == "video" else (pictures, "open")
    error, plain = OSError(number, os.strerror(number)), getattr(owner, name, open)
    monkeypatch.setattr(deadline, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(owner, name, flaky(plain, [error]), raising=False)
    found, again = pipeline.read(made, 0, seed=0, position=0)
    assert fault == again == 0 and all((wanted[key] == found[key]).all() for key in wanted)
    monkeypatch.setattr(owner, name, flaky(plain, [error] * 4), raising=False)
    with pytest.raises(UserError, match=": io: "):
        pipeline.read(made, 0, seed=0, position=0)
    if kind == "video":
        monkeypatch.setattr(owner, name, flaky(plain, [error]))
        with pytest.raises(decode.DecodeError, match=": open: "):
            decode.probe(good)


# -- processes that end ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ending(sources.NoiseClips):
    """Noise whose row 5 ends the process: "exit" at once and with code 0, "system" by SystemExit."""

    how: str = ""

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        if row == 5 and self.how == "exit":
            os._exit(0)
        if row == 5 and self.how == "system":
            sys.exit(0)
        return super().read(row, rng=rng)


@pytest.mark.parametrize(("how", "processes", "said"), [("exit", 2, "exit code 70"), ("system", 1, "tried to end the process"), ("system", 0, "tried to end the process")])
def test_a_read_that_ends_its_process_is_an_error(how: str, processes: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a hang of the loader, nor a quiet end of the run; another stream beside it goes on."""
    monkeypatch.setattr(workers, "LOOK", 0.05)
    with pipeline.stream(Ending(frames=1, size=8, length=64), batch_size=4, seed=0, workers=1) as beside:
        next(beside)
        begin = time.monotonic()
        with pipeline.stream(Ending(frames=1, size=8, length=64, how=how), batch_size=4, seed=0, workers=processes) as stream, pytest.raises(RuntimeError, match=said):
            for _ in range(40):
                next(stream)
        assert time.monotonic() - begin < 60
        for _ in range(10):
            next(beside)


def test_a_finished_sweep_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that come to the end of the data, in turns with those of another stream, end nothing, however long the sweep then stays open."""
    monkeypatch.setattr(workers, "LOOK", 0.05)
    made = Ending(frames=1, size=8, length=4)
    with pipeline.stream(made, batch_size=4, seed=0, workers=1) as training:
        next(training)
        with pipeline.sweep(dataclasses.replace(made, length=12), batch_size=4, workers=2) as sweep:
            assert len(list(sweep)) == 3
            time.sleep(1)
            assert not workers.lost()
        for _ in range(10):
            next(training)


def test_a_stream_does_not_take_the_processes_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has started none looks while a sweep runs and after it has ended, as at the first evaluation of a run."""
    monkeypatch.setattr(workers, "LOOK", 600)
    made = Ending(frames=1, size=8, length=4)
    with pipeline.stream(made, batch_size=4, seed=0, workers=1) as training:
        with pipeline.sweep(made, batch_size=4, workers=1) as sweep:
            next(sweep)
            training._running.processes.look()
            assert not list(sweep)
        training._running.processes.look()
        assert not workers.lost()
        next(training)


def test_a_hanging_read_does_not_keep_the_process(slow: Slow) -> None:
    """The command ends with the thread left behind."""
    code = ("import sys, pathlib; sys.path[:0] = ['tests', '.']\nfrom test_bad_data import Slow\nfrom videomae_jax.data import pipeline\n"
            f"with pipeline.stream(Slow(frames=1, size=8, length=8, hang={slow.hang!r}, log={slow.log!r}), batch_size=8, seed=1) as s: print(next(s)['fault'].max())")
    done = subprocess.run([sys.executable, "-c", code], cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == str(1 + decode.STAGES.index("timeout"))


# -- the limit ---------------------------------------------------------------------------------------------------------------


def batch(bad: int, /, *, size: int = 10, copies: int = 2, first: int = 0) -> dict[str, np.ndarray]:
    """A batch of `size` decoded clips, the first `bad` of which failed in decoding."""
    rows = np.repeat(np.arange(first, first + size), copies)
    fault = np.where(rows - first < bad, 1 + decode.STAGES.index("decode"), 0)
    return {"fault": fault.astype(np.int32), "row": rows.astype(np.int32), "key": np.stack([rows, np.tile(np.arange(copies), size)], -1).astype(np.uint32)}


@dataclasses.dataclass(frozen=True)
class Limited(sources.NoiseClips):
    """Noise with a limit."""

    max_bad_fraction: float = 0.05


def test_too_many_bad_clips_end_the_run(tmp_path: pathlib.Path) -> None:
    """The share counts decoded clips, not copies, over the last 1,000; a burst is forgotten, exactly the limit is allowed."""
    assert run_directory.WINDOW == 1000 and sources.VideoClips(index="x").max_bad_fraction == 0.01
    faults = run_directory.Faults(tmp_path, source=Limited(length=10_000))
    for number in range(200):
        faults.note(batch(5 if number < 10 else 0, first=10 * number))
    assert faults.count == 100 and faults.counters() == {"bad_clips": 50.0, "bad_clips/decode": 50.0}
    faults.note(batch(10, first=5000))
    for number in range(4):
        faults.note(batch(10, first=6000 + 10 * number))  # 50 of 1,000
    with pytest.raises(UserError, match=r"51 of the last 1000 decoded clips could not be read \(5\.1 %\), more than data\.max_bad_fraction=0\.05.*faults\.jsonl.*--verify"):
        faults.note(batch(1, first=9000))


def test_small_sources_are_judged_after_one_pass(tmp_path: pathlib.Path) -> None:
    """Of 40 videos 2 are 5 %: allowed; the first batches alone say nothing."""
    for bad, fails in ((2, False), (3, True)):
        faults = run_directory.Faults(tmp_path / str(bad), source=Limited(length=40))
        (tmp_path / str(bad)).mkdir()
        for number in range(3):
            faults.note(batch(bad if number == 0 else 0, first=10 * number))
        if fails:
            with pytest.raises(UserError, match="3 of the last 40 decoded clips"):
                faults.note(batch(0, first=30))
        else:
            faults.note(batch(0, first=30))
