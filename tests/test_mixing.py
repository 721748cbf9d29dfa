"""Mixup and CutMix: shares by hand, partners, labels, groups, and draws that depend on nothing but the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import losses, mixing, parallel
from videomae_jax.errors import UserError
from videomae_jax.mixing import Mixing


def shares(draw: Mixing, *, groups: int = 64, side: int = 32, seed: int = 0) -> np.ndarray:
    """Maps [G H W] of many groups of two rows."""
    one = Mixing(**{**vars(draw), "rows": 2})
    return np.asarray(one.draw(jax.random.key(seed), batch=2 * groups, height=side, width=side))


@pytest.mark.parametrize(("ratio", "row", "column", "want"), [
    (0.75, 16, 16, (8, 24, 8, 24)), (0.75, 0, 31, (0, 8, 23, 32)), (0.36, 5, 20, (0, 17, 8, 32)), (1.0, 16, 16, (16, 16, 16, 16)), (0.0, 16, 16, (0, 32, 0, 32))])
def test_box_by_hand(ratio: float, row: int, column: int, want: tuple[int, ...]) -> None:
    """Sides int(32 sqrt(1 - ratio)) = 16, 25, 0, 32; half of it on either side of the centre, cut at the border."""
    inside = np.asarray(mixing.box(jnp.float32(ratio), jnp.int32(row), jnp.int32(column), height=32, width=32))
    top, bottom, left, right = want
    expected = np.zeros((32, 32), bool)
    expected[top:bottom, left:right] = True
    np.testing.assert_array_equal(inside, expected)


def test_a_cut_box_counts_with_its_true_area() -> None:
    """The label's share is 1 - area / frame, not the ratio that was drawn: a box at the border is smaller than planned."""
    inside = np.asarray(mixing.box(jnp.float32(0.75), jnp.int32(0), jnp.int32(31), height=32, width=32))
    video = jnp.stack([jnp.ones((2, 32, 32, 1)), jnp.zeros((2, 32, 32, 1))])
    share = jnp.where(inside, 0.0, 1.0)[None]
    blended = Mixing().blend(video, share[:, None, :, :, None])
    target = Mixing().blend(jnp.eye(2), share.mean((1, 2))[:, None])
    np.testing.assert_allclose(target[0], [1 - 8 * 9 / 1024, 8 * 9 / 1024], rtol=1e-6)
    np.testing.assert_allclose(blended[0].mean(), target[0, 0], rtol=1e-6)  # the pixels say the same
    np.testing.assert_array_equal(blended[0, 0], blended[0, 1])  # one box for all frames


def test_mixup_is_one_number_and_cutmix_a_rectangle() -> None:
    """A map of mixup is constant; one of CutMix holds zeros in a rectangle and ones around it; `switch` tells how many are which."""
    both = shares(Mixing(), groups=256, side=16)
    flat = both.reshape(len(both), -1)
    cut = np.isin(flat, (0, 1)).all(1)
    assert np.ptp(flat[~cut], axis=1).max() == 0
    for inside in both[cut] == 0:
        rows, columns = inside.any(1), inside.any(0)
        np.testing.assert_array_equal(inside, rows[:, None] & columns[None])
        assert all(np.abs(np.diff(np.r_[0, line.astype(int), 0])).sum() in (0, 2) for line in (rows, columns))  # without gaps
    assert 0.5 - 4 * 0.5 / 16 < cut.mean() < 0.5 + 4 * 0.5 / 16  # four deviations of a fair coin thrown 256 times
    assert not np.isin(shares(Mixing(cutmix=0.0)), (0, 1)).all((1, 2)).any()
    assert np.isin(shares(Mixing(mixup=0.0)), (0, 1)).all()
    assert (shares(Mixing(probability=0.0)) == 1).all()
    assert np.ptp(shares(Mixing(switch=0.0)).reshape(64, -1), axis=1).max() == 0


def test_the_ratio_follows_its_beta() -> None:
    """Beta(.8, .8) has mean 1/2 and variance 1 / (4 (2 alpha + 1)) = .0962; four standard errors of 2000 draws."""
    ratio = shares(Mixing(cutmix=0.0), groups=2000, side=2)[:, 0, 0]
    variance = 1 / (4 * 2.6)
    assert abs(ratio.mean() - 0.5) < 4 * np.sqrt(variance / 2000)
    assert abs(ratio.var() - variance) < 4 * np.sqrt((np.mean((ratio - ratio.mean()) ** 4) - variance**2) / 2000)


def test_partners() -> None:
    """V2's reversal mixes the middle video of three with itself; half a batch further on is never the same video."""
    videos = np.repeat(np.arange(3), 2)  # two copies each
    reverse = np.asarray(Mixing(partner="reversed").partners(jnp.arange(6), groups=1))
    np.testing.assert_array_equal(reverse, [5, 4, 3, 2, 1, 0])
    assert (videos[reverse] == videos).any()
    for number in (2, 3, 4, 5):
        for copies in (1, 2, 4):
            rows = np.repeat(np.arange(number), copies)
            other = np.asarray(Mixing(partner="opposite").partners(jnp.arange(len(rows)), groups=1))
            assert sorted(other) == list(range(len(rows))) and (rows[other] != rows).all()
    np.testing.assert_array_equal(Mixing(rows=2).partners(jnp.arange(6), groups=3), [1, 0, 3, 2, 5, 4])


@pytest.mark.parametrize("partner", mixing.PARTNERS)
def test_labels_sum_to_one(partner: str) -> None:
    """Smoothed labels have off value s / K and on value 1 - s + s / K; mixing keeps the sum, by V2's formula row for row."""
    labels = np.array([0, 3, 1, 3])
    soft = losses.soft_targets(jnp.asarray(labels), classes=4, smoothing=0.1)
    np.testing.assert_allclose(soft[0], [0.925, 0.025, 0.025, 0.025], rtol=1e-6)
    mix = Mixing(partner=partner)
    share = jnp.array([0.3])
    mixed = np.asarray(mix.blend(soft, share[:, None]))
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-6)
    other = labels[::-1] if partner == "reversed" else np.roll(labels, -2)
    for row, (own, theirs) in enumerate(zip(labels, other, strict=True)):
        want = np.full(4, 0.025)
        want[own] += 0.3 * 0.9
        want[theirs] += 0.7 * 0.9
        np.testing.assert_allclose(mixed[row], want, rtol=1e-6)


def test_a_draw_depends_on_the_key_and_the_place_in_the_global_batch_alone() -> None:
    """The first groups of a longer batch are those of a shorter one, and a mesh of four devices changes nothing."""
    mix = Mixing(rows=2)
    long, short = (mix.draw(jax.random.key(3), batch=n, height=8, width=8) for n in (16, 8))
    np.testing.assert_array_equal(long[:4], short)
    assert len(np.unique(np.asarray(long).mean((1, 2)))) > 1
    assert not np.array_equal(long, mix.draw(jax.random.key(4), batch=16, height=8, width=8))
    video = np.random.default_rng(0).random((16, 2, 8, 8, 3), np.float32)

    def mixed(video: jax.Array) -> jax.Array:
        return mix.blend(video, mix.draw(jax.random.key(3), batch=16, height=8, width=8)[:, None, :, :, None])

    mesh = parallel.Layout(data=4).mesh(jax.devices()[:4])
    with parallel.use(mesh):
        spread = jax.jit(mixed)(jax.device_put(video, parallel.batch_sharding(mesh)))
    assert len(spread.sharding.device_set) == 4
    np.testing.assert_allclose(spread, jax.jit(mixed)(video), rtol=1e-6)


def test_mistakes() -> None:
    """Each with the value and what is allowed."""
    with pytest.raises(UserError, match="partner 'next'; allowed are reversed, opposite"):
        Mixing(partner="next")
    with pytest.raises(UserError, match="switch 1.5; allowed are 0 to 1"):
        Mixing(switch=1.5)
    with pytest.raises(UserError, match="mixup -0.1; allowed are 0 and more"):
        Mixing(mixup=-0.1)
    with pytest.raises(UserError, match="rows is 6, but the batch has 16 clips"):
        Mixing(rows=6).draw(jax.random.key(0), batch=16, height=4, width=4)
