"""The way back from updates that go wrong one after the other: to a checkpoint from before them, past the data that led to them."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.events import Events

FLAGS = ("skipped", "spikes")  # metrics of a step, of any phase, that count updates which were passed over


@dataclasses.dataclass(frozen=True)
class Policy:
    """After `row` skipped updates in a row (0 = never) the run goes back, at most `rollbacks` times."""

    row: int = 10
    rollbacks: int = 3

    def __post_init__(self) -> None:
        if self.row < 0 or self.rollbacks < 0:
            raise UserError(f"{self.row} skipped updates in a row and {self.rollbacks} rollbacks; allowed are 0 and more")


@dataclasses.dataclass(frozen=True)
class Cursor:
    """What a checkpoint knows beside the state: the place in the stream and what was passed over.

    `samples` counts decoded clips drawn; `skipped` holds the windows (from, to) of the stream that rollbacks jumped,
    `passed` the updates passed over by cause. `row` skipped updates end here, the first after step `since`.
    """

    samples: int = 0
    skipped: tuple[tuple[int, int], ...] = ()
    passed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    row: int = 0
    since: int = 0

    def meta(self) -> dict[str, Any]:
        """As JSON."""
        return {**dataclasses.asdict(self), "skipped": [list(w) for w in self.skipped], "passed": dict(self.passed)}

    @classmethod
    def of(cls, meta: Mapping[str, Any], /) -> "Cursor":
        """From what a checkpoint stores; one that an earlier version wrote holds `samples` alone."""
        known = {f.name: meta[f.name] for f in dataclasses.fields(cls) if f.name in meta}
        return cls(**known | {"skipped": tuple((int(a), int(b)) for a, b in known.get("skipped", ()))})


class RollBack(Exception):
    """Too many updates in a row were skipped: the state of step `since` or an older one goes on at `samples` of the stream."""

    def __init__(self, cursor: Cursor, /) -> None:
        super().__init__(f"{cursor.row} updates in a row were skipped after step {cursor.since}")
        self.cursor = cursor

    def after(self, restored: Cursor, /) -> Cursor:
        """The cursor of a run that goes on from a restored state: past everything drawn since, good or bad.

        Skipped updates changed nothing, so the same data would lead the same state to the same place. Raises UserError for a state from
        further on, which is none that this run has come from.
        """
        if restored.samples > self.cursor.samples:
            raise UserError(f"the checkpoint to go back to was saved at clip {restored.samples} of the stream, and the run is at {self.cursor.samples}; "
                            f"allowed is one of step {self.cursor.since} or before: move later ones away")
        window = (restored.samples, self.cursor.samples)
        return Cursor(self.cursor.samples, (*self.cursor.skipped, window), self.cursor.passed)


class Watch:
    """Counts updates that were passed over, from flags that are read as late as the metrics are.

    What it decides depends on the flags and their steps alone, not on when they are read: a resumed run rolls back to the
    same step and goes on with the same data.
    """

    def __init__(self, cursor: Cursor, policy: Policy, events: Events, /) -> None:
        self.cursor, self._policy, self._events = cursor, policy, events
        self._queue: collections.deque[tuple[int, int, dict[str, Any]]] = collections.deque()
        self._full: Cursor | None = None

    def note(self, step: int, samples: int, values: Mapping[str, Any], /) -> dict[str, Any]:
        """Queues the flags of the update to `step`, whose batch ended at `samples`; returns the other metrics."""
        flags = {k: v for k, v in values.items() if k.split("/")[-1] in FLAGS}
        self._queue.append((step, samples, flags))
        return {k: v for k, v in values.items() if k not in flags}

    def read(self, step: int, /) -> dict[str, float]:
        """Reads the flags up to `step`; returns how many updates were passed over so far, by cause."""
        due = []
        while self._queue and self._queue[0][0] <= step:
            due.append(self._queue.popleft())
        for (at, samples, _), flags in zip(due, jax.device_get([f for *_, f in due]), strict=True):
            if self._full is None:
                self._count(at, samples, flags)
        return {k: float(v) for k, v in self.cursor.passed.items()}

    def _count(self, step: int, samples: int, flags: Mapping[str, np.ndarray], /) -> None:
        found = {cause: sum(int(v) for k, v in flags.items() if k.split("/")[-1] == cause)
                 for cause in FLAGS if any(k.split("/")[-1] == cause for k in flags)}
        passed = {k: self.cursor.passed.get(k, 0) + v for k, v in found.items()}
        row, since = (self.cursor.row + 1, self.cursor.since if self.cursor.row else step - 1) if found.get("skipped") else (0, 0)
        for cause, number in found.items():
            if number:
                self._events.add("update passed over", step, cause=cause, passes=number, samples=[self.cursor.samples, samples], row=row)
        self.cursor = Cursor(samples, self.cursor.skipped, passed, row, since)
        if self._policy.row and row >= self._policy.row:
            self._full = self.cursor

    def check(self) -> None:
        """Raises RollBack once as many updates in a row as allowed are skipped, and UserError when there were too many of these."""
        if self._full is None:
            return
        if len(self.cursor.skipped) >= self._policy.rollbacks:
            raise UserError(f"{self._full.row} updates in a row were skipped after step {self._full.since}, because loss or gradient is not finite, after "
                            f"{len(self.cursor.skipped)} rollbacks of at most {self._policy.rollbacks}; lower the learning rate, clip gradients, or look at "
                            "the clips that events.jsonl lists")
        raise RollBack(self._full)
