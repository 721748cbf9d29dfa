"""What an evidence suite leaves behind: evidence.json, a figure, one JSON line and a row of the table of recipes."""

import json
import math
import pathlib
from typing import Any

import matplotlib

from videomae_jax import evidence_costs, run_directory
from videomae_jax.verdicts import SHOWN, Claim, Table, Verdict


def write(workdir: pathlib.Path, name: str, claims: tuple[Claim, ...], verdicts: list[Verdict], table: Table, headlines: dict[str, dict[int, Any]], /, *,
          confidence: float, protocol: str, costs: dict[str, Any], curves: evidence_costs.Curves, curve: str) -> None:
    """Writes and prints; `protocol` is the SHA-256 of the protocol that the verdicts follow.

    `headlines` are the keys of summary.json by arm and seed; evidence.json holds them all and, at its top level, the mean
    over the seeds of the first arm. `curves` of the measurement `curve` become a figure of their own, evidence_curve.png.
    """
    results = {v.name: {"verdict": v.verdict, "reason": v.reason, "differences": v.differences,
                        **{k: getattr(v, k) if math.isfinite(getattr(v, k)) else None for k in ("mean", "low", "high")}} for v in verdicts}
    line = row(name, claims, verdicts)
    values = {arm: {str(seed): {k: x if math.isfinite(x) else None for k, x in cell.items()} for seed, cell in seeds.items()} for arm, seeds in table.items()}
    arms = list(headlines)
    result = {"name": name, "protocol_sha256": protocol, "confidence": confidence, "claims": results, "row": line}
    result = (mean(list(headlines[arms[0]].values())) | {"summary_arm": arms[0]} if arms else {}) | result
    summaries = {arm: {str(seed): x for seed, x in seeds.items()} for arm, seeds in headlines.items()}
    more = {"summary": summaries, "costs": costs, "curves": {curve: curves} if curves else {}, "measurements": values}
    run_directory.write(workdir / "evidence.json", json.dumps(result | more, indent=2, allow_nan=False))
    draw(workdir / "evidence.png", claims, verdicts, confidence=confidence)
    if curves:
        draw_curves(workdir / "evidence_curve.png", curves, measurement=curve)
    print(json.dumps(result, allow_nan=False))
    print(line)


def mean(cells: list[Any], /) -> Any:
    """Numbers averaged leaf by leaf over like nested dicts; of other values the first."""
    first = cells[0]
    if isinstance(first, dict):
        return {k: mean([c[k] for c in cells]) for k in first}
    return sum(cells) / len(cells) if isinstance(first, float) else first


def row(name: str, claims: tuple[Claim, ...], verdicts: list[Verdict], /) -> str:
    """| recipe | claim: difference [interval] over seeds | verdict | with a line break between claims."""
    texts = {c.name: c.text for c in claims}
    shown = [f"{texts[v.name]}: {number(v)}" for v in verdicts]
    return f"| {name} | {'<br>'.join(shown)} | {'<br>'.join(v.verdict for v in verdicts)} |"


def number(verdict: Verdict, /) -> str:
    """Difference and interval for people."""
    if not math.isfinite(verdict.mean):
        return "no result"
    ends = f" [{verdict.low:+.2f}, {verdict.high:+.2f}]" if math.isfinite(verdict.low) else ""
    return f"{verdict.mean:+.2f}{ends} ({len(verdict.differences)} seeds)"


def draw(path: pathlib.Path, claims: tuple[Claim, ...], verdicts: list[Verdict], /, *, confidence: float) -> None:
    """One panel a claim: the difference under every seed, mean and interval, zero and the margins."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(verdicts), 1, figsize=(8, 0.4 + 1.3 * len(verdicts)), squeeze=False, layout="constrained")
    for ax, claim, verdict in zip(axes[:, 0], claims, verdicts, strict=True):
        panel(ax, claim, verdict)
    axes[-1, 0].set_xlabel(f"left - right under the same seed; bar: {100 * confidence:g} % interval; dotted: margin")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def panel(ax: Any, claim: Claim, verdict: Verdict, /) -> None:
    """Draws one claim."""
    edges = {"superior": (claim.margin,), "noninferior": (-claim.margin,), "equivalent": (-claim.margin, claim.margin)}[claim.kind]
    ax.axvline(0, color="0.6", linewidth=0.8)
    for edge in edges:
        ax.axvline(edge, color="0.3", linewidth=1, linestyle=":")
    points = [d for d in verdict.differences if math.isfinite(d)]
    ax.plot(points, [0.0] * len(points), "o", color="0.5", markersize=4)
    if math.isfinite(verdict.low):
        ax.plot([verdict.low, verdict.high], [0.4, 0.4], color="#0072b2" if verdict.verdict == SHOWN else "#d55e00", linewidth=3)
        ax.plot([verdict.mean], [0.4], "|", color="black", markersize=10)
    ax.set_ylim(-0.5, 1)
    ax.set_yticks([])
    ax.set_title(f"{claim.text}: {verdict.verdict}", fontsize=9, loc="left")


def draw_curves(path: pathlib.Path, curves: evidence_costs.Curves, /, *, measurement: str) -> None:
    """A measurement against the seconds of the steps so far: thin lines the seeds, thick ones their mean."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, ax = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for number, (arm, seeds) in enumerate(curves.items()):
        for curve in seeds.values():
            ax.plot(*zip(*curve, strict=True), color=f"C{number}", linewidth=0.6, alpha=0.5)
        ax.plot(*zip(*evidence_costs.mean_curve(seeds), strict=True), "o-", color=f"C{number}", label=f"{arm} ({len(seeds)} seeds)", markersize=3)
    ax.set_xlabel("seconds of training steps, measured side by side")
    ax.set_ylabel(measurement)
    ax.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
