"""What the processes of a run have to see alike before they go on together."""

import time
from collections.abc import Callable

import jax
import numpy as np

from videomae_jax.errors import StorageError

VISIBLE = 70.0  # seconds until every host has to see a new file: network file systems show it late, NFS after a minute
MOST = 4096  # numbers that the first process can tell
PAUSE = 0.1


def from_lead(value: np.ndarray, /) -> np.ndarray:
    """What the first process has, in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(value))


def first(wrong: bool, /) -> int | None:
    """The first process in which something is wrong, told to all of them; None where nothing is."""
    if jax.process_count() == 1:
        return 0 if wrong else None
    from jax.experimental import multihost_utils

    found = np.flatnonzero(multihost_utils.process_allgather(np.asarray(wrong)))
    return int(found[0]) if found.size else None


def anywhere(wrong: str, /) -> str:
    """What is wrong here or else in which process something is; "" on all of them where nothing is."""
    number = first(bool(wrong))
    return wrong or ("" if number is None else f"process {number} finds a file that is not what was saved")


def numbers(own: Callable[[], list[int]], /, *, what: str, seconds: float = VISIBLE) -> list[int]:
    """The numbers that `own` gives in the first process, once it gives them here too; the newest MOST of them.

    Raises StorageError in every process where one of them has not seen all of them by then.
    """
    mine = own()
    if jax.process_count() == 1:
        return mine
    lead = from_lead(np.pad(np.asarray(mine[-MOST:], np.int64), (0, MOST - len(mine[-MOST:])), constant_values=-1))
    wanted, end = [int(n) for n in lead if n >= 0], time.monotonic() + seconds
    while (late := set(wanted) - set(mine)) and time.monotonic() < end:
        time.sleep(PAUSE)
        mine = own()
    blind = first(bool(late))
    if blind is not None:
        told = f"process {jax.process_index()} does not see {what} {max(late)} after {seconds:g} s" if late else f"process {blind} does not see every {what}"
        raise StorageError(f"{told}; all processes have to start again")
    return wanted
