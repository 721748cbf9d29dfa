"""Transformers over video and sound: how the tokens of two modalities meet in an encoder and in a decoder.

Source: Audiovisual MAE (arXiv 2212.05922) and its code (scenic av_mae). Deviations: q, k and v start with the Xavier bound of
the fused kernel, sqrt(6 / 4D) and not sqrt(6 / 2D); the key bias is absent, because softmax is invariant to it; GELU is exact,
not its tanh form; biases of the MLP start at 0, not at 1e-6 deviations.
"""

import dataclasses
from collections.abc import Callable, Mapping

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.masking import Grid
from videomae_jax.models import audio, layers, patches
from videomae_jax.types import Array, Batch

MODALITIES = ("video", "audio")  # the order of tokens wherever both stand in one sequence
ENCODERS = ("early", "separate", "mid", "shared")
DECODERS = ("shared", "joint", "separate")
HEADS = {"zeros": lambda fan_in, fan_out: nn.initializers.zeros, "xavier": layers.xavier}


@dataclasses.dataclass(frozen=True)
class Video(patches.Tubelets):
    """batch["video"] [B T H W C] as tubelets of `patch` (time, rows, columns)."""

    frames: int = 16
    size: int = 224
    channels: int = 3
    patch: tuple[int, int, int] = (2, 16, 16)

    def patchify(self, batch: Batch, /) -> Array:
        """Patches f32 [B N P] in [0, 1]. Raises UserError for clips of another shape."""
        return patches.to_unit(patches.stored(batch["video"], to=self))

    def valid(self, batch: Batch, /) -> Array:
        """bool [B N]: tokens whose pictures exist, all of them where the batch tells of no padding (`patches.present`)."""
        found = patches.present(batch, grid=self.grid, patch=self.patch)
        return jnp.ones((batch["video"].shape[0], self.grid.tokens), bool) if found is None else found


@dataclasses.dataclass(frozen=True)
class Sound:
    """batch["audio"] [B S mels] as patches (time, mel); batch["audio_valid"] bool [B S] tells the frames that exist."""

    spectrogram: int = 1000
    mels: int = 128
    patch: tuple[int, int] = (16, 16)

    @property
    def grid(self) -> Grid:
        """Token grid: t is time, w is frequency."""
        return audio.grid_of(frames=self.spectrogram, mels=self.mels, patch=self.patch)

    @property
    def values(self) -> int:
        """Values of a patch, P."""
        return self.patch[0] * self.patch[1]

    def patchify(self, batch: Batch, /) -> Array:
        """Patches f32 [B N P]; trailing frames that fill no patch are left out. Raises UserError for another shape."""
        shape = batch["audio"].shape[1:]
        if shape != (self.spectrogram, self.mels):
            raise UserError(f"spectrograms of {shape} reach an encoder built for {(self.spectrogram, self.mels)} (frames, mels)")
        return audio.patchify(batch["audio"].astype(jnp.float32), patch=self.patch)

    def valid(self, batch: Batch, /) -> Array:
        """bool [B N]: tokens all of whose frames exist."""
        return audio.valid_tokens(batch["audio_valid"], grid=self.grid, patch=self.patch)


class Encoder(nn.Module):
    """Blocks over the visible tokens of the modalities, by `layout`; positions restart at 0 in each modality.

    "early": one stack over all tokens; "separate": a stack for each modality; "mid": depth - fused blocks for each
    modality, their norm, then `fused` blocks over all tokens; "shared": one stack, run on each modality by itself.
    `mean` and `std` are applied to pixels in [0, 1].
    """

    width: int
    depth: int
    heads: int
    hidden: int
    layout: str = "mid"
    fused: int = 2
    video: Video = Video()
    audio: Sound = Sound()
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"
    dtype: str = "float32"

    def check(self) -> None:
        """Raises UserError for a layout that does not exist, fusion blocks that do not fit, and statistics that are not one a channel."""
        if self.layout not in ENCODERS:
            raise UserError(f"encoder layout {self.layout!r}; allowed are {', '.join(ENCODERS)}")
        if self.layout == "mid" and not 0 < self.fused < self.depth:
            raise UserError(f"fused is {self.fused} of {self.depth} blocks; allowed are 1 to {self.depth - 1}")
        layers.check_statistics(self)

    @property
    def inputs(self) -> dict[str, Video | Sound]:
        """What each modality is made of."""
        return {"video": self.video, "audio": self.audio}

    @property
    def grid(self) -> Grid:
        """Token grid of the video: what is drawn and scored as a picture."""
        return self.video.grid

    @property
    def patch(self) -> tuple[int, int, int]:
        """Tubelet of the video."""
        return self.video.patch

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.video.frames

    @property
    def size(self) -> int:
        """Rows and columns of a clip."""
        return self.video.size

    @property
    def channels(self) -> int:
        """Channels of a clip."""
        return self.video.channels

    @property
    def own(self) -> int:
        """Blocks in which each modality is by itself."""
        return {"early": 0, "separate": self.depth, "shared": self.depth, "mid": self.depth - self.fused}[self.layout]

    @nn.compact
    def __call__(self, x: Mapping[str, Array], /, *, ids: Mapping[str, Array], valid: Mapping[str, Array], layer: int = -1) -> dict[str, Array]:
        """Visible patches f32 [B V P] (pixels in [0, 1]), ids i32 [B V] and valid bool [B V] of the modalities given -> tokens [B V D].

        Tokens come after the last norm, for `layer` >= 0 as the raw output of that block. A modality that is left out
        takes no part; its parameters are not touched.
        """
        self.check()
        if not -1 <= layer < self.depth:
            raise UserError(f"layer {layer} asked of {self.depth} blocks; allowed are -1 to {self.depth - 1}")
        dtype = jnp.dtype(self.dtype)

        def blocks(prefix: str, *, depth: int, first: int) -> Callable[[Array, Array], Array]:
            stack = layers.Stack(depth, self.heads, self.hidden, 0.0, self.remat, self.unroll, self.attention, dtype, name=f"{prefix}stack")
            norm = layers.LayerNorm(dtype=dtype, name=f"{prefix}norm")
            here = 0 <= layer - first < depth

            def run(tokens: Array, valid: Array) -> Array:
                out = stack(tokens, valid=valid, keep=(layer - first,) if here else ())
                return out.kept[0] if here else norm(out.tokens)
            return run

        present = [m for m in MODALITIES if m in x]
        tokens = {m: self.embedded(m, x[m], ids[m]) for m in present}
        if self.layout == "shared":
            run = blocks("", depth=self.depth, first=0)
            return {m: run(tokens[m], valid[m]) for m in present}
        if self.own:
            tokens = {m: blocks(f"{m}_", depth=self.own, first=0)(tokens[m], valid[m]) for m in present}
        if self.own == self.depth or 0 <= layer < self.own:
            return tokens
        joined = blocks("", depth=self.depth - self.own, first=self.own)(join(tokens), join({m: valid[m] for m in present}))
        return parted(joined, like=tokens)

    def embedded(self, modality: str, x: Array, ids: Array, /) -> Array:
        """Patches [B V P] -> tokens [B V D] with their positions."""
        dtype, grid = jnp.dtype(self.dtype), self.inputs[modality].grid
        if modality == "video":
            x = patches.standardise(x, mean=self.mean, std=self.std)
        x = layers.Linear(self.width, (None, "embed"), nn.initializers.lecun_normal(), dtype=dtype, name=f"{modality}_embed")(x)
        return x + patches.looked_up(patches.sincos(grid.tokens, self.width), ids, dtype=dtype)


@flax.struct.dataclass
class Slots:
    """The decoder's sequence of one modality, K + M tokens.

    First the encoder's tokens of modality `source` at positions `context` i32 [B K], then mask tokens at positions
    `target` i32 [B M]; `valid` bool [B K + M] tells which of them are keys.
    """

    context: Array
    target: Array
    valid: Array
    source: str = flax.struct.field(pytree_node=False)


class Decoder(nn.Module):
    """Blocks over bridged encoder tokens and mask tokens, by `layout`, and a head for each modality at its targets.

    "shared": one stack, run on each sequence by itself; "joint": one stack over all sequences; "separate": a stack for
    each. Bridges have a bias, mask tokens start at 0, and so do the kernels of the heads unless `head` is "xavier".
    """

    width: int
    depth: int
    heads: int
    hidden: int
    layout: str = "shared"
    head: str = "zeros"
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"
    dtype: str = "float32"

    def check(self) -> None:
        """Raises UserError for a layout or a start of the heads that does not exist."""
        if self.layout not in DECODERS:
            raise UserError(f"decoder layout {self.layout!r}; allowed are {', '.join(DECODERS)}")
        if self.head not in HEADS:
            raise UserError(f"head {self.head!r}; allowed are {', '.join(HEADS)}")

    @nn.compact
    def __call__(self, tokens: Mapping[str, Array], /, *, slots: Mapping[str, Slots], inputs: Mapping[str, Video | Sound]) -> dict[str, Array]:
        """Encoder tokens {modality: [B V D]} and a sequence for each modality -> predictions {modality: f32 [B M P]}."""
        self.check()
        dtype = jnp.dtype(self.dtype)
        table = patches.sincos(max(i.grid.tokens for i in inputs.values()), self.width)

        def blocks(prefix: str) -> Callable[[Array, Array], Array]:
            stack = layers.Stack(self.depth, self.heads, self.hidden, 0.0, self.remat, self.unroll, self.attention, dtype, name=f"{prefix}stack")
            norm = layers.LayerNorm(dtype=dtype, name=f"{prefix}norm")
            return lambda x, valid: norm(stack(x, valid=valid).tokens)

        bridged = {m: layers.Linear(self.width, ("embed", None), layers.xavier(t.shape[-1], self.width), dtype=dtype, name=f"{m}_bridge")(t)
                   for m, t in tokens.items()}
        x = {}
        for m, slot in slots.items():
            mask = self.param(f"{m}_mask_token", layers.boxed(nn.initializers.zeros, None), (self.width,), jnp.float32).astype(dtype)
            seen, hidden = (patches.looked_up(table, ids, dtype=dtype) for ids in (slot.context, slot.target))
            x[m] = jnp.concatenate([bridged[slot.source] + seen, mask + hidden], axis=1)
        if self.layout == "joint":
            x = parted(blocks("")(join(x), join({m: s.valid for m, s in slots.items()})), like=x)
        elif self.layout == "shared":
            run = blocks("")
            x = {m: run(x[m], s.valid) for m, s in slots.items()}
        else:
            x = {m: blocks(f"{m}_")(x[m], s.valid) for m, s in slots.items()}
        start, result = HEADS[self.head], {}
        for m, slot in slots.items():
            values = inputs[m].values
            head = layers.Linear(values, ("embed", None), start(self.width, values), dtype=dtype, name=f"{m}_head")
            result[m] = head(x[m][:, slot.context.shape[1]:]).astype(jnp.float32)
        return result


def join(x: Mapping[str, Array], /) -> Array:
    """{modality: [B V ...]} -> [B sum of V ...]."""
    return jnp.concatenate(list(x.values()), axis=1)


def parted(x: Array, /, *, like: Mapping[str, Array]) -> dict[str, Array]:
    """Inverse of `join`, with the lengths of `like`."""
    result, first = {}, 0
    for m, part in like.items():
        result[m] = x[:, first: first + part.shape[1]]
        first += part.shape[1]
    return result
