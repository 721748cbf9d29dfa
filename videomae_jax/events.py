"""events.jsonl of a run directory: what went wrong and was lived with, one line each, over all restarts."""

import pathlib
import time
from collections.abc import Callable
from typing import Any

from videomae_jax import journal


class Events:
    """Appends events and says them; lines are never cut, unlike those of metrics.jsonl: an event of a step that is done again did happen."""

    def __init__(self, directory: pathlib.Path, /, *, lead: bool, say: Callable[[str], None]) -> None:
        self._path, self._lead, self._say = directory / "events.jsonl", lead, say

    def add(self, event: str, step: int, /, **values: Any) -> None:
        """One line with the time; processes other than the lead leave none. A full disk costs the line, not the run."""
        if not self._lead:
            return
        self._say(f"{event} at step {step}: {', '.join(f'{k} {v}' for k, v in values.items())}")
        try:
            journal.append(self._path, {"time": round(time.time(), 3), "step": step, "event": event, **values})
        except OSError as error:
            self._say(f"{self._path} cannot be written ({error.strerror})")


def read(directory: pathlib.Path, /) -> list[dict[str, Any]]:
    """The whole lines of a run's events.jsonl."""
    return journal.read(pathlib.Path(directory) / "events.jsonl")
