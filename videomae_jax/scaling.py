"""Power laws over finished runs: loss = E + sum of A / x^a, with bootstrap intervals, tested on the runs of most FLOPs held out."""

import dataclasses
import html
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize

from videomae_jax import charts, pages, run_data, run_directory
from videomae_jax import config as configs
from videomae_jax.errors import UserError

METRIC = "reconstruction/loss"  # the last one of a run
FLOOR = 1e-3  # of a loss: smallest E and A, so that logarithms exist
STARTS = (0.1, 0.3, 0.6, 1.0)  # exponents from which a fit begins
LEVEL = 0.9  # of every interval
FOLDER = "the folder of "  # of an index.parquet, before the name of its field
FEWEST = 3  # points beyond the number of parameters that a law of two variables asks for


@dataclasses.dataclass(frozen=True)
class Point:
    """A finished run: parameters, clips seen, training FLOPs, and the loss that the evaluator measured at its end."""

    name: str
    parameters: float
    clips: float
    flops: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Law:
    """loss = floor + sum of factor / (x / unit)^exponent over `variables`; units are geometric means, which keeps a fit well posed."""

    variables: tuple[str, ...]
    units: tuple[float, ...]
    floor: float
    factors: tuple[float, ...]
    exponents: tuple[float, ...]

    def __call__(self, point: Point, /) -> float:
        """The predicted loss."""
        return self.floor + sum(a / (getattr(point, v) / u) ** k for v, u, a, k in zip(self.variables, self.units, self.factors, self.exponents, strict=True))


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law, those of the bootstrap, and the errors log(loss / law) of its points."""

    law: Law
    drawn: tuple[Law, ...]
    errors: tuple[float, ...]

    def interval(self, values: Sequence[float], /) -> tuple[float, float]:
        """The central `LEVEL` of drawn values."""
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)

    def prediction(self, *points: Point, seed: int = 0) -> tuple[float, float]:
        """Interval of the mean loss of further runs: the laws of the bootstrap, each with one error as the points have.

        Seeds average their noise, but not what a law misses, so the interval of several runs is as wide as that of one.
        """
        # A fit of p parameters to n points leaves errors that are too small by sqrt((n - p) / n).
        free = max(1, len(self.errors) - 1 - 2 * len(self.law.variables))
        errors = np.asarray(self.errors) * math.sqrt(len(self.errors) / free)
        rng = np.random.default_rng(seed)
        means = [np.mean([law(point) for point in points]) for law in self.drawn]
        return self.interval([mean * math.exp(rng.choice(errors)) for mean in means for _ in range(4)])


def read(directory: pathlib.Path, /, *, metric: str) -> Point | None:
    """The point of a run directory; None where the run is not finished. Raises UserError where the metric is absent."""
    card, summary = directory / "recipe_card.json", directory / "summary.json"
    if directory.is_file():
        raise UserError(f"{directory} is a file; allowed are run directories")
    if not card.is_file():
        raise UserError(f"{directory} holds no recipe_card.json, so it is not a run directory")
    if not summary.is_file():
        return None
    try:
        values, ended = json.loads(card.read_text()), json.loads(summary.read_text())
        results = ended["results"]
        if ended["steps"] != values["steps"]:  # it is being extended: the card is of the new length, the results of the old one
            return None
    except (ValueError, KeyError) as error:
        raise UserError(f"{directory}: card or summary is damaged ({error})") from error
    if metric not in results:
        raise UserError(f"{summary} has no {metric!r}; it has {', '.join(results)}")
    return Point(directory.name, values["parameters"], values["clips_seen"], values["train_flops_total"], float(results[metric]))


def measured(config: Any, /) -> dict[str, Any]:
    """What runs have to share for their losses to be of one law: the held-out clips as they are read, by field, and the pixels of a patch.

    An index counts by its name, and a folder, which is that of a version (hmdb51/2.0.0), by its last two: they may lie elsewhere on another machine.
    An index.parquet, as every packed set has one, counts by the name of its folder, too; without one it says nothing of that.
    """
    data = configs.flat({**dict(config.data.items()), **dict(config.eval_data.items())}, prefix="data")
    patch = configs.flat({"patch": config.objective.get("encoder", {}).get("patch", "none")}, prefix="objective.encoder")
    found = {k: v for k, v in (data | patch).items() if not any(re.fullmatch(pattern, k) for pattern in configs.FREE)}

    def named(field: str, value: Any) -> Any:
        if not (re.fullmatch(run_data.PLACES, field) and isinstance(value, str)):
            return value
        return "/".join(pathlib.PurePath(value).parts[-2 if field.endswith("folder") else -1:])

    indexes = {k: pathlib.PurePath(v) for k, v in found.items() if re.fullmatch(run_data.PLACES, k) and isinstance(v, str) and k.endswith("index")}
    sets = {f"{FOLDER}{field}": path.parent.name for field, path in indexes.items() if path.name == "index.parquet" and path.parent.name}
    return {field: named(field, value) for field, value in found.items()} | sets


def _held_elsewhere(config: Any, /) -> bool:
    """Whether held-out clips lie in another place than those of training."""
    return any(re.fullmatch(run_data.PLACES, k) for k in configs.flat(dict(config.eval_data.items()), prefix="data"))


def check_comparable(directories: Sequence[pathlib.Path], /) -> None:
    """Raises UserError where stored configs differ in what is `measured`; runs without one, and fields that are not in both, say nothing.

    Folders with other names are the same set where the runs trained on the same clips of it.
    """
    known: dict[str, tuple[str, Any, Any]] = {}  # of every field the first run that says it, its value, and what it trained on
    for directory in (d for d in directories if (d / "config.json").is_file()):
        config = run_directory.open_run(directory)
        clips = None if _held_elsewhere(config) else run_data.stored(directory)
        for field, value in measured(config).items():
            first, other, theirs = known.setdefault(field, (directory.name, value, clips))
            if other != value and not (field.startswith(FOLDER) and clips and clips == theirs):
                raise UserError(f"{first} and {directory.name} have no losses of one law: {field} is {other!r} and {value!r}; "
                                "allowed are runs with the same held-out clips and patch")


def variables(points: Sequence[Point], /) -> tuple[str, ...]:
    """Parameters and clips where both vary and there are points enough, else the FLOPs."""
    vary = [len({getattr(p, v) for p in points}) >= 3 for v in ("parameters", "clips")]
    return ("parameters", "clips") if all(vary) and len(points) >= 5 + FEWEST else ("flops",)


def solve(points: Sequence[Point], chosen: tuple[str, ...], /, *, units: tuple[float, ...], starts: Sequence[np.ndarray]) -> np.ndarray:
    """Logarithms of (E, A..., a...) with the least Huber error of log loss, from the best of several starts."""
    x = np.log(np.asarray([[getattr(p, v) / u for v, u in zip(chosen, units, strict=True)] for p in points]))
    y = np.log([p.loss for p in points])
    k = len(chosen)

    def terms(theta: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full((len(y), 1), theta[0]), theta[1:1 + k] - np.exp(theta[1 + k:]) * x], 1)

    def error(theta: np.ndarray) -> np.ndarray:
        return np.logaddexp.reduce(terms(theta), axis=1) - y

    def slope(theta: np.ndarray) -> np.ndarray:
        share = np.exp(terms(theta) - (error(theta) + y)[:, None])
        return np.concatenate([share, -share[:, 1:] * np.exp(theta[1 + k:]) * x], 1)

    low = np.concatenate([np.full(1 + k, math.log(FLOOR * min(p.loss for p in points))), np.full(k, math.log(0.01))])
    high = np.concatenate([np.full(1 + k, math.log(10 * max(p.loss for p in points))), np.full(k, math.log(4.0))])
    fits = [optimize.least_squares(error, np.clip(s, low + 1e-6, high - 1e-6), jac=slope, bounds=(low, high), loss="huber", f_scale=1e-2)
            for s in starts]
    return min(fits, key=lambda f: f.cost).x


def fit(points: Sequence[Point], /, *, draws: int = 200, seed: int = 0) -> Fit:
    """The law of the points, and `draws` of the bootstrap (points drawn with replacement).

    Raises UserError for too few points, or losses that are no positive numbers.
    """
    chosen = variables(points)
    least = 2 + 2 * len(chosen)
    if len({getattr(p, chosen[0]) for p in points}) < 3 or len(points) < least:
        raise UserError(f"{len(points)} finished runs at {len({p.flops for p in points})} budgets; a law of {', '.join(chosen)} needs {least} runs at 3 budgets or more")
    if bad := [p.name for p in points if not (math.isfinite(p.loss) and p.loss > 0)]:
        raise UserError(f"the loss of {', '.join(bad)} is no positive number")
    units = tuple(math.exp(np.mean([math.log(getattr(p, v)) for p in points])) for v in chosen)
    worst, best, k = max(p.loss for p in points), min(p.loss for p in points), len(chosen)
    starts = [np.log([share * best, *[(worst - share * best) / k] * k, *[exponent] * k]) for exponent in STARTS for share in (0.3, 0.8)]
    best_theta = solve(points, chosen, units=units, starts=starts)
    law = _law(chosen, units, best_theta)
    rng, drawn = np.random.default_rng(seed), []
    while len(drawn) < draws:
        some = [points[i] for i in rng.integers(0, len(points), len(points))]
        if all(len({getattr(p, v) for p in some}) >= 3 for v in chosen):
            drawn.append(_law(chosen, units, solve(some, chosen, units=units, starts=[best_theta, starts[0]])))
    return Fit(law, tuple(drawn), tuple(math.log(p.loss / law(p)) for p in points))


def _law(chosen: tuple[str, ...], units: tuple[float, ...], theta: np.ndarray, /) -> Law:
    values, k = np.exp(theta), len(chosen)
    return Law(chosen, units, float(values[0]), tuple(map(float, values[1:1 + k])), tuple(map(float, values[1 + k:])))


def report(directories: Sequence[pathlib.Path], /, *, metric: str = METRIC, draws: int = 200) -> dict[str, Any]:
    """The law of the runs without those of most FLOPs (all seeds), the prediction for the mean of those, and the law of all, as plain data.

    Raises UserError for runs whose losses cannot be compared, too few of them, or a metric that one has not.
    """
    found = {d: read(d, metric=metric) for d in directories}
    points = sorted((p for p in found.values() if p), key=lambda p: p.flops)
    if not points:
        raise UserError(f"none of the {len(directories)} runs is finished")
    check_comparable([d for d, p in found.items() if p])
    known, held = ([p for p in points if (p.flops == points[-1].flops) == largest] for largest in (False, True))
    part, whole = fit(known, draws=draws), fit(points, draws=draws)
    low, high = part.prediction(*held)
    loss, predicted = (float(np.mean(values)) for values in ([p.loss for p in held], [part.law(p) for p in held]))
    return {"scaling": metric, "runs": [dataclasses.asdict(p) for p in points], "unfinished": [d.name for d, p in found.items() if not p],
            "law": _shown(whole), "held_out": {"run": ", ".join(p.name for p in held), "loss": loss, "predicted": predicted, "interval": [low, high],
                                               "within": low <= loss <= high, "level": LEVEL}}


def _shown(found: Fit, /) -> dict[str, Any]:
    law, names = found.law, found.law.variables
    exponents = {v: {"value": law.exponents[i], "interval": list(found.interval([d.exponents[i] for d in found.drawn]))} for i, v in enumerate(names)}
    return {"variables": list(names), "units": list(law.units), "floor": {"value": law.floor, "interval": list(found.interval([d.floor for d in found.drawn]))},
            "factors": list(law.factors), "exponents": exponents}


def lines(result: Mapping[str, Any], /) -> list[str]:
    """The report for people."""
    law, held = result["law"], result["held_out"]
    terms = " + ".join(f"{a:.4g} / ({v} / {u:.3g})^{law['exponents'][v]['value']:.3f}" for v, u, a in zip(law["variables"], law["units"], law["factors"], strict=True))
    spans = ", ".join(f"{v} {e['value']:.3f} ({e['interval'][0]:.3f} to {e['interval'][1]:.3f})" for v, e in law["exponents"].items())
    return [f"{result['scaling']} of {len(result['runs'])} runs = {law['floor']['value']:.4g} + {terms}",
            f"exponents: {spans}; floor {law['floor']['interval'][0]:.4g} to {law['floor']['interval'][1]:.4g} ({100 * LEVEL:.0f} %)",
            f"held out: {held['run']} {held['loss']:.4f}, predicted {held['predicted']:.4f} ({held['interval'][0]:.4f} to {held['interval'][1]:.4f}): "
            f"{'within' if held['within'] else 'OUTSIDE'}"]


def write(result: Mapping[str, Any], path: pathlib.Path, /) -> None:
    """A page with the lines of the report and the runs over their FLOPs, a line for each number of parameters."""
    groups: dict[float, list[tuple[float, float]]] = {}
    for run in result["runs"]:
        groups.setdefault(run["parameters"], []).append((run["flops"], run["loss"]))
    named = [charts.Line(f"{size / 1e6:.3g} M", points, marks=True) for size, points in sorted(groups.items())]
    picture = charts.chart(named, title="scaling", x="training FLOP", y=result["scaling"])
    text = "".join(f"<p>{html.escape(line)}</p>" for line in lines(result))
    path.write_text(pages.page("Scaling", f"{len(result['runs'])} runs", picture + text))
