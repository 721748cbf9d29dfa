"""Held-out reconstruction loss beside trivial predictors under the same masks."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy.interpolate

from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context, readable
from videomae_jax.masking import Grid
from videomae_jax.models import patches


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Masked loss on the validation split: the model, predicting zero, and two predictors that need no training.

    `loss_nearest` copies the nearest visible patch (distance in the (t, h, w) grid, ties to the first);
    `loss_linear` interpolates the visible pixels of each frame linearly over a Delaunay triangulation, and copies the
    nearest visible pixel outside its hull. Both are normalised like the target; `loss_trivial` is the better of them.
    At most `clips` clips are used, spread over the split.
    """

    every: str = "20%"
    batch_size: int = 64
    clips: int = 512
    split: str = "val"

    def run(self, context: Context, /) -> dict[str, float]:
        """{"loss", "loss_zero", "loss_nearest", "loss_linear", "loss_trivial"} over at most `clips` clips.

        Errors as in `check` and `check_hidden`.
        """
        objective = context.assembly.objective
        check(objective)
        source = dataclasses.replace(context.source(self.split), limit=self.clips)
        totals: dict[str, float] = {}
        for predicted, pixels, valid in predictions(context, source, batch_size=min(self.batch_size, self.clips or self.batch_size)):
            sums = self.sums(objective, pixels, predicted, valid)
            totals = {k: totals.get(k, 0.0) + v for k, v in sums.items()}
        check_hidden(totals["weight"], split=self.split)
        losses = {f"loss{k}": v / totals["weight"] for k, v in totals.items() if k != "weight"}
        return losses | {"loss_trivial": min(losses["loss_nearest"], losses["loss_linear"])}

    def headline(self, first: Mapping[str, float], last: Mapping[str, float], /) -> dict[str, float]:
        """Held-out loss before and after training, beside predictors that need none, all under the same masks."""
        return {"loss_first": first["loss"], "loss_last": last["loss"], "loss_predict_zero": last["loss_zero"], "loss_trivial": last["loss_trivial"]}

    def sums(self, objective: Any, pixels: np.ndarray, predicted: Any, valid: np.ndarray, /) -> dict[str, float]:
        """Summed token errors of every predictor and the summed weight, for patches [B N P] in [0, 1]."""
        weight = predicted.masks.weight * valid[:, None]
        result = {"weight": float(weight.sum())}
        encoder = objective.encoder
        guesses = {"_nearest": nearest(pixels, predicted.masks, grid=encoder.grid),
                   "_linear": linear(pixels, predicted.masks, grid=encoder.grid, patch=encoder.patch)}
        arrays = {"": predicted.patches, "_zero": np.zeros_like(predicted.targets)}
        arrays |= {k: np.asarray(objective.target(guess)) for k, guess in guesses.items()}
        for name, guess in arrays.items():
            result[name] = float((np.mean((guess - predicted.targets) ** 2, axis=-1, dtype=np.float64) * weight).sum())
        return result


def check(objective: Any, /) -> None:
    """Raises UserError for an objective without a target at hidden patches."""
    if not hasattr(objective, "target"):
        raise UserError(f"{type(objective).__name__} predicts no hidden patches; allowed are runs of pretraining")


def check_hidden(weight: float, /, *, split: str) -> None:
    """Raises UserError where the hidden tokens of a split, or their weights, sum to 0."""
    if not weight:
        raise UserError(f"no clip of split {split!r} that can be read has a hidden token under this mask, so there is no loss")


def predictions(context: Context, source: Any, /, *, batch_size: int) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
    """What the objective predicts for every batch of a sweep, its patches f32 [B N P] in [0, 1] and which rows are `readable`, bool [B]; errors as there."""
    objective = context.assembly.objective
    predict = context.assembly.evaluator(
        lambda params, extra, batch, rng: (objective.predict(params, extra, batch, rng), objective.patchify(batch), readable(batch)))
    return context.results(lambda batch: predict(context.params, context.extra, batch, context.rng), source, batch_size=batch_size)


def rows(pixels: np.ndarray, masks: Any, /) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(patches [N P], visible ids, target ids) of every clip; padding among the visible ids is left out."""
    for row, visible, valid, target in zip(pixels, *map(np.asarray, (masks.visible, masks.visible_valid, masks.target)), strict=True):
        yield row, visible[valid], target


def nearest(pixels: np.ndarray, masks: Any, /, *, grid: Grid) -> np.ndarray:
    """Patches f32 [B M P] copied from the nearest visible token of each target."""
    place = np.stack(np.unravel_index(np.arange(grid.tokens), (grid.t, grid.h, grid.w)), -1)
    result = []
    for row, visible, target in rows(pixels, masks):
        distance = ((place[target][:, None] - place[visible][None]) ** 2).sum(-1)
        result.append(row[visible[distance.argmin(1)]])
    return np.stack(result)


def linear(pixels: np.ndarray, masks: Any, /, *, grid: Grid, patch: tuple[int, int, int]) -> np.ndarray:
    """Patches f32 [B M P] interpolated from the visible pixels of the same frames."""
    result = []
    for row, visible, target in rows(pixels, masks):
        seen = np.zeros((grid.tokens, 1), np.float32)
        seen[visible] = 1
        known = np.asarray(patches.unpatchify(np.repeat(seen, row.shape[-1], -1)[None], grid=grid, patch=patch))[0, ..., 0] > 0
        video = np.asarray(patches.unpatchify(row[None], grid=grid, patch=patch))[0]
        filled = fill(video, known)
        result.append(np.asarray(patches.patchify(filled[None], patch=patch))[0][target])
    return np.stack(result)


def fill(video: np.ndarray, known: np.ndarray, /) -> np.ndarray:
    """[T H W C] with the unknown pixels (`known` bool [T H W] False) interpolated within their frame.

    Frames with the same known pixels share one triangulation (a tube mask needs a single one). A frame in which
    nothing is known takes the pixels of the nearest frame that knows something.
    """
    result, (rows, columns) = video.copy(), np.mgrid[: video.shape[1], : video.shape[2]]
    informed = [t for t in range(len(video)) if known[t].any()]
    groups: dict[bytes, list[int]] = {}
    for t in informed:
        groups.setdefault(known[t].tobytes(), []).append(t)
    for frames in groups.values():
        mask = known[frames[0]]
        points = np.stack([rows[mask], columns[mask]], -1)
        wanted = np.stack([rows[~mask], columns[~mask]], -1)
        if not len(wanted):
            continue
        values = np.moveaxis(video[frames][:, mask], 0, 1).reshape(len(points), -1)
        guess = scipy.interpolate.LinearNDInterpolator(points, values)(wanted)
        outside = np.isnan(guess[:, 0])
        if outside.any():
            guess[outside] = scipy.interpolate.NearestNDInterpolator(points, values)(wanted[outside])
        shaped = np.moveaxis(guess.reshape(len(wanted), len(frames), -1), 1, 0)
        for t, frame in zip(frames, shaped, strict=True):
            result[t][~mask] = frame
    for t in set(range(len(video))) - set(informed):
        result[t] = result[min(informed, key=lambda i: abs(i - t))]
    return result
