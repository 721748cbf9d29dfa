"""Heads that start from the rows of another head: which class of the source each class of the target takes over.

The file is JSON: a list with an entry for every class of the target, the number of the class in the source or -1 for a row that
stays fresh (the format of V2's label_710to400.json), or an object that holds the list as "rows" and the names of the classes on
both sides as "source" and "target", as `index --merge` writes it.
"""

import json
import pathlib
import re
from typing import Any

import jax
import numpy as np

from videomae_jax import optim, parallel
from videomae_jax.errors import UserError
from videomae_jax.types import Params


def read(path: str, /) -> dict[str, Any]:
    """{"rows": i64 [classes of the target], and "source" and "target" names where the file has them}. Raises UserError."""
    try:
        found = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"class map {path!r} cannot be read: {error}") from error
    found = found if isinstance(found, dict) else {"rows": found}
    rows = found.get("rows")
    if not isinstance(rows, list) or not rows or not all(type(row) is int and row >= -1 for row in rows):
        raise UserError(f"class map {path!r} is neither a list of class numbers (-1 = none) nor an object with such a list as 'rows'")
    if "target" in found and len(found["target"]) != len(rows):
        raise UserError(f"class map {path!r} has {len(rows)} rows for {len(found['target'])} target classes")
    return found | {"rows": np.asarray(rows, np.int64)}


def chosen(value: np.ndarray, fresh: np.ndarray, /, *, rows: np.ndarray, name: str) -> np.ndarray:
    """[... K] whose class i is class rows[i] of `value` [... K'], or of `fresh` [... K] itself where the row is -1."""
    if len(rows) != fresh.shape[-1]:
        raise UserError(f"class map {name!r} is for {len(rows)} classes, and the head has {fresh.shape[-1]}")
    if rows.max() >= value.shape[-1]:
        raise UserError(f"class map {name!r} asks for class {rows.max()}, and the head in the file has {value.shape[-1]} (0 to {value.shape[-1] - 1})")
    return np.where(rows < 0, fresh, value[..., np.maximum(rows, 0)])


def select(source: Params, target: Params, /, *, rows: tuple[tuple[str, str], ...]) -> Params:
    """`source` with the last axis of the leaves that match a pattern of `rows` (pattern, file) chosen by that file's map.

    Raises UserError where a pattern matches no leaf of the source, or lengths do not fit.
    """
    wanted = {optim.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
    for pattern, name in rows:
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
