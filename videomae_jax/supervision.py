"""What supervised recipes share: encoder and head as one network, where its weights come from, erased and mixed batches."""

import dataclasses

import jax
import jax.numpy as jnp

from videomae_jax import losses
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.mixing import Mixing
from videomae_jax.models import heads, patches, vit
from videomae_jax.objectives.base import Cost, External, Features
from videomae_jax.types import Array, Batch, Key, Params, row_keys

STARTS = {"encoder": r"head/.*", "features": r"head/linear/.*", "model": r"(?!)"}  # leaves that keep their fresh values; (?!) is none
ERASED = 2**20  # folded into the key of a batch for erasing; mixing folds in the numbers of its groups


@dataclasses.dataclass(frozen=True)
class Network:
    """V2's classifier: all tokens of a clip through the encoder, the head on their mean; the encoder has no final norm of its own."""

    encoder: vit.Encoder
    head: heads.Classifier

    def init(self, rng: Key, /) -> Params:
        """{"encoder": {"embed", "stack"}, "head": {"norm", "linear"}} parameters."""
        keys = jax.random.split(rng)
        encoder = self.encoder.init(keys[0], jnp.zeros((1, 1, self.encoder.values)), ids=jnp.zeros((1, 1), jnp.int32))["params"]
        head = self.head.init(keys[1], jnp.zeros((1, 1, self.encoder.width)))["params"]
        return {"encoder": {k: v for k, v in encoder.items() if k != "norm"}, "head": head}

    def tokens(self, params: Params, x: Array, /, *, keys: Key | None = None) -> Array:
        """Raw tokens [B N D] of the last block for patches [B N P]."""
        return self.encoded(params, x, keys=keys).last

    def encoded(self, params: Params, x: Array, /, *, keys: Key | None = None, valid: Array | None = None, blocks: tuple[int, ...] = ()) -> vit.Encoded:
        """What the encoder gives of patches [B N P], with the raw tokens of `blocks`; `valid` bool [B N] or None = all."""
        # The encoder module norms its last tokens as well; nobody reads them, so any norm will do.
        ids = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        variables = {"params": {**params["encoder"], "norm": params["head"]["norm"]}}
        return self.encoder.apply(variables, x, ids=ids, keys=keys, valid=valid, keep=blocks)

    def classify(self, params: Params, tokens: Array, /, *, keys: Key | None = None) -> heads.Classified:
        """The head on raw tokens [B N D]; `keys` [B] turn its dropout on."""
        return self.head.apply({"params": params["head"]}, tokens, keys=keys)

    def features(self, params: Params, x: Array, batch: Batch, /, *, layers: tuple[int, ...]) -> dict[int, Features]:
        """Raw tokens of every block asked for, from one pass through the encoder for patches [B N P].

        At layer -1 `pooled` is what the classes are linear in: the head's norm of the mean token. Padding that the batch declares
        (`patches.present`) is attended by no token and no part of the mean.
        """
        valid = patches.present(batch, grid=self.encoder.grid, patch=self.encoder.patch)
        blocks = tuple(layer for layer in layers if layer != -1)
        out, found = self.encoded(params, x, valid=valid, blocks=blocks), {}
        for layer in layers:
            tokens = (out.last if layer == -1 else out.kept[blocks.index(layer)]).astype(jnp.float32)
            pooled = patches.mean(tokens, valid)
            if layer == -1:
                pooled = self.classify(params, pooled[:, None]).pooled
            real = jnp.ones(tokens.shape[:2], bool) if valid is None else valid
            found[layer] = Features(tokens=tokens, pooled=pooled, valid=real, grid=self.encoder.grid)
        return found

    def cost(self) -> Cost:
        """Forward multiply-adds: embedding of all patches, encoder, head."""
        e, n = self.encoder, self.encoder.grid.tokens
        embedding = n * e.values * e.width
        macs = embedding + e.depth * (n * (4 * e.width + 2 * e.hidden) * e.width + 2 * n * n * e.width) + e.width * self.head.classes
        return Cost(macs=float(macs), tokens={"all": n}, leaves=float(embedding))


def initial(path: str, /, *, into: str = "params", start: str, classes: str = "", item: str = "params") -> External:
    """The weights of a `Network` from a file: what `start` (STARTS) takes of its head, by the map of classes in the file `classes` ("" = as it is).

    A decoder, and what else pretraining had beside the encoder, is left aside.
    """
    fresh = STARTS[start]
    ignored = (r"encoder/norm/.*", r"(?!encoder/|head/).*", fresh)
    return External(into=into, path=path, fresh=(fresh,), ignore=ignored, rows=((r"head/linear/.*", classes),) if start == "model" else (), item=item)


def check_start(start: str, classes: str, /) -> None:
    """Raises UserError for an unknown start, or a map of classes that it does not use."""
    if start not in STARTS:
        raise UserError(f"start {start!r}; allowed are {', '.join(STARTS)}")
    if classes and start != "model":
        raise UserError(f"classes {classes!r} maps the head of another run, which start {start!r} does not take; allowed is start 'model'")


def labelled(batch: Batch, /, *, classes: int, smoothing: float) -> dict[str, Array]:
    """Smoothed labels `target` f32 [B classes] and the `weight` f32 [B] of rows; a label beyond the classes makes a loss NaN."""
    label = batch["label"]
    target = losses.soft_targets(label, classes=classes, smoothing=smoothing)
    weight = (batch["valid"] & (label >= 0)).astype(jnp.float32)
    return {"target": jnp.where((label < classes)[:, None], target, jnp.nan), "weight": weight}


def erased(batch: Batch, rng: Key, /, *, erasing: Erasing, encoder: vit.Encoder) -> Batch:
    """The batch with `video` f32 in which boxes are noise in the statistics of the encoder, or of ImageNet for one that takes pixels as they are."""
    if not erasing.probability:
        return batch
    keys = row_keys(jax.random.fold_in(rng, ERASED), batch["key"])
    mean, std = getattr(encoder, "mean", patches.IMAGENET_MEAN), getattr(encoder, "std", patches.IMAGENET_STD)
    return dict(batch) | {"video": erasing(patches.to_unit(batch["video"]), keys, mean=mean, std=std)}


def mixed(batch: Batch, rng: Key, /, *, mixing: Mixing, keys: tuple[str, ...] = ("target",)) -> Batch:
    """The batch with `video` f32 blended by pixel, `keys` [B ...] by the same shares, and `weight` 0 where that of a partner with a share is."""
    if not mixing.active:
        return batch
    rows, _, height, width, _ = batch["video"].shape
    share = mixing.draw(rng, batch=rows, height=height, width=width)
    whole = share.mean((1, 2))
    batch = dict(batch) | {"video": mixing.blend(patches.to_unit(batch["video"]), share[:, None, :, :, None])}
    batch |= {k: mixing.blend(batch[k], whole.reshape(-1, *(1,) * (batch[k].ndim - 1))) for k in keys}
    shared = jnp.repeat((share < 1).any((1, 2)), rows // len(share))
    return batch | {"weight": batch["weight"] * jnp.where(shared, mixing.partners(batch["weight"], groups=len(share)), 1)}


def divergence(teacher: Array, student: Array, /, *, temperature: float, weight: Array) -> losses.Term:
    """temperature^2 x KL(p || q) of p, q = softmax(logits [B classes] / temperature), weighted by f32 [B]; float32.

    The square keeps the size of the gradient when the temperature changes (arXiv 1503.02531).
    """
    p, q = (jax.nn.log_softmax(x.astype(jnp.float32) / temperature) for x in (teacher, student))
    return losses.Term(total=temperature**2 * jnp.sum(jnp.exp(p) * (p - q), axis=-1) * weight, weight=weight)
