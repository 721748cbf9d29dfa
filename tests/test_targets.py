"""Pixel targets of VideoMAE and MAE-ST against published values and plain numpy."""

import math
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import assembly, losses, parallel, targets
from videomae_jax import config as configs
from videomae_jax.data import sources
from videomae_jax.errors import UserError
from videomae_jax.models import patches


@pytest.fixture(params=["cpu", "gpu"])
def either_way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sums by products, and those of GPUs."""
    with parallel.aim(parallel.Target(request.param, 1)):
        yield


def test_a_target_of_gpus_sums_along_the_innermost_axis() -> None:
    """All sums of their program are of one colour after the other, behind a copy; elsewhere there is none along pixels."""
    def axes(platform: str) -> list[tuple[int, ...]]:
        with parallel.aim(parallel.Target(platform, 1)):
            program = jax.make_jaxpr(lambda x: targets.Pixels()(x))(jnp.zeros((1, 2, 1536)))
        return [(one.invars[0].aval.shape[-1], one.params["axes"]) for one in program.jaxpr.eqns if one.primitive.name == "reduce_sum"]
    assert axes("gpu") == [(512, (3,))] * 3 and axes("tpu") == axes("cpu") == []


def test_the_parts_of_a_product_are_exact_on_a_tpu() -> None:
    """Each is a bfloat16, which its unit multiplies without rounding, and their sum has every bit."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(10_000) * 10.0 ** np.random.default_rng(1).integers(-6, 1, 10_000), jnp.float32)
    parts = targets._parts(x)
    assert all((part == part.astype(jnp.bfloat16).astype(jnp.float32)).all() for part in parts) and (parts[0] != x).mean() > 0.9
    assert (sum(np.asarray(part, np.float64) for part in parts) == np.asarray(x, np.float64)).all()


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_the_products_of_a_target_lose_no_bits(platform: str) -> None:
    """Of the program's six, sums multiply at the highest precision; what brings them back to the pixels multiplies parts that a TPU takes as they are."""
    with parallel.aim(parallel.Target(platform, 1)):
        program = jax.make_jaxpr(lambda x: targets.Pixels()(x))(jnp.zeros((1, 2, 1536))).jaxpr
    made = {out: one for one in program.eqns for out in one.outvars}
    found = []
    for one in program.eqns:
        if one.primitive.name == "dot_general":
            exact = one.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2
            source = made.get(one.invars[0])
            split = source is not None and source.primitive.name == "concatenate" and {made[x].primitive.name for x in source.invars} == {"reduce_precision"}
            found.append((exact, split))
    assert sorted(found) == [(False, True)] * 3 + [(True, False)] * 3


@pytest.mark.usefixtures("either_way")
def test_channels_that_do_not_divide_a_patch_are_refused() -> None:
    """A pixel would have more values of one channel than of another."""
    with pytest.raises(UserError, match="target.channels=5 of patches of 384 values; allowed are divisors of that"):
        targets.Pixels(channels=5)(jnp.zeros((1, 2, 384)))


def golden_clip() -> np.ndarray:
    """f32 [1 4 32 32 3]: 0.5 sin(0.01 i) + 0.5 with i the row-major index in the order (clip, channel, time, row, column)."""
    u = 0.5 * np.sin(0.01 * np.arange(3 * 4 * 32 * 32, dtype=np.float64)) + 0.5
    return u.reshape(1, 3, 4, 32, 32).transpose(0, 2, 3, 4, 1).astype(np.float32)


def cube_by_hand(video: np.ndarray, token: tuple[int, int, int], side: int) -> np.ndarray:
    """f64 [2 side side 3] pixels of one token."""
    t, h, w = token
    return video[0, 2 * t : 2 * t + 2, h * side : (h + 1) * side, w * side : (w + 1) * side].astype(np.float64)


@pytest.mark.usefixtures("either_way")
def test_golden_labels() -> None:
    """Labels of the synthetic clip, 8 tokens of 16 x 16; 5e-6 covers float32 statistics over 512 pixels."""
    label = np.asarray(targets.standardise_per_channel(patches.patchify(jnp.asarray(golden_clip()), patch=(2, 16, 16))))
    assert label.shape == (1, 8, 1536) and label.dtype == np.float32
    np.testing.assert_allclose(label[0, 0, :6], [-0.111401, -0.046364, 0.202515, -0.097898, -0.059697, 0.215530], atol=5e-6)
    np.testing.assert_allclose(label[0, 7, -3:], [-0.256582, 0.414717, -0.571147], atol=5e-6)
    assert abs((label.astype(np.float64) ** 2).mean() - 0.998041) < 1e-6


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("side", [16, 8])
def test_per_channel_against_numpy(side: int) -> None:
    """Per token and channel, unbiased variance, eps outside the root: a loop over cubes in float64."""
    video = np.random.default_rng(0).uniform(size=(1, 4, 2 * side, 3 * side, 3)).astype(np.float32)
    label = np.asarray(targets.Pixels()(patches.patchify(jnp.asarray(video), patch=(2, side, side))))
    tokens = [(t, h, w) for t in range(2) for h in range(2) for w in range(3)]
    for n, token in enumerate(tokens):
        cube = cube_by_hand(video, token, side).reshape(-1, 3)
        want = (cube - cube.mean(0)) / (np.sqrt(cube.var(0, ddof=1)) + 1e-6)
        np.testing.assert_allclose(label[0, n], want.reshape(-1), atol=1e-5)  # float32 mean over 512 values near .5, divided by .29


@pytest.mark.usefixtures("either_way")
def test_eps_is_outside_the_root_for_videomae_and_inside_for_mae_st() -> None:
    """At a deviation near 1e-6 and near .225e-3 the two places of eps differ by far more than rounding."""
    x = np.tile(np.array([1.0, -1.0], np.float32), 8)
    small = jnp.asarray(x * 1e-6)[None, None]
    deviation = (x * 1e-6).astype(np.float64).std(ddof=1)
    np.testing.assert_allclose(targets.standardise_per_channel(small, channels=1)[0, 0], x * 1e-6 / (deviation + 1e-6), rtol=1e-5)
    joint = jnp.asarray(x * 2e-4)[None, None]
    frames = (x * 2e-4).astype(np.float64) / 0.225
    np.testing.assert_allclose(targets.standardise_jointly(joint)[0, 0], frames / np.sqrt(frames.var(ddof=1) + 1e-6), rtol=1e-5)


def test_mae_st_joint_normalisation_against_numpy() -> None:
    """MAE-ST normalises its frames with mean .45 and std .225 and then each patch over all values; neither changes ours."""
    x = np.random.default_rng(1).uniform(size=(2, 5, 768))
    frames = (x - 0.45) / 0.225
    want = (frames - frames.mean(-1, keepdims=True)) / (frames.var(-1, keepdims=True, ddof=1) + 1e-6) ** 0.5
    label = np.asarray(targets.Pixels(normalise="joint")(jnp.asarray(x, jnp.float32)))
    np.testing.assert_allclose(label, want, atol=2e-6)
    assert np.abs(label - np.asarray(targets.Pixels()(jnp.asarray(x, jnp.float32)))).max() > 1e-2  # not the other family


@pytest.mark.parametrize(("side", "expected"), [(16, 511 / 512), (14, 391 / 392)])
def test_predicting_zero_costs_p_minus_one_over_p(side: int, expected: float) -> None:
    """The loss of predicting 0 is (P - 1) / P for P pixels of a channel, whatever the cubes hold."""
    video = np.random.default_rng(2).integers(0, 256, (1, 4, 4 * side, 4 * side, 3), np.uint8)
    label = targets.Pixels()(patches.patchify(patches.to_unit(jnp.asarray(video)), patch=(2, side, side)))
    term = losses.masked_mse(jnp.zeros_like(label), label, weight=jnp.ones(label.shape[:2]))
    assert abs(float(term.total.sum() / term.weight.sum()) - expected) < 2e-5  # eps 1e-6 against a deviation of .29 costs 7e-6


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("values", [1536, 1176])
def test_flat_cubes_have_target_zero(values: int) -> None:
    """Every grey value: a single float32 mean would leave up to .2; 1e-4 is the rounding of its second mean over eps."""
    x = jnp.broadcast_to(jnp.arange(256, dtype=jnp.float32)[:, None, None] / 255, (256, 1, values))
    for normalise in ("channel", "joint"):
        assert np.abs(np.asarray(targets.Pixels(normalise=normalise)(x))).max() < 1e-4
    x = x.reshape(256, 1, -1, 3)
    once = (x - x.mean(-2, keepdims=True)) / (jnp.sqrt(x.var(-2, keepdims=True, ddof=1)) + 1e-6)
    assert np.abs(np.asarray(once)).max() > 1e-3  # so the test can tell


def test_raw_pixels() -> None:
    """normalise "none" is the pixels themselves, in float32."""
    x = jnp.linspace(0, 1, 12, dtype=jnp.bfloat16).reshape(1, 1, 12)
    label = targets.Pixels(normalise="none")(x)
    assert label.dtype == jnp.float32 and (label == x.astype(jnp.float32)).all()


@pytest.mark.parametrize("normalise", ["channel", "joint", "none"])
def test_invert_undoes_the_target(normalise: str) -> None:
    """invert(target(x), x) is x; float32 rounding of a value below 1."""
    x = jnp.asarray(np.random.default_rng(3).uniform(size=(2, 4, 96)), jnp.float32)
    pixels = targets.Pixels(normalise=normalise)
    np.testing.assert_allclose(pixels.invert(pixels(x), x), x, atol=1e-6)


def test_bfloat16_patches_are_normalised_in_float32() -> None:
    """The target is a float32 island."""
    x = jnp.asarray(np.random.default_rng(4).uniform(size=(1, 2, 48)), jnp.bfloat16)
    for normalise in ("channel", "joint"):
        label = targets.Pixels(normalise=normalise)(x)
        assert label.dtype == jnp.float32
        np.testing.assert_allclose(label, targets.Pixels(normalise=normalise)(x.astype(jnp.float32)), atol=0)


def test_unknown_normalisation_is_refused_when_it_is_named() -> None:
    """Before any data is seen."""
    with pytest.raises(UserError, match="normalisation 'patch'; allowed are 'channel', 'joint' and 'none'"):
        targets.Pixels(normalise="patch")


def floats(text: str) -> set[int]:
    """Sizes of the float32 arrays in the text of a compiled program."""
    return {math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", text)}


def test_no_grid_of_floats_is_made() -> None:
    """Only the patches that are embedded or predicted become floats: no float32 array of the compiled step has the values of all clips."""
    config = configs.load("configs/tiny.py")
    with config.unlocked(), config.ignore_type():
        config.data = configs.spec(sources.NoiseClips, frames=8, size=64)
    configs.override(config, {"objective.encoder.depth": "1", "objective.decoder.depth": "1", "batch_size": "8"})
    run = assembly.assemble(config, devices=jax.devices()[:1])
    counts = run.objective.counts()
    found, values = floats(run.compile().as_text()), 8 * run.objective.encoder.values
    assert counts["decoded"] * values in found and counts["visible"] < counts["decoded"] < counts["all"]
    assert counts["all"] * values not in found
