"""Files that break off while they are read, indexed or packed: what may pass is tried again and called so, and no good video is taken for a damaged one."""

import errno
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from array_record.python import array_record_module as array_record
from test_bad_data import flaky, source
from test_decode import encode

from videomae_jax.data import deadline, decode, folders, footage, index, packed, packing, pipeline, quarantine, sources, transforms
from videomae_jax.errors import UserError


ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "PAUSES", (0.0, 0.0, 0.0))


def broken(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, /, *, fails: Callable[[int], bool]) -> list[int]:
    """Lets the n-th read of a file fail with EIO where `fails` says so; the number of reads so far."""
    read, place, count = os.read, (path.stat().st_dev, path.stat().st_ino), [0]

    def tried(descriptor: int, size: int, /) -> bytes:
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino) == place:
            count[0] += 1
            if fails(count[0]):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, size)

    monkeypatch.setattr(os, "read", tried)
    return count


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One video that takes several reads, indexed."""
    directory = tmp_path_factory.mktemp("long")
    footage.write(directory / "a.mp4", seconds=2, seed=2)
    index.write(index.build(directory), directory / "index.parquet")
    return directory


# -- videos ----------------------------------------------------------------------------------------------------------------


def test_an_error_in_the_middle_of_a_file_passes(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever read it is, the clip is the same and no fault; where all fail from there on, the error is called so."""
    made = source(folder, size=64, crop=transforms.CentreCrop(), timeout=60.0)
    with monkeypatch.context() as patch:
        count = broken(folder / "a.mp4", patch, fails=lambda number: False)
        wanted, _ = pipeline.read(made, 0, seed=0, position=0)
    assert count[0] > 3
    for number in range(1, count[0] + 1):
        with monkeypatch.context() as patch:
            broken(folder / "a.mp4", patch, fails=lambda n, number=number: n == number)
            found, fault = pipeline.read(made, 0, seed=0, position=0)
            assert fault == 0 and all((wanted[key] == found[key]).all() for key in wanted), number
        with monkeypatch.context() as patch:
            broken(folder / "a.mp4", patch, fails=lambda n, number=number: n >= number)
            with pytest.raises(UserError, match="a.mp4: io: Input/output error"):
                pipeline.read(made, 0, seed=0, position=0)


def test_a_system_may_lack_an_error() -> None:
    """macOS knows no EREMOTEIO."""
    code = "import errno; del errno.EREMOTEIO; from videomae_jax.data import decode; print(errno.EIO in decode.TRANSIENT, len(decode.TRANSIENT))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "True 6\n", done.stderr


def test_a_pipe_that_delivers_slowly_is_late(tmp_path: pathlib.Path) -> None:
    """Steadily, but not in time: the stage is "timeout", so that a resumed run repeats it."""
    data = encode(frames=240, bf="0", container="mpegts")
    for name in "ab":
        (tmp_path / f"{name}.ts").write_bytes(data)
    index.write(index.build(tmp_path), tmp_path / "index.parquet")
    pq.write_table(pq.read_table(tmp_path / "index.parquet").drop_columns(["size", "mtime"]), tmp_path / "index.parquet")  # a pipe has no size
    path = tmp_path / "a.ts"
    path.unlink()
    os.mkfifo(path)

    def deliver() -> None:
        for _ in range(2):
            try:
                with open(path, "wb", buffering=0) as pipe:
                    for place in range(0, len(data), 188):
                        pipe.write(data[place: place + 188])
                        time.sleep(0.05)
            except BrokenPipeError:
                continue

    threading.Thread(target=deliver, daemon=True).start()
    with pytest.raises(decode.DecodeError, match=r"a\.ts: timeout: not done after 0\.3 s"):
        decode.probe(path, timeout=0.3)
    made = source(tmp_path, frames=2, timeout=2.0)
    row = next(row for row in range(2) if made.name(row) == "a.ts")
    _, fault = pipeline.read(made, row, seed=0, position=0)
    assert quarantine.stage(fault) == "timeout" and quarantine.attempts(fault) == [0]


# -- shards ----------------------------------------------------------------------------------------------------------------


@pytest.fixture()
def shard(tmp_path: pathlib.Path) -> pathlib.Path:
    """A shard of two records that no reader of this process has open."""
    path = tmp_path / "00000.array_record"
    writer = array_record.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for data in (b"first", b"second"):
        writer.write(data)
    writer.close()
    packed._reader.cache_clear()
    return path


class Reader:
    """A reader of a shard that holds nothing, or whose first reads end in errors."""

    def __init__(self, *errors: str) -> None:
        self.count, self.errors = 2 * bool(errors), list(errors)

    def num_records(self) -> int:
        return self.count

    def read(self, places: list[int], /) -> list[bytes]:
        if self.errors:
            raise RuntimeError(self.errors.pop(0))
        return [b"second"]


def opened(monkeypatch: pytest.MonkeyPatch, readers: list[Reader], /) -> None:
    """Lets shards be opened by these readers first."""
    plain = array_record.ArrayRecordReader
    monkeypatch.setattr(packed, "array_record", SimpleNamespace(ArrayRecordReader=lambda *a, **k: readers.pop(0) if readers else plain(*a, **k)))


def again(path: pathlib.Path, /) -> bytes:
    """The second record, as a loader reads it."""
    return deadline.call(lambda: packed.record(path, 1, name="a"), seconds=60, name=str)


def test_a_shard_that_was_empty_once_is_opened_again(shard: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the read, and by the next one: no reader without a record is kept."""
    opened(monkeypatch, [Reader()])
    assert packed.record(shard, 1, name="a") == b"second"
    packed._reader.cache_clear()
    opened(monkeypatch, [Reader(), Reader()])
    with pytest.raises(decode.DecodeError, match=r"\[1\] a: short: the shard holds 0 records"):
        packed.record(shard, 1, name="a")
    assert packed.record(shard, 1, name="a") == b"second"


def test_errors_of_a_shard_pass(shard: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of opening it, and of a reader that tells by its text alone; what does not pass is not tried again."""
    with monkeypatch.context() as patch:
        patch.setattr(packed, "open", flaky(open, [OSError(errno.EIO, os.strerror(errno.EIO))]), raising=False)
        assert again(shard) == b"second"
    packed._reader.cache_clear()
    opened(monkeypatch, [Reader("pread() failed: Input/output error; reading it")])
    assert again(shard) == b"second"
    packed._reader.cache_clear()
    opened(monkeypatch, [Reader("checksum")])
    with pytest.raises(decode.DecodeError, match=r"\[1\] a: open: checksum"):
        again(shard)
    packed._reader.cache_clear()
    shard.unlink()
    with pytest.raises(decode.DecodeError, match=r"\[1\] a: open: .*No such file"):
        again(shard)


# -- packing and indexing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two short videos, indexed."""
    directory = tmp_path_factory.mktemp("pair")
    for name in "ab":
        (directory / f"{name}.mp4").write_bytes(encode(frames=20, bf="0"))
    index.write(index.build(directory), directory / "index.parquet")
    return directory


def packed_as(pair: pathlib.Path, out: pathlib.Path, /, **options: Any) -> bytes:
    """The bytes of the one shard of a packing."""
    settings = packing.Settings(frames=4, stride=2, preset="ultrafast")
    packing.pack(packing.planned(str(pair / "index.parquet"), out, settings=settings, shards=1), **options)
    return (out / "v0/00000.array_record").read_bytes()


@pytest.mark.parametrize("stage", decode.PASSING)
def test_packing_leaves_no_video_out_for_what_may_pass(stage: str, pair: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One error changes no byte; one that stays, of videos in succession, ends the packing with the shard unfinished, and the same command goes on."""
    whole, error, plain = packed_as(pair, tmp_path / "whole"), decode.DecodeError("b.mp4", stage, "broken off"), sources.VideoClips.locate
    monkeypatch.setattr(sources.VideoClips, "locate", flaky(plain, [error]))
    assert packed_as(pair, tmp_path / "once") == whole
    monkeypatch.setattr(sources.VideoClips, "locate", flaky(plain, [error] * 4))
    with pytest.raises(UserError, match=f"{'a' if stage == 'io' else 'b'}.mp4: {stage}: broken off; .*the same command goes on"):
        packed_as(pair, tmp_path / "always")
    assert not list((tmp_path / "always").rglob("0*.array_record")) and not (tmp_path / "always/index.parquet").exists()
    monkeypatch.setattr(sources.VideoClips, "locate", plain)
    assert packed_as(pair, tmp_path / "always") == whole


def test_packing_leaves_out_a_video_that_alone_takes_too_long(pair: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice; it would end no packing otherwise. It is told, and the other is there."""
    said, error = [], decode.DecodeError("a.mp4", "timeout", "not done after 600 s")
    errors = [error] * 2
    monkeypatch.setattr(sources.VideoClips, "locate", flaky(sources.VideoClips.locate, errors))
    packed_as(pair, tmp_path, say=said.append)
    assert not errors and said[0] == "v0/00000: a.mp4 is left out: timeout: not done after 600 s, twice"
    assert [row["status"] for row in index.load(tmp_path / "index.parquet").to_pylist()] == ["timeout: not done after 600 s", "ok"]


def test_packing_does_not_wait_for_ever(pair: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that hangs is an error in the end."""
    monkeypatch.setattr(packing, "TIMEOUT", 0.2)
    monkeypatch.setattr(sources.VideoClips, "locate", lambda self, record: threading.Event().wait())
    with pytest.raises(UserError, match=r"b\.mp4: timeout: no answer within 0\.2 s; nor was a\.mp4 before it .* use an index without them"):
        packed_as(pair, tmp_path)


@pytest.mark.parametrize(("shards", "before", "told"), [(2, 0, "b.mp4: timeout: hung; nor was a.mp4 before it"), (2, 1, "a.mp4: timeout: hung; nor was b.mp4 before it"),
                                                         (1, 1, "a.mp4: timeout: hung; nor was b.mp4 before it")])
def test_an_outage_over_the_end_of_a_shard_leaves_nothing_out(shards: int, before: int, told: str, pair: pathlib.Path, tmp_path: pathlib.Path,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be read after so many videos: one more is read for the last of a shard, the next or the first, and the shard stays unfinished."""
    plain, read = sources.VideoClips.locate, []

    def locate(self: sources.VideoClips, record: dict[str, Any], /) -> decode.Video:
        read.append(record["name"])
        if len(read) > before:
            raise decode.DecodeError(record["name"], "timeout", "hung")
        return plain(self, record)

    plan = packing.planned(str(pair / "index.parquet"), tmp_path / "p", settings=packing.Settings(frames=4, stride=2, preset="ultrafast"), shards=shards)
    with monkeypatch.context() as patch:
        patch.setattr(sources.VideoClips, "locate", locate)
        with pytest.raises(UserError, match=told):
            packing.pack(plan)
    assert len(plan.finished()) == (before if shards == 2 else 0) and not (tmp_path / "p/index.parquet").exists()
    assert sum(m["clips"] for m in packing.pack(plan)) == 2


@pytest.mark.parametrize(("name", "other"), [("a.mp4", "b.mp4"), ("b.mp4", "a.mp4")])
def test_a_video_alone_in_its_shard_is_left_out_where_another_can_be_read(name: str, other: str, pair: pathlib.Path, tmp_path: pathlib.Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """That one more is read does not keep the packing from ending."""
    plain = sources.VideoClips.locate

    def locate(self: sources.VideoClips, record: dict[str, Any], /) -> decode.Video:
        if record["name"] == name:
            raise decode.DecodeError(name, "timeout", "hung")
        return plain(self, record)

    monkeypatch.setattr(sources.VideoClips, "locate", locate)
    packing.pack(packing.planned(str(pair / "index.parquet"), tmp_path, settings=packing.Settings(frames=4, stride=2, preset="ultrafast"), shards=2))
    assert {row["name"]: row["status"] for row in index.load(tmp_path / "index.parquet").to_pylist()} == {name: "timeout: hung", other: "ok"}


@pytest.mark.parametrize("call", ["open", "stat"])
def test_indexing_tries_again(call: str, pair: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that passes leaves no trace in the row; one that stays is its status, not the end of the scan."""
    path, error = str(pair / "a.mp4"), OSError(errno.ESTALE, os.strerror(errno.ESTALE))
    wanted, job = index.describe_job(index.Job(path)), index.Job(path)
    for count in (1, 4):
        errors = [error] * count
        with monkeypatch.context() as patch:
            if call == "open":
                patch.setattr(av, "open", flaky(av.open, errors))
            else:
                plain = os.stat
                patch.setattr(os, "stat", lambda place, *a, plain=plain, errors=errors, **k: flaky(plain, errors if place == path else [])(place, *a, **k))
            found = index.describe_job(job)
        np.testing.assert_equal(found, wanted if count == 1 else {"status": f"io: {os.strerror(errno.ESTALE)}"})
        assert not errors


def ending(job: Any, /) -> None:
    """Ends its process, as the system does when memory runs out."""
    os._exit(1)


def test_a_killed_process_is_one_line(pair: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of indexing, which names the first video without an answer, and of packing."""
    monkeypatch.setattr(index, "PARALLEL", 0)
    monkeypatch.setattr(index, "describe_job", ending)
    with pytest.raises(UserError, match=f"a process that read {pair}/a.mp4 or one of the next videos was killed") as found:
        index.build(pair, workers=2)
    assert "\n" not in str(found.value)
    monkeypatch.setattr(packing, "_task", ending)
    with pytest.raises(UserError, match=f"a process that packed v0/00000 of {tmp_path} was killed") as found:
        packed_as(pair, tmp_path, workers=2)
    assert "\n" not in str(found.value)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its videos would be missing from the index without a word."""
    (tmp_path / "class").mkdir()
    plain = os.scandir
    refusal = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "class"))
    monkeypatch.setattr(os, "scandir", lambda path: flaky(plain, [refusal] * (str(path) == refusal.filename))(path))
    with pytest.raises(UserError, match=r"/class cannot be read \(Permission denied\); allowed is a folder without it: let it be read, move it away"):
        list(folders.walk(tmp_path))


def test_the_root_of_a_disk_is_a_folder_like_any_other(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root may read its lost+found, in which nobody keeps videos."""
    for name in ("class", "lost+found"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").touch()
    plain = os.scandir
    refusal = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "lost+found"))
    monkeypatch.setattr(os, "scandir", lambda path: flaky(plain, [refusal] * (str(path) == refusal.filename))(path))
    assert index.find(tmp_path) == ["class/a.mp4"]
