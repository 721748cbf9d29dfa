"""The linear probe on cached features: all learning rates and layers from one extraction, all rates in one pass."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import losses, optim, parallel
from videomae_jax.errors import UserError
from videomae_jax.evals import features
from videomae_jax.evals.base import Context
from videomae_jax.models import probing
from videomae_jax.types import Array

RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def fit(x: np.ndarray, labels: np.ndarray, /, *, classes: int, rates: tuple[float, ...], epochs: int, batch_size: int, seed: int) -> dict[str, Any]:
    """Heads for every rate trained side by side on features f32 [n D]: {"kernel" [H D K], "bias" [H K], "mean" [D], "var" [D]}.

    BatchNorm without affine (eps 1e-6, running momentum .1), linear layer from N(0, .01), LARS with momentum .9 and no decay, a tenth
    of the steps warm-up, then a cosine to 0: MAE's linear probe. All heads see the same batches. Rates are for the batch as it is.
    """
    batch_size = min(batch_size, len(x))
    steps = max(1, epochs * (len(x) // batch_size))
    rng = np.random.default_rng(seed)
    orders = np.concatenate([rng.permutation(len(x))[: len(x) // batch_size * batch_size] for _ in range(epochs)])
    grid = optim.Grid(schedule=optim.Schedule(base=1.0, minimum=0.0, warmup="10%", unit=0), rates=rates, method="lars")
    return jax.device_get(_fit(jnp.asarray(x, jnp.float32), jnp.asarray(labels), jnp.asarray(orders.reshape(steps, batch_size)), jax.random.key(seed),
                               classes=classes, grid=grid))


@functools.partial(jax.jit, static_argnames=("classes", "grid"))
def _fit(x: Array, labels: Array, orders: Array, key: Array, /, *, classes: int, grid: optim.Grid) -> dict[str, Array]:
    heads, transform, steps = probing.Linear(classes, len(grid.rates)), grid.transform(), len(orders)
    params = parallel.unbox(heads.init(key, x[:1])["params"])

    def loss(params: Any, rows: Array, known: Array) -> Array:
        logits = heads.apply({"params": params}, rows)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), known[:, None, None], -1).mean(0).sum()

    def body(carry: Any, inputs: tuple[Array, Array]) -> tuple[Any, None]:
        params, state, running = carry
        step, ids = inputs
        now = probing.statistics(x[ids], jnp.ones(len(ids), jnp.float32))
        slopes = jax.grad(loss)(params, probing.normalised(x[ids], now["mean"], now["var"]), labels[ids])
        moves, state = transform.update(slopes, state, params)
        rate = grid.schedule.at(step, batch=1, total=steps, steps_per_epoch=1.0) if steps > 1 else 1.0
        unbiased = now["var"] * len(ids) / max(len(ids) - 1, 1)
        running = {k: 0.9 * running[k] + 0.1 * new for k, new in (("mean", now["mean"]), ("var", unbiased))}
        return (jax.tree.map(lambda p, u: p - rate * u, params, moves), state, running), None

    start = {"mean": jnp.zeros(x.shape[1], jnp.float32), "var": jnp.ones(x.shape[1], jnp.float32)}
    (params, _, running), _ = jax.lax.scan(body, (params, transform.init(params), start), (jnp.arange(steps), orders))
    return params | running


def scores(fitted: dict[str, np.ndarray], x: np.ndarray, /) -> np.ndarray:
    """f64 [H n K] class scores of every head."""
    z = (np.asarray(x, np.float64) - fitted["mean"]) / np.sqrt(fitted["var"] + 1e-6)
    return np.einsum("nd,hdk->hnk", z, fitted["kernel"], optimize=True) + fitted["bias"][:, None]


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """Top-1 in percent of linear heads on frozen features, one for every rate, at every layer.

    `best` is the maximum over rates on the test clips; `selected` the test accuracy of the rate that is best on a fifth of the training
    clips after training on the others. `train` and `test` clips (0 = all) of the splits train and val. Before step `first` it has no results:
    features of a frozen encoder are the same after training.
    """

    label: str = ""
    every: str = ""
    batch_size: int = 64
    train: int = 0
    test: int = 0
    layers: tuple[int, ...] = (-1,)
    rates: tuple[float, ...] = RATES
    epochs: int = 90
    rows: int = 512
    seed: int = 0
    modality: str = "video"
    first: int = 0

    def __post_init__(self) -> None:
        if not self.rates or self.epochs < 1 or self.rows < 2:
            raise UserError(f"rates {self.rates}, epochs {self.epochs}, rows {self.rows}; allowed are 1 rate, 1 epoch, 2 rows of a batch and more")

    def run(self, context: Context, /) -> dict[str, float]:
        """{"best", "selected", "rate", "chance"}; with several layers {"layer3_best", ...} and "best_layer"."""
        if context.step < self.first:
            return {}
        shared = {"label": self.label, "batch_size": self.batch_size, "layers": self.layers, "modality": self.modality}
        train, test = (features.collect(context, split=s, limit=n, **shared) for s, n in (("train", self.train), ("val", self.test)))
        results, selected = {}, {}
        for layer in self.layers:
            prefix = f"layer{layer}_" if len(self.layers) > 1 else ""
            found = self.compare(train.features[layer], train.labels, test.features[layer], test.labels, classes=len(train.classes))
            results |= {prefix + k: v for k, v in found.items()}
            selected[layer] = found["selected"]
        several = {"best_layer": float(max(selected, key=selected.get))} if len(self.layers) > 1 else {}
        return results | several | {"chance": 100 / len(train.classes)}

    def compare(self, x: np.ndarray, labels: np.ndarray, z: np.ndarray, truth: np.ndarray, /, *, classes: int) -> dict[str, float]:
        """{"best", "selected", "rate"} of features `x` for training and `z` for the test. Raises UserError for a single training clip."""
        if len(x) < 2:
            raise UserError(f"{len(x)} labelled training clip; allowed are 2 and more, for a rate is chosen on some of them after training on the others")
        order = np.random.default_rng(self.seed).permutation(len(x))
        held, rest = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5):]
        shared = {"classes": classes, "rates": self.rates, "epochs": self.epochs, "batch_size": self.rows, "seed": self.seed}

        def right(fitted: dict[str, np.ndarray], rows: np.ndarray, known: np.ndarray) -> np.ndarray:
            return 100 * (losses.first(scores(fitted, rows)) == known).mean(1)

        choice = int(right(fit(x[rest], labels[rest], **shared), x[held], labels[held]).argmax())
        test = right(fit(x, labels, **shared), z, truth)
        return {"best": float(test.max()), "selected": float(test[choice]), "rate": self.rates[choice]}
