"""What a training step of each arm costs, measured side by side, and a measurement against the time of the steps so far."""

import math
import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from videomae_jax import benchmarks, metrics
from videomae_jax.assembly import Assembly

REPEATS = 7  # laps of about a second for each arm, in turns
Curve = list[tuple[float, float]]  # (steps or seconds, value) in order
Curves = dict[str, dict[str, Curve]]  # {arm: {"seed0": curve}}


def measure(runs: Mapping[str, Assembly], /, *, say: Callable[[str], None], repeats: int = REPEATS, steps: int = 0) -> dict[str, Any]:
    """{arm: figures} of the runs' steps on one batch each, which lies on the devices: no input is read or waited for.

    `ms_per_step` and `cpu_ms_per_step` are median, minimum and maximum over repeats of `steps` steps (0: about a second)
    that take turns, so that other load meets all arms alike; `times_longer` is relative to the first arm. `step_bytes` is
    the peak memory of the compiled step (arguments, results and temporaries on one device).
    """
    trainings = {name: benchmarks.Training(run) for name, run in runs.items()}
    laps = benchmarks.interleaved({name: (t, benchmarks.warmed(t, steps=steps, warmup=2)) for name, t in trainings.items()}, repeats=repeats)
    first, found = next(iter(runs)), {}
    for name, run in runs.items():
        memory = trainings[name].compiled.memory_analysis()
        found[name] = {
            "ms_per_step": benchmarks.spread([1e3 * x.wall for x in laps[name]]), "cpu_ms_per_step": benchmarks.spread([1e3 * x.cpu for x in laps[name]]),
            "times_longer": benchmarks.ratio(laps[name], laps[first]), "clips_per_step": run.clips * run.draws,
            "train_flops_per_clip": run.objective.cost().train_flops, "step_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes
            + memory.output_size_in_bytes - memory.alias_size_in_bytes}
        say(f"arm {name}: {found[name]['ms_per_step']['median']:.1f} ms a step, {found[name]['times_longer']['of_medians']:.2f} times that of {first}; "
            f"{found[name]['step_bytes'] / 2**20:.1f} MiB")
    return found


def follow(directories: Iterable[pathlib.Path], measurement: str, /) -> dict[str, Curve]:
    """{name of a run directory: (step, value) of every line with a finite value of the measurement}."""
    return {d.name: [(line["step"], line[measurement]) for line in metrics.read(d) if math.isfinite(line.get(measurement, math.nan))] for d in directories}


def against_time(steps: Curves, costs: Mapping[str, Any], /) -> Curves:
    """Steps as seconds: each takes the median that was measured side by side, so that the load of the day does not count."""
    return {arm: {seed: [(step * costs[arm]["ms_per_step"]["median"] / 1e3, value) for step, value in curve] for seed, curve in seeds.items()}
            for arm, seeds in steps.items()}


def mean_curve(seeds: Mapping[str, Curve], /) -> Curve:
    """Mean over the seeds at the places that all of them have."""
    tables = [dict(curve) for curve in seeds.values()]
    shared = sorted(set.intersection(*(set(t) for t in tables))) if tables else []
    return [(x, statistics.fmean(t[x] for t in tables)) for x in shared]
