"""Probes of a frozen encoder: many heads on the same features in one pass, each with a rate and a decay of its own."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import losses, parallel, supervision
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.metrics import Mean
from videomae_jax.models import probing, vit
from videomae_jax.objectives import mae
from videomae_jax.objectives.base import Cost, External, Features, Objective, Output, Prediction
from videomae_jax.types import Array, Batch, Extra, Key, Params

NORMS = {"final": r"(?!)", "none": r"norm/.*"}  # leaves of the encoder that a file need not have


@dataclasses.dataclass(frozen=True)
class Probe(Objective):
    """Heads on frozen tokens: `probing.Attentive` on all of them, or `probing.Linear` on their mean behind a BatchNorm without affine.

    The encoder of the run or file `weights` runs as in evaluation; its weights, in `storage`, are frozen: no part of the state, of a
    checkpoint or of a gradient ("" = noise, for tests). `norm` "final" takes the tokens behind its final norm, as pretraining leaves
    them; "none" raw ones, of fine-tuned encoders too, which have no such norm. `layers` other than () are raw tokens of those
    blocks: joined as more tokens for attentive heads, as more channels for linear ones.

    The loss is the sum of all heads' cross-entropies, so that none feels the others; `optim.Grid` gives each its rate and decay.
    `predict` shows head `chosen`; `evals.attentive` compares all, and its `with_best_head` chooses by the results of a run where `chosen`
    is 0. Linear heads normalise by the statistics of the global batch, and by running ones (momentum .1, unbiased variance) in
    evaluation, so that batches cannot be cut into micro-batches.

    Sources: linear, MAE's fork for video (LARS, 90 epochs, arXiv 2111.06377 A.1); attentive, V-JEPA 2 (arXiv 2506.09985 and its code).
    """

    encoder: vit.Encoder
    head: Any
    weights: str
    item: str = "params"
    norm: str = "final"
    layers: tuple[int, ...] = ()
    chosen: int = 0
    storage: str = "float32"
    erasing: Erasing = Erasing(probability=0.0)

    tiny = types.MappingProxyType({"weights": "", "head.count": 2, "layers": ()})

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(f"norm {self.norm!r}; allowed are {', '.join(NORMS)}")
        if any(not 0 <= layer < self.encoder.depth for layer in self.layers):
            raise UserError(f"layers {self.layers}; allowed are 0 to {self.encoder.depth - 1}, and () for the last")
        if not 0 <= self.chosen < self.head.count:
            raise UserError(f"chosen head {self.chosen} of {self.head.count}; allowed are 0 to {self.head.count - 1}")

    @property
    def linear(self) -> bool:
        """Whether heads are linear ones, behind a BatchNorm."""
        return isinstance(self.head, probing.Linear)

    @property
    def batch_coupled(self) -> bool:
        """BatchNorm couples the rows of a batch."""
        return self.linear

    @property
    def width(self) -> int:
        """Channels of what a head sees."""
        return self.encoder.width * (max(1, len(self.layers)) if self.linear else 1)

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """{"heads"} parameters, a first axis of heads in every leaf."""
        shape = (1, self.width) if self.linear else (1, 1, self.width)
        return {"heads": self.head.init(rng, jnp.zeros(shape, jnp.float32))["params"]}

    def init_extra(self, rng: Key, params: Params, batch: Batch, /) -> Extra:
        """Running mean and variance of linear heads' features."""
        if not self.linear:
            return {}
        return {"mean": parallel.box(jnp.zeros(self.width, jnp.float32), "norm"), "var": parallel.box(jnp.ones(self.width, jnp.float32), "norm")}

    def init_frozen(self, rng: Key, batch: Batch, /) -> Params:
        """{"encoder"} in `storage`."""
        made = self.encoder.init(rng, jnp.zeros((1, 1, self.encoder.values)), ids=jnp.zeros((1, 1), jnp.int32))["params"]
        return {"encoder": jax.tree.map(lambda x: x.astype(self.storage), made)}

    def externals(self) -> tuple[External, ...]:
        """The encoder; what else the file holds is left aside."""
        if not self.weights:
            return ()
        ignore = (r"(?!(embed|stack|norm)/).*", NORMS[self.norm])
        return (External(into="frozen/encoder", path=self.weights, item=self.item, rename=((r"^encoder/", ""),), fresh=(NORMS[self.norm],), ignore=ignore),)

    patchify = mae.MAE.patchify  # the same check and order of values; it asks for `encoder` alone

    def prepare(self, batch: Batch, rng: Key, /, *, step: Array, train: bool) -> Batch:
        """In training boxes of `video` become noise, where `erasing` is on."""
        return supervision.erased(batch, rng, erasing=self.erasing, encoder=self.encoder) if train else batch

    @property
    def prepares(self) -> bool:
        """Where `erasing` is on, or a class that begins from this one prepares batches its own way."""
        return self.erasing.probability > 0 or type(self).prepare is not Probe.prepare

    def tokens(self, extra: Extra, batch: Batch, /, *, blocks: tuple[int, ...]) -> tuple[Array, Array]:
        """Tokens f32 [B N D] of what `norm` says, and raw ones [K B N D] of the blocks asked for. No gradient passes."""
        x = self.patchify(batch)
        ids = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        out = self.encoder.apply({"params": extra["frozen"]["encoder"]}, x, ids=ids, keep=blocks)
        last = out.tokens if self.norm == "final" else out.last
        return jax.lax.stop_gradient((last.astype(jnp.float32), out.kept.astype(jnp.float32)))

    def seen(self, extra: Extra, batch: Batch, /) -> Array:
        """What the heads see: mean tokens f32 [B E], or tokens f32 [B N' D]."""
        last, kept = self.tokens(extra, batch, blocks=self.layers)
        found = kept if self.layers else last[None]
        if self.linear:
            return jnp.concatenate(list(found.mean(2)), axis=-1)
        return jnp.concatenate(list(found), axis=1)

    def judge(self, params: Params, extra: Extra, batch: Batch, /) -> Array:
        """Logits f32 [B heads classes] of all heads, as in evaluation."""
        x = self.seen(extra, batch)
        x = probing.normalised(x, extra["mean"], extra["var"]) if self.linear else x
        return self.head.apply({"params": params["heads"]}, x)

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Any = None) -> Output:
        """Cross-entropy, summed over heads; metrics `mean_top1` and, of head i, `top1_i` in percent. Rows without a label count nothing."""
        known = supervision.labelled(batch, classes=self.head.classes, smoothing=0.0)
        x, aux = self.seen(extra, batch), {}
        if self.linear:
            aux = probing.statistics(x, batch["valid"].astype(jnp.float32))
            now = aux if train else extra
            x = probing.normalised(x, now["mean"], now["var"])
        logits = self.head.apply({"params": params["heads"]}, x)
        each = [losses.soft_cross_entropy(logits[:, i], known["target"], weight=known["weight"]) for i in range(self.head.count)]
        right = [100.0 * known["weight"] * (losses.ranks(logits[:, i], batch["label"]) < 1) for i in range(self.head.count)]
        metrics = {f"top1_{i}": Mean(value, known["weight"]) for i, value in enumerate(right)}
        metrics["mean_top1"] = Mean(sum(right) / self.head.count, known["weight"])
        return Output(terms={"probes": losses.Term(sum(term.total for term in each), known["weight"])}, metrics=metrics, aux=aux)

    def update_extra(self, params: Params, extra: Extra, aux: Any, /, *, step: Array) -> Extra:
        """A tenth of the way to the statistics of the batch."""
        if not self.linear:
            return extra
        unbiased = aux["var"] * aux["rows"] / jnp.maximum(aux["rows"] - 1, 1)
        return {k: 0.9 * extra[k] + 0.1 * new for k, new in (("mean", aux["mean"]), ("var", unbiased))}

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Any = None) -> Prediction:
        """Logits f32 [B classes] of the chosen head."""
        return Prediction(logits=self.judge(params, extra, batch)[:, self.chosen])

    def represent(self, params: Params, extra: Extra, batch: Batch, /, *, inputs: tuple[str, ...] | None = None, layer: int = -1) -> dict[str, Features]:
        """Tokens of the frozen encoder: at layer -1 what `norm` says, else raw ones of a block; their mean is `pooled`."""
        return self.represent_layers(params, extra, batch, layers=(layer,), inputs=inputs)[layer]

    def represent_layers(self, params: Params, extra: Extra, batch: Batch, /, *, layers: tuple[int, ...],
                         inputs: tuple[str, ...] | None = None) -> dict[int, dict[str, Features]]:
        """`represent` at every layer, from one pass through the encoder."""
        if inputs not in (None, ("video",)):
            raise UserError(f"features of inputs {inputs}; allowed is ('video',)")
        blocks = tuple(layer for layer in layers if layer != -1)
        last, kept = self.tokens(extra, batch, blocks=blocks)
        found = {layer: last if layer == -1 else kept[blocks.index(layer)] for layer in layers}
        return {layer: {"video": Features(tokens=x, pooled=x.mean(1), valid=jnp.ones(x.shape[:2], bool), grid=self.encoder.grid)}
                for layer, x in found.items()}

    def cost(self) -> Cost:
        """Forward multiply-adds of the frozen encoder and of all heads; attentive ones may take more than it does, and see the tokens of all `layers`."""
        e, n = self.encoder, self.encoder.grid.tokens
        frozen = n * e.values * e.width + e.depth * mae.block_macs(n, e.width, e.hidden)
        seen = n * max(1, len(self.layers))
        each = self.head.macs(tokens=seen, width=self.width)
        return Cost(macs=float(frozen + self.head.count * each), tokens={"all": n} | ({} if self.linear or seen == n else {"heads": seen}),
                    frozen=float(frozen))
