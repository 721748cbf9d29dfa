"""The files of a run directory: config, card, faults, summary."""

import collections
import contextlib
import fnmatch
import json
import pathlib
import secrets
import sys
import time
from typing import Any

import jax
import numpy as np

from videomae_jax import agreement, card, journal, metrics, occupancy, parallel, run_data
from videomae_jax import config as configs
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.checkpoint import Checkpointer, DamagedError
from videomae_jax.data import quarantine
from videomae_jax.durable import CUT, Durable
from videomae_jax.errors import StorageError, UserError, unwritable
from videomae_jax.evals.base import Context, Headlined
from videomae_jax.head_rows import CLASSES, check_own, told
from videomae_jax.models import kernels
from videomae_jax.ownership import BEST, OWNER, RUN
from videomae_jax.run_data import DATA
from videomae_jax.whole import renew, write

GROUPS = ("objective", "data", "eval_data", "optimizers", "evaluators", "checkpoint", "log", "mesh")
NEEDED: dict[str, Any] = {**dict.fromkeys(GROUPS, dict), "total": (str, int), "batch_size": int}  # of a stored config
FIRST = ("recipe_card.json", "recipe_card.txt", CLASSES, DATA, "config.json")  # what a start writes before it trains
TEMPORARY = tuple(f".{name}.[0-9]*" for name in (*FIRST, *RUN, CUT))  # of files that a start was killed amid, a durable place's too
SHARED = ".shared."  # begins the name of a file by which processes see whether they share the run directory
WINDOW = 1000  # decoded clips over which the share of unreadable ones is taken


def claim(run: Assembly, directory: pathlib.Path, /, *, extend: bool, fork: bool, say: Any, place: Durable | None = None) -> Assembly:
    """Checks that `directory` is new or holds this run, then writes config.json and the recipe card. A run of which only the `place` is left is taken up.
    Returns the run with the frozen weights that it was trained with so far.

    Logging, evaluation, mesh, workers, micro-batches and remat may change freely; the total needs `extend`; learning
    rate, data, batch and seed need `fork`, and so do other frozen weights; the model never changes. Raises UserError with every difference, before
    anything but the lock is written, and StorageError where the disk is full or fails.
    """
    if jax.process_count() > 1:  # NFS remembers for a minute that a folder was not there when it was looked for
        if parallel.is_lead():
            with contextlib.suppress(OSError):  # which `check_shared` says
                directory.mkdir(parents=True, exist_ok=True)
        parallel.barrier("made")
    check_free(directory, also=(*RUN, BEST) if place else ())  # before the lock is written there
    with occupancy.alone(directory, say=say):
        if place:
            place.recall()
            parallel.barrier("recalled")
            check_free(directory)
        return _claim(run, directory, extend=extend, fork=fork, say=say)


def check_free(directory: pathlib.Path, /, *, also: tuple[str, ...] = ()) -> None:
    """Raises UserError where `directory` is no run directory and not new, or may not be entered, StorageError where the disk fails.

    What a start that ended early leaves may lie there, and names that match `also`.
    """
    try:
        if (directory / "config.json").exists():
            return
        if directory.exists() and not directory.is_dir():
            raise UserError(f"--workdir={directory} is a file; needed is a folder, or a name that is still free")
        names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    except OSError as error:
        raise unwritable(directory, error) from error
    patterns = (*FIRST, *TEMPORARY, occupancy.FILE, f"{SHARED}*", *also)
    if not all(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns) for name in names):
        raise UserError(f"{directory} is not empty and holds no config.json, so it is not a run directory; use a new --workdir")


def _claim(run: Assembly, directory: pathlib.Path, /, *, extend: bool, fork: bool, say: Any) -> Assembly:
    changed, newest = [], 0
    if (directory / "config.json").exists():
        difference = configs.compare(open_run(directory), run.config)
        if not begun(directory):
            difference = dict.fromkeys(difference, [])
        else:
            difference["fork"] += run_data.other(run.source, directory)
        if difference["never"]:
            raise UserError(f"{directory} holds another config, and these fields may never change: {'; '.join(difference['never'])}; use a new --workdir")
        if difference["fork"] and not fork:
            raise UserError(f"{directory} holds another config: {'; '.join(difference['fork'])}; repeat with --fork to go on with the new values")
        if difference["extend"] and not (extend or fork):
            raise UserError(f"{directory} holds another config: {'; '.join(difference['extend'])}; repeat with --extend to go on to the new total")
        for line in (line for lines in difference.values() for line in lines):
            say(f"changed since the run began: {line}")
        changed = difference["fork"]
        run_data.check_epochs(changed, run, directory)
        if begun(directory):
            check_own(directory, run.head_names, kind=run.objective.head_kind)
        newest = check_newest(run, directory)
    names = told(directory if begun(directory) else None, run.head_names, kind=run.objective.head_kind, externals=run.objective.externals())
    run = run.after(directory, fork=fork) if begun(directory) else run
    run.frozen_weights  # noqa: B018 (raises where those of before are there no more)
    parallel.barrier("claimed")
    check_shared(directory)
    if parallel.is_lead():
        try:
            run_data.set_rows_aside(changed, directory, step=newest)
            _write_first(run, directory, names=names)
        except OSError as error:
            raise unwritable(directory, error) from error
    parallel.barrier("written")
    return run


def _write_first(run: Assembly, directory: pathlib.Path, /, *, names: tuple[str, ...]) -> None:
    """The files of FIRST, with `names` for the outputs of a head of as many; what earlier starts left of them goes."""
    values = card.card(run)
    for path in (path for pattern in TEMPORARY for path in directory.glob(pattern)):
        path.unlink()
    renew(directory / "recipe_card.json", json.dumps(values, indent=2))
    renew(directory / "recipe_card.txt", card.text(values))
    if not begun(directory):  # what an earlier try with another config left
        for path in (directory / CLASSES, *directory.glob("quarantine*.jsonl"), *directory.glob("faults*.jsonl")):
            path.unlink(missing_ok=True)
    head = getattr(run.objective, "head", None)
    if getattr(head, "classes", 0) == len(names) > 0:
        renew(directory / CLASSES, json.dumps(names))  # for whoever has the weights without the data
    renew(directory / DATA, json.dumps(run_data.contents(run.source)))
    renew(directory / "config.json", configs.to_json(run.config))  # last: what makes it a run directory


def check_claimed(run: Assembly, directory: pathlib.Path, /) -> None:
    """Raises UserError, in every process, where another start has claimed `directory` with another config since this one did."""
    lines: list[str] = []
    if parallel.is_lead() and (directory / "config.json").exists():
        lines = [line for lines in configs.compare(open_run(directory), run.config).values() for line in lines]
    if agreement.from_lead(np.asarray(bool(lines))):
        raise UserError(f"another start has claimed {directory} with another config{': ' if lines else ''}{'; '.join(lines)}; use a --workdir for each")


def begun(directory: pathlib.Path, /) -> bool:
    """Whether a run has saved anything, here or in a durable place: before, a mistake in its config may be corrected in the same directory."""
    return (directory / OWNER).exists() or (directory / "summary.json").exists() or any(path.name[:8].isdigit() for folder in directory.glob("checkpoints*") for path in folder.iterdir())


def check_shared(directory: pathlib.Path, /, *, seconds: float = agreement.VISIBLE) -> None:
    """Raises UserError, in every process, unless all of them see in `directory` what the lead writes there; StorageError where it cannot write for now.

    Each host with a disk of its own under the same name would otherwise train until the first save, which no process can finish.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    token = multihost_utils.broadcast_one_to_all(np.frombuffer(secrets.token_bytes(16), np.uint8)).tobytes().hex()
    path, failed = directory / f"{SHARED}{token}", None
    try:
        if parallel.is_lead():
            directory.mkdir(parents=True, exist_ok=True)
            for left in directory.glob(f"{SHARED}*"):  # by a process that was killed here
                left.unlink(missing_ok=True)
            path.write_text(token)
    except OSError as error:
        failed = unwritable(directory, error)
    parallel.barrier("shared file written")
    end = time.monotonic() + seconds  # network file systems show a new file late
    while not (seen := path.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    blind = np.flatnonzero(~multihost_utils.process_allgather(np.asarray(seen)))
    if parallel.is_lead():
        path.unlink(missing_ok=True)
    kind = StorageError if agreement.from_lead(np.asarray(isinstance(failed, StorageError))) else UserError
    if blind.size:
        raise failed or kind(f"process {blind[-1]} of {jax.process_count()} does not see what process 0 writes to --workdir={directory}; "
                             "allowed is a folder that all hosts share, such as NFS, Lustre or a mounted bucket")


def check_newest(run: Assembly, directory: pathlib.Path, /) -> int:
    """The step of the newest checkpoint, 0 where there is none. Raises UserError where it is of another model or optimiser, or beyond the total."""
    if not (directory / "checkpoints").is_dir():
        return 0
    saver = Checkpointer(directory / "checkpoints", read_only=True)
    try:
        newest = (saver.steps() or [0])[-1]
        run.check_step(newest, where=str(directory))
        if newest:
            saver.check_leaves(newest, saver.meta(newest), run.abstract)
    except DamagedError:  # training reports it and goes back to an older one
        pass
    finally:
        saver.close()
    return newest


def open_run(directory: pathlib.Path, /) -> Any:
    """The config stored in a run directory."""
    stored = pathlib.Path(directory) / "config.json"
    if not stored.is_file():
        raise UserError(f"{directory} holds no config.json, so it is not a run directory")
    try:
        text = stored.read_text()
        check_stored(json.loads(text), name=str(stored))
        return configs.from_json(text)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(f"{stored} is not JSON ({error}); allowed is what the train command wrote") from error


def check_stored(values: Any, /, *, name: str) -> None:
    """Raises UserError unless `values` has the groups and symbols of a config; only symbols that `build` allows are ever imported."""
    if not isinstance(values, dict) or not values.keys() >= NEEDED.keys():
        missing = sorted(NEEDED.keys() - values.keys()) if isinstance(values, dict) else sorted(NEEDED)
        raise UserError(f"{name} is no config: it lacks {', '.join(missing)}; allowed is what the train command wrote")
    for key, kind in NEEDED.items():
        if not isinstance(values[key], kind) or isinstance(values[key], bool):
            raise UserError(f"{name} is damaged: {key} is {str(values[key])[:40]!r}; allowed is what the train command wrote")
    nodes = [values]
    for node in nodes:  # which grows meanwhile
        if isinstance(node, dict) and not isinstance(node.get(configs.SYMBOL, ""), str):
            raise UserError(f"{name} is damaged: a symbol is {str(node[configs.SYMBOL])[:40]!r}, no import path")
        nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def context(directory: pathlib.Path, /, *, step: int | None = None, trust: tuple[str, ...] = (), assignments: dict[str, str] | None = None) -> Context:
    """A run's checkpoint as an evaluator sees it, on whatever devices there are; `assignments` override config fields."""
    config = configs.completed(open_run(directory))
    configs.override(config, assignments or {})
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    kernels.portable(config.objective, device=jax.devices()[0])
    ways = jax.device_count()
    config.batch_size = -(-config.batch_size // ways) * ways
    config.microbatches = 1
    try:
        run = assemble(config, trust=trust)
    except (TypeError, AttributeError, KeyError) as error:  # values of a kind that no constructor expects
        raise UserError(f"the config of {directory} cannot be built: {type(error).__name__}: {error}") from error
    saver = Checkpointer(directory / "checkpoints", read_only=True)
    try:
        steps = saver.steps()
        chosen = steps[-1] if steps and step is None else step
        if chosen not in steps:
            raise UserError(f"no checkpoint {'' if step is None else step} in {directory}/checkpoints; its steps are {steps}")
        run = run.after(directory, step=chosen)
        state = saver.restore(chosen, run.abstract, rng=run.rng(), items=("params", "extra", "ema")).state
    finally:
        saver.close()
    return Context(run, state.ema or state.params, run.seen(state.extra), chosen, directory, trust, training=False)


def summarise(directory: pathlib.Path, run: Assembly, /, *, seconds: float, trust: tuple[str, ...] = ()) -> None:
    """summary.json: steps, wall time of this call, median throughput, what the evaluators make headlines, and the latest
    value of everything in metrics.jsonl under `results`. Raises what `unwritable` says where it cannot be written.
    """
    lines = metrics.read(directory)
    first, last = {}, {}
    for line in lines:
        last |= line
        first = line | first
    summary: dict[str, Any] = {"steps": run.total, "seconds": seconds}
    rates = [line["clips_per_second"] for line in lines if "clips_per_second" in line]
    if rates:
        summary["clips_per_second"] = float(np.median(rates))
    summary |= headlines(run.config.evaluators, first, last, trust=trust)
    try:
        write(directory / "summary.json", json.dumps(summary | {"results": {k: v for k, v in last.items() if k != "step"}}, indent=2))
    except OSError as error:
        raise unwritable(directory, error) from error


def headlines(nodes: Any, first: dict[str, float], last: dict[str, float], /, *, trust: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the evaluators among `nodes` with results in `last` say of the first and last {"evaluator/name": value}."""
    said: dict[str, Any] = {}
    for name, node in nodes.items():
        evaluator = configs.build(node, trust=trust)
        if isinstance(evaluator, Headlined) and any(key.startswith(f"{name}/") for key in last):
            said |= evaluator.headline(_of(name, first), _of(name, last))
    return said


def _of(name: str, values: dict[str, float], /) -> dict[str, float]:
    """The results of one evaluator under its own names."""
    return {k.removeprefix(f"{name}/"): v for k, v in values.items() if k.startswith(f"{name}/")}


class Faults:
    """Counts, lists and limits clips that could not be read and were replaced.

    faults.jsonl has one line per source row. quarantine.jsonl has what a resumed run needs to repeat this one where it goes over
    the same positions again: a line for every read that took too long or broke off although its file may be good, with its
    position and its attempts (`quarantine.Quarantine`; each decoding process decides by itself which rows it reads no more), how
    far the stream may have been read by then (`until`, AHEAD batches in advance), and, written by the next call, from which position
    on no process reads a row that took too long: that `until`. Before it such a row is waited for again where it was read in time.
    Processes other than the lead write faults.<number>.jsonl and quarantine.<number>.jsonl.
    Of the last WINDOW decoded clips of a process, or as many as the source has, the source's `max_bad_fraction` may be bad.
    """

    AHEAD = 100  # batches; no process is as far ahead of another

    def __init__(self, directory: pathlib.Path, /, *, source: Any) -> None:
        number = jax.process_index()
        self._source, self._count, self._stages = source, 0, collections.Counter[str]()
        self._paths = {name: directory / (f"{name}.{number}.jsonl" if number else f"{name}.jsonl") for name in ("faults", "quarantine")}
        self._limit, self._window = getattr(source, "max_bad_fraction", 0.01), min(WINDOW, len(source))
        self._recent: collections.deque[tuple[int, int]] = collections.deque()  # (decoded, bad) of the last batches
        self._seen = {line["row"] for line in journal.read(self._paths["faults"])}
        self._until = 0  # how far it is written that this call read; 0 before it meets a row that takes too long
        self.quarantine = self._quarantined([line for path in sorted(directory.glob("quarantine*.jsonl")) for line in journal.read(path)])

    def _quarantined(self, lines: list[dict[str, Any]], /) -> quarantine.Quarantine:
        """What the lines of all processes say: the positions of one may be another's now."""
        found, until = quarantine.Quarantine(), max((line["until"] for line in lines if "until" in line), default=0)
        for line in lines:
            if "attempts" in line:
                found.reads[line["position"]] = {attempt: "timeout" if attempt else line["stage"] for attempt in line["attempts"]}
            elif "row" in line:
                found.rows[line["row"]] = min(line["position"], found.rows.get(line["row"], line["position"]))
        for line in lines:
            if line.get("attempts", [None])[0] == 0 and line["stage"] == "timeout" and line["row"] not in found.rows:
                found.rows[line["row"]] = until
                self._append("quarantine", {"row": line["row"], "name": line["name"], "position": until})
        return found

    def note(self, batch: dict[str, np.ndarray], /) -> None:
        """Records the replaced examples of a host batch. Raises UserError where there are too many."""
        decoded, last = batch["key"][:, 1] == 0, int(batch["key"][:, 0].max())
        until = last + 1 + self.AHEAD * int(decoded.sum()) * jax.process_count()
        for place in np.flatnonzero(batch["fault"]):
            self._count += 1
            if decoded[place]:
                self._record(int(batch["row"][place]), int(batch["key"][place, 0]), int(batch["fault"][place]), until=until)
        if self._until and last >= self._until:
            self._reach(until)
        self._recent.append((int(decoded.sum()), int(np.count_nonzero(batch["fault"][decoded]))))
        self._check()

    def _reach(self, until: int, /) -> None:
        self._until = until
        self._append("quarantine", {"until": until})

    def _record(self, row: int, position: int, fault: int, /, *, until: int) -> None:
        """Adds what is new of an example to the files."""
        stage, attempts = quarantine.stage(fault), quarantine.attempts(fault)
        self._stages[stage] += 1
        line = {"row": row, "name": self._source.name(row), "stage": stage, "position": position}
        if row not in self._seen:
            self._seen.add(row)
            self._append("faults", line)
        known = sorted(self.quarantine.reads.get(position, ()))
        if attempts and attempts != known and (attempts != [0] or position < self.quarantine.rows.get(row, position + 1)):
            self.quarantine.reads[position] = dict.fromkeys(attempts, "timeout") | ({0: stage} if attempts[0] == 0 else {})
            if attempts[0] == 0 and stage == "timeout" and not self._until:
                self._reach(until)  # first: without it the next call would read the row at no position
            self._append("quarantine", line | {"attempts": attempts})

    def _append(self, name: str, line: dict[str, Any], /) -> None:
        try:
            journal.append(self._paths[name], line)
        except OSError as error:  # costs the line, not the run
            sys.stderr.write(f"{self._paths[name]} cannot be written ({error.strerror}): {json.dumps(line)}\n")

    def _check(self) -> None:
        total, bad = (sum(values) for values in zip(*self._recent, strict=True))
        while total - self._recent[0][0] >= self._window:
            first = self._recent.popleft()
            total, bad = total - first[0], bad - first[1]
        if total >= self._window and bad > self._limit * total:
            raise UserError(f"{bad} of the last {total} decoded clips could not be read ({100 * bad / total:.1f} %), more than data.max_bad_fraction={self._limit:g}; they are "
                            f"listed in {self._paths['faults']}. `index --verify` leaves damaged videos out; the same command with a larger "
                            "--config.data.max_bad_fraction goes on")

    @property
    def count(self) -> int:
        """Replaced clips so far in this call and process, copies included."""
        return self._count

    def counters(self) -> dict[str, float]:
        """Decoded clips that were replaced so far in this call and process, in all and by stage; {} where there are none."""
        return {"bad_clips": float(self._stages.total()), **{f"bad_clips/{k}": float(v) for k, v in sorted(self._stages.items())}} if self._stages else {}

    def close(self) -> None:
        """Says on standard error how many decoded clips were replaced, if any."""
        if self._count:
            stages = ", ".join(f"{stage} {n}" for stage, n in self._stages.most_common())
            sys.stderr.write(f"{self._stages.total()} decoded clips of {len(self._seen)} unreadable videos were replaced by others ({stages}); see {self._paths['faults']}\n")
