"""Supervised classification of clips: fine-tuning of a pretrained encoder, its linear probe, and training from scratch."""

import dataclasses
import types
from typing import Any

import jax

from videomae_jax import losses, supervision
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.metrics import Mean
from videomae_jax.mixing import Mixing
from videomae_jax.models import heads, vit
from videomae_jax.objectives import mae
from videomae_jax.objectives.base import Cost, External, Features, Objective, Output, Phase, Prediction
from videomae_jax.types import Array, Batch, Extra, Key, Params, row_keys

TRAINED = {"all": ".*", "head": "head/.*", "linear": "head/linear/.*"}


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
    (`head_rows`: K710 to K400, K600, K700 and back). `trains` "head" is a linear probe: the encoder runs as in evaluation and gets no gradient;
    "linear" leaves the norm of the head as it starts too.

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
        supervision.check_start(self.start, self.classes)
        if self.trains not in TRAINED:
            raise UserError(f"trains {self.trains!r}; allowed are {', '.join(TRAINED)}")
        if not 0 <= self.smoothing < 1:
            raise UserError(f"smoothing {self.smoothing}; allowed are 0 <= smoothing < 1")

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """{"encoder": {"embed", "stack"}, "head": {"norm", "linear"}} parameters."""
        return self.network.init(rng)

    @property
    def network(self) -> supervision.Network:
        """Encoder and head."""
        return supervision.Network(self.encoder, self.head)

    def externals(self) -> tuple[External, ...]:
        """The pretrained weights, if any; a decoder and what else pretraining had beside the encoder are left aside."""
        return (supervision.initial(self.pretrained, start=self.start, classes=self.classes, item=self.item),) if self.pretrained else ()

    def phases(self) -> tuple[Phase, ...]:
        """One, over the whole model, its head or the linear layer of it."""
        return (Phase("train", self.loss, trains=TRAINED[self.trains]),)

    patchify = mae.MAE.patchify  # the same check and order of values; it asks for `encoder` alone

    def prepare(self, batch: Batch, rng: Key, /, *, step: Array, train: bool) -> Batch:
        """Adds soft labels `target` f32 [B classes] and `weight` f32 [B]; in training `video` becomes erased and mixed, f32."""
        batch = dict(batch) | self.labelled(batch)
        return supervision.mixed(supervision.erased(batch, rng, erasing=self.erasing, encoder=self.encoder), rng, mixing=self.mixing) if train else batch

    def labelled(self, batch: Batch, /) -> dict[str, Array]:
        """Smoothed labels and the weights of rows before any mixing; a label beyond the head's classes makes the loss NaN."""
        return supervision.labelled(batch, classes=self.head.classes, smoothing=self.smoothing)

    def answers(self, params: Params, batch: Batch, rng: Key, /, *, train: bool) -> tuple[Array, Array, Array]:
        """Logits f32 [B classes] under dropout and drop-path in training, with the targets and weights of `labelled` or of `prepare`."""
        batch = batch if "target" in batch else dict(batch) | self.labelled(batch)
        keys = jax.random.split(rng)
        moving = train and self.trains == "all"
        tokens = self.network.tokens(params, self.patchify(batch), keys=row_keys(keys[0], batch["key"]) if moving else None)
        logits = self.network.classify(params, tokens, keys=row_keys(keys[1], batch["key"]) if train else None).logits
        return logits, batch["target"], batch["weight"]

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Any = None) -> Output:
        """Cross-entropy; metrics `top1` and `top5` in percent, against the label with the largest share of a mixed clip."""
        logits, target, weight = self.answers(params, batch, rng, train=train)
        place = losses.ranks(logits, target.argmax(-1))
        metrics = {f"top{k}": Mean(100.0 * weight * (place < k), weight) for k in (1, 5)}
        return Output(terms={"classification": losses.soft_cross_entropy(logits, target, weight=weight)}, metrics=metrics)

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Any = None) -> Prediction:
        """Logits f32 [B classes], without dropout and drop-path."""
        return Prediction(logits=self.network.classify(params, self.network.tokens(params, self.patchify(batch))).logits)

    def represent(self, params: Params, extra: Extra, batch: Batch, /, *, inputs: tuple[str, ...] | None = None, layer: int = -1) -> dict[str, Features]:
        """Raw tokens of a block. At layer -1, the last, `pooled` is what the classes are linear in: the head's norm of the mean token.

        Padding that the batch declares (`patches.present`) is attended by no token and no part of the mean.
        """
        return self.represent_layers(params, extra, batch, layers=(layer,), inputs=inputs)[layer]

    def represent_layers(self, params: Params, extra: Extra, batch: Batch, /, *, layers: tuple[int, ...],
                         inputs: tuple[str, ...] | None = None) -> dict[int, dict[str, Features]]:
        """`represent` at every layer, from one pass through the encoder."""
        if inputs not in (None, ("video",)):
            raise UserError(f"features of inputs {inputs}; allowed is ('video',)")
        found = self.network.features(params, self.patchify(batch), batch, layers=layers)
        return {layer: {"video": features} for layer, features in found.items()}

    def cost(self) -> Cost:
        """Forward multiply-adds: embedding of all patches, encoder, head."""
        return self.network.cost()
