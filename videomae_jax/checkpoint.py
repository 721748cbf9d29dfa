"""Orbax checkpoints of a train state, and strict transfer of parameters between trees."""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from videomae_jax import optim
from videomae_jax.errors import UserError
from videomae_jax.step import TrainState

ITEMS = ("params", "opt", "extra", "ema")


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state, the step it was saved at and the JSON written beside it."""

    state: TrainState
    step: int
    meta: dict[str, Any]


class Checkpointer:
    """Checkpoints of one run in `directory`, one sub-directory a step, written asynchronously and committed by rename.

    `keep_last` newest are kept, and for ever those whose step is a multiple of `keep_every` (0 = none). A save that a
    killed process left behind is not a checkpoint and is removed. With `read_only` nothing is saved or removed, so that
    a run that is still training can be evaluated.
    """

    def __init__(self, directory: pathlib.Path, /, *, keep_last: int = 2, keep_every: int = 0, read_only: bool = False) -> None:
        if keep_last < 1:
            raise UserError(f"keep_last={keep_last}; allowed are 1 and more")
        keep: list[Any] = [policies.LatestN(keep_last)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(step_format_fixed_length=8, read_only=True) if read_only else ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True,
            save_decision_policy=policies.FixedIntervalPolicy(1), step_format_fixed_length=8)
        self._manager = ocp.CheckpointManager(pathlib.Path(directory).resolve(), options=options, handler_registry=handlers())
        self.directory = pathlib.Path(directory)

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, /, *, meta: dict[str, Any]) -> None:
        """Starts saving; an error of the previous save surfaces here. `step` must be new."""
        self._manager.check_for_errors()
        items = {k: ocp.args.StandardSave(getattr(state, k)) for k in ITEMS if jax.tree.leaves(getattr(state, k))}
        self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(meta)), force=True)

    def wait(self) -> None:
        """Until the last save is committed; raises what went wrong with it."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        """Waits and releases the threads."""
        self.wait()
        self._manager.close()

    def meta(self, step: int, /) -> dict[str, Any]:
        """The JSON saved at `step`."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, abstract: TrainState, /, *, rng: jax.Array) -> Restored:
        """The state of `step`, placed as `abstract` (shapes with shardings) says: any mesh, whatever the saved one was.

        Raises UserError when the checkpoint holds another model.
        """
        wanted = {k: ocp.args.StandardRestore(getattr(abstract, k)) for k in ITEMS if jax.tree.leaves(getattr(abstract, k))}
        self._check_shapes(step, abstract)
        loaded = self._manager.restore(step, args=ocp.args.Composite(**wanted, meta=ocp.args.JsonRestore()))
        parts = {k: loaded[k] if k in wanted else getattr(abstract, k) for k in ITEMS}
        count = jax.device_put(np.int32(step), abstract.step.sharding)
        return Restored(TrainState(step=count, rng=rng, **parts), step, loaded["meta"])

    def latest_good(self, abstract: TrainState, /, *, rng: jax.Array, warn: Callable[[str], None]) -> Restored:
        """The newest step that restores; unreadable ones are reported through `warn` and passed over."""
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, abstract, rng=rng)
            except UserError:
                raise
            except Exception as error:  # what a damaged directory raises is not specified by the storage layer
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warn(f"checkpoint {step} in {self.directory} cannot be read ({reason}); trying the one before")
        raise UserError(f"no readable checkpoint in {self.directory}; its steps are {steps}")

    def _check_shapes(self, step: int, abstract: TrainState, /) -> None:
        """Raises UserError with the first parameter that differs in name or shape."""
        saved = self._manager.item_metadata(step)["params"]
        tree = getattr(saved, "tree", saved)
        if tree is None:
            raise ValueError(f"step {step} has no readable parameter metadata")
        have = {k: tuple(v.shape) for k, v in leaves(tree).items()}
        want = {k: tuple(v.shape) for k, v in leaves(abstract.params).items()}
        for key in sorted(have.keys() | want.keys()):
            if have.get(key) != want.get(key):
                raise UserError(f"checkpoint {self.directory}/{step} is of another model: {key} is {have.get(key, 'absent')} there, "
                                f"{want.get(key, 'absent')} in this config")


def handlers() -> Any:
    """How each item is stored; without it a manager that has not saved yet cannot read metadata."""
    trees = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    return ocp.handlers.create_default_handler_registry(**trees, meta=ocp.JsonCheckpointHandler())


def leaves(tree: Any, /) -> dict[str, Any]:
    """{"a/b/c": leaf} of a nested dict."""
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {optim.path_name(path): leaf for path, leaf in pairs}


def load_params(directory: pathlib.Path, /, *, step: int | None = None, item: str = "params") -> dict[str, Any]:
    """Parameters (or item "ema") of a checkpoint directory as nested dicts of numpy arrays; the newest step by default."""
    options = ocp.CheckpointManagerOptions(step_format_fixed_length=8, read_only=True)
    manager = ocp.CheckpointManager(pathlib.Path(directory).resolve(), options=options, handler_registry=handlers())
    found = manager.latest_step() if step is None else step
    if found is None or found not in manager.all_steps():
        raise UserError(f"no checkpoint {'' if step is None else step} in {directory}; its steps are {sorted(manager.all_steps())}")
    metadata = manager.item_metadata(found)[item]
    tree = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), getattr(metadata, "tree", metadata), is_leaf=lambda x: hasattr(x, "shape"))
    loaded = manager.restore(found, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(tree)}))[item]
    manager.close()
    return jax.tree.map(np.asarray, loaded)


def transfer(target: Any, source: Any, /, *, rename: Sequence[tuple[str, str]] = (), fresh: Sequence[str] = (),
             ignore: Sequence[str] = (), adapt: Callable[[str, Any, Any], Any] | None = None) -> Any:
    """`target` with its leaves taken from `source`, strict both ways.

    Source paths are rewritten by the (pattern, replacement) pairs of `rename`. Each target leaf is restored or matches
    `fresh`; each source leaf is used or matches `ignore`; `adapt(path, value, target_leaf)` may change a value whose
    shape differs. Raises UserError that lists every stray.
    """
    renamed = {}
    for path, leaf in leaves(source).items():
        for pattern, replacement in rename:
            path = re.sub(pattern, replacement, path)
        renamed[path] = leaf
    wanted, problems, result = leaves(target), [], {}
    for path, leaf in wanted.items():
        if any(re.fullmatch(p, path) for p in fresh):
            result[path] = leaf
        elif path not in renamed:
            problems.append(f"{path} is not in the source")
        else:
            value = renamed[path]
            if value.shape != leaf.shape and adapt is not None:
                value = adapt(path, value, leaf)
            if value.shape != leaf.shape:
                problems.append(f"{path} is {tuple(value.shape)} in the source, {tuple(leaf.shape)} in the target")
            result[path] = value
    unused = [p for p in renamed if p not in wanted or any(re.fullmatch(f, p) for f in fresh)]
    problems += [f"{p} of the source is not used" for p in unused if not any(re.fullmatch(i, p) for i in ignore)]
    if problems:
        raise UserError(f"{len(problems)} parameters do not transfer: {'; '.join(problems)}")
    flat, structure = jax.tree_util.tree_flatten_with_path(target)
    return jax.tree_util.tree_unflatten(structure, [result[optim.path_name(path)] for path, _ in flat])
