"""Reconstruction by part of the picture: the error inside the parts of a label map, and how sharp they are."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from videomae_jax import masking, part_masks
from videomae_jax.errors import UserError
from videomae_jax.evals import reconstruction
from videomae_jax.evals.base import Context, readable
from videomae_jax.models import patches
from videomae_jax.types import Batch

# Classes of a face map (`part_masks.COMPONENTS`); `features` is what an expression shows in.
FACE: Mapping[str, tuple[int, ...]] = {"eyes": (2, 3, 4, 5), "nose": (6,), "mouth": (7, 8, 9), "features": (2, 3, 4, 5, 6, 7, 8, 9), "hair": (10,),
                                       "skin": (1,), "background": (0,)}


@dataclasses.dataclass(frozen=True)
class PartReconstruction:
    """Judges predicted pixels on clips of a split under the evaluator's own `mask`, so that recipes with other masks compare.

    `mse_PART` is the mean squared error in [0, 1] over all hidden pixels of the clips that lie on the part, `mse` that over all
    hidden pixels. `sharpness` is the sum over hidden tokens of the absolute differences of neighbouring pixels within a
    patch, predicted over real; `sharpness_features` takes the differences between pixels that both lie on features. 1 is as
    sharp as the picture, less is blurred, and noise counts as sharpness: read it beside the error. Needs `parts`, and
    targets that are pixels.
    """

    every: str = ""
    batch_size: int = 64
    clips: int = 256
    split: str = "val"
    mask: part_masks.Guided | masking.Random = masking.Random(ratio=0.9, layout="token", truncate="visible")

    def run(self, context: Context, /) -> dict[str, float]:
        """The numbers above; of a part that is never hidden there is none. Raises UserError for recipes that predict no patches, for normalised
        targets and for clips without `parts`.
        """
        objective = context.assembly.objective
        reconstruction.check(objective)
        if objective.target.normalise != "none":
            raise UserError(f"targets normalised by {objective.target.normalise!r} are no pixels; allowed is 'none'")
        source = dataclasses.replace(context.source(self.split), limit=self.clips)
        if "parts" not in source.fields:
            raise UserError(f"{type(source).__name__} gives no `parts`; it gives {', '.join(source.fields)}")

        def predict(params: Any, extra: Any, batch: Batch, rng: Any) -> tuple[Any, ...]:
            masks = part_masks.draw(rng, batch, encoder=self.mask, grid=objective.encoder.grid)
            maps = patches.patchify(batch["parts"][..., None], patch=objective.encoder.patch)
            predicted = objective.predict(params, extra, batch, rng, masks=masks)
            pixels = [objective.target.invert(x, predicted.targets) for x in (predicted.patches, predicted.targets)]
            return *pixels, masking.take(maps, ids=masks.target), readable(batch)

        jitted, totals = context.assembly.evaluator(predict), {}
        for batch in context.sweep(source, batch_size=min(self.batch_size, self.clips or self.batch_size)):
            predicted, real, maps, valid = jax.device_get(jitted(context.params, context.extra, batch, context.rng))
            for key, value in sums(predicted[valid], real[valid], maps[valid], patch=objective.encoder.patch).items():
                totals[key] = totals.get(key, 0.0) + value
        found = {name: totals[name] / totals[f"{name}/of"] for name in totals if not name.endswith("/of") and totals[f"{name}/of"] > 0}
        return {name: float(value) for name, value in found.items()}


def sums(predicted: np.ndarray, real: np.ndarray, maps: np.ndarray, /, *, patch: tuple[int, int, int]) -> dict[str, float]:
    """Numerator NAME and denominator "NAME/of" of every number, for hidden patches [B M P] and maps u8 [B M P / C]."""
    shape = (*maps.shape[:2], *patch)
    a, b = (x.reshape(*shape, -1).astype(np.float64) for x in (predicted, real))
    parts, error, result = maps.reshape(shape), ((a - b) ** 2).mean(-1), {"mse": 0.0, "mse/of": float(maps.size)}
    result["mse"] = float(error.sum())
    for name, classes in FACE.items():
        inside = np.isin(parts, classes)
        result |= {f"mse_{name}": float(error[inside].sum()), f"mse_{name}/of": float(inside.sum())}
    everywhere = np.ones(shape, bool)
    for name, inside in (("sharpness", everywhere), ("sharpness_features", np.isin(parts, FACE["features"]))):
        result |= {name: roughness(a, inside), f"{name}/of": roughness(b, inside)}
    return result


def roughness(video: np.ndarray, inside: np.ndarray, /) -> float:
    """Sum of |differences| of vertical and horizontal neighbours of [B M p0 p1 p2 C] that both lie `inside`, bool [B M p0 p1 p2]."""
    total = 0.0
    for axis in (3, 4):
        both = np.minimum(np.delete(inside, 0, axis), np.delete(inside, -1, axis))
        total += float((np.abs(np.diff(video, axis=axis)).sum(-1) * both).sum())
    return total
