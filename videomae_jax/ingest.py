"""The first stage of a jitted step: planes and windows (`data.planes`) become `video`, for every objective alike.

A crop and its resize are one matrix along each axis, PIL's antialiased bilinear filter that sees no pixel outside `reach`.
Chroma needs no enlarging of its own: its matrix is that of luma with the columns of every two pixels added.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import parallel, randaugment
from videomae_jax.data import planes
from videomae_jax.errors import UserError
from videomae_jax.types import Array, Batch

FRAMES = 4  # cut at a time: in float32 a whole batch would be larger than what the step needs
# Of the products TensorFloat-32 (GPU) and three bfloat16 passes (TPU) are closer to float32 than the rounding to u8 is.
PRECISION = jax.lax.Precision.HIGH
CONSUMED = ("luma", "chroma", "colour", "box", "reach", "mirrored", "extent", "aspect", "operation", "argument")
SHARED = ("luma", "chroma", "colour", "extent", "aspect")  # those that the copies of a decode share


def placed(source: Any, /, *, platform: str, batch_size: int, ways: int) -> Any:
    """A source, or the planes of it where its `crops` asks for the device.

    "auto" means the device on GPU and TPU, where the source allows it and `ways` devices divide the `batch_size` decoded
    clips; crops with RandAugment on GPU alone, because its gathers have not been measured on a TPU. Raises UserError where "device" is asked for and impossible.
    """
    where, reason = planes.chosen(source), planes.refusal(source)
    if not reason and batch_size % ways:
        reason = f"{batch_size} decoded clips are no multiple of {ways} batch devices"
    if where == "device" and reason:
        raise UserError(f"data.crops='device': {reason}; allowed is data.crops='host'")
    automatic = where == "auto" and not reason and platform in (("gpu",) if planes.changes(source) else ("gpu", "tpu"))
    return planes.shipped(source) if where == "device" or automatic else source


def ingest(batch: Batch, /, *, fields: Mapping[str, Any]) -> Batch:
    """The batch with the `video` u8 [B T size size 3] of `fields` in place of planes and windows; any other batch as it is."""
    if "luma" not in batch:
        return batch
    make = augmented if "operation" in batch else cut
    video = make(batch, size=fields["video"].shape[1])  # what works on whole clips on the device belongs behind this line
    return {k: v for k, v in batch.items() if k not in CONSUMED} | {"video": parallel.shard(video, "batch", None, None, None, None)}


def cut(batch: Batch, /, *, size: int) -> Array:
    """Video u8 [B T size size 3] of `luma` u8 [n T H W], `chroma` u8 [n T 2 H/2 W/2], `colour` f32 [n T 3 4], `box` and `reach` f32 [B 4], `mirrored` bool [B].

    The B / n copies of a decode are neighbours. Equal to PIL on the RGB frames within a grey level on average: products are
    not rounded in between, and colour is converted behind the filter.
    """
    luma, chroma, colour = batch["luma"], batch["chroma"], batch["colour"]
    n, frames, height, width = luma.shape
    (left, top, wide, high), (low_x, low_y, high_x, high_y) = batch["box"].T, batch["reach"].T
    x = weights(left, wide, low_x, high_x, batch["mirrored"], size=size, pixels=width).reshape(n, -1, size, width)
    y = weights(top, high, low_y, high_y, jnp.zeros_like(batch["mirrored"]), size=size, pixels=height).reshape(n, -1, size, height)
    halves = [w.reshape(*w.shape[:-1], -1, 2).sum(-1) for w in (x, y)]

    def frame(parts: tuple[Array, Array, Array]) -> Array:
        bright, tints, mix = _resize(parts[0].astype(jnp.float32)[:, None], x, y), _resize(parts[1].astype(jnp.float32), *halves), parts[2]
        mix = mix[:, None, :, :, None, None]
        # No product of matrices: three of the 128 rows and columns of a TPU's unit would be in use, and colours have to come innermost for it.
        rgb = mix[:, :, :, 3] + sum(part[:, :, None, i] * mix[:, :, :, at + i] for part, at in ((bright, 0), (tints, 1)) for i in range(part.shape[2]))
        return jnp.round(jnp.clip(rgb, 0, 255)).astype(jnp.uint8)

    by_time = tuple(part.swapaxes(0, 1) for part in (luma, chroma, colour))
    video = jax.lax.map(frame, by_time, batch_size=min(FRAMES, frames))  # [T n K 3 size size]: three colours innermost would be written slowly
    return video.transpose(1, 2, 0, 4, 5, 3).reshape(-1, frames, size, size, 3)


def augmented(batch: Batch, /, *, size: int) -> Array:
    """As `cut` with RandAugment on whole frames before the crop, which is resized without antialiasing (`augment.AugmentedCrop`).

    A clip at a time, by every device on its own: what clips do differs. Besides the rounding of `cut`, frames are rounded to bytes before
    they are changed, as on the host.
    """
    keys = [k for k in CONSUMED if k in batch]

    def local(*arrays: Array) -> Array:
        part = dict(zip(keys, arrays, strict=True))
        n = len(part["luma"])
        own = {k: v.reshape(n, -1, *v.shape[1:]) for k, v in part.items() if k not in SHARED}
        video = jax.lax.map(lambda x: _decode(*x, size=size), ({k: part[k] for k in SHARED}, own))
        return video.reshape(-1, *video.shape[2:])

    names = [("batch", *(None,) * (batch[k].ndim - 1)) for k in keys]
    return parallel.per_device(local, *names)(*[batch[k] for k in keys])


def _decode(shared: Batch, own: Batch, /, *, size: int) -> Array:
    """Video u8 [K T size size 3] of one decode and its K windows."""
    frames, height, width = shared["luma"].shape
    tints = jnp.moveaxis(shared["chroma"], (0, 1), (2, 3)).repeat(2, 0).repeat(2, 1)  # [H W T 2]
    yuv = jnp.concatenate([jnp.moveaxis(shared["luma"], 0, 2)[..., None], tints], -1).astype(jnp.float32)
    rgb = jnp.einsum("hwtc,trc->hwtr", yuv, shared["colour"][..., :3], precision=jax.lax.Precision.HIGHEST) + shared["colour"][..., 3]
    rgb = jnp.round(jnp.clip(rgb, 0, 255)).astype(jnp.uint8)

    def one(own: Batch) -> Array:
        video = randaugment.changed(rgb, own["operation"], own["argument"], shared["extent"], shared["aspect"])
        (left, top, wide, high), (low_x, low_y, high_x, high_y) = (own[k][:, None] for k in ("box", "reach"))
        x = weights(left, wide, low_x, high_x, own["mirrored"][None], size=size, pixels=width, antialias=False)[0]
        y = weights(top, high, low_y, high_y, jnp.zeros(1, bool), size=size, pixels=height, antialias=False)[0]
        out = jnp.einsum("ah,hwc,bw->abc", y, video.reshape(height, width, -1).astype(jnp.float32), x, precision=PRECISION, optimize="optimal")
        out = jnp.round(jnp.clip(out, 0, 255)).astype(jnp.uint8)
        return jnp.moveaxis(out.reshape(size, size, frames, 3), 2, 0)

    return jax.lax.map(one, own)


def _resize(planes: Array, x: Array, y: Array, /) -> Array:
    """[n K c size size] of planes f32 [n c H W] with the matrices [n K size W] and [n K size H]."""
    return jnp.einsum("nkah,nchw,nkbw->nkcab", y, planes, x, precision=PRECISION, optimize="optimal")  # the longer side of the canvas first


def weights(start: Array, length: Array, low: Array, high: Array, mirrored: Array, /, *, size: int, pixels: int, antialias: bool = True) -> Array:
    """f32 [R size pixels]: rows of PIL's antialiased bilinear resize of the pixels `start` to `start + length` to `size`, each argument [R].

    A row is a triangle around its centre, two output pixels wide or two input pixels where that is more, or always so without
    `antialias`, cut off below `low` and from `high` on and then normalised.
    """
    scale = length / size
    places = jnp.arange(size) + 0.5
    places = jnp.where(mirrored[:, None], size - places, places)
    centres = start[:, None] + places * scale[:, None]
    points = jnp.arange(pixels) + 0.5
    reach = jnp.maximum(scale, 1) if antialias else jnp.ones_like(scale)
    triangle = jnp.maximum(1 - jnp.abs(points - centres[..., None]) / reach[:, None, None], 0)
    seen = (points > low[:, None]) & (points < high[:, None])
    triangle = jnp.where(seen[:, None], triangle, 0)
    return triangle / triangle.sum(-1, keepdims=True)
