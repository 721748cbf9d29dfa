"""Heads that start from the rows of another head: which class of the source each class of the target takes over.

The file is JSON: a list with an entry for every class of the target, the number of the class in the source or -1 for a row that
stays fresh (the format of V2's label_710to400.json), or an object that holds the list as "rows" and the names of the classes on
both sides as "source" and "target", as `index --merge` writes it.

A list counts classes on both sides in an order that it does not tell, V2's in the order of its lists. Data whose classes have names
count them in the order of the alphabet, so `check` takes lists only where classes are numbers.
"""

import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from videomae_jax import optim, parallel
from videomae_jax.data import sources
from videomae_jax.data.merge import spelling
from videomae_jax.errors import UserError
from videomae_jax.objectives.base import External
from videomae_jax.types import Params

CLASSES = "classes.json"  # of a run directory: names of the classes, or of the attributes, in the order of the head


def read(path: str, /) -> dict[str, Any]:
    """{"rows": i64 [classes of the target], and "source" and "target" names where the file has them}. Raises UserError."""
    try:
        found = json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError as error:
        merged = "_to_" in pathlib.Path(path).name  # as index --merge calls them, but not V2's lists
        made = "; index --merge writes such maps beside the merged index OUT.parquet, as OUT_to_PART.json and PART_to_OUT.json"
        raise UserError(f"class map {path!r} is not there{made if merged else ''}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"class map {path!r} cannot be read: {error}") from error
    found = found if isinstance(found, dict) else {"rows": found}
    rows = found.get("rows")
    if not isinstance(rows, list) or not rows or not all(type(row) is int and row >= -1 for row in rows):
        raise UserError(f"class map {path!r} is neither a list of class numbers (-1 = none) nor an object with such a list as 'rows'")
    for side in ("source", "target"):
        if side in found and not _texts(found[side]):
            raise UserError(f"class map {path!r} has a {side!r} that is no list of class names")
    if "target" in found and len(found["target"]) != len(rows):
        raise UserError(f"class map {path!r} has {len(rows)} rows for {len(found['target'])} target classes")
    return found | {"rows": np.asarray(rows, np.int64)}


def check_maps(externals: Iterable[External], /) -> None:
    """Raises UserError where a map of classes that a head starts by is not there or none; the weights themselves may be of a stage that is still to come."""
    for name in (name for external in externals for _, name in external.rows if name):
        read(name)


def check(externals: Iterable[External], /, *, source: Any, kind: str = "classes") -> None:
    """Raises UserError where a map of classes counts those of the data `source`, or of the run that the weights are of, in another order.

    `kind` "attributes" takes those of the data for classes (`sources.names`).

    A run tells its classes in `classes.json`. A map with names is refused for weights that tell none, a list where there are names.
    A head that is taken as it is, without a map, has the classes of data with as many; of other data its labels are none, as those of noise,
    and evaluators that score by them refuse them.
    """
    for external in externals:
        for _, name in external.rows:
            data, run = sources.names(source, kind), stored(external.path, kind=kind)
            if not name:
                _same(external, run, data)
                continue
            found = read(name)
            if data:
                _agree(name, found.get("target"), data, whose="the data")
            if run:
                _agree(name, found.get("source"), run, whose=external.path)
            elif not _numbers(found.get("source", ())):
                raise UserError(f"class map {name!r} names the classes of its source, and {external.path} does not tell its own; allowed are runs with a file "
                                f"{CLASSES}, a list of names in the order of the head")


def stored(path: str, /, *, kind: str = "classes") -> tuple[str, ...]:
    """What the run whose directory, checkpoints or checkpoint `path` is tells of its head (`own`); () where it tells nothing. Raises UserError."""
    return next((names for directory in owners(pathlib.Path(path)) if (names := own(directory, kind=kind))), ())


def is_step(path: pathlib.Path, /) -> bool:
    """Whether a path is called as one checkpoint is."""
    return re.fullmatch(r"\d{8}", path.name) is not None


def owners(path: pathlib.Path, /) -> tuple[pathlib.Path, ...]:
    """Where the files of a run lie whose directory, checkpoints or checkpoint `path` may be."""
    return path, *path.parents[: 2 if is_step(path) else 1]


def own(directory: pathlib.Path, /, *, kind: str = "classes", head: int = 0) -> tuple[str, ...]:
    """The names of the outputs of a run's head in their order, classes or, as `kind`, attributes; () where the directory tells none.

    Raises UserError for a damaged file, and for names that are not as many as the outputs of the `head` (0 = not compared).
    """
    if not (file := _file(directory, kind=kind)).is_file():
        return ()
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"names of classes {file} cannot be read: {error}") from error
    found = found if file.name == CLASSES else _attributes(found)
    if not _texts(found):
        raise UserError(f"{file} is no list of class names")
    if head and len(found) != head and (found or file.name == CLASSES):
        raise UserError(f"{file} has {len(found)} names, and the head {head} classes; allowed is a name for each of them, in the order of the head")
    return tuple(found)


def of_run(directory: pathlib.Path, objective: Any, /) -> tuple[str, ...]:
    """What `own` tells of the run of an objective, of whose head the names are as many as the outputs. Raises UserError."""
    return own(directory, kind=objective.head_kind, head=getattr(getattr(objective, "head", None), "classes", 0))


def _file(directory: pathlib.Path, /, *, kind: str) -> pathlib.Path:
    """What tells the names of a head: the file CLASSES, but of a run from before attributes had theirs written there its config."""
    file = directory / CLASSES
    return file if kind != "attributes" or file.is_file() else directory / "config.json"


def _attributes(config: Any, /) -> Any:
    """The attributes of the data of a stored config, or of a mixture's parts, which agree about them; [] where it has none."""
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict):  # of another program
        return []
    parts, missing = data.get("parts"), data.get("missing")
    if not isinstance(parts, dict):  # of other data, which may call a column so
        parts = {}
    absent = {name.strip() for text in (missing if isinstance(missing, list) else ()) for name in str(text).split(",")}
    nodes = [data, *(part.get("source") for name, part in sorted(parts.items()) if isinstance(part, dict) and name not in absent)]
    return next((node["attributes"] for node in nodes if isinstance(node, dict) and node.get("attributes")), [])


def told(directory: pathlib.Path | None, data: Sequence[str], /, *, kind: str = "classes", externals: Iterable[External] = ()) -> tuple[str, ...]:
    """What the file CLASSES of a run directory is to tell of a head of data with these classes: names that are known stay where those of the data are numbers.

    Known are those that the directory tells or, of a new run, None, those of a head among the `externals` that is taken whole. Without
    them nobody could say any more what the head answers, or that later data count in another order. A map of classes with names
    knows none: `check` refuses it for data of numbers.
    """
    if not _numbers(data):
        return tuple(data)
    whole = (stored(external.path, kind=kind) for external in externals for _, name in external.rows if not name)
    known = whole if directory is None else (own(directory, kind=kind),)
    return next((names for names in known if len(names) == len(data) and not _numbers(names)), tuple(data))


def _agree(name: str, listed: Sequence[str] | None, classes: Sequence[str], /, *, whose: str) -> None:
    """Raises UserError unless a side of the map `name` has these classes in this order, or has no names and they are numbers."""
    if listed is None:
        if not _numbers(classes):
            raise UserError(f"class map {name!r} is a list without names, and the classes of {whose} have names ({', '.join(classes[:3])}, ...), whose order "
                            "need not be that of the list; allowed are a map with names, as index --merge writes it, or labels that are the list's numbers")
        return
    for number, (ours, theirs) in enumerate(itertools.zip_longest(listed, classes)):
        if ours is None or theirs is None or spelling(ours) != spelling(theirs):
            raise UserError(f"class map {name!r} has {ours!r} as class {number} of {len(listed)}, and {whose} {theirs!r} of {len(classes)}; allowed is a map "
                            "for the same classes in the same order, as index --merge writes it")


def _same(external: External, run: Sequence[str], data: Sequence[str], /) -> None:
    """Raises UserError where the classes of the run whose head is taken as it is have names, and the data as many names in another order.

    Numbers are no names: those of a list may well count a head whose classes have some.
    """
    if differs := _difference(run, data):
        mapped = "" if external.into.split("/")[0] == "frozen" else ", or a map of classes (objective.classes), as index --merge writes it"
        raise UserError(f"the head of {external.path} has {differs}: it would answer "
                        f"with wrong names; allowed are the same classes in the same order, labels that are the numbers of the head's classes{mapped}")


def check_own(directory: pathlib.Path, classes: Sequence[str], /, *, kind: str = "classes") -> None:
    """Raises UserError where a run's head counts classes in another order than data with as many, whose names are given; numbers are no names."""
    if differs := _difference(own(directory, kind=kind), classes, order=", the order of the run's head"):
        raise UserError(f"{_file(directory, kind=kind)} has {differs}; allowed are data "
                        "with the same classes in the same order, as an index of the same labels has them, and attributes in the order of that file; where names alone "
                        f"changed, write the new ones to {directory / CLASSES}, a JSON list in that order")


def check_kind(objective: Any, /, *, kind: str) -> None:
    """Raises UserError where an objective has no head whose outputs are of the `kind`, "classes" or "attributes"."""
    has = f"a head of {objective.head_kind}" if hasattr(objective, "head") else "no head"
    if has != f"a head of {kind}":
        raise UserError(f"{type(objective).__name__} has {has}; allowed is an objective with a head of {kind}")


def check_labels(directory: pathlib.Path, classes: Sequence[str], /, *, head: int) -> None:
    """Raises UserError where a run's head of `head` classes cannot be scored by the labels of data with these: there are none, another number of them,
    or others than the run tells (`check_own`).
    """
    if not classes:
        raise UserError("the index has no labels, so there are no classes to test; index the videos with class folders or --labels=FILE.csv, or name "
                        "another column with --config.data.label")
    if len(classes) != head:
        shown = ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
        raise UserError(f"the head has {head} classes and the index {len(classes)} ({shown}); "
                        f"set --config.objective.head.classes={len(classes)}, or --config.data.label to another column")
    own(directory, head=head)
    check_own(directory, classes)


def _difference(head: Sequence[str], data: Sequence[str], /, *, order: str = "") -> str:
    """The first class that a head and data with as many count otherwise, in words; "" where there is none, for numbers, which are no names, or another count."""
    if len(head) != len(data) or _numbers(head) or _numbers(data):
        return ""
    pairs = enumerate(zip(head, data, strict=True))
    return next((f"{ours!r} as class {number} of {len(head)}{order}, and the data {theirs!r}" for number, (ours, theirs) in pairs if spelling(ours) != spelling(theirs)), "")


def _numbers(classes: Sequence[str], /) -> bool:
    """Whether classes are called 0, 1, ... in this order."""
    return list(classes) == [str(number) for number in range(len(classes))]


def _texts(found: Any, /) -> bool:
    return isinstance(found, list) and all(isinstance(name, str) for name in found)


def chosen(value: np.ndarray, fresh: np.ndarray, /, *, rows: np.ndarray, name: str) -> np.ndarray:
    """[... K] whose class i is class rows[i] of `value` [... K'], or of `fresh` [... K] itself where the row is -1."""
    if len(rows) != fresh.shape[-1]:
        raise UserError(f"class map {name!r} is for {len(rows)} classes, and the head has {fresh.shape[-1]}")
    if rows.max() >= value.shape[-1]:
        raise UserError(f"class map {name!r} asks for class {rows.max()}, and the head in the file has {value.shape[-1]} (0 to {value.shape[-1] - 1})")
    return np.where(rows < 0, fresh, value[..., np.maximum(rows, 0)])


def select(source: Params, target: Params, /, *, rows: tuple[tuple[str, str], ...]) -> Params:
    """`source` with the last axis of the leaves that match a pattern of `rows` (pattern, file) chosen by that file's map; "" takes all as they are.

    Raises UserError where a pattern matches no leaf of the source, or lengths do not fit.
    """
    wanted = {optim.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    for pattern, name in ((pattern, name) for pattern, name in rows if name):
        found = read(name)
        matched = [path for path in jax.tree.leaves(optim.paths(source)) if re.fullmatch(pattern, path)]
        if not matched:
            raise UserError(f"class map {name!r}: no leaf of the file matches {pattern!r}")

        def one(path: str, value: Any) -> Any:
            if path not in matched or path not in wanted:
                return value
            if len(found.get("source", ())) not in (0, np.shape(value)[-1]):
                raise UserError(f"class map {name!r} is for a source of {len(found['source'])} classes, and the file has {np.shape(value)[-1]}")
            return chosen(np.asarray(value), _whole(wanted[path]), rows=found["rows"], name=name)
        source = jax.tree.map(one, optim.paths(source), source)
    return source


def _whole(leaf: jax.Array, /) -> np.ndarray:
    """A leaf on this host; every process has to ask where others hold parts of it."""
    return np.asarray(leaf) if leaf.is_fully_addressable else parallel.gather(leaf, mesh=leaf.sharding.mesh)
