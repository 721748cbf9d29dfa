"""The lists of the official VideoMAE code, read as they are: one clip a line, columns separated by a space.

    v1      path label            both versions' lists of video files; V1 pretraining ignores the label
    v2      path start total ...  V2 pretraining: total < 0 is a video file, else a folder of frames numbered from `start`
    frames  folder total label    fine-tuning on frames (V2's SSv2)
"""

import dataclasses
import os
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pyarrow as pa

from videomae_jax.data import columns, index, pictures, remote, splits
from videomae_jax.errors import UserError

LINES = {"v1": r"(?P<path>\S.*) (?P<label>-?\d+)", "v2": r"(?P<path>\S.*?) (?P<start>\d+) (?P<total>-?\d+)(?: .*)?", "frames": r"(?P<path>\S.*) (?P<total>\d+) (?P<label>-?\d+)"}
# What V2 knows by a part of the path: how frames are called, and a stride instead of the sampling's (V2 pretrain_datasets).
RULES = (("SomethingV2", "img_{:05}.jpg", 2), ("AVA2.2", "image_{:06}.jpg", None))
TEMPLATE = "img_{:05}.jpg"


@dataclasses.dataclass(frozen=True)
class Line:
    """A clip of a list: `template` is None for a video file; `total` -1 is not said."""

    path: str
    label: str | None
    start: int
    total: int
    template: str | None
    stride: int | None


def read(path: pathlib.Path, /, *, form: str, template: str = TEMPLATE) -> list[Line]:
    """The clips of a list. Raises UserError that names the first line that is not of the form."""
    if form not in LINES:
        raise UserError(f"format {form!r}; allowed are {', '.join(LINES)}")
    if not path.is_file():
        raise UserError(f"no list {path}")
    found = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if not text.strip():
                    continue
                match = re.fullmatch(LINES[form], text.strip())
                if not match:
                    raise UserError(f"{path}:{number}: {text.strip()[:200]!r} is no line of format {form}: {_form(form)}")
                found.append(_line(match.groupdict(), form, template))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}") from error
    if not found:
        raise UserError(f"{path} lists no video")
    return found


def _form(form: str, /) -> str:
    return next(line.strip().split("  ")[0] + " " + line.strip().split("  ", 1)[1].strip() for line in __doc__.splitlines() if line.strip().startswith(form + " "))


def _line(values: dict[str, str], form: str, template: str, /) -> Line:
    path, total = values["path"], int(values.get("total", -1))
    label = None if values.get("label") == index.UNKNOWN else values.get("label")
    if form == "v1" and "." not in path.rsplit("/", 1)[-1]:
        path += ".mp4"  # V1 kinetics.py
    if form == "v1" or total < 0:
        return Line(path, label, 0, -1, None, None)
    called, stride = next(((t, s) for part, t, s in RULES if part in path), (template, None))
    start = int(values.get("start") or 1)  # V2 numbers the frames of fine-tuning lists from 1
    return Line(path, label, start, total, called, stride)


def split_of(path: pathlib.Path, /) -> str:
    """The split that the name of a list tells: train.csv, val.csv, test.csv; else train."""
    return splits.FOLDERS.get(path.stem.lower(), "train")


def build(paths: list[pathlib.Path], /, *, root: str, form: str | Sequence[str], template: str = TEMPLATE, fps: Fraction = Fraction(25), verify: bool = False,
          workers: int = 1, val_fraction: float | None = None, say: Callable[[str], None] = lambda line: None) -> pa.Table:
    """The index of official lists: a row per line, in order, in the split of its file; what cannot be read is kept as damaged.

    Paths are relative to `root`, a folder or an address. `form` is that of all lists, or of each. `fps` is that of frame folders, which their lists do not tell.
    Further windows of one path are told apart by #start in their names. With a `val_fraction` that share of the videos is held out of
    lists for training, by a hash of their paths. Raises UserError for a line or an option that is none of what is allowed.
    """
    pictures.check(template)
    _check_held_out(paths, val_fraction=val_fraction)
    home = root.rstrip("/") if remote.is_remote(root) else pathlib.Path(os.path.realpath(root))  # pathlib's raises RuntimeError for a link to itself
    forms = [form] * len(paths) if isinstance(form, str) else form
    if len(forms) != len(paths):
        raise UserError(f"{len(forms)} formats ({', '.join(forms)}) of {len(paths)} lists; allowed is one of all, or one of each in their order")
    lines = [(line, split_of(path)) for path, one in zip(paths, forms, strict=True) for line in read(path, form=one, template=template)]
    often = Counter((line.path, split) for line, split in lines)
    jobs = []
    for line, _ in lines:
        jobs.append(index.Job(_place(line.path, home), verify=verify, template=line.template, start=line.start, frames=line.total, fps=fps))
    names = (f"{line.path}#{line.start}" if often[line.path, split] > 1 else line.path for line, split in lines)
    rows = ({"path": job.path, "name": name, "label": line.label, "split": split, "template": line.template, "stride": line.stride, **facts}
            for (line, split), name, job, facts in zip(lines, names, jobs, index.scan(jobs, workers=workers, say=say), strict=True))
    table = columns.table(rows, schema=index.SCHEMA)
    return table if val_fraction is None else _held_out(table, [line.path for line, _ in lines], val_fraction=val_fraction)


def _place(path: str, home: str | pathlib.Path, /) -> str:
    """Where a line's file lies: at its own address, or below `home`, an address or a resolved folder, without `..` before its name."""
    if remote.is_remote(path) or isinstance(home, str):
        return path if remote.is_remote(path) else f"{home}/{path}"
    joined = home / path
    return str(pathlib.Path(os.path.realpath(joined.parent)) / joined.name if ".." in joined.parts else joined)


def _check_held_out(paths: list[pathlib.Path], /, *, val_fraction: float | None) -> None:
    """Raises UserError for a share that is none, and one beside a list of held-out videos."""
    if val_fraction is None:
        return
    splits.check(val_fraction)
    if held := [path for path in paths if split_of(path) == "val"]:
        raise UserError(f"val_fraction is {val_fraction}, but {held[0]} lists videos that are held out; allowed is one of them")


def _held_out(table: pa.Table, paths: list[str], /, *, val_fraction: float) -> pa.Table:
    """The table with the split of its training rows drawn anew: windows of one path go together."""
    drawn: dict[str, dict[str, Any]] = {}
    told = table.select(["split", "status"]).to_pylist()
    for path, row in zip(paths, told, strict=True):
        if row["split"] == "train" and drawn.get(path, {}).get("status") != "ok":
            drawn[path] = {"name": path, "split": None, "status": row["status"]}
    splits.draw(list(drawn.values()), val_fraction=val_fraction)
    found = [drawn[path]["split"] if row["split"] == "train" else row["split"] for path, row in zip(paths, told, strict=True)]
    return table.set_column(table.schema.get_field_index("split"), "split", pa.array(found, pa.string()))
