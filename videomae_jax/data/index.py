"""An index lists the videos of a folder: Parquet for people, a cached Arrow IPC file that loaders map into memory."""

import concurrent.futures
import csv
import hashlib
import multiprocessing
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from videomae_jax.data import decode
from videomae_jax.errors import UserError

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv")
SPLITS = ("train", "val", "test")
DIGEST = b"parquet_sha256"
SCHEMA = pa.schema([
    ("path", pa.string()), ("name", pa.string()), ("label", pa.string()), ("split", pa.string()), ("status", pa.string()),
    ("codec", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("rotation", pa.int32()), ("frames", pa.int32()),
    ("fps_num", pa.int64()), ("fps_den", pa.int64()), ("duration", pa.float64()), ("time_base_num", pa.int64()),
    ("time_base_den", pa.int64()), ("pts_start", pa.int64()), ("pts_step", pa.int64()), ("pts", pa.list_(pa.int64()))])


def find(directory: pathlib.Path, /) -> list[pathlib.Path]:
    """Video files below a folder, sorted by path.

    Raises UserError for a missing folder or one without videos.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder")
    found = sorted(p for p in directory.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise UserError(f"no videos in {directory}; looked for {', '.join(SUFFIXES)}")
    return found


def describe(path: str, /, *, verify: bool = False) -> dict[str, Any]:
    """Columns of one video; `status` is "ok" or "stage: cause". Presentation times are stored as a progression if they are one."""
    try:
        info = decode.probe(path)
        if verify and (count := decode.count(path)) != info.frames:
            raise decode.DecodeError(path, "decode", f"{count} of {info.frames} frames decode")
    except decode.DecodeError as error:
        return {"status": f"{error.stage}: {error.cause}"}
    steps = np.diff(info.pts)
    regular = len(steps) == 0 or bool((steps == steps[0]).all())
    return {"status": "ok", "codec": info.codec, "width": info.width, "height": info.height, "rotation": info.rotation,
            "frames": info.frames, "fps_num": info.fps.numerator, "fps_den": info.fps.denominator, "duration": info.duration,
            "time_base_num": info.time_base.numerator, "time_base_den": info.time_base.denominator, "pts_start": int(info.pts[0]),
            "pts_step": int(steps[0]) if regular and len(steps) else 0, "pts": None if regular else info.pts.tolist()}


def read_labels(path: pathlib.Path, /) -> dict[str, dict[str, str]]:
    """{path: columns} of a csv with the header `path,label[,split][,more]`; paths are relative to the video folder."""
    if not path.is_file():
        raise UserError(f"no label file {path}")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames or "path" not in reader.fieldnames:
            raise UserError(f"{path} has the columns {reader.fieldnames}; a column 'path' is needed")
        rows = {row.pop("path"): row for row in reader}
    for name, row in rows.items():
        if row.get("split", "train") not in SPLITS:
            raise UserError(f"{path}: split {row['split']!r} of {name}; allowed are {', '.join(SPLITS)}")
    return rows


def build(directory: pathlib.Path, /, *, out: pathlib.Path, labels: pathlib.Path | None = None, val_fraction: float = 0.1,
          verify: bool = False, workers: int = 1) -> pa.Table:
    """The index of a folder.

    Labels come from the csv, or else from the sub-folder a video lies in. The split comes from the csv, or else from a hash
    of the relative path, so that it does not move when files are added. Paths are stored relative to the folder of `out`
    when the videos lie below it, so that both can be moved together, and absolute otherwise. Further csv columns are
    carried along as strings.
    """
    files = find(directory)
    given = read_labels(labels) if labels else {}
    names = [p.relative_to(directory).as_posix() for p in files]
    absent = sorted(set(given) - set(names))
    if absent:
        raise UserError(f"{labels} names {len(absent)} files that are not in {directory}, first {absent[0]!r}")
    columns = sorted({key for row in given.values() for key in row} - {"label", "split"})
    home = out.resolve().parent
    rows = []
    for name, path, facts in zip(names, files, scan([str(p) for p in files], verify=verify, workers=workers), strict=True):
        resolved = path.resolve()
        folder = pathlib.PurePosixPath(name).parent.as_posix()
        row = given.get(name, {})
        rows.append({"path": resolved.relative_to(home).as_posix() if resolved.is_relative_to(home) else str(resolved), "name": name,
                     "label": row.get("label") if given else (folder if folder != "." else None),
                     "split": row.get("split") or split_of(name, val_fraction=val_fraction), **facts, **{c: row.get(c) for c in columns}})
    hold_one_out(rows, fixed=any("split" in row for row in given.values()), val_fraction=val_fraction)
    schema = SCHEMA
    for column in columns:
        if column in schema.names:
            raise UserError(f"{labels}: column {column!r} is one that the index fills itself; rename it")
        schema = schema.append(pa.field(column, pa.string()))
    return pa.Table.from_pylist(rows, schema=schema)


def split_of(name: str, /, *, val_fraction: float) -> str:
    """ "train" or "val" by a hash of the name."""
    return "val" if int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32 < val_fraction else "train"


def hold_one_out(rows: list[dict[str, Any]], /, *, fixed: bool, val_fraction: float) -> None:
    """Moves one readable video to "val" when the hash of a small folder leaves that split empty; in place."""
    good = [row for row in rows if row["status"] == "ok"]
    if not fixed and val_fraction > 0 and len(good) > 1 and not any(row["split"] == "val" for row in good):
        min(good, key=lambda row: hashlib.sha256(row["name"].encode()).hexdigest())["split"] = "val"


def scan(paths: list[str], /, *, verify: bool, workers: int) -> Iterable[dict[str, Any]]:
    """`describe` of every path, in order, over `workers` processes."""
    if workers <= 1 or len(paths) < 64:
        return [describe(p, verify=verify) for p in paths]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        return list(pool.map(describe_verified if verify else describe, paths, chunksize=16))


def describe_verified(path: str, /) -> dict[str, Any]:
    """`describe` with every frame decoded."""
    return describe(path, verify=True)


def write(table: pa.Table, out: pathlib.Path, /) -> None:
    """Parquet at `out` and its Arrow cache beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    pq.write_table(table, temporary)
    os.replace(temporary, out)
    cache(out)


def cache(path: pathlib.Path, /) -> pathlib.Path:
    """The Arrow IPC file of an index, written anew when it does not stem from this Parquet file."""
    target, digest = path.with_suffix(".arrow"), hashlib.sha256(path.read_bytes()).hexdigest().encode()
    if target.is_file():
        try:
            with pa.memory_map(str(target)) as file:
                if (pa.ipc.open_file(file).schema.metadata or {}).get(DIGEST) == digest:
                    return target
        except pa.ArrowInvalid:
            pass  # half-written or foreign: written anew below
    table = pq.read_table(path)
    missing = [name for name in SCHEMA.names if name not in table.schema.names]
    if missing:
        raise UserError(f"{path} is a Parquet file but no video index: it lacks the columns {', '.join(missing)}")
    table = table.replace_schema_metadata({DIGEST: digest}).combine_chunks()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    os.replace(temporary, target)
    return target


def load(path: str | pathlib.Path, /) -> pa.Table:
    """The memory-mapped table of an index.

    Raises UserError when the file is missing or is no index.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"no index {path}; make one with: python -m videomae_jax index DIR --out={path}")
    try:
        return pa.ipc.open_file(pa.memory_map(str(cache(path)))).read_all()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is not a Parquet index: {str(error).splitlines()[0]}") from error


def info_of(row: dict[str, Any], /) -> decode.VideoInfo:
    """The VideoInfo that `describe` stored."""
    times = np.asarray(row["pts"], np.int64) if row["pts"] is not None else row["pts_start"] + row["pts_step"] * np.arange(row["frames"], dtype=np.int64)
    return decode.VideoInfo(codec=row["codec"], width=row["width"], height=row["height"], rotation=row["rotation"],
                            fps=decode.Fraction(row["fps_num"], row["fps_den"]),
                            time_base=decode.Fraction(row["time_base_num"], row["time_base_den"]), pts=times)
