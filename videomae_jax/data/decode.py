"""Frame-exact random access to video files through PyAV.

A frame is named by its place in presentation order and found by its presentation time, never by counting packets:
variable frame rates, B-frames, edit lists and files without a frame count are read alike. One decoder uses one thread;
parallelism comes from the loader. Containers live only inside a call.
"""

import contextlib
import dataclasses
import errno
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from videomae_jax.data import local_file, planar
from videomae_jax.data.patience import Patience

STAGES = ("open", "stream", "index", "seek", "decode", "short", "timestamps", "timeout", "io")
PASSING = ("timeout", "io")  # stages of failures that are not the file's, and need not repeat
# What network and user-space file systems report while a server is away. "No such file" and "permission denied" are none of these; not every system has all.
TRANSIENT = tuple(getattr(errno, word) for word in ("EIO", "ESTALE", "EAGAIN", "ETIMEDOUT", "ECONNRESET", "ENOTCONN", "EREMOTEIO") if hasattr(errno, word))
TIMEOUT = 60.0  # seconds that one file may take; a stalled network mount is the usual reason for more
WHOLE = 3600.0  # seconds that reading a file from end to end may take while its bytes come: large ones on slow mounts are no damage
# Codecs whose frames say whether others refer to them, so that leaving out the rest changes no pixel of those kept.
# MPEG-4 part 2 does change: its B-frames keep the decoder's delay.
SKIPPING = ("h264", "hevc")
# AVI stores no presentation times. FFmpeg guesses them from the delay of the decoder, and for two B-frames in a row, as XviD writes them (UCF101), it
# swaps neighbours. Decoders give frames in the order of presentation, whatever the guess.
UNTIMED = "avi"
SEEK_GAIN = 8  # frames that a further seek must save to be worth refilling the decoder
BACKWARD = (0.0, 1.0, 10.0, math.inf)  # seconds before the target for repeated seeks that land behind it

Video = str | os.PathLike[str] | bytes


class DecodeError(Exception):
    """A video that cannot be read: which file, at which of STAGES, and why."""

    def __init__(self, path: str, stage: str, cause: str) -> None:
        if stage not in STAGES:
            raise ValueError(f"stage {stage!r}; allowed are {', '.join(STAGES)}")
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

    `width` and `height` are those of the displayed picture (after rotation, in stored pixels: the pixel aspect ratio is not applied); `rotation` is
    counter-clockwise in degrees, a multiple of 90; `fps` is the mean number of frames per second. `pts` i64 [frames] are presentation times in units of
    `time_base` seconds, ascending; `keys` i64 [keys] are those of key frames.
    """

    codec: str
    width: int
    height: int
    rotation: int
    fps: Fraction
    time_base: Fraction
    pts: np.ndarray
    keys: np.ndarray

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.pts)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last, which counts with the mean frame length."""
        return float(self.frames / self.fps)


def stage_of(error: BaseException, stage: str, /) -> str:
    """`stage`, or "io" where the error is one of the file system that may pass."""
    return "io" if getattr(error, "errno", None) in TRANSIENT else stage


def name(source: Video, /) -> str:
    """How errors call a source."""
    return f"<{len(source)} bytes>" if isinstance(source, bytes) else os.fspath(source)


def probe(source: Video, /, *, timeout: float | Patience | None = None) -> VideoInfo:
    """Header and presentation times of a file or its bytes, in one pass over the packets.

    Only packets up to the first picture are decoded: the rotation is attached to it, and a stream that never gives a
    picture is found out here. Raises DecodeError, also for a file that ends before the frames its header announces, and
    after `timeout` seconds (None: after TIMEOUT without a byte, or WHOLE in all).
    """
    call, pts, keys, stored, first = Call(source, Patience(TIMEOUT, whole=WHOLE) if timeout is None else timeout), [], [], 0, None
    with call.open() as container:
        stream = call.stream(container)
        for packet in call.packets(container, stream):
            if packet.is_corrupt:
                call.fail("short", f"the file ends or is damaged within packet {stored}")
            if packet.size and first is None:
                first = next(iter(call.frames(packet)), None)
            if packet.size and packet.pts is not None and not packet.is_discard:
                pts.append(packet.pts)
                keys += [packet.pts] if packet.is_keyframe else []
            stored += bool(packet.size)
        if first is None:
            first = next(iter(call.frames(None, stream)), None)
        # Only this family counts the stored frames exactly; AVI counts repeated ones too, Matroska none.
        if "mp4" in container.format.name and stored < stream.frames:
            call.fail("short", f"the header announces {stream.frames} frames, the file holds {stored}")
        if not pts:
            call.fail("timestamps" if stored else "index", f"none of {stored} packets carries a presentation time")
        if first is None:
            call.fail("decode", f"none of {stored} packets gives a picture")
        turn = round(first.rotation / 90) * 90 % 360
        sizes = (first.width, first.height)[:: -1 if turn % 180 else 1]
        times = np.unique(np.asarray(pts, np.int64))
        fps = _rate(stream.average_rate, times, Fraction(stream.time_base), timed=container.format.name != UNTIMED)
        return VideoInfo(codec=stream.codec_context.name, width=sizes[0], height=sizes[1], rotation=turn, fps=fps, time_base=Fraction(stream.time_base),
                         pts=times, keys=np.unique(np.asarray(keys, np.int64)))


def _rate(header: Fraction | None, times: np.ndarray, time_base: Fraction, /, *, timed: bool) -> Fraction:
    """Mean frames per second: by the presentation times where the file stores some (`timed`), else the header's, else 1."""
    header, steps, span = Fraction(header or 0), len(times) - 1, (int(times[-1]) - int(times[0])) * time_base
    # A header may say what a camera was to deliver, or what the first frames had. One that differs by less than a frame at the end, as rounding and the
    # length of the last frame make it, is the exact one (30000/1001); for few frames that is any rate, but ticks of 1 ms are 5 % of 50 frames a second.
    if not span or not timed or abs(span * header - steps) <= min(Fraction(1), Fraction(steps, 20)):
        return header or Fraction(1)
    mean = max(steps / span, Fraction(1, 10**9))  # absurd times must not exceed the integers of an index
    return mean.limit_denominator(1001) if mean > 1 else 1 / (1 / mean).limit_denominator(1001)


def decode(source: Video, ids: Sequence[int] | np.ndarray, /, *, info: VideoInfo | None = None, timeout: float = TIMEOUT) -> np.ndarray:
    """Frames `ids` (presentation order, any order, repeats allowed) as RGB u8 [len(ids) H W 3], rotated for display.

    Each frame is decoded from the key frame before it and converted once, with its own colour matrix and range (BT.601
    where the stream names none, as FFmpeg, decord and OpenCV do). A frame that the decoder leaves out without an error
    (a "not coded" picture) is the one on screen at its time: the last decoded one at or before it, else the first of all.
    `info` spares the probe. Raises DecodeError for damage anywhere between a frame and its key frame, because decoders
    conceal it with plausible pixels, and after `timeout` seconds.
    """
    info, converter = info or probe(source, timeout=timeout), VideoReformatter()
    ids = np.asarray(ids, np.int64)
    found = _read(source, ids, info=info, timeout=timeout, convert=lambda frame: _picture(frame, info, converter))
    out = np.empty((len(ids), info.height, info.width, 3), np.uint8)
    for number, picture in found.items():
        out[ids == number] = picture
    return out


class Planes(NamedTuple):
    """Frames as most streams store them (YUV 4:2:0), rotated for display.

    `luma` u8 [n h w] and `chroma` u8 [n 2 ceil(h/2) ceil(w/2)], whose value (i, j) belongs to the luma pixels 2i, 2i + 1 and
    2j, 2j + 1; RGB in 0..255 is `colour` f32 [n 3 4] times (luma, blue chroma, red chroma, 1).
    """

    luma: np.ndarray
    chroma: np.ndarray
    colour: np.ndarray


def planes(source: Video, ids: Sequence[int] | np.ndarray, /, *, info: VideoInfo | None = None, cut: tuple[int, int, int, int] | None = None,
           timeout: float = TIMEOUT) -> Planes:
    """The frames of `decode` without the conversion to RGB: half the bytes, and most of them copied once.

    `cut` (left, top, right, bottom), left and top even, is the part of the displayed picture that is wanted. With the
    chroma repeated, `colour` gives the pixels of `decode` but for the rounding of its converter, whose mean it includes.
    Pictures of other formats (4:4:4, 10 bits, an odd number of rows, or of columns that are turned round) become RGB as there and then 4:2:0: they lose the
    finer chroma.
    """
    info = info or probe(source, timeout=timeout)
    ids, converter = np.asarray(ids, np.int64), VideoReformatter()
    size = (info.height, info.width) if info.rotation % 180 else (info.width, info.height)
    found = _read(source, ids, info=info, timeout=timeout, convert=lambda frame: planar.views(frame, converter, size=size, rotation=info.rotation))
    return _cut([found[number] for number in ids.tolist()], cut or (0, 0, info.width, info.height))


def planes_of(video: np.ndarray, /, *, cut: tuple[int, int, int, int]) -> Planes:
    """RGB pictures u8 [n h w 3] as `planes` makes them of streams that are not 4:2:0."""
    converter, size = VideoReformatter(), (video.shape[2], video.shape[1])
    frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24") for picture in video)
    return _cut([planar.views(frame, converter, size=size, rotation=0) for frame in frames], cut)


def _cut(frames: list[tuple[list[np.ndarray], np.ndarray]], cut: tuple[int, int, int, int], /) -> Planes:
    """A part of frames that `planar.views` gave, in one piece of memory."""
    left, top, right, bottom = cut
    luma = np.empty((len(frames), bottom - top, right - left), np.uint8)
    chroma = np.empty((len(frames), 2, -(-bottom // 2) - top // 2, -(-right // 2) - left // 2), np.uint8)
    for place, ((y, *uv), _) in enumerate(frames):
        luma[place] = y[top:bottom, left:right]
        for out, plane in zip(chroma[place], uv, strict=True):
            out[...] = plane[top // 2: -(-bottom // 2), left // 2: -(-right // 2)]
    return Planes(luma, chroma, np.stack([colour for _, colour in frames]))


def _read(source: Video, ids: np.ndarray, /, *, info: VideoInfo, timeout: float, convert: Callable[[Any], Any]) -> dict[int, Any]:
    """{frame number: convert(frame)} of the frames `ids`."""
    call, found = Call(source, timeout), {}
    if not ids.size or ids.min() < 0 or ids.max() >= info.frames:
        call.fail("short", f"frames {ids.tolist()} of a video with frames 0..{info.frames - 1}")
    with call.open() as container:
        stream = call.stream(container)
        if stream.time_base != info.time_base:  # its frames would be found by the times of another file
            call.fail("timestamps", f"another file than the one indexed: times in units of {stream.time_base} s, {info.time_base} s then")
        for run in _runs(np.unique(ids), info):
            pictures = call.pictures(container, stream, info, info.pts[run], convert)
            found |= {number: pictures[int(info.pts[number])] for number in run.tolist()}
    return found


def count(source: Video, /, *, timeout: float = math.inf) -> int:
    """Frames that decode from first to last without damage; raises DecodeError at the first that does not."""
    call = Call(source, timeout)
    with call.open() as container:
        stream, number = call.stream(container), 0
        for number, frame in enumerate(call.decoded(container, stream), 1):
            if frame.is_corrupt:
                call.fail("decode", f"frame {number - 1} is damaged")
        return number


def _runs(numbers: np.ndarray, info: VideoInfo, /) -> list[np.ndarray]:
    """Ascending frame numbers, split where jumping to a key frame leaves out enough frames."""
    jump = info.keys[np.searchsorted(info.keys, info.pts[numbers], "right") - 1] if len(info.keys) else info.pts[:1]
    skipped = np.searchsorted(info.pts, np.broadcast_to(jump, numbers.shape)[1:]) - numbers[:-1]
    return np.split(numbers, np.flatnonzero(skipped >= SEEK_GAIN) + 1)


# Undecodable titles are no reason to lose a video; PyAV 19 has no option for it any more and keeps them.
TITLES = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


class Call:
    """One access to a source: its name for errors, its patience, and `failed`, what ended the reading of a file."""

    def __init__(self, source: Video, timeout: float | Patience, /) -> None:
        self.source, self.patience = source, timeout if isinstance(timeout, Patience) else Patience(timeout)
        self.failed: DecodeError | None = None

    def fail(self, stage: str, cause: str, /) -> None:
        """Raises DecodeError."""
        raise self.failed or DecodeError(name(self.source), stage, cause)

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """A container for a `with`, whose end raises what ended the reading and was taken for the end of the file."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(io.BytesIO(self.source) if isinstance(self.source, bytes) else local_file.LocalFile(os.fspath(self.source), self))
                container = stack.enter_context(av.open(file, timeout=None if math.isinf(self.patience.most) else self.patience.most, **TITLES))
            except (av.FFmpegError, OSError, ValueError) as error:
                raise self.error("open", error) from error
            yield container
        if self.failed:
            raise self.failed

    def late(self) -> DecodeError:
        """The error for what is not done in time."""
        return DecodeError(name(self.source), "timeout", self.patience.why())

    def error(self, stage: str, error: BaseException, /) -> DecodeError:
        """A DecodeError from what FFmpeg or the file system raised."""
        if self.failed or isinstance(error, av.error.ExitError):
            return self.failed or self.late()
        cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return DecodeError(name(self.source), stage if isinstance(self.source, bytes) else stage_of(error, stage), cause.splitlines()[0])

    def stream(self, container: Any, /) -> Any:
        """The first video stream that is not a cover picture."""
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams or streams[0].codec_context is None:
            self.fail("stream", f"no decodable video stream; the file has {[s.type for s in container.streams]}")
        # Frame threads can deadlock when a decoder is left early, and the default takes the cores of the other workers.
        streams[0].codec_context.thread_count = 1
        streams[0].codec_context.thread_type = "SLICE"
        return streams[0]

    def packets(self, container: Any, stream: Any, /, *, stage: str = "index") -> Iterator[Any]:
        """Packets from the present position, an empty one at the end; checks the deadline."""
        iterator = container.demux(stream)
        while True:
            if self.patience.over:
                raise self.failed or self.late()
            try:
                packet = next(iterator, None)
            except av.FFmpegError as error:
                raise self.error(stage, error) from error
            if packet is None:
                return
            yield packet

    def frames(self, packet: Any, stream: Any = None, /) -> list[Any]:
        """Frames that a packet completes; the rest of them for packet None."""
        try:
            return stream.codec_context.decode(None) if packet is None else packet.decode()
        except av.error.EOFError:
            return []  # already emptied
        except av.FFmpegError as error:
            raise self.error("decode", error) from error

    def decoded(self, container: Any, stream: Any, /, *, wanted: frozenset[int] = frozenset()) -> Iterator[Any]:
        """Frames from the present position on; with `wanted`, frames that nothing refers to are left out, and those behind the last wanted packet."""
        if container.format.name == UNTIMED:
            yield from self.released(container, stream)
            return
        skip, missing = bool(wanted) and stream.codec_context.name in SKIPPING, set(wanted)
        for packet in self.packets(container, stream, stage="decode"):
            needed = not skip or packet.pts is None or packet.pts in wanted
            stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
            missing.discard(packet.pts)
            yield from self.frames(packet)
            if skip and not missing:
                # The decoder holds back as many frames as it may have to reorder; further packets would be decoded only to push them out.
                yield from self.frames(None, stream)
                return

    def released(self, container: Any, stream: Any, /) -> Iterator[Any]:
        """As `decoded` where presentation times are guesses of the demuxer: that of a frame is the place of the packet that released it."""
        last = -1
        for packet in self.packets(container, stream, stage="decode"):
            for frame in self.frames(packet):
                frame.pts = last = last + 1 if frame.dts is None else frame.dts
                yield frame

    def seek(self, container: Any, stream: Any, pts: int, /, *, wanted: frozenset[int] = frozenset()) -> Iterator[Any]:
        """Frames from the key frame at or before `pts`; further back while the container lands behind it."""
        for back in BACKWARD:
            try:
                if math.isinf(back):
                    container.seek(0)
                else:
                    container.seek(pts - int(back / stream.time_base), stream=stream, backward=True, any_frame=False)
            except av.FFmpegError as error:
                if 0 < back < math.inf:
                    continue  # AVI refuses times before its first key frame
                raise self.error("seek", error) from error
            frames = self.decoded(container, stream, wanted=wanted)
            first = next(frames, None)
            if first is not None and (math.isinf(back) or (first.pts is not None and first.pts <= pts)):
                yield first
                yield from frames
                return

    def pictures(self, container: Any, stream: Any, info: VideoInfo, wanted: np.ndarray, convert: Callable[[Any], Any], /) -> dict[int, Any]:
        """{pts: convert(frame)} of ascending presentation times, from one seek, or two where the decoder leaves frames out."""
        found, broken = {}, False
        targets = frozenset(wanted.tolist())
        for frame in self.seek(container, stream, int(wanted[0]), wanted=targets):
            # Concealed damage spreads by reference until the next key frame.
            broken = bool(frame.is_corrupt) or (broken and not frame.key_frame)
            if frame.pts in targets:
                if broken:
                    self.fail("decode", f"the frame at {float(frame.pts * info.time_base):.3f} s is damaged")
                found[frame.pts] = convert(frame)
            if frame.pts is not None and frame.pts >= wanted[-1]:
                break
        return found if len(found) == len(targets) else self.on_screen(container, stream, info, wanted, convert)

    def on_screen(self, container: Any, stream: Any, info: VideoInfo, wanted: np.ndarray, convert: Callable[[Any], Any], /) -> dict[int, Any]:
        """As `pictures` for frames that the decoder leaves out: the last frame at or before each time, else the first."""
        found, last, broken = {}, None, False
        waiting = wanted.tolist()
        for frame in self.seek(container, stream, waiting[0]):
            if frame.pts is None:
                self.fail("timestamps", "the decoder gives a frame without a presentation time")
            broken = bool(frame.is_corrupt) or (broken and not frame.key_frame)
            while waiting and last is not None and waiting[0] < frame.pts:
                found[waiting.pop(0)] = last
            if not waiting:
                break
            if broken:
                self.fail("decode", f"the frame at {float(frame.pts * info.time_base):.3f} s is damaged")
            last = convert(frame)
        if last is None:
            self.fail("decode", f"no frame from {float(wanted[0] * info.time_base):.3f} s on can be decoded")
        return found | dict.fromkeys(waiting, last)


def _picture(frame: Any, info: VideoInfo, converter: VideoReformatter, /) -> np.ndarray:
    """RGB u8 [H W 3] for display; a stream that changes its size is resized to the first frame's."""
    width, height = (info.height, info.width) if info.rotation % 180 else (info.width, info.height)
    array = converter.reformat(frame, format="rgb24", width=width, height=height, threads=1).to_ndarray()
    return np.rot90(array, info.rotation // 90)
