"""What one modality does for another: masked losses under a shuffled pairing, and probes of each modality alone and of both.

For objectives whose `predict` takes `modality=`, whose `masks` are one for each modality and whose `represent` takes `inputs=`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import UserError
from videomae_jax.evals import probe
from videomae_jax.evals.base import Context, readable
from videomae_jax.evals.reconstruction import rows
from videomae_jax.masking import Grid
from videomae_jax.models.fusion import MODALITIES
from videomae_jax.types import Array, Batch

KEYS = {"video": ("video",), "audio": ("audio", "audio_valid")}


@dataclasses.dataclass(frozen=True)
class CrossModal:
    """Masked losses of video and sound with the partner that belongs to them and with one of another clip.

    Targets, masks and weights are the same in both: only the other modality is exchanged, with that of the clip half a
    batch further on, so that neighbours of one class in the index do not meet. `gain_<modality>` is by how many percent the
    exchange raises its loss; 0 means that the model does not use the pairing. A clip without the other modality, or whose partner has
    none, has no pairing and is no part of the losses of the first. `loss_<modality>_place` is the loss of the mean
    of the clip's visible tokens of the same place within a time step (of all visible ones where there are none),
    `loss_<modality>_clip` that of the mean of all its visible tokens: a model that is no better has not learnt where a token is. At most
    `clips` clips are used, spread over the split; a batch with a single one has no other clip and is left out of the losses.
    """

    every: str = ""
    batch_size: int = 64
    clips: int = 512
    split: str = "val"

    def run(self, context: Context, /) -> dict[str, float]:
        """{"loss_video", "loss_video_shuffled", "loss_video_place", "loss_video_clip", "gain_video"} and the same for audio.

        Raises UserError for a recipe that does not see both.
        """
        objective = context.assembly.objective
        if not set(MODALITIES) <= set(getattr(objective.encoder, "inputs", ())):
            raise UserError(f"{type(objective).__name__} does not see {' and '.join(MODALITIES)}; allowed are recipes that see both")
        source = dataclasses.replace(context.source(self.split), limit=self.clips)

        def predict(params: Any, extra: Any, batch: Batch, rng: Any) -> dict[str, Any]:
            other = {k: exchanged(batch[k], batch["valid"]) for keys in KEYS.values() for k in keys}
            result = {}
            for m in MODALITIES:
                paired = objective.predict(params, extra, batch, rng, modality=m)
                masks = objective.masks(batch, jax.random.split(rng)[0])
                partner = next(name for name in MODALITIES if name != m)
                strange = batch | {k: other[k] for k in KEYS[partner]}
                shuffled = objective.predict(params, extra, strange, rng, masks=masks, modality=m)
                # Where inpainting has no context there is no weight; both pairings must have it. Without inpainting a clip of one modality
                # has weight, and no pairing.
                exists = [objective.encoder.inputs[partner].valid(pairing).any(1) for pairing in (batch, strange)]
                counted = exists[0] & exists[1] & readable(batch) & (batch["valid"].sum() > 1)
                weight = paired.masks.weight * shuffled.masks.weight * counted[:, None]
                result[m] = {"paired": paired, "shuffled": shuffled.patches, "weight": weight, "patches": objective.encoder.inputs[m].patchify(batch)}
            return result

        jitted, totals = context.assembly.evaluator(predict), {}
        for batch in context.sweep(source, batch_size=min(self.batch_size, self.clips or self.batch_size)):
            for m, got in jax.device_get(jitted(context.params, context.extra, batch, context.rng)).items():
                paired, grid = got["paired"], objective.encoder.inputs[m].grid
                means = {"_place": place_means(got["patches"], paired.masks, grid=grid), "_clip": clip_means(got["patches"], paired.masks)}
                guesses = {name: np.asarray(objective.targets({m: values})[m]) for name, values in means.items()}
                for name, patches in {"": paired.patches, "_shuffled": got["shuffled"], **guesses}.items():
                    key, error = f"loss_{m}{name}", np.mean((patches - paired.targets) ** 2, axis=-1, dtype=np.float64)
                    totals[key] = totals.get(key, 0.0) + float((error * got["weight"]).sum())
                totals[m] = totals.get(m, 0.0) + float(got["weight"].sum())
        losses = {k: v / totals[k.split("_")[1]] if totals[k.split("_")[1]] else float("nan") for k, v in totals.items() if k not in MODALITIES}
        return losses | {f"gain_{m}": 100 * (losses[f"loss_{m}_shuffled"] / losses[f"loss_{m}"] - 1) for m in MODALITIES}


def exchanged(x: Array, valid: Array, /) -> Array:
    """Rows [B ...] with row i of the n valid ones replaced by row (i + n // 2) mod n; valid rows come first."""
    place, count = jnp.arange(x.shape[0]), valid.sum()
    return x[jnp.where(place < count, (place + count // 2) % jnp.maximum(count, 1), place)]


def place_means(patches: np.ndarray, masks: Any, /, *, grid: Grid) -> np.ndarray:
    """Guesses f32 [B M P] at the targets: means over the visible patches of [B N P] at the same place of a time step.

    Where there is none it is the mean over all visible patches, and 0 where nothing is visible.
    """
    result = []
    for row, visible, target in rows(patches, masks):
        seen = np.zeros(grid.tokens)
        seen[visible] = 1
        seen, values = seen.reshape(grid.t, grid.slice), row.reshape(grid.t, grid.slice, -1)
        counts, sums = seen.sum(0)[:, None], np.einsum("ts,tsp->sp", seen, values)
        whole = sums.sum(0) / max(counts.sum(), 1)
        result.append(np.where(counts > 0, sums / np.maximum(counts, 1), whole)[target % grid.slice])
    return np.stack(result).astype(np.float32)


def clip_means(patches: np.ndarray, masks: Any, /) -> np.ndarray:
    """Guesses f32 [B M P] at the targets: the mean over all visible patches of [B N P], 0 where nothing is visible."""
    means = [np.broadcast_to(row[visible].sum(0) / max(len(visible), 1), (len(target), row.shape[-1])) for row, visible, target in rows(patches, masks)]
    return np.stack(means).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class ModalityProbe:
    """Accuracy in percent of a ridge probe on features of the video alone, the sound alone and both.

    "video" and "audio" are the mean tokens of an encoder that is given nothing else; "both" are the two means, side by
    side, of an encoder that is given both. Protocol, splits, `label` and `seeds` are those of `probe.Probe`; for each there
    is the result of the same encoder at initialisation.
    """

    label: str = ""
    every: str = ""
    batch_size: int = 64
    train: int = 1024
    test: int = 1024
    seeds: int = 3

    def run(self, context: Context, /) -> dict[str, float]:
        """{"video", "audio", "both"} with "_untrained", "_std" and "_untrained_std", and "chance"."""
        fresh = context.assembly.create()
        asked = probe.Probe(label=self.label, batch_size=self.batch_size)
        weights = {"": (context.params, context.extra), "_untrained": (fresh.params, context.assembly.seen(fresh.extra))}
        means = {"video": features(context, inputs=("video",)), "audio": features(context, inputs=("audio",)), "both": features(context, inputs=MODALITIES)}
        kinds = {f"{name}{suffix}": functools.partial(mean, *weights[suffix]) for suffix in weights for name, mean in means.items()}
        train, test = (asked.collect(context, kinds, split, limit) for split, limit in (("train", self.train), ("val", self.test)))
        classes = len(asked.source(context, "train", limit=0).classes)
        results = {"chance": 100 / classes}
        for kind in kinds:
            scores = [probe.accuracy(train[kind], train["label"], test[kind], test["label"], classes=classes, seed=s) for s in range(self.seeds)]
            results |= {kind: float(np.mean(scores)), f"{kind}_std": float(np.std(scores))}
        return results


def features(context: Context, /, *, inputs: tuple[str, ...]) -> Callable[[Any, Any, Batch], Array]:
    """Mean tokens f32 [B E] of the modalities fed, side by side, as a function of (parameters, extra, batch)."""
    objective = context.assembly.objective

    def represent(params: Any, extra: Any, batch: Batch) -> Array:
        found = objective.represent(params, extra, batch, inputs=inputs)
        return jnp.concatenate([found[m].pooled for m in inputs], axis=-1)

    return context.assembly.evaluator(represent)
