"""The fifteen operations of RandAugment (`data.augment`) on the device, for crops that are cut there: what Pillow does, to the bit but for ties.

Frames lie as u8 [H W T 3], so that what moves a pixel moves it in all frames and channels at once. They may be padded: only the `extent`
(height, width) in the upper left corner is a picture. A clip takes a real branch for each of its operations; mapped over a batch
by `vmap`, every clip would pay for all fifteen.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax.data import augment
from videomae_jax.types import Array

Change = Callable[[Array, Array, Array], Array]  # (video u8 [H W T 3], argument f32 [], extent i32 [2]) -> u8 [H W T 3]


def changed(video: Array, codes: Array, arguments: Array, extent: Array, aspect: Array, /) -> Array:
    """u8 [H W T 3] after the operations with `codes` i32 [n] (1 + the place in augment.OPERATIONS, 0 = none) and `arguments` f32 [n].

    `aspect` f32 [] is what was left of the width of the picture over what was left of its height: turns and shears are those of the picture
    before it was squeezed.
    """
    kinds = [*VALUES, "affine"]  # one branch for all that move pixels: it is the long one to compile
    branch = jnp.asarray([0, *(1 + kinds.index(name if name in VALUES else "affine") for name in augment.OPERATIONS)], jnp.int32)
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)

    def moved(video: Array, code: Array, argument: Array) -> Array:
        maps = [identity, *(MAPS[name](argument, extent, aspect) if name in MAPS else identity for name in augment.OPERATIONS)]
        return affine(video, jnp.asarray(maps, jnp.float32)[code], extent)

    branches = [lambda video, code, argument: video, *(lambda video, code, argument, f=f: f(video, argument, extent) for f in VALUES.values()), moved]

    def one(video: Array, change: tuple[Array, Array]) -> tuple[Array, None]:
        return jax.lax.switch(branch[change[0]], branches, video, *change), None

    return jax.lax.scan(one, video, (codes, arguments))[0]


def inside(video: Array, extent: Array, /) -> Array:
    """bool [H W 1 1], True for pixels of the picture."""
    rows, columns = jnp.arange(video.shape[0])[:, None, None, None], jnp.arange(video.shape[1])[:, None, None]
    return (rows < extent[0]) & (columns < extent[1])


def grey(video: Array, /) -> Array:
    """i32 [H W T 1]: luma as Pillow's mode L."""
    red, green, blue = (video[..., i: i + 1].astype(jnp.int32) for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def blend(degenerate: Array, video: Array, factor: Array, /) -> Array:
    """degenerate + factor (video - degenerate), cut to bytes and rounded down."""
    low = degenerate.astype(jnp.float32)
    return jnp.clip(low + factor * (video.astype(jnp.float32) - low), 0, 255).astype(jnp.uint8)


def autocontrast(video: Array, argument: Array, extent: Array, /) -> Array:
    """Every channel of every frame stretched to 0..255."""
    within, values = inside(video, extent), video.astype(jnp.int32)
    low, high = jnp.where(within, values, 255).min((0, 1)), jnp.where(within, values, 0).max((0, 1))
    stretched = jnp.clip((values - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
    return jnp.where(high > low, stretched, values).astype(jnp.uint8)


def equalize(video: Array, argument: Array, extent: Array, /) -> Array:
    """A flat histogram for every channel of every frame."""
    within = inside(video, extent)
    levels = jnp.arange(256, dtype=jnp.int32)
    counts = jnp.sum((video == levels.astype(jnp.uint8)[:, None, None, None, None]) & within, (1, 2), dtype=jnp.int32)  # [256 T 3]
    largest = jnp.where(within, video, 0).max((0, 1)).astype(jnp.int32)
    last = jnp.take_along_axis(counts, largest[None], 0)[0]
    step = (counts.sum(0) - last) // 255
    before = jnp.cumsum(counts, 0) - counts
    table = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
    table = jnp.where(step > 0, table, levels[:, None, None]).astype(jnp.uint8)
    columns = jnp.arange(video.shape[2] * 3).reshape(video.shape[2:])
    return table.reshape(256, -1)[video.astype(jnp.int32), columns]


def posterize(video: Array, bits: Array, extent: Array, /) -> Array:
    """Keeps the leading bits."""
    return (video.astype(jnp.int32) & (256 - (1 << (8 - bits.astype(jnp.int32))))).astype(jnp.uint8)


def solarize(video: Array, threshold: Array, extent: Array, /) -> Array:
    """Inverts what is not below the threshold."""
    return jnp.where(video.astype(jnp.int32) < threshold.astype(jnp.int32), video, 255 - video)


def solarize_add(video: Array, amount: Array, extent: Array, /) -> Array:
    """Adds to what is below 128."""
    return jnp.where(video < 128, video + amount.astype(jnp.uint8), video)


def contrast(video: Array, factor: Array, extent: Array, /) -> Array:
    """Distance to the mean grey of each frame, which is rounded to a byte."""
    count = extent[0] * extent[1]
    total = jnp.where(inside(video, extent), grey(video), 0).sum((0, 1))  # [T 1]
    return blend(jnp.broadcast_to((2 * total + count) // (2 * count), video.shape), video, factor)


def sharpness(video: Array, factor: Array, extent: Array, /) -> Array:
    """Against a smoothed frame, whose outermost pixels are those of the frame."""
    high, wide = video.shape[:2]
    padded = jnp.pad(video, ((1, 1), (1, 1), (0, 0), (0, 0))).astype(jnp.int32)
    total = 4 * video.astype(jnp.int32) + sum(padded[i: i + high, j: j + wide] for i in range(3) for j in range(3))
    rows, columns = jnp.arange(high)[:, None, None, None], jnp.arange(wide)[:, None, None]
    inner = (rows > 0) & (rows < extent[0] - 1) & (columns > 0) & (columns < extent[1] - 1)
    return blend(jnp.where(inner, (2 * total + 13) // 26, video), video, factor)


def cubic(values: list[Array], place: Array, /) -> Array:
    """Pillow's bicubic polynomial through four values, at `place` in [0, 1) between the second and the third."""
    a, b, c, d = values
    return b + place * (c - a + place * (2 * (a - b) + c - d + place * (b - a + d - c)))


def affine(video: Array, matrix: Array, extent: Array, /) -> Array:
    """out[y, x] = in[d x + e y + f, a x + b y + c] at the centres of pixels, bicubic; grey from outside the picture."""
    high, wide = video.shape[:2]
    flat = video.reshape(high * wide, -1)
    y, x = jnp.arange(high)[:, None] + 0.5, jnp.arange(wide) + 0.5
    columns, rows = matrix[0] * x + matrix[1] * y + matrix[2], matrix[3] * x + matrix[4] * y + matrix[5]
    seen = (columns >= 0) & (columns < extent[1]) & (rows >= 0) & (rows < extent[0])
    left, top = jnp.floor(columns - 0.5), jnp.floor(rows - 0.5)
    across, down = ((p - 0.5 - low).reshape(-1, 1) for p, low in ((columns, left), (rows, top)))

    def tap(i: int, j: int) -> Array:
        row, column = (jnp.clip(low.astype(jnp.int32) + k, 0, most - 1) for low, k, most in ((top, i, extent[0]), (left, j, extent[1])))
        return flat[(row * wide + column).reshape(-1)].astype(jnp.float32)

    found = cubic([cubic([tap(i, j) for j in (-1, 0, 1, 2)], across) for i in (-1, 0, 1, 2)], down)
    found = jnp.where(seen.reshape(-1, 1), jnp.clip(found, 0, 255), augment.FILL[0]).astype(jnp.uint8)
    return found.reshape(video.shape)


def rotation(degrees: Array, extent: Array, aspect: Array, /) -> tuple[Array, ...]:
    """The map of a turn round the centre of the picture, anticlockwise."""
    angle, (y, x) = -jnp.deg2rad(degrees), extent / 2
    cos, across, down = jnp.cos(angle), jnp.sin(angle) * aspect, jnp.sin(angle) / aspect
    return cos, across, x - cos * x - across * y, -down, cos, y + down * x - cos * y


# Of the operations of `augment.OPERATIONS`, those that change values where they are, and the maps of those that move pixels.
VALUES: Mapping[str, Change] = types.MappingProxyType({
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": lambda video, argument, extent: 255 - video,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": lambda video, factor, extent: blend(jnp.broadcast_to(grey(video), video.shape), video, factor),
    "Contrast": contrast,
    "Brightness": lambda video, factor, extent: blend(jnp.zeros_like(video), video, factor),
    "Sharpness": sharpness,
})
MAPS: Mapping[str, Callable[[Array, Array, Array], tuple[Any, ...]]] = types.MappingProxyType({
    "Rotate": rotation,
    "ShearX": lambda share, extent, aspect: (1.0, share * aspect, 0.0, 0.0, 1.0, 0.0),
    "ShearY": lambda share, extent, aspect: (1.0, 0.0, 0.0, share / aspect, 1.0, 0.0),
    "TranslateX": lambda share, extent, aspect: (1.0, 0.0, share * extent[1], 0.0, 1.0, 0.0),
    "TranslateY": lambda share, extent, aspect: (1.0, 0.0, 0.0, 0.0, 1.0, share * extent[0]),
})
