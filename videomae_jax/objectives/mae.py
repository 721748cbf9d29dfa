"""Masked autoencoding of pixels: VideoMAE V1, VideoMAE V2 (dual masking) and their ablations."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import losses, masking, targets
from videomae_jax.errors import UserError
from videomae_jax.masking import Mask
from videomae_jax.metrics import Mean
from videomae_jax.models import patches, vit
from videomae_jax.objectives.base import Cost, External, Features, Objective, Output, Prediction
from videomae_jax.types import Array, Batch, Extra, Key, Params, row_keys


@dataclasses.dataclass(frozen=True)
class MAE(Objective):
    """Encode the visible tubelets, decode some of the others, regress their pixels.

    Source: VideoMAE V2 (arXiv 2303.16727) and its released code. `decoder_mask` RunningCell gives V2, Hidden gives V1.
    The loss is the mean over decoded tokens that the encoder did not see ("hidden"); "decoded" is the ablation that
    averages over all decoded tokens. Deviation: only the visible patches are embedded, which is the same function.
    `initial` starts the run from the weights of another one.
    """

    encoder: vit.Encoder
    decoder: vit.Decoder
    encoder_mask: masking.Random = masking.Random()
    decoder_mask: Any = masking.RunningCell()
    target: targets.Pixels = targets.Pixels()
    loss_on: str = "hidden"
    initial: External | None = None

    def __post_init__(self) -> None:
        if self.loss_on not in ("hidden", "decoded"):
            raise UserError(f"loss_on {self.loss_on!r}; allowed are 'hidden' and 'decoded'")
        tubelet = getattr(self.target, "tubelet", None)
        if tubelet is not None and tubelet != self.encoder.patch[0]:
            frames = self.encoder.patch[0]
            raise UserError(f"a target of tubelets of {tubelet} frames beside an encoder of tubelets of {frames}; allowed is target.tubelet={frames}")
        taken, given = getattr(self.target, "every", 1), getattr(self.decoder, "every", 1)
        if taken != given:
            raise UserError(f"the target takes one frame in {taken} and the decoder predicts one in {given}; allowed is the same `every` for both")

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """{"encoder", "decoder"} parameters."""
        keys = jax.random.split(rng)
        ids = jnp.arange(1, dtype=jnp.int32)[None]
        encoder = self.encoder.init(keys[0], jnp.zeros((1, 1, self.encoder.values)), ids=ids)["params"]
        decoder = self.decoder.init(keys[1], jnp.zeros((1, 1, self.encoder.width)), visible=ids, target=ids,
                                    grid=self.encoder.grid, values=self.encoder.values)["params"]
        return {"encoder": encoder, "decoder": decoder}

    def externals(self) -> tuple[External, ...]:
        """The initial weights, if any."""
        return () if self.initial is None else (self.initial,)

    def patchify(self, batch: Batch, /) -> Array:
        """Patches f32 [B N P] in [0, 1] of `batch["video"]`."""
        return patches.to_unit(patches.stored(batch["video"], to=self.encoder))

    def masks(self, batch: Batch, rng: Key, /) -> Mask:
        """The mask of every row, keyed by its place in the stream."""
        mask = masking.draw(row_keys(rng, batch["key"]), encoder=self.encoder_mask, decoder=self.decoder_mask, grid=self.encoder.grid)
        return mask if self.loss_on == "hidden" else mask.replace(weight=jnp.ones_like(mask.weight))

    def targets(self, x: Array, masks: Mask, /) -> Array:
        """Regression targets f32 [B M P] for patches [B N P], in [0, 1] or bytes: taken first, so that no others are ever made."""
        return self.target(patches.to_unit(masking.take(x, ids=masks.target)))

    def forward(self, params: Params, x: Array, masks: Mask, /, *, keys: Key | None) -> Array:
        """Predictions f32 [B M P] for patches [B N P], in [0, 1] or bytes."""
        visible = patches.to_unit(masking.take(x, ids=masks.visible))
        tokens = self.encoder.apply({"params": params["encoder"]}, visible, ids=masks.visible, keys=keys).tokens
        return self.decoder.apply({"params": params["decoder"]}, tokens, visible=masks.visible, target=masks.target,
                                  grid=self.encoder.grid, values=self.encoder.values)

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool, masks: Mask | None = None) -> Output:
        """Masked mean squared error; metric `loss_zero` is the loss of predicting 0 for the same tokens."""
        keys = jax.random.split(rng)
        masks = self.masks(batch, keys[0]) if masks is None else masks
        x = patches.stored(batch["video"], to=self.encoder)
        predicted = self.forward(params, x, masks, keys=row_keys(keys[1], batch["key"]) if train else None)
        target = jax.lax.stop_gradient(self.targets(x, masks))
        weight = masks.weight * batch["valid"][:, None]
        term = losses.masked_mse(predicted, target, weight=weight)
        zero = losses.masked_mse(jnp.zeros_like(target), target, weight=weight)
        return Output(terms={"reconstruction": term}, metrics={"loss_zero": Mean(zero.total, zero.weight)})

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Mask | None = None) -> Prediction:
        """Predicted and true targets at the decoded tokens."""
        masks = self.masks(batch, jax.random.split(rng)[0]) if masks is None else masks
        x = patches.stored(batch["video"], to=self.encoder)
        return Prediction(patches=self.forward(params, x, masks, keys=None), targets=self.targets(x, masks), masks=masks)

    def represent(self, params: Params, extra: Extra, batch: Batch, /, *, inputs: tuple[str, ...] | None = None, layer: int = -1) -> dict[str, Features]:
        """Features of all N tokens: after the final norm for layer -1, else the raw output of block `layer`.

        Padding that the batch declares (`patches.present`) is attended by no token and no part of the mean.
        """
        return self.represent_layers(params, extra, batch, layers=(layer,), inputs=inputs)[layer]

    def represent_layers(self, params: Params, extra: Extra, batch: Batch, /, *, layers: tuple[int, ...],
                         inputs: tuple[str, ...] | None = None) -> dict[int, dict[str, Features]]:
        """`represent` at every layer, from one pass through the encoder."""
        if inputs not in (None, ("video",)):
            raise UserError(f"features of inputs {inputs}; allowed is ('video',)")
        x = self.patchify(batch)
        ids = jnp.broadcast_to(jnp.arange(x.shape[1], dtype=jnp.int32), x.shape[:2])
        valid = patches.present(batch, grid=self.encoder.grid, patch=self.encoder.patch)
        blocks = tuple(layer for layer in layers if layer != -1)
        out = self.encoder.apply({"params": params["encoder"]}, x, ids=ids, valid=valid, keep=blocks)
        found = {layer: (out.tokens if layer == -1 else out.kept[blocks.index(layer)]).astype(jnp.float32) for layer in layers}
        real = jnp.ones(x.shape[:2], bool) if valid is None else valid
        return {layer: {"video": Features(tokens=tokens, pooled=patches.mean(tokens, valid), grid=self.encoder.grid, valid=real)}
                for layer, tokens in found.items()}

    def counts(self) -> dict[str, int]:
        """Tokens of a clip: all, visible to the encoder, decoded, in the decoder's sequence."""
        grid = self.encoder.grid
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        mask = jax.eval_shape(lambda k: masking.draw(k, encoder=self.encoder_mask, decoder=self.decoder_mask, grid=grid), keys)
        visible, decoded = mask.visible.shape[1], mask.target.shape[1]
        return {"all": grid.tokens, "visible": visible, "decoded": decoded, "decoder": visible + decoded}

    def cost(self) -> Cost:
        """Forward multiply-adds: embedding of the visible patches, encoder, bridge, decoder, head."""
        n, e, d = self.counts(), self.encoder, self.decoder
        embedding = n["visible"] * e.values * e.width
        macs = embedding + e.depth * block_macs(n["visible"], e.width, e.hidden)
        macs += n["visible"] * e.width * d.width + d.depth * block_macs(n["decoder"], d.width, d.hidden) + n["decoded"] * d.width * e.values
        return Cost(macs=float(macs), tokens=n, leaves=float(embedding))


def block_macs(tokens: int, width: int, hidden: int, /) -> int:
    """Multiply-adds of a transformer block: projections and MLP, plus the two attention products."""
    return tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
