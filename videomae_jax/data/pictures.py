"""Videos that are stored as numbered pictures in a folder, and pictures that are videos of one frame."""

import io
import os
import pathlib
import time
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from videomae_jax.data import folders, remote
from videomae_jax.data.decode import TIMEOUT, DecodeError, VideoInfo, stage_of
from videomae_jax.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Pictures(NamedTuple):
    """A folder and how its pictures are called, such as img_{:05}.jpg with the frame's number; "" makes `path` the one picture."""

    path: str
    template: str

    def file(self, number: int, /) -> str:
        """The file of a frame."""
        return f"{self.path.rstrip('/')}/{self.template.format(number)}" if self.template else self.path


def check(template: str, /) -> str:
    """The template itself. Raises UserError where it does not name a file by one number."""
    try:
        one, two = template.format(1), template.format(2)
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(f"template {template!r} is not understood ({error}); allowed is a name with one number, such as img_{{:05}}.jpg") from error
    if one == two or "/" in template:
        raise UserError(f"template {template!r} names no file by its number; allowed is a name with one number, such as img_{{:05}}.jpg")
    return template


def numbers(names: Sequence[str], template: str, /) -> list[int]:
    """Numbers that occur among file names, ascending: those whose name the template gives back."""
    head, tail = os.path.commonprefix([template.format(n) for n in (10**9, 2 * 10**9)]), template.format(0).rpartition("0")[2]
    found = []
    for name in names:
        middle = name[len(head): len(name) - len(tail)]
        if name.startswith(head) and name.endswith(tail) and middle.isascii() and middle.isdigit() and template.format(int(middle)) == name:
            found.append(int(middle))
    return sorted(found)


def find(directory: pathlib.Path, template: str, /) -> list[str]:
    """Folders below a folder that hold pictures of the template, relative to it, sorted. Raises UserError where there is none."""
    if not directory.is_dir():
        raise UserError(f"{directory} is not a folder")
    found = []
    for folder, below, files in folders.walk(directory):
        if numbers(files, template):
            found.append(folder.relative_to(directory).as_posix())
            below.clear()
    if not found:
        raise UserError(f"no folder in {directory} holds pictures called {template}")
    return sorted(found)


def probe(video: Pictures, /, *, fps: Fraction, start: int = 0, frames: int = -1) -> VideoInfo:
    """Size of the first picture, and the numbers of all as presentation times: `frames` from `start`, or those that the folder holds.

    Raises DecodeError where the first or the last is missing.
    """
    if not video.template:
        found = np.zeros(1, np.int64)
    elif frames >= 0:
        found = start + np.arange(frames, dtype=np.int64)
    else:
        try:
            found = np.asarray(numbers(os.listdir(video.path), video.template), np.int64)
        except OSError as error:
            raise DecodeError(video.path, stage_of(error, "open"), error.strerror or str(error)) from error
    if not len(found):
        raise DecodeError(video.path, "index", f"no picture called {video.template}")
    first = _open(video, int(found[0]))
    if len(found) > 1:
        _bytes(video.file(int(found[-1])))
    return VideoInfo(codec="pictures", width=first.width, height=first.height, rotation=0, fps=fps, time_base=1 / fps, pts=found, keys=found[:1])


def decode(video: Pictures, ids: Sequence[int] | np.ndarray, /, *, info: VideoInfo, timeout: float = TIMEOUT) -> np.ndarray:
    """Frames `ids` as RGB u8 [len(ids) H W 3], turned as their EXIF says. Raises DecodeError, also for a picture of another size."""
    ids, end = np.asarray(ids, np.int64), time.monotonic() + timeout
    if not ids.size or ids.min() < 0 or ids.max() >= info.frames:
        raise DecodeError(video.path, "short", f"frames {ids.tolist()} of a video with frames 0..{info.frames - 1}")
    out = np.empty((len(ids), info.height, info.width, 3), np.uint8)
    for number in np.unique(ids):
        if time.monotonic() > end:
            raise DecodeError(video.path, "timeout", f"not done after {timeout:g} s")
        picture = _open(video, int(info.pts[number]))
        if picture.size != (info.width, info.height):
            raise DecodeError(video.file(int(info.pts[number])), "decode", f"{picture.width} x {picture.height} pixels, {info.width} x {info.height} when it was indexed")
        out[ids == number] = np.asarray(picture)
    return out


def _open(video: Pictures, number: int, /) -> Image.Image:
    """A picture in RGB."""
    path = video.file(number)
    data = _bytes(path)
    try:
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what PIL raises for damage
        raise DecodeError(path, "decode", str(error).splitlines()[0].replace(str(io.BytesIO), "file")) from error


def _bytes(path: str, /) -> bytes:
    if remote.is_remote(path):
        return remote.read(path)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DecodeError(path, stage_of(error, "open"), error.strerror or str(error)) from error
