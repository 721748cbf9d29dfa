"""One index out of several: classes of one name become one class, and no held-out clip of any part stays in training.

K710 is this for Kinetics-400, 600 and 700: on the official annotations V2 counts 658,340 training and 66,803 validation clips. The
class names of the annotations become 710 with V2's table of merged names (misc/k710_identical_label_merge.json) as aliases. Its lists carry
numbers instead, which its label maps (misc/label_map_k400.txt, ...) turn into names; those are 710 as they are, without the table.
That this merge arrives at V2's counts is not shown: its tests have made-up annotations with planted leaks.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from videomae_jax.data import index, remote, sources, splits
from videomae_jax.errors import UserError

KINETICS = re.compile(r"(?P<video>[\w-]{11})_\d{6}_\d{6}")  # YouTube id, first and last second
YOUTUBE = re.compile(r"(?![A-Za-z_-]*\d[\d_-]{2,}$)[\w-]{11}")  # an id alone; clip_000001 is none
RANDOM = re.compile(r"(?=.*\d[A-Za-z])(?=.*[a-z][A-Z]).*")  # an id that no word is; subject_one and Patient07_A may be of anybody
COUNTER = re.compile(r"[A-Za-z_-]*\d[\d_-]*")
WINDOW = re.compile(r"(?P<video>.*)#(?P<start>\d+)")  # a further window of a listed path (`lists.build`)
NUMBER = re.compile(r"[0-9]+")  # a label of an official list
HELD_OUT = ("val", "test")


@dataclasses.dataclass(frozen=True)
class Merged:
    """A merged table and how it came about.

    `classes` {part: {label: merged name}} has the labels of a part in the order of their numbers, `dropped` {(reason, part): [(row, row that
    it yields to)]} the names of what was left out, `spellings` {merged name: its spellings} the names that parts spell differently,
    `remarks` lines about aliases that do not fit.
    """

    table: pa.Table
    classes: Mapping[str, Mapping[str, str]]
    dropped: Mapping[tuple[str, str], Sequence[tuple[str, str]]]
    spellings: Mapping[str, tuple[str, ...]]
    remarks: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The classes of the table, as loaders number them."""
        return sources.classes(self.table)


def spelling(label: str, /) -> str:
    """What is left of a class name without case, quotes, underscores, hyphens and doubled blanks; all of a whole number, where a hyphen is a sign."""
    if re.fullmatch("-?[0-9]+", label):
        return label
    return " ".join(re.sub(r"[_-]", " ", re.sub(r"[\"'\u2018\u2019]", "", label)).casefold().split())


def merge(paths: Sequence[pathlib.Path], /, *, aliases: Mapping[str, str], names: Mapping[str, Sequence[str]] | None = None, verify: bool = False) -> Merged:
    """The rows of all indexes without repeats and leaks, paths absolute, names "part/name".

    A row of the training split goes where any split val or test of any part holds the same video (`identify`), or with `verify`
    the same bytes. Of several rows of one video within training, or within what is held out, the first of the first part stays, readable
    ones before others, then val before test, then labelled ones before others. Class names that differ only in spelling become the first
    one; `aliases` {name: name} joins others. `names` {part: names} are those of a part whose labels are numbers. Raises UserError.
    """
    parts = {part: (_opened(path), path.resolve().parent) for part, path in _parts(paths).items()}
    rows = [row for part, (table, home) in parts.items() for row in _rows(part, table, home)]
    classes, spellings, remarks = _classes(_labels({part: sources.classes(table) for part, (table, _) in parts.items()}, names=names or {}), aliases=aliases)
    identify(rows)
    held: dict[str, str] = {}
    for row in (row for row in rows if row["split"] in HELD_OUT):
        held.setdefault(row["video"], row["called"])
    copies = _copies(rows) if verify else {}
    dropped: dict[tuple[str, str], list[tuple[str, str]]] = collections.defaultdict(list)
    taken: dict[tuple[bool, str, str], dict[str, Any]] = {}
    for row in rows:
        row["class"] = classes[row["part"]].get(row["label"])
    for row in sorted(rows, key=lambda row: (row["status"] != "ok", row["split"] == "test", row["class"] is None)):  # stable: parts stay in order
        place, train = (row["split"] in HELD_OUT, row["video"], row["start"]), row["split"] == "train"
        if train and row["video"] in held:
            dropped["held out elsewhere", row["part"]].append((row["called"], held[row["video"]]))
        elif train and row["path"] in copies:
            dropped["held out elsewhere under another name", row["part"]].append((row["called"], copies[row["path"]]))
        elif place in taken:
            both = {row["class"], taken[place]["class"]} - {None}
            dropped["repeated" if len(both) < 2 else "repeated under another class", row["part"]].append((row["called"], taken[place]["called"]))
        else:
            taken[place] = row
    return Merged(_table({part: table for part, (table, _) in parts.items()}, taken.values()), classes, dropped, spellings, remarks)


def _parts(paths: Sequence[pathlib.Path], /) -> dict[str, pathlib.Path]:
    """{stem: path}; stems name the parts."""
    if len(paths) < 2:
        raise UserError(f"--merge={','.join(map(str, paths))}; allowed are two indexes and more, separated by commas")
    parts = {path.stem: path for path in paths}
    if len(parts) < len(paths):
        raise UserError(f"indexes to merge need different file names, which name the parts; given are {', '.join(map(str, paths))}")
    return parts


def _opened(path: pathlib.Path, /) -> pa.Table:
    """The table of a part. Raises UserError for packed clips, which only the folder that they were packed in can read."""
    table = index.load(path)
    if index.PACKED in table.schema.names:
        raise UserError(f"index {path} is of packed clips; allowed are indexes of videos: merge those that were packed, and pack what comes out")
    return table


def _rows(part: str, table: pa.Table, home: pathlib.Path, /) -> list[dict[str, Any]]:
    """What merging asks of the rows of a part, whose paths are relative to `home`."""
    columns = {c: table.column(c).to_pylist() for c in ("path", "name", "label", "split", "status", "template", "size", "frames", "duration")}
    return [{"part": part, "number": i, "name": name, "called": f"{part}/{name}", "label": label, "split": split, "status": status, "folder": bool(template),
             "path": file if remote.is_remote(file) else home / file, "size": size, "frames": frames, "duration": duration}
            for i, (file, name, label, split, status, template, size, frames, duration) in enumerate(zip(*columns.values(), strict=True))]


def identify(rows: Iterable[dict[str, Any]], /) -> None:
    """Fills in place `video`, what rows of one video have in common in all parts, and `start`, the window of it that a row is ("" = all).

    A YouTube id, with or without the seconds of Kinetics, is the video, whatever folder, seconds and part. Other files are told apart by
    folder and name without suffix within a part (walk/001.mp4 is not run/001.mp4); between parts those of one name are one video
    where no part has that name in several folders. Names that merely count (clip_001), and those in several folders that may be an id
    or a word (subject_one), need a second sign: the size, or where that is not known of all of them frames and duration.
    """
    rows, places, doubtful = list(rows), collections.defaultdict(lambda: collections.defaultdict(set)), collections.defaultdict(list)
    for row in rows:
        window = WINDOW.fullmatch(row["name"])
        path = pathlib.PurePosixPath(window["video"] if window else row["name"])
        path = path if row["folder"] else path.parent / path.stem
        row["video"], row["start"] = str(path), window["start"] if window else ""
        places[path.name][row["part"]].add(str(path))
    for row in rows:
        name = pathlib.PurePosixPath(row["video"]).name
        found = KINETICS.fullmatch(name)
        alone, code = all(len(several) == 1 for several in places[name].values()), YOUTUBE.fullmatch(name)
        if found or (code and RANDOM.fullmatch(name)) or (alone and not COUNTER.fullmatch(name)):
            row["video"] = found["video"] if found else name
            continue
        row["video"] = f"{row['part']}/{row['video']}"
        if alone or code:
            doubtful[name].append(row)
    for name, several in doubtful.items():
        _compare(name, several)


def _compare(name: str, rows: Sequence[dict[str, Any]], /) -> None:
    """Fills in place `video` of rows of one name: one for those with the same sign, and for the windows of one file, which were one before."""
    readable = [row for row in rows if row["status"] == "ok"]
    sized, signs = all(row["size"] is not None for row in readable), {}
    for row in readable:
        sign = f"{name} of {row['size']} bytes" if sized else f"{name} of {row['frames']} frames, {row['duration']} s"
        signs.setdefault(row["video"], sign)
    for row in rows:
        row["video"] = signs.get(row["video"], row["video"])


def _labels(classes: Mapping[str, Sequence[str]], /, *, names: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """{part: {label: class name}} of {part: its labels in the order of their numbers}. Raises UserError for numbers without names."""
    named = {}
    for stray in (part for part in names if part not in classes):
        raise UserError(f"--names={stray}=...: no index to merge is called {stray}; allowed are {', '.join(classes)}")
    for part, labels in classes.items():
        words = [label for label in labels if not NUMBER.fullmatch(label)]
        if part not in names:
            if labels and not words and sum(map(bool, classes.values())) > 1:
                raise UserError(f"the labels of {part} are numbers ({', '.join(labels[:3])}, ...), which say nothing about the classes of other indexes; give "
                                f"the names of its classes with --names={part}=FILE, one a line in the order of the numbers")
            named[part] = {label: label for label in labels}
            continue
        if words:
            raise UserError(f"--names={part}=...: labels of {part} are names already, such as {words[0]!r}; allowed are indexes whose labels are numbers")
        wrong = [label for label in labels if int(label) >= len(names[part])]
        if wrong:
            raise UserError(f"--names={part}=...: {part} has the label {wrong[0]}, and the file {len(names[part])} names, those of 0 to {len(names[part]) - 1}")
        named[part] = {label: names[part][int(label)] for label in labels}
    return named


def _classes(labels: Mapping[str, Mapping[str, str]], /, *,
             aliases: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """{part: {label: merged name}}, the spelling of the part that comes first; {merged name: its spellings} where there are several; and
    remarks on aliases that no class has, or that lead to none.
    """
    names = list(dict.fromkeys(name for own in labels.values() for name in own.values()))
    known = {spelling(name) for name in names}
    joined = {spelling(a): b for a, b in aliases.items() if spelling(a) != spelling(b)}  # V2's table has a pair that differs in case alone
    first: dict[str, str] = {}
    for name in names:
        if spelling(name) not in joined:
            first.setdefault(spelling(name), name)
    merged: dict[str, str] = {}
    several = collections.defaultdict(list)
    for name in names:
        target = joined.get(spelling(name), name)
        if spelling(name) in joined and spelling(target) in joined:
            raise UserError(f"aliases lead from {name!r} to {target!r}, which is itself an alias; each leads to a name that stays")
        merged[name] = first.setdefault(spelling(target), target)
        several[merged[name]].append(name)
    strays = [a for a in aliases if spelling(a) in joined and spelling(a) not in known]
    coined = [(a, b) for a, b in aliases.items() if spelling(a) in joined and spelling(a) in known and spelling(b) not in known]
    remarks = [f"{len(strays)} aliases are names of no class, first {strays[0]!r}"] if strays else []
    remarks += [f"{len(coined)} aliases give classes a name that no index has, first {coined[0][0]!r} -> {coined[0][1]!r}"] if coined else []
    return ({part: {label: merged[name] for label, name in own.items()} for part, own in labels.items()},
            {name: tuple(found) for name, found in several.items() if len(found) > 1}, tuple(remarks))


def _copies(rows: Sequence[Mapping[str, Any]], /) -> dict[pathlib.Path, str]:
    """{path of a training file: name of a held-out one with its bytes}; only files of equal size are read.

    Raises UserError for addresses, and with their number for files that cannot be read.
    """
    sized: dict[int, dict[bool, dict[pathlib.Path, str]]] = {}
    missing: list[str] = []
    for row in (row for row in rows if row["status"] == "ok"):
        path = remote.local(row["path"], what="a video whose bytes are compared (--verify)")
        try:
            sized.setdefault(sum(file.stat().st_size for file in _files(path)), {}).setdefault(row["split"] in HELD_OUT, {}).setdefault(path, row["called"])
        except OSError as error:
            missing.append(f"{path} ({error.strerror})")
    if missing:
        raise UserError(f"--verify: {len(missing)} videos cannot be read, first {missing[0]}; run the index command again for what is there")
    found: dict[pathlib.Path, str] = {}
    for files in sized.values():
        if len(files) == 2:
            held = {_hash(path): name for path, name in files[True].items()}
            found |= {path: held[digest] for path in files[False] if (digest := _hash(path)) in held}
    return found


def _files(path: pathlib.Path, /) -> list[pathlib.Path]:
    """A file itself, or the pictures of a folder in order. Raises OSError."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _hash(path: pathlib.Path, /) -> bytes:
    """A digest of the bytes of a file, or of all pictures of a folder. Raises UserError where they cannot be read."""
    total = hashlib.sha256()
    try:
        for one in _files(path):
            with one.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    except OSError as error:
        raise UserError(f"--verify: {error.filename} cannot be read ({error.strerror})") from error
    return total.digest()


def _table(parts: Mapping[str, pa.Table], rows: Iterable[Mapping[str, Any]], /) -> pa.Table:
    """The kept rows of all parts, in their order, with their own further columns, null where a part has no such column."""
    tables, kept = [], list(rows)
    for part, whole in parts.items():
        mine = sorted((row for row in kept if row["part"] == part), key=lambda row: row["number"])
        table = whole.take(pa.array([row["number"] for row in mine], pa.int64()))
        changed = {"path": [str(row["path"]) for row in mine], "name": [row["called"] for row in mine],
                   "label": [row["class"] for row in mine]}
        for column, values in changed.items():
            table = table.set_column(table.schema.get_field_index(column), column, pa.array(values, pa.string()))
        table = table.drop_columns([index.PART]) if index.PART in table.schema.names else table  # of a merged index, whose names keep its parts
        tables.append(table.append_column(index.PART, pa.array([part] * len(mine), pa.string())).replace_schema_metadata(None))
    return pa.concat_tables(tables, promote_options="default")


def maps(done: Merged, /, *, out: str) -> dict[str, dict[str, Any]]:
    """{file name: map of classes for `head_rows`} from the merged index, called `out`, to every part and back."""
    found = {}
    for part, own in done.classes.items():
        whole = {name: name for name in done.names}
        found[f"{out}_to_{part}.json"] = _map(whole, own)
        found[f"{part}_to_{out}.json"] = _map(own, whole)
    return found


def _map(source: Mapping[str, str], target: Mapping[str, str], /) -> dict[str, Any]:
    """For every class of `target` {label: merged name} the number of the class of `source` with the same merged name, or -1."""
    numbers = {name: number for number, name in enumerate(source.values())}
    return {"source": list(source), "target": list(target), "rows": [numbers.get(name, -1) for name in target.values()]}


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


def read_lines(path: str, /) -> tuple[str, ...]:
    """The class names of a file, one a line. Raises UserError, also for an empty or a repeated line: numbers count lines."""
    try:
        names = [line.strip() for line in pathlib.Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"names of classes {path} cannot be read: {error}") from error
    wrong = [f"line {number} {name!r}" for number, name in enumerate(names, 1) if not name or name in names[:number - 1]]
    if wrong or not names:
        raise UserError(f"names of classes {path}: {wrong[0] if wrong else 'no line at all'}; allowed are class names, one a line, each once")
    return tuple(names)


def read_names(words: Sequence[str], /) -> dict[str, tuple[str, ...]]:
    """{part: class names} of words PART=FILE, a file of `read_lines`. Raises UserError."""
    found = {}
    for word in words:
        part, equals, file = word.partition("=")
        if not (part and equals and file):
            raise UserError(f"--names={word}; allowed is PART=FILE, the name of an index without its suffix and a file with a class name a line")
        found[part] = read_lines(file)
    return found


def merged(words: str, /, *, out: pathlib.Path, aliases: str | None = None, names: Sequence[str] = (), verify: bool = False) -> list[str]:
    """Merges the indexes that `words` names, separated by commas, writes index and maps, and tells of it in lines for people."""
    if out.suffix != ".parquet":
        raise UserError(f"--out={out}; allowed is a file name that ends in .parquet")
    paths = [remote.local(word, what="index") for word in words.split(",") if word]
    if os.path.realpath(out) in map(os.path.realpath, paths):
        raise UserError(f"--out={out} is one of the indexes to merge; give another name")
    if out.stem in [path.stem for path in paths]:
        raise UserError(f"--out={out} is called like one of the indexes to merge, and maps of classes are called by both; give another name")
    done = merge(paths, aliases=read_aliases(pathlib.Path(aliases) if aliases else None), names=read_names(names), verify=verify)
    files = {out.with_name(name): json.dumps(content, indent=1) for name, content in maps(done, out=out.stem).items()}
    index.write(done.table, out)
    try:
        for file, text in files.items():
            file.write_text(text)
    except OSError as error:
        raise UserError(f"map of classes {error.filename} cannot be written ({error.strerror})") from error
    return _told(done) + [f"map of classes written to {file}" for file in files]


def _told(done: Merged, /) -> list[str]:
    """Lines for people: what became one class, what was left out and why, how much is left."""
    lines = [f"{' and '.join(spelt)} are one class" for spelt in done.spellings.values()] + list(done.remarks)
    lines += [f"{len(found)} clips of {part} left out: {reason} (first {found[0][0]}, because of {found[0][1]})"
              for (reason, part), found in sorted(done.dropped.items())]
    lost = sorted({name for own in done.classes.values() for name in own.values()} - set(done.names))
    lines += [f"{len(lost)} classes have no clip left, first {lost[0]!r}"] if lost else []
    counts = collections.Counter(zip(done.table.column("split").to_pylist(), done.table.column(index.PART).to_pylist(), strict=True))
    lines += [f"{split}: {sum(n for (s, _), n in counts.items() if s == split)} clips ({', '.join(f'{p} {n}' for (s, p), n in counts.items() if s == split)})"
              for split in splits.SPLITS if any(s == split for s, _ in counts)]
    return lines + [f"{len(done.names)} classes"]
