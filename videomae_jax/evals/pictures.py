"""Pictures of reconstructions: a png sheet and a gif per clip."""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from PIL import Image, ImageDraw

from videomae_jax import parallel, whole
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context
from videomae_jax.evals.reconstruction import check_hidden, predictions
from videomae_jax.models import patches

GREY = 0.5
PANELS = ("input", "visible", "prediction", "pasted")


def note(target: Any, /) -> str:
    """What the prediction panel shows of a recipe's `target`, in one line."""
    shown = ("pixels" if target.normalise == "none" else
             "normalised patches, shown with the TRUE mean and deviation of each patch (the model does not predict those)")
    every = getattr(target, "every", 1)
    return f"prediction: {shown}" + (f"; one frame in {every} is predicted and repeated for the others" if every > 1 else "")


def check(objective: Any, /) -> None:
    """Raises UserError for an objective whose predictions are no pixels."""
    if not hasattr(objective, "decoder") or not hasattr(objective.target, "invert"):
        raise UserError(f"{type(objective).__name__} does not reconstruct pixels; allowed are runs of pretraining")


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Writes reconstructions/stepNNNNNNNN_I.png and .gif: input | visible | prediction | pasted. Of another split than "val" the names begin
    with its own, for what reads the others takes them for clips that are held out.

    Cells that the decoder was not asked for and the encoder did not see are hatched. With normalised targets the
    prediction is drawn with the true statistics of each patch, and where not every frame is predicted the others repeat one that is;
    the sheet says so.
    """

    every: str = ""
    clips: int = 4
    split: str = "val"

    def run(self, context: Context, /) -> dict[str, float]:
        """Draws; returns {"psnr_hidden"}, the PSNR in dB over the predicted hidden pixels of the drawn clips.

        Errors as in `draw` and `check_hidden`.
        """
        error, values = np.sum([found[1:] for found in self.draw(context)], axis=0)
        check_hidden(values, split=self.split)
        return {"psnr_hidden": float(-10 * np.log10(error / values))}

    def draw(self, context: Context, /) -> Iterator[tuple[pathlib.Path, float, int]]:
        """Draws clip after clip; yields the path of its png and gif without their suffix, and the error and number of values of `compose`.

        Raises UserError where no clip can be read, else as `check`.
        """
        objective = context.assembly.objective
        check(objective)
        source = dataclasses.replace(context.source(self.split), limit=self.clips)
        named = f"{'' if self.split == 'val' else f'{self.split}_'}step{context.step:08d}"
        number = 0
        for predicted, pixels, valid in predictions(context, source, batch_size=self.clips):
            for row in np.flatnonzero(valid):
                masks = jax.tree.map(lambda x, row=row: np.asarray(x)[row], predicted.masks)
                panels, error, values = compose(objective, pixels[row], predicted.patches[row], masks)
                stem = context.directory / "reconstructions" / f"{named}_{number}"
                if parallel.is_lead():
                    with context.leaving(stem):
                        save(stem, panels, caption=note(objective.target))
                yield stem, error, values
                number += 1
        if not number:
            raise UserError(f"no clip of split {self.split!r} can be read, so there is nothing to draw")


def compose(objective: Any, pixels: np.ndarray, predicted: np.ndarray, masks: Any, /) -> tuple[dict[str, np.ndarray], float, int]:
    """Panels f32 [T H W C] by name for patches [N P] of one clip, the summed squared error of hidden predictions, and the number of their
    values, 0 where nothing is predicted. A frame that repeats the one before is none.
    """
    encoder = objective.encoder
    tokens = encoder.grid.tokens
    visible, target = np.zeros(tokens, bool), np.zeros(tokens, bool)
    visible[masks.visible[masks.visible_valid]], target[masks.target] = True, True
    true = pixels[masks.target][None]
    shown = np.asarray(objective.target.invert(predicted[None], true))[0].clip(0, 1)
    # What is shown of a perfect prediction: frames that are not predicted repeat others there too, and so count nothing.
    perfect = np.asarray(objective.target.invert(objective.target(true), true))[0]
    prediction = np.full_like(pixels, GREY)
    prediction[masks.target] = shown
    seen = np.where(visible[:, None], pixels, GREY)
    pasted = np.where(visible[:, None], pixels, np.where(target[:, None], prediction, GREY))
    hidden = masks.weight > 0
    error = np.square((shown - perfect)[hidden], dtype=np.float64)
    skipped = ~visible & ~target
    videos = {"input": pixels, "visible": seen, "prediction": prediction, "pasted": pasted}
    result = {}
    for name, value in videos.items():
        video = np.array(patches.unpatchify(value[None], grid=encoder.grid, patch=encoder.patch))[0]
        if name in ("prediction", "pasted"):
            hatch(video, ~target if name == "prediction" else skipped, grid=encoder.grid, patch=encoder.patch)
        result[name] = video
    return result, float(error.sum()), error.size


def hatch(video: np.ndarray, cells: np.ndarray, /, *, grid: Any, patch: tuple[int, int, int]) -> None:
    """Draws diagonal lines over the cells bool [N] of a video f32 [T H W C], in place."""
    rows, columns = np.mgrid[: video.shape[1], : video.shape[2]]
    lines = (rows + columns) % max(4, patch[1] // 2) == 0
    area = np.repeat(np.repeat(np.repeat(cells.reshape(grid.t, grid.h, grid.w), patch[0], 0), patch[1], 1), patch[2], 2)
    video[area & lines[None]] = 0.3


def save(stem: pathlib.Path, panels: dict[str, np.ndarray], /, *, caption: str) -> None:
    """stem.png: one row a panel, one column a shown frame; stem.gif: the panels side by side, moving. Raises OSError, and leaves neither half then."""
    videos = [np.uint8(np.round(255 * panels[name].clip(0, 1))) for name in PANELS]
    frames, size = videos[0].shape[0], videos[0].shape[1]
    zoom = max(1, 96 // size)
    columns = np.linspace(0, frames - 1, min(frames, 8)).astype(int)
    sheet = np.concatenate([np.concatenate([v[t] for t in columns], 1) for v in videos], 0)
    label, foot = 72, 18
    page = Image.new("RGB", (label + sheet.shape[1] * zoom, sheet.shape[0] * zoom + foot), "white")
    page.paste(Image.fromarray(sheet).resize((sheet.shape[1] * zoom, sheet.shape[0] * zoom), Image.NEAREST), (label, 0))
    draw = ImageDraw.Draw(page)
    for row, name in enumerate(PANELS):
        draw.text((4, (row * size + size // 2) * zoom - 6), name, fill="black")
    draw.text((4, sheet.shape[0] * zoom + 3), f"{caption}; hatched: not decoded", fill="black")
    strips = [Image.fromarray(np.concatenate([v[t] for v in videos], 1)).resize((4 * size * zoom, size * zoom), Image.NEAREST) for t in range(frames)]
    with whole.replacing(stem.with_suffix(".png")) as png, whole.replacing(stem.with_suffix(".gif")) as gif:
        page.save(png, format="PNG")
        strips[0].save(gif, format="GIF", save_all=True, append_images=strips[1:], duration=120, loop=0)
