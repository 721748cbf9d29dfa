"""MARLIN: facial video, whose face is hidden first, reconstructed against a critic of its patches."""

import dataclasses
import types

import jax
import jax.numpy as jnp

from videomae_jax import losses, masking, part_masks, targets
from videomae_jax.errors import UserError
from videomae_jax.masking import Mask
from videomae_jax.metrics import Mean
from videomae_jax.models import patches
from videomae_jax.models.critic import Critic
from videomae_jax.objectives.base import Cost, Output, Phase
from videomae_jax.objectives.mae import MAE
from videomae_jax.part_masks import Guided
from videomae_jax.types import Array, Batch, Extra, Key, Params, row_keys


@dataclasses.dataclass(frozen=True)
class MARLIN(MAE):
    """MAE on raw pixels with a mask guided by part maps, and a Wasserstein critic of every predicted patch.

    Source: MARLIN (arXiv 2211.06627) and its released code. `critic_steps` updates of the critic, which minimises
    D(predicted) - D(real) over hidden patches, are followed by one of encoder and decoder, which minimise the squared error
    minus `coefficient` times D(predicted). Each player has its optimiser ("critic", "main"), and all updates of a step see
    one mask, drawn before them. `penalty` weighs a gradient penalty; the released configs set it to 0 and clip nothing, so
    that scores are not bounded: metrics critic/score_real and critic/score_fake show where they go.

    The batch has `parts` u8 [B T H W]; under a `masking.Random` it is not read. Deviations: the released critic step also
    passes a gradient through the predictions and throws it away; patches have the order (frame, row, column, channel)
    instead of channel first, which is a renaming of weights. The code draws one share of real and predicted for the penalty of
    a whole batch, here every token has its own.
    """

    encoder_mask: Guided | masking.Random = Guided()
    decoder_mask: masking.Hidden = masking.Hidden()
    target: targets.Pixels = targets.Pixels(normalise="none")
    critic: Critic = Critic()
    coefficient: float = 0.01
    penalty: float = 0.0
    critic_steps: int = 1

    # Files are not there in tests; a critic without bounds outweighs the error of clips learnt by heart.
    tiny = types.MappingProxyType({"initial": None, "penalty": 10.0, "encoder_mask.ratio": 0.75})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.decoder_mask, masking.Hidden):
            raise UserError(f"decoder mask {type(self.decoder_mask).__name__}; allowed is Hidden: every hidden token is predicted")
        if self.penalty < 0 or self.coefficient < 0:
            raise UserError(f"penalty {self.penalty}, coefficient {self.coefficient}; allowed are 0 and more")

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """{"encoder", "decoder", "critic"} parameters."""
        critic = self.critic.init(jax.random.fold_in(rng, 2), jnp.zeros((1, 1, self.encoder.values)))["params"]
        return super().init(rng, batch) | {"critic": critic}

    def phases(self) -> tuple[Phase, ...]:
        """The critic first, then its opponent."""
        return (Phase("critic", self.criticise, trains="critic/.*", optimizer="critic", repeats=self.critic_steps),
                Phase("train", self.loss, trains="(encoder|decoder)/.*"))

    def prepare(self, batch: Batch, rng: Key, /, *, step: Array, train: bool) -> Batch:
        """Adds `visible` i32 [B V], so that both players see one mask."""
        return {**batch, "visible": self.masks(batch, rng).visible}

    def masks(self, batch: Batch, rng: Key, /) -> Mask:
        """The mask that `prepare` drew, or one drawn now, keyed by the place in the stream."""
        if "visible" in batch:
            return part_masks.hide(batch["visible"], grid=self.encoder.grid)
        return part_masks.draw(rng, batch, encoder=self.encoder_mask, grid=self.encoder.grid)

    def score(self, params: Params, patches: Array, /) -> Array:
        """The critic's scores f32 [B M] of patches [B M P]."""
        return self.critic.apply({"params": params["critic"]}, patches)

    def hidden(self, params: Params, batch: Batch, rng: Key, /, *, train: bool, masks: Mask | None) -> tuple[Array, Array, Array]:
        """Predicted and true values f32 [B M P] of the hidden patches, and their weight f32 [B M]."""
        keys = jax.random.split(rng)
        masks = self.masks(batch, keys[0]) if masks is None else masks
        x = patches.stored(batch["video"], to=self.encoder)
        predicted = self.forward(params, x, masks, keys=row_keys(keys[1], batch["key"]) if train else None)
        return predicted, self.targets(x, masks), masks.weight * batch["valid"][:, None]

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Mask | None = None) -> Output:
        """Terms `reconstruction` and `adversarial`; metric `loss_zero` is the reconstruction loss of predicting 0."""
        predicted, real, weight = self.hidden(params, batch, rng, train=train, masks=masks)
        terms = {"reconstruction": losses.masked_mse(predicted, real, weight=weight),
                 "adversarial": losses.adversarial(self.score(params, predicted), weight=weight, coefficient=self.coefficient)}
        zero = losses.masked_mse(jnp.zeros_like(real), real, weight=weight)
        return Output(terms=terms, metrics={"loss_zero": Mean(zero.total, zero.weight)})

    def criticise(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Mask | None = None) -> Output:
        """Term `wasserstein`, and `penalty` where it has a weight; metrics are the mean scores of real and predicted patches."""
        drops, draws = jax.random.split(rng)
        fake, real, weight = self.hidden(params, batch, drops, train=train, masks=masks)
        fake = jax.lax.stop_gradient(fake)
        scores = {"real": self.score(params, real), "fake": self.score(params, fake)}
        terms = {"wasserstein": losses.wasserstein(scores["fake"], scores["real"], weight=weight)}
        if self.penalty:
            share = jax.vmap(lambda key: jax.random.uniform(key, weight.shape[1:]))(row_keys(draws, batch["key"]))
            terms["penalty"] = losses.gradient_penalty(lambda x: self.score(params, x), real, fake, share=share, weight=weight, coefficient=self.penalty)
        return Output(terms=terms, metrics={f"score_{k}": Mean(v * weight, weight) for k, v in scores.items()})

    def counts(self) -> dict[str, int]:
        """Tokens of a clip: all, visible to the encoder, decoded, in the decoder's sequence."""
        tokens, visible = self.encoder.grid.tokens, self.encoder_mask.count(self.encoder.grid)
        return {"all": tokens, "visible": visible, "decoded": tokens - visible, "decoder": tokens}

    def cost(self) -> Cost:
        """Multiply-adds of MAE and of the critic on its predictions; then, for each update of the critic, those of the critic on both kinds of patches.

        A multiply-add counts as three passes of training, forward and twice backward. So what runs forward alone, MAE beside an update of the
        critic, counts a third, and the critic on MAE's own predictions two thirds: no gradient of its weights is taken there. In its updates
        none of the patches is taken, so that its first layer is a leaf. A `penalty`, 0 in the released configs, is left out: the critic on a third
        kind of patches, the gradient of its scores there, and the derivative of both.
        """
        base, steps = super().cost(), self.critic_steps
        first, second = (base.tokens["decoded"] * values * self.critic.hidden for values in (self.encoder.values, 1))
        more = base.macs * steps / 3 + (first + second) * (2 / 3 + 2 * steps)
        return Cost(macs=base.macs + more, tokens=base.tokens, unused=more, leaves=base.leaves + 2 * steps * first)
