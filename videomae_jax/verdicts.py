"""Claims about paired measurements, and the rules that turn an interval into a verdict."""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy.stats

from videomae_jax.errors import UserError

SHOWN, NOT_SHOWN, REVERSED, NOT_TESTABLE, UNFINISHED = "shown", "not shown", "reversed", "not testable at toy size", "unfinished"
RULES = {
    "superior": "shown if the interval of left - right lies above +margin, reversed if below 0, else not shown",
    "noninferior": "shown if the interval of left - right lies above -margin, reversed if below -margin, else not shown",
    "equivalent": "shown if the interval of left - right lies within +-margin, reversed if wholly outside, not testable if it is "
                  "at least as wide as 2 x margin and neither, else not shown",
}
FIRST = "not testable if fewer seeds ran than stated, a value is not finite or a requirement fails: these come before the other rules"
Table = dict[str, dict[int, dict[str, float]]]  # {arm: {seed: {measurement: value}}}


@dataclasses.dataclass(frozen=True)
class Value:
    """A measurement of an arm, named "<evaluator>/<name>" as in metrics.jsonl."""

    arm: str
    measurement: str


@dataclasses.dataclass(frozen=True)
class Requirement:
    """What must hold for a claim to be testable: the mean over seeds of left - right is at least `least`."""

    left: Value
    right: Value
    least: float


@dataclasses.dataclass(frozen=True)
class Claim:
    """left - right, paired by seed: "superior", "noninferior" or "equivalent" by `margin` (RULES); `right` may be a number, the same for all seeds."""

    name: str
    text: str
    left: Value
    right: Value | float
    kind: str = "superior"
    margin: float = 0.0
    requires: tuple[Requirement, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in RULES:
            raise UserError(f"claim {self.name!r} is of kind {self.kind!r}; allowed are {', '.join(RULES)}")
        if not isinstance(self.right, Value) and not math.isfinite(self.right):
            raise UserError(f"claim {self.name!r} compares with {self.right}; allowed are a measurement and a finite number")
        if self.margin < 0 or (self.kind == "equivalent" and not self.margin):
            raise UserError(f"claim {self.name!r} has margin {self.margin}; allowed are 0 and more, and more than 0 for 'equivalent'")

    @property
    def values(self) -> tuple[Value, ...]:
        """Everything that the verdict needs."""
        right = (self.right,) if isinstance(self.right, Value) else ()
        return (self.left, *right, *(v for r in self.requires for v in (r.left, r.right)))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Mean paired difference with its interval (NaN where there is none), the verdict and its reason."""

    name: str
    verdict: str
    reason: str
    differences: tuple[float, ...]
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan


def interval(differences: Any, /, *, confidence: float) -> tuple[float, float, float]:
    """Mean of n >= 2 differences and the ends of Student's interval, mean -+ t(n - 1) s / sqrt(n)."""
    d = np.asarray(differences, np.float64)
    half = scipy.stats.t.ppf(0.5 + confidence / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d))
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


def decide(claim: Claim, low: float, high: float, /) -> str:
    """The verdict of RULES for an interval."""
    m = claim.margin
    if claim.kind == "superior":
        return SHOWN if low > m else REVERSED if high < 0 else NOT_SHOWN
    if claim.kind == "noninferior":
        return SHOWN if low > -m else REVERSED if high < -m else NOT_SHOWN
    if -m < low and high < m:
        return SHOWN
    return REVERSED if low > m or high < -m else NOT_TESTABLE if high - low >= 2 * m else NOT_SHOWN


def judge(claim: Claim, table: Table, /, *, seeds: tuple[int, ...], stated: int, confidence: float) -> Verdict:
    """The verdict on a claim over `seeds`, of which `stated` were promised."""
    def column(value: Value) -> np.ndarray:
        return np.asarray([table[value.arm][seed][value.measurement] for seed in seeds], np.float64)

    missing = {f"{v.arm}/seed{s}" for v in claim.values for s in seeds if s not in table.get(v.arm, {})}
    if missing:
        return Verdict(claim.name, UNFINISHED, f"not finished: {', '.join(sorted(missing))}", ())
    for value in claim.values:
        known = table[value.arm][seeds[0]]
        if value.measurement not in known:
            raise UserError(f"claim {claim.name!r} names {value.measurement!r}, but arm {value.arm!r} has {', '.join(sorted(known))}")
    columns = [column(v) for v in claim.values]
    differences = columns[0] - (columns[1] if isinstance(claim.right, Value) else claim.right)
    shown = tuple(map(float, differences))
    if not all(np.isfinite(c).all() for c in columns):
        return Verdict(claim.name, NOT_TESTABLE, "a measurement is not finite", shown)
    mean, low, high = interval(differences, confidence=confidence) if len(seeds) > 1 else (shown[0], math.nan, math.nan)
    reason, verdict = RULES[claim.kind], ""
    if len(seeds) < stated:
        verdict, reason = NOT_TESTABLE, f"{len(seeds)} of the {stated} seeds stated beforehand"
    for r in claim.requires:
        got = float((column(r.left) - column(r.right)).mean())
        if got < r.least:
            verdict = NOT_TESTABLE
            reason = f"{r.left.arm} {r.left.measurement} - {r.right.arm} {r.right.measurement} is {got:.4g}, required are {r.least:g} and more"
    return Verdict(claim.name, verdict or decide(claim, low, high), reason, shown, mean, low, high)
