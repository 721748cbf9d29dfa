"""Decoding processes that end by themselves, which their consumer would otherwise wait for without end."""

import multiprocessing
import signal
import threading
import weakref
from typing import Any

LOOK = 0.5  # seconds between two looks
ENDED = 70  # the exit code that stands for an end nobody asked for; EX_SOFTWARE of sysexits.h
_SIGNALS = {s.value: s.name for s in signal.Signals}  # those with a name; most real-time ones have none
_lock = threading.Lock()  # of what follows, which closing a stream and looking at it both change
_claimed: "weakref.WeakKeyDictionary[Any, int]" = weakref.WeakKeyDictionary()  # process: id of the Workers it belongs to
_lost: dict[int, str] = {}  # pid: what became of a process that ended although its stream goes on


def lost() -> str:
    """The processes that ended although their streams go on, "" for none: one that ends while it writes leaves its reader waiting for the rest."""
    return ", ".join(list(_lost.values()))


class Workers:
    """Watches the `count` processes that a stream starts; a process belongs to the stream that is the first to see it.

    Grain's workers never end before they are told to, and Grain tells them when the stream is asked for more than there is
    or closed; `close` comes before that. Grain raises for one that ends with an error code, and waits for ever for one that
    something ended with code 0: so that code becomes ENDED.
    """

    def __init__(self, count: int, /) -> None:
        self._count, self._own, self._closed = count, [], threading.Event()
        for process in multiprocessing.active_children():
            _claimed.setdefault(process, 0)  # somebody else's
        if count:
            threading.Thread(target=self._watch, daemon=True, name="watch workers").start()

    def _watch(self) -> None:
        while not self._closed.wait(LOOK):
            self.look()

    def look(self) -> None:
        """Finds processes that were started since the last look, and marks those that ended."""
        if len(self._own) < self._count:
            for process in multiprocessing.active_children():
                if _claimed.setdefault(process, id(self)) == id(self) and process not in self._own:
                    self._own.append(process)
        for process in self._own:
            code = process.exitcode
            with _lock:
                if code is None or self._closed.is_set():
                    continue
                how = f"by {_SIGNALS.get(-code, f'signal {-code}')}" if code < 0 else f"with exit code {code}"
                _lost.setdefault(process.pid, f"decoding process {process.pid} ended {how}")
            if code == 0:
                process._popen.returncode = ENDED  # what its `exitcode` is read from

    def close(self) -> None:
        """Ends the watch, before the processes are told to end."""
        with _lock:
            self._closed.set()
            for process in self._own:
                _lost.pop(process.pid, None)
