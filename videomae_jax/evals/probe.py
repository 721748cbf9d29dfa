"""Linear probe of frozen features, beside the untrained encoder and raw pixels."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import losses
from videomae_jax.data import mixture
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context
from videomae_jax.masking import Grid
from videomae_jax.types import Array, Batch

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


def ridge(train: np.ndarray, labels: np.ndarray, test: np.ndarray, /, *, classes: int, penalty: float) -> np.ndarray:
    """Class scores f64 [n classes] of `test` [n E] by ridge regression on one-hot labels; features are standardised on `train`.

    `penalty` is relative to the number of training rows. Solved in float64, in the smaller of primal and dual form.
    """
    mean, scale = train.mean(0, dtype=np.float64), train.std(0, dtype=np.float64) + 1e-8
    x, z = (train - mean) / scale, (test - mean) / scale
    y = np.eye(classes)[labels]
    centre = y.mean(0)
    if x.shape[1] <= x.shape[0]:
        weights = np.linalg.solve(x.T @ x + penalty * len(x) * np.eye(x.shape[1]), x.T @ (y - centre))
        return z @ weights + centre
    return z @ (x.T @ np.linalg.solve(x @ x.T + penalty * len(x) * np.eye(len(x)), y - centre)) + centre


def penalty_of(train: np.ndarray, labels: np.ndarray, /, *, classes: int, rng: np.random.Generator) -> float:
    """The penalty, of PENALTIES, with which a ridge probe of four fifths of the rows is best on the fifth that `rng` draws; the lowest of equals."""
    order = rng.permutation(len(train))
    held, rest = np.split(order, [max(len(order) // 5, int(len(order) > 1))])

    def right(penalty: float) -> float:
        return float(np.mean(losses.first(ridge(train[rest], labels[rest], train[held], classes=classes, penalty=penalty)) == labels[held]))

    return max(PENALTIES, key=right) if len(held) else PENALTIES[0]  # a single clip leaves nothing to choose by


def accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, /, *, classes: int, seed: int) -> float:
    """Test accuracy in percent of a ridge probe whose penalty is chosen on a fifth of the training rows.

    `seed` draws that fifth, and then a bootstrap sample of all training rows that the probe is fitted on, so that several seeds show
    the spread.
    """
    rng = np.random.default_rng(seed)
    best = penalty_of(train, labels, classes=classes, rng=rng)
    drawn = rng.choice(len(train), len(train))
    return 100 * float(np.mean(losses.first(ridge(train[drawn], labels[drawn], test, classes=classes, penalty=best)) == truth))


def pooled(tokens: Array, /, *, grid: Grid, pooling: str) -> Array:
    """f32 [B E] features of tokens [B N D]: "mean" over all, or "time" (mean over space, times concatenated)."""
    if pooling == "mean":
        return tokens.mean(1)
    if pooling == "time":
        return tokens.reshape(tokens.shape[0], grid.t, grid.slice, -1).mean(2).reshape(tokens.shape[0], -1)
    raise UserError(f"pooling {pooling!r}; allowed are 'mean' and 'time'")


@dataclasses.dataclass(frozen=True)
class Probe:
    """Accuracy in percent of a linear (ridge) probe on frozen mean tokens, trained on `train`, tested on `test` clips.

    `label` is the index column to predict. Results per probe: `trained`, `untrained` (the same encoder at
    initialisation), `pixels` (raw pixels averaged to 4 frames of 12 x 12, no encoder) as means over `seeds`, their
    standard deviations, and `gain` = trained - untrained in points. The `primary` probe, named in the config before any
    run, is the one in summary.json.
    """

    label: str = ""
    every: str = ""
    batch_size: int = 64
    train: int = 1024
    test: int = 1024
    seeds: int = 3
    pooling: str = "mean"
    modality: str = "video"
    primary: bool = False

    def run(self, context: Context, /) -> dict[str, float]:
        """{"trained", "untrained", "pixels", "gain", "*_std"}."""
        run = context.assembly
        fresh = run.create()
        kinds: dict[str, Callable[[Batch], Array]] = {
            "trained": self.features(context, context.params, context.extra),
            "untrained": self.features(context, fresh.params, run.seen(fresh.extra)),
            "pixels": run.evaluator(coarse_pixels),
        }
        results: dict[str, float] = {}
        data = {split: self.collect(context, kinds, split, limit) for split, limit in (("train", self.train), ("val", self.test))}
        classes = len(self.source(context, "train", limit=0).classes)
        for kind in kinds:
            scores = [accuracy(data["train"][kind], data["train"]["label"], data["val"][kind], data["val"]["label"], classes=classes, seed=s)
                      for s in range(self.seeds)]
            results |= {kind: float(np.mean(scores)), f"{kind}_std": float(np.std(scores))}
        return results | {"gain": results["trained"] - results["untrained"], "chance": 100 / classes}

    def headline(self, first: Mapping[str, float], last: Mapping[str, float], /) -> dict[str, Any]:
        """The results of the primary probe."""
        kept = ("trained", "untrained", "pixels", "chance")
        kind = {"kind": f"ridge on {self.pooling} tokens of the frozen encoder", "label": self.label, "seeds": self.seeds}
        return {"probe": {k: last[k] for k in kept} | kind} if self.primary else {}

    def source(self, context: Context, split: str, /, *, limit: int) -> Any:
        """At most `limit` clips of a split (0 = all), labelled by the probe's own column."""
        return dataclasses.replace(mixture.labelled(context.source(split), self.label), limit=limit)

    def features(self, context: Context, params: Any, extra: Any, /) -> Callable[[Batch], Array]:
        """Pooled features f32 [B E] of a batch under given weights."""
        objective = context.assembly.objective

        def represent(params: Any, extra: Any, batch: Batch) -> Array:
            features = objective.represent(params, extra, batch)[self.modality]
            return pooled(features.tokens, grid=features.grid, pooling=self.pooling)

        jitted = context.assembly.evaluator(represent)
        return lambda batch: jitted(params, extra, batch)

    def collect(self, context: Context, kinds: dict[str, Callable[[Batch], Array]], split: str, limit: int, /) -> dict[str, np.ndarray]:
        """Features of every kind and labels of the readable ones of at most `limit` clips of a split."""
        source = self.source(context, split, limit=limit)
        rows: dict[str, list[np.ndarray]] = {}
        whole = context.assembly.evaluator(lambda batch: {k: batch[k] for k in ("label", "valid", "fault")})
        for batch in context.sweep(source, batch_size=self.batch_size):
            info = jax.device_get(whole(batch))
            kept = info["valid"] & (info["fault"] == 0)
            for kind, value in {**{k: f(batch) for k, f in kinds.items()}, "label": info["label"]}.items():
                rows.setdefault(kind, []).append(np.asarray(value)[kept])
        joined = {k: np.concatenate(v) for k, v in rows.items()}
        if (joined["label"] < 0).any():
            raise UserError(f"the probe needs labels, but column {self.label!r} of the index leaves clips of split {split!r} unlabelled")
        return joined


def coarse_pixels(batch: Batch, /) -> Array:
    """Raw-pixel features f32 [B 4*12*12*C]: the clip at 4 frames of 12 x 12, averaged by triangles of twice that spacing."""
    video = batch["video"].astype(jnp.float32) / 255
    return jax.image.resize(video, (video.shape[0], 4, 12, 12, video.shape[-1]), "linear").reshape(video.shape[0], -1)
