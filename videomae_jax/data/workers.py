"""Processes that work for this one: they end with it, and those that end by themselves are not waited for without end."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker, shared_memory
from typing import Any

import numpy as np

LOOK = 0.5  # seconds between two looks; a process needs more than that to start
ENDED = 70  # the exit code that stands for an end nobody asked for; EX_SOFTWARE of sysexits.h
_SIGNALS = {s.value: s.name for s in signal.Signals}  # those with a name; most real-time ones have none
_lock = threading.Lock()  # of what follows, which closing a stream and looking at it both change
_seen: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()  # children by pid; `multiprocessing` forgets those that ended
_lost: dict[int, str] = {}  # pid: what became of a process that ended although its stream goes on


def lost() -> str:
    """The processes that ended although their streams go on, "" for none: one that ends while it writes leaves its reader waiting for the rest."""
    return ", ".join(list(_lost.values()))


def new_segment(name: str, /, *, size: int) -> shared_memory.SharedMemory:
    """New shared memory of `size` bytes that does not stay behind, whenever the processes that know its name are killed.

    The tracker that takes the names off memory of processes that are gone learns a name only after the memory was made; what
    ends a process between the two would leave the memory there until the machine restarts. So it is told before.
    """
    resource_tracker.register(f"/{name}", "shared_memory")
    return shared_memory.SharedMemory(name, create=True, size=size)


class Workers:
    """Watches the `count` processes that a stream starts. Each says in shared memory of this `name` that it belongs to it.

    Grain's workers never end before they are told to, and Grain tells them when the stream is asked for more than there is
    or closed; `close` comes before that. Grain raises for one that ends with an error code, and waits for ever for one that
    something ended with code 0: so that code becomes ENDED.
    """

    def __init__(self, count: int, /, *, name: str) -> None:
        self._closed = threading.Event()
        self._segment = new_segment(name, size=8 * count) if count else None
        self._pids = np.ndarray(count, np.int64, self._segment.buf if count else None)
        if count:
            threading.Thread(target=self._watch, daemon=True, name="watch workers").start()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK):
            self.look()

    def look(self) -> None:
        """Marks the processes of this stream that ended."""
        with _lock:
            for process in multiprocessing.active_children():
                _seen[process.pid] = process
            if self._closed.is_set():
                return
            for pid in self._pids.tolist():
                process = _seen.get(pid)
                code = None if process is None else process.exitcode
                if code is None:
                    continue
                how = f"by {_SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"with exit code {code}"
                _lost.setdefault(pid, f"decoding process {pid} ended {how}")
                if code == 0:
                    process._popen.returncode = ENDED  # what its `exitcode` is read from

    def close(self) -> None:
        """Ends the watch, before the processes are told to end."""
        with _lock:
            if self._closed.is_set() or self._segment is None:
                return
            self._closed.set()
            for pid in self._pids.tolist():
                _lost.pop(pid, None)
            del self._pids  # it holds the memory
            self._segment.close()
            self._segment.unlink()


def announce(name: str, number: int, /) -> None:
    """Called in process `number` of the stream with the Workers of this name; nothing where that is closed."""
    try:
        segment = shared_memory.SharedMemory(name)
    except FileNotFoundError:
        return
    np.ndarray(number + 1, np.int64, segment.buf)[number] = os.getpid()
    segment.close()


def begin() -> None:
    """Called in a process that leaves Ctrl-C to the one that started it, and does not outlive that, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True, name="follow").start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Quiet(multiprocessing.context.SpawnProcess):
    """A process that Ctrl-C does not reach before it can `begin`, either."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Context(multiprocessing.context.SpawnContext):
    Process = _Quiet


@contextlib.contextmanager
def processes(count: int, /, start: Callable[..., None] | None = None, *arguments: Any) -> Iterator[concurrent.futures.ProcessPoolExecutor]:
    """An executor of up to `count` spawned processes that `begin` and then call `start`. An exception within the `with` ends them at once."""
    made = concurrent.futures.ProcessPoolExecutor(count, _Context(), _begin_pooled, (start, arguments))
    try:
        yield made
    except BaseException:
        for process in list((made._processes or {}).values()):
            process.terminate()
        raise
    finally:
        made.shutdown(cancel_futures=True)


def _begin_pooled(start: Callable[..., None] | None, arguments: tuple[Any, ...], /) -> None:
    begin()
    if start is not None:
        start(*arguments)
