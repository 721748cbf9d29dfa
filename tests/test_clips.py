"""Temporal sampling against the ids of the official code, worked out by hand from its rules."""

import dataclasses
import pathlib
from fractions import Fraction

import numpy as np
import pytest
from test_decode import encode, timed

from videomae_jax.data import clips, columns, decode, index, packing, sources
from videomae_jax.errors import UserError


class Fixed:
    """A generator whose every draw is `value`, and which keeps the ranges it was asked for."""

    def __init__(self, value: int) -> None:
        self.value, self.ranges = value, []

    def integers(self, low: int, high: int | None = None, size: int | None = None) -> int | np.ndarray:
        self.ranges.append((0, low) if high is None else (low, high))
        return self.value if size is None else np.full(size, self.value)


def ids(sampling: object, frames: int, /, *, draw: int = 0, clip: int = 16) -> list[int]:
    """The ids of a sampling with a known draw."""
    result = sampling.ids(frames, clip=clip, rng=Fixed(draw))
    assert result.dtype == np.int64
    return result.tolist()


@pytest.mark.parametrize(("frames", "expected"), [
    (40, [*range(0, 37, 4)] + [36] * 6), (61, [*range(0, 57, 4)] + [56]), (62, [*range(0, 61, 4)]), (6, [0] + [4] * 15), (5, [0] * 16), (1, [0] * 16)])
def test_dense_random_on_short_videos(frames: int, expected: list[int]) -> None:
    """Exact stride from frame 0; a step is taken only while the 1-based position plus the stride is below the length."""
    assert ids(clips.DenseRandom(stride=4), frames) == expected


def test_dense_random_draws_every_start() -> None:
    """start ~ U{0..frames - 64}, then exact steps of 4."""
    rng = Fixed(36)
    assert clips.DenseRandom(stride=4).ids(100, clip=16, rng=rng).tolist() == [*range(36, 97, 4)]
    assert rng.ranges == [(0, 37)]
    rng = Fixed(0)
    clips.DenseRandom(stride=4).ids(63, clip=16, rng=rng)
    assert rng.ranges == []
    assert ids(clips.DenseRandom(stride=2), 100, draw=5) == [*range(5, 36, 2)]


def test_dense_centre() -> None:
    """The same window at every call."""
    assert ids(clips.DenseCentre(stride=4), 100) == [*range(18, 79, 4)]
    assert ids(clips.DenseCentre(stride=4), 40) == ids(clips.DenseRandom(stride=4), 40)


def test_dense_finetune() -> None:
    """Spacing 64/15; training draws the end, validation takes (64 + L) // 2."""
    assert ids(clips.DenseFinetune(), 100, draw=64) == [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]
    centre = clips.DenseFinetune(position="centre")
    assert ids(centre, 300) == [118, 122, 126, 130, 135, 139, 143, 147, 152, 156, 160, 164, 169, 173, 177, 181]
    assert ids(clips.DenseFinetune(), 40) == [0, 4, 8, 13, 17, 22, 26, 31, 35] + [39] * 7
    assert ids(clips.DenseFinetune(), 3) == [2] * 16
    rng = Fixed(64)
    clips.DenseFinetune().ids(100, clip=16, rng=rng)
    assert rng.ranges == [(64, 100)]


def test_dense_views() -> None:
    """View k starts at int(k * ((n - 16) / (S - 1))) of the n ids at stride 4."""
    views = [ids(clips.DenseView(views=5, view=k), 300) for k in range(5)]
    assert [v[0] for v in views] == [0, 56, 116, 176, 236]
    assert views[4] == [*range(236, 297, 4)]
    assert ids(clips.DenseView(views=3, view=2), 10) == [0, 4] + [8] * 14
    assert ids(clips.DenseView(views=1), 300)[0] == 0
    assert ids(clips.DenseView(views=8, view=7), 4 * 77)[0] == 4 * 60  # 7 * (61 / 7) is 60.99... in float64


def test_sparse_finetune() -> None:
    """One frame of each segment; the two ways of V2 to store a video differ in the last frame of a segment."""
    for stored, high, middle in (("frames", 3, 1), ("file", 2, 1)):
        rng = Fixed(1)
        sampling = clips.SparseFinetune(stored=stored)
        assert sampling.ids(50, clip=16, rng=rng).tolist() == [3 * i + 1 for i in range(16)]
        assert rng.ranges == [(0, high)]
        assert ids(clips.SparseFinetune(position="centre", stored=stored), 50) == [3 * i + middle for i in range(16)]
        assert ids(sampling, 10) == [0] * 6 + [*range(10)]
    assert ids(clips.SparseFinetune(position="centre"), 64)[0] == 2
    assert ids(clips.SparseFinetune(position="centre", stored="file"), 64)[0] == 1
    rng = Fixed(0)
    clips.SparseFinetune(stored="file").ids(20, clip=16, rng=rng)
    assert rng.ranges == [(0, 1)]


def test_sparse_views() -> None:
    """Interleaved ids int(s * tick / S + tick * x)."""
    assert ids(clips.SparseView(views=2, view=0), 50) == [0, 3, 6, 9, 12, 15, 18, 21, 25, 28, 31, 34, 37, 40, 43, 46]
    assert ids(clips.SparseView(views=2, view=1), 50) == [1, 4, 7, 10, 14, 17, 20, 23, 26, 29, 32, 35, 39, 42, 45, 48]


def test_rate() -> None:
    """The same seconds whatever the frame rate: every 4th frame of 30 a second, every 10/3rd of 25; low rates repeat frames."""
    rate = clips.PerSecond(rate=7.5)
    assert ids(clips.at(rate, fps=Fraction(30)), 100, draw=36) == [*range(36, 97, 4)]
    assert ids(clips.at(rate, fps=Fraction(25)), 100, draw=2, clip=7) == [2, 5, 8, 12, 15, 18, 22]
    assert ids(clips.at(rate, fps=Fraction(5)), 100, clip=6) == [0, 0, 1, 2, 2, 3]
    assert ids(clips.at(rate, fps=Fraction(30000, 1001)), 100, draw=0, clip=4) == [0, 3, 7, 11]
    assert ids(clips.at(clips.PerSecond(rate=7.5, position="centre"), fps=Fraction(30)), 100) == [*range(19, 80, 4)]
    assert ids(clips.at(rate, fps=Fraction(30)), 10, clip=4) == [0, 4, 8, 9]
    rng = Fixed(0)
    clips.at(rate, fps=Fraction(30)).ids(100, clip=16, rng=rng)
    assert rng.ranges == [(0, 40)]
    assert clips.at(clips.DenseRandom(stride=3), fps=Fraction(7)) == clips.DenseRandom(stride=3)


def test_frames_per_second_follow_the_presentation_times() -> None:
    """Where the frame rate varies, every frame is the one on screen at its time, and the clip spans its seconds, if the video does."""
    pts = np.concatenate([[0], np.cumsum(np.tile([9000, 3000, 3000], 40))])  # 18 frames a second on average, in ticks of 1/90000 s
    rng = np.random.default_rng(0)
    for rate, clip in ((9.0, 8), (7.5, 16), (60.0, 16)):
        for _ in range(20):
            sampling = clips.at(clips.PerSecond(rate=rate), fps=Fraction(18), pts=pts, time_base=Fraction(1, 90000))
            found = sampling.ids(len(pts), clip=clip, rng=rng)
            wanted = np.asarray([int(Fraction(90000) * i / Fraction(rate)) for i in range(clip)])
            late = wanted - (pts[found] - pts[found[0]])
            assert (late >= 0).all() and (late < np.append(np.diff(pts), 90000 // 18 + 1)[found]).all()
    screen = np.concatenate([np.arange(120) * 1500, 180000 + np.arange(50) * 18000])  # 60 frames a second for 2 s, then 5
    sampling = clips.at(clips.PerSecond(rate=7.5), fps=Fraction(170, 12), pts=screen, time_base=Fraction(1, 90000))
    assert sampling.ids(170, clip=8, rng=Fixed(0)).tolist() == [*range(0, 57, 8)]
    assert sampling.ids(170, clip=8, rng=Fixed(120)).tolist() == [120, 120, 121, 122, 122, 123, 124, 124]
    centre = clips.at(clips.PerSecond(rate=7.5, position="centre"), fps=Fraction(170, 12), pts=screen, time_base=Fraction(1, 90000)).ids(170, clip=8, rng=rng)
    assert 5 < screen[centre[0]] / 90000 < 6
    long = clips.at(clips.LongVideo(window=50, sampling=clips.PerSecond(rate=7.5, position="centre")), fps=Fraction(170, 12), pts=screen,
                    time_base=Fraction(1, 90000))
    assert ids(long, 170, draw=1, clip=4) == [62, 70, 78, 86]
    assert ids(dataclasses.replace(long, sampling=dataclasses.replace(long.sampling, position="random")), 170, draw=2, clip=4) == [102, 110, 118, 120]


def test_files_are_read_and_packed_by_their_times(tmp_path: pathlib.Path) -> None:
    """A file of steps of 0.1, 0.033, 0.033 s: the source and the packing take frames at equal times; one of equal steps is packed as its frame rate says."""
    for name, variable in (("a", False), ("b", True)):
        (tmp_path / f"{name}.mp4").write_bytes(encode(frames=90, variable=variable, g="30"))
    index.write(index.build(tmp_path), tmp_path / "index.parquet")
    made = sources.VideoClips(index=str(tmp_path / "index.parquet"), frames=8, size=32, split="all", sampling=clips.PerSecond(rate=9.0))
    plain, varied = (columns.info(made.record(row)) for row in range(2))
    settings, rng = packing.Settings(frames=8, rate=9.0, windows=3), np.random.default_rng(0)
    for found in [made.clip(1, rng=rng).ids, *settings.ids(varied, rng=rng)]:
        late = np.arange(8) / 9 - (varied.pts[found] - varied.pts[found[0]]) * float(varied.time_base)
        assert (late > -1e-6).all() and (late < 0.1001).all() and late.max() > 0
        assert (late < np.append(np.diff(varied.pts), 9000)[found] * float(varied.time_base) + 1e-6).all()
    offsets = [int(i * plain.fps / 9) for i in range(8)]
    starts = settings.starts(90, span=offsets[-1] + 1, rng=np.random.default_rng(1))
    assert [found.tolist() for found in settings.ids(plain, rng=np.random.default_rng(1))] == [[start + offset for offset in offsets] for start in starts]


def test_a_header_of_another_rate_changes_no_distance() -> None:
    """A camera that was to deliver 30 frames a second and gave 10: 5 a second lie 0.2 s apart, for the source and the packing."""
    info, rng = decode.probe(timed(range(0, 10_000, 100))), np.random.default_rng(0)
    for ids in (clips.of(clips.PerSecond(rate=5.0), info).ids(info.frames, clip=8, rng=rng), *packing.Settings(frames=8, rate=5.0, windows=2).ids(info, rng=rng)):
        assert np.diff(info.pts[ids] * float(info.time_base)) == pytest.approx(0.2)


@pytest.mark.parametrize("step", [3003, 3000, 1501, 100])
@pytest.mark.parametrize("frames", [1, 9, 100, 301])
def test_equal_distances_are_a_constant_rate(step: int, frames: int) -> None:
    """Times give what the frame rate gives, frame for frame, also where ticks are rounded; a real change of the rate is seen."""
    fps, pts = Fraction(90000, step), 77 + step * np.arange(frames)
    for rate in (7.5, 10.0, 29.97, 60.0):
        for clip in (1, 8, 16):
            for position in ("random", "centre"):
                plain = clips.at(clips.PerSecond(rate=rate, position=position), fps=fps)
                assert clips.at(clips.PerSecond(rate=rate, position=position), fps=fps, pts=pts, time_base=Fraction(1, 90000)) == plain
                exact = Fraction(rate).limit_denominator(1001)
                timed = clips.Timed(pts, 90000 / exact, Fraction(step), position)
                assert timed.room(frames, clip=clip) == plain.room(frames, clip=clip)
                one, two = (s.ids(frames, clip=clip, rng=np.random.default_rng(3)).tolist() for s in (plain, timed))
                assert one == two
    assert clips.even((1000 * np.arange(frames)) // 30) and clips.even([0, 1, 2, 3])
    assert not clips.even([0, 1, 3]) and not clips.even([0, 3000, 6000, 12000]) and not clips.even([0, 33, 66, 133])


def test_frame_pairs() -> None:
    """Gaps of the given range, each drawn before its first frame; all of the range and every first frame occur; short videos give what they have."""
    rng = Fixed(5)
    assert clips.FramePairs().ids(100, clip=4, rng=rng).tolist() == [5, 10, 5, 10] and rng.ranges == [(4, 49), (0, 95)] * 2
    pairs = clips.FramePairs(low=2, high=6).ids(12, clip=4000, rng=np.random.default_rng(0)).reshape(-1, 2)
    assert set(np.diff(pairs)[:, 0]) == {2, 3, 4, 5, 6} and set(pairs[:, 0]) == set(range(10)) and pairs.max() == 11
    assert clips.FramePairs().ids(3, clip=2, rng=np.random.default_rng(0)).tolist() == [0, 2]
    assert clips.FramePairs().ids(1, clip=2, rng=np.random.default_rng(0)).tolist() == [0, 0]
    with pytest.raises(UserError, match="3 frames; allowed are even numbers"):
        clips.FramePairs().ids(9, clip=3, rng=np.random.default_rng(0))


def test_long_videos() -> None:
    """A window first, then a clip within it; the last window has the remainder; the rate of the inner sampling is followed."""
    long = clips.LongVideo(window=100, sampling=clips.DenseCentre(stride=1))
    assert ids(long, 350, draw=1, clip=10) == [*range(145, 155)]
    assert ids(long, 350, draw=2, clip=10) == [*range(270, 280)]
    assert ids(long, 50, clip=10) == [*range(20, 30)]
    assert ids(dataclasses.replace(long, position="centre"), 350, draw=9, clip=10) == [*range(145, 155)]
    rng = Fixed(0)
    clips.LongVideo(window=100).ids(350, clip=16, rng=rng)
    assert rng.ranges == [(0, 3), (0, 37)]
    assert ids(clips.at(clips.LongVideo(window=100, sampling=clips.PerSecond(10)), fps=Fraction(20)), 250, draw=1, clip=4) == [101, 103, 105, 107]
    assert clips.restrided(clips.LongVideo(window=100), 2) == clips.LongVideo(window=100, sampling=clips.DenseRandom(stride=2))
    assert clips.restrided(clips.SparseFinetune(), 2) == clips.SparseFinetune()


SAMPLINGS = [clips.DenseRandom(), clips.DenseRandom(stride=1), clips.DenseCentre(), clips.DenseFinetune(), clips.DenseFinetune(position="centre"),
             clips.DenseView(view=4), clips.SparseFinetune(), clips.SparseFinetune(stored="file"), clips.SparseView(view=1),
             clips.at(clips.PerSecond(7), fps=Fraction(30000, 1001)), clips.LongVideo(window=50, sampling=clips.SparseFinetune())]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_ids_exist_and_ascend(sampling: object) -> None:
    """For every length the clip is full, inside the video and in order."""
    rng = np.random.default_rng(0)
    for frames in [*range(1, 140), 1000]:
        for clip in (1, 8, 16):
            result = sampling.ids(frames, clip=clip, rng=rng)
            assert result.shape == (clip,) and result.min() >= 0 and result.max() < frames
            assert (np.diff(result) >= 0).all()


@pytest.mark.parametrize("make", [lambda: clips.DenseFinetune(position="middle"), lambda: clips.SparseFinetune(stored="zip"),
                                  lambda: clips.DenseRandom(stride=0), lambda: clips.DenseView(views=2, view=2),
                                  lambda: clips.PerSecond(rate=0), lambda: clips.Spaced(step=Fraction(-1)), lambda: clips.FramePairs(low=5, high=4),
                                  lambda: clips.LongVideo(window=0), lambda: clips.PerSecond(position="end")])
def test_fields_are_checked(make: object) -> None:
    """A wrong field fails when the object is made and names what is allowed."""
    with pytest.raises(UserError, match="allowed are"):
        make()
