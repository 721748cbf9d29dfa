"""Measuring a training step: wall and CPU time over interleaved repeats, model FLOPs against a stated peak, memory."""

import dataclasses
import datetime
import importlib.metadata
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import parallel, profiling, topologies
from videomae_jax.assembly import Assembly
from videomae_jax.data import pipeline
from videomae_jax.errors import UserError

SIDE = 2048  # of the square matrices whose product measures a peak
SECOND = 1.0  # a repeat lasts about this long where the number of steps is left open
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Peak:
    """TFLOP/s of all devices together, and where the number is from."""

    tflops: float
    source: str


@dataclasses.dataclass(frozen=True)
class Lap:
    """One repeat: wall and CPU seconds (all threads of the process) of a step."""

    wall: float
    cpu: float


def cpu_seconds() -> float:
    """CPU time of this process so far, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def lap(run: Callable[[int], None], /, *, steps: int) -> Lap:
    """Times `run(steps)`, which must return when the last step is done."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    run(steps)
    return Lap((time.perf_counter() - wall) / steps, (cpu_seconds() - cpu) / steps)


def warmed(run: Callable[[int], None], /, *, steps: int, warmup: int) -> int:
    """Steps of a repeat after `warmup` steps: `steps`, or with 0 as many as last about a second."""
    if warmup > 1:
        run(warmup - 1)
    last = lap(run, steps=1)
    return steps or max(1, min(1000, round(SECOND / last.wall)))


def interleaved(runs: Mapping[str, tuple[Callable[[int], None], int]], /, *, repeats: int) -> dict[str, list[Lap]]:
    """`repeats` laps of every (run, steps), taken in turns, so that a change of the machine's load meets all of them."""
    laps: dict[str, list[Lap]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, (run, steps) in runs.items():
            laps[name].append(lap(run, steps=steps))
    return laps


def spread(values: list[float], /) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


class Training:
    """The training step of a run on a batch that lies on the devices already; calling it advances the state.

    Compiles on construction, `compile_seconds`. The batch is the run's first one, drawn through the real pipeline.
    """

    def __init__(self, run: Assembly, /) -> None:
        begin = time.perf_counter()
        self.compiled = run.compile()
        self.compile_seconds = time.perf_counter() - begin
        with pipeline.stream(run.source, batch_size=run.config.batch_size, seed=run.config.seed, host=jax.process_index(),
                             hosts=jax.process_count()) as stream:
            self._batches = [parallel.to_device(next(stream), mesh=run.mesh) for _ in range(run.draws)]
        self._state, self._frozen = run.create(), run.frozen
        self.loss = math.nan

    def __call__(self, steps: int, /) -> None:
        """Runs `steps` training steps and waits for the last."""
        for _ in range(steps):
            self._state, metrics = self.compiled(self._state, self._frozen, *self._batches)
        jax.block_until_ready(self._state)
        self.loss = float(next(v for k, v in metrics.items() if k.endswith("loss")))


class Product:
    """A square matrix product on one device: the attainable peak where no table knows the device."""

    def __init__(self, dtype: str, /, *, side: int = SIDE) -> None:
        keys = jax.random.split(jax.random.key(0))
        self._factors = [jax.random.normal(k, (side, side), jnp.dtype(dtype)) for k in keys]
        self._product = jax.jit(jnp.matmul)
        self.flops = 2.0 * side**3
        self.name = f"{side}x{side}x{side} matrix product in {dtype}"

    def __call__(self, steps: int, /) -> None:
        """Multiplies `steps` times."""
        for _ in range(steps):
            result = self._product(*self._factors)
        jax.block_until_ready(result)


def at_once(devices: list[Any], /) -> int:
    """How many times the rate of one device all of them give: forced devices of a CPU share its cores, so one already uses all of them."""
    return 1 if devices[0].platform == "cpu" else len(devices)


def known_peak(device: Any, /) -> Peak | None:
    """The data sheet's peak of a device, of which a chip may have several; None when it is not listed."""
    chip = topologies.chip_of(device.device_kind)
    return Peak(chip.tflops / chip.devices, f"data sheet: {chip.name}, dense bfloat16") if chip else None


def device_bytes(devices: list[Any], /) -> dict[str, Any]:
    """Peak memory so far: the largest of the devices where they count it, else the resident set of this process."""
    counted = [stats["peak_bytes_in_use"] for d in devices if (stats := d.memory_stats()) and "peak_bytes_in_use" in stats]
    if counted:
        return {"peak_bytes": max(counted), "of": "one device"}
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts kB on Linux, bytes on macOS
    return {"peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "of": "process, resident set"}


def versions(libraries: tuple[str, ...] = LIBRARIES, /) -> dict[str, str]:
    """Installed versions."""
    return {name: importlib.metadata.version(name) for name in libraries}


def figures(laps: list[Lap], /, *, clips: int, flops: float, peak: Peak) -> dict[str, Any]:
    """Milliseconds a step, clips/s and MFU of steps over `clips` clips that cost `flops` each."""
    wall = [x.wall for x in laps]
    middle = statistics.median(wall)
    return {"ms_per_step": _rounded({k: 1e3 * v for k, v in spread(wall).items()}),
            "cpu_ms_per_step": _rounded({k: 1e3 * v for k, v in spread([x.cpu for x in laps]).items()}),
            "clips_per_second": round(clips / middle, 3), "mfu": round(clips * flops / middle / (peak.tflops * 1e12), 4)}


def ratio(theirs: list[Lap], ours: list[Lap], /, *, size: float = 1.0) -> dict[str, float]:
    """How many times longer theirs takes: ratio of the medians, and the extremes of the ratios of paired repeats.

    `size` is how many times as many clips a step of theirs has; times are of the same number of clips.
    """
    pairs = [t.wall / o.wall for t, o in zip(theirs, ours, strict=True)]
    medians = statistics.median(t.wall for t in theirs) / statistics.median(o.wall for o in ours)
    cpu = statistics.median(t.cpu for t in theirs) / statistics.median(o.cpu for o in ours)
    return _rounded({k: v / size for k, v in {"of_medians": medians, "min": min(pairs), "max": max(pairs), "of_cpu_medians": cpu}.items()})


def _rounded(values: Mapping[str, float], /) -> dict[str, float]:
    return {k: round(v, 3) for k, v in values.items()}


def step(run: Assembly, /, *, steps: int, repeats: int, warmup: int, peak_tflops: float, dtype: str, rival: Callable[[], Any] | None = None,
         profile: str = "", say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The figures of a run's training step as plain data.

    `steps` of a repeat may be 0: about a second each. `peak_tflops` of one device overrides the table; where neither
    knows it, the peak is the best matrix product of `dtype` among the repeats. `rival` makes another implementation of the
    same step, once ours has its memory: an object with `name`, `about`, `clips` of a step and `__call__(steps)`, timed in turns with ours.
    `profile` is a folder for a trace.
    """
    devices = list(run.mesh.devices.flat)
    training = Training(run)
    say(f"compiled in {training.compile_seconds:.1f} s")
    runs = {"ours": (training, warmed(training, steps=steps, warmup=warmup))}
    memory = device_bytes(devices)  # before any rival allocates
    peak = Peak(peak_tflops * len(devices), "given") if peak_tflops else known_peak(devices[0])
    if not peak:
        product = Product(dtype)
        runs["peak"] = (product, warmed(product, steps=0, warmup=2))
    elif not peak_tflops:
        peak = dataclasses.replace(peak, tflops=peak.tflops * len(devices))
    other = rival() if rival else None
    if other is not None:
        runs["rival"] = (other, warmed(other, steps=steps, warmup=warmup))
    laps = interleaved(runs, repeats=repeats)
    if not peak:
        peak = Peak(at_once(devices) * product.flops / min(x.wall for x in laps["peak"]) / 1e12, f"measured: {product.name}, best of {repeats}")
    flops, clips = run.objective.cost().train_flops, run.clips * run.draws
    result = {
        "bench": "step", "name": run.config.name, "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": devices[0].device_kind, "devices": len(devices), "mesh": dict(run.mesh.shape), "clips_per_step": clips,
        "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(run.abstract.params)),
        "tokens_per_clip": dict(run.objective.cost().tokens), "steps": runs["ours"][1], "repeats": repeats, "warmup": warmup,
        **figures(laps["ours"], clips=clips, flops=flops, peak=peak), "train_flops_per_clip": flops,
        "peak": {"tflops": round(peak.tflops, 4), "source": peak.source}, "memory": memory,
        "compile_seconds": round(training.compile_seconds, 2), "versions": versions()}
    if not np.isfinite(training.loss):
        raise UserError(f"the loss of the benchmarked step is {training.loss}; its figures would mean nothing")
    if profile:
        result |= profiled(training, profile, wall=statistics.median(x.wall for x in laps["ours"]), say=say)
    if other is not None:
        result["against"] = {"name": other.name, **other.about, "clips_per_step": other.clips, "steps": runs["rival"][1],
                             **figures(laps["rival"], clips=other.clips, flops=flops, peak=peak),
                             "times_longer": ratio(laps["rival"], laps["ours"], size=other.clips / clips)}
    return result


def profiled(training: Training, folder: str, /, *, wall: float, say: Callable[[str], None]) -> dict[str, Any]:
    """{"profile": where the time of a step of `wall` seconds goes}; {} where the trace does not tell, which is said: other figures are there."""
    try:
        taken = profiling.profile(training, training.compiled.as_text(), folder, wall=wall)
    except UserError as error:
        say(f"no profile: {error}")
        return {}
    for line in taken.lines():
        say(line)
    return {"profile": {"folder": folder, "ms_by_kind": _rounded({k: 1e3 * v for k, v in taken.by(0).items()}),
                        "ms_by_part": _rounded({k: 1e3 * v for k, v in taken.by(1).items()})}}


def lines(result: Mapping[str, Any], /) -> list[str]:
    """The figures for people."""
    ms, memory, peak = result["ms_per_step"], result["memory"], result["peak"]
    text = [f"{result['name']} on {result['devices']} x {result['device']}: {ms['median']:.1f} ms a step of {result['clips_per_step']} clips "
            f"({ms['min']:.1f} to {ms['max']:.1f} over {result['repeats']} repeats of {result['steps']} steps), {result['clips_per_second']:.2f} clips/s",
            f"{result['train_flops_per_clip'] / 1e9:.1f} GFLOP a clip, {100 * result['mfu']:.1f} % of {peak['tflops']:.3f} TFLOP/s ({peak['source']})",
            f"peak memory {memory['peak_bytes'] / 2**30:.2f} GiB ({memory['of']}), compile {result['compile_seconds']:.1f} s"]
    if "against" in result:
        other = result["against"]
        text.append(f"{other['name']}: {other['ms_per_step']['median']:.1f} ms a step of {other['clips_per_step']} clips, {other['clips_per_second']:.2f} clips/s; "
                    f"a clip takes {other['times_longer']['of_medians']:.2f} times as long ({other['times_longer']['min']:.2f} to {other['times_longer']['max']:.2f} in paired repeats)")
    return text
