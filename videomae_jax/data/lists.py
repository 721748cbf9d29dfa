"""The lists of the official VideoMAE code, read as they are: one clip a line, columns separated by a space.

    v1      path label            both versions' lists of video files; V1 pretraining ignores the label
    v2      path start total ...  V2 pretraining: total < 0 is a video file, else a folder of frames numbered from `start`
    frames  folder total label    fine-tuning on frames (V2's SSv2)
"""

import dataclasses
import pathlib
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pyarrow as pa

from videomae_jax.data import columns, index, pictures, remote
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
    return index.FOLDERS.get(path.stem.lower(), "train")


def build(paths: list[pathlib.Path], /, *, root: str, form: str, template: str = TEMPLATE, fps: Fraction = Fraction(25), verify: bool = False,
          workers: int = 1, say: Callable[[str], None] = lambda line: None) -> pa.Table:
    """The index of official lists: a row per line, in order, in the split of its file; what cannot be read is kept as damaged.

    Paths are relative to `root`, a folder or an address. `fps` is that of frame folders, which their lists do not tell.
    Further windows of one path are told apart by #start in their names. Raises UserError, also where nothing can be read.
    """
    pictures.check(template)
    lines = [(line, split_of(path)) for path in paths for line in read(path, form=form, template=template)]
    often = Counter((line.path, split) for line, split in lines)
    jobs = []
    for line, _ in lines:
        place = line.path if remote.is_remote(line.path) else f"{root.rstrip('/')}/{line.path}" if remote.is_remote(root) else str(pathlib.Path(root).absolute() / line.path)
        jobs.append(index.Job(place, verify=verify, template=line.template, start=line.start, frames=line.total, fps=fps))
    names = (f"{line.path}#{line.start}" if often[line.path, split] > 1 else line.path for line, split in lines)
    rows = ({"path": job.path, "name": name, "label": line.label, "split": split, "template": line.template, "stride": line.stride, **facts}
            for (line, split), name, job, facts in zip(lines, names, jobs, index.scan(jobs, workers=workers, say=say), strict=True))
    return columns.table(rows, schema=index.SCHEMA)
