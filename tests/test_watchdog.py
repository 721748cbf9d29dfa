"""A process that makes no progress ends itself, and says where it stood; one that is slow, stopped or starved does not."""

import argparse
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from videomae_jax import stopping, watchdog
from videomae_jax.data import workers
from videomae_jax.errors import UserError
from videomae_jax.ledger import Ledger
from videomae_jax.watchdog import STUCK, Board, Limits, Watchdog

QUICK = Limits(step=0.3, init=30, restore=30, compile=30, checkpoint=30, evaluation=30)
ROOT = pathlib.Path(__file__).resolve().parents[1]


class Device:
    """A value that is ready when told."""

    def __init__(self) -> None:
        self.ready = False

    def is_ready(self) -> bool:
        """Whether it is."""
        return self.ready


def watched(directory: pathlib.Path, limits: Limits = QUICK, **kw: Any) -> tuple[Watchdog, list[int]]:
    """A watchdog that notes exit codes instead of ending this process."""
    ended: list[int] = []
    return Watchdog(directory, limits, end=ended.append, **kw), ended


def until(condition: Callable[[], Any], /, *, seconds: float = 60) -> None:
    """Waits."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def a_loader_that_never_returns(ended: list[int]) -> None:
    """A name to find in the stacks."""
    until(lambda: ended)


def test_stuck_loader_is_named_with_all_stacks(tmp_path: pathlib.Path, capsys: Any) -> None:
    """Exit code, phase, step, limit, stacks of all threads, an alarm for the log."""
    alarms: list[Any] = []
    dog, ended = watched(tmp_path, alarm=lambda event, step, **values: alarms.append((event, step, values)))
    with dog:
        for step in range(5):
            dog.enter("step", step)
        dog.enter("data_wait", 5)
        a_loader_that_never_returns(ended)
    assert ended == [STUCK] and STUCK == 42
    text = (tmp_path / "stacks" / "0.txt").read_text()
    assert "a_loader_that_never_returns" in text and text.count("hread 0x") >= 2
    assert "in data_wait at step 5: the loader is stuck" in text and "(limit 0)" in text
    assert text.splitlines()[0] in capsys.readouterr().err
    assert [(event, step, values["phase"]) for event, step, values in alarms] == [("watchdog", 5, "data_wait")]


def test_each_phase_has_a_limit_of_its_own(tmp_path: pathlib.Path) -> None:
    """Compilation, saves, evaluations, restores and the start may take longer than a step; a beat is progress."""
    dog, ended = watched(tmp_path)
    with dog:
        for phase in ("init", "restore", "compile", "checkpoint", "evaluation"):
            dog.enter(phase, 0)
            time.sleep(0.7)
        assert not ended
    dog, ended = watched(tmp_path, Limits(step=0.3, evaluation=2.0))
    with dog:
        dog.enter("evaluation", 0)
        for _ in range(12):
            time.sleep(0.2)
            dog.beat()
        assert not ended
        until(lambda: ended)


def test_slow_steps_raise_the_limit(tmp_path: pathlib.Path) -> None:
    """The limit is ten median steps where that is more; devices that finish steps are progress although Python waits."""
    dog, ended = watched(tmp_path, Limits(step=1.0, factor=10))
    with dog:
        for step in range(4):
            device = Device()
            dog.enter("step", step)
            dog.dispatched({"loss": device})
            time.sleep(0.2)
            device.ready = True
        until(lambda: dog.median > 0.1)
        dog.enter("data_wait", 4)
        begin = time.monotonic()
        until(lambda: ended)
    assert time.monotonic() - begin > 1.5  # not 1; on a busy machine later


def test_who_waits_for_another_process_has_its_limit(tmp_path: pathlib.Path) -> None:
    """The first step after a compilation may wait for one that still compiles; not so a loader, nor the step after that."""
    dog, ended = watched(tmp_path)
    with dog:
        device = Device()
        dog.enter("compile", 0)
        dog.dispatched({"loss": device})
        for phase in ("step", "data_wait"):
            dog.enter(phase, 1)
            time.sleep(0.5)
            assert not ended
        device.ready = True
        until(lambda: dog.median)
        dog.dispatched({"loss": Device()})
        dog.enter("step", 2)
        until(lambda: ended)
    dog, ended = watched(tmp_path)
    with dog:
        dog.enter("evaluation", 0)
        dog.enter("data_wait", 0)
        until(lambda: ended, seconds=20)


def test_dispatching_is_no_progress_while_the_devices_hang(tmp_path: pathlib.Path) -> None:
    """Python runs ahead of a step that never ends."""
    dog, ended = watched(tmp_path)
    with dog:
        dog.dispatched({"loss": Device()})
        for step in range(3000):
            dog.enter("step", step)
            dog.enter("data_wait", step)
            time.sleep(0.01)
            if ended:
                break
        assert ended


def test_time_in_which_the_process_was_stopped_does_not_count(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP for an hour, or a machine that lets nothing run, looks like a jump of the clock."""
    class Jumping:
        sleep, time = staticmethod(time.sleep), staticmethod(time.time)
        extra = 0.0

        def monotonic(self) -> float:
            return time.monotonic() + self.extra

    clock = Jumping()
    monkeypatch.setattr(watchdog, "time", clock)
    dog, ended = watched(tmp_path, Limits(step=30))
    with dog:
        dog.enter("step", 1)
        time.sleep(1.2)
        clock.extra += 3600
        time.sleep(2.2)
        assert not ended


def test_without_a_limit_nothing_is_watched_but_the_tick_goes_on(tmp_path: pathlib.Path) -> None:
    """--step-limit=0; negative limits are refused."""
    ticks: list[int] = []
    dog, ended = watched(tmp_path, Limits(step=0), tick=lambda: ticks.append(1))
    with dog:
        dog.enter("step", 1)
        until(lambda: len(ticks) > 1)
        assert not ended
    with pytest.raises(UserError, match="limit of compile is -1"):
        Limits(compile=-1)


def test_a_cpu_is_given_more_time() -> None:
    """Others may use its cores: five minutes where an accelerator has one. What the user says holds on both."""
    from videomae_jax.commands.train import add_safety, safety

    parser = argparse.ArgumentParser()
    add_safety(parser)
    for words, wanted in ([], {"cpu": 300, "gpu": 60, "tpu": 60}), (["--step-limit=7"], {"cpu": 7, "tpu": 7}), (["--step-limit=0"], {"cpu": 0, "tpu": 0}):
        limits = safety(parser.parse_args(words)).limits
        assert {platform: limits.on(platform).step for platform in wanted} == wanted
    assert Limits().on("cpu").of("step", median=40) == 400 and Limits().on("gpu").of("compile", median=40) == 3600


def test_the_process_that_is_behind_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes: the one that waits in the step names the one that is in the loader at the same step."""
    monkeypatch.setattr(watchdog, "LOOK", 1000.0)  # none follows the other
    stuck, ended_stuck = watched(tmp_path, rank=1, ranks=2)
    waiting, ended_waiting = watched(tmp_path, rank=0, ranks=2)
    with stuck, waiting:
        stuck.enter("data_wait", 7)
        waiting.enter("step", 7)
        until(lambda: ended_stuck and ended_waiting)
    for rank in range(2):
        assert "process 1 is behind: data_wait at step 7" in (tmp_path / "stacks" / f"{rank}.txt").read_text()
    assert json.loads((tmp_path / "stacks" / "1.json").read_text())["phase"] == "data_wait"


STORAGE = ("ledger.alive", "stacks/0.txt", "stacks/0.tmp", "stacks/1.json")


@pytest.mark.parametrize("name", [*STORAGE, "stacks", "events.jsonl"])
def test_storage_that_never_answers_keeps_no_process_alive(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A pipe that nobody reads, for each file that is written or read on the way, a folder that is never listed, an alarm that never returns."""
    monkeypatch.setattr(watchdog, "GRACE", 2.0)
    books, answer = Ledger(tmp_path, lead=True), threading.Event()
    (tmp_path / "stacks").mkdir()
    if name in STORAGE:
        os.mkfifo(tmp_path / name)
    elif name == "stacks":
        monkeypatch.setattr(pathlib.Path, "glob", lambda *_: answer.wait() and ())
    dog, ended = watched(tmp_path, Limits(step=0.3, checkpoint=0.5), rank=0, ranks=2, tick=books.alive,
                         alarm=lambda *_, **__: answer.wait() if name == "events.jsonl" else None)
    try:
        with dog:
            dog.enter("checkpoint", 7)
            until(lambda: ended, seconds=30)
        assert ended == [STUCK]
        said = capsys.readouterr().err
        assert "in checkpoint at step 7: the save is stuck" in said
        text = said if name == "stacks/0.txt" else (tmp_path / "stacks" / "0.txt").read_text()
        assert "test_storage_that_never_answers" in text and text.count("hread 0x") >= 2  # they are not lost with the storage
    finally:
        answer.set()
        if name in STORAGE:
            os.close(os.open(tmp_path / name, os.O_RDWR | os.O_NONBLOCK))  # whoever waits for the other end goes on


def test_hundreds_of_processes_leave_the_storage_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place that goes on from step to step is written now and then, another phase at once; the folder is not listed at every look."""
    places, listed, left = iter([("init", 0), *(("step", n) for n in range(100)), ("checkpoint", 100), ("checkpoint", 100), ("data_wait", 100)]), [], []
    replace, glob = os.replace, pathlib.Path.glob
    monkeypatch.setattr(os, "replace", lambda a, b: [replace(a, b), left.append(json.loads(pathlib.Path(b).read_text()))])
    monkeypatch.setattr(pathlib.Path, "glob", lambda *a: [listed.append(1), glob(*a)][1])
    board = Board(tmp_path / "stacks", rank=3, ranks=512, tick=lambda: None, place=lambda: next(places), wake=lambda: None, every=1.0, between=watchdog.PLACE)
    for second in range(104):
        board.look(float(second))
    assert [(p["phase"], p["step"]) for p in left] == [
        ("init", 0), *(("step", n) for n in range(0, 100, 10)), ("checkpoint", 100), ("data_wait", 100)]
    assert len(listed) == 52 and not board.called


def unreadable(folder: pathlib.Path, pattern: str) -> None:
    """A file system that answers again later."""
    raise OSError(5, "Input/output error", str(folder))


def test_all_processes_write_their_stacks(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has no limit of its own follows the one that gives up; what an earlier start left is no reason, nor is its going or a folder that cannot be read."""
    monkeypatch.setattr(watchdog, "LOOK", 0.0)
    (tmp_path / "stacks").mkdir()
    for name in ("0.txt", "7.txt"):
        (tmp_path / "stacks" / name).write_text("of yesterday")
    first, ended_first = watched(tmp_path, rank=0, ranks=2)
    patient, ended_patient = watched(tmp_path, Limits(step=0), rank=1, ranks=2)
    with patient:
        patient.enter("data_wait", 4)
        time.sleep(1)
        (tmp_path / "stacks" / "7.txt").unlink()
        time.sleep(1.3)
        with monkeypatch.context() as patch:
            patch.setattr(pathlib.Path, "glob", unreadable)
            time.sleep(1.3)
        assert not ended_patient
        with first:
            first.enter("step", 4)
            until(lambda: ended_first and ended_patient)
    text = (tmp_path / "stacks" / "1.txt").read_text()
    assert "process 0 has given up; its stacks" in text and "is behind" not in text and "hread 0x" in text  # by old places
    assert "the step is stuck; process 1 is behind" in (tmp_path / "stacks" / "0.txt").read_text()


def announced(name: str) -> None:
    """A decoding process that does nothing."""
    workers.announce(name, 0)
    time.sleep(600)


def test_what_is_broken_is_named_whatever_the_limits(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoding process that something killed: its name and signal, soon and without a limit; not while somebody else may still find out, nor once its stream is closed."""
    monkeypatch.setattr(watchdog, "LOST", 0.4)
    monkeypatch.setattr(workers, "LOOK", 0.05)
    names = [f"vmae_test_{os.getpid()}_{n}" for n in range(2)]
    streams = [workers.Workers(1, name=name) for name in names]
    children = [multiprocessing.get_context("fork").Process(target=announced, args=(name,), daemon=True) for name in names]
    for child, stream in zip(children, streams, strict=True):
        child.start()
        until(lambda child=child, stream=stream: stream._pids[0] == child.pid)
    streams[0].close()
    children[0].kill()
    dog, ended = watched(tmp_path, Limits(step=0), broken=workers.lost)
    with dog:
        dog.enter("data_wait", 7)
        time.sleep(1.5)
        assert not ended and not workers.lost()
        children[1].kill()
        until(lambda: ended)
    line = (tmp_path / "stacks" / "0.txt").read_text().splitlines()[0]
    assert f"in data_wait at step 7: decoding process {children[1].pid} ended by SIGKILL" in line
    streams[1].close()
    assert not workers.lost()


def test_one_process_of_several_ends_at_once(tmp_path: pathlib.Path) -> None:
    """What would be closed on the way out waits for the others, and so do handlers of the end: neither runs. Code by error; a single process unwinds."""
    code = """
import atexit, multiprocessing, sys, time
from videomae_jax import errors, stopping
from videomae_jax.errors import UserError
stopping.MOMENT = 0.1
atexit.register(time.sleep, 600)
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
child.start()
print(child.pid, flush=True)
with stopping.together(several=True, lead=sys.argv[2] == "0"):
    raise {"user": UserError("a mistake"), "storage": errors.StorageError("no disk"), "other": ValueError("a fault")}[sys.argv[1]]
"""
    for kind, rank, wanted, text in (("user", "0", 2, "error: a mistake"), ("storage", "1", 74, "error: no disk"), ("other", "1", 1, "ValueError: a fault")):
        done = subprocess.run([sys.executable, "-c", code, kind, rank], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == wanted and text in done.stderr, done
        child = pathlib.Path(f"/proc/{done.stdout.strip()}")
        until(lambda child=child: not child.exists() or "(zombie)" in (child / "status").read_text())
    with pytest.raises(ValueError, match="x"), stopping.together(several=False, lead=True):
        raise ValueError("x")


def test_a_stuck_process_takes_its_workers_along(tmp_path: pathlib.Path) -> None:
    """Exit code 42, and a child that ignores every polite signal is gone."""
    code = f"""
import multiprocessing, pathlib, signal, sys, time
from videomae_jax.watchdog import Limits, Watchdog
def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
child = multiprocessing.get_context("fork").Process(target=deaf)
child.start()
print(child.pid, flush=True)
with Watchdog(pathlib.Path({str(tmp_path)!r}), Limits(step=0.3)) as dog:
    dog.enter("data_wait", 3)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    assert process.wait(timeout=120) == STUCK
    until(lambda: not pathlib.Path(f"/proc/{child}").exists() or "(zombie)" in pathlib.Path(f"/proc/{child}/status").read_text())
    process.stderr.close()
