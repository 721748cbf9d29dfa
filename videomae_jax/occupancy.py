"""One run directory, one run: a second start of the same command waits for the first to leave, and gives up in one line.

The lock belongs to the open file, so the kernel takes it back whatever way a process ends, and no stale one is left to remove. A server
of files takes back those of a machine that is lost only after a time (NFS: a lease of 90 s), so a holder on another host is waited for
longer, and is then no mistake: the same command may be started again.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import TextIO

import numpy as np

from videomae_jax import agreement, parallel
from videomae_jax.errors import StorageError, UserError, unwritable

FILE = ".lock"
PATIENCE = 30.0  # seconds for a run that was told to stop to write its last checkpoint
LEASE = 120.0  # seconds for a server of files to take back the lock of a machine that is lost
PAUSE = 0.2
BOOT = "/proc/sys/kernel/random/boot_id"
WITHOUT = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)  # of file systems that know no locks


@contextlib.contextmanager
def alone(directory: pathlib.Path, /, *, say: Callable[[str], None], patience: float | None = None) -> Iterator[None]:
    """Holds the run directory for this run, all its processes. Raises in each of them where another run keeps it: UserError, or StorageError where
    that run is on another host.

    `patience` are the seconds to wait, by default PATIENCE, and LEASE for another host.
    """
    with contextlib.ExitStack() as stack:
        holder = _take(directory, stack, say=say, patience=patience) if parallel.is_lead() else ""
        told = agreement.from_lead(np.frombuffer(f"{_elsewhere(holder):d}{holder}".encode()[:256].ljust(256), np.uint8))
        elsewhere, holder = int(told[0]) == ord("1"), told[1:].tobytes().decode(errors="replace").rstrip()
        if elsewhere:
            raise StorageError(f"{directory} is in use by {holder}; should that machine be lost, the same command goes on once its lock is given back")
        if holder:
            raise UserError(f"{directory} is in use by {holder}; end that run first, or use another --workdir")
        yield


def _elsewhere(holder: str, /) -> bool:
    """Whether the holder of a lock is on another machine, or left no name."""
    return bool(holder) and holder.rpartition(" on ")[2] != _machine()


def _machine() -> str:
    """This machine since it was started: a pod that takes the place of another has its name, but not its kernel."""
    try:
        return f"{socket.gethostname()}, boot {pathlib.Path(BOOT).read_text()[:8]}"
    except OSError:  # no Linux
        return socket.gethostname()


def _take(directory: pathlib.Path, stack: contextlib.ExitStack, /, *, say: Callable[[str], None], patience: float | None) -> str:
    """"" once the lock is held, or cannot be had on this file system; else who holds it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context((directory / FILE).open("a+"))
    except OSError as error:
        raise unwritable(directory, error) from error
    begin, told = time.monotonic(), False
    while not _locked(file, say=say):
        file.seek(0)
        holder = file.read().strip() or "another process"
        limit = (LEASE if _elsewhere(holder) else PATIENCE) if patience is None else patience
        if time.monotonic() >= begin + limit:
            return holder
        if not told:
            say(f"{directory} is in use by {holder}; waiting up to {limit:g} s for it to end")
            told = True
        time.sleep(PAUSE)
    with contextlib.suppress(OSError):  # a full disk: the name of the holder is a courtesy
        file.truncate(0)
        file.write(f"process {os.getpid()} on {_machine()}")
        file.flush()
    return ""


def _locked(file: TextIO, /, *, say: Callable[[str], None]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT:
            raise
        say(f"{file.name} cannot be locked ({error.strerror}): nothing keeps a second run away from this directory")
    return True
