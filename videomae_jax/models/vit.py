"""VideoMAE's encoder and decoder, and the table of published sizes."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax.numpy as jnp
import numpy as np

from videomae_jax.masking import Grid
from videomae_jax.models import layers, patches
from videomae_jax.types import Array, Key


@flax.struct.dataclass
class Encoded:
    """`tokens` [B V D] after the final norm, `last` before it; `kept` [K B V D] raw outputs of the blocks asked for."""

    tokens: Array
    kept: Array
    last: Array


class Encoder(patches.Tubelets, nn.Module):
    """ViT over the visible tubelets: embed, add the fixed position table, blocks, final norm (V2 modeling_pretrain).

    Only the V visible patches are embedded; the result equals embedding all N and gathering. `patch` is
    (time, rows, columns); `mean` and `std` are the loader statistics applied to patches in [0, 1], `eps` is that of every LayerNorm.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: tuple[int, int, int] = (2, 16, 16)
    frames: int = 16
    size: int = 224
    channels: int = 3
    mean: tuple[float, ...] = patches.IMAGENET_MEAN
    std: tuple[float, ...] = patches.IMAGENET_STD
    drop_path: float = 0.0
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"
    dtype: str = "float32"
    eps: float = layers.LN_EPS

    def __post_init__(self) -> None:
        super().__post_init__()
        layers.check_sizes(self)
        layers.check_drop_path(self.drop_path)

    def positions(self) -> np.ndarray:
        """The fixed table f32 [N D] that is added to the embedded patches."""
        return patches.sincos(self.grid.tokens, self.width)

    @nn.compact
    def __call__(self, x: Array, /, *, ids: Array, keys: Key | None = None, valid: Array | None = None,
                 keep: tuple[int, ...] = ()) -> Encoded:
        """Visible patches f32 [B V P] in [0, 1] and their ids i32 [B V] -> Encoded."""
        dtype = jnp.dtype(self.dtype)
        x = patches.standardise(x, mean=self.mean, std=self.std)
        bound = self.values**-0.5  # the convolution keeps PyTorch's default: U(+-1/sqrt(fan_in)), bias too
        x = layers.Linear(self.width, (None, "embed"), layers.uniform(bound), layers.uniform(bound), dtype=dtype, name="embed")(x)
        x = x + patches.looked_up(self.positions(), ids, dtype=dtype)
        stack = layers.Stack(self.depth, self.heads, self.hidden, self.drop_path, self.remat, self.unroll, self.attention, dtype, self.eps, name="stack")
        out = stack(x, keys=keys, valid=valid, keep=keep)
        return Encoded(tokens=layers.LayerNorm(self.eps, dtype, name="norm")(out.tokens), kept=out.kept, last=out.tokens)


class Decoder(nn.Module):
    """VideoMAE's decoder: bridge, mask tokens at the targets, blocks, norm and head on the targets only.

    It has its own position table of its own width. The bridge has no bias and keeps PyTorch's default initialiser.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    remat: str = "none"
    unroll: int = 1
    attention: str = "xla"
    dtype: str = "float32"
    eps: float = layers.LN_EPS

    def __post_init__(self) -> None:
        super().__post_init__()
        layers.check_sizes(self)

    def positions(self, grid: Grid, /) -> np.ndarray:
        """The fixed table f32 [N D] of the decoder's own width."""
        return patches.sincos(grid.tokens, self.width)

    @nn.compact
    def __call__(self, tokens: Array, /, *, visible: Array, target: Array, grid: Grid, values: int, valid: Array | None = None) -> Array:
        """Encoder tokens [B V D], ids i32 [B V] and [B M] -> predictions f32 [B M P]."""
        dtype = jnp.dtype(self.dtype)
        bound = tokens.shape[-1] ** -0.5
        x = layers.Linear(self.width, ("embed", None), layers.uniform(bound), use_bias=False, dtype=dtype, name="bridge")(tokens)
        table = self.positions(grid)
        mask_token = self.param("mask_token", layers.boxed(layers.truncated(0.02), None), (self.width,), jnp.float32).astype(dtype)
        seen, hidden = (patches.looked_up(table, ids, dtype=dtype) for ids in (visible, target))
        x = jnp.concatenate([x + seen, mask_token + hidden], axis=1)
        if valid is not None:
            valid = jnp.concatenate([valid, jnp.ones(target.shape, bool)], axis=1)
        stack = layers.Stack(self.depth, self.heads, self.hidden, 0.0, self.remat, self.unroll, self.attention, dtype, self.eps, name="stack")
        x = stack(x, valid=valid).tokens[:, visible.shape[1]:]
        x = layers.LayerNorm(self.eps, dtype, name="norm")(x)
        head = layers.Linear(values, ("embed", None), layers.xavier(self.width, values), dtype=dtype, name="head")
        return head(x).astype(jnp.float32)


# width, depth, heads, hidden, patch side; decoder width, heads, hidden (V2 modeling_pretrain; spec: table of sizes).
# ViT-g's decoder inherits the MLP ratio 48/11, hence int(512 * 48 / 11) = 2234.
SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "S": {"encoder": (384, 12, 6, 1536, 16), "decoder": (192, 3, 768)},
    "B": {"encoder": (768, 12, 12, 3072, 16), "decoder": (384, 6, 1536)},
    "L": {"encoder": (1024, 24, 16, 4096, 16), "decoder": (512, 8, 2048)},
    "H": {"encoder": (1280, 32, 16, 5120, 16), "decoder": (512, 8, 2048)},
    "g": {"encoder": (1408, 40, 16, 6144, 14), "decoder": (512, 8, 2234)},
}


FOR_THE_DEVICE = {"attention": "auto", "unroll": 0}  # published sizes let the device decide


def encoder(size: str, /, **kw: Any) -> Encoder:
    """The published encoder of size S, B, L, H or g; keywords override fields."""
    width, depth, heads, hidden, side = SIZES[size]["encoder"]
    return Encoder(**({"width": width, "depth": depth, "heads": heads, "hidden": hidden, "patch": (2, side, side)} | FOR_THE_DEVICE | kw))


def decoder(size: str, /, **kw: Any) -> Decoder:
    """The V2 decoder of size S, B, L, H or g, four blocks deep; keywords override fields."""
    width, heads, hidden = SIZES[size]["decoder"]
    return Decoder(**({"width": width, "depth": 4, "heads": heads, "hidden": hidden} | FOR_THE_DEVICE | kw))
