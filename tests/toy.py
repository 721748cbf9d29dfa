"""An objective of two matrices whose gradients can be written down: for tests of the step, not of any recipe."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from videomae_jax import config as configs
from videomae_jax import optim, parallel
from videomae_jax.config import spec
from videomae_jax.losses import Term
from videomae_jax.metrics import Mean
from videomae_jax.objectives.base import External, Objective, Output, Phase, Stage

WIDTH = 4
FIELDS = (("x", (WIDTH,), "float32", "static"), ("y", (WIDTH,), "float32", "static"), ("heard", (), "int32", "static"))
TRUST = ("tiny", "toy")


@dataclasses.dataclass(frozen=True)
class Toy(Objective):
    """Terms "seen": |x left - y|^2 over valid rows, and "heard" (coefficient 0.5): |x right|^2 over rows with heard > 0.

    `scale` multiplies the first; `teacher` keeps a copy of `left` and a matrix of the step's number in extra, and a frozen
    matrix beside them.
    """

    scale: float = 1.0
    teacher: bool = False
    curriculum: tuple[Stage, ...] = ()
    weights: tuple[External, ...] = ()

    def init(self, rng: Any, batch: Any, /) -> Any:
        keys = jax.random.split(rng)
        def matrix(key: Any) -> Any:
            return {"w": parallel.box(jax.random.normal(key, (WIDTH, WIDTH), jnp.float32), "embed", None)}
        return {"left": matrix(keys[0]), "right": matrix(keys[1])}

    def init_extra(self, rng: Any, params: Any, batch: Any, /) -> Any:
        number = parallel.box(jnp.zeros((WIDTH, WIDTH), jnp.float32), "embed", None)
        return {"teacher": jax.tree.map(jnp.copy, params["left"]), "number": number} if self.teacher else {}

    def init_frozen(self, rng: Any, batch: Any, /) -> Any:
        return {"target": {"w": parallel.box(jnp.ones((WIDTH, WIDTH), jnp.float32), "embed", None)}} if self.teacher else {}

    def externals(self) -> tuple[External, ...]:
        return self.weights

    def stages(self) -> tuple[Stage, ...]:
        return self.curriculum

    def loss(self, params: Any, extra: Any, batch: Any, rng: Any, /, *, step: Any, train: bool, masks: Any = None) -> Output:
        target = batch["x"] @ extra["frozen"]["target"]["w"] if self.teacher else batch["y"]
        error = ((batch["x"] @ params["left"]["w"] - target) ** 2).sum(-1)
        loud = ((batch["x"] @ params["right"]["w"]) ** 2).sum(-1)
        heard, valid = (batch["heard"] > 0).astype(jnp.float32), batch["valid"].astype(jnp.float32)
        terms = {"seen": Term(self.scale * error * valid, valid), "heard": Term(loud * heard, heard, 0.5)}
        draw = jax.random.uniform(rng)
        return Output(terms=terms, metrics={"rows": Mean(valid, jnp.ones_like(valid)), "draw": Mean(draw * valid, valid)}, aux={"key": batch["key"][:, 0]})

    def update_extra(self, params: Any, extra: Any, aux: Any, /, *, step: Any) -> Any:
        assert "frozen" not in extra
        if not self.teacher:
            return extra
        teacher = jax.tree.map(lambda t, p: 0.5 * t + 0.5 * p, extra["teacher"], params["left"])
        return {"teacher": teacher, "number": jnp.full((WIDTH, WIDTH), step + 1, jnp.float32)}  # made anew, from nothing that is split


def product(params: Any, extra: Any, batch: Any, rng: Any, /, *, step: Any, train: bool) -> Output:
    """Mean of x[0] times left[0, 0] times right[0, 0]."""
    value = batch["x"][:, 0] * params["left"]["w"][0, 0] * params["right"]["w"][0, 0]
    draw = jax.random.uniform(rng) * jnp.ones_like(value)
    return Output(terms={"product": Term(value, jnp.ones_like(value))}, metrics={"draw": Mean(draw, jnp.ones_like(draw))})


@dataclasses.dataclass(frozen=True)
class Duel(Toy):
    """A critic on `right`, three times on fresh batches, then a player on `left`."""

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("critic", product, trains="right/.*", optimizer="critic", repeats=3, data="fresh"),
                Phase("player", product, trains="left/.*", optimizer="player"))


def run_config(objective: Any = None, /, **fields: Any) -> Any:
    """A config of the toy: 8 random rows a step, plain descent at rate 0.1."""
    config = configs.load("configs/tiny.py")
    config.unlock()
    config.objective = configs.plain(Toy() if objective is None else objective)
    config.data = spec(tiny.Declared, declared=FIELDS, length=32)
    config.optimizers.main = spec(tiny.Recorded, schedule=optim.Schedule(base=0.1, warmup="0", unit=0, shape="constant"))
    config.evaluators = {}
    config.update({"total": "8", "batch_size": 8, "microbatches": 1, "ema": 0.0, "mesh": {"data": 1, "fsdp": 1, "tensor": 1}})
    config.update(fields)
    return config


def batch(rows: int, /, *, seed: int = 0, heard: Any = None) -> dict[str, np.ndarray]:
    """A host batch; every row is heard unless told."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, rows, WIDTH)).astype(np.float32)
    return {"x": x, "y": y, "heard": np.ones(rows, np.int32) if heard is None else np.asarray(heard, np.int32),
            "key": np.stack([np.arange(rows), np.zeros(rows)], 1).astype(np.uint32), "row": np.arange(rows, dtype=np.int32),
            "valid": np.ones(rows, bool), "fault": np.zeros(rows, np.int32)}
