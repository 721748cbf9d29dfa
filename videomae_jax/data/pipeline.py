"""The step-addressed stream: every global batch is a pure function of (seed, position).

Position p of the stream reads row permutation(seed, epoch)[p mod N] with a generator keyed by (seed, p). Each host takes
the positions of every global batch whose rows its devices hold: one contiguous block, or several. So batches, crops and
keys are identical for any number of hosts, workers and threads, and a run resumes from its position alone, without
iterator state.
"""

import concurrent.futures
import copy
import dataclasses
import functools
import hashlib
import math
import pathlib
import secrets
import shutil
import signal
import weakref
from collections.abc import Iterator
from multiprocessing import shared_memory
from typing import Any

import grain
import numpy as np
from absl import flags

from videomae_jax.data import deadline, decode
from videomae_jax.data.decode import DecodeError
from videomae_jax.data.quarantine import Quarantine, fault
from videomae_jax.data.sources import Source
from videomae_jax.data.workers import Workers, announce, begin, new_segment
from videomae_jax.errors import UserError

Example = dict[str, np.ndarray]  # every key [K ...]
Batch = dict[str, np.ndarray]  # every key [n K ...] or [n * K ...]
Blocks = tuple[tuple[int, int], ...]  # (start, stop), ascending
ATTEMPTS = 16  # substitutes tried for an unreadable example: a run of 10^9 clips gets through with a quarter of them damaged
AHEAD = 2  # batches that a process holds: one ready, one being read
WAITING = AHEAD + 4  # batches a worker may be ahead: those, one on either side of each of Grain's two queues
ALIGNMENT = 64  # bytes; what vector loads and copy-free device buffers ask for
ENDLESS = 2**62  # batches; Grain wants a length
GRACE = 1.25  # of a source's own time limit: what a read that does not keep it may take
SHARED = pathlib.Path("/dev/shm")  # where Linux keeps shared memory


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Row of a position: every pass over `length` rows is a permutation of its own."""

    length: int
    seed: int

    @functools.cached_property
    def _passes(self) -> Any:
        return grain.MapDataset.range(self.length).seed(self.seed % 2**32).shuffle().repeat(None)

    def __getitem__(self, position: int) -> int:
        return int(self._passes[position])


@dataclasses.dataclass(frozen=True)
class Batches:
    """A host's batches by number: batch i holds positions start + i * batch_size + p for every p in `blocks` (start, stop).

    Without blocks p is in host * b + 0..b-1, b = batch_size / hosts. `rows[position]` is the row to read; positions from
    `end` on are padding. Batches are assembled here, before Grain deals the numbers out to its workers, so that their
    composition cannot depend on the number of workers. With `segments` a batch is written to the shared memory `segments` +
    number and its name is returned instead.
    """

    source: Source
    rows: Any
    seed: int
    start: int
    batch_size: int
    host: int
    hosts: int
    threads: int
    length: int = ENDLESS
    end: int = ENDLESS
    segments: str = ""
    quarantine: Quarantine = dataclasses.field(default_factory=Quarantine)
    blocks: Blocks = ()

    def __len__(self) -> int:
        return self.length

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # threads do not travel

    @functools.cached_property
    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        return concurrent.futures.ThreadPoolExecutor(self.threads, thread_name_prefix="decode")

    def close(self) -> None:
        """Ends the threads of this process, once what they read is done."""
        if "_pool" in self.__dict__:
            self._pool.shutdown(cancel_futures=True)

    @functools.cached_property
    def places(self) -> np.ndarray:
        """Positions i64 [b] of this host within a global batch, ascending."""
        each = self.batch_size // self.hosts
        return np.concatenate([np.arange(*block) for block in self.blocks or ((self.host * each, (self.host + 1) * each),)])

    @functools.cached_property
    def layout(self) -> dict[str, tuple[tuple[int, ...], np.dtype, int]]:
        """Shape, dtype and place in a shared segment, in bytes, of every key."""
        each, place, found = len(self.places), 0, {}
        known = {k: (f.shape, f.dtype, 1 if f.shared else self.source.repeats) for k, f in self.source.fields.items()}
        own = {"key": ((2,), "uint32"), "row": ((), "int32"), "fault": ((), "int32"), "valid": ((), "bool")}
        for key, (shape, dtype, copies) in (known | {k: (*v, self.source.repeats) for k, v in own.items()}).items():
            rows = each * copies
            found[key] = ((rows, *shape), np.dtype(dtype), place)
            size = rows * math.prod(shape) * np.dtype(dtype).itemsize
            place += -(-size // ALIGNMENT) * ALIGNMENT
        return found

    @property
    def bytes(self) -> int:
        """Size of a host batch."""
        shape, dtype, place = self.layout["valid"]
        return place + math.prod(shape) * dtype.itemsize

    def __getitem__(self, number: int) -> "Batch | str":
        if not self.segments:
            batch = {k: np.empty(shape, dtype) for k, (shape, dtype, _) in self.layout.items()}
            self._read(number, batch)
            return batch
        memory = new_segment(f"{self.segments}{number}", size=self.bytes)
        try:
            self._read(number, {k: np.ndarray(shape, dtype, memory.buf, place) for k, (shape, dtype, place) in self.layout.items()})
        except BaseException:
            memory.unlink()
            raise
        finally:
            memory.close()
        return memory.name

    def _read(self, number: int, batch: Batch, /) -> None:
        """Fills the arrays of a batch; nothing writes to them any more when this returns or raises."""
        each = len(self.places)
        batch = {k: v.reshape(each, len(v) // each, *v.shape[1:]) for k, v in batch.items()}
        positions = (self.start + int(number) * self.batch_size + self.places).tolist()
        count = max(sum(position < self.end for position in positions), 1)  # a host whose part is all padding reads one example to repeat
        futures = [self._pool.submit(self._fill, batch, place, min(position, self.end - 1)) for place, position in enumerate(positions[:count])]
        try:
            for future in futures:
                future.result()
        finally:
            # Not `concurrent.futures.wait`: it never returns for what `close` cancels at the same time.
            for future in futures:
                if not future.cancel():
                    future.exception()
        for value in batch.values():
            value[count:] = value[count - 1]
        batch["valid"][...] = (np.asarray(positions) < self.end)[:, None]

    def _fill(self, batch: Batch, place: int, position: int, /) -> None:
        """Writes the example of a position, and what is known of it, into its place."""
        row = self.rows[position]
        example, code = read(self.source, row, seed=self.seed, position=position, quarantine=self.quarantine)
        copies = np.arange(self.source.repeats)
        example["key"] = np.stack([np.full_like(copies, position % 2**32), copies], axis=-1)
        example["row"], example["fault"] = np.full_like(copies, row), np.full_like(copies, code)
        for key, value in example.items():
            if value.shape != batch[key].shape[1:]:
                raise ValueError(f"{self.source.name(row)}: {key} has the shape {value.shape}; the source declares {batch[key].shape[1:]} for its copies")
            batch[key][place] = value


def read(source: Source, row: int, /, *, seed: int, position: int, quarantine: Quarantine | None = None) -> tuple[Example, int]:
    """The example of `row`, or else of a substitute, and its `quarantine.fault`: 0, or what failed.

    Substitutes and all draws are functions of (seed, position, attempt) alone; no row is tried twice. A read that takes
    longer than the source allows is left behind, and this process does not read its row from this position on, for that is
    costly: `quarantine` then holds it too. Raises UserError that names every file tried, after ATTEMPTS substitutes or all
    rows.
    """
    failures: dict[int, DecodeError] = {}
    quarantine = Quarantine() if quarantine is None else quarantine
    for attempt in range(min(ATTEMPTS + 1, len(source))):
        try:
            example = _timely(source, row, seed=seed, position=position, attempt=attempt, quarantine=quarantine)
            return example, fault({n: error.stage for n, error in enumerate(failures.values())})
        except DecodeError as error:
            failures[row] = error
        digest = hashlib.sha256(f"{seed}/{position}/{attempt}".encode()).digest()
        row = int.from_bytes(digest[:8], "little") % len(source)
        while row in failures and len(failures) < len(source):
            row = (row + 1) % len(source)
    raise UserError(f"a video and all of its {len(failures) - 1} substitutes cannot be read: {'; '.join(map(str, failures.values()))}; "
                    "`index --verify` leaves damaged videos out")


def _timely(source: Source, row: int, /, *, seed: int, position: int, attempt: int, quarantine: Quarantine) -> Example:
    """The example of a row within GRACE times what its source allows. Raises DecodeError."""
    if failed := quarantine.failed(row, position=position, attempt=attempt):
        raise DecodeError(source.name(row), *failed)

    def once() -> Any:
        return source.read(row, rng=np.random.Generator(np.random.Philox(key=[seed % 2**64, position], counter=[0, 0, 0, attempt])))

    try:
        return dict(deadline.call(once, seconds=GRACE * getattr(source, "timeout", decode.TIMEOUT), name=lambda: source.name(row)))
    except DecodeError as error:
        if error.stage == "timeout":
            quarantine.rows[row] = min(position, quarantine.rows.get(row, position))
        raise


class Stream:
    """An iterator over host batches and a context manager that ends its workers and threads."""

    def __init__(self, batches: Batches, /, *, workers: int) -> None:
        if workers:
            batches = dataclasses.replace(batches, segments=f"vmae_{secrets.token_hex(4)}_")
            _check_room(batches, workers=workers)
        self._running = _Running(batches, workers=workers)
        self._end = weakref.finalize(self, self._running.close)  # also when the stream is dropped or the process exits

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return self._running.take()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops threads and workers and releases their shared memory."""
        self._end()


class _Running:
    """The iterator, processes and shared memory of a stream."""

    def __init__(self, batches: Batches, /, *, workers: int) -> None:
        self.batches, self.workers, self.taken = batches, workers, 0
        name = f"{batches.segments}pids"
        dataset = grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD))
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads a flag of its own in this process, where absl need not run
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
            dataset = dataset.mp_prefetch(options, worker_init_fn=functools.partial(_begin_worker, name))
        self.processes = Workers(workers, name=name)
        self.iterator: Any = iter(dataset)

    def take(self) -> Batch:
        """The next batch. Raises ValueError after `close`, and RuntimeError when a process ended."""
        if self.iterator is None:
            raise ValueError("the stream is closed")
        if self.taken == self.batches.length:
            self.processes.close()  # at the end of the data Grain tells them to end
        batch = next(self.iterator)
        self.taken += 1
        return _adopt(batch, layout=self.batches.layout) if isinstance(batch, str) else batch

    def close(self) -> None:
        """Ends the processes, then takes the names off what they wrote and nobody asked for."""
        iterator, self.iterator = self.iterator, None
        self.processes.close()
        try:
            iterator.close()
            self.batches.close()
        finally:
            for number in range(self.taken, self.taken + WAITING * self.workers):
                try:
                    segment = shared_memory.SharedMemory(f"{self.batches.segments}{number}")
                except FileNotFoundError:
                    continue
                segment.close()
                segment.unlink()


def _adopt(name: str, /, *, layout: dict[str, tuple[tuple[int, ...], np.dtype, int]]) -> Batch:
    """Arrays over a worker's segment, at no copy. The segment loses its name at once, so nothing stays behind however
    this process ends; its memory lives as long as one of the arrays."""
    segment = shared_memory.SharedMemory(name)
    segment.unlink()
    # `close` would unmap the memory under the arrays, so they take the mapping over; the segment keeps its descriptor.
    memory, segment._buf, segment._mmap = segment._mmap, None, None
    segment.close()
    return {k: np.frombuffer(memory, dtype, math.prod(shape), place).reshape(shape) for k, (shape, dtype, place) in layout.items()}


def _begin_worker(name: str, number: int, count: int, /) -> None:
    """A worker says whose it is, leaves stopping to the training process, whose last batches and checkpoint need it, and does not outlive it."""
    announce(name, number)
    begin()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _check_room(batches: Batches, /, *, workers: int) -> None:
    """Raises UserError where /dev/shm is too small: a process that writes more than there is dies of a bus error."""
    need = WAITING * workers * batches.bytes
    free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else need
    if need > free:
        raise UserError(f"{workers} workers keep up to {WAITING} batches of {batches.bytes / 1e6:.0f} MB each in shared memory, and {SHARED} has "
                        f"{free / 1e6:.0f} MB free; allowed are fewer workers (--config.workers, 0 = threads of the training process), a smaller batch "
                        "(--config.batch_size) or more shared memory (docker run --shm-size)")


def stream(source: Source, /, *, batch_size: int, seed: int, start: int = 0, host: int = 0, hosts: int = 1, blocks: Blocks = (), workers: int = 0,
           threads: int = 2, quarantine: Quarantine = Quarantine()) -> Stream:
    """Endless host batches of the shuffled stream from position `start` (decoded clips drawn before) on.

    `batch_size` counts decoded clips of the global batch; arrays have (batch_size / hosts) * repeats rows in the order
    v0s0, v0s1, ..., v1s0, ..., or those of the positions in `blocks` (start, stop) within the global batch, which go before
    the block of `host`. Each batch holds the source's fields plus `key` u32 [n 2] (position mod 2^32, copy), `row`
    i32 [n] (the row the position asked for), `valid` bool [n] (True) and `fault` i32 [n] (0, or 1 + the stage in
    decode.STAGES at which that row failed and a substitute was read). `workers` processes (0: this one) decode with
    `threads` threads each. Memory: AHEAD host batches without workers, WAITING a worker in shared memory with them, and
    the one handed out. A source with a method `order(seed=)` says itself which row a position reads, for ever.
    What `quarantine` names fails without being read. `fault` also tells which substitutes failed (`quarantine.attempts`).
    Raises UserError where the hosts do not divide the batch or shared memory is too small.
    """
    _check(batch_size=batch_size, host=host, hosts=hosts, workers=workers, threads=threads)
    rows = source.order(seed=seed) if hasattr(source, "order") else Shuffled(len(source), seed)
    return Stream(Batches(source, rows, seed, start, batch_size, host, hosts, threads, quarantine=copy.deepcopy(quarantine), blocks=blocks), workers=workers)


def sweep(source: Source, /, *, batch_size: int, host: int = 0, hosts: int = 1, blocks: Blocks = (), seed: int = 0, workers: int = 0,
          threads: int = 2) -> Stream:
    """One pass over all rows in order: the same number of batches on every host, the last padded by rows with `valid` False.

    Batches are those of `stream` with key (row, copy). A row that cannot be read is replaced and marked in `fault` as
    there, and stays `valid`. Padding repeats the last example of the host's part.
    """
    _check(batch_size=batch_size, host=host, hosts=hosts, workers=workers, threads=threads)
    length = -(-len(source) // batch_size)
    batches = Batches(source, range(len(source)), seed, 0, batch_size, host, hosts, threads, length=length, end=len(source), blocks=blocks)
    return Stream(batches, workers=min(workers, length))


def _check(*, batch_size: int, host: int, hosts: int, workers: int, threads: int) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("hosts", hosts, 1), ("workers", workers, 0), ("threads", threads, 1)):
        if value < least:
            raise UserError(f"{name} is {value}; allowed are {least} and more")
    if not 0 <= host < hosts:
        raise UserError(f"host {host}; allowed are 0 to {hosts - 1}")
    if batch_size % hosts:
        raise UserError(f"a batch of {batch_size} decoded clips cannot be split over {hosts} hosts; allowed are multiples of {hosts}")
