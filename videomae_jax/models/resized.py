"""VideoMAE's encoder and decoder for clips of other lengths and sizes than those they were trained on.

The fixed table is 1-D over the flattened (t, h, w) index, so that a table made for another grid gives every place another
meaning. Here the table of the training grid is resized: bicubic in space, linear in time. (V2's own code resizes a table
already made for the new grid, as if it had 8 times: 32 frames or 64 frames of 224 pixels crash, 64 of 266 are scrambled.)
"""

from typing import Any

import numpy as np

from videomae_jax import interpolation
from videomae_jax.errors import UserError
from videomae_jax.masking import Grid
from videomae_jax.models import patches, vit

TRAINED = (8, 14, 14)  # 16 frames of 224 pixels in tubelets of 2 x 16 x 16; ViT-g's patches of 14 pixels make it 8 x 16 x 16


def table(width: int, /, *, trained: tuple[int, int, int], grid: Grid) -> np.ndarray:
    """The position table f32 [N D] of the `trained` grid (t, h, w), resized to `grid`."""
    if len(trained) != 3 or min(trained) < 1:
        raise UserError(f"trained grid {trained}; allowed are three numbers (t, h, w) of 1 and more")
    old = Grid(*trained)
    x = patches.sincos(old.tokens, width).reshape(*trained, width).astype(np.float64)
    for axis, size, kind in ((0, grid.t, "linear"), (1, grid.h, "cubic"), (2, grid.w, "cubic")):
        x = interpolation.resize(x, axis=axis, size=size, kind=kind)
    return x.reshape(grid.tokens, width).astype(np.float32)


class Encoder(vit.Encoder):
    """V1's and V2's encoder whose position table is that of the grid it was `trained` on, (t, h, w) tokens."""

    trained: tuple[int, int, int] = TRAINED

    def positions(self) -> np.ndarray:
        """The resized table f32 [N D]."""
        return table(self.width, trained=self.trained, grid=self.grid)


class Decoder(vit.Decoder):
    """V1's and V2's decoder, likewise."""

    trained: tuple[int, int, int] = TRAINED

    def positions(self, grid: Grid, /) -> np.ndarray:
        """The resized table f32 [N D]."""
        return table(self.width, trained=self.trained, grid=grid)


def fixed_grid(encoder: Any, /) -> tuple[int, int, int] | None:
    """The (t, h, w) grid whose fixed table an encoder uses; None where its positions are learned or of another kind."""
    if isinstance(encoder, Encoder):
        return encoder.trained
    return (encoder.grid.t, encoder.grid.h, encoder.grid.w) if type(encoder) is vit.Encoder else None


def at(model: Any, /, *, trained: Grid) -> Any:
    """An encoder or decoder of VideoMAE with the table of the grid it was `trained` on; one that knows its own keeps it.

    Raises UserError for a model with learned positions: those are parameters of one grid.
    """
    if isinstance(model, (Encoder, Decoder)):
        return model
    kind = {vit.Encoder: Encoder, vit.Decoder: Decoder}.get(type(model))
    if kind is None:
        raise UserError(f"{type(model).__module__}.{type(model).__name__} has positions of its own, which cannot be resized here; "
                        "allowed are VideoMAE's encoder and decoder with their fixed tables")
    fields = {name: getattr(model, name) for name in type(model).__dataclass_fields__ if name not in ("parent", "name")}
    return kind(**fields, trained=(trained.t, trained.h, trained.w))
