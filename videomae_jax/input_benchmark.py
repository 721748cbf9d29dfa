"""Measuring the input of a training run: CPU time a clip by stage, beside the usual loader, and whether input or computation is the bound."""

import contextlib
import dataclasses
import functools
import gc
import os
import pathlib
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from videomae_jax import benchmarks, ingest, parallel
from videomae_jax.benchmarks import Lap
from videomae_jax.data import augment, clips, decode, footage, index, packed, packing, pipeline, planes, sources
from videomae_jax.data.footage import Settings
from videomae_jax.errors import UserError

SECONDS = 10.0  # of a written video
SPARE = 16  # videos in a row that cannot be read, before the index is none to measure
TUNED = 2  # crops of a decode in fine-tuning, as V2's


@dataclasses.dataclass(frozen=True)
class Held:
    """Examples in memory, to measure what comes after a source alone."""

    fields: Mapping[str, sources.Field]
    repeats: int
    examples: tuple[dict[str, np.ndarray], ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def name(self, row: int, /) -> str:
        """The place."""
        return str(row)

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The example as it is."""
        return self.examples[row]


def prepare(folder: pathlib.Path, /, *, videos: int, settings: Settings, say: Callable[[str], None]) -> tuple[str, str]:
    """Writes videos, their index and a packing of it; the paths of the two indices."""
    for number in range(videos):
        footage.write(folder / f"{number}.mp4", seconds=SECONDS, seed=number)
    index.write(index.build(folder), folder / "index.parquet")
    size = sum(p.stat().st_size for p in folder.glob("*.mp4"))
    say(f"{videos} videos of {SECONDS:g} s, {footage.WIDTH} x {footage.HEIGHT}, {footage.FPS} frames/s, {8e-3 * size / videos / SECONDS:.0f} kbit/s")
    options = packing.Settings(frames=settings.frames, stride=settings.stride)
    packing.pack(packing.planned(str(folder / "index.parquet"), folder / "packed", settings=options))
    return str(folder / "index.parquet"), str(folder / "packed" / "index.parquet")


@functools.cache
def draws(decodes: int, /) -> tuple[tuple[int, int], ...]:
    """(number, seed) of the clips of a repeat, the same for every way of reading them.

    The first draw of the seeds, which places a window, is spread evenly: late windows cost more, and a few plain draws
    would have too many or too few of them.
    """
    places = {int(np.random.default_rng(seed).integers(2**16)) * decodes >> 16: seed for seed in reversed(range(64 * decodes))}
    return tuple(enumerate(places[place] for place in range(decodes)))


@functools.cache
def drawn(source: sources.VideoClips, decodes: int, /) -> tuple[tuple[int, int], ...]:
    """(row, seed) of the clips of a repeat: the rows in turn, around again where there are fewer, without those that cannot be read.

    Raises UserError where SPARE rows in a row cannot.
    """
    found, row = [], 0
    for _, seed in draws(decodes):
        failures: list[str] = []
        while len(failures) < SPARE:
            try:
                source.read(row % len(source), rng=np.random.default_rng(seed))
                break
            except decode.DecodeError as error:
                failures.append(str(error))
                row += 1
        else:
            raise UserError(f"{SPARE} videos in a row cannot be read; the last one is {failures[-1]}")
        found.append((row % len(source), seed))
        row += 1
    return tuple(found)


def read(source: sources.Source, row: int, /, *, seed: int) -> Any:
    """A clip."""
    return source.read(row, rng=np.random.default_rng(seed))


def runs_of(source: sources.VideoClips, settings: Settings, /, *, name: str) -> dict[str, Callable[[int], None]]:
    """What is timed of a source, each going one stage further than the one before: {"raw open": ..., "raw read": ...}."""
    def at_stage(stage: str) -> Callable[[int], None]:
        def run(decodes: int) -> None:
            for row, seed in drawn(source, decodes):
                footage.stages(source.clip(row, rng=np.random.default_rng(seed)))[stage]()
        return run

    def converted(decodes: int) -> None:
        for row, seed in drawn(source, decodes):
            clip = source.clip(row, rng=np.random.default_rng(seed))
            (decode.planes if settings.crops == "device" else decode.decode)(clip.video, clip.ids, info=clip.info)

    shipped = planes.PlaneClips(source) if settings.crops == "device" else source

    def whole(decodes: int) -> None:
        for row, seed in drawn(source, decodes):
            read(shipped, row, seed=seed)

    examples = tuple(read(shipped, row, seed=seed) for row, seed in drawn(source, settings.decodes))
    held = Held(shipped.fields, shipped.repeats, examples)

    def batched(decodes: int) -> None:
        with pipeline.sweep(held, batch_size=decodes, threads=1) as stream:
            next(stream)

    runs = {**{stage: at_stage(stage) for stage in ("open", "seek", "decode")}, "convert": converted, "read": whole, "batch": batched}
    return {f"{name} {stage}": run for stage, run in runs.items()}


class Device:
    """The two stages of a batch behind the host: the copy to the devices and, for crops cut there, cutting them."""

    def __init__(self, source: sources.VideoClips, settings: Settings, /) -> None:
        self.mesh = parallel.Layout().mesh(jax.devices()[:1])
        shipped = planes.PlaneClips(source) if settings.crops == "device" else source
        held = Held(shipped.fields, shipped.repeats, tuple(read(shipped, row, seed=seed) for row, seed in drawn(source, settings.decodes)))
        with pipeline.sweep(held, batch_size=settings.decodes) as stream:
            self.batch = next(stream)
        self.cut = jax.jit(lambda batch: ingest.ingest(batch, fields=source.fields))
        self.placed = jax.block_until_ready(parallel.to_device(self.batch, mesh=self.mesh))

    def transfer(self, decodes: int, /) -> None:
        """Copies the batch, whatever `decodes`."""
        jax.block_until_ready(parallel.to_device(self.batch, mesh=self.mesh))

    def crop(self, decodes: int, /) -> None:
        """Cuts the crops of the batch, whatever `decodes`."""
        jax.block_until_ready(self.cut(self.placed))


def resident() -> float:
    """Resident set of this process now, in MB."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(source: sources.Source, /, *, opens: int) -> float:
    """MB by which the resident set grows over `opens` reads, from the state after a fifth of them as warm-up; a video that cannot be read counts as any."""
    def opened(number: int) -> None:
        with contextlib.suppress(decode.DecodeError):
            read(source, number % len(source), seed=number)

    for number in range(max(opens // 5, 1)):
        opened(number)
    gc.collect()
    before = resident()
    for number in range(opens):
        opened(number)
    gc.collect()
    return resident() - before


def stages(laps: Mapping[str, list[Lap]], /, *, name: str) -> dict[str, dict[str, float]]:
    """CPU milliseconds a decode of every stage, over the repeats: differences between runs that go one stage further, paired."""
    order = ("open", "seek", "decode", "convert", "read")
    times = {stage: np.asarray([1e3 * x.cpu for x in laps[f"{name} {stage}"]]) for stage in (*order, "batch", "transfer")}
    steps = {"open": times["open"], **{after: times[after] - times[before] for before, after in zip(order, order[1:], strict=False)}}
    steps = {("crop" if k == "read" else k): v for k, v in steps.items()} | {k: times[k] for k in ("batch", "transfer")}
    return {k: {"median": float(np.median(v)), "min": float(v.min()), "max": float(v.max())} for k, v in steps.items()}


def rates(laps: Mapping[str, list[Lap]], /, *, name: str, clips: int) -> list[float]:
    """Training clips a second and core of every repeat: `clips` of one read, its place in a batch and its copy to the device."""
    parts = ("read", "batch", "transfer") if f"{name} batch" in laps else ("read",)
    return [clips / sum(x.cpu for x in together) for together in zip(*(laps[f"{name} {part}"] for part in parts), strict=True)]


def measure(raw: sources.VideoClips, short: sources.VideoClips | None, settings: Settings, /, *, say: Callable[[str], None]) -> dict[str, Any]:
    """All laps in turns: {"laps", "rss_growth_mb"} for an index of video files and a packed one."""
    runs: dict[str, Callable[[int], None]] = {}
    devices = {}
    for name, source in (("raw", raw), ("packed", short)):
        if source is not None:
            runs |= runs_of(source, settings, name=name)
            devices[name] = Device(source, settings)
            runs[f"{name} transfer"] = devices[name].transfer
    runs["device crop"] = devices["raw"].crop
    runs |= finetuning(raw, settings)
    for name, copies in (("reference", 1), ("repeated reference", settings.copies)):
        loader = footage.UsualLoader(raw, copies)
        runs[f"{name} read"] = functools.partial(usual, loader)
    say(f"{settings.repeats} repeats of {settings.decodes} decodes by {len(runs)} ways in turns")
    steps = {name: (run, settings.decodes) for name, run in runs.items()}
    for run, decodes in steps.values():
        run(decodes)
    laps = benchmarks.interleaved(steps, repeats=settings.repeats)
    grown = growth(planes.PlaneClips(raw) if settings.crops == "device" else raw, opens=settings.opens) if settings.opens else 0.0
    return {"laps": laps, "rss_growth_mb": grown}


def finetuning(raw: sources.VideoClips, settings: Settings, /) -> dict[str, Callable[[int], None]]:
    """What is timed of fine-tuning's input: RandAugment and crops where the settings want them, on the host, and by Pillow frame by frame."""
    source = dataclasses.replace(raw, repeats=TUNED, sampling=clips.DenseFinetune(settings.stride), crop=augment.AugmentedCrop())
    device, own = Device(source, settings), runs_of(source, settings, name="fine-tuning")

    def hosted(decodes: int) -> None:
        for row, seed in drawn(source, decodes):
            read(source, row, seed=seed)

    runs = {name: own[name] for name in ("fine-tuning read", "fine-tuning batch")} | {"fine-tuning transfer": device.transfer}
    if settings.crops == "device":
        runs["fine-tuning on the host read"] = hosted
        if jax.default_backend() != "cpu":  # there it takes seconds, and nobody trains so
            runs["device change"] = device.crop
    return runs | {"fine-tuning by Pillow read": functools.partial(usual, footage.UsualLoader(source, TUNED))}


def usual(loader: footage.UsualLoader, decodes: int, /) -> None:
    """Reads the clips of a repeat by the usual loader."""
    for row, seed in drawn(loader.source, decodes):
        loader.read(row, rng=np.random.default_rng(seed))


def source_of(symbol: Callable[..., sources.VideoClips], path: str, settings: Settings, /) -> sources.VideoClips:
    """All clips of an index, as the settings want them."""
    return symbol(index=path, split="all", frames=settings.frames, size=settings.size, repeats=settings.copies, sampling=clips.DenseRandom(settings.stride))


def result(found: Mapping[str, Any], settings: Settings, /) -> dict[str, float | None]:
    """The figures by which inputs are compared, medians over repeats; ratios are those to a loader that decodes for every clip."""
    laps = found["laps"]
    reference = rates(laps, name="reference", clips=1)
    line: dict[str, float | None] = {"reference_clips_per_s_core": round(statistics.median(reference), 2)}
    for name in ("raw", "packed"):
        own = rates(laps, name=name, clips=settings.copies) if f"{name} read" in laps else None
        line[f"{name}_clips_per_s_core"] = round(statistics.median(own), 2) if own else None
        line[f"ratio_{name}"] = round(statistics.median(a / b for a, b in zip(own, reference, strict=True)), 2) if own else None
    order = ("raw_clips_per_s_core", "packed_clips_per_s_core", "reference_clips_per_s_core", "ratio_raw", "ratio_packed")
    return {k: line[k] for k in order} | {"rss_growth_mb": round(found["rss_growth_mb"], 1)}


def lines(found: Mapping[str, Any], settings: Settings, /) -> list[str]:
    """The figures for people."""
    laps, text = found["laps"], []
    for name in ("raw", "packed"):
        if f"{name} read" in laps:
            own = rates(laps, name=name, clips=settings.copies)
            text.append(f"{name}: {_spread(own)} clips/s and core, {settings.copies} crops a decode, cut on the {settings.crops}; ms of CPU a decode:")
            text += [f"  {stage:<10}{v['median']:8.2f}  ({v['min']:.2f} to {v['max']:.2f})" for stage, v in stages(laps, name=name).items()]
    for name, copies, what in (("reference", 1, "a decode for every clip"), ("repeated reference", settings.copies, f"{settings.copies} crops a decode")):
        own = rates(laps, name=name, clips=copies)
        text.append(f"usual loader (PyAV, RGB, PIL, float32), {what}: {_spread(own)} clips/s and core; raw is {_ratio(laps, settings, own)} times as fast")
    for name, how in (("fine-tuning", f"RandAugment and crops on the {settings.crops}"), ("fine-tuning on the host", "both on the host"),
                      ("fine-tuning by Pillow", "Pillow, frame by frame")):
        if f"{name} read" in laps:
            own = rates(laps, name=name, clips=TUNED)
            text.append(f"input of fine-tuning, {TUNED} crops a decode, {how}: {_spread(own)} clips/s and core, {1e3 / statistics.median(own):.1f} ms a clip")
    if "device change" in laps:
        text.append(f"RandAugment and crops on {jax.devices()[0].device_kind}: {_spread([1e3 * x.wall / TUNED for x in laps['device change']])} ms a clip, within the step")
    if settings.crops == "device":
        cut = [1e3 * x.wall / settings.copies for x in laps["device crop"]]
        text.append(f"cutting the crops on {jax.devices()[0].device_kind}: {_spread(cut)} ms a clip, within the step")
    return text


def _ratio(laps: Mapping[str, list[Lap]], settings: Settings, other: list[float], /) -> str:
    pairs = [a / b for a, b in zip(rates(laps, name="raw", clips=settings.copies), other, strict=True)]
    return _spread(pairs)


def _spread(values: list[float], /) -> str:
    found = benchmarks.spread(values)
    return f"{found['median']:.2f} ({found['min']:.2f} to {found['max']:.2f})"


def verdict(rate: float, /, *, step_ms: float, clips: int, cores: int) -> str:
    """Whether `cores` cores that give `rate` clips/s each keep up with a step of `clips` clips in `step_ms`."""
    need, have = clips / step_ms * 1e3, rate * cores
    cause = "input-bound" if have < need else "compute-bound"
    return f"{cause}: a step of {clips} clips in {step_ms:g} ms needs {need:.0f} clips/s, {cores} cores give {have:.0f}; {need / rate:.1f} cores keep up"


def sources_of(raw: str, short: str, settings: Settings, /) -> tuple[sources.VideoClips, sources.VideoClips | None]:
    """The sources of the two indices; "" = no packed one."""
    if sys.platform != "linux":
        raise UserError(f"bench input reads the resident set from /proc, which {sys.platform} has not; allowed is linux")
    return source_of(sources.VideoClips, raw, settings), source_of(packed.PackedClips, short, settings) if short else None
