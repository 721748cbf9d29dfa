"""All heads of a probe side by side: the best one, and the one that is chosen without looking at the videos it is scored on."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import config as configs
from videomae_jax import head_rows, losses, metrics
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context, evaluation_source
from videomae_jax.evals.classification import ROWS, OneView
from videomae_jax.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class Heads:
    """Top-1 in percent of every head of a probe over a split, softmax averaged over views.

    `best` is the maximum over heads, which V-JEPA 2 reports and which is a choice on the evaluation videos; `selected` chooses the head
    of each half of the videos on the other half (rows alternate), so that no video takes part in the choice of its own head.

    Deviation: V-JEPA 2 joins the tokens of a video's temporal views before the pooler; here their probabilities are averaged.

    Raises UserError where heads and index disagree about the classes.
    """

    every: str = "10%"
    split: str = "val"
    batch_size: int = 64
    clips: int = 0
    views: Any = OneView()
    first: int = 0

    def run(self, context: Context, /) -> dict[str, float]:
        """{"best", "best_head", "selected", "mean", "head_I", "videos", "chance"}."""
        objective = context.assembly.objective
        source = dataclasses.replace(context.source(self.split), limit=self.clips)
        classes = len(source.classes)
        if not hasattr(objective, "judge"):
            raise UserError(f"{type(objective).__name__} has no heads to compare; allowed is a probe")
        head_rows.check_labels(context.directory, source.classes, head=objective.head.classes)
        views = self.views.joined(source)  # before the first result is due, so that what these data cannot show is told before training
        if context.step < self.first:
            return {}

        def judged(params: Any, extra: Any, batch: Batch) -> dict[str, Array]:
            return {"p": jax.nn.softmax(objective.judge(params, extra, batch).astype(jnp.float32), -1)} | {k: batch[k] for k in ROWS}

        judge = context.assembly.evaluator(judged)
        total, labels = np.zeros((len(source), objective.head.count, classes), np.float32), np.full(len(source), -1)
        for found in context.results(lambda batch: judge(context.params, context.extra, batch), views, batch_size=max(1, self.batch_size // views.repeats)):
            kept = found["valid"] & (found["fault"] == 0)
            rows = found["row"][kept] % len(source)
            np.add.at(total, rows, found["p"][kept])
            labels[rows] = found["label"][kept]
        return scores(total, labels) | {"chance": 100 / classes}


def with_best_head(objective: Any, directory: pathlib.Path, /, *, config: Any, step: int, trust: tuple[str, ...] = ()) -> Any:
    """A probe that answers by the head which did best in the newest results of the run up to `step`, of the test with most views.

    As it is where its config chooses a head, where the run has no such results, and where it is no probe.
    """
    if not hasattr(objective, "judge") or objective.chosen:
        return objective
    source, found = evaluation_source(config, split="all", trust=trust), []
    tests = {name: test for name, node in config.evaluators.items() if isinstance(test := configs.build(node, trust=trust), Heads)}
    for line in metrics.read(directory):
        found += [(line["step"], len(test.views.sources(source)), int(line[key])) for name, test in tests.items()
                  if line["step"] <= step and (key := f"{name}/best_head") in line]
    return dataclasses.replace(objective, chosen=max(found, key=lambda result: result[:2])[2]) if found else objective


def scores(total: np.ndarray, labels: np.ndarray, /) -> dict[str, float]:
    """Results of summed probabilities f32 [N heads K] and labels i [N], of which -1 (unreadable, or without a label) do not count."""
    known = labels >= 0
    if not known.any():
        raise UserError("no video of the split is readable and has a label")
    right = np.stack([losses.ranks(total[known, head], labels[known]) < 1 for head in range(total.shape[1])], 1)
    top1, half = 100 * right.mean(0), np.arange(len(right)) % 2 == 0
    selected = top1[:1]
    if len(right) > 1:
        choices = [int(right[half == side].mean(0).argmax()) for side in (True, False)]
        selected = np.concatenate([right[half == other, choice] for other, choice in ((False, choices[0]), (True, choices[1]))]) * 100.0
    found = {"best": float(top1.max()), "best_head": float(top1.argmax()), "selected": float(selected.mean()), "mean": float(top1.mean())}
    return found | {f"head_{i}": float(value) for i, value in enumerate(top1)} | {"videos": float(known.sum())}
