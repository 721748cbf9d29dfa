"""Weights from files: initial parameters and frozen parts of a recipe (`Objective.externals`).

They are read once, before the first step, strictly in both directions, and placed under the shardings of the leaves they
replace. Frozen ones never enter a checkpoint: `manifest` tells which they were, and whose part maps the data have, and a run that is
resumed or opened reads the same ones again (`settle`).
"""

import dataclasses
import errno
import hashlib
import json
import pathlib
import types
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from videomae_jax import agreement, head_rows, parallel, starts
from videomae_jax import config as configs
from videomae_jax.checkpoint import META, load_params
from videomae_jax.errors import DAMAGED, StorageError, UserError
from videomae_jax.models import resized
from videomae_jax.objectives.base import External
from videomae_jax.transfer import transfer
from videomae_jax.types import Params

FILE, GONE = -1, -2  # in place of a step: weights without one, and those of before that are there no more
LOST = (errno.ENOENT, errno.ESTALE)  # what a file system says of a file that was removed; the second is NFS's word


@dataclasses.dataclass(frozen=True)
class Earlier:
    """Which frozen weights the run in `directory` was trained with: {into: {"sha256": ..., "step": ...}}, the step where it is known.

    `opened` is a run one of whose checkpoints is looked at, which no other weights can stand in for. With `fork` the newest take the place of those that are there no more.
    """

    directory: str = ""
    weights: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    fork: bool = False
    opened: bool = False


def earlier(directory: pathlib.Path, /, *, step: int | None = None, fork: bool = False,
            told: Mapping[str, str] = types.MappingProxyType({})) -> Earlier:
    """Those that starts.jsonl of a run directory tells for the checkpoint of `step` (None = for what comes next).

    What that checkpoint itself has `told`, {into: SHA-256}, comes first: a later fork may have begun before its step.
    """
    known = starts.frozen(directory, step=step)
    own = {into: {"sha256": sha256} for into, sha256 in told.items() if known.get(into, {}).get("sha256") != sha256}
    return Earlier(str(directory), known | own, fork, opened=step is not None)


def settle(externals: Iterable[External], /, *, earlier: Earlier = Earlier()) -> dict[External, str]:
    """{external whose path is that of the one checkpoint to read: its SHA-256 where it is known, else ""}.

    That is the newest one that the first process sees, or what the run was trained with `earlier`. Files, and what is not there, keep their
    paths. All processes call this. Raises UserError where what the run was trained with is there no more, and StorageError where a process does not see the checkpoint of the first one.
    """
    return dict(_settled(external, earlier) for external in externals)


def _settled(external: External, earlier: Earlier, /) -> tuple[External, str]:
    path, before = pathlib.Path(external.path), earlier.weights.get(external.into, {})
    choice, sha256 = _choice(path, before, fork=earlier.fork) if parallel.is_lead() else (GONE, "")
    choice = int(agreement.from_lead(np.asarray(choice)))
    if choice == GONE:
        step = f"checkpoint {before['step']}, " if "step" in before else ""
        there = f"holds {', '.join(map(str, sorted(_steps(path))))}" if _steps(path) else "is another file" if path.exists() else "is not there"
        raise UserError(f"{earlier.directory} was trained with other weights for {external.into} than {external.path} has now: "
                        f"with {step}sha256 {before.get('sha256', '')[:12]}, and {external.path} {there}; put them back"
                        f"{'' if earlier.opened else ', or go on with the newest by train --fork'}")
    if choice == FILE:
        return external, sha256
    agreement.numbers(lambda: [choice] if choice in _steps(path) else [], what=f"step of {path}")  # a shared file system shows it to the others late
    return dataclasses.replace(external, path=str(_folder(path) / f"{choice:08d}")), sha256


def _choice(path: pathlib.Path, before: Mapping[str, Any], /, *, fork: bool) -> tuple[int, str]:
    """The step to read, FILE or GONE, and its SHA-256 where one is asked for: a run that was made anew has steps of the same numbers."""
    steps = sorted(_steps(path), reverse=True)
    newest = steps[0] if steps else FILE
    if not before:
        return newest, ""
    for step in [step for step in steps if before.get("step", step) == step] if steps else [FILE] if path.is_file() else []:
        if digest(path, step=None if step == FILE else step) == before["sha256"]:
            return step, before["sha256"]
    return (newest, "") if fork else (GONE, "")


def read(external: External, /) -> Params:
    """Nested dicts of numpy arrays of a run directory or a directory of checkpoints (newest step), of a checkpoint, or of an .npz of "a/b/c" arrays."""
    path = pathlib.Path(external.path)
    if path.is_dir():
        newest = _newest(path)
        return load_params(newest.parent, step=int(newest.name), item=external.item)
    allowed = "allowed are a run directory, a directory of checkpoints, one of them and an .npz file of arrays"
    if not path.is_file():
        raise UserError(f"external weights {external.path!r} for {external.into} are not there; {allowed}")
    if path.suffix != ".npz":
        raise UserError(f"external weights {external.path!r} for {external.into} are none that can be read; {allowed}; `convert` makes a run directory of others")
    try:
        with np.load(path) as arrays:  # allow_pickle stays off
            return traverse_util.unflatten_dict(dict(arrays), sep="/")
    except (*DAMAGED, AttributeError, TypeError) as error:
        raise UserError(f"external weights {external.path!r} for {external.into} cannot be read ({error}); {allowed}") from error


def _folder(path: pathlib.Path, /) -> pathlib.Path:
    """The folder of the checkpoints of a run directory, of a folder of them, or of one of them."""
    if (path / "checkpoints").is_dir():
        return path / "checkpoints"
    return path.parent if head_rows.is_step(path) and not any(p.name.isdigit() for p in path.iterdir()) else path


def _steps(path: pathlib.Path, /) -> list[int]:
    """Those in a directory of checkpoints or in that of a run, or the one whose own folder `path` is; [] for all else."""
    if not path.is_dir():
        return []
    folder = _folder(path)
    found = [path] if folder == path.parent else [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
    return [int(p.name) for p in found]


def _newest(directory: pathlib.Path, /) -> pathlib.Path:
    """The newest step in a directory of checkpoints, or in that of a run."""
    if not (steps := _steps(directory)):
        raise UserError(f"{directory} holds no checkpoint")
    return _folder(directory) / f"{max(steps):08d}"


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
        stored = next((p / "config.json" for p in head_rows.owners(path) if (p / "config.json").is_file()), None)
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


def manifest(settled: Mapping[External, str], /, *, source: Any = None) -> dict[str, dict[str, Any]]:
    """`outside` of what `settle` gave, with the "sha256" of every file and the "step" of every checkpoint, for starts.jsonl: two runs with
    different files differ there, and the same run reads the same ones again (`earlier`). A checkpoint's files also tell when and by which code they
    were written; "values" is of its arrays alone, the same for a training that was repeated. Raises StorageError for a file that is there no more.
    """
    known = {external.into: sha256 for external, sha256 in settled.items()}
    items = {external.into: external.item for external in settled}
    found = {}
    for into, about in outside(settled, source=source).items():
        path = pathlib.Path(about["path"])
        step = {"step": int(path.name)} if into in known and head_rows.is_step(path) else {}
        found[into] = about | step | {"sha256": known.get(into) or digest(path)} | (_values(path, item=items[into]) if step else {})
    return found


def _values(checkpoint: pathlib.Path, /, *, item: str) -> dict[str, str]:
    """{"values": SHA-256 of names, shapes, dtypes and checksums of the arrays of an item}; {} where the metadata do not tell, which whoever reads them says."""
    try:
        leaves = json.loads((checkpoint / META).read_text())["leaves"][item]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return {"values": hashlib.sha256(json.dumps(leaves, sort_keys=True).encode()).hexdigest()}


def digest(path: pathlib.Path, /, *, step: int | None = None) -> str:
    """SHA-256 of a file; of a directory of checkpoints, over the names and digests of the files of `step` (None = the newest).

    Raises StorageError for a file or a step that is there no more, or goes meanwhile, as older ones of a run in progress do.
    """
    what, total = str(path), hashlib.sha256()
    try:
        if not path.is_dir():
            return _of_file(path)
        folder = _newest(path) if step is None else _folder(path) / f"{step:08d}"
        what, files = f"checkpoint {int(folder.name)} in {folder.parent}", _files(folder)
        for file in files:
            total.update(f"{file.relative_to(folder).as_posix()} {_of_file(file)}\n".encode())
        if files and _files(folder) == files:
            return total.hexdigest()
    except OSError as error:
        if error.errno not in LOST:
            raise
    raise StorageError(f"{what} is there no more: a run in progress removes older ones; repeat the command")


def _of_file(path: pathlib.Path, /) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: pathlib.Path, /) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())
