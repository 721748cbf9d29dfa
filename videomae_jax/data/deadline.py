"""A time limit for reads that nothing in this process can interrupt: a dead mount, a pipe, a stuck decoder."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from videomae_jax.data.decode import DecodeError
from videomae_jax.data.patience import Patience

PAUSES = (0.1, 0.5, 2.0)  # seconds before each further try of what an error of input or output ended
_idle: list[Any] = []  # inboxes of threads that wait for a task; appending and popping are atomic


def call(task: Callable[[], Any], /, *, seconds: float, name: Callable[[], str], patience: Patience | None = None) -> Any:
    """What `task` returns or raises, from another thread.

    One that raises DecodeError of the stage "io" is called again after each of PAUSES that ends within the time. After
    `seconds` it raises DecodeError of the stage "timeout" and leaves the thread behind, with what it holds: a system call
    that does not return cannot be ended, but it need not hold up the run or the end of the process. A task that tries to
    end the process (SystemExit) is a RuntimeError. `name` is asked for in errors alone. A task that renews a `patience` has
    until that ends, and as long as nothing may come beyond it, where this is later.
    """
    fixed = time.monotonic() + seconds

    def end() -> float:
        return fixed if patience is None else max(fixed, patience.end + patience.seconds)

    for pause in PAUSES:
        try:
            return _once(task, seconds=seconds, end=end, name=name)
        except DecodeError as error:
            if error.stage != "io" or time.monotonic() + pause >= end():
                raise
        time.sleep(pause)
    return _once(task, seconds=seconds, end=end, name=name)


def _once(task: Callable[[], Any], /, *, seconds: float, end: Callable[[], float], name: Callable[[], str]) -> Any:
    """One try, which waits until `end()`; that may move while it waits."""
    answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
    try:
        inbox = _idle.pop()
    except IndexError:
        inbox = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(inbox,), daemon=True, name="read").start()
    inbox.put((task, answer))
    while True:
        try:
            good, result = answer.get(timeout=min(max(end() - time.monotonic(), 0.0), threading.TIMEOUT_MAX))
            break
        except queue.Empty:
            if time.monotonic() >= end():
                raise DecodeError(name(), "timeout", f"no answer within {seconds:g} s") from None
    if good:
        return result
    if isinstance(result, SystemExit):
        raise RuntimeError(f"{name()}: what reads it tried to end the process with code {result.code}") from result
    raise result


def _serve(inbox: Any, /) -> None:
    """Answers one task after another, for as long as the process lives: a new thread for each would wait for its turn on a busy machine."""
    while True:
        task, answer = inbox.get()
        try:
            result = (True, task())
        except BaseException as error:  # raised again where it is waited for
            result = (False, error)
        _idle.append(inbox)
        answer.put(result)
        del task, answer, result  # a batch must not live until the next task
