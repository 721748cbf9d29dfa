"""Windows of sound from the audio streams of video files through PyAV.

A sample is found by its presentation time, on the clock that the pictures of the file share. One decoder uses one thread;
containers live only inside a call.
"""

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np

from videomae_jax.data import decode
from videomae_jax.data.decode import TIMEOUT, DecodeError, Video
from videomae_jax.errors import UserError

# Seconds decoded and thrown away after a seek: an AAC frame overlaps the one before it, MP3 borrows bits from up to nine
# frames (0.24 s), Opus asks for 0.08 s.
PREROLL = 0.5
MARGIN = 64  # samples at the wanted rate on either side of the window; the resampler's filter reaches over 16
BACKWARD = (0.0, 2.0, 10.0, math.inf)  # further seconds back for repeated seeks that land behind the preroll


@dataclasses.dataclass(frozen=True)
class Sound:
    """`samples` f32 [n] of one channel, full scale 1; `valid` bool [n] is False, and the sample 0, where the file has none."""

    samples: np.ndarray
    valid: np.ndarray


def decode_audio(source: Video, /, *, start: float, duration: float, rate: int, timeout: float = TIMEOUT) -> Sound:
    """round(duration * rate) samples of the first audio stream, the mean of its channels.

    Sample k lies at `start` + k / rate seconds on the clock of the presentation times (`VideoInfo.pts * time_base`), to
    within half a sample of the lower of the two rates; where the container rounds times coarser than that (Matroska: 1 ms),
    to within half of its unit. Encoder priming is left out as the container says. `start` may be negative. A file without
    an audio stream is no error: all samples are invalid, as are those before and after the stream and in its gaps. Long
    files are entered by seeking. Raises DecodeError for damage inside the window, for an mp4 that ends before the sound
    its header announces, and after `timeout` seconds.
    """
    if rate < 1 or not 0 <= duration < math.inf or not math.isfinite(start):
        raise UserError(f"{duration} s from {start} s at {rate} samples/s; allowed are a finite start, a duration >= 0 and a rate >= 1")
    call, count = decode.Call(source, timeout), round(duration * rate)
    origin, end = Fraction(start) - Fraction(MARGIN, rate), Fraction(start) + Fraction(count + MARGIN, rate)
    with call.open() as container:
        stream = _stream(call, container)
        chunks = [] if stream is None else list(_chunks(call, container, stream, origin, end))
        unit = Fraction(0) if stream is None else Fraction(stream.time_base)
    rates = sorted({chunk.rate for chunk in chunks})
    if len(rates) > 1:
        call.fail("decode", f"the sample rate changes within the window: {rates}")
    if not chunks:
        return Sound(np.zeros(count, np.float32), np.zeros(count, bool))
    native = rates[0]
    first = round(origin * native)  # number of the buffer's first sample, counted from time 0
    samples, valid = _placed(chunks, first=first, count=math.ceil((end - origin) * native), slack=1 + unit * native)
    skip = round((Fraction(start) - Fraction(first, native)) * rate)
    taken = np.minimum(np.arange(skip, skip + count) * native // rate, len(valid) - 1)
    samples, valid = resampled(samples, native=native, rate=rate)[skip: skip + count], valid[taken]
    return Sound(np.where(valid, samples, np.float32(0)), valid)


def resampled(samples: np.ndarray, /, *, native: int, rate: int) -> np.ndarray:
    """Samples f32 [n] at `native` per second -> f32 [about n * rate / native] at `rate`; the first sample stays in place."""
    if native == rate:
        return samples
    frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
    frame.sample_rate = native
    converter = av.AudioResampler(format="flt", layout="mono", rate=rate)
    return np.concatenate([part.to_ndarray()[0] for part in [*converter.resample(frame), *converter.resample(None)]])


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """Decoded samples f32 [n] of one channel at `rate` from `time` seconds on."""

    time: Fraction
    samples: np.ndarray
    rate: int


def _stream(call: Any, container: Any, /) -> Any:
    """The first audio stream, None where there is none."""
    if not container.streams.audio:
        return None
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        call.fail("stream", "no decoder for the audio stream")
    stream.codec_context.thread_count = 1
    return stream


def _chunks(call: Any, container: Any, stream: Any, origin: Fraction, end: Fraction, /) -> Iterator[_Chunk]:
    """What of a stream reaches into [origin, end)."""
    base, reached = Fraction(stream.time_base), None
    for packet in _packets(call, container, stream, origin):
        if packet.is_corrupt:
            call.fail("short", f"the file ends or is damaged within the sound at {float((packet.pts or 0) * base):.3f} s")
        for frame in _frames(call, packet, base, origin):
            if frame.pts is None:
                call.fail("timestamps", "the decoder gives sound without a presentation time")
            time = frame.pts * Fraction(frame.time_base)
            reached = time + Fraction(frame.samples, frame.sample_rate)
            if frame.is_corrupt and time < end and reached > origin:
                call.fail("decode", f"the sound at {float(time):.3f} s is damaged")
            if time >= end:
                return
            if reached > origin:
                yield _Chunk(time, _mono(frame), frame.sample_rate)
    # Only this family announces the length of the sound exactly.
    if "mp4" in container.format.name and stream.duration:
        announced = ((stream.start_time or 0) + stream.duration) * base
        if announced > origin and (reached is None or reached < min(end, announced - 1)):
            held = "none from there on" if reached is None else f"it up to {float(reached):.3f} s"
            call.fail("short", f"the header announces sound up to {float(announced):.3f} s, the file holds {held}")


def _packets(call: Any, container: Any, stream: Any, origin: Fraction, /) -> Iterator[Any]:
    """Packets from PREROLL before `origin` or the stream's beginning on; further back while the container lands behind it."""
    base, target = Fraction(stream.time_base), origin - Fraction(PREROLL)
    begin = (stream.start_time or 0) * base
    for back in BACKWARD:
        enter = max(target - Fraction(back), begin) if math.isfinite(back) else begin
        if enter > begin or back:
            try:
                container.seek(int(enter / base), stream=stream, backward=True, any_frame=False)
            except av.FFmpegError as error:
                raise call.error("seek", error) from error
        packets = call.packets(container, stream, stage="decode")
        first = next(packets, None)
        if first is None:
            return
        if enter <= begin or (first.pts is not None and first.pts * base <= target + Fraction(PREROLL) / 2):
            yield first
            yield from packets
            return


def _frames(call: Any, packet: Any, base: Fraction, origin: Fraction, /) -> list[Any]:
    """Frames of a packet; none where it fails in the preroll, whose decoder may still lack what lies before it.

    The packet after a lost one is not whole either, so the last packet before the window counts as part of it.
    """
    try:
        return call.frames(packet)
    except DecodeError:
        if packet.pts is not None and packet.duration and (packet.pts + 2 * packet.duration) * base <= origin:
            return []
        raise


def _mono(frame: Any, /) -> np.ndarray:
    """Mean of the channels f32 [n], full scale 1."""
    array = frame.to_ndarray()
    planes = array if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels).T
    if array.dtype.kind == "f":
        return planes.mean(0, dtype=np.float32)
    scale = 2.0 ** (8 * array.dtype.itemsize - 1)
    return np.float32(planes.mean(0, dtype=np.float64) / scale - (array.dtype.kind == "u"))


def _placed(chunks: list[_Chunk], /, *, first: int, count: int, slack: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """(samples f32 [count], valid bool [count]) from sample number `first` on.

    A chunk that begins within `slack` samples of the end of the one before it continues it: containers round times.
    """
    samples, valid = np.zeros(count, np.float32), np.zeros(count, bool)
    expected = None
    for chunk in chunks:
        exact = chunk.time * chunk.rate
        place = round(exact) if expected is None or abs(exact - expected) > slack else expected
        expected = place + len(chunk.samples)
        low, high = max(place - first, 0), min(expected - first, count)
        if high > low:
            samples[low:high], valid[low:high] = chunk.samples[low - place + first: high - place + first], True
    return samples, valid
