"""Clips from a packed folder (data.packing): the interface of an index of video files, at a fraction of its decoding."""

import functools
import json
import os
import pathlib
from fractions import Fraction
from typing import Any

import numpy as np
from array_record.python import array_record_module as array_record

from videomae_jax.data import clips, columns, decode, index, packing, sources
from videomae_jax.errors import UserError

OPEN = 256  # shards that a process keeps open


class PackedClips(sources.VideoClips):
    """VideoClips of the `index.parquet` that `pack` wrote: a read draws a version, a window of the video, then frames of it.

    `sampling` means what it means for the source videos, so a recipe changes its index and this symbol alone: DenseRandom and
    DenseCentre whose stride is the packed one or a multiple, DenseFinetune where every frame was packed (stride 1), PerSecond whose
    rate divides the packed one. A window that holds more frames than a clip is cut at random or at its centre; at the centre it is
    version 0 and the middle window. A video shorter than a window goes on with its last frame, for DenseFinetune too. Raises
    UserError for anything else, because what was not packed cannot be read: views over a whole video are none of a window of it.
    """

    def _check(self, table: Any, /) -> None:
        if index.PACKED not in table.schema.names:
            raise UserError(f"index {self.index} is not of packed clips; make them with: python -m videomae_jax pack {self.index} --out=DIR")

    @functools.cached_property
    def _packing(self) -> tuple[packing.Settings, int, Any]:
        """(settings, versions, which frames of a window make a clip)."""
        path = self._opened.home / packing.MANIFEST
        try:
            found = json.loads(path.read_text())
            settings, versions = packing.Settings(**found["settings"]), int(found["versions"])
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no manifest of a packed folder: {error}") from error
        inside = _inside(self.sampling, settings)
        per, more = (inside.stride, 0) if isinstance(inside, clips.DenseFinetune) else (int(inside.step), 1)  # frames of a window a frame of a clip
        if (need := (self.frames - more) * per + more) > settings.frames:
            raise UserError(f"clips of {self.frames} frames need {need} packed ones, and {self.index} has {settings.frames} a window; allowed are "
                            f"up to {(settings.frames - more) // per + more} frames, or a packing with --frames={need}")
        return settings, versions, inside

    def check_sampling(self) -> None:
        """Raises UserError where the sampling draws frames that were not packed."""
        _ = self._packing

    def clip(self, row: int, /, *, rng: np.random.Generator) -> sources.Clip:
        record, (settings, versions, inside) = self.record(row), self._packing
        drawn = inside.position == "random"
        version = int(rng.integers(versions)) if drawn and versions > 1 else 0
        shard, place = self._opened.home / columns.path(record), columns.number(record, index.PACKED)
        if versions > 1:
            shard = shard.parent.with_name(f"v{version}") / shard.name
        found = fetch(shard, place, name=record["name"])
        video = found[int(rng.integers(len(found))) if drawn and len(found) > 1 else len(found) // 2]
        return sources.Clip(video, inside.ids(settings.frames, clip=self.frames, rng=rng), columns.info(record), self.label_of(record))


def _inside(sampling: Any, settings: packing.Settings, /) -> clips.Spaced | clips.DenseFinetune:
    """The sampling of a window's frames that gives what `sampling` gives of the source's."""
    if isinstance(sampling, (clips.DenseRandom, clips.DenseCentre)) and not settings.rate and sampling.stride % settings.stride == 0:
        return clips.Spaced(Fraction(sampling.stride // settings.stride), "random" if isinstance(sampling, clips.DenseRandom) else "centre")
    if isinstance(sampling, clips.DenseFinetune) and not settings.rate and settings.stride == 1:
        return sampling
    if isinstance(sampling, clips.PerSecond) and settings.rate and settings.rate / sampling.rate == settings.rate // sampling.rate:
        return clips.Spaced(Fraction(int(settings.rate // sampling.rate)), sampling.position)
    unit = f"PerSecond with a rate that divides {settings.rate:g}" if settings.rate else (
        f"DenseRandom and DenseCentre with stride {settings.stride} or a multiple" + ", DenseFinetune" * (settings.stride == 1))
    raise UserError(f"sampling {sampling} cannot be drawn from this packing; allowed are {unit}")


@functools.lru_cache(maxsize=OPEN)
def _reader(path: str, /) -> Any:
    """An open shard of this process; one that is dropped from the cache closes when its last read is done.

    Raises OSError for a file that cannot be read, and EOFError for one without a record: the reader itself takes the first for the second.
    """
    with open(path, "rb") as file:
        file.read(1)
    for _ in range(2):
        reader = array_record.ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=2**15)
        if reader.num_records():
            return reader
    raise EOFError("the shard holds 0 records")


def record(shard: pathlib.Path, place: int, /, *, name: str) -> bytes:
    """A record of an ArrayRecord file. Raises DecodeError for a missing, cut or damaged file, each record of which has a checksum."""
    called = f"{shard}[{place}] {name}"
    try:
        reader = _reader(os.fspath(shard))
        if place >= reader.num_records():
            raise EOFError(f"the shard holds {reader.num_records()} records")
        return reader.read([place])[0]
    except EOFError as error:
        raise decode.DecodeError(called, "short", str(error)) from error
    except OSError as error:
        raise decode.DecodeError(called, decode.stage_of(error, "open"), str(error)) from error
    except RuntimeError as error:  # of the reader, which tells of an error of the file system by its text alone
        cause = str(error).splitlines()[0]
        passing = any(os.strerror(number) in cause for number in decode.TRANSIENT)
        raise decode.DecodeError(called, "io" if passing else "open", cause) from error


def fetch(shard: pathlib.Path, place: int, /, *, name: str) -> list[bytes]:
    """The windows of a packed record. Raises DecodeError."""
    data = record(shard, place, name=name)
    try:
        found = packing.windows(data) if data.startswith(packing.MAGIC) else list(features(data)["clips"].bytes_list.value)
    except ValueError as error:
        raise decode.DecodeError(f"{shard}[{place}] {name}", "open", str(error)) from error
    if not found:
        raise decode.DecodeError(f"{shard}[{place}] {name}", "open", "this video could not be packed")
    return found


def features(data: bytes, /) -> Any:
    """Features of an example of `tfds_packing`. Raises ValueError for anything else."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2  # half a second, for those who need it

    try:
        found = tf_example_pb2.Example.FromString(data).features.feature
    except DecodeError as error:
        raise ValueError(f"a record begins with {data[:4]!r}, not {packing.MAGIC!r}, and is no example of a data set: {error}") from error
    if "clips" not in found:
        raise ValueError(f"a record begins with {data[:4]!r}, not {packing.MAGIC!r}, and is no example with packed clips")
    return found
