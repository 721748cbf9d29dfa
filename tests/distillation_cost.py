"""What a step of distillation costs beside its parts: the teacher's forward pass and the same student's step on labels.

    python tests/distillation_cost.py [--config=configs/distill/shapes.py] [--repeats=7] [--steps=0] [--config.batch_size=4]

The three programs run on the same noise, which lies on the device, and are timed in turns. The last line is JSON; `times` is step /
(forward + step), of medians and of every turn, by wall and by CPU time (the latter says more on a machine with other work). The goal
is 1.15.
"""

import argparse
import json
import pathlib
import statistics
import sys
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax

from videomae_jax import benchmarks
from videomae_jax import config as configs
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.commands import arguments
from videomae_jax.data import sources
from videomae_jax.objectives import classify

SHARED = ("encoder", "head", "mixing", "erasing", "smoothing")  # what distillation and classification both have


class Teaching:
    """The teacher's forward pass in the run of a distillation, on the batch of its step."""

    def __init__(self, run: Assembly, batch: Any, /) -> None:
        self._teach, self._extra, self._batch = run.evaluator(run.objective.teach), run.seen({}), batch

    def __call__(self, steps: int, /) -> None:
        """Runs `steps` passes and waits for the last."""
        for _ in range(steps):
            logits = self._teach(self._extra, self._batch)
        jax.block_until_ready(logits)


def on_noise(config: Any, /) -> Any:
    """The config without files: noise in place of clips, fresh weights in place of trained ones."""
    with config.unlocked():
        config.data = configs.spec(sources.NoiseClips, frames=config.data.frames, size=config.data.size, repeats=config.data.repeats)
        config.objective.weights = config.objective.pretrained = ""
    return config


def without_teacher(config: Any, /) -> Any:
    """The same student on labels."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.objective = configs.spec(classify.Classify, **{k: config.objective[k] for k in SHARED})
    return config


def measure(config: Any, /, *, steps: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of the three programs, and how many times longer the whole takes than both parts."""
    run = assemble(on_noise(config))
    whole, student = benchmarks.Training(run), benchmarks.Training(assemble(without_teacher(config)))
    programs = {"distillation": whole, "teacher": Teaching(run, whole._batches[0]), "student": student}
    laps = benchmarks.interleaved({k: (p, benchmarks.warmed(p, steps=steps, warmup=2)) for k, p in programs.items()}, repeats=repeats)
    found: dict[str, Any] = {"name": config.name, "device": jax.devices()[0].device_kind, "clips": run.clips, "repeats": repeats}
    for kind in ("wall", "cpu"):
        times = {k: [getattr(lap, kind) for lap in v] for k, v in laps.items()}
        middle = {k: statistics.median(v) for k, v in times.items()}
        turns = [w / (t + s) for w, t, s in zip(*times.values(), strict=True)]
        found[f"{kind}_ms"] = {k: round(1e3 * v, 2) for k, v in middle.items()}
        found[f"{kind}_times"] = {"of_medians": round(middle["distillation"] / (middle["teacher"] + middle["student"]), 3), **benchmarks.spread(turns)}
    return found


def main(argv: list[str]) -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/distill/shapes.py")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=0, help="steps of a turn (0: about a second)")
    options, assignments = arguments.parse(parser, argv)
    config = configs.load(options.config)
    configs.override(config, assignments)
    print(json.dumps(measure(config, steps=options.steps, repeats=options.repeats)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
