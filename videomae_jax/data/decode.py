"""Frame-exact random access to video files through PyAV.

One thread per decoder (parallelism comes from the loader), containers always closed, seeking by presentation time only.
"""

import dataclasses
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

STAGES = ("open", "stream", "index", "seek", "decode", "short", "timestamps", "timeout")


class DecodeError(Exception):
    """A video that cannot be read: which file, at which of STAGES, and why."""

    def __init__(self, path: str, stage: str, cause: str) -> None:
        super().__init__(path, stage, cause)
        self.path, self.stage, self.cause = path, stage, cause

    @property
    def code(self) -> int:
        """1 + the stage's place in STAGES: the `fault` of a batch."""
        return 1 + STAGES.index(self.stage)

    def __str__(self) -> str:
        return f"{self.path}: {self.stage}: {self.cause}"


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What a demux-only pass tells of a video stream.

    `width` and `height` are those of the displayed picture (after rotation); `rotation` is counter-clockwise in degrees;
    `pts` i64 [frames] are presentation times in units of `time_base` seconds, ascending.
    """

    codec: str
    width: int
    height: int
    rotation: int
    fps: Fraction
    time_base: Fraction
    pts: np.ndarray

    @property
    def frames(self) -> int:
        return len(self.pts)

    @property
    def duration(self) -> float:
        """Seconds, the last frame counted with the mean frame length."""
        return float(self.frames / self.fps) if self.fps else 0.0


def name(source: str | bytes, /) -> str:
    """How errors call a source."""
    return source if isinstance(source, str) else f"<{len(source)} bytes>"


def _open(source: str | bytes, /) -> Any:
    try:
        return av.open(source if isinstance(source, str) else io.BytesIO(source), metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise DecodeError(name(source), "open", _reason(error)) from error


def _reason(error: BaseException, /) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def _video_stream(container: Any, source: str | bytes, /) -> Any:
    streams = [s for s in container.streams.video if not (s.disposition & av.stream.Disposition.attached_pic)]
    if not streams or streams[0].codec_context is None:
        raise DecodeError(name(source), "stream", "no decodable video stream")
    stream = streams[0]
    # Frame threads deadlock on early exit, and the default takes every core away from the other workers.
    stream.codec_context.thread_count = 1
    stream.codec_context.thread_type = "SLICE"
    return stream


def probe(source: str | bytes, /) -> VideoInfo:
    """Header and presentation times of a file or its bytes; decodes only the first frame (rotation lives there).

    Raises DecodeError.
    """
    with _open(source) as container:
        stream = _video_stream(container, source)
        pts = []
        try:
            for packet in container.demux(stream):
                if packet.pts is not None and packet.size and not packet.is_discard:
                    pts.append(packet.pts)
        except av.FFmpegError as error:
            if not pts:
                raise DecodeError(name(source), "index", _reason(error)) from error
        if not pts:
            raise DecodeError(name(source), "index", "no packet carries a presentation time")
        rotation = _rotation(container, stream, source)
        times = np.unique(np.asarray(pts, np.int64))
        width, height = stream.codec_context.width, stream.codec_context.height
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            span = float((times[-1] - times[0]) * stream.time_base)
            rate = Fraction((len(times) - 1) / span).limit_denominator(1001) if span else Fraction(1)
        return VideoInfo(codec=stream.codec_context.name, width=height if rotation % 180 else width, height=width if rotation % 180 else height,
                         rotation=rotation, fps=Fraction(rate), time_base=Fraction(stream.time_base), pts=times)


def _rotation(container: Any, stream: Any, source: str | bytes, /) -> int:
    try:
        container.seek(0)
        frame = next(container.decode(stream), None)
    except av.FFmpegError as error:
        raise DecodeError(name(source), "decode", _reason(error)) from error
    if frame is None:
        raise DecodeError(name(source), "decode", "no frame can be decoded")
    return int(round(frame.rotation)) % 360


def decode(source: str | bytes, /, *, ids: Sequence[int] | np.ndarray, info: VideoInfo) -> np.ndarray:
    """Frames `ids` (presentation order, repeats allowed) as u8 RGB [len(ids) H W 3], rotated for display.

    Seeks to the key frame at or before the first id, decodes forward and converts only the frames asked for. Raises
    DecodeError when a frame is missing: a silently substituted neighbour would be a wrong frame.
    """
    ids = np.asarray(ids, np.int64)
    if len(ids) == 0 or ids.min() < 0 or ids.max() >= info.frames:
        raise DecodeError(name(source), "short", f"frames {ids.min() if len(ids) else '-'}..{ids.max() if len(ids) else '-'} asked of {info.frames}")
    wanted = info.pts[np.unique(ids)]
    found: dict[int, np.ndarray] = {}
    with _open(source) as container:
        stream = _video_stream(container, source)
        for frame in _forward(container, stream, int(wanted[0]), source):
            if frame.pts in wanted:
                found[frame.pts] = picture(frame, rotation=info.rotation)
            if frame.pts is not None and frame.pts >= wanted[-1]:
                break
    missing = [int(p) for p in wanted if int(p) not in found]
    if missing:
        raise DecodeError(name(source), "decode", f"{len(missing)} of {len(wanted)} frames are missing, first at {float(missing[0] * info.time_base):.3f} s")
    return np.stack([found[int(p)] for p in info.pts[ids]])


def _forward(container: Any, stream: Any, start: int, source: str | bytes, /) -> Iterator[Any]:
    """Frames from the key frame at or before `start`; from the beginning where the container lands too late."""
    try:
        container.seek(start, stream=stream, backward=True, any_frame=False)
    except av.FFmpegError as error:
        raise DecodeError(name(source), "seek", _reason(error)) from error
    frames = _decoded(container, stream, source)
    first = next(frames, None)
    if first is None or first.pts is None or first.pts > start:
        container.seek(0)
        yield from _decoded(container, stream, source)
        return
    yield first
    yield from frames


def _decoded(container: Any, stream: Any, source: str | bytes, /) -> Iterator[Any]:
    try:
        yield from container.decode(stream)
    except av.FFmpegError as error:
        raise DecodeError(name(source), "decode", _reason(error)) from error


def picture(frame: Any, /, *, rotation: int) -> np.ndarray:
    """u8 RGB [H W 3] of a frame: its own range and colour matrix, rotated counter-clockwise by `rotation` degrees."""
    array = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(array, rotation // 90)) if rotation else array


def count(source: str | bytes, /) -> int:
    """Frames that really decode, from first to last; raises DecodeError at damage."""
    with _open(source) as container:
        stream = _video_stream(container, source)
        return sum(1 for frame in _decoded(container, stream, source) if not frame.is_corrupt)
