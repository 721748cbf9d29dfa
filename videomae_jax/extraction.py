"""Features of whole videos by sliding windows: one file a video, written as a whole, so that an interrupted call goes on.

The order of tokens is (time, rows, columns). The tail of a video fills its last window with the last frame; that padding is
attended by no token and marked in `valid`.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from videomae_jax import run_directory
from videomae_jax.api import Model
from videomae_jax.data import decode, index, remote, transforms, windows
from videomae_jax.errors import UserError
from videomae_jax.evals.base import evaluation_source

FORMATS = ("npz", "zarr", "tad")
SETTINGS = "extraction.json"
DTYPES = ("float32", "float16")
HELD = 4  # batches of windows whose features may wait for the tails of videos that are read


@dataclasses.dataclass(frozen=True)
class Extraction:
    """What is taken of a video and how it is written.

    `layer` -1 = as the recipe represents a clip, else the raw output of that block. `keep` "pooled" writes one vector a window,
    "tokens" all of them. `frame` "eval" crops as the run's evaluation, "whole" resizes the whole frame with antialiasing,
    "bilinear" without (V2's feature script). `format` "npz" and "zarr" hold features, first frames, times and validity; "tad" is
    an .npy [windows D] a video with a .json beside it, as detectors of actions in time read.
    """

    plan: windows.Plan
    layer: int = -1
    keep: str = "pooled"
    frame: str = "eval"
    format: str = "npz"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        for field, allowed in (("keep", ("pooled", "tokens")), ("frame", ("eval", "whole", "bilinear")), ("format", FORMATS), ("dtype", DTYPES)):
            if getattr(self, field) not in allowed:
                raise UserError(f"{field} {getattr(self, field)!r}; allowed are {', '.join(allowed)}")
        if self.format == "tad" and self.keep != "pooled":
            raise UserError("format 'tad' holds one vector a window; allowed with it is keep 'pooled'")

    def path(self, out: pathlib.Path, name: str, /) -> pathlib.Path:
        """Where the features of a video lie. V2's names end before the first dot. Raises UserError for a name that leads out of `out`."""
        given = pathlib.PurePath(name)
        if given.is_absolute() or ".." in given.parts or not given.name:
            raise UserError(f"the features of {name!r} would not lie below {out}; allowed are names without '..' and a first '/'")
        return out / f"{given.name.partition('.')[0]}.npy" if self.format == "tad" else out / f"{name}.{self.format}"

    def cut(self, model: Model, /) -> windows.Cut:
        """What makes the model's frames of decoded ones."""
        if self.frame == "eval":
            crop = getattr(evaluation_source(model.config, split="all", trust=model.trust), "crop", None)
            if crop is None:
                raise UserError("the data of this run do not say how a frame is cropped; allowed are frame 'whole' and 'bilinear'")
        else:
            crop = transforms.WholeFrame() if self.frame == "whole" else windows.Bilinear()
        return functools.partial(crop, size=model.size, rng=np.random.default_rng(0))


@dataclasses.dataclass(frozen=True)
class Batch:
    """Windows [B ...] of one or several videos, as (number of the video, number of its window) and their real frames."""

    clips: np.ndarray
    places: Sequence[tuple[int, int]]
    lengths: np.ndarray


@dataclasses.dataclass
class Open:
    """A video whose features are being gathered."""

    name: str
    info: decode.VideoInfo
    starts: np.ndarray
    features: list[np.ndarray | None]
    valid: list[np.ndarray | None]
    left: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """Videos written, those that were there already, and {name: why} of those that failed."""

    written: int
    present: int
    failed: dict[str, str]
    windows: int


def find(paths: Iterable[str], /) -> list[tuple[str, pathlib.Path]]:
    """(name, path) of videos: files by their own names, the videos of folders by their paths in them, those of indexes by their names there.

    Raises UserError for a path that is not there, a folder without videos, an index of something else than video files, and two
    videos of one name.
    """
    found: dict[str, pathlib.Path] = {}
    for text in paths:
        path = pathlib.Path(text)
        if path.suffix == ".parquet":
            new = indexed(text)
        elif path.is_dir():
            new = [(name, path / name) for name in index.find(path)]
        else:
            new = [(path.name, path)] if path.is_file() else []
        if not new:
            raise UserError(f"no video in {text}; allowed are files, folders with videos ({', '.join(index.SUFFIXES)}) and an index")
        for name, place in new:
            if found.setdefault(name, place) != place:
                raise UserError(f"{place} and {found[name]} have the same name {name!r}, so that one would overwrite the other")
    return list(found.items())


def indexed(path: str, /) -> list[tuple[str, pathlib.Path]]:
    """(name, path) of the readable videos of an index. Official lists may name videos by absolute paths, which lose their first '/'."""
    table, home = index.load(path), pathlib.Path(path).resolve().parent
    packed, rows = index.PACKED in table.schema.names, index.readable(table, split="all", path=path)
    table = table.select(["path", "name", "template"]).take(rows)
    places = table.column("path").to_pylist()
    kinds = {"packed clips": packed, "folders of pictures": table.column("template").null_count < table.num_rows,
             "addresses": any(map(remote.is_remote, places))}
    if wrong := [kind for kind, found in kinds.items() if found]:
        raise UserError(f"index {path} is of {wrong[0]}; allowed are indexes of video files on this machine")
    names = [pathlib.PurePosixPath(name or place) for name, place in zip(table.column("name").to_pylist(), places, strict=True)]
    return [(str(name.relative_to(name.anchor)), home / place) for name, place in zip(names, places, strict=True)]


def extract(model: Model, videos: Sequence[tuple[str, pathlib.Path]], /, *, out: pathlib.Path, what: Extraction, weights: str, batch: int,
            say: Callable[[str], None] = lambda line: None) -> Summary:
    """Writes the features of every video that has none yet. `weights` names the model in extraction.json.

    Decoding, the device and writing overlap: a batch is decoded while the one before it runs. A video that cannot be read is
    named and left out. Raises UserError where `out` holds features that were taken otherwise.
    """
    model.check_layer(what.layer)
    targets = targets_of([name for name, _ in videos], out=out, what=what)
    claim(out, what=what, weights=weights)
    todo = [(name, path) for name, path in videos if not targets[name].exists()]
    opened: dict[int, Open] = {}
    failed: dict[str, str] = {}
    counts = collections.Counter()
    running: collections.deque[tuple[Batch, Any]] = collections.deque()

    def finish(limit: int) -> None:
        while len(running) > limit:
            gather(*running.popleft(), opened=opened, what=what, write_to=lambda video: write(video, targets[video.name], what=what, model=model), counts=counts)

    batches = batched(todo, what=what, cut=what.cut(model), opened=opened, failed=failed, size=batch)
    program = model.represent(what.layer)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, batches, None)
        while (current := upcoming.result()) is not None:
            upcoming = pool.submit(next, batches, None)
            # A whole window is the usual program; only tails need the one that masks.
            more = {} if (current.lengths == what.plan.clip).all() else {"length": current.lengths}
            running.append((current, model.submit(program, current.clips, rows=batch, **more)))
            finish(1)
    finish(0)
    for name, why in failed.items():
        say(f"left out: {name}: {why}")
    return Summary(counts["written"], len(videos) - len(todo), failed, counts["windows"])


def targets_of(names: Sequence[str], /, *, out: pathlib.Path, what: Extraction) -> dict[str, pathlib.Path]:
    """{name: file} of the features. Raises UserError where several would be written to one file, or one over the settings of the folder."""
    targets = {name: what.path(out, name) for name in names}
    counts = collections.Counter(targets.values())
    twins = [name for name, path in targets.items() if counts[path] > 1]
    if twins:
        raise UserError(f"{', '.join(twins[:4])} would be written to the same file {targets[twins[0]]}; rename them or use the format npz")
    if taken := [name for name, path in targets.items() if what.format == "tad" and path.with_suffix(".json") == out / SETTINGS]:
        raise UserError(f"what is said of {taken[0]} would be written over {out / SETTINGS}, the settings of the folder; rename it or use the format npz")
    return targets


def claim(out: pathlib.Path, /, *, what: Extraction, weights: str) -> None:
    """Writes extraction.json, or compares with the one that is there."""
    settings = json.loads(json.dumps({"weights": weights, **dataclasses.asdict(what)}))
    stored = out / SETTINGS
    if stored.is_file():
        old = json.loads(stored.read_text())
        wrong = [f"{k}: {old.get(k)!r} there, {settings.get(k)!r} now" for k in sorted(old.keys() | settings.keys()) if old.get(k) != settings.get(k)]
        if wrong:
            raise UserError(f"{out} holds features that were taken otherwise: {'; '.join(wrong)}; use a new --out")
    elif out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; needed is a folder")
    run_directory.write(stored, json.dumps(settings, indent=2))


def batched(videos: Sequence[tuple[str, pathlib.Path]], /, *, what: Extraction, cut: windows.Cut, opened: dict[int, Open], failed: dict[str, str],
            size: int) -> Iterator[Batch]:
    """Batches of `size` windows through all videos; full windows and tails apart, so that both have one shape and program.

    A video is in memory until its tail has run, so tails go before they fill a batch where the videos they end are long.
    """
    waiting: dict[bool, list[tuple[np.ndarray, tuple[int, int], int]]] = {True: [], False: []}

    def taken(whole: bool) -> Batch:
        clips, places, lengths = zip(*waiting[whole], strict=True)
        waiting[whole].clear()
        return Batch(np.stack(clips), places, np.asarray(lengths, np.int32))

    for number, (name, path) in enumerate(videos):
        try:
            info = decode.probe(path)
            starts = what.plan.starts(info.frames)
            if not len(starts):
                raise decode.DecodeError(str(path), "short", f"{info.frames} frames are fewer than the {what.plan.span} of a window")
            opened[number] = Open(name, info, starts, [None] * len(starts), [None] * len(starts), len(starts))
            for k, clip in enumerate(windows.stream(path, plan=what.plan, info=info, cut=cut)):
                length = what.plan.length(int(starts[k]), frames=info.frames)
                group = waiting[length == what.plan.clip]
                group.append((clip, (number, k), length))
                if len(group) == size:
                    yield taken(length == what.plan.clip)
        except decode.DecodeError as error:
            failed[name] = f"{error.stage}: {error.cause}"
            opened.pop(number, None)
            continue
        ends = {n for _, (n, _), _ in waiting[False]}
        if sum(len(opened[n].starts) for n in ends if n in opened) > HELD * size:
            yield taken(False)
    for whole in (True, False):
        if waiting[whole]:
            yield taken(whole)


def gather(batch: Batch, result: Any, /, *, opened: dict[int, Open], what: Extraction, write_to: Callable[[Open], None], counts: Any) -> None:
    """Puts the features of a batch in their places, and writes the videos that are whole."""
    # Only what is kept leaves the device.
    wanted = (result.pooled if what.keep == "pooled" else result.tokens, result.valid)
    features, valid = (np.asarray(x)[: len(batch.places)] for x in jax.device_get(wanted))
    grid, tubelet = result.grid, what.plan.clip // result.grid.t
    real = -(-batch.lengths // tubelet)
    if (valid.reshape(len(valid), grid.t, -1)[:, :, 0].sum(1) != real).any():
        raise UserError("this recipe does not leave out padding; take whole windows alone with --tail=drop")
    for row, (number, k) in enumerate(batch.places):
        video = opened.get(number)
        if video is None:  # failed after this window was read
            continue
        found = features[row].astype(what.dtype)
        video.features[k] = found if what.keep == "pooled" else found.reshape(grid.t, grid.h, grid.w, -1)
        video.valid[k] = valid[row].reshape(grid.t, -1)[:, 0]
        video.left -= 1
        counts["windows"] += 1
        if not video.left:
            write_to(opened.pop(number))
            counts["written"] += 1


def write(video: Open, path: pathlib.Path, /, *, what: Extraction, model: Model) -> None:
    """One video's file, replaced as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    features, tubelet = np.stack(video.features), model.objective.encoder.patch[0]
    seconds = np.stack([windows.times(int(s), plan=what.plan, info=video.info, tubelet=tubelet) for s in video.starts])
    arrays = {"features": features, "start": video.starts, "time": seconds, "valid": np.stack(video.valid)}
    about = {"name": video.name, "fps": float(video.info.fps), "frames": video.info.frames, "duration": video.info.duration}
    if what.format == "tad":
        window = {"window": what.plan.span, "stride": what.plan.step, "rate": what.plan.rate, "layer": what.layer, "shape": list(features.shape)}
        run_directory.write(path.with_suffix(".json"), json.dumps(about | window, indent=2))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if what.format == "zarr":
        write_zarr(temporary, arrays, about)
    else:
        with temporary.open("wb") as file:
            if what.format == "tad":
                np.save(file, features)
            else:
                np.savez(file, **arrays, **{k: np.asarray(v) for k, v in about.items()})
    os.replace(temporary, path)


def write_zarr(path: pathlib.Path, arrays: dict[str, np.ndarray], about: dict[str, Any], /) -> None:
    """A zarr group with one array a name, in blocks of windows, and the rest as attributes."""
    try:
        import zarr
    except ImportError as error:
        raise UserError(f"the format zarr needs the package zarr ({error}); install it with: pip install zarr") from error
    group = zarr.open_group(str(path), mode="w")
    for name, value in arrays.items():
        block = (max(1, min(len(value), 16_000_000 // max(value[0].nbytes, 1))), *value.shape[1:])
        group.create_array(name, data=value, chunks=block)
    group.attrs.update(about)
