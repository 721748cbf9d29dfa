"""Distillation of a fine-tuned teacher into a smaller student: both see the same mixed clip, the student takes over its logits."""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import losses, supervision
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.metrics import Mean
from videomae_jax.mixing import Mixing
from videomae_jax.models import heads, patches, vit
from videomae_jax.objectives import mae
from videomae_jax.objectives.base import Cost, External, Features, Objective, Output, Prediction
from videomae_jax.types import Array, Batch, Extra, Key, Params, row_keys


@dataclasses.dataclass(frozen=True)
class Distill(Objective):
    """KL(teacher || student) of softmax(logits / temperature), times its square, on the same views with mixup: function matching.

    VideoMAE V2 distils ViT-g, fine-tuned on Kinetics-710, into ViT-S and ViT-B that were pretrained and fine-tuned there
    themselves, and aligns logits (arXiv 2303.16727; its code is not released). Everything else follows "a good teacher is patient
    and consistent" (arXiv 2106.05237): consistent crops and mixup, a very long schedule, no labels.

    Deviations, for what neither the paper nor its authors tell: the temperature; whether labels, RandAugment and erasing take part
    (`labels` is the coefficient of their cross-entropy, 0 = none); number of epochs and learning rate (the configs). `matching` is the
    coefficient of the KL: 0 beside labels of 1 trains the same student on labels alone, for comparison.

    The teacher, `teacher` with `teacher_head` from the run or file `weights`, runs as in evaluation, and its weights, in `storage`, are
    frozen: no part of the state, of a checkpoint, or of a gradient. Its classes, and the student's, are those of the
    data in their order (`head_rows.check`). Rows without a label count for the KL; data that count other classes have none of its
    labels, and `labels` above 0 refuses them. The student starts from `pretrained` as in fine-tuning
    (`start`, `classes`, `item`).
    """

    encoder: vit.Encoder
    head: heads.Classifier
    teacher: vit.Encoder
    teacher_head: heads.Classifier
    weights: str
    temperature: float = 1.0
    matching: float = 1.0
    labels: float = 0.0
    smoothing: float = 0.1
    mixing: Mixing = Mixing()
    erasing: Erasing = Erasing(probability=0.0)
    storage: str = "bfloat16"
    pretrained: str = ""
    item: str = "params"
    start: str = "model"
    classes: str = ""

    tiny = types.MappingProxyType({"weights": "", "pretrained": "", "classes": "", "mixing.rows": 4, "labels": 0.5,
                                   "head.classes": 2, "teacher_head.classes": 2})

    def __post_init__(self) -> None:
        supervision.check_start(self.start, self.classes)
        if self.temperature <= 0:
            raise UserError(f"temperature {self.temperature}; allowed are temperatures above 0")
        if min(self.matching, self.labels) < 0 or self.matching + self.labels == 0:
            raise UserError(f"matching {self.matching}, labels {self.labels}; allowed are coefficients of 0 and more, not both 0")
        if self.head.classes != self.teacher_head.classes:
            raise UserError(f"the student's head has {self.head.classes} classes and the teacher's {self.teacher_head.classes}; they must be the same classes")
        a, b = self.encoder, self.teacher
        if (a.frames, a.size, a.channels) != (b.frames, b.size, b.channels):
            raise UserError(f"the student sees {a.frames} frames of {a.size} x {a.size} x {a.channels} and the teacher {b.frames} of "
                            f"{b.size} x {b.size} x {b.channels}; both see the same clip")

    @property
    def network(self) -> supervision.Network:
        """The student."""
        return supervision.Network(self.encoder, self.head)

    @property
    def taught_by(self) -> supervision.Network:
        """The teacher."""
        return supervision.Network(self.teacher, self.teacher_head)

    training_only = ("teacher",)

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """The student: {"encoder", "head"} parameters."""
        return self.network.init(rng)

    def init_frozen(self, rng: Key, batch: Batch, /) -> Params:
        """{"teacher": {"encoder", "head"}} in `storage`; noise where no file is named, for tests."""
        return {"teacher": jax.tree.map(lambda x: x.astype(self.storage), self.taught_by.init(rng))}

    def externals(self) -> tuple[External, ...]:
        """The teacher, and the student's own pretraining."""
        teacher = (supervision.initial(self.weights, into="frozen/teacher", start="model"),) if self.weights else ()
        student = (supervision.initial(self.pretrained, start=self.start, classes=self.classes, item=self.item),) if self.pretrained else ()
        return teacher + student

    def check_labels(self, classes: Sequence[str], /) -> None:
        """Raises UserError where `labels` asks for those of data that count other classes; without any the KL alone counts."""
        if self.labels and classes and self.ignores_labels(classes):
            raise UserError(f"the head has {self.head.classes} classes and the data {len(classes)} ({', '.join(classes[:6])}{', ...' * (len(classes) > 6)}), whose labels "
                            f"say nothing of them; allowed are data with the classes of the head, and objective.labels=0, which is {self.labels:g}")

    def ignores_labels(self, classes: Sequence[str], /) -> bool:
        """Where the data count other classes than the head: accuracies by their labels would be of unrelated names."""
        return len(classes) != self.head.classes

    patchify = mae.MAE.patchify  # the same check and order of values; it asks for `encoder` alone

    def prepare(self, batch: Batch, rng: Key, /, *, step: Array, train: bool) -> Batch:
        """Adds `target`, `weight` (0 without a label) and `whole` f32 [B] (0 for padding); in training `video` becomes erased and mixed."""
        batch = dict(batch) | supervision.labelled(batch, classes=self.head.classes, smoothing=self.smoothing)
        batch["whole"] = batch["valid"].astype(jnp.float32)
        if not train:
            return batch
        return supervision.mixed(supervision.erased(batch, rng, erasing=self.erasing, encoder=self.encoder), rng, mixing=self.mixing)

    def teach(self, extra: Extra, batch: Batch, /) -> Array:
        """The teacher's logits f32 [B classes], without a gradient."""
        x = patches.patchify(patches.to_unit(batch["video"]), patch=self.teacher.patch)
        weights = extra["frozen"]["teacher"]
        return jax.lax.stop_gradient(self.taught_by.classify(weights, self.taught_by.tokens(weights, x)).logits.astype(jnp.float32))

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Any = None) -> Output:
        """KL, and cross-entropy where `labels` is set; metrics in percent: `top1`, `agreement` (same first class), `teacher_top1`."""
        batch = batch if "target" in batch else self.prepare(batch, rng, step=step, train=False)
        keys = jax.random.split(rng)
        tokens = self.network.tokens(params, self.patchify(batch), keys=row_keys(keys[0], batch["key"]) if train else None)
        logits = self.network.classify(params, tokens, keys=row_keys(keys[1], batch["key"]) if train else None).logits
        taught = self.teach(extra, batch)
        distance = supervision.divergence(taught, logits, temperature=self.temperature, weight=batch["whole"])
        terms = {"distillation": distance.replace(coefficient=self.matching)}
        if self.labels:
            terms["classification"] = losses.soft_cross_entropy(logits, batch["target"], weight=batch["weight"], coefficient=self.labels)
        label, weight = batch["target"].argmax(-1), batch["weight"]
        metrics = {"top1": Mean(100.0 * weight * (losses.ranks(logits, label) < 1), weight),
                   "teacher_top1": Mean(100.0 * weight * (losses.ranks(taught, label) < 1), weight),
                   "agreement": Mean(100.0 * batch["whole"] * losses.agree(logits, taught), batch["whole"])}
        return Output(terms=terms, metrics=metrics)

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Any = None) -> Prediction:
        """The student's logits f32 [B classes]."""
        return Prediction(logits=self.network.classify(params, self.network.tokens(params, self.patchify(batch))).logits)

    def represent(self, params: Params, extra: Extra, batch: Batch, /, *, inputs: tuple[str, ...] | None = None, layer: int = -1) -> dict[str, Features]:
        """Raw tokens of a block of the student; `pooled` is what its classes are linear in at layer -1, else the mean token."""
        return self.represent_layers(params, extra, batch, layers=(layer,), inputs=inputs)[layer]

    def represent_layers(self, params: Params, extra: Extra, batch: Batch, /, *, layers: tuple[int, ...],
                         inputs: tuple[str, ...] | None = None) -> dict[int, dict[str, Features]]:
        """`represent` at every layer, from one pass through the encoder."""
        if inputs not in (None, ("video",)):
            raise UserError(f"features of inputs {inputs}; allowed is ('video',)")
        found = self.network.features(params, self.patchify(batch), batch, layers=layers)
        return {layer: {"video": features} for layer, features in found.items()}

    def cost(self) -> Cost:
        """Forward multiply-adds of student and teacher; the teacher is frozen. Tokens are the student's."""
        student, teacher = self.network.cost(), self.taught_by.cost()
        return Cost(macs=student.macs + teacher.macs, tokens=student.tokens, frozen=teacher.macs, unused=teacher.macs, leaves=student.leaves)
