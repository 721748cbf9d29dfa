"""AdaMAE: a network learns which tokens the encoder should see."""

import dataclasses
import types

import jax
import jax.numpy as jnp

from videomae_jax import losses, masking, reinforce
from videomae_jax.errors import UserError
from videomae_jax.masking import Layout, Mask
from videomae_jax.metrics import Mean
from videomae_jax.models.sampler import Sampler, coverage, embed
from videomae_jax.objectives.base import Cost, Output, Prediction
from videomae_jax.objectives.mae import MAE, block_macs
from videomae_jax.types import Array, Batch, Extra, Key, Params, row_keys


@dataclasses.dataclass(frozen=True)
class AdaMAE(MAE):
    """MAE whose visible tokens are drawn from a learned distribution p over all tokens of a clip.

    Source: AdaMAE (arXiv 2211.09120) and its released code. The sampler reads the embeddings of all tokens; V of them are drawn
    without replacement (Gumbel top-k of the logits, the law of torch.multinomial), all others are decoded. The sampling
    loss (`reinforce.sampling`, times `coefficient`) gets the reconstruction errors as constants and nothing passes through
    the draw: it alone trains the sampler, reconstruction alone trains the encoder's blocks and the decoder, and the tubelet
    embedding, which the code does not detach, gets both. `score` "log" is the code's, "probability" the paper's formula.

    The ratio is that of `encoder_mask`, whose own uniform draw `masks` is what a run without sampler sees: losses under the
    learned mask compare with nothing, so score both under it. Deviation: log p is not clamped at float32's epsilon. Where
    the batch has `parts` u8 [B T H W] (0 = background), metric `object_ratio` is p on objects over p beside them.
    """

    encoder_mask: masking.Random = masking.Random(ratio=0.95, layout="token", truncate="visible")
    decoder_mask: masking.Hidden = masking.Hidden()
    sampler: Sampler = Sampler()
    coefficient: float = 1e-4
    score: str = "log"

    # One visible token would leave queries without a gradient; plain descent at 1e-4 would move scales by less than their last bit.
    tiny = types.MappingProxyType({"encoder_mask.ratio": 0.75, "coefficient": 1.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.encoder_mask.layout != Layout.TOKEN.value or not isinstance(self.decoder_mask, masking.Hidden):
            raise UserError(f"encoder mask of layout {self.encoder_mask.layout!r}, decoder mask {type(self.decoder_mask).__name__}; "
                            "allowed are 'token' and Hidden: the learned draw takes tokens anywhere, and all others are decoded")
        if self.score not in reinforce.SCORES:
            raise UserError(f"score {self.score!r}; allowed are {', '.join(reinforce.SCORES)}")

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """{"encoder", "decoder", "sampler"} parameters."""
        params = super().init(rng, batch)
        tokens = jnp.zeros((1, self.encoder.grid.tokens, self.encoder.width))
        return params | {"sampler": self.sampler.init(jax.random.fold_in(rng, 2), tokens)["params"]}

    def logits(self, params: Params, x: Array, /, *, keys: Key | None) -> Array:
        """The logits f32 [B N] of p for patches [B N P]; `keys` [B] turn the sampler's dropout on."""
        return self.sampler.apply({"params": params["sampler"]}, embed(self.encoder, params["encoder"], x), keys=keys)

    def draw(self, logits: Array, keys: Key, /) -> Mask:
        """A mask drawn from softmax(logits [B N]); the draw has no gradient."""
        grid = self.encoder.grid
        keep = masking.kept(self.encoder_mask.ratio, of=grid.tokens, truncate=self.encoder_mask.truncate)
        scores = jax.lax.stop_gradient(logits).reshape(-1, grid.t, grid.slice)
        visible = masking.select(keys, scores, keep=keep, layout=Layout.TOKEN)
        target = masking.complement(visible, tokens=grid.tokens)
        # Written as constants: accumulation counts weights in a pass of its own, which should not need the sampler.
        return Mask(visible=visible, target=target, weight=jnp.ones(target.shape, jnp.float32), visible_valid=jnp.ones(visible.shape, bool))

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Mask | None = None) -> Output:
        """Terms `reconstruction` and `sampling`; metrics also `entropy` of p (1 = uniform) and its `correlation` with the error."""
        draws, drops, dropouts = (row_keys(key, batch["key"]) for key in jax.random.split(rng, 3))
        x = self.patchify(batch)
        logits = self.logits(params, x, keys=dropouts if train else None)
        masks = self.draw(logits, draws) if masks is None else masks
        predicted = self.forward(params, x, masks, keys=drops if train else None)
        target = jax.lax.stop_gradient(self.targets(x, masks))
        weight = masks.weight * batch["valid"][:, None]
        reconstruction = losses.masked_mse(predicted, target, weight=weight)
        sampling = reinforce.sampling(logits, reconstruction.total, ids=masks.target, weight=weight, coefficient=self.coefficient, score=self.score)
        zero = losses.masked_mse(jnp.zeros_like(target), target, weight=weight)
        metrics = {"loss_zero": Mean(zero.total, zero.weight)} | self.judge(logits, reconstruction.total, batch, ids=masks.target, weight=weight)
        return Output(terms={"reconstruction": reconstruction, "sampling": sampling}, metrics=metrics)

    def judge(self, logits: Array, error: Array, batch: Batch, /, *, ids: Array, weight: Array) -> dict[str, Mean]:
        """What p prefers, as means over valid clips."""
        logits, valid = jax.lax.stop_gradient(logits), batch["valid"].astype(jnp.float32)
        p = jax.nn.softmax(logits, axis=-1)
        agreement = reinforce.correlation(masking.take(p, ids=ids), jax.lax.stop_gradient(error), weight=weight)
        found = {"entropy": Mean(reinforce.entropy(logits) * valid, valid), "correlation": Mean(agreement * valid, valid)}
        if "parts" in batch:
            ratio, defined = reinforce.preference(p, coverage(batch["parts"], patch=self.encoder.patch))
            found["object_ratio"] = Mean(ratio * valid, defined * valid)
        return found

    def probabilities(self, params: Params, batch: Batch, /) -> Array:
        """p f32 [B N] of every token, without dropout."""
        return jax.nn.softmax(self.logits(params, self.patchify(batch), keys=None), axis=-1)

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Mask | None = None) -> Prediction:
        """Predicted and true targets at the hidden tokens; without `masks` those of the learned draw."""
        if masks is None:
            masks = self.draw(self.logits(params, self.patchify(batch), keys=None), row_keys(jax.random.split(rng, 3)[0], batch["key"]))
        return super().predict(params, extra, batch, rng, masks=masks)

    def cost(self) -> Cost:
        """Forward multiply-adds of MAE and of the sampler, which embeds all tokens and attends over them."""
        base, e, n = super().cost(), self.encoder, self.encoder.grid.tokens
        embedding = n * e.values * e.width
        macs = embedding + block_macs(n, e.width, self.sampler.hidden) + n * e.width
        return Cost(macs=base.macs + macs, tokens={**base.tokens, "sampler": n}, leaves=base.leaves + embedding)
