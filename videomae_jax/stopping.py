"""Ctrl-C and SIGTERM end a run at a step that all processes agree on, with a checkpoint."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax

from videomae_jax.errors import STORAGE, StorageError, UserError, explained

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = 75  # exit code after SIGTERM: EX_TEMPFAIL of sysexits.h, "the same command goes on", for whoever supervises a run
NOTICE = b"\nstopping: this step ends, then a checkpoint is saved; Ctrl-C (again) ends at once and loses what came after the last one\n"


MOMENT = 3.0  # seconds that the first process of several gives the others to end by themselves: its own end takes them along


class InterruptedEvaluation(Exception):
    """An evaluation ended early because the run was asked to stop; its results are lost, a resumed run repeats it."""


class Stop:
    """Turns SIGINT and SIGTERM into a request that the loop reads between steps.

    With several processes the agreement is left to jax's preemption service, which listens to SIGTERM: a process that
    gets SIGINT sends SIGTERM to itself. From then on SIGINT ends the process at once; SIGTERM does not, for a scheduler
    sends it to all processes of a job, and a script that started this one passes its own on. Use as a context manager.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._asked = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in SIGNALS[:1] if jax.process_count() > 1 else SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        for installed in self._before:  # a process that this one starts inherits no handler, where it would inherit SIG_IGN
            signal.signal(installed, signal.SIG_DFL if installed == signal.SIGINT else lambda *_: None)
        os.write(2, NOTICE)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self) -> bool:
        """Whether to stop now; every process must ask equally often, and all are told so at the same question."""
        self._asked += 1
        if jax.process_count() == 1:
            return self.signal is not None
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(self._asked):
            self.signal = self.signal or signal.SIGTERM
            return True
        return False

    @property
    def code(self) -> int:
        """Exit code of a stopped run: 130 where somebody pressed Ctrl-C, else `STOPPED`."""
        return 128 + signal.SIGINT if self.signal == signal.SIGINT else STOPPED


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes started within it inherit deaf ears: a terminal and a batch system signal every process of a run.

    A decoding worker that ends takes the last batches and so the checkpoint with it. This process still hears: a signal
    goes to any of its threads, of which jax has many, and Python runs the handler in the main one.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(error: Exception, /, *, lead: bool) -> None:
    """Says what happened and ends this process of several, at once: others may not have the error, and wait for this one.

    Whatever would be undone or closed on the way out waits for them in turn, and so does an orderly end of jax. The exit
    code is 2 after a mistake of the user or where the memory of a device is too small, STORAGE after a StorageError, else 1.
    """
    error = explained(error)
    if isinstance(error, (UserError, StorageError)):
        sys.stderr.write(f"error: {error}\n")
    else:
        traceback.print_exception(error)
    sys.stderr.flush()
    for child in multiprocessing.active_children():
        child.kill()
    time.sleep(MOMENT if lead else 0)
    os._exit(2 if isinstance(error, UserError) else STORAGE if isinstance(error, StorageError) else 1)


@contextlib.contextmanager
def together(*, several: bool, lead: bool) -> Iterator[None]:
    """Within it an error of one of `several` processes ends that process."""
    try:
        yield
    except Exception as error:
        if several:
            leave(error, lead=lead)
        raise
