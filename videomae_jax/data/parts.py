"""Part maps that travel with the crops of their video."""

import dataclasses
import pathlib
import zipfile
from typing import Any

import numpy as np

from videomae_jax.data import clips, columns, decode, framing, remote, sources
from videomae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PartClips(sources.VideoClips):
    """Clips with part maps: `video` and `label` of VideoClips, bit for bit, and `parts` u8 [K T size size] under the same crops.

    `parts` names the index column with the file of a video's maps, relative to the index: an .npz with an array called
    `array` ("objects" = the instances of moving shapes) or an .npy, u8 [frames h w] in the orientation of the displayed
    picture. Maps are cut and resized by the nearest value.
    """

    parts: str = "truth"
    array: str = "parts"

    @property
    def fields(self) -> dict[str, sources.Field]:
        return super().fields | {"parts": sources.Field((self.frames, self.size, self.size), "uint8", "labels")}

    @property
    def outside(self) -> dict[str, str]:
        """Whose maps these are: {"parts": "oracle"}, exact truth, for the column that `synthesize` writes, else {"parts": "real"}, a parser's."""
        return {"parts": "oracle" if self.parts == "truth" else "real"}

    def beside(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`parts` of the frames and under the windows that the clip draws."""
        record = self.record(row)
        info = columns.info(record)
        ids = clips.at(self.sampling, fps=info.fps, pts=info.pts, time_base=info.time_base).ids(info.frames, clip=self.frames, rng=rng)
        maps = self.maps(record, ids, frames=info.frames)
        shown = [framing.window(self.crop, width=info.width, height=info.height, size=self.size, rng=rng) for _ in range(self.repeats)]
        return {"parts": np.stack([w.nearest(maps, frame=(info.height, info.width), size=self.size) for w in shown])}

    def maps(self, record: dict[str, Any], ids: np.ndarray, /, *, frames: int) -> np.ndarray:
        """u8 [len(ids) h w] of a row of the index. Raises DecodeError for a missing or damaged file, UserError for a missing column and an address."""
        if self.parts not in record:
            raise UserError(f"index {self.index} has no column {self.parts!r} with part maps; it has {', '.join(record)}")
        path = self._opened.home / remote.local(record[self.parts] or "", what="part maps")
        try:
            if path.suffix == ".npy":
                return _stored(path, ids, frames=frames)
            loaded = np.load(path)
            maps = loaded if isinstance(loaded, np.ndarray) else loaded[self.array]
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zipfile.zlib.error) as error:
            raise decode.DecodeError(str(path), decode.stage_of(error, "open"), f"no part maps: {error}") from error
        _check(path, maps.shape, maps.dtype, frames=frames)
        return maps[ids]


def _stored(path: pathlib.Path, ids: np.ndarray, /, *, frames: int) -> np.ndarray:
    """The maps `ids` of an .npy file, of a long video those alone. They are read, not mapped: an error under a mapping would end the process by a signal."""
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file)
        _check(path, shape, dtype, frames=frames)
        if fortran:
            return np.load(path)[ids]
        begin, maps = file.tell(), np.empty((len(ids), *shape[1:]), np.uint8)
        for number, one in zip(ids.tolist(), maps, strict=True):
            file.seek(begin + number * one.size)
            if file.readinto(one) < one.size:
                raise decode.DecodeError(str(path), "short", f"the file ends within the part map of frame {number}")
        return maps


def _header(file: Any, /) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether the last axis is the slowest, type) of an open .npy file, which is then at its first value. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    return np.lib.format.read_array_header_1_0(file) if version == (1, 0) else np.lib.format.read_array_header_2_0(file)


def _check(path: pathlib.Path, shape: tuple[int, ...], dtype: np.dtype, /, *, frames: int) -> None:
    """Raises DecodeError for what are no part maps of `frames` frames."""
    if dtype != np.uint8 or len(shape) != 3 or shape[0] < frames:
        raise decode.DecodeError(str(path), "short", f"part maps {dtype} {list(shape)} for {frames} frames; needed is u8 [frames h w]")
