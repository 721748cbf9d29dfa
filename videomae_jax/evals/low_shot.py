"""Accuracy of a probe against the share of the labels that it sees."""

import dataclasses

import numpy as np

from videomae_jax import losses
from videomae_jax.errors import UserError
from videomae_jax.evals import features, probe
from videomae_jax.evals.base import Context


@dataclasses.dataclass(frozen=True)
class LowShot:
    """Top-1 in percent of a ridge probe on frozen features, for every share of the training labels: means and deviations over `seeds`.

    A seed draws the clips, the same share of every class and at least one of each; the probe is fitted on all of them. The penalty is
    chosen on a fifth of the drawn clips, as in `probe`: with few clips a rough choice. `train` and `test` clips (0 = all) of the
    splits train and val. Before step `first` it has no results: features of a frozen encoder are the same after training.
    """

    label: str = ""
    every: str = ""
    batch_size: int = 64
    train: int = 0
    test: int = 0
    shares: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    seeds: int = 3
    layer: int = -1
    modality: str = "video"
    first: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares) or self.seeds < 1:
            raise UserError(f"shares {self.shares}, seeds {self.seeds}; allowed are shares above 0 and up to 1, and 1 seed and more")

    def run(self, context: Context, /) -> dict[str, float]:
        """{"1%", "1%_std", "1%_clips", ..., "chance"}."""
        if context.step < self.first:
            return {}
        shared = {"label": self.label, "batch_size": self.batch_size, "layers": (self.layer,), "modality": self.modality}
        train, test = (features.collect(context, split=s, limit=n, **shared) for s, n in (("train", self.train), ("val", self.test)))
        x, z, results = train.features[self.layer], test.features[self.layer], {}
        for share in self.shares:
            scores = []
            for seed in range(self.seeds):
                rows = features.balanced(train.labels, share=share, rng=np.random.default_rng(seed))
                penalty = probe.penalty_of(x[rows], train.labels[rows], classes=len(train.classes), rng=np.random.default_rng(seed))
                guesses = losses.first(probe.ridge(x[rows], train.labels[rows], z, classes=len(train.classes), penalty=penalty))
                scores.append(100 * float(np.mean(guesses == test.labels)))
            name = f"{100 * share:g}%"
            results |= {name: float(np.mean(scores)), f"{name}_std": float(np.std(scores)), f"{name}_clips": float(len(rows))}
        return results | {"chance": 100 / len(train.classes)}
