"""The step-addressed stream: every global batch is a pure function of (seed, position).

Position p of the stream reads row permutation(seed, epoch)[p] with a generator keyed by (seed, p). Each host takes a
contiguous block of every global batch. So batches, crops and keys are identical for any number of hosts, workers and
threads, and a run resumes from its position alone, without iterator state.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from videomae_jax.data.decode import DecodeError
from videomae_jax.data.sources import Source
from videomae_jax.errors import UserError

ATTEMPTS = 4  # substitutes tried for an unreadable example


@dataclasses.dataclass(frozen=True)
class Block:
    """Positions of one host: element i of host h lies at start + (i // b) * batch + h * b + i % b, b = batch / hosts."""

    start: int
    batch: int
    host: int
    hosts: int

    def __len__(self) -> int:
        return 2**62  # endless; grain wants a length

    def __getitem__(self, i: int) -> int:
        each = self.batch // self.hosts
        return self.start + (int(i) // each) * self.batch + self.host * each + int(i) % each


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the example of a position: a pickle of this travels to the workers."""

    source: Source
    seed: int
    rows: Any  # position -> row

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        row = int(self.rows[position])
        rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
        example, fault = self.attempt(row, position=position, rng=rng)
        k = self.source.repeats
        key = np.stack([np.full(k, position % 2**32), np.arange(k)], -1).astype(np.uint32)
        constant = {"row": np.full(k, row, np.int32), "valid": np.ones(k, bool), "fault": np.full(k, fault, np.int32)}
        return {**example, "key": key, **constant}

    def attempt(self, row: int, /, *, position: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], int]:
        """The example of `row`, or of a substitute that depends on (seed, position, attempt) only, and the fault code."""
        failures: list[DecodeError] = []
        for attempt in range(ATTEMPTS + 1):
            try:
                return self.source.read(row, rng=rng), failures[0].code if failures else 0
            except DecodeError as error:
                failures.append(error)
                digest = hashlib.sha256(f"{self.seed}/{position}/{attempt}".encode()).digest()
                row = int.from_bytes(digest[:8], "little") % len(self.source)
                rng = np.random.Generator(np.random.Philox(key=[self.seed, position]))
        raise UserError(f"{len(failures)} videos in a row cannot be read: {'; '.join(str(f) for f in failures)}")


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Row of a position: each epoch is its own permutation of the rows."""

    length: int
    seed: int

    def __getitem__(self, position: int) -> int:
        return _permutation(self.length, self.seed)[int(position)]


_ORDERS: dict[tuple[int, int], Any] = {}


def _permutation(length: int, seed: int, /) -> Any:
    """Grain's reseeded shuffle as random access; kept per process, because building it costs more than reading it."""
    if (length, seed) not in _ORDERS:
        _ORDERS[length, seed] = grain.MapDataset.range(length).seed(seed % 2**32).shuffle().repeat(None)
    return _ORDERS[length, seed]


@dataclasses.dataclass(frozen=True)
class Ordered:
    """Row of a position in one pass; positions past the end give row -1 (padding)."""

    length: int

    def __getitem__(self, position: int) -> int:
        return int(position) if position < self.length else -1


@dataclasses.dataclass(frozen=True)
class SweepReader:
    """Like Reader for one ordered pass: padding repeats row 0 with `valid` False; keys are (row, copy)."""

    reader: Reader

    def __call__(self, position: int) -> dict[str, np.ndarray]:
        if self.reader.rows[position] >= 0:
            return self.reader(position)
        example = self.reader(0)
        return {**example, "valid": np.zeros_like(example["valid"])}


def collate(examples: list[dict[str, np.ndarray]], /) -> dict[str, np.ndarray]:
    """[K ...] examples -> one batch [n K ...] in the order v0s0, v0s1, ..., v1s0, ..."""
    return {k: np.concatenate([e[k] for e in examples]) for k in examples[0]}


class Stream:
    """An iterator over host batches; a context manager that stops the workers."""

    def __init__(self, dataset: Any, /, *, batches: int | None = None) -> None:
        self._iterator, self._left = iter(dataset), batches

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._left == 0:
            raise StopIteration
        self._left = None if self._left is None else self._left - 1
        return next(self._iterator)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops threads and workers and releases their shared memory."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()


def _block(batch_size: int, host: int, hosts: int, start: int, /) -> Block:
    if batch_size % hosts:
        raise UserError(f"a batch of {batch_size} decoded clips cannot be split over {hosts} hosts; allowed are multiples of {hosts}")
    return Block(start, batch_size, host, hosts)


def _dataset(positions: Block, read: Any, /, *, workers: int, threads: int) -> Any:
    """Host batches; slicing and batching happen before the workers are split off, which keeps the order."""
    each = positions.batch // positions.hosts
    dataset = grain.MapDataset.source(positions).map(read).batch(each, batch_fn=collate)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1))
    dataset = dataset.to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads a flag of its own in the parent
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1))
    return dataset


def stream(source: Source, /, *, batch_size: int, seed: int, start: int = 0, host: int = 0, hosts: int = 1, workers: int = 0,
           threads: int = 2) -> Stream:
    """Endless host batches of the shuffled stream from position `start` on.

    `batch_size` counts decoded clips of the global batch; arrays have (batch_size / hosts) * repeats rows. Each batch
    holds the source's fields plus `key` u32 [n 2] (position, copy), `row` i32 [n] (the row the position asked for),
    `valid` bool [n] and `fault` i32 [n] (0, or 1 + the stage at which that row failed and a substitute was read). At most
    max(1, workers) * (threads + 2) batches are held. Raises UserError when the hosts do not divide the batch.
    """
    reader = Reader(source, seed, Shuffled(len(source), seed))
    return Stream(_dataset(_block(batch_size, host, hosts, start), reader, workers=workers, threads=threads))


def sweep(source: Source, /, *, batch_size: int, host: int = 0, hosts: int = 1, seed: int = 0, workers: int = 0, threads: int = 2) -> Stream:
    """One ordered pass over all rows, the same number of batches on every host, the last one padded with `valid` False."""
    reader = SweepReader(Reader(source, seed, Ordered(len(source))))
    batches = -(-len(source) // batch_size)
    return Stream(_dataset(_block(batch_size, host, hosts, 0), reader, workers=workers, threads=threads), batches=batches)
