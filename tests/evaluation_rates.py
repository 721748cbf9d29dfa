"""How near testing over many views and extraction of features come to the forward pass alone.

    python tests/evaluation_rates.py VIDEO... [--size=S] [--frames=16] [--pixels=224] [--batch=15] [--repeats=3]

A classifier of a published size with random weights, 5 x 3 views of every video as in V2's test, and sliding windows as `extract` takes
them. Each is timed in turns with the same program on a batch that lies on the device. The last line is JSON; `share` is the forward
pass's time over that of the whole, a clip each, by CPU time of this process and by wall time, median and spread over turns. Reading
adds CPU time to a CPU's forward pass and hides behind an accelerator's, so on a CPU this is the strict case. The goal is 0.9.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1]), str(pathlib.Path(__file__).resolve().parent)]

import jax
import numpy as np
import written

import videomae_jax
from videomae_jax import benchmarks, extraction, run_directory
from videomae_jax.data import clips, index, three_crop, windows
from videomae_jax.evals.classification import Classification, Views, predictor
from videomae_jax.models import heads, vit
from videomae_jax.objectives import classify


def prepared(folder: pathlib.Path, videos: list[pathlib.Path], /, *, size: str, frames: int, pixels: int) -> pathlib.Path:
    """A run directory with random weights whose data are the videos, one class each."""
    source = folder / "videos"
    source.mkdir()
    for number, path in enumerate(videos):
        (source / f"{number:03}{path.suffix}").symlink_to(path.resolve())
    names = sorted(p.name for p in source.iterdir())
    (folder / "labels.csv").write_text("path,label\n" + "".join(f"{name},{name}\n" for name in names))
    index.write(index.build(source, labels=folder / "labels.csv"), source / "index.parquet")
    encoder = vit.encoder(size).clone(frames=frames, size=pixels)
    return written.write(folder / "run", classify.Classify(encoder, heads.Classifier(classes=len(names))), index=str(source / "index.parquet"), split="all")


def turns(whole: Any, forward: Any, /, *, rows: int, repeats: int) -> dict[str, Any]:
    """Milliseconds for each of `rows` clips, padding among them, of both programs, and the share of the second in the first."""
    for program in (whole, forward):
        program(1)
    laps = benchmarks.interleaved({"whole": (whole, 1), "forward": (forward, 1)}, repeats=repeats)
    found: dict[str, Any] = {"clips": rows}
    for kind in ("cpu", "wall"):
        each = {k: [getattr(lap, kind) / rows for lap in laps[k]] for k in laps}
        shares = [f / w for f, w in zip(each["forward"], each["whole"], strict=True)]
        found[kind] = {"ms_a_clip": {k: round(1e3 * statistics.median(v), 2) for k, v in each.items()},
                       "share": {k: round(v, 3) for k, v in benchmarks.spread(shares).items()}}
    return found


def testing(run: pathlib.Path, /, *, batch: int, repeats: int) -> dict[str, Any]:
    """5 x 3 views of every video."""
    context = run_directory.context(run, step=None, trust=(), assignments={})
    node = Classification(split="all", batch_size=batch, views=Views(clips.DenseView(stride=4, views=5), three_crop.ThreeCrop()))
    program = predictor(context)  # the evaluator would compile one of its own in every turn
    source = node.views.joined(context.source("all"))

    def whole(steps: int) -> None:
        for _ in context.results(lambda rows: program(context.params, context.extra, rows, context.rng), source, batch_size=max(1, batch // 3)):
            pass
    example, batches = next(context.sweep(source, batch_size=max(1, batch // 3))), -(-len(source) // max(1, batch // 3))

    def forward(steps: int) -> None:
        for _ in range(batches):
            jax.block_until_ready(program(context.params, context.extra, example, context.rng))
    return turns(whole, forward, rows=batches * len(example["row"]), repeats=repeats)


def extracting(run: pathlib.Path, videos: list[pathlib.Path], folder: pathlib.Path, /, *, batch: int, repeats: int) -> dict[str, Any]:
    """Whole windows, one after another, four frames apart."""
    model, number = videomae_jax.load(run), iter(range(10**6))
    what = extraction.Extraction(windows.Plan(model.frames, rate=4, step=model.frames, tail="drop"))
    found = extraction.extract(model, [(p.name, p) for p in videos], out=folder / "first", what=what, weights="", batch=batch)
    program, frames = model.represent(-1), np.zeros((batch, model.frames, model.size, model.size, 3), np.uint8)
    batches = -(-found.windows // batch)

    def whole(steps: int) -> None:
        extraction.extract(model, [(p.name, p) for p in videos], out=folder / f"out{next(number)}", what=what, weights="", batch=batch)

    def forward(steps: int) -> None:
        for _ in range(batches):
            jax.block_until_ready(model.submit(program, frames))
    return turns(whole, forward, rows=batches * batch, repeats=repeats)


def main(argv: list[str]) -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="+", type=pathlib.Path)
    for name, value in (("frames", 16), ("pixels", 224), ("batch", 15), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--size", default="S")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as text:
        folder = pathlib.Path(text)
        run = prepared(folder, options.videos, size=options.size, frames=options.frames, pixels=options.pixels)
        found = {"size": options.size, "frames": options.frames, "pixels": options.pixels, "batch": options.batch, "device": jax.devices()[0].device_kind,
                 "test": testing(run, batch=options.batch, repeats=options.repeats),
                 "extract": extracting(run, options.videos, folder, batch=options.batch, repeats=options.repeats)}
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
