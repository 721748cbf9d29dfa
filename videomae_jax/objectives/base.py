"""The protocol between the trainer and a recipe.

An objective is a frozen dataclass of pure methods; it *is* the recipe. The trainer knows nothing of modalities: it sees
parameters, phases, loss terms and metrics. Loss code sees global arrays: no axis names, no psum.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.losses import Term
from videomae_jax.masking import Grid, Mask
from videomae_jax.metrics import Mean
from videomae_jax.types import Array, Batch, Extra, Key, Params


@flax.struct.dataclass
class Output:
    """Result of a loss: `terms` to sum, `metrics` to log, `aux` for `update_extra`.

    Every leaf of `aux` has the batch's rows first, so that micro-batches join in row order; only an objective with
    `batch_coupled` may return others (BatchNorm statistics).
    """

    terms: dict[str, Term]
    metrics: dict[str, Mean] = flax.struct.field(default_factory=dict)
    aux: Any = flax.struct.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Phase:
    """One optimiser pass of a step: `loss(params, extra, batch, rng, step=, train=)` over the leaves matching `trains`.

    `trains` is a regular expression on "encoder/stack/..." paths; moments exist only for these leaves. `optimizer`
    names an entry of config.optimizers. `repeats` passes run in order on updated parameters, on the "same" batch or a
    "fresh" one each. Metrics of a phase named "train" are logged without a prefix, others as "<name>/<metric>"; of
    several repeats the last is logged.
    """

    name: str
    loss: Callable[..., Output]
    trains: str = ".*"
    optimizer: str = "main"
    repeats: int = 1
    data: str = "same"

    def __post_init__(self) -> None:
        if self.data not in ("same", "fresh"):
            raise UserError(f"phase {self.name!r} wants data {self.data!r}; allowed are 'same' and 'fresh'")
        if self.repeats < 1:
            raise UserError(f"phase {self.name!r} has repeats={self.repeats}; allowed are 1 and more")


@dataclasses.dataclass(frozen=True)
class External:
    """Weights from a file: initial ones `into` "params" or "params/encoder", or "frozen/teacher", which no step changes.

    `path` is a run directory or its checkpoints (the newest), one of them (RUN/checkpoints/00000100), or an .npz of arrays named "a/b/c".
    Source paths are rewritten by the (pattern, replacement) pairs of `rename`; then each leaf below `into` comes from the source or matches `fresh`, and
    each leaf of the source is used or matches `ignore` (`transfer.transfer`; patterns match paths below `into`).
    `rows` holds (pattern, file) of leaves whose classes, the last axis, are chosen by a map of classes (`head_rows`), "" = taken as
    they are, for data with the same ones. `item` "ema" takes the averaged weights of a run. `label` says whose weights they are: the published
    ones ("real"), those of a small part trained here ("small"), exact truth ("oracle") or seeded noise for tests ("stub").
    """

    into: str
    path: str
    rename: tuple[tuple[str, str], ...] = ()
    fresh: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    rows: tuple[tuple[str, str], ...] = ()
    item: str = "params"
    label: str = "real"

    def __post_init__(self) -> None:
        if self.into.split("/")[0] not in ("params", "frozen"):
            raise UserError(f"external into {self.into!r}; allowed are 'params', 'frozen' and paths below them")
        if self.label not in ("real", "small", "oracle", "stub"):
            raise UserError(f"external label {self.label!r}; allowed are 'real', 'small', 'oracle' and 'stub'")
        if self.item not in ("params", "ema"):
            raise UserError(f"external item {self.item!r}; allowed are 'params' and 'ema'")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Part of a static curriculum: `objective` replaces the recipe until the duration `until` ("25%", "10ep", "1000")."""

    until: str
    objective: "Objective"


@flax.struct.dataclass
class Prediction:
    """What an objective predicts; None marks what it has not.

    `patches` f32 [B M P] predicted and `targets` f32 [B M P] true values at `masks.target`; `logits` f32 [B C] of a
    classifier.
    """

    patches: Array | None = None
    targets: Array | None = None
    masks: Mask | None = None
    logits: Array | None = None


@flax.struct.dataclass
class Features:
    """`tokens` f32 [B N D], their mean `pooled` f32 [B D] and which tokens are `valid` bool [B N]."""

    tokens: Array
    pooled: Array
    valid: Array
    grid: Grid = flax.struct.field(pytree_node=False)


@dataclasses.dataclass(frozen=True)
class Cost:
    """Multiply-adds of the forward pass of one clip, the tokens it runs through, and the multiply-adds of `frozen` parts among them.

    `unused` are those that only training needs, such as a teacher's; `leaves` those of trained products whose input needs no gradient,
    such as the embedding of patches.
    """

    macs: float
    tokens: Mapping[str, int]
    frozen: float = 0.0
    unused: float = 0.0
    leaves: float = 0.0

    @property
    def test_flops(self) -> float:
        """FLOPs of a prediction for one clip."""
        return 2 * (self.macs - self.unused)

    @property
    def train_flops(self) -> float:
        """FLOPs of a training step for one clip: two a multiply-add; the backward pass takes twice the forward pass, once of leaves, none of frozen parts."""
        return 6 * (self.macs - self.frozen) - 2 * self.leaves + 2 * self.frozen


@dataclasses.dataclass(frozen=True)
class Objective:
    """Defaults of the protocol; a recipe overrides what it needs.

    Rows of a batch that belong together (views of a clip, pairs) lie within one row after `prepare`, as [B K ...]:
    micro-batches keep rows whole, but not neighbours together.
    """

    training_only = ()  # parts of the frozen weights that no method but `loss` reads, such as a teacher
    batch_coupled = False  # contrastive losses, BatchNorm projectors: accumulation would change the loss
    head_kind = "classes"  # of the names that a source has for the outputs of the head, in their order (`sources.names`)
    inert = ()  # patterns of trained leaves whose gradient is exactly 0 by construction
    tiny = types.MappingProxyType({})  # {"field.path": value}: what the contract test's rules for shrinking a config do not guess

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """Parameters as nested dicts with boxed logical axes; `batch` holds one example of zeros."""
        raise NotImplementedError

    def init_extra(self, rng: Key, params: Params, batch: Batch, /) -> Extra:
        """State that is not trained: teacher, queue, running moments."""
        return {}

    def init_frozen(self, rng: Key, batch: Batch, /) -> Params:
        """Weights that no step changes and no checkpoint holds, boxed like `init`; the other methods see them as extra["frozen"]."""
        return {}

    def externals(self) -> tuple[External, ...]:
        """Files that replace what `init` and `init_frozen` made."""
        return ()

    def stages(self) -> tuple[Stage, ...]:
        """Static curricula: objectives in force before this one, in order; parameters, phases and metrics are the same."""
        return ()

    def check_labels(self, classes: Sequence[str], /) -> None:
        """Raises UserError where the loss needs labels, and those of data with these `classes` say nothing of what the head answers."""

    def ignores_labels(self, classes: Sequence[str], /) -> bool:
        """Whether labels of data with these `classes` say nothing of what the head answers, so that a training step sees none (-1)."""
        return False

    def prepare(self, batch: Batch, rng: Key, /, *, step: Array, train: bool) -> Batch:
        """Once on the global batch, before micro-batches: mixup, swapped pairs, flattening of views."""
        return batch

    @property
    def prepares(self) -> bool:
        """Whether `prepare` changes any batch of training; where it does not, micro-batches do without it and cut their clips one after the other."""
        return type(self).prepare is not Objective.prepare

    def phases(self) -> tuple[Phase, ...]:
        """Optimiser passes of one step, in order."""
        return (Phase("train", self.loss),)

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Any = None) -> Output:
        """Loss terms of a batch; `masks` overrides the recipe's own draw."""
        raise NotImplementedError

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Any = None) -> Prediction:
        """Predictions for evaluators and pictures."""
        raise NotImplementedError

    def class_probabilities(self, logits: Array, /) -> Array:
        """f32 [B C] of the `logits` [B C] that `predict` gives: one class of C is right."""
        return jax.nn.softmax(logits.astype(jnp.float32), -1)

    def represent(self, params: Params, extra: Extra, batch: Batch, /, *, inputs: tuple[str, ...] | None = None, layer: int = -1) -> dict[str, Features]:
        """Features per modality of the whole, unmasked input; deterministic. `inputs` names the modalities fed (None = all)."""
        raise NotImplementedError

    def represent_layers(self, params: Params, extra: Extra, batch: Batch, /, *, layers: tuple[int, ...],
                         inputs: tuple[str, ...] | None = None) -> dict[int, dict[str, Features]]:
        """{layer: what `represent` gives}. A recipe whose encoder returns several blocks overrides this by a single pass through it."""
        return {layer: self.represent(params, extra, batch, inputs=inputs, layer=layer) for layer in layers}

    def update_extra(self, params: Params, extra: Extra, aux: Any, /, *, step: Array) -> Extra:
        """The next `extra`, after every pass of every phase has updated `params`; `extra` comes without the frozen weights.

        With several phases `aux` tells the passes apart: that of a phase which returns none is {}.
        """
        return extra

    def cost(self) -> Cost:
        """Forward cost of one clip."""
        raise NotImplementedError


def check_phases(phases: tuple[Phase, ...], /) -> None:
    """Raises UserError when two phases share a name, and so an optimiser state."""
    names = [p.name for p in phases]
    if len(set(names)) != len(names) or not names:
        raise UserError(f"phases are named {', '.join(names) or '(none)'}; there is at least one, and names are distinct")


def with_frozen(extra: Extra, frozen: Params, /) -> Extra:
    """`extra` as the methods of an objective see it."""
    return {**extra, "frozen": frozen} if frozen else extra


def draws(phases: tuple[Phase, ...], /) -> int:
    """Batches that one step consumes: one shared by the "same" phases, one for each repeat of a "fresh" phase."""
    return max(1, int(any(p.data == "same" for p in phases)) + sum(p.repeats for p in phases if p.data == "fresh"))


def dummy(fields: Mapping[str, Any], /) -> dict[str, jax.Array]:
    """A batch of one example of zeros with the fields of a source and the bookkeeping keys of every batch."""
    shapes = {k: ((1, *f.shape), f.dtype) for k, f in fields.items()}
    bookkeeping = {"key": ((1, 2), "uint32"), "row": ((1,), "int32"), "valid": ((1,), "bool"), "fault": ((1,), "int32")}
    return {k: jnp.zeros(shape, dtype) for k, (shape, dtype) in (shapes | bookkeeping).items()}


def answering(objective: Objective, /) -> list[External]:
    """The frozen weights that its answers need."""
    names = [(e, *e.into.split("/")) for e in objective.externals()]
    return [e for e, root, *rest in names if root == "frozen" and rest[:1] not in [[name] for name in objective.training_only]]
