"""An index lists the videos of a folder: Parquet for people, a cached Arrow IPC file that loaders map into memory."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import os
import pathlib
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from videomae_jax.data import columns, deadline, decode, folders, pictures, remote, splits
from videomae_jax.data.patience import Patience
from videomae_jax.data.workers import processes
from videomae_jax.errors import UserError, unreadable

SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv")
DIGEST = b"parquet_sha256"
PATIENCE = 10.0  # seconds between two words on the progress of a scan
VERIFY = 3600.0  # seconds that decoding every frame of a video may take
PARALLEL = 64  # videos below which starting processes takes longer than scanning
SCHEMA = pa.schema([
    ("path", pa.string()), ("name", pa.string()), ("label", pa.string()), ("split", pa.string()), ("status", pa.string()),
    ("codec", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("rotation", pa.int32()), ("frames", pa.int32()),
    ("fps_num", pa.int64()), ("fps_den", pa.int64()), ("duration", pa.float64()), ("time_base_num", pa.int64()),
    ("time_base_den", pa.int64()), ("pts_start", pa.int64()), ("pts_step", pa.int64()), ("pts", pa.large_list(pa.int64())),
    ("keys", pa.large_list(pa.int64())), ("size", pa.int64()), ("mtime", pa.int64()), ("template", pa.string()), ("stride", pa.int32())])
# Columns that may be missing or empty: bytes and seconds since 1970 of the file (not known), how the pictures of a folder are
# called (the path is a video file), and a stride that goes before that of the sampling (none).
OPTIONAL = ("size", "mtime", "template", "stride")
UNKNOWN = "-1"  # the label that official lists give a video without one
PACKED = "packed"  # column of an index of packed clips
PART = "part"  # column of a merged index: which index a row comes from
LISTED = ("path", "name", "label", "split")  # columns that do not come from the file


def find(directory: pathlib.Path, /, *, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """Videos below a folder as paths relative to it, sorted; links are followed, hidden files and folders passed over.

    Raises UserError for a missing folder, one without videos, or a name that is no text.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder")
    names = []
    for folder, _, files in folders.walk(directory):
        found = [folder / name for name in files if pathlib.Path(name).suffix.lower() in suffixes]
        names += [path.relative_to(directory).as_posix() for path in found if path.is_file()]
    if not names:
        raise UserError(f"no videos in {directory}; looked for {', '.join(suffixes)}")
    for name in names:
        if not name.isprintable() and any("\ud800" <= c <= "\udfff" for c in name):
            raise UserError(f"the file name {name!r} in {directory} is not UTF-8; rename it")
    return sorted(names)


def describe(video: decode.Video, /, *, verify: bool = False, patience: Patience | None = None) -> dict[str, Any]:
    """Columns of one readable video; `verify` decodes every frame. Bytes have no `size` and `mtime`. Raises DecodeError."""
    info = decode.probe(video, timeout=patience)
    if verify and (count := decode.count(video)) != info.frames:
        raise decode.DecodeError(decode.name(video), "decode", f"{count} of {info.frames} frames can be decoded")
    return columns.of(info) | ({} if isinstance(video, bytes) else written(video))


def written(path: str, /) -> dict[str, Any]:
    """Size and time of the last change of a file. Raises DecodeError."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise decode.DecodeError(os.fspath(path), decode.stage_of(error, "open"), error.strerror or str(error)) from error
    return {"size": found.st_size, "mtime": int(found.st_mtime)}


@dataclasses.dataclass(frozen=True)
class Job:
    """A video to describe: a file, an address, or with a `template` a folder of pictures (`pictures.Pictures`), `frames` of them
    from number `start` (-1 = those there are) at `fps`.
    """

    path: str
    verify: bool = False
    template: str | None = None
    start: int = 0
    frames: int = -1
    fps: Fraction = Fraction(25)


def describe_job(job: Job, /) -> dict[str, Any]:
    """`describe` for whatever a job is; `status` is "ok", or "stage: cause" of what cannot be read, after further tries where it may pass.

    A read is given up where no byte comes for twice the time that a file may take, or after an hour; at an address, where no
    `remote.PART` bytes do, or over HTTP and through a cache of whole files (simplecache::...) not the file.
    """
    try:
        if job.verify and not remote.is_remote(job.path):  # what hangs does so at once, while decoding all of a film takes its time
            _answer(dataclasses.replace(job, verify=False), seconds=2 * decode.TIMEOUT)
        return _answer(job, seconds=VERIFY if job.verify else 2 * decode.TIMEOUT)
    except decode.DecodeError as error:
        return {"status": f"{error.stage}: {error.cause}"}


def _answer(job: Job, /, *, seconds: float) -> dict[str, Any]:
    patience = Patience(decode.TIMEOUT, whole=decode.WHOLE)
    return deadline.call(lambda: _describe(job, patience), seconds=seconds, name=lambda: job.path, patience=patience)


def _describe(job: Job, patience: Patience, /) -> dict[str, Any]:
    patience.renew()  # a further try does not pay for the silence that the one before ended in
    if job.template is None and not remote.is_remote(job.path):
        return describe(job.path, verify=job.verify, patience=patience)
    if job.template is None:
        data = remote.read(job.path, patience=patience)
        return describe(data, verify=job.verify) | {"size": len(data)}
    video = pictures.Pictures(job.path, job.template)
    info = pictures.probe(video, fps=job.fps, start=job.start, frames=job.frames)
    for number in range(info.frames) if job.verify else ():
        pictures.decode(video, [number], info=info)
    return columns.of(info) | {"template": job.template}


def read_labels(path: pathlib.Path, /, *, directory: pathlib.Path) -> dict[str, dict[str, str]]:
    """{name: columns} of a csv with the header `path,label[,split][,more columns]`.

    Paths are relative to the video folder, or absolute and inside it. Raises UserError for a missing file, missing or
    reserved columns, a path that is named twice, a label with white space at its ends, an unknown split, or a named file that does not exist.
    """
    if not path.is_file():
        raise UserError(f"no label file {path}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", skipinitialspace=True)
            header = list(reader.fieldnames or ())
            _check_header(path, header)
            rows: dict[str, dict[str, str]] = {}
            for row in reader:
                if None in row:
                    raise UserError(f"{path}:{reader.line_num} has more values than the {len(header)} columns of the header")
                given = pathlib.Path(row.pop("path"))
                name = os.path.relpath(given, directory) if given.is_absolute() else given.as_posix()
                if name in rows:
                    raise UserError(f"{path}:{reader.line_num} names {name!r} a second time")
                if row["label"] != row["label"].strip():
                    raise UserError(f"{path}:{reader.line_num}: label {row['label']!r}; allowed are labels without white space at their ends")
                if "split" in row and row["split"] not in splits.SPLITS:
                    raise UserError(f"{path}:{reader.line_num}: split {row['split']!r}; allowed are {', '.join(splits.SPLITS)}")
                rows[name] = row
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no csv file in UTF-8: {error}") from error
    if not rows:
        raise UserError(f"{path} lists no video")
    return rows


def _check_header(path: pathlib.Path, header: list[str], /) -> None:
    """Raises UserError for missing, reserved, repeated or nameless columns."""
    if not {"path", "label"} <= set(header):
        raise UserError(f"{path} begins with the columns {', '.join(header) or '(none)'}; needed is the header path,label[,split][,more columns]")
    reserved = sorted((set(header) - {"path", "label", "split"}) & {*SCHEMA.names, PACKED, PART})
    if reserved:
        raise UserError(f"{path}: column {reserved[0]!r} is one that the index fills itself; rename it")
    wrong = [column for column in header if not column or header.count(column) > 1]
    if wrong:
        raise UserError(f"{path}: column {wrong[0]!r} occurs {header.count(wrong[0])} times; allowed are names that occur once and are not empty")


def build(directory: str | pathlib.Path, /, *, labels: pathlib.Path | None = None, val_fraction: float = 0.1, verify: bool = False, workers: int = 1,
          template: str | None = None, fps: Fraction = Fraction(25), say: Callable[[str], None] = lambda line: None) -> pa.Table:
    """The index of a folder or an address: a row per video, damaged ones included, with absolute paths (`write` shortens them).

    With a csv, exactly the files it names are listed; its further columns are carried along as strings. Without one the
    label is the first sub-folder a video lies in (a leading train, val or test folder gives the split), or null. Where
    neither says, the split is drawn by a hash of the path relative to `directory`, so that it stays when files are added;
    with at least two readable videos neither side is left empty. `verify` decodes every frame; `say` hears of the progress.
    A `template` lists folders of pictures called so, taken `fps` a second, instead of video files; "" lists the pictures
    themselves. Raises UserError.
    """
    splits.check(val_fraction)
    names = found_in(directory, template=template)
    given = read_labels(labels, directory=directory) if labels else {}
    if given:
        present = set(names)
        absent = [name for name in given if name not in present]
        if absent:
            raise UserError(f"{labels} names {len(absent)} files that are not videos in {directory}, first {absent[0]!r}")
        names = sorted(given)
    extra = [column for column in next(iter(given.values()), {}) if column not in ("label", "split")]
    root = str(directory).rstrip("/") if remote.is_remote(directory) else str(pathlib.Path(directory).resolve())
    jobs = [Job(f"{root}/{name}", verify=verify, template=template, fps=fps) for name in names]

    def rows() -> Iterator[dict[str, Any]]:
        for name, job, facts in zip(names, jobs, scan(jobs, workers=workers, say=say), strict=True):
            split, label = splits.from_folder(name)
            row = given.get(name, {"label": label, **({"split": split} if split else {})})
            yield {"path": job.path, "name": name, "label": row["label"] or None, "split": row.get("split"), **facts, **{c: row[c] or None for c in extra}}

    table = columns.table(rows(), schema=pa.schema([*SCHEMA, *(pa.field(column, pa.string()) for column in extra)]))
    drawn = table.select(["name", "split", "status"]).to_pylist()
    splits.draw(drawn, val_fraction=val_fraction)
    return table.set_column(table.schema.get_field_index("split"), "split", pa.array([row["split"] for row in drawn], pa.string()))


def found_in(directory: str | pathlib.Path, /, *, template: str | None) -> list[str]:
    """Videos below a folder or an address, or folders of pictures, or pictures, as `build` lists them."""
    suffixes = pictures.SUFFIXES if template == "" else SUFFIXES
    if not remote.is_remote(directory):
        return pictures.find(pathlib.Path(directory), pictures.check(template)) if template else find(pathlib.Path(directory), suffixes=suffixes)
    if template:
        raise UserError(f"folders of pictures in {directory} cannot be listed; allowed are an official list (--list) with --root={directory}, or a local folder")
    names = remote.find(str(directory), suffixes=suffixes)
    if not names:
        raise UserError(f"no videos in {directory}; looked for {', '.join(suffixes)}")
    return names


def scan(jobs: Sequence[Job], /, *, workers: int, say: Callable[[str], None] = lambda line: None) -> Iterator[dict[str, Any]]:
    """`describe_job` of every job, in order, over `workers` spawned processes where there are many; `say` hears of the progress.

    Raises UserError that names the first video without an answer where one of them is killed.
    """
    told = time.monotonic()
    with contextlib.ExitStack() as stack:
        found: Iterator[dict[str, Any]] = map(describe_job, jobs)
        if workers > 1 and len(jobs) > PARALLEL:
            found = stack.enter_context(processes(workers)).map(describe_job, jobs, chunksize=8)
        for number, job in enumerate(jobs):
            if time.monotonic() - told > PATIENCE:
                told = time.monotonic()
                say(f"{number} of {len(jobs)} videos read")
            try:
                facts = next(found)
            except concurrent.futures.BrokenExecutor as error:
                raise UserError(f"a process that read {job.path} or one of the next videos was killed (memory, or a video that ends its decoder); allowed are "
                                "fewer --workers, and a folder without that video") from error
            yield facts


def claim(out: pathlib.Path, /) -> None:
    """Makes the folder of `out` and checks that it can be written, before a scan that may take hours. Raises UserError."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {out.parent}: {error.strerror}") from error
    if out.is_dir():
        raise UserError(f"{out} is a folder")


def write(table: pa.Table, out: pathlib.Path, /) -> None:
    """Parquet at `out` and its Arrow cache beside it.

    Paths of videos below the folder of `out` are stored relative to it, so that the folder can be moved as a whole;
    others stay absolute, those with `..` as well. Raises UserError where the folder cannot be written.
    """
    claim(out)
    home = out.parent.resolve()
    paths = table.column("path").to_pylist()
    short = pa.array([p if remote.is_remote(p) else _shortened(p, home) for p in paths], pa.string())
    table = table.set_column(table.schema.get_field_index("path"), "path", short)
    temporary = _beside(out)
    try:
        pq.write_table(table, temporary, write_page_checksum=True)
        os.replace(temporary, out)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{out} cannot be written ({error.strerror or error})") from error
    load(out)


def _shortened(path: str, home: pathlib.Path, /) -> str:
    """A path relative to `home`, if it is below: one with `..`, which behind a link leads elsewhere than its text says, is not taken for that."""
    pure = pathlib.PurePath(path)
    return str(pure.relative_to(home)) if ".." not in pure.parts and pure.is_relative_to(home) else path


def load(path: str | pathlib.Path, /) -> pa.Table:
    """The table of an index, mapped from its Arrow cache, which is written anew where it does not stem from this Parquet file.

    Where the cache cannot be written (a read-only folder) the table is held in memory. Raises UserError when the file
    is missing, may not be read or is no index, StorageError where the disk fails.
    """
    path = remote.local(path, what="index")
    try:
        if not path.is_file():
            raise UserError(f"no index {path}; make one with: python -m videomae_jax index DIR --out={path}")
        digest = hashlib.sha256(path.read_bytes()).hexdigest().encode()
    except OSError as error:
        raise unreadable(f"index {path}", error) from error
    cached = _mapped(path.with_suffix(".arrow"), digest)
    if cached is not None:
        return cached
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        names = set(table.schema.names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from error
    missing = [name for name in SCHEMA.names if name not in names and name not in OPTIONAL]
    if missing:
        raise UserError(f"{path} is no video index of this version: it lacks the columns {', '.join(missing)}; run the index command again")
    for name in (name for name in OPTIONAL if name not in names):
        table = table.append_column(name, pa.nulls(table.num_rows, SCHEMA.field(name).type))
    table = _typed(table, path).replace_schema_metadata({DIGEST: digest}).combine_chunks()
    return _mapped(path.with_suffix(".arrow"), digest) if _cache(table, path.with_suffix(".arrow")) else table


def _typed(table: pa.Table, path: pathlib.Path, /) -> pa.Table:
    """The columns of SCHEMA in their types, further ones as strings: other programs that edit an index change types."""
    for place, field in enumerate(table.schema):
        kind = SCHEMA.field(field.name).type if field.name in SCHEMA.names else pa.string()
        try:
            table = table.set_column(place, field.name, table.column(place).cast(kind))
        except pa.ArrowException as error:
            raise UserError(f"{path}: column {field.name!r} is {field.type} and cannot be read as {kind}: {str(error).splitlines()[0]}") from error
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise UserError(f"{path} is damaged: {str(error).splitlines()[0]}; run the index command again") from error
    return table


def _beside(path: pathlib.Path, /) -> pathlib.Path:
    """A name in the same folder that no other process on any host takes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _mapped(path: pathlib.Path, digest: bytes, /) -> pa.Table | None:
    """The mapped table of a cache; None where it is missing, half-written, of fewer columns, or stems from another Parquet file.

    All of it is looked at once: a damaged one would end whoever maps it by a signal.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        known = (reader.schema.metadata or {}).get(DIGEST) == digest and set(SCHEMA.names) <= set(reader.schema.names)
        table = reader.read_all() if known else None
        if table is not None:
            table.validate(full=True)
            for field in SCHEMA:  # of an earlier version: the values stay where they are, the offsets of lists grow
                if table.schema.field(field.name).type != field.type:
                    table = table.set_column(table.schema.get_field_index(field.name), field.name, table.column(field.name).cast(field.type))
        return table
    except (OSError, ValueError, pa.ArrowException):
        return None


def _cache(table: pa.Table, path: pathlib.Path, /) -> bool:
    """Replaces the cache as a whole, so that processes which start together do not see half of it; False if not permitted."""
    temporary = _beside(path)
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        return False
    return True


def readable(table: pa.Table, /, *, split: str, path: str) -> np.ndarray:
    """Row numbers i64 of the readable videos of a split, or of every split for "all".

    Raises UserError when there is none; `path` is the index as the error calls it.
    """
    good = pc.equal(table.column("status"), "ok")
    chosen = good if split == "all" else pc.and_(good, pc.equal(table.column("split"), split))
    rows = np.flatnonzero(chosen.to_numpy())
    if not len(rows):
        counts = {v["values"].as_py(): v["counts"].as_py() for v in table.filter(good).column("split").value_counts()}
        known = ", ".join(f"{k} ({n})" for k, n in sorted(counts.items())) or "no readable video at all"
        raise UserError(f"index {path} has no readable video in split {split!r}; it has {known}")
    return rows
