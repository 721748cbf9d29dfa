"""Which frames of a video make a clip. Ids are 0-based, in presentation order."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from videomae_jax.errors import UserError, allow

RATES = (0.01, 1000.0)  # frames a second that a sampling or a packing may ask for, or pictures be said to have


def strided(frames: int, /, *, start: int, clip: int, stride: int) -> np.ndarray:
    """`clip` ids from `start` in steps of `stride`; the last one that fits repeats.

    As in V2 a step is taken only if the *1-based* position plus the stride stays below the number of frames, so with
    61 frames and stride 4 frame 60 is never reached (V2 pretrain_datasets).
    """
    ids, offset = [], start + 1
    for _ in range(clip):
        ids.append(offset - 1)
        if offset + stride < frames:
            offset += stride
    return np.asarray(ids, np.int64)


def _check(sampling: Any, /) -> None:
    """Raises UserError for a field of a sampling that is out of range."""
    fields = vars(sampling)
    for field, allowed in (("position", ("random", "centre")), ("stored", ("frames", "file"))):
        if field in fields and fields[field] not in allowed:
            raise UserError(f"{type(sampling).__name__}: {field} {fields[field]!r}; allowed are {', '.join(allowed)}")
    for field in ("stride", "views"):
        if fields.get(field, 1) < 1:
            raise UserError(f"{type(sampling).__name__}: {field} is {fields[field]}; allowed are 1 and more")
    if "view" in fields and not 0 <= fields["view"] < fields["views"]:
        raise UserError(f"{type(sampling).__name__}: view {fields['view']}; allowed are 0 to {fields['views'] - 1}")


@dataclasses.dataclass(frozen=True)
class DenseRandom:
    """V2 pretraining: a random window of clip x stride frames with exact stride; short videos start at 0."""

    stride: int = 4

    def __post_init__(self) -> None:
        _check(self)

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        room = frames - clip * self.stride + 1
        return strided(frames, start=int(rng.integers(room)) if room > 0 else 0, clip=clip, stride=self.stride)


@dataclasses.dataclass(frozen=True)
class DenseCentre:
    """The central window of clip x stride frames, for evaluation."""

    stride: int = 4

    def __post_init__(self) -> None:
        _check(self)

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip]; `rng` is not used."""
        return strided(frames, start=max(0, (frames - clip * self.stride) // 2), clip=clip, stride=self.stride)


@dataclasses.dataclass(frozen=True)
class DenseFinetune:
    """V2 fine-tuning, dense: spacing clip x stride / (clip - 1), so 64/15 and not 4 (V2 datasets.py, num_segment 1).

    `position` is "random" for training and "centre" for validation. Up to clip x stride frames, frames / stride ids are
    spread over the whole video and the last frame repeats.
    """

    stride: int = 4
    position: str = "random"

    def __post_init__(self) -> None:
        _check(self)

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        span = clip * self.stride
        if frames <= span:
            ids = np.linspace(0, frames, num=frames // self.stride)
            return np.clip(np.concatenate([ids, np.full(clip - len(ids), frames)]), 0, frames - 1).astype(np.int64)
        end = int(rng.integers(span, frames)) if self.position == "random" else (span + frames) // 2
        return np.clip(np.linspace(end - span, end, num=clip), end - span, end - 1).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class DenseView:
    """V2 testing, dense: view `view` of `views` equally spaced windows over the ids 0, stride, 2 stride, ..."""

    stride: int = 4
    views: int = 5
    view: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip]; `rng` is not used."""
        ids = np.arange(0, frames, self.stride)
        ids = np.concatenate([ids, np.full(max(clip - len(ids), 0), ids[-1])])
        start = int(self.view * ((len(ids) - clip) / max(self.views - 1, 1)))  # in V2's order, whose rounding counts: 7 * (61 / 7) is below 61
        return ids[start: start + clip]


@dataclasses.dataclass(frozen=True)
class SparseFinetune:
    """V2 fine-tuning, sparse (TSN): one frame of each of `clip` equal segments, random or their middle.

    `stored` is "frames" for folders of pictures (SSv2) or "file": for video files V2 never draws the last frame of a
    segment. Shorter videos are padded with frame 0 at the front; V2 does so for folders and asks for frame -1 of files.
    """

    position: str = "random"
    stored: str = "frames"

    def __post_init__(self) -> None:
        _check(self)

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        length = frames // clip
        if length == 0:
            return np.concatenate([np.zeros(clip - frames, np.int64), np.arange(frames)])
        drawn = max(length - 1, 1) if self.stored == "file" else length
        offset = rng.integers(drawn, size=clip) if self.position == "random" else (length - (self.stored == "file")) // 2
        return np.arange(clip) * length + offset


@dataclasses.dataclass(frozen=True)
class SparseView:
    """V2 testing, sparse: ids int(s * tick / S + tick * x), tick = frames / clip; view s of the S interleaved ones."""

    views: int = 2
    view: int = 0

    def __post_init__(self) -> None:
        _check(self)

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip]; `rng` is not used."""
        tick = frames / clip
        ids = sorted(int(s * tick / self.views + tick * x) for s in range(self.views) for x in range(clip))
        return np.asarray(ids[self.view:: self.views], np.int64)


@dataclasses.dataclass(frozen=True)
class Spaced:
    """Ids floor(start + i * step) for a step that need not be whole; `position` of the start is "random" or "centre".

    A video that is too short starts at 0, and its last frame repeats; a step below 1 repeats frames.
    """

    step: Fraction
    position: str = "random"

    def __post_init__(self) -> None:
        _check(self)
        if self.step <= 0:
            raise UserError(f"Spaced: step is {self.step}; allowed are numbers above 0")

    def room(self, frames: int, /, *, clip: int) -> int:
        """From how many frames, the first ones, a whole clip follows; at least 1."""
        return max(frames - int((clip - 1) * self.step), 1)

    def after(self, start: int, /, *, frames: int, clip: int) -> np.ndarray:
        """i64 [clip] of the clip that begins with frame `start`."""
        return np.minimum(start + np.asarray([int(i * self.step) for i in range(clip)], np.int64), frames - 1)

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        room = self.room(frames, clip=clip)
        return self.after(int(rng.integers(room)) if self.position == "random" else (room - 1) // 2, frames=frames, clip=clip)


@dataclasses.dataclass(frozen=True, eq=False)
class Timed:
    """The frames on screen every `step` ticks from one of them on, of a video with presentation times `pts` i64 [frames] in ticks, ascending.

    `tail` is how many ticks the last one is on screen. For frames at equal distances it is `Spaced`; `position` is "random", each frame with
    the same chance, or "centre" in time.
    """

    pts: np.ndarray
    step: Fraction
    tail: Fraction
    position: str = "random"

    def room(self, frames: int, /, *, clip: int) -> int:
        """As in `Spaced`."""
        end = int(self.pts[-1]) + self.tail - (clip - 1) * self.step
        return max(int(np.searchsorted(self.pts, math.ceil(end))), 1)

    def after(self, start: int, /, *, frames: int, clip: int) -> np.ndarray:
        """As in `Spaced`."""
        times = int(self.pts[start]) + np.asarray([int(i * self.step) for i in range(clip)], np.int64)
        return np.searchsorted(self.pts, times, "right") - 1

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for the video of `frames` frames."""
        room = self.room(frames, clip=clip)
        middle = int(self.pts[0] + self.pts[room - 1]) // 2
        start = int(rng.integers(room)) if self.position == "random" else int(np.searchsorted(self.pts, middle, "right")) - 1
        return self.after(start, frames=frames, clip=clip)


@dataclasses.dataclass(frozen=True)
class PerSecond:
    """`rate` frames a second, whatever the frame rate of a video: `Spaced` with the step fps / rate, or `Timed` where it varies.

    Videos of 25 and 30 frames a second then show motion at one speed; a stride in frames does not.
    """

    rate: float = 7.5
    position: str = "random"

    def __post_init__(self) -> None:
        _check(self)
        allow(self, rate=RATES)


@dataclasses.dataclass(frozen=True)
class FramePairs:
    """Pairs of a frame and a later one, `low` to `high` frames apart: ids a0, b0, a1, b1, ... of independently drawn pairs.

    The clip has an even number of frames. In a video of `low` frames or fewer, a pair is its first and last frame (SiamMAE,
    arXiv 2305.14344: one frame at random, the other 4 to 48 later).
    """

    low: int = 4
    high: int = 48

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise UserError(f"FramePairs: gaps from {self.low} to {self.high}; allowed are 0 <= low <= high")

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        if clip % 2:
            raise UserError(f"FramePairs: {clip} frames; allowed are even numbers")
        low, high = min(self.low, frames - 1), min(self.high, frames - 1)
        pairs = []
        for _ in range(clip // 2):
            gap = int(rng.integers(low, high + 1))
            first = int(rng.integers(frames - gap))
            pairs += [first, first + gap]
        return np.asarray(pairs, np.int64)


@dataclasses.dataclass(frozen=True)
class LongVideo:
    """One window of `window` frames of a long video, the last of them with what remains; within it, `sampling` chooses.

    `position` is "random" for training or "centre", the middle window. A video shorter than a window is one window. So a
    quarter of an hour does not become one clip of distant frames, and its dense clips stay within a scene's length.
    """

    window: int = 300
    sampling: Any = DenseRandom()
    position: str = "random"

    def __post_init__(self) -> None:
        _check(self)
        if self.window < 1:
            raise UserError(f"LongVideo: windows of {self.window} frames; allowed are 1 and more")

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        count = max(frames // self.window, 1)
        number = int(rng.integers(count)) if self.position == "random" else count // 2
        start = number * self.window
        length = frames - start if number == count - 1 else self.window
        return start + _part(self.sampling, start, length).ids(length, clip=clip, rng=rng)


def _part(sampling: Any, start: int, length: int, /) -> Any:
    """The sampling for a part of its video."""
    if isinstance(sampling, Timed):
        end = start + length
        tail = Fraction(int(sampling.pts[end] - sampling.pts[end - 1])) if end < len(sampling.pts) else sampling.tail
        return dataclasses.replace(sampling, pts=sampling.pts[start:end], tail=tail)
    return dataclasses.replace(sampling, sampling=_part(sampling.sampling, start, length)) if isinstance(sampling, LongVideo) else sampling


def restrided(sampling: Any, stride: int, /) -> Any:
    """The sampling, or the one within its windows, with another stride; one without a stride stays."""
    if hasattr(sampling, "stride"):
        return dataclasses.replace(sampling, stride=stride)
    return dataclasses.replace(sampling, sampling=restrided(sampling.sampling, stride)) if hasattr(sampling, "sampling") else sampling


def stride(sampling: Any, /) -> int:
    """Frames from one of a clip to the next, within windows too; 1 where none is chosen (None), 0 for a sampling that has no such number."""
    return stride(sampling.sampling) if hasattr(sampling, "sampling") else int(sampling is None or getattr(sampling, "stride", 0))


def of(sampling: Any, info: Any, /) -> Any:
    """The sampling for a video of which `decode.probe` or an index tells `info`."""
    return at(sampling, fps=info.fps, pts=info.pts, time_base=info.time_base)


@functools.singledispatch
def at(sampling: Any, /, *, fps: Fraction, pts: Sequence[int] | np.ndarray = (), time_base: Fraction = Fraction(1)) -> Any:
    """The sampling for a video of `fps` frames a second on average, presented at `pts` x `time_base` seconds (() = at equal distances).

    Those that count frames do not depend on it.
    """
    return sampling


@at.register
def _(sampling: PerSecond, /, *, fps: Fraction, pts: Sequence[int] | np.ndarray = (), time_base: Fraction = Fraction(1)) -> Spaced | Timed:
    rate = Fraction(sampling.rate).limit_denominator(1001)
    if even(pts):
        return Spaced(step=fps / rate, position=sampling.position)
    return Timed(np.asarray(pts, np.int64), 1 / (rate * time_base), 1 / (fps * time_base), sampling.position)


@at.register
def _(sampling: LongVideo, /, *, fps: Fraction, pts: Sequence[int] | np.ndarray = (), time_base: Fraction = Fraction(1)) -> LongVideo:
    return dataclasses.replace(sampling, sampling=at(sampling.sampling, fps=fps, pts=pts, time_base=time_base))


def even(pts: Sequence[int] | np.ndarray, /) -> bool:
    """Whether presentation times lie at equal distances, but for rounding to ticks (30 frames a second are 33 or 34 ms apart)."""
    steps = np.diff(pts)
    return not steps.size or int(steps.max() - steps.min()) <= min(2, int(steps.min()) // 8)
