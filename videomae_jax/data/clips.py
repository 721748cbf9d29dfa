"""Which frames of a video make a clip. Ids are 0-based, in presentation order."""

import dataclasses

import numpy as np

from videomae_jax.errors import UserError


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


@dataclasses.dataclass(frozen=True)
class DenseRandom:
    """V2 pretraining: a random window of clip x stride frames with exact stride; short videos start at 0."""

    stride: int = 4

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        room = frames - clip * self.stride + 1
        return strided(frames, start=int(rng.integers(room)) if room > 0 else 0, clip=clip, stride=self.stride)


@dataclasses.dataclass(frozen=True)
class DenseCentre:
    """The central window of clip x stride frames, for evaluation."""

    stride: int = 4

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip]; `rng` is not used."""
        return strided(frames, start=max(0, (frames - clip * self.stride) // 2), clip=clip, stride=self.stride)


@dataclasses.dataclass(frozen=True)
class DenseFinetune:
    """V2 fine-tuning, dense: spacing clip x stride / (clip - 1), so 64/15 and not 4 (V2 datasets).

    `position` is "random" for training and "centre" for validation.
    """

    stride: int = 4
    position: str = "random"

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        span = clip * self.stride
        if self.position not in ("random", "centre"):
            raise UserError(f"clip position {self.position!r}; allowed are 'random' and 'centre'")
        if frames <= span:
            ids = np.linspace(0, frames, num=frames // self.stride)
            ids = np.concatenate([ids, np.full(clip - len(ids), frames)]) if len(ids) < clip else ids[:clip]
            return np.clip(ids, 0, frames - 1).astype(np.int64)
        end = int(rng.integers(span, frames)) if self.position == "random" else (span + frames) // 2
        return np.clip(np.linspace(end - span, end, num=clip), end - span, end - 1).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class DenseView:
    """V2 testing, dense: view `view` of `views` equally spaced windows over the ids 0, stride, 2 stride, ..."""

    stride: int = 4
    views: int = 5
    view: int = 0

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip]; `rng` is not used."""
        ids = np.arange(0, frames, self.stride)
        ids = np.concatenate([ids, np.full(max(clip - len(ids), 0), ids[-1])])
        start = int(self.view * max((len(ids) - clip) / (self.views - 1), 0)) if self.views > 1 else (len(ids) - clip) // 2
        return ids[start: start + clip].astype(np.int64)


@dataclasses.dataclass(frozen=True)
class SparseFinetune:
    """V2 fine-tuning on frame folders (SSv2): one frame from each of `clip` equal segments; random or their middle.

    Videos shorter than the clip are padded with frame 0 at the front.
    """

    position: str = "random"

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip] for a video of `frames` frames."""
        if self.position not in ("random", "centre"):
            raise UserError(f"clip position {self.position!r}; allowed are 'random' and 'centre'")
        length = frames // clip
        if length == 0:
            return np.concatenate([np.zeros(clip - frames, np.int64), np.arange(frames)])
        offset = rng.integers(length, size=clip) if self.position == "random" else np.full(clip, length // 2)
        return np.arange(clip) * length + offset


@dataclasses.dataclass(frozen=True)
class SparseView:
    """V2 testing, sparse: ids int(s * tick / S + tick * x), tick = frames / clip; view s of the S interleaved ones."""

    views: int = 2
    view: int = 0

    def ids(self, frames: int, /, *, clip: int, rng: np.random.Generator) -> np.ndarray:
        """i64 [clip]; `rng` is not used."""
        tick = frames / clip
        ids = sorted(int(s * tick / self.views + tick * x) for s in range(self.views) for x in range(clip))
        return np.asarray(ids[self.view:: self.views], np.int64)
