"""Completion of hidden stretches of a clip under a mask of the evaluator's own, beside predictors that need no training."""

import dataclasses
from typing import Any

import jax
import numpy as np

from videomae_jax import masking
from videomae_jax.errors import UserError
from videomae_jax.evals import reconstruction
from videomae_jax.evals.base import Context, readable
from videomae_jax.masking import Grid
from videomae_jax.types import Batch, row_keys


@dataclasses.dataclass(frozen=True)
class Completion:
    """Loss and PSNR on the tokens that `mask` hides, whatever mask the recipe trains with.

    So recipes with different masks are scored on the same hidden tokens of the same clips (runs of one seed draw the same
    random masks). Predictors: `copy` the nearest visible frame of the same cell, `linear` in time between the visible
    frames of the cell, `space` within the frame (`reconstruction.linear`); where a cell is never visible, the first two
    are `space`. Losses are means over tokens in the units of the recipe's target. PSNR in dB is that of the mean squared error over all
    hidden pixels in [0, 1]; only targets that are not normalised have one, the others would need true statistics.
    """

    every: str = ""
    batch_size: int = 64
    clips: int = 256
    split: str = "val"
    mask: Any = masking.Centre()

    def run(self, context: Context, /) -> dict[str, float]:
        """{"loss", "loss_copy", "loss_linear", "loss_space", "loss_trivial"} and for raw targets the same as "psnr".

        Raises UserError for recipes that predict no patches, where no clip can be read, or the mask hides no token.
        """
        objective = context.assembly.objective
        reconstruction.check(objective)
        source = dataclasses.replace(context.source(self.split), limit=self.clips)

        def predict(params: Any, extra: Any, batch: Batch, rng: Any) -> tuple[Any, ...]:
            masks = masking.draw(row_keys(rng, batch["key"]), encoder=self.mask, decoder=masking.Hidden(), grid=objective.encoder.grid)
            if not masks.target.shape[1]:
                raise UserError(f"{self.mask} hides none of the {objective.encoder.grid.tokens} tokens of a clip; allowed is a mask that hides 1 and more")
            return objective.predict(params, extra, batch, rng, masks=masks), objective.patchify(batch), readable(batch)

        jitted, totals = context.assembly.evaluator(predict), {}
        for batch in context.sweep(source, batch_size=min(self.batch_size, self.clips or self.batch_size)):
            predicted, pixels, valid = jax.device_get(jitted(context.params, context.extra, batch, context.rng))
            for key, value in self.sums(objective, pixels, predicted, valid).items():
                totals[key] = totals.get(key, 0.0) + value
        tokens = totals.pop("tokens")
        reconstruction.check_hidden(tokens, split=self.split)
        losses = {k: v / tokens for k, v in totals.items() if k.startswith("loss")}
        levels = {k: float(-10 * np.log10(max(v / tokens, 1e-12))) for k, v in totals.items() if k.startswith("psnr")}
        best = {"loss_trivial": min(v for k, v in losses.items() if k != "loss")}
        return losses | levels | best | ({"psnr_trivial": max(v for k, v in levels.items() if k != "psnr")} if levels else {})

    def sums(self, objective: Any, pixels: np.ndarray, predicted: Any, valid: np.ndarray, /) -> dict[str, float]:
        """Squared errors of every predictor, summed over the hidden tokens of valid rows, and their number `tokens`."""
        encoder, target, ids = objective.encoder, objective.target, predicted.masks.target
        truth = np.take_along_axis(pixels, ids[..., None], axis=1)
        arrays = {"": predicted.patches}
        for name, guess in guesses(pixels, predicted.masks, grid=encoder.grid, patch=encoder.patch).items():
            arrays[f"_{name}"] = np.asarray(target(guess))
        result = {"tokens": float(valid.sum() * ids.shape[1])}
        for name, array in arrays.items():
            result[f"loss{name}"] = squares(array, predicted.targets, valid=valid)
            if target.normalise == "none":
                shown, true = (np.asarray(target.invert(x, truth)) for x in (array, predicted.targets))
                result[f"psnr{name}"] = squares(shown.clip(0, 1), true, valid=valid)
        return result


def squares(a: np.ndarray, b: np.ndarray, /, *, valid: np.ndarray) -> float:
    """Mean over P of (a - b)^2 [B M P], summed over the tokens of valid rows, in float64."""
    return float((((a.astype(np.float64) - b) ** 2).mean(-1) * valid[:, None]).sum())


def guesses(pixels: np.ndarray, masks: Any, /, *, grid: Grid, patch: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """{"copy", "linear", "space"}: patches f32 [B M P] at the targets, made from the visible patches of [B N P]."""
    space = reconstruction.linear(pixels, masks, grid=grid, patch=patch)
    result = {"copy": space.copy(), "linear": space.copy(), "space": space}
    for row, (clip, visible, target) in enumerate(reconstruction.rows(pixels, masks)):
        seen = np.isin(np.arange(grid.tokens), visible).reshape(grid.t, grid.slice)
        frames = clip.reshape(grid.t, grid.slice, patch[0], -1).transpose(0, 2, 1, 3).reshape(grid.t * patch[0], grid.slice, -1)
        ever = seen.any(0)[target % grid.slice]
        for kind in ("copy", "linear"):
            filled = in_time(frames, np.repeat(seen, patch[0], 0), kind=kind).reshape(grid.t, patch[0], grid.slice, -1)
            tokens = filled.transpose(0, 2, 1, 3).reshape(grid.tokens, -1)
            result[kind][row, ever] = tokens[target[ever]]
    return result


def in_time(frames: np.ndarray, known: np.ndarray, /, *, kind: str) -> np.ndarray:
    """[T S P] with unknown cells (`known` bool [T S] False) made from the known frames of the same cell; ends are copied.

    `kind` "linear" interpolates, "copy" takes the nearest frame, of two equally near ones the earlier. A cell that is
    never known stays as it is.
    """
    result, times = frames.copy(), np.arange(len(frames))
    for pattern in np.unique(known, axis=1).T:
        seen = np.flatnonzero(pattern)
        if not len(seen):
            continue
        if kind == "linear":
            weights = np.stack([np.interp(times, seen, line) for line in np.eye(len(seen))], -1)
        else:
            weights = np.eye(len(seen))[np.abs(times[:, None] - seen[None]).argmin(1)]
        cells = (known == pattern[:, None]).all(0)
        result[:, cells] = np.einsum("ts,scp->tcp", weights, frames[seen][:, cells])
    return result
