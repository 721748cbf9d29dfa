"""A video as columns of an index and back; checked where they are read, because anybody may have edited an index."""

import itertools
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa

from videomae_jax.data import decode

TIME = 2**62  # ticks; what FFmpeg computes with them stays within 64 bits
RANGES = {"width": (1, 2**15), "height": (1, 2**15), "rotation": (0, 270), "frames": (1, 2**24), "fps_num": (1, TIME), "fps_den": (1, TIME),
          "time_base_num": (1, TIME), "time_base_den": (1, TIME), "pts_start": (-TIME, TIME), "pts_step": (-TIME, TIME)}
TIMES = ("pts", "keys")  # lists of ticks
BATCH = 256  # rows that are held as objects of Python at once
TURNS = (0, 90, 180, 270)  # degrees that a rotation can be


def of(info: decode.VideoInfo, /) -> dict[str, Any]:
    """Columns of a readable video; `info` reads them. Times that are an arithmetic progression are stored as `pts_start` and `pts_step`.

    `pts` and `keys` are arrays i64, for a number of Python takes five times as much memory.
    """
    steps = np.diff(info.pts)
    regular = len(steps) == 0 or bool((steps == steps[0]).all())
    return {"status": "ok", "codec": info.codec, "width": info.width, "height": info.height, "rotation": info.rotation,
            "frames": info.frames, "fps_num": info.fps.numerator, "fps_den": info.fps.denominator, "duration": info.duration,
            "time_base_num": info.time_base.numerator, "time_base_den": info.time_base.denominator, "pts_start": int(info.pts[0]),
            "pts_step": int(steps[0]) if regular and len(steps) else 0, "pts": None if regular else info.pts,
            "keys": info.keys.copy()}  # a part of `pts` would keep all of it


def table(rows: Iterable[dict[str, Any]], /, *, schema: pa.Schema) -> pa.Table:
    """A table of rows, which are taken one after another and not kept."""
    rows, batches = iter(rows), []
    while batch := list(itertools.islice(rows, BATCH)):
        batches.append(pa.RecordBatch.from_pylist(batch, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def row(table: pa.Table, number: int, /) -> dict[str, Any]:
    """A row of an index, whose lists are arrays where they lie: a long video has hundreds of thousands of times, and every read asks for its row.

    A list without some of its numbers is an array of floats.
    """
    found = {name: column[number] for name, column in zip(table.schema.names, table.columns, strict=True)}
    return {k: v.values.to_numpy(zero_copy_only=False) if k in TIMES and v.is_valid else v.as_py() for k, v in found.items()}


def info(row: dict[str, Any], /) -> decode.VideoInfo:
    """What `of` stored. Raises DecodeError of the stage "index" for a row that describes no video."""
    wrong = {k: row[k] for k, (low, high) in RANGES.items() if not isinstance(row[k], int) or not low <= row[k] <= high}
    if not wrong and row["rotation"] not in TURNS:
        wrong["rotation"] = row["rotation"]
    if not wrong and abs(row["pts_start"]) + abs(row["pts_step"]) * row["frames"] > TIME:
        wrong |= {k: row[k] for k in ("pts_start", "pts_step")}
    pts, keys = (None if row[k] is None else np.asarray(row[k]) for k in TIMES)
    if pts is not None and not wrong and (len(pts) != row["frames"] or not _whole(pts)):
        wrong["pts"] = f"{len(pts)} times of {row['frames']} frames"
    if keys is None or not _whole(keys):
        wrong["keys"] = None if keys is None else keys[:10].tolist()
    if wrong:
        raise decode.DecodeError(_name(row), "index", f"the index says {', '.join(f'{k} {str(v)[:80]}' for k, v in wrong.items())}; run the index command again")
    times = row["pts_start"] + row["pts_step"] * np.arange(row["frames"], dtype=np.int64) if pts is None else pts
    return decode.VideoInfo(codec=row["codec"], width=row["width"], height=row["height"], rotation=row["rotation"],
                            fps=Fraction(row["fps_num"], row["fps_den"]), time_base=Fraction(row["time_base_num"], row["time_base_den"]),
                            pts=times.astype(np.int64, copy=False), keys=keys.astype(np.int64, copy=False))


def path(row: dict[str, Any], /) -> str:
    """Where the index says that a video lies. Raises DecodeError of the stage "index" for what can be no path."""
    found = row["path"]
    if not found or "\0" in found:
        raise decode.DecodeError(_name(row), "index", f"the index says path {found!r}; run the index command again")
    return found


def number(row: dict[str, Any], column: str, /) -> int:
    """A whole number of 0 and more in a column of words. Raises DecodeError of the stage "index"."""
    found = row[column] or ""
    if not (found.isascii() and found.isdigit()):
        raise decode.DecodeError(_name(row), "index", f"the index says {column} {found[:80]!r}; run the command again that wrote it")
    return int(found)


def _whole(values: np.ndarray, /) -> bool:
    return not values.size or (values.dtype.kind == "i" and bool(-TIME <= values.min() and values.max() <= TIME))


def _name(row: dict[str, Any], /) -> str:
    return row.get("name") or "a row without a name"
