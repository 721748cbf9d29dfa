"""The embedded data set: a seeded world of moving shapes, written as real H.264 files with sidecar labels."""

import concurrent.futures
import csv
import dataclasses
import io
import json
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import av
import numpy as np

from videomae_jax.data import shapes
from videomae_jax.errors import UserError

VERSION = 1
# Without B-frames x264 writes the same bytes every time; one reference keeps exported motion vectors meaningful.
ENCODER = {"crf": "12", "preset": "veryfast", "x264-params": "ref=1:bframes=0:keyint=12:threads=1"}
SPLIT_STRIDE = 10**7  # splits use disjoint index ranges


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a folder holds: the world, its seed and the number of clips of each split."""

    world: shapes.Shapes = shapes.Shapes()
    seed: int = 0
    train: int = 2000
    val: int = 400
    test: int = 400
    truth: bool = False

    def clips(self) -> list[tuple[str, str, int]]:
        """(id, split, index) of every clip."""
        counts = {"train": self.train, "val": self.val, "test": self.test}
        return [(f"{split}_{i:06d}", split, k * SPLIT_STRIDE + i) for k, (split, n) in enumerate(counts.items()) for i in range(n)]

    def card(self) -> dict[str, Any]:
        """The content of world.json."""
        return {"version": VERSION, "family": "shapes", **dataclasses.asdict(self), "encoder": ENCODER,
                "libraries": {"av": av.__version__, "numpy": np.__version__}}


def encode(video: np.ndarray, /, *, fps: int) -> bytes:
    """mp4 bytes of u8 RGB [T H W 3] as H.264 yuv420p; height and width must be even."""
    if video.shape[1] % 2 or video.shape[2] % 2:
        raise UserError(f"frames of {video.shape[2]}x{video.shape[1]} cannot be stored as yuv420p; allowed are even sizes")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=ENCODER)
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
        stream.thread_count = 1
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write(directory: pathlib.Path, plan: Plan, /, *, workers: int = 1) -> None:
    """Writes DIR/videos/*.mp4, labels.csv, manifest.jsonl, lists/*.csv, world.json and, if asked, truth/*.npz.

    world.json comes last, so a folder that has it is complete; a complete folder with the same plan is left alone.
    Raises UserError for a folder with another world.
    """
    directory = pathlib.Path(directory)
    card = json.dumps(plan.card(), indent=2, sort_keys=True)
    stored = directory / "world.json"
    if stored.exists():
        if json.loads(stored.read_text()) != json.loads(card):
            raise UserError(f"{directory} holds another synthetic world (see {stored}); use a new folder or remove it")
        sys.stderr.write(f"{directory} is complete already\n")
        return
    for name in ("videos", "lists", *(["truth"] if plan.truth else [])):
        (directory / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, row in enumerate(made(directory, plan, workers=workers), 1):
        rows.append(row)
        if number % 200 == 0 or number == len(plan.clips()):
            sys.stderr.write(f"wrote {number}/{len(plan.clips())} videos\n")
    tables(directory, rows)
    replace(stored, card.encode())


def made(directory: pathlib.Path, plan: Plan, /, *, workers: int) -> Iterator[dict[str, Any]]:
    """Manifest rows of all clips in order, written by `workers` processes."""
    jobs = [(directory, plan, clip) for clip in plan.clips()]
    if workers <= 1 or len(jobs) < 64:
        yield from map(write_clip, jobs)
        return
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(write_clip, jobs, chunksize=16)


def write_clip(job: tuple[pathlib.Path, Plan, tuple[str, str, int]], /) -> dict[str, Any]:
    """Writes one clip and returns its manifest row."""
    directory, plan, (name, split, index) = job
    clip = shapes.clip(index, world=plan.world, seed=plan.seed)
    replace(directory / "videos" / f"{name}.mp4", encode(clip.video, fps=plan.world.fps))
    row = {"id": name, "split": split, "path": f"videos/{name}.mp4", "frames": len(clip.video), "fps": plan.world.fps,
           "height": clip.video.shape[1], "width": clip.video.shape[2], "duration": len(clip.video) / plan.world.fps,
           "label": f"{clip.appearance}_{clip.motion}", "appearance": clip.appearance, "motion": clip.motion}
    if plan.truth:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **shapes.truth(clip.scene, world=plan.world, appearance=clip.appearance))
        replace(directory / "truth" / f"{name}.npz", buffer.getvalue())
        row["truth"] = f"truth/{name}.npz"
    return row


def tables(directory: pathlib.Path, rows: list[dict[str, Any]], /) -> None:
    """manifest.jsonl, labels.csv and the list formats of the original code ("path 0 -1", "path label")."""
    replace(directory / "manifest.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    text = io.StringIO()
    writer = csv.DictWriter(text, ["path", "label", "split", "appearance", "motion"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    replace(directory / "labels.csv", text.getvalue().encode())
    classes = sorted({row["label"] for row in rows})
    for split in ("train", "val", "test"):
        chosen = [row for row in rows if row["split"] == split]
        replace(directory / "lists" / f"{split}_pretrain.csv", "".join(f"{r['path']} 0 -1\n" for r in chosen).encode())
        replace(directory / "lists" / f"{split}.csv", "".join(f"{r['path']} {classes.index(r['label'])}\n" for r in chosen).encode())


def replace(path: pathlib.Path, content: bytes, /) -> None:
    """Writes a file as a whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)
