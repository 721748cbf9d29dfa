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
import threading
import time
from collections.abc import Callable
from typing import Any

from videomae_jax.errors import UserError

GRACE = 3.0  # seconds for the other processes to write their stacks too, before the end of one takes them along
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
    With several processes each leaves its place in `stacks/<number>.json`: whoever writes stacks names the process that
    is behind, and all others write theirs when they see his. `tick` runs at every look; `broken` names what can no longer
    work, whatever the limits are; `end` ends the process.
    """

    def __init__(self, directory: pathlib.Path, limits: Limits, /, *, rank: int = 0, ranks: int = 1, tick: Callable[[], None] = lambda: None,
                 broken: Callable[[], str] = lambda: "", alarm: Callable[..., None] = lambda *a, **k: None, end: Callable[[int], Any] = os._exit) -> None:
        self._folder, self._limits, self._rank, self._ranks = directory / "stacks", limits, rank, ranks
        self._tick, self._broken, self._alarm, self._end = tick, broken, alarm, end
        self._place, self._count = ("init", 0), 0  # phase and step; how often progress was made
        self._slack = ""  # phase that others may be in still
        self._pending: collections.deque[Any] = collections.deque()
        self._steps: collections.deque[float] = collections.deque(maxlen=64)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watchdog")

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

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
        every = min(1.0, self._limits.step / 10) if self._limits.step else 1.0
        before, known, stalled, since, hurt, left, written = time.monotonic(), -1, 0.0, 0.0, 0.0, None, self._others()
        while not self._done.wait(every):
            self._tick()
            now = time.monotonic()
            spent, before = min(now - before, 2 * every), now
            finished = self._finished()
            place, count = self._place, self._count
            since = since + spent if place[0] in LOCKSTEP else 0.0  # compilations, saves and evaluations are no steps
            if finished and since:
                self._steps.append(since / finished)
                since, self._slack = 0.0, ""
            # Python runs ahead of the devices: while a step is under way only the devices tell of progress.
            progress = finished or (count != known and not (self._pending and place[0] in LOCKSTEP))
            known, stalled = count, 0.0 if progress else stalled + spent
            if self._ranks > 1 and place != left:
                self._leave(place)
                left = place
            limit = self._limits.of(place[0], median=self.median)
            if self._slack and place[0] in LOCKSTEP and (self._pending or place[0] == "step"):
                limit = max(limit, self._limits.of(self._slack, median=self.median))
            broken = self._broken()
            hurt = hurt + spent if broken else 0.0
            others = self._others()
            written = others if written is None else written
            follows = any(at > written.get(name, -1) for name, at in (others or {}).items())
            if hurt > LOST or follows or (self._limits.step and stalled > limit):
                stuck = "another process has given up" if follows else f"{WHAT[place[0]]} is stuck"
                why = broken if hurt > LOST else f"{stuck}{self._culprit(place)}"
                self._give_up(place, stalled, limit, why=why, follows=follows)
                return

    def _others(self) -> dict[str, int] | None:
        """Stacks that other processes have written, with their times; those of an earlier start lie there too. None where they cannot be seen now."""
        if self._ranks == 1:
            return {}
        with contextlib.suppress(OSError):
            return {p.name: p.stat().st_mtime_ns for p in self._folder.glob("*.txt") if p.stem != str(self._rank)}
        return None

    def _finished(self) -> int:
        """Steps that the devices finished since the last look."""
        number = 0
        while self._pending and self._pending[0].is_ready():
            self._pending.popleft()
            number += 1
        return number

    def _leave(self, place: tuple[str, int], /) -> None:
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            path = self._folder / f"{self._rank}.json"
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"rank": self._rank, "phase": place[0], "step": place[1], "time": time.time()}))
            os.replace(temporary, path)

    def _give_up(self, place: tuple[str, int], seconds: float, limit: float, /, *, why: str, follows: bool) -> None:
        phase, step = place
        path = self._folder / f"{self._rank}.txt"
        line = (f"watchdog: process {self._rank} made no progress for {seconds:.0f} s (limit {limit:.0f}) in {phase} at step {step}: "
                f"{why}; its stacks are in {path}; exit code {STUCK}")
        with contextlib.suppress(OSError):
            self._folder.mkdir(exist_ok=True)
            with path.open("w") as file:
                file.write(f"{line}\n\n")
                file.flush()
                faulthandler.dump_traceback(file=file, all_threads=True)
        with contextlib.suppress(OSError, ValueError):  # a closed standard error must not keep the process alive
            sys.stderr.write(f"\n{line}\n")
            sys.stderr.flush()
        self._alarm("watchdog", step, phase=phase, process=self._rank, seconds=round(seconds, 1), limit=round(limit, 1))
        if self._ranks > 1 and not follows:
            time.sleep(GRACE)
        for child in multiprocessing.active_children():
            child.kill()
        self._end(STUCK)

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
