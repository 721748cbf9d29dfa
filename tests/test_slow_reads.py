"""Files that come slowly: what comes steadily is indexed, however long it takes, and what stops to come is given up."""

import os
import pathlib
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from fsspec.implementations.cached import SimpleCacheFileSystem, WholeFileCacheFileSystem
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.spec import AbstractBufferedFile
from test_bad_data import Refusal
from test_decode import encode
from test_failing_reads import broken

from videomae_jax.data import deadline, decode, footage, index, patience, remote


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One video that takes several reads."""
    directory = tmp_path_factory.mktemp("slow")
    footage.write(directory / "a.mp4", seconds=2, seed=2)
    return directory


def clock(monkeypatch: pytest.MonkeyPatch, /) -> list[float]:
    """A clock of all limits that only who holds it moves; what it shows."""
    now = [0.0]
    monkeypatch.setattr(deadline, "PAUSES", (0.0, 0.0, 0.0))
    for module in (patience, deadline):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=time.sleep))
    return now


def slowed(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, /, *, seconds: float, fails: Callable[[int], bool] = lambda number: False) -> list[float]:
    """Lets every read of a file take so long by a clock that nothing else moves, and the n-th fail with EIO where `fails` says so; what it shows."""
    now = clock(monkeypatch)

    def passes(number: int, /) -> bool:
        now[0] += seconds
        return fails(number)

    broken(path, monkeypatch, fails=passes)
    return now


def test_a_large_file_on_a_slow_mount_is_no_damage(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes steadily is indexed, however long it takes; but not for ever."""
    path = folder / "a.mp4"
    job, wanted = index.Job(str(path)), index.describe_job(index.Job(str(path)))
    now = slowed(path, monkeypatch, seconds=decode.TIMEOUT - 1)
    np.testing.assert_equal(index.describe_job(job), wanted)
    assert wanted["status"] == "ok" and now[0] > 5 * decode.TIMEOUT
    monkeypatch.setattr(decode, "WHOLE", 3 * decode.TIMEOUT)
    assert index.describe_job(job) == {"status": "timeout: not done after 180 s"}


def test_a_further_try_has_the_time_of_the_first(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read that ends in an error after longer than nothing may come is not charged to the next try."""
    now = slowed(folder / "a.mp4", monkeypatch, seconds=decode.TIMEOUT + 1, fails=lambda number: number == 1)
    assert index.describe_job(index.Job(str(folder / "a.mp4")))["status"] == "ok" and now[0] > 2 * decode.TIMEOUT


@pytest.fixture
def away(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The video in fsspec's memory, each read of which takes almost too long: its `job`, what is `wanted` of it, the clock `now` and the `spans` that were read."""
    system, spans = fsspec.filesystem("memory"), []
    system.pipe_file("/large/a.mp4", (folder / "a.mp4").read_bytes())
    job, plain = index.Job("memory://large/a.mp4"), type(system).cat_file
    wanted, now = index.describe_job(job), clock(monkeypatch)

    def slow(self: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        now[0] += decode.TIMEOUT - 1
        spans.append((start, end))
        return plain(self, path, start, end)

    monkeypatch.setattr(type(system), "cat_file", slow)
    monkeypatch.setattr(remote, "PART", -(-wanted["size"] // 8))
    return SimpleNamespace(job=job, wanted=wanted, now=now, spans=spans, kind=type(system))


def test_a_large_file_at_an_address_is_no_damage(away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Part after part, each in time; but not for ever."""
    np.testing.assert_equal(index.describe_job(away.job), away.wanted)
    assert away.wanted["status"] == "ok" and len(away.spans) == 8 and away.now[0] > 5 * decode.TIMEOUT
    monkeypatch.setattr(decode, "WHOLE", 3 * decode.TIMEOUT)
    assert index.describe_job(away.job) == {"status": "timeout: not done after 180 s"}


def test_a_listing_may_be_older_than_the_file(away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was added since comes with the last part, or with all of it where the first part is more than there was."""
    for size, spans in ((7 * remote.PART, 7), (remote.PART - 1, 2)):
        away.spans.clear()
        monkeypatch.setattr(away.kind, "size", lambda self, path, size=size: size)
        np.testing.assert_equal(index.describe_job(away.job), away.wanted)
        assert len(away.spans) == spans and away.spans[-1][1] is None


def test_a_small_file_is_one_request(away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for its size first."""
    asked: list[str] = []
    plain = away.kind.info
    monkeypatch.setattr(remote, "PART", away.wanted["size"] + 1)
    monkeypatch.setattr(away.kind, "info", lambda self, path, **kw: asked.append(path) or plain(self, path, **kw))
    np.testing.assert_equal(index.describe_job(away.job), away.wanted)
    assert away.spans == [(0, remote.PART)] and not asked


def failing(away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, error: Exception, /, *, when: Callable[[int | None], bool],
            count: int = 100) -> None:
    """Lets requests for bytes from a start on fail, `count` times where `when` says so."""
    plain, left = away.kind.cat_file, [error] * count

    def cat_file(self: Any, path: str, start: int | None = None, end: int | None = None) -> bytes:
        if when(start) and left:
            raise left.pop()
        return plain(self, path, start, end)

    monkeypatch.setattr(away.kind, "cat_file", cat_file)


@pytest.mark.parametrize("part", [0, 3])
def test_a_part_that_breaks_off_is_no_reason_to_ask_for_all(part: int, away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large file would not come at once within the time; the next try asks for its parts."""
    failing(away, monkeypatch, Refusal(503), when=lambda start: start == part * remote.PART, count=1)
    np.testing.assert_equal(index.describe_job(away.job), away.wanted)
    assert len(away.spans) == 8 + part and (None, None) not in away.spans


@pytest.mark.parametrize(("name", "value", "spans"), [
    ("size", lambda self, path: None, [(0, 8), (None, None)]), ("protocol", ("http", "https"), [(None, None)])], ids=["size", "http"])
def test_where_parts_cannot_be_asked_for_a_file_is_read_at_once(name: str, value: Any, spans: list[Any], away: SimpleNamespace,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a size that is not told, or over HTTP, whose servers may not know of parts; of a file system that knows of neither, too."""
    monkeypatch.setattr(away.kind, name, value)
    np.testing.assert_equal(index.describe_job(away.job), away.wanted)
    assert away.spans == [(start, end and remote.PART) for start, end in spans]
    failing(away, monkeypatch, NotImplementedError(), when=lambda start: start is not None)
    np.testing.assert_equal(index.describe_job(away.job), away.wanted)


def test_a_file_without_a_byte_has_no_part(away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores refuse its first part (416), and it is no less an empty file."""
    fsspec.filesystem("memory").pipe_file("/large/empty.mp4", b"")
    failing(away, monkeypatch, Refusal(416), when=lambda start: start is not None)
    assert remote.read("memory://large/empty.mp4", patience=patience.Patience(60)) == b""
    assert index.describe_job(index.Job("memory://large/empty.mp4"))["status"].startswith("open: Invalid data")


@pytest.mark.parametrize("cache", [SimpleCacheFileSystem, WholeFileCacheFileSystem])
def test_an_address_behind_a_cache_is_read_at_once(cache: Any, away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache fetches all of it for its first part, so that parts would give it no more time."""
    address, asked, plain = f"{cache.protocol}::{away.job.path}", [], cache.cat_file
    monkeypatch.setattr(cache, "cat_file", lambda self, path, *part, **kw: asked.append((part, kw)) or plain(self, path, *part, **kw))
    np.testing.assert_equal(index.describe_job(index.Job(address)), away.wanted)
    assert asked == [((), {})] and remote.read(address) == remote.read(away.job.path)


class Blocks(AbstractBufferedFile):
    """A file that is read in blocks, which the one of fsspec's memory is not."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.cat_file(self.path, start, end)


class Rooted(DirFileSystem):
    """The folder of `away` as a file system of its own."""

    protocol = "rooted"

    def __init__(self, **options: Any) -> None:
        super().__init__(path="/large", fs=fsspec.filesystem("memory"), **options)


@pytest.mark.parametrize("address", ["blockcache::memory://large/a.mp4", "rooted://a.mp4"])
@pytest.mark.parametrize("protocol", ["memory", "http"])
def test_an_address_behind_what_fetches_parts_is_read_in_parts(protocol: str, address: str, away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large one is then indexed, however long it takes; over HTTP it is read at once, whatever is before it."""
    fsspec.register_implementation("rooted", Rooted, clobber=True)
    monkeypatch.setattr(away.kind, "_open", lambda self, path, mode="rb", **kw: Blocks(self, path, mode, block_size=remote.PART, cache_type="none"))
    monkeypatch.setattr(away.kind, "protocol", protocol)
    asked, kind, plain = [], type(remote.files(address)), type(remote.files(address)).cat_file
    monkeypatch.setattr(kind, "cat_file", lambda self, path, start=None, end=None: asked.append(start) or plain(self, path, start, end))
    assert len(remote.read(address, patience=patience.Patience(decode.TIMEOUT, whole=decode.WHOLE))) == away.wanted["size"]
    assert asked == ([None] if protocol == "http" else [i * remote.PART for i in range(8)])


@pytest.mark.parametrize(("error", "count", "status"), [
    (Refusal(503), 3, "ok"), (Refusal(503), 4, "io: Refusal: status 503"), (FileNotFoundError("gone"), 1, "open: FileNotFoundError: gone")], ids=str)
@pytest.mark.parametrize("protocol", ["http", "sftp"])
@pytest.mark.parametrize("cache", ["simplecache", "filecache"])
def test_a_cache_hides_no_outage(cache: str, protocol: str, error: Exception, count: int, status: str, away: SimpleNamespace,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks first whether the file is there, and a 503 is no answer to that; the server itself tells which it is."""
    address = f"{cache}::memory://large/{cache}{protocol}{count}.mp4"  # what an earlier test fetched stays in the cache
    fsspec.filesystem("memory").pipe_file(address.partition("::")[2], fsspec.filesystem("memory").cat_file("/large/a.mp4"))
    monkeypatch.setattr(away.kind, "protocol", protocol)
    monkeypatch.setattr(away.kind, "exists", lambda self, path, **kw: False)
    if protocol == "http":
        monkeypatch.setattr(away.kind, "size", lambda self, path: (_ for _ in ()).throw(FileNotFoundError(path)))
    failing(away, monkeypatch, error, when=lambda start: True, count=count)
    assert index.describe_job(index.Job(address))["status"].startswith(status)


class Renewed:
    """A patience that is asked for its end nine times before the read is done."""

    seconds = 0.0

    def __init__(self) -> None:
        self.asked, self.done = 0, threading.Event()

    @property
    def end(self) -> float:
        self.asked += 1
        if self.asked == 9:
            self.done.set()
        return time.monotonic() + 0.01


def test_a_read_is_waited_for_as_long_as_something_comes() -> None:
    """Beyond the time that it has without."""
    renewed = Renewed()
    assert deadline.call(renewed.done.wait, seconds=0.01, name=str, patience=renewed)


def test_a_file_that_stops_to_come_is_given_up(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of it, long before the time is over that a whole file may take."""
    data, path, over = encode(frames=240, bf="0", container="mpegts"), tmp_path / "a.ts", threading.Event()
    os.mkfifo(path)
    monkeypatch.setattr(decode, "TIMEOUT", 0.25)

    def deliver() -> None:
        with open(path, "wb", buffering=0) as pipe:
            pipe.write(data[: 10 * 188])
            over.wait()

    threading.Thread(target=deliver, daemon=True).start()
    try:
        # Which of them says so first is a matter of load.
        assert index.describe_job(index.Job(str(path)))["status"] in ("timeout: no answer within 0.5 s", "timeout: nothing came for 0.25 s")
    finally:
        over.set()
