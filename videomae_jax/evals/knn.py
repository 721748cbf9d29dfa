"""k nearest neighbours in the space of frozen features."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import losses
from videomae_jax.errors import UserError
from videomae_jax.evals import features
from videomae_jax.evals.base import Context

CHUNK = 1024  # test clips compared at once


def vote(train: np.ndarray, labels: np.ndarray, test: np.ndarray, /, *, classes: int, ks: tuple[int, ...], temperature: float) -> dict[int, np.ndarray]:
    """{k: predicted classes i [n]} of test features [n D]: each of the k most similar training clips votes for its class.

    Similarity is the cosine, a vote weighs exp(cosine / temperature), a tie goes to the lower class (DINO, arXiv 2104.14294). A k above
    the number of training clips takes all of them. Features that are not finite have no class, -1.
    """
    def unit(x: np.ndarray) -> np.ndarray:
        return np.float32(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))

    bank, most = jnp.asarray(unit(train)), min(max(ks), len(train))

    @jax.jit
    def nearest(queries: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.lax.top_k(jnp.matmul(queries, bank.T, precision="highest"), most)

    queries, found = unit(test), {k: [] for k in ks}
    for start in range(0, len(queries), CHUNK):
        part = queries[start: start + CHUNK]
        rows = np.concatenate([part, np.zeros((-len(part) % min(CHUNK, len(queries)), part.shape[1]), np.float32)])  # one compilation
        cosine, ids = (np.asarray(x)[: len(part)] for x in nearest(rows))
        weight, voted, votes = np.exp((cosine - cosine[:, :1]).astype(np.float64) / temperature), labels[ids], np.zeros((len(part), classes))
        for before, k in itertools.pairwise((0, *sorted(set(ks)))):  # each k adds to the votes of the one below: none is kept a neighbour and class
            np.add.at(votes, (np.arange(len(part))[:, None], voted[:, before:k]), weight[:, before:k])
            found[k].append(losses.first(votes))
    return {k: np.concatenate(v) for k, v in found.items()}


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Top-1 in percent of k nearest neighbours for every `k`, per layer where several are asked for.

    `train` and `test` clips (0 = all) of the splits train and val, `label` the index column. Before step `first` it has no results:
    features of a frozen encoder are the same after training.
    """

    label: str = ""
    every: str = ""
    batch_size: int = 64
    train: int = 0
    test: int = 0
    k: tuple[int, ...] = (10, 20, 100, 200)
    temperature: float = 0.07
    layers: tuple[int, ...] = (-1,)
    modality: str = "video"
    first: int = 0

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1 or self.temperature <= 0:
            raise UserError(f"k {self.k}, temperature {self.temperature}; allowed are k of 1 and more and a temperature above 0")

    def run(self, context: Context, /) -> dict[str, float]:
        """{"k10", ..., "chance"}; with several layers {"layer3_k10", ...}."""
        if context.step < self.first:
            return {}
        shared = {"label": self.label, "batch_size": self.batch_size, "layers": self.layers, "modality": self.modality}
        train, test = (features.collect(context, split=s, limit=n, **shared) for s, n in (("train", self.train), ("val", self.test)))
        results = {}
        for layer in self.layers:
            guesses = vote(train.features[layer], train.labels, test.features[layer], classes=len(train.classes), ks=self.k, temperature=self.temperature)
            prefix = f"layer{layer}_" if len(self.layers) > 1 else ""
            results |= {f"{prefix}k{k}": 100 * float(np.mean(guess == test.labels)) for k, guess in guesses.items()}
        return results | {"chance": 100 / len(train.classes)}
