"""Clips as planes and windows: what crosses to a device that cuts the crops itself (`ingest`)."""

import copy
import dataclasses
import functools
import math
import os
from typing import Any

import numpy as np
from PIL import Image

from videomae_jax.data import augment, decode, framing, mixture, sources, unread
from videomae_jax.errors import UserError

ROOM = (8 / 7, 32 / 21)  # sides of a derived canvas over the size of the crops: 256 x 342 for 224, a common size of Kinetics; V1's guide makes the short side 320
SMALL = 128  # crops below this size get the room of this one: their videos are small, and resizing twice would cost them detail


def refusal(source: sources.Source, /) -> str:
    """Why the crops of a source cannot be cut on a device; "" where they can. Raises UserError for a canvas that is none."""
    if isinstance(source, unread.Unread):
        return refusal(source.source)
    if isinstance(source, mixture.Concat):
        found = {name: framing.most(part.source.crop) for name, part in source.present.items() if not refusal(part.source)}
        if len(set(found.values())) > 1:
            return f"its sources draw up to {found} changes of RandAugment; allowed is that they agree"
        return next((f"source {name!r}: {why}" for name, part in source.present.items() if (why := refusal(part.source))), "")
    kind = type(source)
    if not isinstance(source, sources.VideoClips):
        return f"{kind.__name__} does not read videos"
    if kind.read is not sources.VideoClips.read:
        return f"{kind.__name__} reads in a way of its own, which would be passed over"
    if type(source.crop).__name__ not in framing.known():
        return f"no window is known of the crop {type(source.crop).__name__}; allowed are {', '.join(framing.known())}"
    if not getattr(source.crop, "antialias", True):
        return f"{type(source.crop).__name__}(antialias=False): a device resizes whole frames with antialiasing alone"
    if not isinstance(source.canvas, tuple) or len(source.canvas) != 2 or not all(type(side) is int for side in source.canvas):
        raise UserError(f"canvas {source.canvas!r}; allowed are two even numbers, height and width, or (0, 0) for a derived one")
    if any(side < 0 or side % 2 for side in source.canvas) or any(source.canvas) != all(source.canvas):
        return f"canvas {source.canvas}; allowed are two even numbers, or (0, 0) for a derived one"
    return ""


def chosen(source: sources.Source, /) -> str:
    """Where the crops of a source are wanted, one of sources.CROPS: of a mixture "auto" only where all parts say so."""
    if isinstance(source, unread.Unread):
        return chosen(source.source)
    if isinstance(source, mixture.Concat):
        wanted = {chosen(part.source) for part in source.present.values()}
        return next((where for where in ("device", "host") if where in wanted), "auto")
    return getattr(source, "crops", "host")


def changes(source: sources.Source, /) -> bool:
    """Whether crops of a source come after changes of the whole frame (RandAugment)."""
    if isinstance(source, unread.Unread):
        return changes(source.source)
    return any(changes(p.source) for p in source.present.values()) if isinstance(source, mixture.Concat) else framing.most(source.crop) is not None


def shipped(source: sources.Source, /) -> "PlaneClips | mixture.Concat | unread.Unread":
    """The PlaneClips of a source; of a mixture, the mixture of them on the largest canvas of its parts."""
    if isinstance(source, unread.Unread):
        return dataclasses.replace(source, source=shipped(_assumed(source.source)))
    if not isinstance(source, mixture.Concat):
        return PlaneClips(source)
    split = {"split": source.split} if source.split else {}
    own = {name: dataclasses.replace(part.source, **split) for name, part in source.present.items()}
    high, wide = (max(lengths) for lengths in zip(*(sides(s) for s in own.values()), strict=True))
    parts = {name: dataclasses.replace(source.parts[name], source=PlaneClips(dataclasses.replace(s, canvas=(high, wide)))) for name, s in own.items()}
    return dataclasses.replace(source, parts={**source.parts, **parts}, split="")


def sides(source: sources.VideoClips, /) -> tuple[int, int]:
    """Height and width of the canvas of a source: its own, else the largest frame of the index, within ROOM and lying like most videos.

    A pure function of config and index, so that all hosts of a run agree.
    """
    if all(source.canvas):
        return source.canvas
    width, height = (column.to_numpy() for column in source.select("width", "height").columns)
    short, long = (max(source.size, SMALL) * r for r in ROOM)
    limits = (long, short) if (height > width).mean() > 0.5 else (short, long)
    high, wide = (-(-math.ceil(min(limit, side.max())) // 2) * 2 for limit, side in zip(limits, (height, width), strict=True))
    return high, wide


def _assumed(source: sources.Source, /) -> sources.Source:
    """With the canvas of videos as large as it takes, lying, where no index says how large they are."""
    if isinstance(source, mixture.Concat):
        parts = {n: dataclasses.replace(source.parts[n], source=_assumed(source.parts[n].source)) for n in source.present}
        return dataclasses.replace(source, parts={**source.parts, **parts})
    high, wide = (-(-math.ceil(max(source.size, SMALL) * r) // 2) * 2 for r in ROOM)
    return dataclasses.replace(source, canvas=source.canvas if all(source.canvas) else (high, wide))


def report(source: sources.Source, /) -> dict[str, Any]:
    """What the canvas costs over the videos of a source, {} where crops are cut on the host.

    `padding` is the mean share of its pixels that a frame leaves empty; of the share `larger` of videos, which do not fit,
    the union of the crops is resized on the host first, unless that happens to fit.
    """
    if isinstance(source, mixture.Concat):
        return {name: found for name, part in source.present.items() if (found := report(part.source))}
    if not isinstance(source, PlaneClips):
        return {}
    high, wide = source.sides
    width, height = (column.to_numpy() for column in source.source.select("width", "height").columns)
    covered = np.minimum(width, wide) * np.minimum(height, high) / (wide * high)
    return {"canvas": f"{high} x {wide}", "padding": float(1 - covered.mean()), "larger": float(((width > wide) | (height > high)).mean())}


@dataclasses.dataclass(frozen=True)
class PlaneClips:
    """The clips of `source` before their crops are cut, with the windows that its `read` would draw for them.

    One for all copies of a decode: `luma` u8 [T H W] and `chroma` u8 [T 2 H/2 W/2], on a canvas of H x W, and `colour` f32
    [T 3 4] (decode.Planes). One each: `box` f32 [4] = left, top, width and height of its window on the canvas, `reach` f32 [4] =
    left, top, right and bottom of what the filter may see there, `mirrored`, `label`, and what the source gives `beside`.
    Only the union of the windows of a decode is kept; where that is larger than the canvas, it is resized to it (PIL, antialiased bilinear).

    Crops with RandAugment keep the whole frame, whose height and width on the canvas are `extent` i32 [2], one for all copies; one each
    are `operation` i32 [n] = 1 + places in augment.OPERATIONS, 0 behind the last, and their `argument` f32 [n]. Frames larger
    than the canvas are then changed at its size, not at that of the file; as each side is shortened by itself, which keeps most of the
    detail, `aspect` f32 [] says by how much more the width was left than the height.
    """

    source: sources.VideoClips

    def __post_init__(self) -> None:
        if reason := refusal(self.source):
            raise UserError(f"crops on the device: {reason}")

    @functools.cached_property
    def sides(self) -> tuple[int, int]:
        """Height and width of the canvas."""
        return sides(self.source)

    @property
    def repeats(self) -> int:
        """Copies of a decode."""
        return self.source.repeats

    @property
    def fields(self) -> dict[str, sources.Field]:
        """Keys of an example."""
        (high, wide), frames = self.sides, self.source.frames
        others = {k: f for k, f in self.source.fields.items() if k != "video"}
        return {"luma": sources.Field((frames, high, wide), "uint8", "image", shared=True),
                "chroma": sources.Field((frames, 2, high // 2, wide // 2), "uint8", "image", shared=True),
                "colour": sources.Field((frames, 3, 4), "float32", "sequence", shared=True), "box": sources.Field((4,), "float32", "boxes"),
                "reach": sources.Field((4,), "float32", "boxes"), "mirrored": sources.Field((), "bool", "static"), **self._changing, **others}

    @property
    def _changing(self) -> dict[str, sources.Field]:
        if (most := framing.most(self.source.crop)) is None:
            return {}
        return {"extent": sources.Field((2,), "int32", "static", shared=True), "aspect": sources.Field((), "float32", "static", shared=True),
                "operation": sources.Field((most,), "int32", "static"), "argument": sources.Field((most,), "float32", "static")}

    @property
    def timeout(self) -> float:
        """Seconds that the source allows for a read."""
        return self.source.timeout

    @property
    def max_bad_fraction(self) -> float:
        """Share of unreadable clips that the source allows."""
        return self.source.max_bad_fraction

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of the source."""
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def name(self, row: int, /) -> str:
        """The example's name."""
        return self.source.name(row)

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Every key with a leading axis of copies, or of 1 where they share it; the draws are those of the source. Raises DecodeError."""
        made, size, again = self.source, self.source.size, copy.deepcopy(rng)
        clip = made.clip(row, rng=rng)
        frame = {"width": clip.info.width, "height": clip.info.height}
        shown = [framing.window(made.crop, **frame, size=size, rng=rng) for _ in range(made.repeats)]
        reach = np.asarray([w.reach(**frame, size=size) for w in shown])
        left, top = (reach[:, :2].min(0) // 2 * 2).tolist()
        right, bottom = np.minimum(-(-reach[:, 2:].max(0) // 2) * 2, [frame["width"], frame["height"]]).tolist()
        if self._changing:
            left, top, right, bottom = 0, 0, frame["width"], frame["height"]
        cut = (left, top, right, bottom)
        if isinstance(clip.video, (str, os.PathLike, bytes)):
            planes = decode.planes(clip.video, clip.ids, info=clip.info, cut=cut, timeout=made.timeout)
        else:  # folders of pictures and whatever else has a decoder of its own
            planes = decode.planes_of(made.decode(clip), cut=cut)
        high, wide = self.sides
        luma, chroma = fit(planes, height=high, width=wide)
        scale = np.minimum([wide / (right - left), high / (bottom - top)], 1)
        box = np.asarray([(w.left - left, w.top - top, w.width, w.height) for w in shown]) * np.tile(scale, 2)
        return {"luma": luma[None], "chroma": chroma[None], "colour": planes.colour[None], "box": box.astype(np.float32),
                "reach": np.round((reach - [left, top, left, top]) * np.tile(scale, 2)).astype(np.float32),
                "mirrored": np.asarray([w.mirrored for w in shown]), "label": np.full(made.repeats, clip.label, np.int32),
                **self._changed(shown, extent=(min(bottom - top, high), min(right - left, wide)), aspect=scale[0] / scale[1]),
                **made.beside(row, rng=again)}

    def _changed(self, shown: list[framing.Window], /, *, extent: tuple[int, int], aspect: float) -> dict[str, np.ndarray]:
        """The keys of RandAugment."""
        if not self._changing:
            return {}
        places = {name: 1 + place for place, name in enumerate(augment.OPERATIONS)}
        shape = (len(shown), *self._changing["operation"].shape)
        operation, argument = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        for row, window in enumerate(shown):
            for column, (name, value) in enumerate(window.changes or ()):
                operation[row, column], argument[row, column] = places[name], value
        return {"extent": np.asarray([extent], np.int32), "aspect": np.asarray([aspect], np.float32), "operation": operation, "argument": argument}


def fit(planes: decode.Planes, /, *, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Luma u8 [n height width] and chroma u8 [n 2 height/2 width/2]: planes in the top left corner, sides that are too long resized."""
    count, high, wide = planes.luma.shape
    luma, chroma = np.zeros((count, height, width), np.uint8), np.zeros((count, 2, height // 2, width // 2), np.uint8)
    size, half = (min(wide, width), min(high, height)), (-(-min(wide, width) // 2), -(-min(high, height) // 2))
    if (wide, high) == size:
        luma[:, :high, :wide], chroma[:, :, : half[1], : half[0]] = planes.luma, planes.chroma
        return luma, chroma
    # The last chroma of an odd side reaches half a value beyond the picture.
    extent = tuple(side / 2 if cut < side else -(-side // 2) for side, cut in zip((wide, high), size, strict=True))
    for out, frame in zip(luma, planes.luma, strict=True):
        out[: size[1], : size[0]] = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    for out, plane in zip(chroma.reshape(-1, *chroma.shape[2:]), planes.chroma.reshape(-1, *planes.chroma.shape[2:]), strict=True):
        out[: half[1], : half[0]] = Image.fromarray(plane).resize(half, Image.Resampling.BILINEAR, box=(0, 0, *extent))
    return luma, chroma
