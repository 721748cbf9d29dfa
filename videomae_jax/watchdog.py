"""A thread that ends a process which makes no progress, after it has written where every thread stands and who is to blame.

An alive but stuck process keeps its heartbeat: no timeout of jax sees it, and all others wait for it for ever.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import json
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from videomae_jax.errors import UserError

GRACE = 3.0  # seconds for the other processes to write their stacks too, before the end of one takes them along
LOOK = 2.0  # seconds between looks at what other processes have written: hundreds of them share the folder, and each has GRACE to follow
PLACE = 10.0  # seconds between writes of a place that goes on from step to step
LOST = 5.0  # seconds that something broken may stay so, for whoever finds out by himself
LOCKSTEP = ("step", "data_wait")  # phases in which all processes are at the same step
STUCK = 42  # exit code; what schedulers of TPU jobs restart on by default
WHAT = {"init": "the start, up to the first batch", "restore": "the restore", "compile": "the first step, which compiles", "step": "the step",
        "data_wait": "the loader", "checkpoint": "the save", "evaluation": "the evaluation"}


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds without progress that each phase may take.

    Steps and waits for data have max(`step`, `factor` times the median step); None is what is usual for the devices (`on`).
    Where `step` is 0 no phase has a limit; what is broken, or another process that gives up, still ends the process.
    """

    step: float | None = None
    factor: float = 10.0
    init: float = 1800.0
    restore: float = 1800.0
    compile: float = 3600.0
    checkpoint: float = 1800.0
    evaluation: float = 1800.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None and not getattr(self, field.name) >= 0:
                raise UserError(f"limit of {field.name} is {getattr(self, field.name)}; allowed are seconds from 0 on")

    def on(self, platform: str, /) -> "Limits":
        """With the step limit that is usual on a platform where none is given."""
        return self if self.step is not None else dataclasses.replace(self, step=step_limit(platform))

    def of(self, phase: str, /, *, median: float) -> float:
        """Seconds for a phase when the median step takes `median`."""
        return max(self.step, self.factor * median) if phase in LOCKSTEP else float(getattr(self, phase))


def step_limit(platform: str, /) -> float:
    """Usual limit of a step in seconds: a minute, and five on a CPU, whose cores others may keep busy."""
    return 300.0 if platform == "cpu" else 60.0


class Watchdog:
    """Watches the phases that the loop enters and the steps that devices finish; a context manager.

    The first step after a compilation, a save or an evaluation has the limit of that: another process may be at it still,
    and this one waits for it in the step.
    Time counts only as the thread itself gets to run, so that a stopped process or a starved machine is no false alarm.
    With several processes each leaves its place in `stacks/<number>.json`: whoever finds itself stuck names the process that
    is behind, and all others write their stacks when they see his, and name him. `tick` runs every second or more often; `broken` names what can
    no longer work, whatever the limits are; `end` ends the process.
    The thread itself never touches the run directory, whose storage may be what is stuck: that is for others (`Board`, `within`).
    """

    def __init__(self, directory: pathlib.Path, limits: Limits, /, *, rank: int = 0, ranks: int = 1, tick: Callable[[], None] = lambda: None,
                 broken: Callable[[], str] = lambda: "", alarm: Callable[..., None] = lambda *a, **k: None, end: Callable[[int], Any] = os._exit) -> None:
        self._folder, self._limits, self._rank, self._ranks = directory / "stacks", limits, rank, ranks
        self._broken, self._alarm, self._end = broken, alarm, end
        self._place, self._count = ("init", 0), 0  # phase and step; how often progress was made
        self._slack = ""  # phase that others may be in still
        self._pending: collections.deque[Any] = collections.deque()
        self._steps: collections.deque[float] = collections.deque(maxlen=64)
        self._every = min(1.0, limits.step / 10) if limits.step else 1.0
        self._closed, self._wake = False, threading.Event()
        self._board = Board(self._folder, rank=rank, ranks=ranks, tick=tick, place=lambda: self._place, wake=self._wake.set, every=self._every,
                            between=min(PLACE, limits.step / 4) if limits.step else PLACE)
        self._thread = threading.Thread(target=self._run, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._board.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._wake.set()
        self._thread.join()
        self._board.close()

    def enter(self, phase: str, step: int, /) -> None:
        """The loop goes on to a phase, with the state of `step`."""
        if phase not in LOCKSTEP:
            self._slack = phase
        self._place, self._count = (phase, step), self._count + 1

    def beat(self) -> None:
        """Progress within a phase."""
        self._count += 1

    def dispatched(self, values: Any, /) -> None:
        """A step is under way; `values` are ready when it is done."""
        leaf = next((v for v in values.values() if hasattr(v, "is_ready")), None)
        if leaf is not None:
            self._pending.append(leaf)

    @property
    def median(self) -> float:
        """Median seconds of a step, 0 before the first."""
        return statistics.median(self._steps) if self._steps else 0.0

    def _run(self) -> None:
        before, known, stalled, since, hurt = time.monotonic(), -1, 0.0, 0.0, 0.0
        while True:
            self._wake.wait(self._every)
            self._wake.clear()
            if self._closed:
                return
            now = time.monotonic()
            spent, before = min(now - before, 2 * self._every), now
            finished = self._finished()
            place, count = self._place, self._count
            since = since + spent if place[0] in LOCKSTEP else 0.0  # compilations, saves and evaluations are no steps
            if finished and since:
                self._steps.append(since / finished)
                since, self._slack = 0.0, ""
            # Python runs ahead of the devices: while a step is under way only the devices tell of progress.
            progress = finished or (count != known and not (self._pending and place[0] in LOCKSTEP))
            known, stalled = count, 0.0 if progress else stalled + spent
            limit = self._limits.of(place[0], median=self.median)
            if self._slack and place[0] in LOCKSTEP and (self._pending or place[0] == "step"):
                limit = max(limit, self._limits.of(self._slack, median=self.median))
            broken = self._broken()
            hurt = hurt + spent if broken else 0.0
            follows = self._board.called
            if hurt > LOST or follows or (self._limits.step and stalled > limit):
                self._give_up(place, stalled, limit, broken=broken if hurt > LOST else "", follows=follows)
                return

    def _finished(self) -> int:
        """Steps that the devices finished since the last look."""
        number = 0
        while self._pending and self._pending[0].is_ready():
            self._pending.popleft()
            number += 1
        return number

    def _give_up(self, place: tuple[str, int], seconds: float, limit: float, /, *, broken: str, follows: str) -> None:
        try:
            self._tell(place, seconds, limit, broken=broken, follows=follows)
        finally:  # whatever fails on the way there, no process stays
            for child in multiprocessing.active_children():
                child.kill()
            self._end(STUCK)

    def _tell(self, place: tuple[str, int], seconds: float, limit: float, /, *, broken: str, follows: str) -> None:
        """Says on standard error, in the stacks and in the log where the process stands; what does not answer is left alone."""
        phase, step = place
        stacks, path = within(GRACE, _stacks) or "(none)", self._folder / f"{self._rank}.txt"
        if follows:  # who has given up says why: reading the places takes of GRACE, and they are too old where something broke a moment ago
            why = broken or f"process {follows} has given up"
        else:
            why = broken or f"{WHAT[phase]} is stuck{within(GRACE, lambda: self._culprit(place)) or ''}"
        line = (f"watchdog: process {self._rank} made no progress for {seconds:.0f} s (limit {limit:.0f}) in {phase} at step {step}: "
                f"{why}; its stacks are in {path}; exit code {STUCK}")
        within(GRACE, lambda: _say(f"\n{line}\n"))
        if not within(GRACE, lambda: _write(path, f"{line}\n\n{stacks}")):
            within(GRACE, lambda: _say(f"watchdog: {path} cannot be written; the stacks:\n{stacks}"))
        within(GRACE, lambda: self._alarm("watchdog", step, phase=phase, process=self._rank, seconds=round(seconds, 1), limit=round(limit, 1)))
        if self._ranks > 1 and not follows:
            time.sleep(GRACE)

    def _culprit(self, own: tuple[str, int], /) -> str:
        """Which process is behind the others, where there are several."""
        places = {self._rank: own}
        for rank in range(self._ranks):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found = json.loads((self._folder / f"{rank}.json").read_text())
                places.setdefault(rank, (str(found["phase"]), int(found["step"])))
        if len(places) < 2:
            return ""
        # A process that waits for the others sits in the step; one that is elsewhere at the same step keeps them waiting.
        rank = min(places, key=lambda r: (places[r][1], places[r][0] == "step", r))
        return f"; process {rank} is behind: {places[rank][0]} at step {places[rank][1]}"


class Board:
    """The folder in which processes tell each other where they stand, and `tick`, in a thread of its own: storage that never answers holds up only this.

    `called` names another process, and `wake` runs, once that has written stacks since the start; those of an earlier start lie there too.
    `place` gives phase and step of this process, which are left there at once where a phase is none of LOCKSTEP, else every `between`
    seconds; a look comes every `every` seconds.
    """

    def __init__(self, folder: pathlib.Path, /, *, rank: int, ranks: int, tick: Callable[[], None], place: Callable[[], tuple[str, int]],
                 wake: Callable[[], None], every: float, between: float) -> None:
        self._folder, self._rank, self._ranks, self._every, self._between = folder, rank, ranks, every, between
        self._tick, self._place, self._wake = tick, place, wake
        self.called = ""
        self._known: dict[str, int] | None = None  # stacks of the others that were there first
        self._left: tuple[str, int] | None = None
        self._left_at = self._looked_at = -float("inf")
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watchdog's board")

    def start(self) -> None:
        """Looks from now on."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, unless it waits for the storage."""
        self._done.set()
        self._thread.join(GRACE)

    def look(self, now: float, /) -> None:
        """What is due at `now`, a time in seconds."""
        if self._ranks > 1 and now - self._looked_at >= LOOK:
            self._looked_at = now
            self._look_for_stacks()
        self._tick()
        place, left = self._place(), self._left
        if self._ranks == 1 or place == left:
            return
        turned = left is None or (place[0] != left[0] and not (place[0] in LOCKSTEP and left[0] in LOCKSTEP))
        if turned or now - self._left_at >= self._between:
            self._left, self._left_at = place, now
            self._leave(place)

    def _run(self) -> None:
        self.look(time.monotonic())
        while not self._done.wait(self._every):
            self.look(time.monotonic())

    def _look_for_stacks(self) -> None:
        with contextlib.suppress(OSError):  # they may be seen the next time
            found = {p.name: p.stat().st_mtime_ns for p in self._folder.glob("*.txt") if p.stem != str(self._rank)}
            self._known = found if self._known is None else self._known
            new = [(at, name) for name, at in found.items() if at > self._known.get(name, -1)]
            if new:
                self.called = self.called or pathlib.Path(min(new)[1]).stem
                self._wake()

    def _leave(self, place: tuple[str, int], /) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{self._rank}.json"
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"rank": self._rank, "phase": place[0], "step": place[1], "time": time.time()}))
            os.replace(temporary, path)


def within(seconds: float, call: Callable[[], Any], /) -> Any:
    """What a call in a thread of its own gives; None where it raises, or has not returned after `seconds`."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True, name="watchdog's word")
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _stacks() -> str:
    """Where every thread stands. Not straight to the run directory: all threads wait for the dump, this watchdog too, until it is written."""
    with contextlib.suppress(OSError), tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read()
    return ""


def _write(path: pathlib.Path, text: str, /) -> bool:
    """Whether it could be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return True
    return False


def _say(text: str, /) -> None:
    with contextlib.suppress(OSError, ValueError):  # a closed standard error must not keep the process alive
        sys.stderr.write(text)
        sys.stderr.flush()
