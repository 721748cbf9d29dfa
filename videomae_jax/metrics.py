"""Means that add up over devices and micro-batches; writers; the progress line."""

import contextlib
import errno
import json
import os
import pathlib
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TextIO

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from videomae_jax.errors import unwritable
from videomae_jax.types import Array
from videomae_jax.whole import renew

# Values of metrics.jsonl that say how a machine fared and not what was learned.
TIMING = ("clips_per_second", "data_wait", "data_wait_ms", "save_blocked_s", "save_failures", "durable_failures")


@flax.struct.dataclass
class Mean:
    """A weighted mean as (total, weight): sum(total) / sum(weight) over the global batch."""

    total: Array
    weight: Array

    def reduce(self) -> "Mean":
        """Both sums as scalars."""
        return Mean(jnp.sum(self.total), jnp.sum(self.weight))

    def value(self) -> Array:
        """The mean; 0 where the weight is 0."""
        return jnp.where(self.weight > 0, self.total / jnp.where(self.weight > 0, self.weight, 1), 0.0)


def overview(params: Any, /) -> str:
    """Table of parameters: name, shape, size, and the total."""
    return parameter_overview.get_parameter_overview(params, include_stats=False)


class Writer:
    """metrics.jsonl and TensorBoard events of a run directory; lines after `step` are cut, because a resumed run redoes them.

    Raises what `unwritable` says where these lines cannot be cut, or metrics.jsonl cannot be opened.
    """

    def __init__(self, directory: pathlib.Path, /, *, step: int, lead: bool) -> None:
        self._file: TextIO | None = None
        self._events: _Scalars | None = None
        if not lead:
            return
        path = directory / "metrics.jsonl"
        try:
            if path.exists():
                kept = [line for line in path.read_text().splitlines() if _complete(line) and json.loads(line)["step"] <= step]
                renew(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a")
        except OSError as error:
            raise unwritable(directory, error) from error
        self._events = _Scalars(directory / "tensorboard", purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        """One line of metrics.jsonl and one TensorBoard scalar per value. A full disk costs lines, not the run."""
        if self._file is None:
            return
        with tolerant(f"the metrics of step {step}"):
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        with tolerant(f"the TensorBoard events of step {step}"):
            self._events.write(step, values)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._file is not None:
            with tolerant("the last metrics"):
                self._file.close()
            with tolerant("the last TensorBoard events"):
                self._events.close()


@contextlib.contextmanager
def tolerant(what: str, /) -> Iterator[None]:
    """A full or absent disk is said, and training goes on; what Python still holds is written once there is room."""
    try:
        yield
    except OSError as error:
        sys.stderr.write(f"{what} cannot be written ({error.strerror or error})\n")


class _Scalars:
    """TensorBoard events of a folder, written by the thread that has them, a whole line of values or nothing. The first line begins their file: a disk
    that is full at the start costs the lines until it has room.

    tensorboardX's SummaryWriter hands them to a thread of its own, which a full disk ends; the next ones would wait for it for ever.
    """

    def __init__(self, directory: pathlib.Path, /, *, purge_step: int) -> None:
        with _without_torch():
            from tensorboardX.proto import event_pb2
            from tensorboardX.record_writer import masked_crc32c
            from tensorboardX.summary import scalar
        self._event, self._scalar, self._sum, self._size = event_pb2.Event, scalar, masked_crc32c, 0
        self._path, self._file = directory / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}", None
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._head = (self._event(wall_time=time.time(), file_version="brain.Event:2"), self._event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        """One scalar per value. Raises OSError."""
        self._append(*(self._event(wall_time=time.time(), step=step, summary=self._scalar(name, value)) for name, value in values.items()))

    def _append(self, *events: Any) -> None:
        """Whole records, in the framing of TFRecord; what a full disk took of them is taken away, for nothing behind half a record can be read."""
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
        data = b"".join(self._record(event.SerializeToString()) for event in (*self._head, *events))
        try:
            if self._file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            raise
        self._size, self._head = self._size + len(data), ()

    def _record(self, data: bytes, /) -> bytes:
        head = struct.pack("<Q", len(data))
        return head + struct.pack("<I", self._sum(head)) + data + struct.pack("<I", self._sum(data))

    def close(self) -> None:
        """Raises OSError."""
        if self._file is not None:
            self._file.close()


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
    """Where torch is installed, importing tensorboardX would load that too, a second and 200 MB for nothing."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        yield
    finally:
        if hidden:
            del sys.modules["torch"]


def _complete(line: str, /) -> bool:
    """Whether a line of metrics.jsonl is whole; a killed process may leave half of one at the end."""
    try:
        return "step" in json.loads(line)
    except json.JSONDecodeError:
        return False


def read(directory: pathlib.Path, /) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl."""
    path = pathlib.Path(directory) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if _complete(line)] if path.exists() else []


class Progress:
    """One line that is redrawn on a terminal and printed at intervals elsewhere."""

    def __init__(self, *, total: int, first: int, lead: bool, stream: TextIO | None = None) -> None:
        # Looked up now: the standard error of the time of import may be closed by the second run of a process.
        self._total, self._first, self._lead, self._stream = total, first, lead, sys.stderr if stream is None else stream
        self._start, self._shown = time.monotonic(), float("-inf")

    def show(self, step: int, /, *, loss: float, clips_per_second: float | None, wait: float | None) -> None:
        """Draws the bar: step, loss, time left; clips/s and the share of the time spent waiting for data, once an interval gave them."""
        terminal = self._stream.isatty()
        now = time.monotonic()
        if not self._lead or (not terminal and now - self._shown < 5 and step < self._total):
            return
        self._shown = now
        share = step / max(self._total, 1)
        done = max(step - self._first, 1)
        left = (now - self._start) / done * (self._total - step)
        bar = "#" * int(20 * share) + "." * (20 - int(20 * share))
        rate = "" if clips_per_second is None else f"  {clips_per_second:.1f} clips/s"
        waited = "" if wait is None else f"  data wait {100 * wait:.0f}%"
        line = f"[{bar}] step {step}/{self._total}  loss {loss:.4f}{rate}  ETA {clock(left)}{waited}"
        self._stream.write(f"\r\x1b[2K{line}" if terminal else f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """Ends the line."""
        if self._lead and self._stream.isatty():
            self._stream.write("\n")


def clock(seconds: float, /) -> str:
    """h:mm:ss."""
    minutes, rest = divmod(int(round(seconds)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Moment(NamedTuple):
    """Where a run was at a time: seconds of the monotonic clock, steps that Python had asked for, seconds waited for data up to then."""

    seconds: float
    step: int
    wait: float


class Clock:
    """Holds metrics for one interval before it reads them, so that Python never waits for the device inside a step.

    A line has the clips a second of the interval, the share of its time that was spent waiting for data (`data_wait`) and that
    time in ms a step (`data_wait_ms`). `more(step)` gives further values of a line; what is put into `next` goes out with the next line, once. A metric
    [L] becomes L values "<name>/<i>". `wait` is the time spent waiting for data so far, in seconds.

    A rate is of two like moments, for Python may be a whole interval ahead of the device where `put` reads, and is level with it from `flush` to
    `restart`, around an evaluation or a save: `put` counts from the `put` before, where that was as far ahead, and `flush`, where none did since,
    from the `restart` before.
    """

    def __init__(self, progress: Progress, writer: Writer, /, *, clips: int, more: Callable[[int], Mapping[str, float]] = lambda step: {}) -> None:
        self._progress, self._writer, self._clips, self._more = progress, writer, clips, more
        self.next: dict[str, float] = {}
        self._pending: tuple[int, Any] | None = None
        self.wait, self.last = 0.0, {}
        self._ahead: Moment | None = None  # of the last reading of `put`, and by how many steps
        self._lead = 0
        self._level: Moment | None = None  # of the last `restart`, until a rate is known

    def restart(self, step: int, /) -> None:
        """Leaves the time since `flush` out of the rates. Before the first line nothing is compiled, and none count from here."""
        self._ahead, self._level = None, Moment(time.monotonic(), step, self.wait) if self.last else None

    def put(self, step: int, metrics: Any, /) -> None:
        """Queues the metrics of `step` and reads those queued before."""
        if self._pending is not None:
            lead = step - self._pending[0]
            since = self._ahead if lead == self._lead else None
            self._level = None if since else self._level
            self._ahead, self._lead = self._read(step, since=since), lead
        self._pending = (step, metrics)

    def flush(self, step: int, state: Any, /) -> None:
        """Waits until the device has done `step`, which gives `state`, and reads what is queued."""
        jax.block_until_ready(state)
        if self._pending is not None:
            self._read(step, since=self._level)

    def _read(self, now: int, /, *, since: Moment | None) -> Moment:
        """Writes the line that is queued, with the rates since a moment like this one, which it returns."""
        step, metrics = self._pending
        values: dict[str, float] = {}
        for name, value in ((k, np.asarray(v)) for k, v in jax.device_get(metrics).items()):
            values |= {f"{name}/{i}": float(x) for i, x in enumerate(value)} if value.ndim else {name: float(value)}
        values |= {**self._more(step), **self.next}
        self.next = {}
        here, self._pending = Moment(time.monotonic(), now, self.wait), None
        if since is not None:
            seconds, steps, wait = max(here.seconds - since.seconds, 1e-9), now - since.step, self.wait - since.wait
            values["clips_per_second"] = steps * self._clips / seconds
            values["data_wait"] = min(wait / seconds, 1.0)
            values["data_wait_ms"] = 1000 * wait / steps
        self.last = self.last | values
        self._writer.write(step, values)
        self._progress.show(step, loss=values.get("loss", next(iter(values.values()))), clips_per_second=self.last.get("clips_per_second"),
                            wait=self.last.get("data_wait"))
        return here

    def close(self) -> None:
        """Reads the rest and ends the progress line."""
        if self._pending is not None:
            self._read(self._pending[0], since=None)
        self._progress.close()
