"""Masked autoencoding of video and sound together: Audiovisual MAE with its encoder and decoder layouts and inpainting."""

import dataclasses
import types
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from videomae_jax import frame_targets, losses, masking, targets
from videomae_jax.errors import UserError
from videomae_jax.masking import Grid, Mask
from videomae_jax.metrics import Mean
from videomae_jax.models import fusion, patches
from videomae_jax.models.fusion import MODALITIES, Slots
from videomae_jax.objectives.base import Cost, Features, Objective, Output, Prediction
from videomae_jax.objectives.mae import block_macs
from videomae_jax.types import Array, Batch, Extra, Key, Params, row_keys

INPAINTING = ("none", "released", "all")
OTHER = {"video": "audio", "audio": "video"}


@dataclasses.dataclass(frozen=True)
class AudiovisualMAE(Objective):
    """Encode visible tokens of video and sound, regress the hidden ones; one loss term for each modality.

    Source: Audiovisual MAE (arXiv 2212.05922) and its code (scenic av_mae). A term is the mean squared error over the
    predicted tokens of its modality that exist, with coefficient `video_share` or `audio_share`; targets are raw, pixels
    in [-1, 1]. Spectrogram frames that do not exist are no keys of any attention and have no loss.

    `inpainting` predicts a modality from the tokens of the other. "released" is the code's: a modality's sequence begins
    with the K visible tokens of the *other* one at its positions 0 to K - 1, mask tokens follow, and the first K positions
    are never predicted. "all" keeps the other's own positions and predicts every token [this project's]. The encoder may
    still have mixed the two. A row without the other modality has no loss then.

    With a "separate" or "shared" encoder, a "shared" decoder and no inpainting the modalities share weights but no token
    of one attends to the other; "separate" in both is refused, as in the code. Shuffling of inpainted tokens is left out:
    the code permutes the tokens and not their targets.
    """

    encoder: fusion.Encoder
    decoder: fusion.Decoder
    video_mask: masking.Random = masking.Random(ratio=0.9, layout="token")
    audio_mask: masking.Random = masking.Random(ratio=0.7, layout="token")
    target: targets.Pixels = frame_targets.LoaderPixels(normalise="none", mean=0.5, std=0.5)
    audio_target: targets.Pixels = targets.Pixels(normalise="none", channels=1)
    inpainting: str = "none"
    video_share: float = 0.5
    audio_share: float = 0.5

    # The heads start at 0, and only they have a gradient then.
    tiny = types.MappingProxyType({"decoder.head": "xavier"})

    def __post_init__(self) -> None:
        self.encoder.check()
        self.decoder.check()
        if self.inpainting not in INPAINTING:
            raise UserError(f"inpainting {self.inpainting!r}; allowed are {', '.join(INPAINTING)}")
        if self.encoder.layout == self.decoder.layout == "separate":
            raise UserError("encoder and decoder are both 'separate', so the modalities never meet; change one of the layouts")
        if self.inpainting == "released":
            for m, other in OTHER.items():
                visible, tokens = self.strategies[other].count(self.encoder.inputs[other].grid), self.encoder.inputs[m].grid.tokens
                if visible >= tokens:
                    raise UserError(f"inpainting 'released' puts {visible} visible {other} tokens in front of {tokens} {m} tokens; allowed are less than {tokens}")

    @property
    def strategies(self) -> dict[str, masking.Random]:
        """Encoder mask of each modality."""
        return {"video": self.video_mask, "audio": self.audio_mask}

    def init(self, rng: Key, batch: Batch, /) -> Params:
        """{"encoder", "decoder"} parameters."""
        keys, inputs, ids = jax.random.split(rng), self.encoder.inputs, jnp.zeros((1, 1), jnp.int32)
        one = {m: jnp.zeros((1, 1, inputs[m].values)) for m in MODALITIES}
        seen = {m: jnp.ones((1, 1), bool) for m in MODALITIES}
        encoder = self.encoder.init(keys[0], one, ids=dict.fromkeys(MODALITIES, ids), valid=seen)["params"]
        slots = {m: Slots(ids, ids, jnp.ones((1, 2), bool), m) for m in MODALITIES}
        decoder = self.decoder.init(keys[1], {m: jnp.zeros((1, 1, self.encoder.width)) for m in MODALITIES}, slots=slots, inputs=inputs)["params"]
        return {"encoder": encoder, "decoder": decoder}

    def patchify(self, batch: Batch, /) -> Array:
        """Patches f32 [B N P] in [0, 1] of `batch["video"]`."""
        return self.encoder.video.patchify(batch)

    def targets(self, x: Mapping[str, Array], /) -> dict[str, Array]:
        """Regression targets f32 [B M P] of patches [B M P] of the modalities given, those of video in [0, 1] or bytes."""
        return {m: self.target(patches.to_unit(own)) if m == "video" else self.audio_target(own) for m, own in x.items()}

    # -- masks ------------------------------------------------------------------------------------------------------

    def masks(self, batch: Batch, rng: Key, /) -> dict[str, Mask]:
        """The mask of every modality and row, keyed by the place in the stream; blind to what exists."""
        keys = jax.vmap(lambda key: jax.random.split(key, 2))(row_keys(rng, batch["key"]))
        drawn = {m: masking.draw(keys[:, i], encoder=self.strategies[m], decoder=masking.Hidden(), grid=self.encoder.inputs[m].grid)
                 for i, m in enumerate(MODALITIES)}
        if self.inpainting == "none":
            return drawn
        result = {}
        for m, mask in drawn.items():
            first = drawn[OTHER[m]].visible.shape[1] if self.inpainting == "released" else 0
            target = jnp.arange(first, self.encoder.inputs[m].grid.tokens, dtype=jnp.int32)
            target = jnp.broadcast_to(target, (mask.visible.shape[0], target.shape[0]))
            result[m] = mask.replace(target=target, weight=jnp.ones(target.shape, jnp.float32))
        return result

    def existing(self, masks: Mapping[str, Mask], batch: Batch, /) -> tuple[dict[str, Mask], dict[str, Slots]]:
        """Masks with padding marked and without weight where something is missing, and the decoder's sequences for them."""
        valid = {m: self.encoder.inputs[m].valid(batch) for m in MODALITIES}
        seen = {m: masks[m].visible_valid & masking.take(valid[m], ids=masks[m].visible) for m in MODALITIES}
        marked, slots = {}, {}
        for m in MODALITIES:
            mask = masks[m]
            there = masking.take(valid[m], ids=mask.target)
            source = m if self.inpainting == "none" else OTHER[m]
            known = masks[source].visible.shape
            context = jnp.broadcast_to(jnp.arange(known[1], dtype=jnp.int32), known) if self.inpainting == "released" else masks[source].visible
            counted = there if source == m else there & seen[source].any(1, keepdims=True)
            marked[m] = mask.replace(weight=mask.weight * counted, visible_valid=seen[m])
            slots[m] = Slots(context, mask.target, jnp.concatenate([seen[source], there], axis=1), source)
        return marked, slots

    # -- the protocol -----------------------------------------------------------------------------------------------

    def forward(self, params: Params, x: Mapping[str, Array], masks: Mapping[str, Mask], slots: Mapping[str, Slots], /) -> dict[str, Array]:
        """Predictions f32 [B M P] of each modality for its patches [B N P], those of video in [0, 1] or bytes."""
        visible = {m: masking.take(x[m], ids=masks[m].visible) for m in MODALITIES}
        visible["video"] = patches.to_unit(visible["video"])
        tokens = self.encoder.apply({"params": params["encoder"]}, visible, ids={m: masks[m].visible for m in MODALITIES},
                                    valid={m: masks[m].visible_valid for m in MODALITIES})
        return self.decoder.apply({"params": params["decoder"]}, tokens, slots=slots, inputs=self.encoder.inputs)

    def predictions(self, params: Params, batch: Batch, rng: Key, /, *, masks: Mapping[str, Mask] | None) -> dict[str, Prediction]:
        """A Prediction for each modality; its mask marks what exists. Masks that are not given are drawn."""
        masks = {**self.masks(batch, jax.random.split(rng)[0]), **(masks or {})}
        masks, slots = self.existing(masks, batch)
        x = {"video": patches.stored(batch["video"], to=self.encoder.video), "audio": self.encoder.audio.patchify(batch)}  # few pixels become floats
        predicted, true = self.forward(params, x, masks, slots), self.targets({m: masking.take(x[m], ids=masks[m].target) for m in MODALITIES})
        return {m: Prediction(patches=predicted[m], targets=true[m], masks=masks[m]) for m in MODALITIES}

    def loss(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, step: Array, train: bool,
             masks: Mapping[str, Mask] | None = None) -> Output:
        """Terms "video" and "audio"; metrics `zero_video` and `zero_audio` are the errors of predicting 0 for the same tokens."""
        terms, metrics = {}, {}
        for m, p in self.predictions(params, batch, rng, masks=masks).items():
            target, weight = jax.lax.stop_gradient(p.targets), p.masks.weight * batch["valid"][:, None]
            terms[m] = losses.masked_mse(p.patches, target, weight=weight, coefficient=self.video_share if m == "video" else self.audio_share)
            zero = losses.masked_mse(jnp.zeros_like(target), target, weight=weight)
            metrics[f"zero_{m}"] = Mean(zero.total, zero.weight)
        return Output(terms=terms, metrics=metrics)

    def predict(self, params: Params, extra: Extra, batch: Batch, rng: Key, /, *, masks: Mapping[str, Mask] | Mask | None = None,
                modality: str = "video") -> Prediction:
        """Predicted and true targets of one modality at its predicted tokens; a single Mask is that of this modality.

        Raises UserError for a single one beside inpainting, which predicts nothing from what the mask leaves visible.
        """
        if modality not in MODALITIES:
            raise UserError(f"prediction of {modality!r}; allowed are {', '.join(MODALITIES)}")
        if isinstance(masks, Mask):
            if self.inpainting != "none":
                raise UserError(f"a mask of {modality} alone beside inpainting {self.inpainting!r}, which predicts it from {OTHER[modality]}; "
                                "allowed is inpainting 'none'")
            masks = {modality: masks}
        return self.predictions(params, batch, rng, masks=masks)[modality]

    def represent(self, params: Params, extra: Extra, batch: Batch, /, *, inputs: tuple[str, ...] | None = None, layer: int = -1) -> dict[str, Features]:
        """Features of all tokens of the modalities fed, and of "joint", all of them in a row, where both are.

        After the last norm for layer -1, else the raw output of block `layer`. `pooled` is the mean over tokens that
        exist, 0 where there are none; the grid of "joint" is a line.
        """
        inputs = MODALITIES if inputs is None else inputs
        if not inputs or set(inputs) - set(MODALITIES):
            raise UserError(f"features of inputs {inputs}; allowed are {', '.join(MODALITIES)} or both")
        made = {m: i for m, i in self.encoder.inputs.items() if m in inputs}
        x, valid = {m: i.patchify(batch) for m, i in made.items()}, {m: i.valid(batch) for m, i in made.items()}
        ids = {m: jnp.broadcast_to(jnp.arange(p.shape[1], dtype=jnp.int32), p.shape[:2]) for m, p in x.items()}
        tokens = self.encoder.apply({"params": params["encoder"]}, x, ids=ids, valid=valid, layer=layer)
        result = {m: features(tokens[m], valid[m], grid=made[m].grid) for m in made}
        if len(made) > 1:
            result["joint"] = features(fusion.join(tokens), fusion.join(valid), grid=Grid(sum(i.grid.tokens for i in made.values()), 1, 1))
        return result

    # -- cost -------------------------------------------------------------------------------------------------------

    def counts(self) -> dict[str, dict[str, int]]:
        """Tokens of each modality: all, visible to the encoder, decoded, in its decoder sequence."""
        mask = jax.eval_shape(lambda: self.masks({"key": jnp.zeros((1, 2), jnp.uint32)}, jax.random.key(0)))
        result = {}
        for m in MODALITIES:
            context = mask[m if self.inpainting == "none" else OTHER[m]].visible.shape[1]
            result[m] = {"all": self.encoder.inputs[m].grid.tokens, "visible": mask[m].visible.shape[1], "decoded": mask[m].target.shape[1],
                         "decoder": context + mask[m].target.shape[1]}
        return result

    def cost(self) -> Cost:
        """Forward multiply-adds of a clip with sound, and its tokens: sums over the modalities, then each as "video_all", ..."""
        n, e, d = self.counts(), self.encoder, self.decoder
        embeddings = sum(k["visible"] * e.width * e.inputs[m].values for m, k in n.items())
        macs = embeddings + sum(k["visible"] * e.width * d.width + k["decoded"] * d.width * e.inputs[m].values for m, k in n.items())
        total = {key: sum(k[key] for k in n.values()) for key in n["video"]}
        macs += sum(e.own * block_macs(k["visible"], e.width, e.hidden) for k in n.values())
        macs += (e.depth - e.own) * block_macs(total["visible"], e.width, e.hidden)
        sequences = [total["decoder"]] if d.layout == "joint" else [k["decoder"] for k in n.values()]
        macs += sum(d.depth * block_macs(s, d.width, d.hidden) for s in sequences)
        return Cost(macs=float(macs), tokens=total | {f"{m}_{key}": v for m, k in n.items() for key, v in k.items()}, leaves=float(embeddings))


def features(tokens: Array, valid: Array, /, *, grid: Grid) -> Features:
    """Features of tokens [B N D], pooled over the valid ones."""
    tokens = tokens.astype(jnp.float32)
    weight = valid[..., None].astype(jnp.float32)
    return Features(tokens=tokens, pooled=(tokens * weight).sum(1) / jnp.maximum(weight.sum(1), 1), valid=valid, grid=grid)
