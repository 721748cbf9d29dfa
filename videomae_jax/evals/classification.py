"""Accuracy of a classifier over a whole split, from one view or from several views of every video."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import head_rows, losses, parallel
from videomae_jax.data import sources
from videomae_jax.data.multi_view import MultiView
from videomae_jax.errors import UserError
from videomae_jax.evals import best, per_class
from videomae_jax.evals.base import Context
from videomae_jax.types import Array, Batch

ROWS = ("row", "key", "label", "valid", "fault")  # what a batch says of its rows


@dataclasses.dataclass(frozen=True)
class OneView:
    """The clip that the evaluation data give."""

    def sources(self, source: Any, /) -> tuple[Any, ...]:
        """That source."""
        return (source,)

    def joined(self, source: Any, /) -> Any:
        """That source. Raises UserError for one that does not hold the frames of its sampling."""
        sources.check_drawn(source)
        return source


@dataclasses.dataclass(frozen=True)
class Views:
    """Every temporal view of `sampling` in every spatial view of `crop`; both have fields `views` and `view`.

    V2 tests 5 x 3 views of dense data and 2 x 3 of sparse data.
    """

    sampling: Any
    crop: Any

    def sources(self, source: Any, /) -> tuple[Any, ...]:
        """One source a view. Raises UserError for a source that has no sampling and crop of its own to replace, such as a mixture."""
        if not hasattr(source, "sampling") or not hasattr(source, "crop"):
            raise UserError(f"views need a source with `sampling` and `crop`, and {type(source).__name__} has none; name one of its parts in eval_data")
        return tuple(dataclasses.replace(source, sampling=dataclasses.replace(self.sampling, view=t), crop=dataclasses.replace(self.crop, view=s))
                     for t in range(self.sampling.views) for s in range(self.crop.views))

    def joined(self, source: Any, /) -> MultiView:
        """All views as one source, in the order of `sources`; errors as there, and UserError for a source that does not hold their frames."""
        found = self.sources(source)
        try:
            for view in found[:: self.crop.views]:
                sources.check_drawn(view)
        except UserError as error:
            raise UserError(f"views: {error}; many views need the index of the videos in eval_data, and views.__symbol__={OneView.__module__}.OneView takes "
                            "the one of eval_data") from error
        return MultiView(found[0], self.sampling, self.crop)


@dataclasses.dataclass(frozen=True)
class Classification:
    """Top-1 and top-5 accuracy in percent, each video of the split counted once.

    The softmax of every view is averaged (V2's default, "prob"), then classes are ranked. A view whose file could not be
    read shows another video, so it is left out; a video without any readable view is no part of the accuracy and is counted
    in `unreadable`. `clips` takes that many videos, spread over the split (0 = all). `loss` is the mean of -log of the
    averaged probability of the label. Before step `first` it has no results: many views of an untrained head cost as much
    as those of a trained one.

    `best` names a result by which the weights of the best step are kept in the folder `best` of the run, and `weights` "best"
    evaluates those instead of the present ones. V2 tests its last weights. `save` names a folder of the run for the logits of
    every view, a table of all classes and a picture of their confusions (`per_class`).

    Raises UserError for an objective without classes, where head and index disagree about them, and for a video without a label.
    """

    every: str = "10%"
    split: str = "val"
    batch_size: int = 64
    clips: int = 0
    views: Any = OneView()
    first: int = 0
    best: str = ""
    weights: str = "last"
    save: str = ""

    def __post_init__(self) -> None:
        if self.weights not in ("last", "best"):
            raise UserError(f"weights {self.weights!r}; allowed are last, best")
        if self.best not in ("", "top1", "top5"):
            raise UserError(f"best by {self.best!r}; allowed are top1, top5 and '' for none")

    def run(self, context: Context, /) -> dict[str, float]:
        """{"top1", "top5", "class_top1", "loss", "videos", "unreadable", "chance"}, and "best" or "best_step" where asked for."""
        head_rows.check_kind(context.assembly.objective, kind="classes")
        source = dataclasses.replace(context.source(self.split), limit=self.clips)
        classes = len(source.classes)
        head_rows.check_labels(context.directory, source.classes, head=context.assembly.objective.head.classes)
        views = self.views.joined(source)  # before the first result is due, so that what these data cannot show is told before training
        if context.step < self.first:
            return {}
        step, params, extra = best.load(context) if self.weights == "best" else (context.step, context.params, context.extra)
        count = len(views) // max(1, len(source)) * views.repeats
        sums = Sums.empty(len(source), classes=classes, views=count if self.save and parallel.is_lead() else 0)
        predict = predictor(context)
        for found in context.results(lambda batch: predict(params, extra, batch, context.rng), views, batch_size=max(1, self.batch_size // views.repeats)):
            sums.add(found, copies=views.repeats)
        found = results(sums) | {"chance": 100 / classes}
        if self.save and parallel.is_lead():
            with context.leaving(context.directory / self.save):
                per_class.write(context.directory / self.save, names=[source.name(row) for row in range(len(source))], classes=source.classes,
                                labels=np.where(sums.seen > 0, sums.labels, -1), logits=sums.logits, seen=sums.shown, mean=sums.mean)
        found |= {"best_step": float(step)} if self.weights == "best" else {}
        if self.best:
            found["best"] = best.keep(context, found[self.best], metric=self.best, by=best.measured(context, self, source=source))
        return found


def predictor(context: Context, /) -> Any:
    """The jitted (params, extra, batch, rng) -> logits f32 [B classes], their softmax, and what a batch says of its rows."""
    objective = context.assembly.objective

    def predicted(params: Any, extra: Any, batch: Batch, rng: Any) -> dict[str, Array]:
        logits = objective.predict(params, extra, batch, rng).logits.astype(jnp.float32)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits, -1)} | {k: batch[k] for k in ROWS}
    return context.assembly.evaluator(predicted)


@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the readable views of all videos: `total` f64 [N classes] of probabilities, `seen` i [N] views, `labels` i [N].

    Where logits are kept, those of every view are `logits` f32 [N views classes] and `shown` bool [N views] is True of the
    readable ones; otherwise both are empty.
    """

    total: np.ndarray
    seen: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    shown: np.ndarray

    @classmethod
    def empty(cls, videos: int, /, *, classes: int, views: int = 0) -> "Sums":
        """Nothing seen yet; `views` 0 keeps no logits."""
        return cls(np.zeros((videos, classes)), np.zeros(videos, int), np.full(videos, -1), np.zeros((videos, views, classes), np.float32),
                   np.zeros((videos, views), bool))

    def add(self, found: dict[str, np.ndarray], /, *, copies: int = 1) -> None:
        """Adds the readable rows of a batch of joined views, `copies` of a decode, in place; padding, and rows that show another video, add nothing."""
        kept = found["valid"] & (found["fault"] == 0)
        turn, rows = np.divmod(found["row"][kept], len(self.total))
        np.add.at(self.total, rows, found["probabilities"][kept].astype(np.float64))
        np.add.at(self.seen, rows, 1)
        self.labels[rows] = found["label"][kept]
        if self.logits.size:
            view = turn * copies + found["key"][kept, 1]
            self.logits[rows, view], self.shown[rows, view] = found["logits"][kept], True

    @property
    def mean(self) -> np.ndarray:
        """f64 [N classes]: the mean probability over the views of every video, 0 where none is readable."""
        return self.total / np.maximum(self.seen, 1)[:, None]


def results(sums: Sums, /) -> dict[str, float]:
    """Accuracies and loss of the averaged probabilities; raises UserError for videos without a label."""
    read = sums.seen > 0
    if not read.any():
        raise UserError("no video of the split can be read")
    if (sums.labels[read] < 0).any():
        raise UserError(f"{int((sums.labels[read] < 0).sum())} of {int(read.sum())} videos of the split have no label")
    mean, label = sums.mean[read], sums.labels[read]
    place = losses.ranks(mean, label)
    loss = -np.log(np.maximum(mean[np.arange(len(mean)), label], np.finfo(np.float64).tiny)).mean()
    own = [np.mean(place[label == c] < 1) for c in np.unique(label)]
    return {"top1": 100 * float(np.mean(place < 1)), "top5": 100 * float(np.mean(place < 5)), "class_top1": 100 * float(np.mean(own)),
            "loss": float(loss), "videos": float(read.sum()), "unreadable": float((~read).sum())}
