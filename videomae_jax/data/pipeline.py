"""The step-addressed stream: every global batch is a pure function of (seed, position).

Position p of the stream reads row permutation(seed, epoch)[p mod N] with a generator keyed by (seed, p). Each host takes
a contiguous block of every global batch. So batches, crops and keys are identical for any number of hosts, workers and
threads, and a run resumes from its position alone, without iterator state.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from videomae_jax.data.decode import DecodeError
from videomae_jax.data.sources import Source
from videomae_jax.errors import UserError

Example = dict[str, np.ndarray]  # every key [K ...]
Batch = dict[str, np.ndarray]  # every key [n K ...] or [n * K ...]
ATTEMPTS = 4  # substitutes tried for an unreadable example
AHEAD = 2  # batches that a process holds: one ready, one being read
ENDLESS = 2**62  # batches; Grain wants a length


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
    """A host's batches by number: batch i holds positions start + i * batch_size + host * b + 0..b-1, b = batch_size / hosts.

    `rows[position]` is the row to read; positions from `end` on are padding. Batches are assembled here, before Grain
    deals the numbers out to its workers, so that their composition cannot depend on the number of workers.
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

    def __getitem__(self, number: int) -> Batch:
        each, copies = self.batch_size // self.hosts, self.source.repeats
        first = self.start + int(number) * self.batch_size + self.host * each
        count = min(max(self.end - first, 1), each)  # a host whose part is all padding reads one example to repeat
        shapes = {k: ((each, copies, *f.shape), f.dtype) for k, f in self.source.fields.items()} | {
            "key": ((each, copies, 2), "uint32"), "row": ((each, copies), "int32"), "fault": ((each, copies), "int32")}
        batch = {k: np.empty(shape, dtype) for k, (shape, dtype) in shapes.items()}
        futures = [self._pool.submit(self._fill, batch, place, min(first + place, self.end - 1)) for place in range(count)]
        try:
            for future in futures:
                future.result()
        finally:
            for future in futures:
                future.cancel()
        for value in batch.values():
            value[count:] = value[count - 1]
        batch["valid"] = np.repeat((np.arange(first, first + each) < self.end)[:, None], copies, axis=1)
        return {k: v.reshape(each * copies, *v.shape[2:]) for k, v in batch.items()}

    def _fill(self, batch: Batch, place: int, position: int, /) -> None:
        """Writes the example of a position, and what is known of it, into its place."""
        row = self.rows[position]
        example, fault = read(self.source, row, seed=self.seed, position=position)
        copies = np.arange(self.source.repeats)
        example["key"] = np.stack([np.full_like(copies, position % 2**32), copies], axis=-1)
        example["row"], example["fault"] = np.full_like(copies, row), np.full_like(copies, fault)
        for key, value in example.items():
            if value.shape != batch[key].shape[1:]:
                raise ValueError(f"{self.source.name(row)}: {key} has the shape {value.shape}; the source declares {batch[key].shape[1:]} for its copies")
            batch[key][place] = value


def read(source: Source, row: int, /, *, seed: int, position: int) -> tuple[Example, int]:
    """The example of `row`, or else of a substitute, and 0 or the stage code of the failure of `row`.

    Substitutes and all draws are functions of (seed, position, attempt) alone. Raises UserError that names every file
    tried after ATTEMPTS substitutes.
    """
    failures: list[DecodeError] = []
    for attempt in range(ATTEMPTS + 1):
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, position], counter=[0, 0, 0, attempt]))
        try:
            return dict(source.read(row, rng=rng)), failures[0].code if failures else 0
        except DecodeError as error:
            failures.append(error)
            digest = hashlib.sha256(f"{seed}/{position}/{attempt}".encode()).digest()
            row = int.from_bytes(digest[:8], "little") % len(source)
    raise UserError(f"a video and {ATTEMPTS} substitutes cannot be read: {'; '.join(str(f) for f in failures)}")


class Stream:
    """An iterator over host batches and a context manager that ends its workers and threads."""

    def __init__(self, batches: Batches, /, *, workers: int) -> None:
        self._batches = batches
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
        dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
        if workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads a flag of its own in this process, where absl need not run
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1))
        self._iterator = iter(dataset)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return {k: _adopt(v) for k, v in next(self._iterator).items()}

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops threads and workers and releases their shared memory."""
        self._iterator.close()
        self._batches.close()


def _adopt(array: np.ndarray, /) -> np.ndarray:
    """Takes the name off the shared memory behind an array that came from a worker, at no copy.

    The mapping lives as long as the array; without a name nothing stays behind, however this process ends. Grain would
    do it when the array is collected, in a thread that an exiting process no longer runs.
    """
    memory = getattr(array, "shm", None)
    if memory is not None:
        memory.unlink()
        array._unlink_on_del = False
    return array


def stream(source: Source, /, *, batch_size: int, seed: int, start: int = 0, host: int = 0, hosts: int = 1, workers: int = 0,
           threads: int = 2) -> Stream:
    """Endless host batches of the shuffled stream from position `start` (decoded clips drawn before) on.

    `batch_size` counts decoded clips of the global batch; arrays have (batch_size / hosts) * repeats rows in the order
    v0s0, v0s1, ..., v1s0, ... Each batch holds the source's fields plus `key` u32 [n 2] (position mod 2^32, copy), `row`
    i32 [n] (the row the position asked for), `valid` bool [n] (True) and `fault` i32 [n] (0, or 1 + the stage in
    decode.STAGES at which that row failed and a substitute was read). `workers` processes (0: this one) decode with
    `threads` threads each. Memory: AHEAD host batches a process, two more a worker for the way here, and the one handed
    out: 2 + 1 or 4 * workers + 1 host batches in all. Raises UserError where the hosts do not divide the batch.
    """
    _check(batch_size=batch_size, host=host, hosts=hosts, workers=workers, threads=threads)
    rows = Shuffled(len(source), seed)
    return Stream(Batches(source, rows, seed, start, batch_size, host, hosts, threads), workers=workers)


def sweep(source: Source, /, *, batch_size: int, host: int = 0, hosts: int = 1, seed: int = 0, workers: int = 0, threads: int = 2) -> Stream:
    """One pass over all rows in order: the same number of batches on every host, the last padded by rows with `valid` False.

    Batches are those of `stream` with key (row, copy). A row that cannot be read is replaced and marked in `fault` as
    there, and stays `valid`. Padding repeats the last example of the host's part.
    """
    _check(batch_size=batch_size, host=host, hosts=hosts, workers=workers, threads=threads)
    length = -(-len(source) // batch_size)
    batches = Batches(source, range(len(source)), seed, 0, batch_size, host, hosts, threads, length=length, end=len(source))
    return Stream(batches, workers=min(workers, length))


def _check(*, batch_size: int, host: int, hosts: int, workers: int, threads: int) -> None:
    for name, value, least in (("batch_size", batch_size, 1), ("hosts", hosts, 1), ("workers", workers, 0), ("threads", threads, 1)):
        if value < least:
            raise UserError(f"{name} is {value}; allowed are {least} and more")
    if not 0 <= host < hosts:
        raise UserError(f"host {host}; allowed are 0 to {hosts - 1}")
    if batch_size % hosts:
        raise UserError(f"a batch of {batch_size} decoded clips cannot be split over {hosts} hosts; allowed are multiples of {hosts}")
