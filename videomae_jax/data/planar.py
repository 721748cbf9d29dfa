"""Decoded frames as luma, chroma and the matrix that makes RGB of them."""

import functools
from typing import Any

import numpy as np
from av import VideoFrame
from av.video.reformatter import VideoReformatter

PLANAR = ("yuv420p", "yuvj420p")  # pixel formats whose planes are handed out as they are where the sides are even (`views`)
# Weights of red and blue in luma by the number that a stream gives its matrix (ITU-T H.273); unnamed (2) counts as BT.601.
MATRICES = {1: (0.2126, 0.0722), 2: (0.299, 0.114), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
FULL = 2  # FFmpeg's number for full range
JPEG = (5, True)  # matrix and range of the planes of every other picture


def views(frame: Any, converter: VideoReformatter, /, *, size: tuple[int, int], rotation: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Luma, blue and red chroma u8 [h w] for display, of the stored (width, height) `size`, and their `colour`."""
    width, height = size
    full = frame.color_range == FULL or frame.format.name.startswith("yuvj")
    # A side that the rotation turns round begins with its last chroma, and of an odd side that belongs to one pixel: it is made after the rotation.
    even = height % 2 == 0 and (width % 2 == 0 or rotation in (0, 270))
    plain = frame.format.name in PLANAR and (frame.width, frame.height) == size and int(frame.colorspace) in MATRICES and even
    if not plain:
        frame = converter.reformat(frame, format="rgb24", width=width, height=height, threads=1)
        if rotation and not even:
            frame, rotation = VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(frame.to_ndarray(), rotation // 90)), format="rgb24"), 0
        frame = converter.reformat(frame, format="yuv420p", dst_colorspace=5, dst_color_range=FULL, threads=1)
    # The arrays keep their planes, and so the decoder's memory, until they are copied.
    parts = [np.frombuffer(p, np.uint8).reshape(-1, p.line_size)[: p.height, : p.width] for p in frame.planes]
    return [np.rot90(v, rotation // 90) for v in parts], colour(*((int(frame.colorspace), full) if plain else JPEG), plain=plain)


@functools.lru_cache
def colour(matrix: int, full: bool, /, *, plain: bool) -> np.ndarray:
    """RGB f32 [3 4] of (luma, blue chroma, red chroma, 1), all in 0..255; `matrix` is one of MATRICES.

    Includes the mean rounding of FFmpeg's converters. For `plain` pictures each product is rounded down, half a level on
    average (in full range that of luma is exact); where RGB becomes 4:2:0 the mean chroma of four pixels is.
    """
    red, blue = MATRICES[matrix]
    green, luma, chroma, black = 1 - red - blue, *((1.0, 1.0, 0.0) if full else (255 / 219, 255 / 224, 16.0))
    shares = np.asarray([[0, 2 - 2 * red], [-(2 - 2 * blue) * blue / green, -(2 - 2 * red) * red / green], [2 - 2 * blue, 0]]) * chroma
    products, neutral = (np.asarray([1, 2, 1]) + (not full), 128.0) if plain else (np.zeros(3), 127.5)
    offsets = -luma * black - neutral * shares.sum(1) - products / 2
    return np.concatenate([np.full((3, 1), luma), shares, offsets[:, None]], 1).astype(np.float32)
