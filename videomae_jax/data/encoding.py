"""Encoding short clips so that they decode fast, and checking what came of it."""

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from videomae_jax.data import columns, decode, index

BLOCK = 16  # pixels a side over which verification compares means: encoders keep these even of noise
TOLERANCE = 16.0  # grey levels, mean over the blocks of a frame
TICKS = 512  # units of an mp4 clock per frame
RATES = (Fraction(1, 1001), Fraction(4000))  # frames a second, with denominators to 1001: 4000 x 1001 x TICKS still fits the 31 bits of an mp4 clock


def encode(video: np.ndarray, /, *, fps: Fraction, preset: str, crf: int, gop: int) -> bytes:
    """u8 [T H W 3], even sides -> an mp4 of one constant rate: the same bytes on every call, in every process and under any load."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"video_track_timescale": str(fps.numerator * TICKS)}) as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = video.shape[2], video.shape[1], "yuv420p"
        stream.codec_context.thread_count = 1  # the number of threads would change the bytes
        # No B-frames and no filters that the fast-decode tune leaves out; keys at fixed places, so that all windows have one table of times.
        stream.options = {"preset": preset, "tune": "fastdecode", "crf": str(crf), "g": str(gop), "keyint_min": str(gop),
                          "bf": "0", "sc_threshold": "0"}
        for number, picture in enumerate(video):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return file.getvalue()


def shrink(video: np.ndarray, /, *, width: int, height: int) -> np.ndarray:
    """u8 [T H W 3] resized with PIL's antialiased bicubic filter, which keeps more detail than the crop's bilinear one."""
    if video.shape[1:3] == (height, width):
        return video
    return np.stack([np.asarray(Image.fromarray(np.ascontiguousarray(p)).resize((width, height), Image.Resampling.BICUBIC)) for p in video])


def compare(video: np.ndarray, blob: bytes, /, *, facts: dict[str, Any], name: str) -> float:
    """PSNR in dB of an encoded window. Raises RuntimeError where it has other frames or times than it should have."""
    try:
        found = index.describe(blob)
    except decode.DecodeError as error:
        raise RuntimeError(f"{name}: the packed clip cannot be read again: {error.stage}: {error.cause}") from error
    wrong = {k: (found.get(k), v) for k, v in facts.items() if not np.array_equal(found.get(k), v)}
    if wrong:
        raise RuntimeError(f"{name}: the packed clip differs from what its index would say: {wrong}")
    again = decode.decode(blob, np.arange(len(video)), info=columns.info(facts))
    difference = again.astype(np.float32) - video
    frames, rows, across = len(video), video.shape[1] // BLOCK, video.shape[2] // BLOCK
    if rows and across:
        blocks = difference[:, : rows * BLOCK, : across * BLOCK].reshape(frames, rows, BLOCK, across, BLOCK, 3).mean((2, 4, 5))
        if (worst := float(np.abs(blocks).mean((1, 2)).max())) > TOLERANCE:
            raise RuntimeError(f"{name}: a packed frame differs from its source by {worst:.1f} grey levels on average; allowed are {TOLERANCE:g}")
    return float(10 * np.log10(255**2 / max(float((difference**2).mean()), 1e-2)))
