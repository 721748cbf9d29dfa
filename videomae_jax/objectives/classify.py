"""Supervised classification of clips: fine-tuning of a pretrained encoder, its linear probe, and training from scratch."""

import dataclasses
import types
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import losses
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.metrics import Mean
from videomae_jax.mixing import Mixing
from videomae_jax.models import heads, patches, vit
from videomae_jax.objectives import mae
from videomae_jax.objectives.base import Cost, External, Features, Objective, Output, Phase, Prediction
from videomae_jax.types import Array, Batch, Extra, Key, Params, row_keys

STARTS = {"encoder": r"head/.*", "features": r"head/linear/.*", "model": r"(?!)"}  # leaves that keep their fresh values; (?!) is none
ERASED = 2**20  # folded into the key of `prepare` for erasing; mixing folds in the numbers of its groups
TRAINED = {"all": ".*", "head": "head/.*"}


@dataclasses.dataclass(frozen=True)
class Classify(Objective):
    """All tokens of a clip through the encoder, head(mean of tokens), cross-entropy on mixed and smoothed labels.

    Source: fine-tuning of VideoMAE V2 (arXiv 2303.16727 and its released code). The encoder has no final norm of its
    own: the head norms the mean token, and that norm starts afresh, as in V2. `erasing` acts on clips, then `mixing` on the
    whole batch before it is cut into micro-batches. Rows without a label (-1) and rows mixed with one count nothing.

    `pretrained` names a run directory of any recipe with an encoder of this shape, its checkpoints, or an .npz of converted
    weights; "" trains from scratch, from the initialisers of pretraining. `item` "ema" takes its averaged weights. `start`
    "encoder" takes the encoder alone; of a run of this objective "features" takes the norm of the head too, and "model" the whole
    head, for the same classes in the same order, or for those that the map of classes in the file `classes` chooses
    (`head_rows`: K710 to K400, K600, K700 and back). `trains` "head" is a linear probe: the encoder runs as in evaluation and gets no gradient.

    Deviation: images are mixed before they are standardised instead of after, which is the same function.
    """

    encoder: vit.Encoder
    head: heads.Classifier
    mixing: Mixing = Mixing()
    erasing: Erasing = Erasing(probability=0.0)
    smoothing: float = 0.1
    pretrained: str = ""
    item: str = "params"
    start: str = "encoder"
    classes: str = ""
    trains: str = "all"

    tiny = types.MappingProxyType({"pretrained": "", "classes": "", "mixing.rows": 4})

    def __post_init__(self) -> None:
        for field, allowed in (("start", STARTS), ("trains", TRAINED)):
            if getattr(self, field) not in allowed:
                raise UserError(f"{field} {getattr(self, field)!r}; allowed are {', '.join(allowed)}")
        if self.classes and self.start != "model":
            raise UserError(f"classes {self.classes!r} maps the head of another run, which start {self.start!r} does not take; allowed is start 'model'")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing {self.smoothing}; allowed are 0 <= smoothing < 1")

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """{"encoder": {"embed", "stack"}, "head": {"norm", "linear"}} parameters."""
        keys = jax.random.split(rng)
        encoder = self.encoder.init(keys[0], jnp.zeros((1, 1, self.encoder.values)), ids=jnp.zeros((1, 1), jnp.int32))["params"]
        head = self.head.init(keys[1], jnp.zeros((1, 1, self.encoder.width)))["params"]
        return {"encoder": {k: v for k, v in encoder.items() if k != "norm"}, "head": head}

    def externals(self) -> tuple[External, ...]:
        """The pretrained weights, if any; a decoder and what else pretraining had beside the encoder are left aside."""
        if not self.pretrained:
            return ()
        fresh = STARTS[self.start]
        ignored = (r"encoder/norm/.*", r"(?!encoder/|head/).*", fresh)
        rows = ((r"head/linear/.*", self.classes),) if self.classes else ()
        return (External(into="params", path=self.pretrained, fresh=(fresh,), ignore=ignored, rows=rows, item=self.item),)

    def phases(self) -> tuple[Phase, ...]:
        """One, over the whole model or its head."""
        return (Phase("train", self.loss, trains=TRAINED[self.trains]),)

    patchify = mae.MAE.patchify  # the same check and order of values; it asks for `encoder` alone

    def prepare(self, batch: Batch, rng: Key, /, *, step: Array, train: bool) -> Batch:
        """Adds soft labels `target` f32 [B classes] and `weight` f32 [B]; in training `video` becomes erased and mixed, f32."""
        batch = dict(batch) | self.labelled(batch)
        if train and self.erasing.probability:
            keys = row_keys(jax.random.fold_in(rng, ERASED), batch["key"])
            batch["video"] = self.erasing(patches.to_unit(batch["video"]), keys, mean=self.encoder.mean, std=self.encoder.std)
        if not train or not self.mixing.active:
            return batch
        rows, _, height, width, _ = batch["video"].shape
        share = self.mixing.draw(rng, batch=rows, height=height, width=width)
        batch["video"] = self.mixing.blend(patches.to_unit(batch["video"]), share[:, None, :, :, None])
        batch["target"] = self.mixing.blend(batch["target"], share.mean((1, 2))[:, None])
        batch["weight"] = batch["weight"] * self.mixing.partners(batch["weight"], groups=len(share))
        return batch

    def labelled(self, batch: Batch, /) -> dict[str, Array]:
        """Smoothed labels and the weights of rows before any mixing; a label beyond the head's classes makes the loss NaN."""
        label = batch["label"]
        target = losses.soft_targets(label, classes=self.head.classes, smoothing=self.smoothing)
        weight = (batch["valid"] & (label >= 0)).astype(jnp.float32)
        return {"target": jnp.where((label < self.head.classes)[:, None], target, jnp.nan), "weight": weight}

    def encode(self, params: Params, x: Array, /, *, keys: Key | None, layer: int = -1, valid: Array | None = None) -> Array:
        """Raw tokens [B N D] of block `layer` (-1 = the last) for patches [B N P]; `valid` bool [B N] or None = all."""
        # The encoder module norms its last tokens as well; nobody reads them, so any norm will do.
        ids = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        variables = {"params": {**params["encoder"], "norm": params["head"]["norm"]}}
        out = self.encoder.apply(variables, x, ids=ids, keys=keys, valid=valid, keep=() if layer == -1 else (layer,))
        return out.last if layer == -1 else out.kept[0]

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Any = None) -> Output:
        """Cross-entropy; metrics `top1` and `top5` in percent, against the label with the largest share of a mixed clip."""
        batch = batch if "target" in batch else dict(batch) | self.labelled(batch)
        keys = jax.random.split(rng)
        moving = train and self.trains == "all"
        tokens = self.encode(params, self.patchify(batch), keys=row_keys(keys[0], batch["key"]) if moving else None)
        logits = self.head.apply({"params": params["head"]}, tokens, keys=row_keys(keys[1], batch["key"]) if train else None).logits
        target, weight = batch["target"], batch["weight"]
        place = losses.ranks(logits, target.argmax(-1))
        metrics = {f"top{k}": Mean(100.0 * weight * (place < k), weight) for k in (1, 5)}
        return Output(terms={"classification": losses.soft_cross_entropy(logits, target, weight=weight)}, metrics=metrics)

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Any = None) -> Prediction:
        """Logits f32 [B classes], without dropout and drop-path."""
        tokens = self.encode(params, self.patchify(batch), keys=None)
        return Prediction(logits=self.head.apply({"params": params["head"]}, tokens).logits)

    def represent(self, params: Params, extra: Extra, batch: Batch, /, *, inputs: tuple[str, ...] | None = None, layer: int = -1) -> dict[str, Features]:
        """Raw tokens of a block. At layer -1, the last, `pooled` is what the classes are linear in: the head's norm of the mean token.

        Padding that the batch declares (`patches.present`) is attended by no token and no part of the mean.
        """
        if inputs not in (None, ("video",)):
            raise UserError(f"features of inputs {inputs}; allowed is ('video',)")
        x = self.patchify(batch)
        valid = patches.present(batch, grid=self.encoder.grid, patch=self.encoder.patch)
        tokens = self.encode(params, x, keys=None, layer=layer, valid=valid).astype(jnp.float32)
        pooled = patches.mean(tokens, valid)
        if layer == -1:
            pooled = self.head.apply({"params": params["head"]}, pooled[:, None]).pooled
        return {"video": Features(tokens=tokens, pooled=pooled, grid=self.encoder.grid,
                                  valid=jnp.ones(tokens.shape[:2], bool) if valid is None else valid)}

    def cost(self) -> Cost:
        """Forward multiply-adds: embedding of all patches, encoder, head."""
        e, n = self.encoder, self.encoder.grid.tokens
        macs = n * e.values * e.width + e.depth * mae.block_macs(n, e.width, e.hidden) + e.width * self.head.classes
        return Cost(macs=float(macs), tokens={"all": n})
