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


def test_a_chained_address_comes_in_parts(away: SimpleNamespace) -> None:
    """fsspec takes the parts of a chain from what it reads, but not from the address when it is asked for the size."""
    address = f"simplecache::{away.job.path}"
    assert index.describe_job(index.Job(address))["status"] == "ok" and remote.read(address, patience=patience.Patience(60)) == remote.read(address)


@pytest.mark.parametrize(("name", "value"), [("size", lambda self, path: None), ("protocol", ("http", "https"))], ids=["size", "http"])
def test_where_parts_cannot_be_asked_for_a_file_is_read_at_once(name: str, value: Any, away: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a size that is not told, or over HTTP, whose servers may not know of parts."""
    monkeypatch.setattr(away.kind, name, value)
    np.testing.assert_equal(index.describe_job(away.job), away.wanted)
    assert away.spans == [(None, None)]


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
        assert index.describe_job(index.Job(str(path))) == {"status": "timeout: no answer within 0.5 s"}
    finally:
        over.set()
