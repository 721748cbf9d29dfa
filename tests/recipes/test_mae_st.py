"""MAE-ST: counts and sizes of the published models, positions and class tokens, targets of one frame in two."""

import dataclasses
import pathlib
import re
from typing import Any

import frame_rates
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import config as configs
from videomae_jax import frame_targets, masking, optim, supervision, targets
from videomae_jax.errors import UserError
from videomae_jax.evals import pictures
from videomae_jax.masking import Grid
from videomae_jax.models import heads, mae_st
from videomae_jax.objectives import mae
from videomae_jax.objectives.base import dummy

ROOT = pathlib.Path(__file__).resolve().parents[2]
GRID = Grid(2, 2, 3)


def unboxed(tree: Any) -> Any:
    """Parameters without their logical axes."""
    return jax.tree.map(lambda x: x.value if hasattr(x, "value") else x, tree, is_leaf=lambda x: hasattr(x, "value"))


@pytest.mark.parametrize(("name", "visible", "tokens", "values", "peak"), [
    ("vit_b", 156, 1568, 768, 2e-4), ("vit_l", 156, 1568, 768, 8e-4), ("vit_h", 156, 1568, 768, 4e-4)])
def test_published_sizes(name: str, visible: int, tokens: int, values: int, peak: float) -> None:
    """int(N x .1) visible tokens, one frame of a tubelet as output; peak rate for 128 decoded videos."""
    config = configs.load(str(ROOT / "configs" / "mae_st" / f"{name}.py"))
    objective = configs.build(config.objective)
    assert objective.counts() == {"all": tokens, "visible": visible, "decoded": tokens - visible, "decoder": tokens}
    shapes = unboxed(jax.eval_shape(lambda rng: objective.init(rng, dummy(configs.build(config.data).fields)), jax.random.key(0)))
    assert shapes["decoder"]["head"]["kernel"].shape == (512, values) and "bias" in shapes["decoder"]["bridge"]
    count = sum(x.size for x in jax.tree.leaves(shapes["encoder"])) / 1e6
    # 87, 304 and 632 million with a head of 400 classes and the key biases, which are left out here.
    assert count == pytest.approx({"vit_b": 86.4, "vit_l": 304.1, "vit_h": 631.9}[name], abs=0.05)
    schedule = configs.build(config.optimizers.main).schedule
    assert schedule.scaled(schedule.base, batch=config.batch_size) == pytest.approx(peak) and config.optimizers.main.clip == 0.02


def test_work_of_the_published_classifiers() -> None:
    """180, 598 and 1193 GFLOPs for a view, as SlowFast lists: those of 1568 tokens."""
    for size, published in (("B", 180), ("L", 598), ("H", 1191)):
        network = supervision.Network(mae_st.encoder(size), heads.Classifier(classes=400))
        assert network.cost().tokens == {"all": 1568} and network.cost().macs / 1e9 == pytest.approx(published, abs=3), size


@pytest.mark.parametrize("name", ["vit_b", "vit_h"])
def test_clips_last_as_long_at_every_frame_rate(name: str) -> None:
    """15 steps of stride 4 at 30 frames a second, from files of 25, 30 and 60; evaluation takes the middle of the video."""
    frame_rates.last_as_long(configs.load(str(ROOT / "configs" / "mae_st" / f"{name}.py")), seconds=2.0)


def test_the_row_of_the_released_weights() -> None:
    """The flags that the docstring of the ViT-L names: SlowFast's rates, 1e-4 down to 1e-6 for each of 4 shards of 32 videos."""
    file = ROOT / "configs" / "mae_st" / "vit_l.py"
    config = configs.load(str(file))
    configs.override(config, dict(re.findall(r"--config\.([a-z.]*schedule\.[a-z]+|total)=([0-9a-z-]+)", file.read_text())))
    schedule = configs.build(config.optimizers.main).schedule
    assert (config.total, schedule.warmup) == ("200ep", "30ep")
    assert [schedule.scaled(rate, batch=config.batch_size) for rate in (schedule.base, schedule.minimum)] == pytest.approx([4e-4, 4e-6])


@pytest.mark.parametrize("name", ["vit_b", "vit_h"])
def test_the_rows_of_slowfast_end_at_a_hundredth_of_the_peak(name: str) -> None:
    """SOLVER.COSINE_END_LR 1e-6 grows with the shards as BASE_LR 1e-4 does (BASE_LR_SCALE_NUM_SHARDS)."""
    schedule = configs.build(configs.load(str(ROOT / "configs" / "mae_st" / f"{name}.py")).optimizers.main).schedule
    assert (schedule.base, schedule.minimum) == (1e-4, 1e-6)


def test_positions_are_separable_and_the_class_token_comes_first() -> None:
    """The sum of a spatial and a temporal row at every id, in the order of the ids; class token plus its own position."""
    module = mae_st.Sequence(GRID, 8)
    ids = jnp.asarray([[0, 5, 7, 11], [3, 6, 9, 10]], jnp.int32)
    params = unboxed(module.init(jax.random.key(0), jnp.zeros((2, 4, 8)), ids=ids)["params"])
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    out = np.asarray(module.apply({"params": params}, jnp.asarray(x), ids=ids))
    assert out.shape == (2, 5, 8)
    np.testing.assert_allclose(out[:, 0], np.tile(params["class"] + params["class_position"], (2, 1)), rtol=1e-6)
    for row in range(2):
        for place, token in enumerate(np.asarray(ids)[row]):
            np.testing.assert_allclose(out[row, place + 1], x[row, place] + params["space"][token % 6] + params["time"][token // 6], rtol=1e-6)
    assert {k: v.shape for k, v in params.items()} == {"space": (6, 8), "time": (2, 8), "class": (1, 8), "class_position": (1, 8)}
    assert all(np.any(leaf) for leaf in params.values())


def model() -> tuple[mae_st.Encoder, Any]:
    """A small encoder and its parameters, positions far from 0."""
    encoder = mae_st.Encoder(width=16, depth=2, heads=2, hidden=32, patch=(2, 4, 4), frames=4, size=8)
    params = unboxed(encoder.init(jax.random.key(1), jnp.zeros((1, 1, encoder.values)), ids=jnp.zeros((1, 1), jnp.int32))["params"])
    return encoder, jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params)


def test_the_encoder_drops_the_class_token_and_knows_places() -> None:
    """V tokens come out, permuted with the input; the class token acts on them; the loader's statistics are MAE-ST's."""
    encoder, params = model()
    x, ids = jax.random.uniform(jax.random.key(2), (2, 5, encoder.values)), jnp.asarray([[0, 2, 3, 5, 7]] * 2, jnp.int32)
    apply = jax.jit(lambda params, x, ids: encoder.apply({"params": params}, x, ids=ids, keep=(0, 1)))
    out = apply(params, x, ids)
    assert out.tokens.shape == (2, 5, 16) and out.kept.shape == (2, 2, 5, 16)
    order = jnp.asarray([3, 0, 4, 1, 2])
    moved = apply(params, x[:, order], ids[:, order])
    # Attention sums in another order.
    np.testing.assert_allclose(moved.tokens, out.tokens[:, order], atol=1e-5)
    for leaf in ("class", "class_position", "space", "time"):
        changed = {**params, "sequence": {**params["sequence"], leaf: params["sequence"][leaf] + jnp.arange(16.0)}}
        assert np.abs(apply(changed, x, ids).tokens - out.tokens).max() > 1e-3, leaf
    assert encoder.mean == (0.45,) * 3 and encoder.std == (0.225,) * 3
    padded = encoder.apply({"params": params}, jnp.pad(x, ((0, 0), (0, 1), (0, 0))), ids=jnp.pad(ids, ((0, 0), (0, 1))), valid=jnp.arange(6)[None] < jnp.full((2, 1), 5))
    np.testing.assert_allclose(padded.tokens[:, :5], out.tokens, atol=1e-5)


def test_the_decoder_predicts_the_targets_in_their_order() -> None:
    """P / every values at each target; swapping targets swaps predictions; mask tokens differ by their place alone."""
    decoder = mae_st.Decoder(width=16, depth=1, heads=2, hidden=32, every=2)
    tokens = jax.random.normal(jax.random.key(0), (1, 3, 8))
    visible, target = jnp.asarray([[0, 4, 9]], jnp.int32), jnp.asarray([[1, 2, 3, 11]], jnp.int32)
    kw = {"visible": visible, "grid": GRID, "values": 12}
    start = unboxed(decoder.init(jax.random.key(1), tokens, target=target, **kw)["params"])
    assert {k: bool(np.any(leaf)) for k, leaf in start["sequence"].items()} == {"space": True, "time": True, "class": False, "class_position": True}
    params = jax.tree.map(lambda x: x + 0.2, start)
    params["sequence"]["space"] = jax.random.normal(jax.random.key(3), (6, 16))
    apply = jax.jit(lambda target: decoder.apply({"params": params}, tokens, target=target, **kw))
    out = apply(target)
    assert out.shape == (1, 4, 6) and out.dtype == np.float32
    np.testing.assert_allclose(apply(target[:, ::-1]), out[:, ::-1], atol=1e-5)
    assert np.abs(out[0, 0] - out[0, 1]).max() > 1e-3
    with pytest.raises(UserError, match="every=2 does not divide the 9 values"):
        decoder.apply({"params": params}, tokens, target=target, **(kw | {"values": 9}))


def test_weight_decay_spares_one_dimensional_parameters_alone() -> None:
    """Positions, class and mask tokens decay, as in the released code; biases and scales do not."""
    decoder = mae_st.Decoder(width=16, depth=1, heads=2, hidden=32)
    ids = jnp.zeros((1, 1), jnp.int32)
    params = {"encoder": model()[1], "decoder": unboxed(decoder.init(jax.random.key(1), jnp.zeros((1, 1, 16)), visible=ids, target=ids, grid=GRID, values=12)["params"])}
    decays = optim.decays(params)
    for part in decays.values():
        assert all(part["sequence"].values()) and not part["norm"]["scale"]
    assert decays["decoder"]["mask"] and not decays["decoder"]["bridge"]["bias"]


def test_targets_take_one_frame_of_a_tubelet() -> None:
    """Frames 0, 2, ... of the clip, standardised over all values of that frame's patch: the zero prediction scores (n - 1) / n."""
    video = np.random.default_rng(0).random((1, 3, 2, 4, 4, 3), np.float32)  # tokens, frames of a tubelet, rows, columns, channels
    x = jnp.asarray(video.reshape(1, 3, -1))
    target = frame_targets.LoaderPixels(normalise="joint", every=2)
    out = np.asarray(target(x))
    frame = video[:, :, 0].reshape(1, 3, 48).astype(np.float64)
    loader = (frame - 0.45) / 0.225
    want = (loader - loader.mean(-1, keepdims=True)) / np.sqrt(loader.var(-1, ddof=1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out, want, atol=1e-5)
    assert np.mean(out**2) == pytest.approx(47 / 48, rel=1e-5)
    shown = np.asarray(target.invert(jnp.asarray(out), x)).reshape(1, 3, 2, 48)
    np.testing.assert_allclose(shown, np.repeat(frame[:, :, None], 2, 2), atol=1e-5)
    every = frame_targets.LoaderPixels(normalise="joint")
    np.testing.assert_allclose(every(x), targets.Pixels(normalise="joint")(x), atol=1e-6)
    with pytest.raises(UserError, match="every=3 frame of a tubelet of 2; allowed are the divisors of 2"):
        frame_targets.LoaderPixels(every=3)


@pytest.mark.parametrize(("part", "changes", "message"), [
    ("encoder", {"patch": (4, 4, 4)}, "a target of tubelets of 2 frames beside an encoder of tubelets of 4; allowed is target.tubelet=4"),
    ("target", {"every": 1}, "the target takes one frame in 1 and the decoder predicts one in 2; allowed is the same `every` for both"),
    ("decoder", {"every": 1}, "the target takes one frame in 2 and the decoder predicts one in 1")])
def test_targets_and_predictions_are_of_the_same_frames(part: str, changes: dict[str, Any], message: str) -> None:
    """A tubelet of another length and frames of another distance are refused: the target would be other pixels of the patch."""
    objective = small()
    with pytest.raises(UserError, match=message):
        dataclasses.replace(objective, **{part: dataclasses.replace(getattr(objective, part), **changes)})
    four = dataclasses.replace(objective.target, tubelet=4)
    assert dataclasses.replace(objective, encoder=dataclasses.replace(objective.encoder, patch=(4, 4, 4)), target=four).target.tubelet == 4


def small() -> mae.MAE:
    """MAE-ST with 2 x 2 x 2 tubelets, half of them visible."""
    return mae.MAE(encoder=model()[0], decoder=mae_st.Decoder(width=16, depth=1, heads=2, hidden=32, every=2),
                   encoder_mask=masking.Random(ratio=0.5, layout="token"), decoder_mask=masking.Hidden(),
                   target=frame_targets.LoaderPixels(normalise="joint", every=2))


@pytest.mark.parametrize("normalise", ["joint", "none"])
def test_frames_that_are_not_predicted_are_no_error_of_pictures(normalise: str) -> None:
    """A perfect prediction has none, one that is off is off by as much, and the sheet says what is repeated."""
    objective = dataclasses.replace(small(), target=frame_targets.LoaderPixels(normalise=normalise, every=2))
    pixels = np.random.default_rng(0).random((8, 96)).astype(np.float32)
    mask = masking.Mask(visible=np.arange(4), target=np.arange(4, 8), weight=np.ones(4, np.float32), visible_valid=np.ones(4, bool))
    perfect = np.asarray(objective.target(pixels[4:][None]))[0]
    assert pictures.compose(objective, pixels, perfect, mask)[1] < 1e-9
    shown = np.asarray(objective.target.invert(perfect[None] + 0.1, pixels[4:][None]))[0].clip(0, 1).reshape(4, 2, 48)[:, 0]
    error = np.mean((shown - pixels[4:].reshape(4, 2, 48)[:, 0]) ** 2)
    _, total, values = pictures.compose(objective, pixels, perfect + 0.1, mask)
    assert total / values == pytest.approx(error, rel=1e-4) and error > 1e-5
    assert pictures.note(objective.target).endswith("; one frame in 2 is predicted and repeated for the others")


def test_arms_of_the_toy_leave_the_same_number_visible() -> None:
    """Tokens, tubes and frames: 16 of 128 each, so that the layout alone differs."""
    config = configs.load(str(ROOT / "configs" / "toy" / "mae_st.py"))
    for arm in configs.build(config.evidence).arms:
        objective = configs.build(arm.resolve(config).objective)
        assert objective.counts()["visible"] == 16 and objective.encoder_mask.layout == {"random": "token"}.get(arm.name, arm.name)
    assert isinstance(configs.build(config.evaluators.common).mask, masking.Random)
