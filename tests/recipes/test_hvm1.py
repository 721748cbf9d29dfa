"""HVM-1: published rows, completion masks, raw targets in the loader's units, and the predictors that completion is held against."""

import dataclasses
import pathlib
from typing import Any

import frame_rates
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import config as configs
from videomae_jax import frame_targets, masking, targets
from videomae_jax.assembly import assemble
from videomae_jax.data import sources
from videomae_jax.errors import UserError
from videomae_jax.evals import completion
from videomae_jax.evals.base import Context
from videomae_jax.masking import Grid
from videomae_jax.models import mae_st, patches
from videomae_jax.objectives import base as protocol
from videomae_jax.objectives import mae

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("name", "size", "visible", "tokens", "batch", "epochs"), [
    ("video_224", 224, 204, 2048, 256, "42ep"), ("video_448", 448, 409, 8192, 128, "85ep"), ("kinetics_224", 224, 204, 2048, 256, "151ep")])
def test_rows_of_the_logs(name: str, size: int, visible: int, tokens: int, batch: int, epochs: str) -> None:
    """Clips a step, tokens, all 2 x 14 x 14 x 3 values predicted, a constant rate of 1e-4."""
    config = configs.load(str(ROOT / "configs" / "hvm1" / f"{name}.py"))
    objective, schedule = configs.build(config.objective), configs.build(config.optimizers.main).schedule
    assert config.batch_size * config.data.repeats == batch and config.total == epochs and config.data.size == objective.encoder.size == size
    assert objective.counts()["visible"] == visible and objective.counts()["all"] == tokens
    assert objective.encoder.patch == (2, 14, 14) and objective.encoder.values // objective.decoder.every == 1176 and objective.target.normalise == "none"
    for step in (0, 1, 999):
        assert float(schedule.at(jnp.asarray(step), batch=16, total=1000, steps_per_epoch=10)) == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["video_224", "kinetics_224"])
def test_clips_last_as_long_at_every_frame_rate(name: str) -> None:
    """15 steps of stride 8 at 30 frames a second, from files of 25, 30 and 60; evaluation takes the middle of the video."""
    frame_rates.last_as_long(configs.load(str(ROOT / "configs" / "hvm1" / f"{name}.py")), seconds=4.0)


# -- masks -------------------------------------------------------------------------------------------------------------


def visible(mask: Any, grid: Grid, /, *, rows: int = 2) -> np.ndarray:
    """Visible ids of every row."""
    return np.asarray(mask.visible(jax.random.split(jax.random.key(0), rows), grid=grid))


@pytest.mark.parametrize(("grid", "ratio"), [(Grid(8, 16, 16), 0.5), (Grid(8, 14, 14), 0.9), (Grid(8, 32, 32), 0.95), (Grid(3, 3, 3), 0.5), (Grid(2, 2, 1), 0.5)])
def test_completion_masks_keep_the_ends_and_the_beginning(grid: Grid, ratio: float) -> None:
    """The smallest distances to the nearer end, ties to the earlier token; the first tokens; int(N (1 - r)) of them."""
    n, keep = grid.tokens, int(grid.tokens * (1 - ratio))
    centre, future = visible(masking.Centre(ratio), grid), visible(masking.Future(ratio), grid)
    front = -(-keep // 2)
    want = sorted([*range(front), *range(n - (keep - front), n)])
    assert centre.dtype == np.int32 and centre.tolist() == [want] * 2 and future.tolist() == [list(range(keep))] * 2


def test_the_usual_completion_hides_whole_times() -> None:
    """At .5 of 8 time steps the four in the middle, or the last four."""
    grid = Grid(8, 16, 16)
    assert set((visible(masking.Centre(), grid) // grid.slice).ravel()) == {0, 1, 6, 7}
    assert set((visible(masking.Future(), grid) // grid.slice).ravel()) == {0, 1, 2, 3}
    drawn = masking.draw(jax.random.split(jax.random.key(0), 2), encoder=masking.Centre(), decoder=masking.Hidden(), grid=grid)
    assert set((np.asarray(drawn.target) // grid.slice).ravel()) == {2, 3, 4, 5} and np.asarray(drawn.weight).all()
    for bad in (1.0, -0.1):
        with pytest.raises(UserError, match="mask ratio"):
            masking.Centre(bad)
        with pytest.raises(UserError, match="mask ratio"):
            masking.Future(bad)


# -- target ------------------------------------------------------------------------------------------------------------


def test_raw_targets_are_in_the_loaders_units() -> None:
    """(x - .45) / .225 of every value, so that losses compare with the logs; the inverse is exact and needs no true patch."""
    x = jnp.asarray(np.random.default_rng(0).random((2, 3, 24), np.float32))
    target = frame_targets.LoaderPixels(normalise="none")
    np.testing.assert_allclose(target(x), (np.asarray(x) - 0.45) / 0.225, atol=1e-6)
    np.testing.assert_allclose(target.invert(target(x), jnp.zeros_like(x)), x, atol=1e-6)
    half = frame_targets.LoaderPixels(normalise="none", every=2)
    np.testing.assert_allclose(half.invert(half(x), jnp.zeros_like(x)), np.tile(np.asarray(x)[..., :12], 2), atol=1e-6)
    with pytest.raises(UserError, match="25 values are no tubelets of 2 frames"):
        target(jnp.zeros((1, 1, 25)))


# -- completion --------------------------------------------------------------------------------------------------------


def test_predictors_in_time_by_hand() -> None:
    """A cell known at frames 0, 1 and 6, 7: straight lines between, the nearest frame, the earlier one half-way."""
    frames = np.arange(8.0).reshape(8, 1, 1) ** 2
    known = np.isin(np.arange(8), (0, 1, 6, 7))[:, None]
    line = completion.in_time(frames, known, kind="linear").ravel()
    np.testing.assert_allclose(line, [0, 1, 8, 15, 22, 29, 36, 49])
    np.testing.assert_allclose(completion.in_time(frames, known, kind="copy").ravel(), [0, 1, 1, 1, 36, 36, 36, 49])
    known = np.isin(np.arange(8), (2, 4))[:, None]
    np.testing.assert_allclose(completion.in_time(frames, known, kind="copy").ravel(), [4, 4, 4, 4, 16, 16, 16, 16])
    np.testing.assert_allclose(completion.in_time(frames, known, kind="linear").ravel(), [4, 4, 4, 10, 16, 16, 16, 16])
    np.testing.assert_allclose(completion.in_time(frames, np.zeros((8, 1), bool), kind="linear"), frames)


def test_guesses_lie_at_their_targets() -> None:
    """A clip that brightens evenly is exact for linear interpolation; each cell is treated apart; never seen = within the frame."""
    grid, patch = Grid(4, 2, 2), (2, 4, 4)
    ramp = np.arange(8, dtype=np.float32)[None, :, None, None, None] / 10 + np.arange(8, dtype=np.float32)[None, None, :, None, None]
    video = np.broadcast_to(ramp, (1, 8, 8, 8, 3))
    pixels = np.asarray(patches.patchify(jnp.asarray(video), patch=patch))
    drawn = jax.tree.map(np.asarray, masking.draw(jax.random.split(jax.random.key(0), 1), encoder=masking.Centre(0.5), decoder=masking.Hidden(), grid=grid))
    found = completion.guesses(pixels, drawn, grid=grid, patch=patch)
    truth = np.take_along_axis(pixels, drawn.target[..., None], axis=1)
    np.testing.assert_allclose(found["linear"], truth, atol=1e-5)
    assert np.abs(found["copy"] - truth).max() == pytest.approx(0.2, abs=1e-5) and np.abs(found["space"] - truth).max() > 0.19
    np.testing.assert_array_equal(found["copy"], found["space"])  # a frame of which nothing is seen takes the nearest one: one claim, not two
    unseen = dataclasses.replace(drawn, visible=np.asarray([[0, 1, 2]], np.int32), target=np.asarray([[3, 5, 7]], np.int32), weight=np.ones((1, 3), np.float32),
                                 visible_valid=np.ones((1, 3), bool))
    found = completion.guesses(pixels, unseen, grid=grid, patch=patch)
    np.testing.assert_array_equal(found["linear"][0, [0, 2]], found["space"][0, [0, 2]])
    np.testing.assert_allclose(found["copy"][0, 1], np.tile(pixels[0, 1].reshape(2, -1)[1], 2), atol=1e-6)


class Perfect(mae.MAE):
    """Predicts the truth plus `error` in the units of the target."""

    error = 0.0

    def predict(self, params: Any, extra: Any, batch: Any, rng: Any, /, *, masks: Any = None) -> Any:
        target = masking.take(self.target(self.patchify(batch)), ids=masks.target)
        return protocol.Prediction(patches=target + self.error, targets=target, masks=masks)


class Noise(Context):
    """A context with noise in memory."""

    def source(self, split: str, /) -> Any:
        return sources.NoiseClips(frames=4, size=8, length=12, split=split)


@pytest.mark.parametrize(("target", "raw"), [(frame_targets.LoaderPixels(normalise="none"), True), (targets.Pixels(), False)])
def test_scores_of_a_known_error(target: Any, raw: bool, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of .1 is a loss of .01 in the target's units; PSNR is of pixels in [0, 1], and only where those are predicted."""
    monkeypatch.setattr(Perfect, "error", 0.1)
    config = configs.load(str(ROOT / "configs" / "tiny.py"))
    config.unlock()
    encoder = mae_st.Encoder(width=16, depth=1, heads=2, hidden=32, patch=(2, 4, 4), frames=4, size=8)
    objective = Perfect(encoder=encoder, decoder=mae_st.Decoder(width=16, depth=1, heads=2, hidden=32), encoder_mask=masking.Random(0.5, "token"),
                        decoder_mask=masking.Hidden(), target=target)
    config.objective, config.data = configs.plain(mae.MAE(**{f.name: getattr(objective, f.name) for f in dataclasses.fields(mae.MAE)})), configs.spec(
        sources.NoiseClips, frames=4, size=8)
    run = dataclasses.replace(assemble(config, devices=jax.devices()[:1]), objective=objective)
    # Grey in the middle of the range, so that nothing is clipped.
    monkeypatch.setattr(sources, "_noise", lambda frames, size, row, repeats: np.random.default_rng(row).integers(100, 150, (repeats, frames, size, size, 3), np.uint8))
    values = completion.Completion(clips=12, batch_size=8).run(Noise(run, {}, {}, 3, tmp_path))
    assert values["loss"] == pytest.approx(0.01, rel=1e-4) and values["loss_trivial"] == min(values[f"loss_{k}"] for k in ("copy", "linear", "space"))
    assert ("psnr" in values) == raw == ("psnr_trivial" in values)
    if raw:
        assert values["psnr"] == pytest.approx(-20 * np.log10(0.1 * 0.225), abs=1e-3)
        assert values["psnr_linear"] == pytest.approx(-10 * np.log10(values["loss_linear"] * 0.225**2), abs=1e-3)
        assert values["psnr_trivial"] == max(values[f"psnr_{k}"] for k in ("copy", "linear", "space"))
