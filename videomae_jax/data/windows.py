"""Windows of a long video in order, every frame decoded once: what sliding features are taken of."""

import dataclasses
import os
from collections.abc import Callable, Iterator

import numpy as np

from videomae_jax import interpolation
from videomae_jax.data import decode
from videomae_jax.errors import UserError

BYTES = 256_000_000  # of decoded frames held at a time
MOST = 256  # frames decoded at a time
TAILS = ("mask", "drop")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Windows of `clip` frames, `rate` frames apart, beginning every `step` frames.

    `tail` "mask" goes on until a window reaches the last frame, which then repeats; "drop" takes whole windows alone.
    """

    clip: int
    rate: int = 1
    step: int = 16
    tail: str = "mask"

    def __post_init__(self) -> None:
        if self.tail not in TAILS or min(self.clip, self.rate, self.step) < 1:
            raise UserError(f"windows of {self.clip} frames, {self.rate} apart, every {self.step}, tail {self.tail!r}; "
                            f"allowed are numbers of 1 and more, and the tails {', '.join(TAILS)}")

    @property
    def span(self) -> int:
        """Frames from the first to the last of a window."""
        return (self.clip - 1) * self.rate + 1

    def starts(self, frames: int, /) -> np.ndarray:
        """First frame i64 [n] of every window of a video; none where "drop" finds it too short."""
        if self.tail == "drop":
            return np.arange(0, frames - self.span + 1, self.step)
        return np.arange(0, max(frames - self.span + self.step, 1), self.step)[: -(-frames // self.step)]

    def ids(self, start: int, /, *, frames: int) -> np.ndarray:
        """Frames i64 [clip] of a window."""
        return np.minimum(start + self.rate * np.arange(self.clip), frames - 1)

    def length(self, start: int, /, *, frames: int) -> int:
        """How many frames of a window are real."""
        return int(min(self.clip, -(-(frames - start) // self.rate)))


@dataclasses.dataclass(frozen=True)
class Bilinear:
    """The whole frame resized to a square as V2's feature script does: bilinear without antialiasing, f32 in [0, 1]."""

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3] -> f32 [T size size 3]; `rng` is not used."""
        x = interpolation.resize(video.astype(np.float32) / np.float32(255), axis=1, size=size, kind="linear")
        return interpolation.resize(x, axis=2, size=size, kind="linear")


Cut = Callable[[np.ndarray], np.ndarray]


def stream(path: str | os.PathLike[str], /, *, plan: Plan, info: decode.VideoInfo, cut: Cut) -> Iterator[np.ndarray]:
    """Every window [clip S S 3] in order; `cut` makes [T S S 3] of decoded frames u8 [T H W 3]. Raises DecodeError."""
    starts = plan.starts(info.frames)
    if not len(starts):
        return
    needed = np.unique(np.concatenate([plan.ids(s, frames=info.frames) for s in starts]))
    blocks, held = frames(path, needed, info=info, cut=cut), {}
    for start in starts:
        ids = plan.ids(start, frames=info.frames)
        while int(ids[-1]) not in held:
            held |= next(blocks)
        yield np.stack([held[int(i)] for i in ids])
        held = {i: frame for i, frame in held.items() if i >= start + plan.step}


def frames(path: str | os.PathLike[str], ids: np.ndarray, /, *, info: decode.VideoInfo, cut: Cut) -> Iterator[dict[int, np.ndarray]]:
    """Frames `ids` (ascending) in blocks {id: frame}, which end before a key frame where one is near."""
    most = max(1, min(MOST, BYTES // (info.width * info.height * 3)))
    keys, first = np.searchsorted(info.pts, info.keys), 0
    while first < len(ids):
        end = min(first + most, len(ids))
        near = keys[(keys > ids[first]) & (keys <= ids[end])] if end < len(ids) else keys[:0]
        end = int(np.searchsorted(ids, near[-1])) if len(near) else end
        block = ids[first:end]
        yield dict(zip(block.tolist(), cut(decode.decode(path, block, info=info)), strict=True))
        first = end


def times(start: int, /, *, plan: Plan, info: decode.VideoInfo, tubelet: int) -> np.ndarray:
    """f64 [t 2]: seconds from the video's first frame to the first and to the last frame of every tubelet of a window."""
    ids = plan.ids(start, frames=info.frames).reshape(-1, tubelet)[:, [0, -1]]
    return (info.pts[ids] - info.pts[0]) * float(info.time_base)
