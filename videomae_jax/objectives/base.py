"""The protocol between the trainer and a recipe.

An objective is a frozen dataclass of pure methods; it *is* the recipe. The trainer knows nothing of modalities: it sees
parameters, phases, loss terms and metrics. Loss code sees global arrays: no axis names, no psum.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from videomae_jax.losses import Term
from videomae_jax.masking import Grid, Mask
from videomae_jax.metrics import Mean
from videomae_jax.types import Array, Batch, Extra, Key, Params


@flax.struct.dataclass
class Output:
    """Result of a loss: `terms` to sum, `metrics` to log, `aux` for `update_extra` (leading axis B in every leaf)."""

    terms: dict[str, Term]
    metrics: dict[str, Mean] = flax.struct.field(default_factory=dict)
    aux: Any = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Phase:
    """One optimiser pass of a step: `loss(params, extra, batch, rng, step=, train=)` over the leaves matching `trains`.

    `trains` is a regular expression on "encoder/stack/..." paths; moments exist only for these leaves. `optimizer`
    names an entry of config.optimizers. `repeats` passes run in order on updated parameters, on the "same" batch or a
    "fresh" one each.
    """

    name: str
    loss: Callable[..., Output]
    trains: str = ".*"
    optimizer: str = "main"
    repeats: int = 1
    data: str = "same"


@flax.struct.dataclass
class Prediction:
    """`patches` f32 [B M P] predicted and `targets` f32 [B M P] true values at `masks.target`."""

    patches: Array
    targets: Array
    masks: Mask


@flax.struct.dataclass
class Features:
    """`tokens` f32 [B N D], their mean `pooled` f32 [B D] and which tokens are `valid` bool [B N]."""

    tokens: Array
    pooled: Array
    valid: Array
    grid: Grid = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds of the forward pass of one clip, and the tokens it runs through."""

    macs: float
    tokens: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Defaults of the protocol; a recipe overrides what it needs."""

    batch_coupled = False  # contrastive losses, BatchNorm projectors: accumulation would change the loss
    inert = ()  # patterns of trained leaves whose gradient is exactly 0 by construction

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """Parameters as nested dicts with boxed logical axes; `batch` holds one example of zeros."""
        raise NotImplementedError

    def init_extra(self, rng: Key, params: Params, batch: Batch, /) -> Extra:
        """State that is not trained: teacher, queue, running moments."""
        return {}

    def prepare(self, batch: Batch, rng: Key, /, *, step: Array, train: bool) -> Batch:
        """Once on the global batch, before micro-batches: mixup, swapped pairs, flattening of views."""
        return batch

    def phases(self) -> tuple[Phase, ...]:
        """Optimiser passes of one step, in order."""
        return (Phase("train", self.loss),)

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Any = None) -> Output:
        """Loss terms of a batch; `masks` overrides the recipe's own draw."""
        raise NotImplementedError

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Any = None) -> Prediction:
        """Predictions for evaluators and pictures."""
        raise NotImplementedError

    def represent(self, params: Params, extra: Extra, batch: Batch, /, *, layer: int = -1) -> dict[str, Features]:
        """Features per modality of the whole, unmasked input; deterministic."""
        raise NotImplementedError

    def update_extra(self, params: Params, extra: Extra, aux: Any, /, *, step: Array) -> Extra:
        """The next `extra`, after the update of `params`."""
        return extra

    def cost(self) -> Cost:
        """Forward cost of one clip."""
        raise NotImplementedError


def draws(phases: tuple[Phase, ...], /) -> int:
    """Batches that one step consumes: one shared by the "same" phases, one for each repeat of a "fresh" phase."""
    return max(1, int(any(p.data == "same" for p in phases)) + sum(p.repeats for p in phases if p.data == "fresh"))


def dummy(fields: Mapping[str, Any], /) -> dict[str, jax.Array]:
    """A batch of one example of zeros with the fields of a source and the bookkeeping keys of every batch."""
    shapes = {k: ((1, *f.shape), f.dtype) for k, f in fields.items()}
    bookkeeping = {"key": ((1, 2), "uint32"), "row": ((1,), "int32"), "valid": ((1,), "bool"), "fault": ((1,), "int32")}
    return {k: jnp.zeros(shape, dtype) for k, (shape, dtype) in (shapes | bookkeeping).items()}
