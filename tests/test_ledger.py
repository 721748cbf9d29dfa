"""The books of a run: every second in one class, over kills and restarts, against a simulated clock."""

import json
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

from videomae_jax import __main__ as command_line
from videomae_jax import ledger
from videomae_jax.errors import UserError
from videomae_jax.ledger import CLASSES, Ledger, goodput


class Time:
    """A clock that moves when told; it begins in the future, so that no file system knows better."""

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME
    clock_gettime = staticmethod(time.clock_gettime)

    def __init__(self) -> None:
        self.now = time.time() + 1e6

    def time(self) -> float:
        """Wall time."""
        return self.now

    def monotonic(self) -> float:
        """The same with another zero."""
        return self.now - 5e5


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    """Replaces the time of the ledger."""
    found = Time()
    monkeypatch.setattr(ledger, "time", found)
    return found


def spend(books: Ledger, clock: Time, **seconds: float) -> None:
    """Enters classes in order, for so long."""
    for name, duration in seconds.items():
        books.enter(name)
        clock.now += duration


def killed_and_resumed(directory: pathlib.Path, clock: Time) -> None:
    """A run that saves step 3, is killed after step 5, rests for 30 s, goes on from 3, and rolls back from 6 to 4."""
    directory.mkdir(exist_ok=True)
    clock.now += 4
    books = Ledger(directory, lead=True, began=clock.now - 4)  # imports
    clock.now += 2
    books.resumed(-1)
    books.line(0)
    spend(books, clock, init=1, compile=20, step=5, data_wait=3, evaluation=7, checkpoint=2)
    books.line(3)
    spend(books, clock, step=6, data_wait=4)
    books.line(5)
    spend(books, clock, step=8)
    books.alive()
    clock.now += 30
    books = Ledger(directory, lead=True)
    spend(books, clock, init=2, restore=9)
    books.resumed(3)
    books.line(3)
    spend(books, clock, compile=10, step=4, checkpoint=1)
    books.line(4)
    spend(books, clock, step=11, data_wait=1)
    books.line(6)
    books.resumed(4)
    spend(books, clock, restore=3, step=12, checkpoint=2)
    books.line(9)


def test_every_second_is_in_one_class(tmp_path: pathlib.Path, clock: Time) -> None:
    """Steps after the checkpoint that a restart or a rollback returned to are lost, also those that no line tells of; rests are idle."""
    begin = clock.now
    killed_and_resumed(tmp_path, clock)
    found = goodput(tmp_path)
    want = {"init": 4 + 2 + 1 + 2, "compile": 30, "step": 5 + 4 + 12, "data_wait": 3, "checkpoint": 2 + 1 + 2, "evaluation": 7, "restore": 9 + 3,
            "lost": 6 + 4 + 8 + 11 + 1, "idle": 30}
    assert dict(found.seconds) == pytest.approx(want, abs=1e-3)
    assert found.starts == 2 and found.wall == pytest.approx(clock.now - begin, abs=1e-3)
    assert sum(found.seconds.values()) == pytest.approx(found.wall, rel=1e-6)
    assert found.share == pytest.approx(21 / (found.wall - 30))


def test_a_copy_has_the_same_books(tmp_path: pathlib.Path, clock: Time) -> None:
    """The times of files are those of the copying: neither the copy nor a start from it counts the time between as lost."""
    killed_and_resumed(tmp_path / "a", clock)
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    clock.now += 86400
    want = goodput(tmp_path / "a")
    assert goodput(tmp_path / "b") == want
    spend(Ledger(tmp_path / "b", lead=True), clock, init=5)
    found = goodput(tmp_path / "b")
    assert found.seconds["lost"] == want.seconds["lost"] and found.seconds["idle"] == pytest.approx(want.seconds["idle"] + 86400)


def test_a_start_that_waits_for_the_one_before(tmp_path: pathlib.Path, clock: Time) -> None:
    """Seconds in which both processes lived are those of the first, to its last line."""
    begin = clock.now
    first = Ledger(tmp_path, lead=True)
    spend(first, clock, init=2, step=10)
    first.alive()
    waiting = clock.now
    spend(first, clock, step=5, checkpoint=3)
    first.line(8)
    clock.now += 1
    second = Ledger(tmp_path, lead=True, began=waiting)
    second.resumed(8)
    spend(second, clock, restore=4, step=6)
    second.line(9)
    found = goodput(tmp_path)
    assert found.wall == pytest.approx(clock.now - begin, abs=1e-3) == pytest.approx(sum(found.seconds.values()), abs=1e-3)
    assert dict(found.seconds) == pytest.approx(dict.fromkeys(CLASSES, 0) | {"init": 3, "step": 21, "checkpoint": 3, "restore": 4}, abs=1e-3)
    (tmp_path / ledger.SIGN).write_text(repr(clock.now + 1e5))  # of a host whose clock is ahead
    assert Ledger(tmp_path, lead=True, began=clock.now - 5)._since == clock.monotonic()


@pytest.mark.parametrize("line", ["[]", "3", "{}", '{"begin": "x", "alive": null}', '{"begin": 1, "alive": []}', '{"resume": null}',
                                  '{"to": 1, "step": 2, "seconds": {"other": 3}}', '{"to": 1, "step": 2, "seconds": {"step": null}}', '{"to": 1, "step": 2}'])
def test_a_line_that_no_ledger_writes_is_one_error(line: str, tmp_path: pathlib.Path, clock: Time) -> None:
    """Whatever stands in the file."""
    killed_and_resumed(tmp_path, clock)
    path = tmp_path / "ledger.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"ledger.jsonl is damaged: .* is no line of a ledger"):
        goodput(tmp_path)


def test_half_a_line_and_other_processes_do_no_harm(tmp_path: pathlib.Path, clock: Time) -> None:
    """A killed process leaves half a line; processes other than the lead keep no books; a full disk ends nothing."""
    killed_and_resumed(tmp_path, clock)
    want = goodput(tmp_path)
    path = tmp_path / "ledger.jsonl"
    path.write_text(path.read_text() + '{"to": 12')
    assert goodput(tmp_path) == want
    Ledger(tmp_path, lead=True)
    assert goodput(tmp_path).starts == want.starts + 1
    want = goodput(tmp_path)
    other = Ledger(tmp_path, lead=False)
    spend(other, clock, step=100)
    other.line(50)
    other.alive()
    assert goodput(tmp_path) == want
    assert goodput(tmp_path / "none") is None
    Ledger(pathlib.Path("/proc/none"), lead=True).line(1)


def test_lines_come_now_and_then(tmp_path: pathlib.Path, clock: Time) -> None:
    """Without force one in INTERVAL seconds."""
    books = Ledger(tmp_path, lead=True)
    for step in range(100):
        spend(books, clock, step=1)
        books.line(step, force=False)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 1 + 100 // ledger.INTERVAL
    assert set(ledger.goodput(tmp_path).seconds) == set(CLASSES)


def test_process_start_is_that_of_the_process() -> None:
    """A process that has slept knows when it began."""
    code = "import time; time.sleep(0.5); from videomae_jax import ledger; print(time.time() - ledger.process_start())"
    begin = time.time()
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parents[1]).stdout)
    assert 0.5 <= age <= time.time() - begin + 0.05  # clock ticks of 10 ms


def test_command_prints_the_books(tmp_path: pathlib.Path, clock: Time, capsys: Any) -> None:
    """`report --goodput`: a table for people and a JSON line; without books an error."""
    killed_and_resumed(tmp_path, clock)
    assert command_line.main(["report", str(tmp_path), "--goodput"]) == 0
    out, err = capsys.readouterr()
    line = json.loads(out)
    assert line["seconds"]["lost"] == pytest.approx(30) and line["starts"] == 2
    assert "over 2 starts" in err and all(f"  {name}" in err for name in CLASSES)
    assert command_line.main(["report", str(tmp_path / "none"), "--goodput"]) == 2
    assert "holds no ledger.jsonl" in capsys.readouterr().err
