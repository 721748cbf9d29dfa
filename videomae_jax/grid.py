"""Grids of runs: the cells of a config's `grid`, which of them are finished, what they cost, and their command lines.

A cell has three fields: `config`, the path of a config; `videos`, how many its data set has, for the cost; and `overrides`, any number of pairs of
a field of that config and its value as a text. Without `total` among them the run is as long as its config says.

With a topology a cell's command line has the mesh, micro-batches and recomputation that its cost is of, unless its overrides set them.
"""

import dataclasses
import json
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from videomae_jax import config as configs
from videomae_jax import forecast
from videomae_jax.errors import UserError
from videomae_jax.plan import LABEL, Choice, Planner
from videomae_jax.topologies import find

CHEAP = ("total", "name", "seed", "data.index")  # overrides that leave a step as it is


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a grid: `words` is the command line of `python -m videomae_jax`, `cost` chip-hours (or EFLOP without a topology)."""

    name: str
    words: tuple[str, ...]
    finished: bool
    cost: float


def cells(config: Any, /, *, root: str, topology: str = "", trust: tuple[str, ...] = (), overrides: Mapping[str, str] | None = None) -> list[Cell]:
    """The cells below the folder `root`; a run of the same length and settings with a summary of all its steps is finished.

    Costs are estimates of the fastest choice that fits `topology`, which the words make; hosts that cannot keep up are paid for as well, and nothing
    is compiled. `overrides` are set in every cell, also over its own. Raises UserError for a config without cells, or one that does not fit.
    """
    if topology == "local":
        raise UserError("--topology=local belongs to a plan of one run; allowed with --grid is a name of hardware, such as v5p-512 or h100x512, or none")
    if "://" in root:
        raise UserError(f"--root={root} is no folder; allowed is one that all hosts share (a bucket that is mounted, too)")
    if not config.get("grid", None) or not hasattr(config.grid, "items"):
        raise UserError(f"config {config.name!r} has no cells in config.grid")
    for name, cell in config.grid.items():
        _check(name, cell)
    planners: dict[Any, Any] = {}
    return [_cell(name, cell, dict(cell.overrides) | dict(overrides or {}), root, topology, trust, planners) for name, cell in config.grid.items()]


def _check(name: str, cell: Any, /) -> None:
    fields = dict(cell.items()) if hasattr(cell, "items") else {}
    for field, allowed, good in (
            ("config", "the path of a config", lambda value: isinstance(value, str) and value),
            ("videos", "a whole number of 1 and more", lambda value: type(value) is int and value > 0),
            ("overrides", "pairs of a field and its value, both texts, such as (('total', '40ep'),)", _pairs)):
        if field not in fields:
            raise UserError(f"cell {name!r} of config.grid has no {field}; needed is {allowed}")
        if not good(fields[field]):
            raise UserError(f"cell {name!r} of config.grid has {field} = {fields[field]!r}; allowed is {allowed}")


def _pairs(value: Any, /) -> bool:
    listed = (tuple, list)
    return isinstance(value, listed) and all(isinstance(pair, listed) and [type(x) for x in pair] == [str, str] for pair in value)


def _cell(name: str, cell: Any, overrides: dict[str, str], root: str, topology: str, trust: tuple[str, ...], planners: dict[Any, Any], /) -> Cell:
    workdir = f"{root.rstrip('/')}/{name}"
    given = {k: v for k, v in overrides.items() if k not in CHEAP}
    key = cell.config, *sorted((k, str(v)) for k, v in given.items())
    if key not in planners:
        planners[key] = _speed(cell, given, topology, trust)
    decodes, total, clip_flops, seconds, chips, chosen = planners[key]
    steps = configs.duration(overrides.get("total", total), total=None, steps_per_epoch=cell.videos / decodes)
    cost = steps * seconds * chips / 3600 if topology else steps * clip_flops / 1e18
    fields = overrides | {k: v for k, v in chosen.items() if k not in overrides}
    words = ("train", f"--config={cell.config}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in fields.items()))
    return Cell(name, words, finished(pathlib.Path(workdir), overrides), cost)


def _speed(cell: Any, given: dict[str, str], topology: str, trust: tuple[str, ...], /) -> tuple[int, str | int, float, float, int, dict[str, Any]]:
    """Decoded clips of a step, the config's total, FLOPs of a step, its seconds on chips or on hosts that cannot keep up, chips, and such a step's fields."""
    config = configs.load(cell.config)
    configs.override(config, given)
    config = forecast.without_index(config, videos=cell.videos)
    where = find(topology or "h100x1")
    planner = Planner(config, where, fixed=frozenset(given), trust=trust)
    flops, decodes = planner.run.objective.cost().train_flops * planner.run.clips * planner.run.draws, config.batch_size * planner.run.draws
    if not topology:
        return decodes, config.total, flops, 0.0, 0, {}
    fits = [e for e in map(planner.of, planner.choices()) if e.bytes <= planner.limit]
    if not fits:
        raise UserError(f"{cell.config} does not fit {topology} by estimate; plan --config={cell.config} --topology={topology} gives the ways out")
    best = min(fits, key=lambda e: (e.seconds, e.choice.microbatches, e.bytes))
    return decodes, config.total, flops, planner.paid(best.seconds), where.all_chips, _fields(best.choice, config.objective)


def _fields(choice: Choice, objective: Any, /) -> dict[str, Any]:
    """The fields of a config that make a run of a choice; all of them may change when a run goes on."""
    parts = [name for name, node in objective.items() if hasattr(node, "keys") and "remat" in node and choice.remat != "as given"]
    mesh = {f"mesh.{axis}": size for axis, size in choice.sizes.items()}
    return mesh | {"microbatches": choice.microbatches} | {f"objective.{name}.remat": choice.remat for name in parts}


def finished(directory: pathlib.Path, overrides: Mapping[str, str], /) -> bool:
    """Whether a run directory has the summary of all its steps, under a config in which the overrides change only what a resumed run may.

    The place of the data may differ, too.

    The steps are those that the run counted for its own index: the cell's number of videos is a round one.
    """
    try:
        steps, total = (int(json.loads((directory / name).read_text())["steps"]) for name in ("summary.json", "recipe_card.json"))
        stored = configs.from_json((directory / "config.json").read_text())
    except (OSError, ValueError, KeyError):
        return False  # no run, one that goes on, or one whose end was cut: it resumes
    changed = configs.completed(stored)  # an override may be of a field that the run's version did not have
    configs.override(changed, {k: v for k, v in overrides.items() if k != "data.index"})
    return steps == total and not any(changes for kind, changes in configs.compare(stored, changed).items() if kind != "free")


def lines(found: list[Cell], /, *, topology: str) -> list[str]:
    """Comments (#) for people, then a line for each unfinished cell: name, tab, command."""
    unit = "chip-hours" if topology else "EFLOP"
    note = f" on {topology}; {LABEL}" if topology else "; --topology=NAME (v5p-512, h100x512, ...) counts chip-hours"
    todo = [c for c in found if not c.finished]
    head = [f"# {c.name:<24}{c.cost:14,.1f} {unit}{'  finished' if c.finished else ''}" for c in found]
    head.append(f"# {len(todo)} of {len(found)} cells to run: {sum(c.cost for c in todo):,.1f} {unit}{note}")
    return head + [f"{c.name}\t{shlex.join(c.words)}" for c in todo]
