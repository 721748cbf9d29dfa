"""Accuracy of a classifier over a whole split, from one view or from several views of every video."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import losses
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context
from videomae_jax.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class OneView:
    """The clip that the evaluation data give."""

    def sources(self, source: Any, /) -> tuple[Any, ...]:
        """That source."""
        return (source,)


@dataclasses.dataclass(frozen=True)
class Views:
    """Every temporal view of `sampling` in every spatial view of `crop`; both have fields `views` and `view`.

    V2 tests 5 x 3 views of dense data and 2 x 3 of sparse data.
    """

    sampling: Any
    crop: Any

    def sources(self, source: Any, /) -> tuple[Any, ...]:
        """One source a view."""
        return tuple(dataclasses.replace(source, sampling=dataclasses.replace(self.sampling, view=t), crop=dataclasses.replace(self.crop, view=s))
                     for t in range(self.sampling.views) for s in range(self.crop.views))


@dataclasses.dataclass(frozen=True)
class Classification:
    """Top-1 and top-5 accuracy in percent, each video of the split counted once.

    The softmax of every view is averaged (V2's default, "prob"), then classes are ranked. A view whose file could not be
    read shows another video, so it is left out; a video without any readable view is no part of the accuracy and is counted
    in `unreadable`. `clips` takes that many videos, spread over the split (0 = all). `loss` is the mean of -log of the
    averaged probability of the label. Before step `first` it has no results: many views of an untrained head cost as much
    as those of a trained one.

    Raises UserError where head and index disagree about the classes, and for a video without a label.
    """

    every: str = "10%"
    split: str = "val"
    batch_size: int = 64
    clips: int = 0
    views: Any = OneView()
    first: int = 0

    def run(self, context: Context, /) -> dict[str, float]:
        """{"top1", "top5", "loss", "videos", "unreadable", "chance"}."""
        objective = context.assembly.objective
        source = dataclasses.replace(context.source(self.split), limit=self.clips)
        classes = len(source.classes)
        if classes != objective.head.classes:
            raise UserError(f"the head has {objective.head.classes} classes and the index {classes} ({_shown(source.classes)}); "
                            f"set --config.objective.head.classes={classes}, or --config.data.label to another column")
        if context.step < self.first:
            return {}

        def probabilities(params: Any, extra: Any, batch: Batch, rng: Any) -> dict[str, Array]:
            logits = objective.predict(params, extra, batch, rng).logits
            return {"probabilities": jax.nn.softmax(logits.astype(jnp.float32), -1)} | {k: batch[k] for k in ("row", "label", "valid", "fault")}

        predict = context.assembly.evaluator(probabilities)
        total, seen, labels = np.zeros((len(source), classes)), np.zeros(len(source), int), np.full(len(source), -1)
        for view in self.views.sources(source):
            for batch in context.sweep(view, batch_size=self.batch_size):
                add(jax.device_get(predict(context.params, context.extra, batch, context.rng)), total=total, seen=seen, labels=labels)
        return results(total, seen=seen, labels=labels) | {"chance": 100 / classes}


def add(view: dict[str, np.ndarray], /, *, total: np.ndarray, seen: np.ndarray, labels: np.ndarray) -> None:
    """Adds the readable rows of a batch to the sums f64 [N classes], counts i [N] and labels i [N] of all videos, in place."""
    kept = view["valid"] & (view["fault"] == 0)
    rows = view["row"][kept]
    np.add.at(total, rows, view["probabilities"][kept].astype(np.float64))
    np.add.at(seen, rows, 1)
    labels[rows] = view["label"][kept]


def results(total: np.ndarray, /, *, seen: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracies and loss of summed probabilities [N classes] of `seen` views each; raises UserError for videos without a label."""
    read = seen > 0
    if not read.any():
        raise UserError("no video of the split can be read")
    if (labels[read] < 0).any():
        raise UserError(f"{int((labels[read] < 0).sum())} of {int(read.sum())} videos of the split have no label")
    mean, label = total[read] / seen[read, None], labels[read]
    place = losses.ranks(mean, label)
    loss = -np.log(np.maximum(mean[np.arange(len(mean)), label], np.finfo(np.float64).tiny)).mean()
    return {"top1": 100 * float(np.mean(place < 1)), "top5": 100 * float(np.mean(place < 5)), "loss": float(loss),
            "videos": float(read.sum()), "unreadable": float((~read).sum())}


def _shown(classes: tuple[str, ...], /) -> str:
    return ", ".join(classes[:6]) + (", ..." if len(classes) > 6 else "")
