"""Accuracy and area under the ROC curve of several yes-or-no labels."""

import dataclasses
from typing import Any

import numpy as np
import scipy.stats

from videomae_jax import head_rows
from videomae_jax.data import sources
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context
from videomae_jax.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class AttributeAccuracy:
    """Results in percent over the answers of a split that are known: of all attributes at once, as MARLIN's code counts, and of each.

    `accuracy` cuts at a logit of 0; `frequent` is that of always giving an attribute's more frequent answer. `auc` is the
    chance that a yes has a higher logit than a no, half for equals. `accuracy_mean` and `auc_mean` are means over attributes;
    one with a single kind of answer has no auc. `clips` takes that many, spread over the split (0 = all). For objectives
    that see `attributes`. Raises UserError for one with another head, for data without them, for other attributes than those of the head, and for
    another order.
    """

    every: str = ""
    batch_size: int = 64
    clips: int = 0
    split: str = "val"

    def run(self, context: Context, /) -> dict[str, float]:
        """{"accuracy", "frequent", "auc", "accuracy_mean", "auc_mean"}; NaN where nothing is known."""
        objective, source = context.assembly.objective, dataclasses.replace(context.source(self.split), limit=self.clips)
        head_rows.check_kind(objective, kind="attributes")
        if "attributes" not in source.fields:
            raise UserError(f"the clips of {type(source).__name__} have no attributes; allowed are data that have those of the head")
        names, count, head = sources.names(source, "attributes"), source.fields["attributes"].shape[-1], objective.head.classes
        if count != head:
            raise UserError(f"the head has {head} classes and a clip {count} attributes ({', '.join(names[:6])}{', ...' * (len(names) > 6)}); allowed in "
                            "--config.data.attributes are those of the head")
        head_rows.check_own(context.directory, names, kind="attributes")

        def predict(params: Any, extra: Any, batch: Batch, rng: Any) -> tuple[Array, Array, Array]:
            return objective.predict(params, extra, batch, rng).logits, batch["attributes"], batch["valid"] & (batch["fault"] == 0)

        program = context.assembly.evaluator(predict)
        found = [(logits[valid], answers[valid]) for logits, answers, valid in context.results(
            lambda batch: program(context.params, context.extra, batch, context.rng), source, batch_size=self.batch_size)]
        return scores(*map(np.concatenate, zip(*found, strict=True)))


def scores(logits: np.ndarray, answers: np.ndarray, /) -> dict[str, float]:
    """The results for logits [n A] and answers i32 [n A], -1 where unknown; a logit that is not finite is as wrong as one can be."""
    known, yes = answers >= 0, answers > 0
    logits = np.where(np.isfinite(logits), logits, np.where(yes, -np.inf, np.inf))
    columns = [(x[k], y[k]) for x, y, k in zip(logits.T, yes.T, known.T, strict=True) if k.any()]
    right = [float(np.mean((x > 0) == y)) for x, y in columns]
    areas = [auc(x, y) for x, y in columns]
    frequent = sum(max(y.sum(), len(y) - y.sum()) for _, y in columns)
    total = known.sum()
    found = {"accuracy": ((logits > 0) == yes)[known].sum() / total if total else np.nan, "frequent": frequent / total if total else np.nan,
             "auc": auc(logits[known], yes[known]), "accuracy_mean": np.mean(right) if right else np.nan,
             "auc_mean": np.nanmean(areas) if np.isfinite(areas).any() else np.nan}
    return {name: 100 * float(value) for name, value in found.items()}


def auc(x: np.ndarray, y: np.ndarray, /) -> float:
    """Area under the ROC curve of scores [n] for labels bool [n], by ranks (Mann and Whitney); NaN for labels of one kind."""
    positive = int(y.sum())
    if positive in (0, len(y)):
        return float("nan")
    return float((scipy.stats.rankdata(x)[y].sum() - positive * (positive + 1) / 2) / (positive * (len(y) - positive)))
