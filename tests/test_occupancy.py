"""Two starts of one run directory: the second waits, then gives up in one line, and never meets a stale lock."""

import errno
import fcntl
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import runs

from videomae_jax import occupancy
from videomae_jax.errors import UserError

HOLD = "import pathlib, sys, time\nfrom videomae_jax import occupancy\nwith occupancy.alone(pathlib.Path(sys.argv[1]), say=print):\n    print('held', flush=True)\n    time.sleep({0})"


@pytest.fixture
def holder(tmp_path: pathlib.Path) -> Iterator[Callable[[float], "subprocess.Popen[str]"]]:
    """Starts a process that holds tmp_path for some seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: float) -> "subprocess.Popen[str]":
        process = subprocess.Popen([sys.executable, "-c", HOLD.format(seconds), str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=runs.ROOT,
                                   env=os.environ | {"JAX_PLATFORMS": "cpu"})
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_run_is_kept_away_until_the_first_is_killed(holder: Any, tmp_path: pathlib.Path) -> None:
    """The line names the process that holds the directory; a kill -9 leaves nothing to clear away."""
    first = holder(600)
    said: list[str] = []
    with pytest.raises(UserError, match=f"{tmp_path} is in use by process {first.pid} on .*; end that run first"), \
            occupancy.alone(tmp_path, say=said.append, patience=0.5):
        pytest.fail("held twice")
    assert len(said) == 1 and "waiting up to 0.5 s" in said[0]
    first.send_signal(signal.SIGKILL)
    first.wait()
    with occupancy.alone(tmp_path, say=pytest.fail, patience=5):
        assert re.fullmatch(f"process {os.getpid()} on [^\n]*", text := (tmp_path / ".lock").read_text()) and text.count("process") == 1  # nobody else
    with occupancy.alone(tmp_path, say=pytest.fail, patience=0):
        pass


def test_a_run_that_ends_is_waited_for(holder: Any, tmp_path: pathlib.Path) -> None:
    """As a scheduler starts the next job while the last checkpoint is being written."""
    holder(2)
    begin = time.monotonic()
    with occupancy.alone(tmp_path, say=lambda line: None, patience=60):
        assert time.monotonic() - begin < 50


@pytest.mark.parametrize("holds", ["process 7 on lost", f"process 7 on {socket.gethostname()}, boot 01234567", ""])
def test_a_machine_that_is_lost_keeps_the_lock_for_a_while(holder: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture[str], holds: str) -> None:
    """A server of files gives it back when its lease is over: a holder on another host is waited for longer, and the same command is started again.

    A pod has the name of the one whose place it takes.
    """
    from videomae_jax.__main__ import main

    monkeypatch.setattr(occupancy, "PATIENCE", 600.0)
    monkeypatch.setattr(occupancy, "LEASE", 0.5)
    (tmp_path / "config.json").write_text("{}")
    holder(600)
    (tmp_path / ".lock").write_text(holds)
    index = runs.world(tmp_path.parent / f"{tmp_path.name}_world")
    assert main(["train", *runs.arguments(index), f"--workdir={tmp_path}"]) == 74
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"error: {tmp_path} is in use by {holds or 'another process'}; ") and sum("waiting up to 0.5 s" in line for line in said) == 1
    assert occupancy.LEASE < occupancy.PATIENCE  # which would have been waited for on this host


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The run goes on and says what is missing; any other error is not swallowed."""
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with occupancy.alone(tmp_path, say=said.append):
        assert len(said) == 1 and "cannot be locked" in said[0]
    number = errno.EIO
    with pytest.raises(OSError, match="rror"), occupancy.alone(tmp_path, say=said.append):
        pytest.fail("held")


def test_the_command_gives_up_in_one_line(holder: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`train` on a directory where another run trains writes nothing there, not even with --fork, and exits with 2."""
    from videomae_jax.__main__ import main

    monkeypatch.setattr(occupancy, "PATIENCE", 0.5)
    (tmp_path / "config.json").write_text("{}")
    holder(600)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir())
    index = runs.world(tmp_path.parent / f"{tmp_path.name}_world")
    assert main(["train", *runs.arguments(index), f"--workdir={tmp_path}", "--fork"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{tmp_path} is in use by process" in error
    assert sorted((p.name, p.stat().st_mtime_ns) for p in tmp_path.iterdir()) == before
