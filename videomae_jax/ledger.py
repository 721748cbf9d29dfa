"""Where the time of a run went, over all its restarts: every second in one class, in ledger.jsonl of the run directory."""

import contextlib
import dataclasses
import json
import os
import pathlib
import threading
import time
from collections.abc import Mapping

from videomae_jax import journal
from videomae_jax.errors import UserError

CLASSES = ("init", "compile", "step", "data_wait", "checkpoint", "evaluation", "restore", "lost", "idle")
REPEATED = ("step", "data_wait", "checkpoint", "evaluation")  # lost when a later start has to do them again
SIGN = "ledger.alive"  # when the last process of a run was last known to work: seconds since 1970
INTERVAL = 10.0  # seconds between lines where nothing else asks for one


class Ledger:
    """Charges time to the class that was entered last; appends a line where a checkpoint may begin anew, and now and then.

    What a killed process did after its last line is known from SIGN, which `alive` renews: a time in a file of its own, for the
    time *of* a file is lost when the run directory is copied. Processes other than the lead keep no books. `began` is the wall time at which the process or call began.
    """

    def __init__(self, directory: pathlib.Path, /, *, lead: bool, began: float | None = None) -> None:
        now, alive = time.time(), _alive(directory)
        # A start that waited for the one before: that one's books tell of the time until then.
        began = min(max(now if began is None else began, alive or 0.0), now)
        self._path, self._sign, self._lead, self._lock = directory / "ledger.jsonl", directory / SIGN, lead, threading.Lock()
        self._spent: dict[str, float] = {}
        self._class, self._since = "init", time.monotonic() - (now - began)
        self._written = time.monotonic()
        self._append({"begin": began, "alive": alive})

    def enter(self, name: str, /) -> None:
        """From now on time belongs to `name`, one of CLASSES."""
        with self._lock:
            self._charge()
            self._class = name

    def line(self, step: int, /, *, force: bool = True) -> None:
        """Appends what was spent since the line before, up to the state of `step`; without `force` only once in INTERVAL."""
        if not force and time.monotonic() - self._written < INTERVAL:
            return
        with self._lock:
            self._charge()
            spent, self._spent, self._written = self._spent, {}, time.monotonic()
        self._append({"to": time.time(), "step": step, "seconds": spent})
        self.alive()  # no line is later than the sign

    def resumed(self, step: int, /) -> None:
        """The run goes on from the state of `step`: whatever came after it is lost."""
        self._append({"resume": step})

    def alive(self) -> None:
        """Leaves a sign of life."""
        if self._lead:
            with contextlib.suppress(OSError):  # a full or absent disk costs accuracy, not the run
                self._sign.write_text(repr(time.time()))

    def _charge(self) -> None:
        now = time.monotonic()
        self._spent[self._class] = self._spent.get(self._class, 0.0) + now - self._since
        self._since = now

    def _append(self, line: Mapping[str, object], /) -> None:
        if self._lead:
            with contextlib.suppress(OSError):
                journal.append(self._path, line)


def process_start() -> float:
    """Wall time at which this process began, from /proc; now, where there is none."""
    try:
        ticks = int(pathlib.Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError):
        return time.time()


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Seconds of every class, the wall time from first to last sign of life, and how often the run was started."""

    seconds: Mapping[str, float]
    wall: float
    starts: int

    @property
    def share(self) -> float:
        """Steps that count, as a share of the wall time that the run was up: without waiting to be started."""
        up = self.wall - self.seconds["idle"]
        return self.seconds["step"] / up if up > 0 else 0.0


def goodput(directory: pathlib.Path, /) -> Goodput | None:
    """The books of a run directory; None where there are none.

    Time of a killed process after its last line is lost; time between two processes is idle.
    """
    path = pathlib.Path(directory) / "ledger.jsonl"
    lines = _lines(path)
    if not lines:
        return None
    total, open_lines, last, first = dict.fromkeys(CLASSES, 0.0), [], 0.0, 0.0
    for line in lines:
        if "begin" in line:
            if last:
                dead = max(float(line["alive"] or last), last)
                total["lost"] += dead - last
                total["idle"] += max(float(line["begin"]) - dead, 0.0)
            first, last = first or float(line["begin"]), float(line["begin"])
        elif "resume" in line:
            kept = [(step, spent) for step, spent in open_lines if step <= line["resume"]]
            for step, spent in open_lines:
                if step > line["resume"]:
                    for name, seconds in spent.items():
                        total["lost" if name in REPEATED else name] += seconds
            open_lines = kept
        else:
            open_lines.append((line["step"], line["seconds"]))
            last = float(line["to"])
    for _, spent in open_lines:
        for name, seconds in spent.items():
            total[name] += seconds
    end = max(_alive(directory) or last, last)
    total["lost"] += end - last
    return Goodput(total, end - first, sum("begin" in line for line in lines))


def _alive(directory: pathlib.Path, /) -> float | None:
    """The last sign of life; None where there is none, or half of one of a killed process."""
    try:
        return float((pathlib.Path(directory) / SIGN).read_text())
    except (OSError, ValueError):
        return None


def _lines(path: pathlib.Path, /) -> list[dict]:
    """The lines of the file. Raises UserError for one that no ledger writes."""
    found = journal.read(path)
    for line in found:
        if not _described(line):
            raise UserError(f"{path} is damaged: {json.dumps(line)[:80]!r} is no line of a ledger")
    return found


def _described(line: object, /) -> bool:
    """Whether a line is one that a ledger writes."""
    def number(value: object) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    if not isinstance(line, dict):
        return False
    if "begin" in line:
        return number(line["begin"]) and (line.get("alive") is None or number(line["alive"]))
    if "resume" in line:
        return number(line["resume"])
    spent = line.get("seconds")
    return number(line.get("to")) and number(line.get("step")) and isinstance(spent, dict) and all(k in CLASSES and number(v) for k, v in spent.items())


def text(found: Goodput, /) -> str:
    """A table for people: seconds and share of every class, and their sum beside the wall time."""
    rows = [f"  {name:<12} {found.seconds[name]:>12,.1f} s {100 * found.seconds[name] / max(found.wall, 1e-9):>6.1f} %" for name in CLASSES]
    total = sum(found.seconds.values())
    return "\n".join([f"goodput {100 * found.share:.1f} % of the time that the run was up, over {found.starts} starts", *rows,
                      f"  {'sum':<12} {total:>12,.1f} s; wall {found.wall:,.1f} s"])
