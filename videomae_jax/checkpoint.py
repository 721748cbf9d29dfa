"""Orbax checkpoints of a train state with a checksum of every leaf."""

import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from videomae_jax import agreement, manifest, parallel
from videomae_jax.aside import free
from videomae_jax.durable import Durable
from videomae_jax.errors import StorageError, UserError
from videomae_jax.fingerprints import different, named, started, unlike
from videomae_jax.manifest import seal
from videomae_jax.step import TrainState

META = "meta/metadata"  # where the storage layer puts the JSON of a checkpoint
ITEMS = ("params", "opt", "extra", "ema")
BULK = 1 << 20  # bytes from which on a file holds nothing but values of arrays
REASON = 160  # characters of a cause that a warning quotes
SEAL = "sha256"  # key of the digest of the other metadata
PATIENCE = 30.0  # seconds that a save waits for the one before; a slower storage puts it off
RETRY = (10.0, 300.0)  # seconds to the first new try after a failed save, doubled each time up to the second
BACKGROUND = 1200  # seconds until a save in the background counts as failed


class DamagedError(UserError):
    """A checkpoint that cannot be read or whose content is not what was saved; `agreed` when every process finds it so."""

    def __init__(self, message: str, /, *, agreed: bool = False) -> None:
        super().__init__(message)
        self.agreed = agreed


@dataclasses.dataclass(frozen=True)
class Restored:
    """A state, the step it was saved at and the JSON written beside it."""

    state: TrainState
    step: int
    meta: dict[str, Any]


class _Manager(ocp.CheckpointManager):
    """Asks nothing of jax's preemption service: a question with the step of a save, from its background thread too, sets the
    service's counter back, and the processes agree on a stop at a question of the loop that has passed (`stopping.Stop`)."""

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpointer:
    """Checkpoints of one run in `directory`, one sub-directory a step, written asynchronously and committed by rename.

    `keep_last` newest are kept, and for ever those whose step is a multiple of `keep_every` (0 = none). A save that a
    killed process left behind is not a checkpoint and is removed. With `read_only` nothing is saved or removed, so that
    a run that is still training can be evaluated. `warn` is told of what went wrong and can be lived with.

    Every committed step is handed to the `second` place, if there is one; `latest_good` looks for steps in both.
    The metadata hold a checksum of every leaf, computed on the devices from what is saved, and one of themselves; beside
    them lies one of every file (`manifest`). A save that fails or is late is tried again (`due`); `failures` counts them.
    """

    def __init__(self, directory: pathlib.Path, /, *, keep_last: int = 2, keep_every: int = 0, read_only: bool = False,
                 warn: Callable[[str], None] = warnings.warn, second: Durable | None = None) -> None:
        if keep_last < 1:
            raise UserError(f"keep_last={keep_last}; allowed are 1 and more")
        if read_only and not pathlib.Path(directory).is_dir():
            raise UserError(f"no checkpoint in {directory}: there is no such folder")
        keep: list[Any] = [policies.LatestN(None if read_only else keep_last)]
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep), create=not read_only, cleanup_tmp_directories=not read_only,
            save_decision_policy=policies.FixedIntervalPolicy(1), step_format_fixed_length=8,
            async_options=ocp.AsyncOptions(timeout_secs=BACKGROUND, post_finalization_callback=self._seal))
        self._manager = _Manager(pathlib.Path(directory).resolve(), options=options, handler_registry=handlers())
        self.directory, self._warn, self._second = pathlib.Path(directory), warn, second
        self._step, self._failure, self.failures = -1, "", 0  # of the newest save; of all
        self._unsealed: Callable[[], dict[str, Any]] = dict  # gives the metadata of the newest save
        self._offered = -1  # newest step that the second place knows of
        self._again, self._pause = float("inf"), RETRY[0]  # when to try again, and how long to wait after the next failure

    def steps(self) -> list[int]:
        """Committed steps, oldest first."""
        return sorted(self._manager.all_steps())

    @property
    def failed(self) -> bool:
        """Whether the newest save is known to have failed."""
        return bool(self._failure)

    def due(self) -> bool:
        """Whether a save that failed or was put off is to be tried again now; one process decides for itself alone."""
        return time.monotonic() >= self._again

    def save(self, step: int, state: TrainState, /, *, meta: dict[str, Any], last: bool = False) -> None:
        """Starts saving once the save before is done. `step` must be new, and this instance not `read_only`.

        A save that fails (a full disk), or finds the one before still under way after PATIENCE, is reported through `warn`
        and training goes on: `due` tells when to try again. The `last` one waits. With several processes a failure raises
        StorageError, since the others wait for this one.
        """
        begin = time.monotonic()
        while jax.process_count() == 1 and not last and self._manager.is_saving_in_progress():
            if time.monotonic() - begin > PATIENCE:
                self._put_off()
                self._warn(f"checkpoint {step} is put off: that of step {self._step} has been under way for {PATIENCE:.0f} s and more; the storage is slow")
                return
            time.sleep(0.01)
        self.check(wait=True)
        self._step, self._failure, self._again = step, "", float("inf")
        items = {k: ocp.args.StandardSave(getattr(state, k)) for k in ITEMS if jax.tree.leaves(getattr(state, k))}
        leaves = {k: started(getattr(state, k)) for k in items}
        self._unsealed = lambda: {**meta, "files": manifest.NAME, "leaves": {k: answer() for k, answer in leaves.items()}}
        try:
            self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave({})), force=True)
        except Exception as error:  # what the storage layer raises is not specified
            self._failed(error)

    def _seal(self) -> None:
        """Runs in the background, on the lead alone, when all files of a save are there and nothing is committed: training does not wait for checksums."""
        (found,) = self.directory.glob(f"{self._step:08d}.orbax-checkpoint-tmp*")
        (found / META).write_text(json.dumps(seal(self._unsealed())))
        manifest.write(found, step=self._step)

    def check(self, *, wait: bool = False) -> None:
        """Reports a save that failed in the background; with `wait`, once it is over."""
        if not wait and self._manager.is_saving_in_progress():
            return  # asking the storage layer now would take the error away from its own thread, which then counts the step as saved
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # what the storage layer raises is not specified
            self._failed(error)
        else:
            if not self._failure:
                self._pause = RETRY[0]
                self._offer(self._step)

    def _offer(self, step: int, /) -> None:
        if self._second and step > self._offered:
            self._second.offer(step)
            self._offered = step

    def _put_off(self) -> None:
        self.failures += 1
        self._again, self._pause = time.monotonic() + self._pause, min(2 * self._pause, RETRY[1])

    def _failed(self, error: Exception, /) -> None:
        self._failure = reason(error)
        self._put_off()
        if jax.process_count() > 1:
            raise StorageError(f"checkpoint {self._step} cannot be written to {self.directory} ({self._failure})") from error
        self._warn(f"checkpoint {self._step} cannot be written to {self.directory} ({self._failure}); training goes on, it is tried again")

    def wait(self) -> None:
        """Until the last save is committed. Raises StorageError when it failed: the run goes on from the one before."""
        self.check(wait=True)
        if self._failure:
            raise StorageError(f"the last checkpoint, of step {self._step}, is not written to {self.directory} ({self._failure}); its steps are {self.steps()}")

    def close(self) -> None:
        """Waits and releases the threads."""
        self.check(wait=True)
        self._manager.close()

    @contextlib.contextmanager
    def _reading(self, step: int, /) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # what a damaged directory raises is not specified by the storage layer
            raise DamagedError(f"checkpoint {step} in {self.directory} cannot be read ({reason(error)})") from error

    def meta(self, step: int, /) -> dict[str, Any]:
        """The JSON saved at `step`. Raises DamagedError when it cannot be read or is not what was saved."""
        with self._reading(step):  # as every process for itself can: the storage layer lets all of them wait for one
            found = json.loads((self.directory / f"{step:08d}" / META).read_text())
        if not isinstance(found, dict) or seal(found) != found:
            raise DamagedError(f"checkpoint {step} in {self.directory} is damaged: its metadata do not match their checksum", agreed=True)
        if not manifest.described(found.get("leaves")):
            raise DamagedError(f"checkpoint {step} in {self.directory} is damaged: its metadata do not describe arrays", agreed=True)
        return {k: v for k, v in found.items() if k != SEAL}

    def check_files(self, step: int, meta: dict[str, Any], /, *, sizes: tuple[float, float] = manifest.ALL) -> None:
        """Raises DamagedError, on every process, when a file of `sizes` bytes differs from what was committed; each process reads its share.

        Checkpoints of before there were checksums of files are told by their metadata, and pass.
        """
        if "files" not in meta:
            return
        wrong = manifest.problem(self.directory / f"{step:08d}", step=step, part=jax.process_index(), parts=jax.process_count(), sizes=sizes)
        if wrong := agreement.anywhere(wrong):
            raise DamagedError(f"checkpoint {step} in {self.directory} is damaged: {wrong}", agreed=True)

    def _agreed_meta(self, step: int, /) -> dict[str, Any]:
        """`meta`. Raises DamagedError on every process when one of them cannot read it."""
        meta, wrong = {}, ""
        try:
            meta = self.meta(step)
        except DamagedError as error:
            wrong = str(error)
        if found := agreement.anywhere(wrong):
            raise DamagedError(wrong or f"checkpoint {step} in {self.directory} is damaged: {found}", agreed=True)
        return meta

    def newest(self, *, repair: bool) -> tuple[int, dict[str, Any]] | None:
        """The newest step whose metadata can be read, with them, or None. Damaged ones are reported, and with `repair` moved away."""
        damaged, found = [], None
        for step in reversed(self.candidates()):
            try:
                found = step, self._agreed_meta(step)
                break
            except DamagedError as error:
                self._warn(str(error))
                damaged.append(step)
        if repair:
            self.set_aside(damaged, "damaged")
        return found

    def restore(self, step: int, abstract: TrainState, /, *, rng: jax.Array, items: Sequence[str] = ITEMS) -> Restored:
        """The state of `step`, placed as `abstract` (shapes with shardings) says: any mesh, whatever the saved one was.

        Averages that were not kept before begin at the parameters; those that are no longer kept are left behind. Items that are not asked for stay abstract. Raises DamagedError where it cannot be read or differs from what was
        saved, and UserError when the checkpoint holds another model.

        A single process compares large files, which hold nothing but values, while the storage layer reads them: nobody waits for it alone.
        """
        with concurrent.futures.ThreadPoolExecutor(1) as pool, self._reading(step):
            meta, alone = self._agreed_meta(step), jax.process_count() == 1
            self.check_files(step, meta, sizes=(0, BULK) if alone else manifest.ALL)
            self.check_leaves(step, meta, abstract, items=items)
            bulk = pool.submit(self.check_files, step, meta, sizes=(BULK, float("inf"))) if alone else None
            wanted = {k: ocp.args.StandardRestore(getattr(abstract, k)) for k in items if jax.tree.leaves(getattr(abstract, k)) and k in meta["leaves"]}
            loaded = self._manager.restore(step, args=ocp.args.Composite(**wanted))
            if bulk:
                bulk.result()
        for item in wanted:
            self._compare(step, item, loaded[item], meta)
        parts = {k: loaded[k] if k in wanted else getattr(abstract, k) for k in ITEMS}
        if "ema" in items and "ema" not in wanted and "params" in wanted:
            parts["ema"] = jax.tree.map(jnp.copy, loaded["params"]) if abstract.ema else {}
        count = jax.device_put(np.int32(step), abstract.step.sharding)
        return Restored(TrainState(step=count, rng=rng, **parts), step, meta)

    def _compare(self, step: int, item: str, tree: Any, meta: dict[str, Any], /) -> None:
        if wrong := different(tree, meta["leaves"][item]):
            raise DamagedError(f"checkpoint {step} in {self.directory} is damaged: {len(wrong)} of {len(named(tree))} arrays do not match their checksum, "
                               f"first {item}/{wrong[0]}", agreed=True)

    def load(self, step: int, /, *, item: str) -> Any:
        """An item of `step` as nested dicts of numpy arrays. Raises UserError when it is absent, DamagedError as `restore` does."""
        with self._reading(step):
            meta = self._agreed_meta(step)
            self.check_files(step, meta)
            saved = meta["leaves"]
            if item not in saved:
                raise UserError(f"checkpoint {step} in {self.directory} has no {item!r}; it has {', '.join(saved)}")
            metadata = self._manager.item_metadata(step)[item]
            tree = jax.tree.map(lambda m: np.empty(m.shape, m.dtype), getattr(metadata, "tree", metadata), is_leaf=lambda x: hasattr(x, "shape"))
            loaded = self._manager.restore(step, args=ocp.args.Composite(**{item: ocp.args.StandardRestore(tree)}))[item]
        loaded = jax.tree.map(np.asarray, loaded)
        self._compare(step, item, loaded, meta)
        return loaded

    def candidates(self) -> list[int]:
        """Steps of both places as the first process sees them, oldest first; all processes call this.

        Raises StorageError where nothing is here and the second place cannot be asked, or another process sees less.
        """
        return self._told()[1]

    def _told(self) -> tuple[list[int], list[int]]:
        """Those here, by which every process decides what to do with the others, and `candidates`."""
        here = agreement.numbers(self._listed, what="checkpoint")
        return here, sorted({*here, *self._second.steps(needed=not here)}) if self._second else here

    def _listed(self) -> list[int]:
        self._manager.reload()
        return self.steps()

    def latest_good(self, abstract: TrainState, /, *, rng: jax.Array) -> Restored:
        """The newest step of both places that restores. Damaged newer ones are reported and moved to `checkpoints_damaged` beside it.

        They must not stay: their steps will be saved again. They are moved only once another is read, so that a run
        whose checkpoints are all damaged never starts afresh in silence. Raises UserError where none is readable, and StorageError where
        one does not arrive from the second place: older ones are no way out of an outage.
        """
        damaged, (here, steps) = [], self._told()
        for step in reversed(steps):
            restored = self._readable(step, abstract, rng=rng) if step in here else None
            if restored is None and self._second and self._fetched(step, here=step in here):
                here = [*here, step]
                restored = self._readable(step, abstract, rng=rng)
            if restored is not None:
                self.set_aside(damaged, "damaged")
                self._offer(step)
                return restored
            if step in here:
                damaged.append(step)
        raise UserError(f"no readable checkpoint in {self.directory}; its steps are {steps}. Use a new --workdir, or repair or remove them")

    def _readable(self, step: int, abstract: TrainState, /, *, rng: jax.Array) -> Restored | None:
        try:
            return self.restore(step, abstract, rng=rng)
        except DamagedError as error:
            if jax.process_count() > 1 and not error.agreed:
                # As likely another process was lost amid a collective, whose errors have no type of their own: no user's mistake.
                raise StorageError(f"{error}; all processes have to start again; if it repeats, move the checkpoint away") from error
            self._warn(f"{error}; trying the one before")
            return None

    def _fetched(self, step: int, /, *, here: bool) -> bool:
        """Whether the second place gave its copy of a step, which takes the place of a damaged one where one is `here`."""
        fetched = self.directory.with_name(f"{self.directory.name}_fetched") / f"{step:08d}"
        if good := self._second.fetch(step, into=fetched):
            self.set_aside([step] if here else [], "damaged")
            if parallel.is_lead():
                fetched.rename(self.directory / fetched.name)
            agreement.numbers(self._listed, what="checkpoint")  # a shared file system shows it to the others late
            self._warn(f"checkpoint {step} is brought back from the durable place")
        return good

    def retreat(self, step: int, /) -> None:
        """Moves checkpoints of later steps to `checkpoints_abandoned`: the run goes on from `step` or before, and saves theirs again.

        The updates since `step` were skipped and changed nothing: where no checkpoint as old as that is kept, the oldest one serves.
        """
        self.check(wait=True)
        here, steps = self._told()
        step = max(step, min(steps, default=step))
        self.set_aside([s for s in here if s > step], "abandoned")
        self._step, self._offered = -1, -1  # as at a start: what is restored next is offered to the second place, which may hold none as old
        if self._second:
            self._second.forget(step)

    def set_aside(self, steps: Sequence[int], why: str, /) -> None:
        """Moves steps to the folder `<directory>_<why>`. All processes call this."""
        if not steps:
            return
        aside = self.directory.with_name(f"{self.directory.name}_{why}")
        for step in steps if parallel.is_lead() else ():
            aside.mkdir(exist_ok=True)
            (self.directory / f"{step:08d}").rename(free(aside / f"{step:08d}"))
        parallel.barrier("checkpoints set aside")
        self._manager.reload()
        self._warn(f"{why} checkpoints {', '.join(map(str, steps))} now lie in {aside}")

    def check_leaves(self, step: int, meta: dict[str, Any], abstract: TrainState, /, *, items: Sequence[str] = ITEMS) -> None:
        """Raises UserError with the first leaf that differs from the saved one in name, shape or dtype.

        Averages may be there or not: `restore` starts or leaves them.
        """
        for item in items:
            if item == "ema" and not (meta["leaves"].get(item) and jax.tree.leaves(abstract.ema)):
                continue
            if found := unlike(getattr(abstract, item), meta["leaves"].get(item, {})):
                what = "model" if item == "params" else f"model or optimiser ({item})"
                raise UserError(f"checkpoint {self.directory}/{step:08d} is of another {what}: {found}")


def reason(error: Exception, /) -> str:
    """The beginning of the first line of what an exception says, or else its name; the storage layer prints its whole configuration."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if len(line) <= REASON else f"{line[:REASON]} ..."


def handlers() -> Any:
    """How each item is stored; without it a manager that has not saved yet cannot read metadata."""
    trees = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    return ocp.handlers.create_default_handler_registry(**trees, meta=ocp.JsonCheckpointHandler())


def load_params(directory: pathlib.Path, /, *, step: int | None = None, item: str = "params") -> dict[str, Any]:
    """Parameters (or item "ema") of a checkpoint directory as nested dicts of numpy arrays; the newest step by default.

    Raises UserError for a step or item that is not there and DamagedError where arrays differ from what was saved.
    """
    saver = Checkpointer(directory, read_only=True)
    steps = saver.steps()
    found = (steps or [None])[-1] if step is None else step
    if found is None or found not in steps:
        raise UserError(f"no checkpoint {'' if step is None else step} in {directory}; its steps are {steps}")
    try:
        return saver.load(found, item=item)
    finally:
        saver.close()
