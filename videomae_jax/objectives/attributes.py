"""Supervised training on several yes-or-no labels of a clip."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import losses
from videomae_jax.errors import UserError
from videomae_jax.metrics import Mean
from videomae_jax.mixing import Mixing
from videomae_jax.objectives.base import External, Output
from videomae_jax.objectives.classify import Classify
from videomae_jax.types import Array, Batch, Extra, Key, Params


@dataclasses.dataclass(frozen=True)
class Attributes(Classify):
    """Classify with a logit for each of A attributes: binary cross-entropy, the mean over all answers that are known.

    The batch has `attributes` i32 [B A], 1, 0 or -1 (unknown); the classes of the head are the A attributes. MARLIN
    (arXiv 2211.06627, released code) fine-tunes and probes so. Clips are neither mixed nor labels smoothed. With `start`
    "encoder" the norm of the head starts from the last norm of the pretrained encoder, as there, and not afresh.
    """

    mixing: Mixing = Mixing(probability=0.0)
    smoothing: float = 0.0

    head_kind = "attributes"
    tiny = types.MappingProxyType({"pretrained": "", "classes": ""})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mixing.active or self.smoothing:
            raise UserError(f"mixing of probability {self.mixing.probability}, smoothing {self.smoothing}; attributes allow 0 and 0")

    def externals(self) -> tuple[External, ...]:
        """The pretrained weights, if any."""
        if not self.pretrained or self.start != "encoder":
            return super().externals()
        return (External(into="params", path=self.pretrained, rename=((r"^encoder/norm/", "head/norm/"),), fresh=(r"head/linear/.*",),
                         ignore=(r"(?!encoder/|head/norm/).*",), item=self.item),)

    def labelled(self, batch: Batch, /) -> dict[str, Array]:
        """`target` f32 [B A] and the `weight` f32 [B A] of what is known. Raises UserError for another number of attributes."""
        answers = batch["attributes"]
        if answers.shape[-1] != self.head.classes:
            raise UserError(f"the head has {self.head.classes} classes and a clip {answers.shape[-1]} attributes; set --config.objective.head.classes={answers.shape[-1]}")
        return {"target": (answers > 0).astype(jnp.float32), "weight": ((answers >= 0) & batch["valid"][:, None]).astype(jnp.float32)}

    def class_probabilities(self, logits: Array, /) -> Array:
        """f32 [B A]: that of a yes to every attribute, each for itself."""
        return jax.nn.sigmoid(logits.astype(jnp.float32))

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Any = None) -> Output:
        """Term `attributes`; metric `accuracy` is the percentage of known answers that the sign of the logit gives, if that is finite."""
        logits, target, weight = self.answers(params, batch, rng, train=train)
        right = ((logits > 0) == (target > 0)) & jnp.isfinite(logits)
        return Output(terms={"attributes": losses.binary_cross_entropy(logits, target, weight=weight)},
                      metrics={"accuracy": Mean(100.0 * weight * right, weight)})
