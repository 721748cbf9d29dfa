"""Evidence for a recipe: arms x seeds of ordinary runs, paired differences, verdicts by rules that are written down first.

A config declares `evidence = spec(Suite, ...)`; training ignores it. `run` writes protocol.json before any run, trains
every cell (an arm under a seed) as a run directory, evaluates it and draws the verdicts. The same command goes on where
it was stopped.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from videomae_jax import config as configs
from videomae_jax import evidence_costs, evidence_report, metrics, run_directory, verdicts
from videomae_jax.assembly import assemble
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context
from videomae_jax.stopping import STOPPED, InterruptedEvaluation, Stop
from videomae_jax.train import train
from videomae_jax.verdicts import Claim, Table

CALIBRATION = 40  # steps that measure the speed of an arm with a time budget
PROTOCOL, CELL, UNTRAINED, COSTS = "protocol.json", "measurements.json", "untrained.json", "costs.json"


@dataclasses.dataclass(frozen=True)
class Arm:
    """A variant of the config: `changes` are (field path, value); a value may be an object, which replaces a whole node.

    `config` names another config file to start from. In text values "{after}" becomes the run directory of the arm
    `after` under the same seed. With `as_long_as` the total is the number of steps that fit into the training time of
    those arms under the same seed: steps alone, measured by their median speed, compilation and evaluation left out.
    `seeds` is the number of seeds of this arm where it is not the suite's (0).
    """

    name: str
    changes: tuple[tuple[str, Any], ...] = ()
    config: str = ""
    after: str = ""
    as_long_as: tuple[str, ...] = ()
    seeds: int = 0

    @property
    def builds_on(self) -> tuple[str, ...]:
        """Arms that must be finished under a seed before this one begins."""
        return (*self.as_long_as, *((self.after,) if self.after else ()))

    def resolve(self, base: Any, /) -> Any:
        """A config of this arm, without its evidence."""
        config = (configs.load(self.config) if self.config else base).copy_and_resolve_references()
        config.unlock()
        config.evidence = {}
        for path, value in self.changes:
            assign(config, path, value)
        config.name = f"{config.name}_{self.name}"
        return config


@dataclasses.dataclass(frozen=True)
class Suite:
    """Arms, claims and the protocol in words; `seeds` is the number stated beforehand, `confidence` that of the t-interval.

    A claim is judged over the seeds that all its arms have. `report` names further evaluators whose results go into the
    table of measurements. `costs` names arms whose training steps are measured side by side (`evidence_costs`); `curve`, a
    measurement of these arms such as "probe/trained", is also taken during training, whenever its evaluator is due, and
    stands against the time of the steps so far.
    """

    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    protocol: str
    seeds: int = 5
    confidence: float = 0.9
    report: tuple[str, ...] = ()
    costs: tuple[str, ...] = ()
    curve: str = ""

    def __post_init__(self) -> None:
        names = [a.name for a in self.arms]
        if len(set(names)) != len(names) or len({c.name for c in self.claims}) != len(self.claims) or not self.claims:
            raise UserError("arms and claims have distinct names, and there is at least one claim")
        for place, arm in enumerate(self.arms):
            for other in arm.builds_on:
                if other not in names[:place]:
                    raise UserError(f"arm {arm.name!r} builds on {other!r}; allowed are arms before it: {', '.join(names[:place]) or '(none)'}")
                if self.count(other) < self.count(arm.name):
                    raise UserError(f"arm {arm.name!r} of {self.count(arm.name)} seeds builds on {other!r} of {self.count(other)}; allowed are as many or fewer")
        for claim in self.claims:
            for value in claim.values:
                if value.arm not in names:
                    raise UserError(f"claim {claim.name!r} names arm {value.arm!r}; there are {', '.join(names)}")
        unknown = [name for name in self.costs if name not in names]
        if unknown or (self.curve and not self.costs):
            raise UserError(f"costs of arms {', '.join(unknown) or '(none)'}; there are {', '.join(names)}, and a curve needs some")
        if min(map(self.count, names)) < 2 or not 0 < self.confidence < 1:
            raise UserError(f"{min(map(self.count, names))} seeds, confidence {self.confidence}; allowed are 2 and more, and 0 < confidence < 1")

    def count(self, name: str, /) -> int:
        """Seeds stated beforehand for an arm."""
        return next(a.seeds for a in self.arms if a.name == name) or self.seeds

    def followed(self, arm: Arm, /) -> str:
        """The evaluator that the curve of an arm needs during training, "" where it has none."""
        return self.curve.split("/")[0] if arm.name in self.costs else ""

    def evaluators(self, arm: Arm, config: Any, /) -> dict[str, Any]:
        """Nodes of the evaluators that this arm is measured by. Raises UserError for one that its config lacks."""
        needed = dict.fromkeys(v.measurement.split("/")[0] for c in self.claims for v in c.values if v.arm == arm.name)
        needed |= dict.fromkeys(filter(None, [self.followed(arm)]))
        missing = [name for name in needed if name not in config.evaluators]
        if missing:
            raise UserError(f"arm {arm.name!r} needs evaluator {missing[0]!r}; its config has {', '.join(config.evaluators) or '(none)'}")
        return {name: config.evaluators[name] for name in (*needed, *(n for n in self.report if n in config.evaluators and n not in needed))}


def assign(config: Any, path: str, value: Any, /) -> None:
    """Sets a field as the command line does, or replaces a whole node by an object's. Raises UserError for unknown fields."""
    if not dataclasses.is_dataclass(value):
        configs.override(config, {path: value if isinstance(value, str) else repr(value)})
        return
    *parents, name = path.split(".")
    node = config
    for part in parents:
        node = node[part] if hasattr(node, "keys") and part in node else None
    if node is None or name not in node:
        raise UserError(f"unknown config key {path!r}")
    node[name] = configs.plain(value)


# -- protocol ----------------------------------------------------------------------------------------------------------


def protocol(suite: Suite, resolved: dict[str, Any], /, *, seeds: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """All that is fixed before the first run, as plain data: words, rules, seeds, claims and every arm's whole config."""
    return json.loads(json.dumps({
        "protocol": suite.protocol, "seeds": seeds, "seeds_stated": {a.name: suite.count(a.name) for a in suite.arms}, "interval": f"Student t over seeds, {100 * suite.confidence:g} %",
        "pairing": "arms under one seed share data order, initial key and evaluation keys", "rules": {"first": verdicts.FIRST, **verdicts.RULES},
        "claims": {c.name: dataclasses.asdict(c) for c in suite.claims}, "report": suite.report, "costs": suite.costs, "curve": suite.curve,
        "arms": {a.name: {"after": a.after, "as_long_as": a.as_long_as, "config": json.loads(configs.to_json(resolved[a.name]))} for a in suite.arms}}))


def fix(workdir: pathlib.Path, wanted: dict[str, Any], /) -> str:
    """Writes protocol.json, or checks that it is the one wanted; returns its SHA-256.

    Raises UserError where a run exists: from then on the protocol never changes.
    """
    path = workdir / PROTOCOL
    begun = (workdir / "runs").exists()
    if begun and not path.exists():
        raise UserError(f"{workdir}/runs exists without {PROTOCOL}, so nothing was stated beforehand; use a new --workdir")
    if path.exists() and begun:
        try:
            stored = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error})") from error
        before, after = configs.flat(stored), configs.flat(wanted)
        changed = sorted(k for k in before.keys() | after.keys() if before.get(k, "<absent>") != after.get(k, "<absent>"))
        if changed:
            raise UserError(f"{path} was fixed before the first run, and these fields differ now: {', '.join(changed)}; use a new --workdir")
    elif not path.exists() or json.loads(path.read_text()) != wanted:
        run_directory.write(path, json.dumps(wanted, indent=2, sort_keys=True))
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- cells -------------------------------------------------------------------------------------------------------------


class Deadline(Stop):
    """A stop that also comes when `seconds` (0 = never) have passed since it was made."""

    def __init__(self, *, seconds: float) -> None:
        super().__init__()
        self._end = time.monotonic() + seconds if seconds else math.inf

    def requested(self) -> bool:
        """Whether to stop now."""
        return super().requested() or time.monotonic() >= self._end

    @property
    def code(self) -> int:
        """Exit code of a stopped suite."""
        return super().code if self.signal else STOPPED


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where the cells lie and what training needs."""

    suite: Suite
    workdir: pathlib.Path
    resolved: dict[str, Any]
    stop: Stop
    say: Callable[[str], None]
    trust: tuple[str, ...] = ()

    def directory(self, arm: str, seed: int, /) -> pathlib.Path:
        """The run directory of a cell."""
        return self.workdir / "runs" / arm / f"seed{seed}"

    def cell(self, arm: Arm, seed: int, /) -> bool:
        """Trains and measures a cell; False when it was stopped, and the same call goes on."""
        directory = self.directory(arm.name, seed)
        if (directory / CELL).exists():
            return self.untrained(directory)
        for other in arm.builds_on:
            if not (self.directory(other, seed) / CELL).exists():
                raise UserError(f"arm {arm.name!r} builds on {other!r}, whose seed {seed} is not finished; name {other!r} among --arms too")
        config = self.resolved[arm.name].copy_and_resolve_references()
        for path, value in arm.changes:
            if isinstance(value, str) and "{after}" in value:
                assign(config, path, value.replace("{after}", str(self.directory(arm.after, seed))))
        config.seed = seed
        nodes = self.suite.evaluators(arm, config)
        config.evaluators = {name: node for name, node in nodes.items() if name == self.suite.followed(arm)}
        if arm.as_long_as and not self.budget(arm, seed, config):
            return False
        self.say(f"arm {arm.name}, seed {seed}: {directory}")
        run = run_directory.claim(assemble(config, trust=self.trust), directory, extend=False, fork=False, say=self.say)
        begin = time.monotonic()
        result = train(run, directory, stop=self.stop, say=self.say, trust=self.trust)
        if not result.finished:
            return False
        seconds = time.monotonic() - begin
        values = self.measure(run, result.state, nodes, directory, step=result.step)
        if values is None:
            return False
        config.evaluators = nodes  # so that the evaluate command finds them
        run_directory.write(directory / "config.json", configs.to_json(config))
        self.end(dataclasses.replace(run, config=config), directory, values, seconds=seconds)
        run_directory.write(directory / CELL, json.dumps({"step": result.step, "seed": seed, "values": values}, indent=2))
        return self.untrained(directory)

    def end(self, run: Any, directory: pathlib.Path, values: dict[str, float], /, *, seconds: float) -> None:
        """Leaves what a finished run has, so that report and reference curves know the cell as one: the measurements among its metrics, and a summary."""
        there = {key for line in metrics.read(directory) if line["step"] == run.total for key in line}
        if new := {k: v for k, v in values.items() if k not in there and math.isfinite(v)}:
            writer = metrics.Writer(directory, step=run.total, lead=True)
            writer.write(run.total, new)
            writer.close()
        run_directory.summarise(directory, run, seconds=seconds, trust=self.trust)

    def measure(self, run: Any, state: Any, nodes: dict[str, Any], directory: pathlib.Path, /, *, step: int) -> dict[str, float] | None:
        """{"evaluator/name": value} of a state; None when it was stopped."""
        context = Context(run, state.ema or state.params, run.seen(state.extra), step, directory, self.trust, self.stop.requested)
        try:
            return {f"{name}/{k}": float(v) for name, node in nodes.items() for k, v in configs.build(node, trust=self.trust).run(context).items()}
        except InterruptedEvaluation:
            return None

    def headlined(self, directory: pathlib.Path, /) -> dict[str, Any]:
        """Nodes of the evaluators that make a headline of the results of a finished cell; a probe that is not primary makes none."""
        last = json.loads((directory / CELL).read_text())["values"]
        return {name: node for name, node in run_directory.open_run(directory).evaluators.items()
                if run_directory.headlines({name: node}, last, last, trust=self.trust)}

    def untrained(self, directory: pathlib.Path, /) -> bool:
        """Measures the initial state of a finished cell by the evaluators that make headlines, once; False when it was stopped."""
        nodes, path = self.headlined(directory), directory / UNTRAINED
        if nodes and not path.exists():
            run = assemble(run_directory.open_run(directory), trust=self.trust).after(directory)
            values = self.measure(run, run.create(), nodes, directory, step=0)
            if values is None:
                return False
            run_directory.write(path, json.dumps(values, indent=2))
        return True

    def headlines(self) -> dict[str, dict[int, dict[str, Any]]]:
        """{arm: {seed: the headlines of summary.json}} of all finished cells that have some; `seconds` are those of the steps alone."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        for path in (p for arm in self.suite.arms for p in sorted((self.workdir / "runs" / arm.name).glob(f"*/{UNTRAINED}"))):
            directory = path.parent
            first, cell = json.loads(path.read_text()), json.loads((directory / CELL).read_text())
            lines = run_directory.headlines(self.headlined(directory), first, cell["values"], trust=self.trust)
            each = seconds_per_step(directory)
            clips = json.loads((directory / "recipe_card.json").read_text())["global_batch_clips"]
            found.setdefault(directory.parent.name, {})[cell["seed"]] = lines | {"seconds": each * cell["step"], "clips_per_second": clips / each}
        return found

    def budget(self, arm: Arm, seed: int, config: Any, /) -> bool:
        """Sets the total of an arm with a time budget, once for ever; False when measuring its speed was stopped."""
        path = self.workdir / "budgets" / f"{arm.name}_seed{seed}.json"
        if not path.exists():
            trial, folder = config.copy_and_resolve_references(), self.workdir / "budgets" / f"{arm.name}_seed{seed}"
            trial.total, trial.log.every, trial.checkpoint.every = str(CALIBRATION), str(CALIBRATION // 8), ""
            run = run_directory.claim(assemble(trial, trust=self.trust), folder, extend=False, fork=False, say=self.say)
            if not train(run, folder, stop=self.stop, say=self.say, trust=self.trust).finished:
                return False
            seconds = sum(step * seconds_per_step(self.directory(other, seed)) for other in arm.as_long_as
                          for step in (json.loads((self.directory(other, seed) / CELL).read_text())["step"],))
            each = seconds_per_step(folder)
            run_directory.write(path, json.dumps({"seconds": seconds, "seconds_per_step": each, "total": max(1, round(seconds / each))}, indent=2))
        config.total = str(json.loads(path.read_text())["total"])
        return True

    def costs(self) -> dict[str, Any]:
        """Figures of the suite's arms with costs, measured once, as soon as each has a finished cell; {} before."""
        path, cells = self.workdir / COSTS, {name: sorted((self.workdir / "runs" / name).glob(f"*/{CELL}")) for name in self.suite.costs}
        if cells and all(cells.values()) and not path.exists():
            runs = {name: assemble(run_directory.open_run(found[0].parent), trust=self.trust) for name, found in cells.items()}
            run_directory.write(path, json.dumps(evidence_costs.measure(runs, say=self.say), indent=2))
        return json.loads(path.read_text()) if path.exists() else {}

    def curves(self, costs: dict[str, Any], /) -> evidence_costs.Curves:
        """The suite's curve for every arm with costs; {} where it has none."""
        if not self.suite.curve:
            return {}
        steps = {name: evidence_costs.follow(sorted((self.workdir / "runs" / name).glob("seed*")), self.suite.curve) for name in costs}
        return evidence_costs.against_time(steps, costs)

    def table(self) -> Table:
        """Measurements of all finished cells."""
        table: Table = {}
        for path in sorted((self.workdir / "runs").glob(f"*/*/{CELL}")):
            cell = json.loads(path.read_text())
            table.setdefault(path.parent.parent.name, {})[cell["seed"]] = cell["values"]
        return table


def seconds_per_step(directory: pathlib.Path, /) -> float:
    """Median over the logged intervals of a run."""
    rates = [line["clips_per_second"] for line in metrics.read(directory) if "clips_per_second" in line]
    if not rates:
        raise UserError(f"{directory} logged no speed; a run that sets a time budget needs three log intervals (config.log.every), "
                        "or one after an evaluation or a save")
    return json.loads((directory / "recipe_card.json").read_text())["global_batch_clips"] / float(np.median(rates))


# -- the suite ---------------------------------------------------------------------------------------------------------


def run(config: Any, /, *, workdir: pathlib.Path, seeds: int = 0, budget: float = 0.0, arms: tuple[str, ...] = (),
        trust: tuple[str, ...] = (), say: Callable[[str], None] = print) -> int:
    """Runs the suite of a config; 0 when all chosen cells are finished, else the code of a stopped run.

    `seeds` overrides the stated number (fewer make every claim not testable), `budget` ends after that many minutes with
    a checkpoint, `arms` trains only these. Writes protocol.json, runs/ARM/seedN, evidence.json and evidence.png, prints
    one JSON line and a table row. Raises UserError for unknown arms and for a protocol that changed after the first run.
    """
    if not config.get("evidence"):
        raise UserError("this config declares no evidence; see configs/toy for some that do")
    suite = configs.build(config.evidence, trust=trust)
    unknown = [a for a in arms if a not in [x.name for x in suite.arms]]
    if unknown or seeds < 0 or budget < 0:
        raise UserError(f"arms {', '.join(unknown) or '(all)'}, seeds {seeds}, budget {budget}; arms are {', '.join(a.name for a in suite.arms)}, numbers at least 0")
    numbers = {arm.name: tuple(range(config.seed, config.seed + (seeds or suite.count(arm.name)))) for arm in suite.arms}
    resolved = {arm.name: arm.resolve(config) for arm in suite.arms}
    for arm in suite.arms:
        suite.evaluators(arm, resolved[arm.name])
    digest = fix(workdir, protocol(suite, resolved, seeds=numbers))
    with Deadline(seconds=60 * budget) as stop:
        bench = Bench(suite, workdir, resolved, stop, say, trust)
        order = [(arm, seed) for seed in max(numbers.values(), key=len) for arm in suite.arms if seed in numbers[arm.name]]
        finished = all(bench.cell(arm, seed) for arm, seed in order if not arms or arm.name in arms)
    table, costs = bench.table(), bench.costs() if finished else {}
    judged = []
    for claim in suite.claims:
        shared, stated = min((numbers[v.arm] for v in claim.values), key=len), min(suite.count(v.arm) for v in claim.values)
        judged.append(verdicts.judge(claim, table, seeds=shared, stated=stated, confidence=suite.confidence))
    evidence_report.write(workdir, config.name, suite.claims, judged, table, bench.headlines(), confidence=suite.confidence, protocol=digest,
                          costs=costs, curves=bench.curves(costs), curve=suite.curve)
    if not finished:
        say("stopped; the same command goes on")
    return 0 if finished else stop.code
