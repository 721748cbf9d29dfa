"""Ctrl-C and SIGTERM end a run at a step that all processes agree on, with a checkpoint."""

import os
import signal
from types import FrameType
from typing import Any

import jax


class Stop:
    """Turns SIGINT and SIGTERM into a request that the loop reads between steps.

    With several processes the agreement is left to jax's preemption service, which listens to SIGTERM: a process that
    gets SIGINT sends SIGTERM to itself. A second signal ends the process at once. Use as a context manager.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        distributed = jax.process_count() > 1
        for number in (signal.SIGINT,) if distributed else (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._forward if distributed else self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._before[number])

    def _forward(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, self._before[number])
        os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int, /) -> bool:
        """Whether to stop after `step`; every process must ask at every step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
        return self.signal is not None
