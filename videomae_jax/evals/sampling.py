"""What a learned sampling distribution prefers: the tokens that are badly predicted, and the objects of the truth."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from videomae_jax import masking, reinforce
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context, readable
from videomae_jax.models.sampler import coverage
from videomae_jax.types import Array, Batch, row_keys


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Judges p, the objective's `probabilities` of all tokens, on clips of a split; every number is a mean over clips.

    The error map of a clip is the error of each token over those of `draws` uniform masks `mask` that hide it, so that it
    does not depend on p. `correlation` (Pearson) and `rank_correlation` (Spearman, ties share a rank) of p with it are 0
    where one of them is constant. `entropy` is 1 for uniform p. `loss_uniform` is the loss under those masks, `loss_own`
    under masks drawn from p; only the first compares between recipes (a run without sampler: evals.completion, which
    draws such a mask as well).

    Where the source gives `parts` (0 = background): `object_ratio`, mean p on objects over mean p beside them, over the
    clips that have both; `object_seen`, the part of the visible tokens' pixels that lies on objects, beside
    `object_share`, what a uniform draw would see.
    """

    every: str = ""
    batch_size: int = 64
    clips: int = 256
    split: str = "val"
    mask: masking.Random = masking.Random(ratio=0.95, layout="token", truncate="visible")
    draws: int = 4

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise UserError(f"draws={self.draws}; allowed are 1 and more")

    def run(self, context: Context, /) -> dict[str, float]:
        """The numbers above. Raises UserError for an objective without `probabilities`."""
        objective = context.assembly.objective
        if not hasattr(objective, "probabilities"):
            raise UserError(f"{type(objective).__name__} draws its masks without a learned distribution; this evaluator needs `probabilities`, as of AdaMAE")
        source = dataclasses.replace(context.source(self.split), limit=self.clips)

        def uniform(params: Any, extra: Any, batch: Batch, rng: Any, number: Array) -> tuple[Array, Array]:
            keys = row_keys(jax.random.fold_in(rng, number), batch["key"])
            masks = masking.draw(keys, encoder=self.mask, decoder=masking.Hidden(), grid=objective.encoder.grid)
            return error_map(objective.predict(params, extra, batch, rng, masks=masks), tokens=objective.encoder.grid.tokens)

        def own(params: Any, extra: Any, batch: Batch, rng: Any) -> tuple[Array, ...]:
            predicted = objective.predict(params, extra, batch, rng)
            share = coverage(batch["parts"], patch=objective.encoder.patch) if "parts" in batch else None
            return objective.probabilities(params, batch), predicted.masks.visible, *error_map(predicted, tokens=objective.encoder.grid.tokens), share

        jitted, scored = context.assembly.evaluator(own), context.assembly.evaluator(uniform)
        found: dict[str, list[np.ndarray]] = {}
        for batch in context.sweep(source, batch_size=min(self.batch_size, self.clips or self.batch_size)):
            arguments = (context.params, context.extra, batch, context.rng)
            valid, (p, visible, error, hidden, share) = jax.device_get((readable(batch), jitted(*arguments)))
            maps = [jax.device_get(scored(*arguments, np.int32(i))) for i in range(self.draws)]
            values = {"loss_own": error.sum(-1) / hidden.sum(-1), **of_errors(p, *(np.sum(x, 0) for x in zip(*maps, strict=True)))}
            if share is not None:
                values |= of_objects(p, visible, share)
            for name, value in values.items():
                found.setdefault(name, []).append(value[valid])
        # A clip that shows objects only, or none, has no ratio.
        return {name: float(np.nanmean(np.concatenate(parts))) for name, parts in found.items()}


def error_map(predicted: Any, /, *, tokens: int) -> tuple[Array, Array]:
    """(error f32 [B N] of each predicted token, 0 elsewhere; f32 [B N] 1 where a token is predicted)."""
    error = jnp.mean((predicted.patches - predicted.targets) ** 2, axis=-1)
    hidden = masking.indicator(predicted.masks.target, tokens=tokens)
    return hidden.at[jnp.arange(len(error))[:, None], predicted.masks.target].multiply(error), hidden


def of_errors(p: np.ndarray, error: np.ndarray, hidden: np.ndarray, /) -> dict[str, np.ndarray]:
    """Values f64 [B] of p [B N] beside errors [B N] that were summed over the times `hidden` [B N] that a token was predicted."""
    weight = (hidden > 0).astype(np.float32)
    mean = error / np.maximum(hidden, 1)
    ranked = [np.where(weight > 0, scipy.stats.rankdata(np.where(weight > 0, x, np.inf), axis=-1), 0) for x in (p, mean)]
    values = {"correlation": reinforce.correlation(p, mean, weight=weight), "rank_correlation": reinforce.correlation(*ranked, weight=weight),
              "entropy": reinforce.entropy(np.log(np.maximum(p, 1e-30))), "loss_uniform": error.sum(-1) / hidden.sum(-1)}
    return {name: np.asarray(value, np.float64) for name, value in values.items()}


def of_objects(p: np.ndarray, visible: np.ndarray, share: np.ndarray, /) -> dict[str, np.ndarray]:
    """Values f64 [B] of p [B N] and the visible ids [B V] beside the part `share` [B N] of a token that lies on objects."""
    ratio, defined = (np.asarray(x) for x in reinforce.preference(p, share))
    return {"object_ratio": np.where(defined, ratio, np.nan).astype(np.float64), "object_share": share.mean(-1, dtype=np.float64),
            "object_seen": np.take_along_axis(share, visible, axis=1).mean(-1, dtype=np.float64)}
