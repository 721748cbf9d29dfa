"""The files of a run directory: config, card, faults, summary."""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from videomae_jax import card, parallel
from videomae_jax import config as configs
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.data.decode import STAGES
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context


def write(path: pathlib.Path, text: str, /) -> None:
    """Replaces `path` as a whole, so that a killed process leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    os.replace(temporary, path)


def claim(run: Assembly, directory: pathlib.Path, /, *, extend: bool, fork: bool, say: Any) -> None:
    """Checks that `directory` is new or holds this config, then writes config.json and the recipe card.

    Logging, evaluation, mesh, workers, micro-batches and remat may change freely; the total needs `extend`; learning
    rate, data, batch and seed need `fork`; the model never changes. Raises UserError with every difference.
    """
    stored = directory / "config.json"
    if stored.exists():
        difference = configs.compare(configs.from_json(stored.read_text()), run.config)
        if difference["never"]:
            raise UserError(f"{directory} holds another config, and these fields may never change: {'; '.join(difference['never'])}; use a new --workdir")
        if difference["fork"] and not fork:
            raise UserError(f"{directory} holds another config: {'; '.join(difference['fork'])}; repeat with --fork to go on with the new values")
        if difference["extend"] and not (extend or fork):
            raise UserError(f"{directory} holds another config: {'; '.join(difference['extend'])}; repeat with --extend to go on to the new total")
        for line in (line for lines in difference.values() for line in lines):
            say(f"changed since the run began: {line}")
    elif directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty and holds no config.json, so it is not a run directory; use a new --workdir")
    parallel.barrier("claimed")
    if parallel.is_lead():
        values = card.card(run)
        write(stored, configs.to_json(run.config))
        write(directory / "recipe_card.json", json.dumps(values, indent=2))
        write(directory / "recipe_card.txt", card.text(values))
    parallel.barrier("written")


def open_run(directory: pathlib.Path, /) -> Any:
    """The config stored in a run directory."""
    stored = pathlib.Path(directory) / "config.json"
    if not stored.is_file():
        raise UserError(f"{directory} holds no config.json, so it is not a run directory")
    return configs.from_json(stored.read_text())


def context(directory: pathlib.Path, /, *, step: int | None = None, trust: tuple[str, ...] = (), assignments: dict[str, str] | None = None) -> Context:
    """A run's checkpoint as an evaluator sees it, on whatever devices there are; `assignments` override config fields."""
    config = open_run(directory)
    configs.override(config, assignments or {})
    config.mesh = {"data": -1, "fsdp": 1, "tensor": 1}
    ways = jax.device_count()
    config.batch_size = -(-config.batch_size // ways) * ways
    config.microbatches = 1
    run = assemble(config, trust=trust)
    saver = Checkpointer(directory / "checkpoints", read_only=True)
    steps = saver.steps()
    chosen = steps[-1] if steps and step is None else step
    if chosen not in steps:
        raise UserError(f"no checkpoint {'' if step is None else step} in {directory}/checkpoints; its steps are {steps}")
    restored = saver.restore(chosen, run.abstract, rng=run.rng())
    saver.close()
    return Context(run, restored.state.ema or restored.state.params, restored.state.extra, chosen, directory, trust)


def summarise(directory: pathlib.Path, values: dict[str, float], /, *, steps: int, seconds: float) -> None:
    """summary.json: the last results under their own names, and the wall time of this call."""
    write(directory / "summary.json", json.dumps({"steps": steps, "seconds": seconds, **values}, indent=2))


class Faults:
    """Counts and lists clips that failed to decode and were replaced: faults.jsonl, one line per example and process."""

    def __init__(self, directory: pathlib.Path, /, *, source: Any, lead: bool) -> None:
        self._source, self._count, self._seen = source, 0, set()
        self._path = directory / ("faults.jsonl" if lead else f"faults.{os.getpid()}.jsonl")

    def note(self, batch: dict[str, np.ndarray], /) -> None:
        """Records the replaced examples of a host batch, each source row once."""
        for place in np.flatnonzero(batch["fault"]):
            row, stage = int(batch["row"][place]), STAGES[int(batch["fault"][place]) - 1]
            self._count += 1
            if row not in self._seen:
                self._seen.add(row)
                with self._path.open("a") as file:
                    file.write(json.dumps({"name": self._source.name(row), "stage": stage, "position": int(batch["key"][place, 0])}) + "\n")

    @property
    def count(self) -> int:
        """Replaced clips so far in this process."""
        return self._count

    def close(self) -> None:
        """Says on standard error how many clips were replaced, if any."""
        if self._count:
            import sys

            sys.stderr.write(f"{self._count} clips of {len(self._seen)} unreadable videos were replaced by others; see {self._path}\n")
