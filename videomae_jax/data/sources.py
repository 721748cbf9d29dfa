"""Sources: random access to examples, each read with its own generator."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from videomae_jax.data import clips, decode, index, transforms
from videomae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Field:
    """Shape without the batch axis, dtype and kind (image | labels | flow | boxes | sequence | static) of a batch key."""

    shape: tuple[int, ...]
    dtype: str
    kind: str


class Source(Protocol):
    """Random access to examples; instances are small when pickled and hold no open files."""

    repeats: int  # copies made from one decode

    @property
    def fields(self) -> Mapping[str, Field]:
        """Keys of an example."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the label is the place in this tuple, -1 where unknown."""

    def __len__(self) -> int: ...

    def name(self, row: int, /) -> str:
        """The example's name."""

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Every key with a leading axis of `repeats` copies. Raises DecodeError."""


@functools.lru_cache(maxsize=32)
def _rows(path: str, stamp: int, split: str, limit: int, /) -> tuple[Any, np.ndarray]:
    """The mapped table of an index and the numbers of its readable rows of a split; once per process and file version."""
    table = index.load(path)
    status, splits = table.column("status").to_numpy(zero_copy_only=False), table.column("split").to_numpy(zero_copy_only=False)
    rows = np.flatnonzero((status == "ok") & ((splits == split) | (split == "all")))
    if not len(rows):
        known = sorted(set(splits.tolist()))
        raise UserError(f"index {path} has no readable video in split {split!r}; its splits are {', '.join(known)} ({len(status)} videos)")
    return table, rows[:limit] if limit else rows


@functools.lru_cache(maxsize=32)
def _classes(path: str, stamp: int, column: str, /) -> tuple[str, ...]:
    """Sorted class names of a column over all splits."""
    table = index.load(path)
    if column not in table.schema.names:
        raise UserError(f"index {path} has no column {column!r}; it has {', '.join(table.schema.names)}")
    return tuple(sorted({v for v in table.column(column).unique().to_pylist() if v is not None}))


@dataclasses.dataclass(frozen=True)
class VideoClips:
    """Clips of the videos of an index.

    `label` names the index column that becomes batch["label"] ("" = the column `label`); `split` is train, val, test or
    all; `limit` uses only the first videos; `repeats` crops are cut from one decode (repeated augmentation: they share
    the frames and differ in crop and mask).
    """

    index: str
    split: str = "train"
    label: str = ""
    frames: int = 16
    size: int = 224
    repeats: int = 1
    limit: int = 0
    sampling: Any = clips.DenseRandom()
    crop: Any = transforms.MultiScaleCrop()

    @property
    def fields(self) -> dict[str, Field]:
        return {"video": Field((self.frames, self.size, self.size, 3), "uint8", "image"), "label": Field((), "int32", "static")}

    @property
    def _stamp(self) -> int:
        path = pathlib.Path(self.index)
        return path.stat().st_mtime_ns if path.is_file() else 0

    @property
    def classes(self) -> tuple[str, ...]:
        return _classes(self.index, self._stamp, self.label or "label")

    def __len__(self) -> int:
        return len(_rows(self.index, self._stamp, self.split, self.limit)[1])

    def record(self, row: int, /) -> dict[str, Any]:
        """Columns of a row of this split."""
        table, rows = _rows(self.index, self._stamp, self.split, self.limit)
        return table.slice(int(rows[row]), 1).to_pylist()[0]

    def name(self, row: int, /) -> str:
        return self.record(row)["name"]

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        record = self.record(row)
        info = index.info_of(record)
        path = str(pathlib.Path(self.index).parent / record["path"])
        ids = self.sampling.ids(info.frames, clip=self.frames, rng=rng)
        video = decode.decode(path, ids=ids, info=info)
        crops = np.stack([self.crop(video, size=self.size, rng=rng) for _ in range(self.repeats)])
        value = record[self.label or "label"]
        label = -1 if value is None else self.classes.index(value)
        return {"video": crops, "label": np.full(self.repeats, label, np.int32)}


@dataclasses.dataclass(frozen=True)
class NoiseClips:
    """Seeded noise without input cost, for benchmarks, dry runs and recipe cards; `length` videos."""

    frames: int = 16
    size: int = 224
    length: int = 1024
    repeats: int = 1
    split: str = "train"
    limit: int = 0
    label: str = ""

    @property
    def fields(self) -> dict[str, Field]:
        return {"video": Field((self.frames, self.size, self.size, 3), "uint8", "image"), "label": Field((), "int32", "static")}

    @property
    def classes(self) -> tuple[str, ...]:
        return ("even", "odd")

    def __len__(self) -> int:
        return min(self.length, self.limit) if self.limit else self.length

    def name(self, row: int, /) -> str:
        return f"noise {row}"

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        video = _noise(self.frames, self.size, row % 4, self.repeats)
        return {"video": video, "label": np.full(self.repeats, row % 2, np.int32)}


@functools.lru_cache(maxsize=8)
def _noise(frames: int, size: int, row: int, repeats: int, /) -> np.ndarray:
    rng = np.random.default_rng(row)
    return rng.integers(0, 256, (repeats, frames, size, size, 3), np.uint8)
