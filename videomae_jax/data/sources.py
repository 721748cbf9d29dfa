"""Sources: random access to examples, each read with its own generator."""

import copy
import dataclasses
import functools
import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from videomae_jax.data import clips, columns, decode, index, remote, transforms
from videomae_jax.errors import UserError

KINDS = ("image", "labels", "flow", "boxes", "sequence", "static")
SLACK = 2  # seconds that a file system may round times to
CROPS = ("auto", "device", "host")


@dataclasses.dataclass(frozen=True)
class Field:
    """Shape without the batch axis, dtype and kind (one of KINDS) of a batch key.

    One that is `shared` by all copies of a decode has [n ...] in a batch of n decodes, not [n * K ...].
    """

    shape: tuple[int, ...]
    dtype: str
    kind: str
    shared: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"field kind {self.kind!r}; allowed are {', '.join(KINDS)}")


class Source(Protocol):
    """Random access to examples; an instance holds no open files and is small when pickled, for it travels to workers."""

    repeats: int  # copies K made from one decode

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
        """Every key with a leading axis of `repeats` copies, 1 where they share it; draws only from `rng`. Raises DecodeError."""


def _video_fields(frames: int, size: int, /) -> dict[str, Field]:
    return {"video": Field((frames, size, size, 3), "uint8", "image"), "label": Field((), "int32", "static")}


def spread(rows: np.ndarray, /, *, limit: int) -> np.ndarray:
    """`limit` of the rows at equal distances (0 = all): the first ones would all be of the first class folder."""
    return rows if limit in (0, len(rows)) or limit > len(rows) else rows[np.arange(limit) * len(rows) // limit]


def names(source: Any, kind: str, /) -> tuple[str, ...]:
    """The `kind`, "classes" or "attributes", of a source or of the one that it holds; () where it has none of that kind."""
    while not hasattr(source, kind) and hasattr(source, "source"):  # clips that the devices cut
        source = source.source
    return tuple(getattr(source, kind, ()))


def numbered(names: set[str], /) -> tuple[str, ...]:
    """Class names in the order of their numbers: by value where all are integers, else sorted."""
    numeric = all(re.fullmatch("-?[0-9]+", v) for v in names)
    return tuple(sorted(names, key=(lambda v: (int(v), v)) if numeric else None))


def classes(table: pa.Table, /, *, column: str = "label") -> tuple[str, ...]:
    """Class names among all labels of a column of an index, in the order of `numbered`; null and "" are none.

    Nor is -1 in the column `label` where all others are whole numbers of 0 and more, for official lists write so; it is a class elsewhere,
    and in a merged index, where what was none is null.
    """
    names = set(table.column(column).unique().to_pylist()) - {None, ""}
    listed = names - {index.UNKNOWN}
    official = column == "label" and index.PART not in table.schema.names and all(re.fullmatch("[0-9]+", v) for v in listed)
    return numbered(listed if official else names)


def fresh(path: pathlib.Path, record: dict[str, Any], /) -> None:
    """Compares a file with what was indexed, at the price of one `stat`; a missing file is left to who opens it.

    Raises DecodeError where its size is another: frame numbers and times of the index would be those of another video. A
    later time of change alone is what copying does, so it only warns, once a folder and process.
    """
    try:
        found = os.stat(path)
    except OSError:
        return
    if record["size"] is not None and found.st_size != record["size"]:
        raise exchanged(os.fspath(path), found.st_size, record)
    if record["mtime"] is not None and abs(int(found.st_mtime) - record["mtime"]) > SLACK:
        _warn(os.fspath(path.parent))


def exchanged(path: str, size: int, record: dict[str, Any], /) -> decode.DecodeError:
    """The error for a file of another size than was indexed."""
    return decode.DecodeError(path, "open", f"exchanged since it was indexed: {size} bytes, {record['size']} then; run index again")


@functools.cache
def _warn(folder: str, /) -> None:
    warnings.warn(f"files in {folder} were written after they were indexed; if videos were exchanged, run the index command again", stacklevel=3)


class _Opened(NamedTuple):
    """An index as one process sees it."""

    table: Any
    home: pathlib.Path  # what the paths of videos are relative to
    rows: np.ndarray
    column: str
    classes: tuple[str, ...]
    numbers: dict[str, int]


class Clip(NamedTuple):
    """What a read decodes: frames `ids` i64 [T] of a video; and its label."""

    video: decode.Video
    ids: np.ndarray
    info: decode.VideoInfo
    label: int


def check_numbers(source: Any, /) -> None:
    """Raises UserError for a count or a limit of a source that is out of range."""
    for field, least in (("frames", 1), ("size", 1), ("repeats", 1), ("limit", 0)):
        if getattr(source, field) < least:
            raise UserError(f"{field} is {getattr(source, field)}; allowed are {least} and more")
    if not source.timeout > 0 or not 0 <= source.max_bad_fraction <= 1:
        raise UserError(f"timeout is {source.timeout}, max_bad_fraction {source.max_bad_fraction}; allowed are seconds above 0 and shares from 0 to 1")


def check_drawn(source: Any, /) -> None:
    """Raises UserError where a source knows that it does not hold the frames that its sampling draws, as packed clips do."""
    getattr(source, "check_sampling", lambda: None)()


@dataclasses.dataclass(frozen=True)
class VideoClips:
    """Clips of the readable videos of an index: `video` u8 [K T size size 3] and `label` i32 [K].

    `split` is train, val, test or all. `label` names the index column that becomes batch["label"] ("" = the column
    `label`); classes are numbered over all splits in sorted order (by value where all are integers), -1 where a video has
    none (`sources.classes` says when -1 is none). `limit` takes that many videos at equal distances. `repeats` crops are cut from one decode (repeated
    augmentation, VideoMAE V2: they share the frames and differ in crop and mask). `crops` says where a training run cuts
    them: on the "host", as `read` does, on the "device", or "auto"; `canvas` (height, width) is what then crosses to the
    device, 0 = derived (data.planes). A file whose size is not the one that the index holds is not read, and one that takes
    longer than `timeout` seconds is given up; training ends when more than `max_bad_fraction` of the clips cannot be read. Videos at
    addresses are kept in the folder `stage` of each host, for the next pass ("" = fetched each time; `remote.staged`).
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
    crops: str = "auto"
    canvas: tuple[int, int] = (0, 0)
    timeout: float = 30.0  # what a watchdog of 60 s leaves room for
    max_bad_fraction: float = 0.01
    stage: str = ""

    def __post_init__(self) -> None:
        if self.crops not in CROPS:
            raise UserError(f"crops {self.crops!r}; allowed are {', '.join(CROPS)}")
        if not isinstance(self.stage, str) or remote.is_remote(self.stage) or self.stage.startswith("~"):
            raise UserError(f"stage {self.stage!r}; allowed is the path of a folder on a disk of the host")
        check_numbers(self)

    def __getstate__(self) -> dict[str, Any]:
        # The mapped table stays behind: every process maps the file itself.
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @functools.cached_property
    def _opened(self) -> _Opened:
        table = index.load(self.index)
        self._check(table)
        column = self.label or "label"
        if column not in table.schema.names:
            raise UserError(f"index {self.index} has no column {column!r}; it has {', '.join(table.schema.names)}")
        if not pa.types.is_string(table.schema.field(column).type):
            texts = ", ".join(f.name for f in table.schema if pa.types.is_string(f.type))
            raise UserError(f"column {column!r} of index {self.index} is {table.schema.field(column).type}; allowed as labels are {texts}")
        names = classes(table, column=column)
        rows = spread(index.readable(table, split=self.split, path=self.index), limit=self.limit)
        return _Opened(table, pathlib.Path(self.index).resolve().parent, rows, column, names, {v: i for i, v in enumerate(names)})

    def _check(self, table: Any, /) -> None:
        """Raises UserError for an index of something else than video files."""
        if table.column("template").null_count < table.num_rows or table.column("stride").null_count < table.num_rows:
            raise UserError(f"index {self.index} lists folders of pictures; read it with --config.data.__symbol__=videomae_jax.data.frame_folders.FrameClips")
        if index.PACKED in table.schema.names:
            raise UserError(f"index {self.index} is of packed clips; read it with --config.data.__symbol__=videomae_jax.data.packed.PackedClips")

    @property
    def fields(self) -> dict[str, Field]:
        return _video_fields(self.frames, self.size)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._opened.classes

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the index."""
        return tuple(self._opened.table.schema.names)

    def select(self, *names: str) -> Any:
        """Columns of the rows that this source has, in its order, without those of all other columns: the times of a large index are gigabytes."""
        return self._opened.table.select(names).take(self._opened.rows)

    def __len__(self) -> int:
        return len(self._opened.rows)

    def record(self, row: int, /) -> dict[str, Any]:
        """Columns of the index for a row of this source; times are arrays."""
        return columns.row(self._opened.table, int(self._opened.rows[row]))

    def name(self, row: int, /) -> str:
        return self._opened.table.column("name")[int(self._opened.rows[row])].as_py()

    def clip(self, row: int, /, *, rng: np.random.Generator) -> Clip:
        """What a read of `row` decodes; takes the draws that come before those of the crops."""
        record, info = (record := self.record(row)), columns.info(record)
        ids = clips.of(self.sampling_of(record), info).ids(info.frames, clip=self.frames, rng=rng)
        return Clip(self.locate(record), ids, info, self.label_of(record))

    def sampling_of(self, record: dict[str, Any], /) -> Any:
        """The sampling of an index row."""
        return self.sampling

    def label_of(self, record: dict[str, Any], /) -> int:
        """The class number of an index row."""
        return self._opened.numbers.get(record[self._opened.column], -1)

    def locate(self, record: dict[str, Any], /) -> decode.Video:
        """The file of an index row, or the bytes of an address. Raises DecodeError where it is another one than was indexed."""
        if remote.is_remote(place := columns.path(record)):
            data = remote.staged(place, self.stage, size=record["size"]) if self.stage else remote.read(place)
            if record["size"] not in (None, len(data)):
                raise exchanged(place, len(data), record)
            return data
        path = self._opened.home / place
        fresh(path, record)
        return path

    def decode(self, clip: Clip, /) -> np.ndarray:
        """Frames of a clip, u8 [T H W 3]. Raises DecodeError."""
        return decode.decode(clip.video, clip.ids, info=clip.info, timeout=self.timeout)

    def beside(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Further keys of a read of `row`; `rng` draws what that of the read draws, without changing it. Raises DecodeError."""
        return {}

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        again = copy.deepcopy(rng)
        clip = self.clip(row, rng=rng)
        video = self.decode(clip)
        crops = np.stack([self.crop(video, size=self.size, rng=rng) for _ in range(self.repeats)])
        return {"video": crops, "label": np.full(self.repeats, clip.label, np.int32), **self.beside(row, rng=again)}


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayClips:
    """Clips held in memory: `video` u8 [N T H W 3] and `labels` i32 [N]; copies are identical."""

    video: np.ndarray
    labels: np.ndarray
    repeats: int = 1

    @property
    def fields(self) -> dict[str, Field]:
        return {"video": Field(self.video.shape[1:], "uint8", "image"), "label": Field((), "int32", "static")}

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(i) for i in range(int(self.labels.max()) + 1))

    def __len__(self) -> int:
        return len(self.video)

    def name(self, row: int, /) -> str:
        return f"array {row}"

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"video": np.repeat(self.video[row][None], self.repeats, 0), "label": np.full(self.repeats, self.labels[row], np.int32)}


@dataclasses.dataclass(frozen=True)
class NoiseClips:
    """Seeded noise without input cost, for benchmarks, dry runs and recipe cards: `length` videos, four distinct ones."""

    frames: int = 16
    size: int = 224
    length: int = 1024
    repeats: int = 1
    split: str = "train"
    limit: int = 0
    label: str = ""

    @property
    def fields(self) -> dict[str, Field]:
        return _video_fields(self.frames, self.size)

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
    return np.random.default_rng(row).integers(0, 256, (repeats, frames, size, size, 3), np.uint8)
