"""Frozen features of whole splits, extracted once for every probe that needs no gradient."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from videomae_jax.data import mixture
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context
from videomae_jax.types import Array, Batch


class Bank(NamedTuple):
    """Features {layer: f32 [N D]} and labels i [N] of the readable clips of a split, and the names of the classes."""

    features: dict[int, np.ndarray]
    labels: np.ndarray
    classes: tuple[str, ...]


def collect(context: Context, /, *, split: str, label: str, limit: int, batch_size: int, layers: tuple[int, ...] = (-1,), modality: str = "video") -> Bank:
    """`pooled` of `represent` at every layer for at most `limit` clips (0 = all), spread over the split. Raises UserError without labels.

    All layers come from one pass where the recipe can: then the tokens of a batch at all of them are in memory at once.
    """
    objective = context.assembly.objective
    source = dataclasses.replace(mixture.labelled(context.source(split), label), limit=limit)

    def represent(params: Any, extra: Any, batch: Batch) -> dict[str, Array]:
        found = objective.represent_layers(params, extra, batch, layers=layers)
        return {str(n): found[n][modality].pooled for n in layers} | {k: batch[k] for k in ("label", "valid", "fault")}

    jitted, parts = context.assembly.evaluator(represent), []
    for found in context.results(lambda batch: jitted(context.params, context.extra, batch), source, batch_size=batch_size):
        kept = found["valid"] & (found["fault"] == 0)
        parts.append({k: v[kept] for k, v in found.items()})
    rows = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
    if not len(rows["label"]) or (rows["label"] < 0).any():
        raise UserError(f"a probe needs labels, but column {label or 'label'!r} leaves {int((rows['label'] < 0).sum())} of {len(rows['label'])} clips "
                        f"of split {split!r} without one")
    return Bank({n: rows[str(n)] for n in layers}, rows["label"], source.classes)


def balanced(labels: np.ndarray, /, *, share: float, rng: np.random.Generator) -> np.ndarray:
    """Sorted row numbers of `share` of every class, at least one clip of each that has any."""
    chosen = [rng.permutation(np.flatnonzero(labels == c))[: max(1, round(share * (labels == c).sum()))] for c in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
