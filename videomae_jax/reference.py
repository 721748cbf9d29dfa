"""Reference curves: what shipped configs gave where they were run, and a run beside the curve of its config.

A file of configs/curves/ holds the resolved config and the metrics of finished runs that differ in nothing but the seed. A run belongs to
a curve when nothing that changes what it learns differs either, but for the seed and the places of the data and of the weights it begins with.
"""

import dataclasses
import functools
import json
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from videomae_jax import config as configs
from videomae_jax import metrics, pages, records, run_data, run_directory, starts
from videomae_jax.charts import Line, chart
from videomae_jax.errors import UserError
from videomae_jax.records import Record

FOLDERS = tuple(parent / "configs" / "curves" for parent in (pathlib.Path(__file__).parents[1], pathlib.Path(__file__).parent))
WEIGHTS = r"objective\.(pretrained|weights|initial\.path)"  # places of weights of others
OTHER = rf"seed|{run_data.PLACES}|{WEIGHTS}"  # may differ between runs of one curve
SCHEDULING = r"evaluators\.\w+\.(every|first|primary|batch_size)"  # of an evaluator: when it runs and how fast
DIGITS = 5  # significant ones that are kept


@dataclasses.dataclass(frozen=True)
class Curve:
    """`lines` of metrics.jsonl by seed; `made` says when, where and with which versions, `data` what the training clips were ({} = unknown), `weights`
    those of others that the runs began with, as `Record.weights` has them ({} = none, or unknown)."""

    name: str
    made: str
    config: Any
    lines: Mapping[str, Sequence[Mapping[str, float]]]
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    def at(self, name: str, /) -> dict[int, list[float]]:
        """{step: the value of every seed} of a metric, at steps where all seeds have it."""
        found = [{line["step"]: line[name] for line in lines if name in line} for lines in self.lines.values()]
        return {step: [values[step] for values in found] for step in found[0] if all(step in values for values in found)}

    def belongs(self, config: Any, /) -> bool:
        """Whether a run of `config` can be compared with this curve."""
        found = configs.compare(self.config, config)
        changed = [line.partition(": ")[0] for line in (*found["never"], *found["fork"])]
        return not found["extend"] and all(re.fullmatch(OTHER, key) for key in changed) and placed(self.config) == placed(config)

    def same_protocol(self, config: Any, /) -> set[str]:
        """The evaluators of `config` that measure as this curve's did: their own settings and the held-out clips agree."""
        changed = remeasured(self.config, config)
        return {group for group in config.evaluators if not any(key.startswith((f"evaluators.{group}.", "eval_data.")) for key in changed)}


def placed(config: Any, /) -> set[str]:
    """The fields that name weights of others: another place may hold the same ones, none does not."""
    return {key for key, value in configs.flat(config).items() if re.fullmatch(WEIGHTS, key) and value}


def remeasured(first: Any, second: Any, /) -> list[str]:
    """Fields of evaluators and of the held-out clips that differ between two configs and change what is measured, not only when."""
    keys = [line.partition(": ")[0] for line in configs.compare(first, second)["free"]]
    return [key for key in keys if key.startswith(("evaluators.", "eval_data.")) and not re.fullmatch(SCHEDULING, key)]


def read(path: pathlib.Path, /) -> Curve:
    """A file that `write` made."""
    found = json.loads(path.read_text())
    weights = {into: told if isinstance(told, dict) else {"sha256": told} for into, told in found.get("weights", {}).items()}  # older curves: the digest alone
    return Curve(path.stem, found["made"], configs.from_json(json.dumps(found["config"])), found["lines"], found.get("data", {}), weights)


@functools.cache
def shipped() -> tuple[Curve, ...]:
    """The curves that come with the configs."""
    return tuple(read(path) for folder in FOLDERS for path in sorted(folder.glob("*.json")))


def of(config: Any, /) -> Curve | None:
    """The shipped curve that a run of `config` belongs to."""
    return next((curve for curve in shipped() if curve.belongs(config)), None)


def write(directories: Sequence[pathlib.Path], out: pathlib.Path, /) -> pathlib.Path:
    """Writes the curve `out` of finished runs of one config and returns its path. Raises UserError for other runs."""
    if out.suffix != ".json":
        raise UserError(f"--curve={out}; allowed is a file name that ends in .json")
    found = [records.load(directory) for directory in directories]
    for record in found:
        if not record.finished or not record.starts:
            what = "is not finished" if not record.finished else "holds no starts.jsonl, so nobody knows what ran it"
            raise UserError(f"{record.directory} {what}; a curve needs finished runs")
    first = found[0]
    seeds = [str(record.config.seed) for record in found]
    if len(set(seeds)) < len(seeds):
        raise UserError(f"the seeds of the runs are {', '.join(seeds)}; needed are different ones")
    empty = Curve(out.stem, "", first.config, {})
    if other := next((record for record in found if not empty.belongs(record.config)), None):
        raise UserError(f"{other.directory} and {first.directory} have other configs; the runs of a curve differ in nothing but the seed")
    known = [record for record in found if record.data]  # the others are of before runs wrote it down
    if other := next((record for record in known if record.data != known[0].data), None):
        raise UserError(f"{other.directory} and {known[0].directory} were trained on other clips ({run_directory.DATA}); the runs of a curve differ in nothing but the seed")
    begun = [record for record in found if record.weights]
    if other := next((record for record in begun if records.other_weights(record.weights, begun[0].weights)), None):
        raise UserError(f"{other.directory} and {begun[0].directory} began from other weights ({starts.FILE}); the runs of a curve differ in nothing but the seed")
    made = dict.fromkeys(starts.text(start) for record in found for start in record.starts)
    by_seed = [f'"{seed}": [\n' + ",\n".join(json.dumps(kept(line)) for line in record.lines) + "]" for seed, record in zip(seeds, found, strict=True)]
    joined = ",\n".join(by_seed)
    config = json.dumps(json.loads(configs.to_json(first.config)))
    data, weights = json.dumps(dict(known[0].data) if known else {}), json.dumps(begun[0].weights if begun else {})
    text = f'{{"made": {json.dumps("; ".join(made))},\n"data": {data},\n"weights": {weights},\n"config": {config},\n"lines": {{\n{joined}\n}}}}\n'
    try:
        run_directory.write(out, text)
    except OSError as error:
        raise UserError(f"cannot write to --curve={out}: {error.strerror}") from error
    return out


def kept(line: Mapping[str, float], /) -> dict[str, float]:
    """A line without what tells of the machine, rounded."""
    return {k: v if k == "step" else float(f"{v:.{DIGITS}g}") for k, v in line.items() if k not in metrics.TIMING}


def rows(record: Record, curve: Curve, /) -> list[list[str]]:
    """Name, last step that both have, the run's value there, the curve's mean and range, the difference."""
    groups = curve.same_protocol(record.config)
    names = dict.fromkeys(key for line in record.lines for key in line if key == "loss" or key.partition("/")[0] in groups)
    found = []
    for name in names:
        mine, theirs = {int(s): v for s, v in record.series(name)}, curve.at(name)
        step = max(mine.keys() & theirs.keys(), default=None)
        if step is None:
            continue
        mean = statistics.mean(theirs[step])
        span = f"{pages.number(min(theirs[step]))} to {pages.number(max(theirs[step]))}" if len(theirs[step]) > 1 else ""
        found.append([name, f"{step:,}", pages.number(mine[step]), pages.number(mean), span, f"{mine[step] - mean:+.3g}"])
    return found


def line(record: Record, /) -> str:
    """The training loss and the first value of every evaluator beside the curve, in one line; "" where there is no curve."""
    curve, first = of(record.config), dict[str, str]()
    for name, _, mine, theirs, span, _ in rows(record, curve) if curve else []:
        first.setdefault(name.partition("/")[0], f"{name} {mine} ({span or theirs})")
    return f"this run and configs/curves/{curve.name}.json in brackets{strange(record, curve)}: {', '.join(first.values())}" if curve and first else ""


def strange(record: Record, curve: Curve, /) -> str:
    """A word where the run is known to see other training clips than the curve's did, in number, names or classes, or to have begun from other weights."""
    clips = record.data and curve.data and record.data != curve.data
    weights = records.other_weights(record.weights, curve.weights)
    told = f" (of {curve.data['clips']:,} other training clips; this run has {record.data['clips']:,})" if clips else ""
    return f"{told}{' (began from other weights)' * bool(weights)}"


def section(record: Record, /) -> str:
    """The run beside the shipped curve of its config; "" where there is none."""
    curve = of(record.config)
    found = rows(record, curve) if curve else []
    if not found:
        return ""
    head = ["value", "step", "this run", "reference", "range over seeds", "difference"]
    drawn = []
    for name in [row[0] for row in found]:
        pair = [Line("this run", record.series(name), marks="/" in name),
                Line("reference", [(step, statistics.mean(values)) for step, values in curve.at(name).items()], dash=True)]
        if all(len(line.points) > 1 for line in pair):
            drawn.append(chart(pair, title=name, x="step", y=name.rpartition("/")[2], width=440, height=220))
    text = f"configs/curves/{curve.name}.json, {len(curve.lines)} seed{'s' * (len(curve.lines) > 1)}{strange(record, curve)}: {curve.made}"
    return (f"<h2>Beside the reference curve</h2>{pages.note(text)}{pages.table(head, found)}"
            f'<details><summary>{len(drawn)} charts</summary><div class="two">{"".join(drawn)}</div></details>')
