"""Weights from files: initial parameters and frozen parts of a recipe (`Objective.externals`).

They are read once, before the first step, strictly in both directions, and placed under the shardings of the leaves they
replace. Frozen ones never enter a checkpoint: a resumed run reads its files again, and `manifest` tells which they were, and
whose part maps the data have.
"""

import contextlib
import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from videomae_jax import config as configs
from videomae_jax import head_rows, parallel
from videomae_jax.checkpoint import load_params
from videomae_jax.errors import DAMAGED, StorageError, UserError
from videomae_jax.models import resized
from videomae_jax.objectives.base import External
from videomae_jax.transfer import transfer
from videomae_jax.types import Params


def read(external: External, /) -> Params:
    """Nested dicts of numpy arrays of a run directory, a directory of checkpoints (newest step), or an .npz of "a/b/c" arrays."""
    path = pathlib.Path(external.path)
    if path.is_dir():
        newest = _newest(path)
        return load_params(newest.parent, step=int(newest.name), item=external.item)
    allowed = "allowed are a run directory, a directory of checkpoints and an .npz file of arrays"
    if not path.is_file():
        raise UserError(f"external weights {external.path!r} for {external.into} are not there; {allowed}")
    if path.suffix != ".npz":
        raise UserError(f"external weights {external.path!r} for {external.into} are none that can be read; {allowed}; `convert` makes a run directory of others")
    try:
        with np.load(path) as arrays:  # allow_pickle stays off
            return traverse_util.unflatten_dict(dict(arrays), sep="/")
    except (*DAMAGED, AttributeError, TypeError) as error:
        raise UserError(f"external weights {external.path!r} for {external.into} cannot be read ({error}); {allowed}") from error


def _newest(directory: pathlib.Path, /) -> pathlib.Path:
    """The newest step in a directory of checkpoints, or in that of a run."""
    folder = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    steps = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
    if not steps:
        raise UserError(f"{directory} holds no checkpoint")
    return max(steps, key=lambda p: int(p.name))


def load(tree: Params, externals: Iterable[External], /, *, root: str) -> Params:
    """`tree` (placed arrays) with the leaves that the externals into `root` replace, under the same shardings.

    Raises UserError that names the file and every leaf that is missing, unused or of another shape.
    """
    for external in externals:
        first, *rest = external.into.split("/")
        if first == root:
            tree = _replace(tree, rest, external)
    return tree


def _replace(tree: Params, into: list[str], external: External, /) -> Params:
    if into:
        if not isinstance(tree, dict) or into[0] not in tree:
            known = ", ".join(tree) if isinstance(tree, dict) else "an array"
            raise UserError(f"external into {external.into!r}: {into[0]!r} is not among {known}")
        return tree | {into[0]: _replace(tree[into[0]], into[1:], external)}
    try:
        source = head_rows.select(read(external), tree, rows=external.rows)
        found = transfer(tree, source, rename=external.rename, fresh=external.fresh, ignore=external.ignore)
    except UserError as error:
        raise UserError(f"{external.path} into {external.into}: {error}") from error

    def one(old: jax.Array, new: Any) -> jax.Array:
        return old if new is old else parallel.place(np.asarray(new, old.dtype), old.sharding)
    return jax.tree.map(one, tree, found)


def check_positions(externals: Iterable[External], /, *, encoders: Mapping[str, Any]) -> None:
    """Raises UserError where an encoder would give tokens the positions of another grid than its weights were trained on.

    `encoders` holds {into: encoder that takes the weights}. V1's and V2's table is no parameter, so nothing else tells: weights of
    16 frames in a plain `vit.Encoder` of 32 are silently scrambled. Weights of files without a config are not checked.
    """
    for external in externals:
        path = pathlib.Path(external.path)
        stored = next((p / "config.json" for p in (path, path.parent) if (p / "config.json").is_file()), None)
        if external.into not in encoders or stored is None:
            continue
        node = configs.from_json(stored.read_text()).get("objective", {}).get("encoder", {})
        if not str(node.get(configs.SYMBOL, "")).startswith("videomae_jax.models."):
            continue
        theirs, ours = resized.fixed_grid(configs.build(node)), resized.fixed_grid(encoders[external.into])
        if None not in (theirs, ours) and theirs != ours:
            raise UserError(f"the weights in {external.path} were trained with positions of a grid {theirs} (t, h, w), and the encoder of {external.into} "
                            f"computes those of {ours}: use videomae_jax.models.resized.Encoder with trained={theirs}, which resizes the table")


def outside(externals: Iterable[External], /, *, source: Any = None) -> dict[str, dict[str, str]]:
    """{into: {"path", "label"}} of what a run takes from others.

    What the `source` of the clips reads of outside parts (its `outside`, {field: label}) stands there as "data/FIELD", with the path of
    the index that names the files.
    """
    found = {e.into: {"path": e.path, "label": e.label} for e in externals}
    while hasattr(source, "source"):  # clips that the devices cut hold the source of the files
        source = source.source
    return found | {f"data/{k}": {"path": source.index, "label": label} for k, label in getattr(source, "outside", {}).items()}


def manifest(externals: Iterable[External], /, *, source: Any = None) -> dict[str, dict[str, str]]:
    """`outside` with the "sha256" of every file, for starts.jsonl: two runs with different files differ there."""
    return {into: about | {"sha256": digest(pathlib.Path(about["path"]))} for into, about in outside(externals, source=source).items()}


def digest(path: pathlib.Path, /, *, step: int | None = None) -> str:
    """SHA-256 of a file; of a directory of checkpoints, over the names and digests of the files of `step` (None = the newest).

    Raises StorageError for a step that is there no more, or goes meanwhile, as older ones of a run in progress do.
    """
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    folder, total = _newest(path), hashlib.sha256()
    folder = folder if step is None else folder.with_name(f"{step:0{len(folder.name)}d}")
    with contextlib.suppress(FileNotFoundError):  # what is gone is told below
        files = _files(folder)
        for file in files:
            total.update(f"{file.relative_to(folder).as_posix()} {digest(file)}\n".encode())
        if files and _files(folder) == files:
            return total.hexdigest()
    raise StorageError(f"checkpoint {int(folder.name)} in {folder.parent} is there no more: a run in progress removes older ones; repeat the command")


def _files(folder: pathlib.Path, /) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())
