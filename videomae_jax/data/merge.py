"""One index out of several: classes of one name become one class, and no held-out clip of any part stays in training.

K710 is this for Kinetics-400, 600 and 700: on the official annotations V2 counts 658,340 training and 66,803 validation clips.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from videomae_jax.data import index, remote, sources
from videomae_jax.errors import UserError

KINETICS = re.compile(r"(?P<video>[\w-]{11})_\d{6}_\d{6}")  # YouTube id, first and last second
HELD_OUT = ("val", "test")
PART = "part"  # column of the merged index: which index a row comes from


@dataclasses.dataclass(frozen=True)
class Merged:
    """A merged table, what was left out as {(reason, part): rows}, and names that two parts spell differently."""

    table: pa.Table
    dropped: Mapping[tuple[str, str], int]
    spellings: Mapping[str, tuple[str, ...]]


def identity(name: str, /) -> str:
    """What two files of the same video have in common: the YouTube id of a Kinetics name, else the name without folder and suffix."""
    stem = pathlib.PurePosixPath(name).stem
    match = KINETICS.fullmatch(stem)
    return match["video"] if match else stem


def spelling(label: str, /) -> str:
    """What is left of a class name without case, quotes, underscores, hyphens and doubled blanks."""
    return " ".join(re.sub(r"[_-]", " ", re.sub(r"[\"'\u2018\u2019]", "", label)).casefold().split())


def merge(paths: Sequence[pathlib.Path], /, *, aliases: Mapping[str, str], verify: bool = False) -> Merged:
    """The rows of all indexes without repeats and leaks, paths absolute, names "part/name".

    A row of the training split goes where any split val or test of any part holds the same video (`identity`), or with `verify`
    the same bytes. Of several rows of one video within training, or within what is held out, the first readable one of the first
    part stays. Class names that differ only in spelling become the first one; `aliases` {name: name} joins others.
    """
    parts = _named(paths)
    rows = [row for part, path in parts.items() for row in _rows(part, path)]
    names, spellings = _classes(rows, aliases=aliases)
    held = {row["video"] for row in rows if row["split"] in HELD_OUT}
    copies = _copies(rows) if verify else set()
    dropped: collections.Counter[tuple[str, str]] = collections.Counter()
    taken: dict[tuple[bool, str], dict[str, Any]] = {}
    kept = []
    for row in sorted(rows, key=lambda row: row["status"] != "ok"):  # stable: parts stay in order
        place = (row["split"] in HELD_OUT, row["video"])
        if row["split"] == "train" and (row["video"] in held or row["path"] in copies):
            dropped["held out elsewhere", row["part"]] += 1
        elif place in taken:
            same = names.get(row["label"]) == names.get(taken[place]["label"])
            dropped["repeated" if same else "repeated under another class", row["part"]] += 1
        else:
            taken[place] = row
            kept.append(row)
    order = sorted(kept, key=lambda row: row["number"])
    return Merged(_table(parts, order, names), dropped, spellings)


def _named(paths: Sequence[pathlib.Path], /) -> dict[str, pathlib.Path]:
    """{stem: path}; stems name the parts."""
    if len(paths) < 2:
        raise UserError(f"--merge={','.join(map(str, paths))}; allowed are two indexes and more, separated by commas")
    parts = {path.stem: path for path in paths}
    if len(parts) < len(paths):
        raise UserError(f"indexes to merge need different file names, which name the parts; given are {', '.join(map(str, paths))}")
    return parts


def _rows(part: str, path: pathlib.Path, /) -> list[dict[str, Any]]:
    table, home = index.load(path), path.resolve().parent
    columns = {c: table.column(c).to_pylist() for c in ("path", "name", "label", "split", "status")}
    return [{"part": part, "number": (part, i), "video": identity(name), "label": label, "split": split, "status": status,
             "path": file if remote.is_remote(file) else home / file}
            for i, (file, name, label, split, status) in enumerate(zip(*columns.values(), strict=True))]


def _classes(rows: Sequence[Mapping[str, Any]], /, *, aliases: Mapping[str, str]) -> tuple[dict[str | None, str | None], dict[str, tuple[str, ...]]]:
    """{label: merged name}, the spelling of the part that comes first; and {merged name: its spellings} where there are several."""
    labels = {row["label"]: None for row in rows if row["label"] is not None}
    known = {spelling(label) for label in labels}
    joined = {spelling(a): spelling(b) for a, b in aliases.items()}
    strays = [name for pair in aliases.items() for name in pair if spelling(name) not in known]
    if strays:
        raise UserError(f"alias {strays[0]!r} is the name of no class; known are {', '.join(list(labels)[:6])}, ...")
    first: dict[str, str] = {}
    for label in labels:
        if spelling(label) not in joined:
            first.setdefault(spelling(label), label)
    names: dict[str | None, str | None] = {None: None}
    for label in labels:
        key = joined.get(spelling(label), spelling(label))
        if key not in first:
            raise UserError(f"aliases lead from {label!r} to a name that is itself an alias; each leads to a name that stays")
        names[label] = first[key]
    several = collections.defaultdict(list)
    for label in labels:
        several[names[label]].append(label)
    return names, {name: tuple(found) for name, found in several.items() if len(found) > 1}


def _copies(rows: Sequence[Mapping[str, Any]], /) -> set[pathlib.Path]:
    """Training files with the bytes of a held-out one; only files of equal size are read. Raises UserError for addresses."""
    sized: dict[int, dict[bool, list[pathlib.Path]]] = {}
    for row in rows:
        if row["status"] == "ok":
            remote.local(row["path"], what="a video whose bytes are compared (--verify)")
            sized.setdefault(os.stat(row["path"]).st_size, {}).setdefault(row["split"] in HELD_OUT, []).append(row["path"])
    found: set[pathlib.Path] = set()
    for files in sized.values():
        if len(files) == 2:
            held = {_hash(path) for path in files[True]}
            found |= {path for path in files[False] if _hash(path) in held}
    return found


def _hash(path: pathlib.Path, /) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _table(parts: Mapping[str, pathlib.Path], rows: Sequence[Mapping[str, Any]], names: Mapping[str | None, str | None], /) -> pa.Table:
    """The kept rows of all parts with their own further columns, null where a part has no such column."""
    tables = []
    for part, path in parts.items():
        mine = [row for row in rows if row["part"] == part]
        table = index.load(path).take(pa.array([row["number"][1] for row in mine], pa.int64()))
        changed = {"path": [str(row["path"]) for row in mine], "name": [f"{part}/{name}" for name in table.column("name").to_pylist()],
                   "label": [names[row["label"]] for row in mine]}
        for column, values in changed.items():
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.string()))
        table = table.drop_columns([PART]) if PART in table.schema.names else table
        tables.append(table.append_column(PART, pa.array([part] * len(mine), pa.string())).replace_schema_metadata(None))
    return pa.concat_tables(tables, promote_options="default")


def rows_between(source: Sequence[str], target: Sequence[str], /, *, names: Mapping[str | None, str | None]) -> list[int]:
    """For every class of `target` the number of the class of `source` with the same merged name, or -1."""
    numbers = {names.get(name, name): number for number, name in enumerate(source)}
    return [numbers.get(names.get(name, name), -1) for name in target]


def write_maps(paths: Sequence[pathlib.Path], out: pathlib.Path, /, *, aliases: Mapping[str, str]) -> list[pathlib.Path]:
    """Maps of classes for `head_rows`, OUT_to_PART.json and PART_to_OUT.json beside the index `out` for every part."""
    parts = _named(paths)
    names, _ = _classes([row for part, path in parts.items() for row in _rows(part, path)], aliases=aliases)
    merged = sources.VideoClips(index=str(out), split="all").classes
    written = []
    for part, path in parts.items():
        own = sources.VideoClips(index=str(path), split="all").classes
        for left, source, right, target in ((out.stem, merged, part, own), (part, own, out.stem, merged)):
            file = out.with_name(f"{left}_to_{right}.json")
            file.write_text(json.dumps({"source": source, "target": target, "rows": rows_between(source, target, names=names)}, indent=1))
            written.append(file)
    return written


def read_aliases(path: pathlib.Path | None, /) -> dict[str, str]:
    """{name: name} of a JSON file, {} of none. Raises UserError."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"aliases {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise UserError(f'aliases {path} is no JSON object of class names: {{"name": "name that it is merged into"}}')
    return found


def merged(words: str, /, *, out: pathlib.Path, aliases: str | None, verify: bool) -> list[str]:
    """Merges the indexes that `words` names, separated by commas, writes index and maps, and tells of it in lines for people."""
    if out.suffix != ".parquet":
        raise UserError(f"--out={out}; allowed is a file name that ends in .parquet")
    paths, named = [pathlib.Path(word) for word in words.split(",") if word], read_aliases(pathlib.Path(aliases) if aliases else None)
    if out.resolve() in [path.resolve() for path in paths]:
        raise UserError(f"--out={out} is one of the indexes to merge; give another name")
    done = merge(paths, aliases=named, verify=verify)
    index.write(done.table, out)
    lines = [f"{' and '.join(spelt)} are one class" for spelt in done.spellings.values()]
    lines += [f"{count} clips of {part} left out: {reason}" for (reason, part), count in sorted(done.dropped.items())]
    counts = collections.Counter(zip(done.table.column("split").to_pylist(), done.table.column(PART).to_pylist(), strict=True))
    lines += [f"{split}: {sum(n for (s, _), n in counts.items() if s == split)} clips ({', '.join(f'{p} {n}' for (s, p), n in counts.items() if s == split)})"
              for split in index.SPLITS if any(s == split for s, _ in counts)]
    lines += [f"{len(sources.VideoClips(index=str(out), split='all').classes)} classes"]
    return lines + [f"map of classes written to {path}" for path in write_maps(paths, out, aliases=named)]
