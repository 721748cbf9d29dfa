"""Processes that index, pack and write worlds: they end with the command that started them, at Ctrl-C without a word of their own."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pyarrow.parquet as pq
import pytest
from test_bad_data import fifo
from test_decode import encode
from test_pipeline import alive

from videomae_jax.data import index

ROOT = pathlib.Path(__file__).resolve().parents[1]
SECONDS = 90  # until something is there that takes a few; a video that hangs takes more

SCRIPT = """
import multiprocessing, os, signal, sys, time
from videomae_jax.data.workers import processes

if __name__ == "__main__":
    with processes(2) as pool:
        first = pool.submit(abs, -1)
        for _ in range(8):
            pool.submit(time.sleep, 600)
        first.result()
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        if sys.argv[1] == "KeyError":
            raise KeyError
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        time.sleep(600)
"""


def until(done: Callable[[], Any], /) -> Any:
    """Its first answer that is true."""
    end = time.monotonic() + SECONDS
    while not (found := done()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "KeyError"])
def test_no_process_outlives_the_one_it_works_for(how: str, tmp_path: pathlib.Path) -> None:
    """However that ends, and whatever they do: nobody would ask for it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py", how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, timeout=SECONDS, check=False)
    pids = done.stdout.split()
    assert done.returncode == (1 if how == "KeyError" else -getattr(signal, how)) and len(pids) == 2
    until(lambda: not any(map(alive, pids)))


def opened(path: pathlib.Path, /) -> int:
    """A descriptor of a pipe that somebody waits to read from, else 0."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody reads it yet
        return 0


def indexing(folder: pathlib.Path, /) -> tuple[list[str], Callable[[], Any]]:
    """A scan that hangs at one video, and when it does."""
    (folder / "train.csv").write_text("".join(f"{number}.mp4 0\n" for number in range(index.PARALLEL + 1)))
    fifo(folder / "9.mp4")
    return ["index", f"--list={folder / 'train.csv'}", f"--root={folder}", f"--out={folder / 'index.parquet'}", "--workers=2"], lambda: opened(folder / "9.mp4")


def packing(folder: pathlib.Path, /) -> tuple[list[str], Callable[[], Any]]:
    """A packing that hangs at one video, and when it does."""
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(encode(frames=8, bf="0"))
    index.write(index.build(folder), folder / "index.parquet")
    pq.write_table(pq.read_table(folder / "index.parquet").drop_columns(["size", "mtime"]), folder / "index.parquet")  # a pipe has no size
    fifo(folder / "c.mp4")
    return ["pack", str(folder / "index.parquet"), f"--out={folder / 'packed'}", "--workers=2"], lambda: opened(folder / "c.mp4")


def writing(folder: pathlib.Path, /) -> tuple[list[str], Callable[[], Any]]:
    """A world of many videos, and when the first are there."""
    return ["synthesize", str(folder / "world"), "--train=20000", "--workers=2"], lambda: list((folder / "world").glob("videos/*.mp4"))


@pytest.mark.parametrize("command", [indexing, packing, writing])
def test_ctrl_c_is_one_word(command: Callable[[pathlib.Path], tuple[list[str], Callable[[], Any]]], tmp_path: pathlib.Path) -> None:
    """The terminal sends it to all processes; neither those at work nor those without any say something, and none stays."""
    words, busy = command(tmp_path)
    with (tmp_path / "errors").open("w+") as errors:
        process = subprocess.Popen([sys.executable, "-m", "videomae_jax", *words], cwd=ROOT, stderr=errors, start_new_session=True)
        try:
            until(busy)
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(SECONDS) == 128 + signal.SIGINT
            errors.seek(0)
            text = errors.read()
            assert "Traceback" not in text and text.endswith("interrupted\n"), text
            until(lambda: not members(process.pid))
        finally:
            for pid in members(process.pid):
                os.kill(pid, signal.SIGKILL)


STARTING = """
import os, signal
from videomae_jax.data.workers import processes

if __name__ == "__mp_main__":
    os.kill(os.getpid(), signal.SIGINT)  # among the imports of a process that starts

if __name__ == "__main__":
    with processes(1) as pool:
        print(pool.submit(abs, -1).result())
"""


def test_ctrl_c_does_not_reach_a_process_that_starts(tmp_path: pathlib.Path) -> None:
    """Its imports take seconds, and what interrupts them is told at length."""
    (tmp_path / "script.py").write_text(STARTING)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, timeout=SECONDS,
                          check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")


def members(group: int, /) -> list[int]:
    """The processes of a group that run."""
    found = []
    for place in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(place.name)) == group and alive(place.name):
                found.append(int(place.name))
        except ProcessLookupError:
            continue
    return found
