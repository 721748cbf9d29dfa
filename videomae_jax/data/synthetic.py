"""The embedded data sets: seeded worlds, written as real H.264 files with sidecar labels, sound and truth.

A family is a module of this package with a dataclass of world parameters that bears its name, `clip(index, *, world,
seed)` with `.video` u8 [T H W 3], `.labels` (class names; "label" is the main one) and, where it has sound, `.audio` f32
[samples] at `world.audio_rate`, and `truth(clip, *, world)`, a dict of arrays. The shapes carry their labels as fields.
"""

import ast
import concurrent.futures
import csv
import dataclasses
import importlib
import io
import json
import os
import pathlib
import sys
import time
import wave
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from videomae_jax.data import shapes
from videomae_jax.data.workers import processes
from videomae_jax.errors import UserError

VERSION = 1
FAMILIES = ("collisions", "faces", "shapes")
# Without B-frames x264 writes the same bytes every time; one reference keeps exported motion vectors meaningful.
ENCODER = {"crf": "12", "preset": "veryfast", "x264-params": "ref=1:bframes=0:keyint=12:threads=1"}
SOUND = {"codec": "aac", "layout": "mono", "bit_rate": 96_000}
SPLIT_STRIDE = 10**7  # splits use disjoint index ranges
JOURNAL = "unfinished.jsonl"  # the card, then a manifest row for every clip that is whole


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a folder holds: the world, its seed and the number of clips of each split."""

    world: Any = shapes.Shapes()
    seed: int = 0
    train: int = 2000
    val: int = 400
    test: int = 400
    truth: bool = False

    def __post_init__(self) -> None:
        for field in ("train", "val", "test"):
            if not 0 <= getattr(self, field) <= SPLIT_STRIDE:
                raise UserError(f"{field} is {getattr(self, field)}; allowed are 0 to {SPLIT_STRIDE} clips")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed {self.seed}; allowed are 0 to 2^63 - 1")
        if not self.train + self.val + self.test:
            raise UserError("no clips at all: train, val and test are 0")

    @property
    def family(self) -> str:
        """The module that the world belongs to."""
        return type(self.world).__module__.rpartition(".")[2]

    def clips(self) -> list[tuple[str, str, int]]:
        """(id, split, index) of every clip."""
        counts = {"train": self.train, "val": self.val, "test": self.test}
        return [(f"{split}_{i:06d}", split, k * SPLIT_STRIDE + i) for k, (split, n) in enumerate(counts.items()) for i in range(n)]

    def card(self) -> dict[str, Any]:
        """The content of world.json."""
        sound = {"sound": SOUND} if hasattr(self.world, "audio_rate") else {}
        return {"version": VERSION, "family": self.family, **dataclasses.asdict(self), "encoder": ENCODER, **sound,
                "libraries": {"av": av.__version__, "numpy": np.__version__}}


@dataclasses.dataclass(frozen=True)
class Example:
    """One clip of any family; `labels["label"]` is the class of lists/*.csv. `audio` and `truth` are None where there is none."""

    video: np.ndarray
    labels: dict[str, str]
    audio: np.ndarray | None = None
    truth: dict[str, np.ndarray] | None = None


def module(family: str, /) -> Any:
    """The module of a family. Raises UserError for one that does not exist."""
    if family not in FAMILIES:
        raise UserError(f"family {family!r}; allowed are {', '.join(FAMILIES)}")
    try:
        return importlib.import_module(f"videomae_jax.data.{family}")
    except ModuleNotFoundError as error:
        if error.name != f"videomae_jax.data.{family}":
            raise
        raise UserError(f"family {family!r} is not part of this installation: there is no module {error.name}") from error


def world(family: str, /, *, changes: dict[str, str] | None = None) -> Any:
    """The parameters of a family, with fields changed by their written values. Raises UserError."""
    kind = getattr(module(family), family.capitalize())
    default, values, fields = kind(), {}, [f.name for f in dataclasses.fields(kind)]
    for field, text in (changes or {}).items():
        if field not in fields:
            raise UserError(f"the world {family!r} has no field {field!r}; it has {', '.join(fields)}")
        values[field] = read_value(text, like=getattr(default, field), field=field)
    return kind(**values)


def read_value(text: str, /, *, like: Any, field: str) -> Any:
    """The value that a text stands for, of the type of `like`."""
    if isinstance(like, str):
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if isinstance(like, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(like) or (isinstance(like, tuple) and len(value) != len(like)):
        raise UserError(f"world.{field} is {text!r}; allowed is a value like {like!r}")
    return value


def example(index: int, /, *, plan: Plan) -> Example:
    """Clip `index` of a plan's world, with truth where the plan asks for it.

    Truth with `objects` and `flow_fwd` gains `occluded` bool [T-1 H W]: what the next frame hides or no longer holds.
    """
    family = module(plan.family)
    clip = family.clip(index, world=plan.world, seed=plan.seed)
    if family is shapes:
        labels = {"label": f"{clip.appearance}_{clip.motion}", "appearance": clip.appearance, "motion": clip.motion}
    else:
        labels = clip.labels
    if not plan.truth:
        return Example(clip.video, labels, getattr(clip, "audio", None))
    truth = shapes.truth(clip.scene, world=plan.world, appearance=clip.appearance) if family is shapes else family.truth(clip, world=plan.world)
    if {"objects", "flow_fwd"} <= truth.keys():
        truth = truth | {"occluded": occlusion(truth["objects"], truth["flow_fwd"])}
    return Example(clip.video, labels, getattr(clip, "audio", None), truth)


def occlusion(objects: np.ndarray, flow: np.ndarray, /) -> np.ndarray:
    """bool [T-1 H W]: the pixel's target under flow f32 [T-1 H W 2] lies outside or on another object of u8 [T H W]."""
    height, width = objects.shape[1:]
    y, x = np.mgrid[:height, :width]
    hidden = np.zeros(objects[:-1].shape, bool)
    for t, moved in enumerate(flow):
        column, row = np.round(x + moved[..., 0]).astype(int), np.round(y + moved[..., 1]).astype(int)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        found = objects[t + 1][row.clip(0, height - 1), column.clip(0, width - 1)]
        hidden[t] = ~inside | (found != objects[t])
    return hidden


def encode(video: np.ndarray, /, *, fps: int, audio: np.ndarray | None = None, audio_rate: int = 16_000) -> bytes:
    """mp4 bytes of u8 RGB [T H W 3] as H.264 yuv420p, with f32 [samples] in [-1, 1] as AAC mono; height and width must be even."""
    if video.shape[1] % 2 or video.shape[2] % 2:
        raise UserError(f"frames of {video.shape[2]}x{video.shape[1]} cannot be stored as yuv420p; allowed are even sizes")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
        stream.thread_count = 1
        sound = None if audio is None else container.add_stream(SOUND["codec"], rate=audio_rate, layout=SOUND["layout"], bit_rate=SOUND["bit_rate"])
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
        if sound is not None:
            samples = av.AudioFrame.from_ndarray(np.float32(audio)[None], format="fltp", layout=SOUND["layout"])
            samples.sample_rate, samples.pts = audio_rate, 0
            container.mux(sound.encode(samples))
            container.mux(sound.encode())
    return buffer.getvalue()


def wav(audio: np.ndarray, /, *, rate: int) -> bytes:
    """16-bit mono wav of f32 [samples] in [-1, 1]."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setparams((1, 2, rate, len(audio), "NONE", ""))
        file.writeframes(np.round(32767 * np.clip(audio, -1, 1)).astype("<i2").tobytes())
    return buffer.getvalue()


def write(directory: pathlib.Path, plan: Plan, /, *, workers: int = 1) -> bool:
    """Writes DIR/videos/*.mp4, labels.csv, manifest.jsonl, lists/*.csv, world.json and, if asked, truth/*.npz and audio/*.wav.

    world.json comes last, so a folder that has it is complete; a complete folder with the same plan is left alone (False).
    An interrupted writing goes on where it stopped. Raises UserError for a folder that holds something else, and where the
    disk is full or not writable.
    """
    directory = pathlib.Path(directory)
    try:
        if finished(directory, plan):
            sys.stderr.write(f"{directory} is complete already\n")
            return False
        directory.mkdir(parents=True, exist_ok=True)
        tables(directory, journalled(directory, plan, workers=workers))
        replace(directory / "world.json", text_of(plan.card()).encode())
        (directory / JOURNAL).unlink()
    except OSError as error:
        raise UserError(f"cannot write {error.filename or directory}: {error.strerror or error}") from error
    except concurrent.futures.BrokenExecutor as error:
        raise UserError(f"a process that wrote {directory} was killed (memory?); run again with fewer workers to go on") from error
    return True


def text_of(card: dict[str, Any], /) -> str:
    """A card as JSON."""
    return json.dumps(card, indent=2, sort_keys=True)


def finished(directory: pathlib.Path, plan: Plan, /) -> bool:
    """Whether the folder is complete. Raises UserError where it holds another world, or files of unknown origin."""
    stored, journal = directory / "world.json", directory / JOURNAL
    if stored.exists():
        check_same(json.loads(stored.read_text()), plan, path=stored)
        return True
    if not journal.exists() and directory.is_dir() and (strangers := sorted(p.name for p in directory.iterdir())):
        raise UserError(f"{directory} holds files that belong to no world, such as {strangers[0]}; use a new folder")
    return False


def check_same(card: dict[str, Any], plan: Plan, /, *, path: pathlib.Path) -> None:
    """Raises UserError naming the first difference of a stored card from a plan; versions of libraries may differ."""
    there, here = flat(card), flat(json.loads(text_of(plan.card())))
    for key in sorted(there.keys() | here.keys()):
        if not key.startswith("libraries.") and there.get(key) != here.get(key):
            raise UserError(f"{path} describes another synthetic world: {key} is {there.get(key)} there and {here.get(key)} here; "
                            "use a new folder or remove it")


def flat(tree: dict[str, Any], prefix: str = "", /) -> dict[str, Any]:
    """Nested dicts as one with dotted keys."""
    return {k: v for name, value in tree.items() for k, v in
            (flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}).items()}


def journalled(directory: pathlib.Path, plan: Plan, /, *, workers: int) -> list[dict[str, Any]]:
    """Manifest rows of all clips in order; those that the journal tells and whose files are there are not made again."""
    path, clips = directory / JOURNAL, plan.clips()
    rows = kept(path, plan) if path.exists() else {}
    if rows:
        sys.stderr.write(f"{directory}: {len(rows)} of {len(clips)} videos are there already\n")
    # First of all: it is by the journal that a folder is known to be of a world.
    replace(path, "".join(json.dumps(line) + "\n" for line in (plan.card(), *rows.values())).encode())
    for name in ("videos", "lists", *(("truth",) if plan.truth else ()), *(("audio",) if plan.truth and hasattr(plan.world, "audio_rate") else ())):
        (directory / name).mkdir(exist_ok=True)
    jobs, there, start = [(directory, plan, clip) for clip in clips if clip[0] not in rows], len(rows), time.monotonic()
    with path.open("a") as journal:
        for row in made(jobs, workers=workers):
            rows[row["id"]] = row
            journal.write(json.dumps(row) + "\n")
            journal.flush()
            if len(rows) % 200 == 0 or len(rows) == len(clips):
                sys.stderr.write(f"wrote {len(rows)}/{len(clips)} videos, {(len(rows) - there) / (time.monotonic() - start):.1f} a second\n")
    return [rows[name] for name, _, _ in clips]


def kept(path: pathlib.Path, plan: Plan, /) -> dict[str, dict[str, Any]]:
    """{id: row} of the clips in a journal whose files are not missing or empty. Raises UserError for the journal of another plan."""
    first, *lines = path.read_text().splitlines()
    check_same(json.loads(first), plan, path=path)
    rows = {}
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break  # the line that an interruption tore
        files = [path.parent / row[key] for key in ("path", "truth", "audio") if key in row]
        if all(file.is_file() and file.stat().st_size for file in files):
            rows[row["id"]] = row
    return rows


def made(jobs: list[tuple[pathlib.Path, Plan, tuple[str, str, int]]], /, *, workers: int) -> Iterator[dict[str, Any]]:
    """Manifest rows of the jobs in order, written by `workers` processes."""
    if workers <= 1 or len(jobs) < 64:
        yield from map(write_clip, jobs)
        return
    with processes(workers) as pool:
        yield from pool.map(write_clip, jobs, chunksize=16)


def write_clip(job: tuple[pathlib.Path, Plan, tuple[str, str, int]], /) -> dict[str, Any]:
    """Writes one clip and returns its manifest row."""
    directory, plan, (name, split, index) = job
    clip, fps, rate = example(index, plan=plan), plan.world.fps, getattr(plan.world, "audio_rate", 0)
    replace(directory / "videos" / f"{name}.mp4", encode(clip.video, fps=fps, audio=clip.audio, audio_rate=rate))
    row = {"id": name, "split": split, "path": f"videos/{name}.mp4", "frames": len(clip.video), "fps": fps, "height": clip.video.shape[1],
           "width": clip.video.shape[2], "duration": len(clip.video) / fps, **clip.labels}
    if clip.truth is not None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **clip.truth)
        replace(directory / "truth" / f"{name}.npz", buffer.getvalue())
        row["truth"] = f"truth/{name}.npz"
        if clip.audio is not None:
            replace(directory / "audio" / f"{name}.wav", wav(clip.audio, rate=rate))
            row["audio"] = f"audio/{name}.wav"
    return row


def tables(directory: pathlib.Path, rows: list[dict[str, Any]], /) -> None:
    """manifest.jsonl, labels.csv and the list formats of the original code ("path 0 -1", "path label")."""
    replace(directory / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    text = io.StringIO()
    technical = ("id", "frames", "fps", "height", "width", "duration")
    columns = ["path", "label", "split", *(k for k in rows[0] if k not in (*technical, "path", "label", "split"))]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace(directory / "labels.csv", text.getvalue().encode())
    classes = sorted({row["label"] for row in rows})
    for split in ("train", "val", "test"):
        chosen = [row for row in rows if row["split"] == split]
        replace(directory / "lists" / f"{split}_pretrain.csv", "".join(f"{r['path']} 0 -1\n" for r in chosen).encode())
        replace(directory / "lists" / f"{split}.csv", "".join(f"{r['path']} {classes.index(r['label'])}\n" for r in chosen).encode())


def replace(path: pathlib.Path, content: bytes, /) -> None:
    """Writes a file as a whole, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
