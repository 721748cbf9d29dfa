"""Resizing as PyTorch does it, position tables of other grids, and the sizes at which V2's own code fails."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import interpolation, parallel
from videomae_jax.errors import UserError
from videomae_jax.masking import Grid
from videomae_jax.models import layers, mae_st, patches, resized, vit
from videomae_jax.objectives.mae import MAE

SMALL = {"width": 8, "depth": 1, "heads": 2, "hidden": 8}


@pytest.mark.parametrize(("old", "new"), [((8, 14, 14), (16, 14, 14)), ((8, 14, 14), (4, 9, 20)), ((8, 16, 16), (32, 19, 19)), ((2, 1, 3), (3, 2, 1))])
def test_tables_equal_torch(old: tuple[int, int, int], new: tuple[int, int, int]) -> None:
    """Bicubic in space, linear in time; float32 of a float64 result, so 1e-6."""
    functional = pytest.importorskip("torch.nn.functional")
    torch = pytest.importorskip("torch")
    width = 16
    x = torch.from_numpy(patches.sincos(Grid(*old).tokens, width).reshape(*old, width)).double()
    x = functional.interpolate(x.permute(0, 3, 1, 2), size=new[1:], mode="bicubic", align_corners=False)
    x = functional.interpolate(x.permute(2, 3, 1, 0).flatten(0, 1), size=new[0], mode="linear", align_corners=False)
    want = x.reshape(*new[1:], width, new[0]).permute(3, 0, 1, 2).reshape(-1, width)
    found = resized.table(width, trained=old, grid=Grid(*new))
    np.testing.assert_allclose(found, want.numpy(), atol=1e-6)


def test_frames_are_resized_as_torch_does() -> None:
    """Bilinear, both directions, float32."""
    functional, torch = pytest.importorskip("torch.nn.functional"), pytest.importorskip("torch")
    video = np.random.default_rng(0).random((2, 7, 12, 3), np.float32)
    want = functional.interpolate(torch.from_numpy(video).permute(0, 3, 1, 2), size=(10, 9), mode="bilinear", align_corners=False)
    found = interpolation.resize(interpolation.resize(video, axis=1, size=10, kind="linear"), axis=2, size=9, kind="linear")
    np.testing.assert_allclose(found, want.permute(0, 2, 3, 1).numpy(), atol=1e-6)
    assert found.dtype == np.float32


def test_the_training_grid_keeps_its_table() -> None:
    """Bit for bit, and so does every value of a length that does not change."""
    np.testing.assert_array_equal(resized.table(768, trained=(8, 14, 14), grid=Grid(8, 14, 14)), patches.sincos(1568, 768))
    x = np.arange(6.0).reshape(2, 3)
    assert interpolation.resize(x, axis=1, size=3, kind="cubic") is x


def test_weights_sum_to_one() -> None:
    """A constant stays, and linear resizing keeps a straight line straight (the cubic kernel of PyTorch does not)."""
    for old, new in ((8, 16), (14, 19), (16, 5)):
        for kind in interpolation.KINDS:
            np.testing.assert_allclose(interpolation.taps(old, new, kind=kind)[1].sum(1), 1, atol=1e-12)
        places, weights = interpolation.taps(old, new, kind="linear")
        want = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        np.testing.assert_allclose((places * weights).sum(1), want, atol=1e-12)


@pytest.mark.parametrize(("kind", "old", "new"), [("nearest", 4, 4), ("linear", 0, 4), ("cubic", 4, 0)])
def test_impossible_resizing(kind: str, old: int, new: int) -> None:
    """The allowed kinds and lengths are named."""
    with pytest.raises(UserError, match="allowed are linear, cubic"):
        interpolation.taps(old, new, kind=kind)


# Sizes at which V2's own code crashes, or scrambles its table (64 x 266).
CASES = {"32 x 224": ("B", 32, 224), "8 x 224": ("B", 8, 224), "64 x 224": ("B", 64, 224), "64 x 266": ("g", 64, 266), "16 x 384": ("L", 16, 384)}


@pytest.mark.parametrize("case", CASES)
def test_other_sizes_have_their_shapes(case: str) -> None:
    """The published models, by their shapes alone, for pretraining and its gradients' tree."""
    size, frames, side = CASES[case]
    trained = vit.encoder(size).grid
    encoder = resized.at(vit.encoder(size, frames=frames, size=side), trained=trained)
    assert encoder.trained == (trained.t, trained.h, trained.w)
    tokens = encoder.grid.tokens
    x, ids = jax.ShapeDtypeStruct((1, tokens, encoder.values), jnp.float32), jax.ShapeDtypeStruct((1, tokens), jnp.int32)
    out = jax.eval_shape(lambda x, ids: encoder.init_with_output(jax.random.key(0), x, ids=ids)[0], x, ids)
    assert out.tokens.shape == out.last.shape == (1, tokens, encoder.width)


def flat_clip(encoder: vit.Encoder) -> jax.Array:
    """Patches [1 N P] that the loader's normalisation makes 0."""
    return jnp.broadcast_to(jnp.tile(jnp.asarray(encoder.mean), encoder.values // 3), (1, encoder.grid.tokens, encoder.values))


def test_every_token_gets_the_position_of_its_place() -> None:
    """With silent blocks the last tokens are the resized table; without resizing they are the longer 1-D table."""
    plain = vit.Encoder(**SMALL, patch=(2, 4, 4), frames=6, size=20)
    for encoder, want in ((resized.at(plain, trained=Grid(2, 4, 4)), resized.table(8, trained=(2, 4, 4), grid=Grid(3, 5, 5))),
                          (plain, patches.sincos(75, 8))):
        x, ids = flat_clip(encoder), jnp.arange(75)[None]
        params = parallel.unbox(encoder.init(jax.random.key(0), x[:, :1], ids=ids[:, :1])["params"])
        block = params["stack"]["block"]
        quiet = {**block, "attn": jax.tree.map(jnp.zeros_like, block["attn"]), "mlp": jax.tree.map(jnp.zeros_like, block["mlp"])}
        out = encoder.apply({"params": {**params, "stack": {"block": quiet}}}, x, ids=ids)
        np.testing.assert_allclose(out.last[0] - params["embed"]["bias"], want, atol=1e-6)
    assert np.abs(want - resized.table(8, trained=(2, 4, 4), grid=Grid(3, 5, 5))).max() > 0.5


def test_decoders_follow() -> None:
    """The decoder's table is of its own width and of the same training grid; pretraining takes it."""
    trained = Grid(2, 4, 4)
    encoder = resized.at(vit.Encoder(**SMALL, patch=(2, 4, 4), frames=8, size=24), trained=trained)
    decoder = resized.at(vit.Decoder(**SMALL), trained=trained)
    np.testing.assert_array_equal(decoder.positions(encoder.grid), resized.table(8, trained=(2, 4, 4), grid=Grid(4, 6, 6)))
    objective = MAE(encoder, decoder)
    batch = {"video": jnp.zeros((1, 8, 24, 24, 3), jnp.uint8), "key": jnp.zeros((1, 2), jnp.uint32), "valid": jnp.ones(1, bool)}
    params = jax.eval_shape(lambda: parallel.unbox(objective.init(jax.random.key(0), batch)))
    predicted = jax.eval_shape(lambda params: objective.predict(params, {}, batch, jax.random.key(1)).patches, params)
    assert predicted.shape == (1, objective.counts()["decoded"], encoder.values)


@pytest.mark.parametrize(("frames", "tokens"), [(8, 784), (32, 3136)])
def test_other_lengths_are_trained(frames: int, tokens: int) -> None:
    """ViT-B's patches of 224 pixels in a narrow model: tokens forwards, and gradients that are finite and reach every parameter."""
    encoder = resized.at(vit.encoder("B", frames=frames, attention="chunked").clone(**SMALL), trained=Grid(8, 14, 14))
    x, ids = jax.random.uniform(jax.random.key(1), (1, tokens, encoder.values)), jnp.arange(tokens)[None]
    params = parallel.unbox(encoder.init(jax.random.key(0), x[:, :1], ids=ids[:, :1])["params"])

    @jax.jit
    def trained(params: dict) -> tuple:
        def loss(params: dict) -> tuple:
            out = encoder.apply({"params": params}, x, ids=ids).tokens
            return (out * jnp.linspace(-1, 1, out.size).reshape(out.shape)).sum(), out
        return jax.grad(loss, has_aux=True)(params)

    slopes, out = trained(params)
    assert out.shape == (1, tokens, 8) and np.isfinite(out).all()
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_the_longest_published_clip_runs() -> None:
    """64 frames of 266 pixels in ViT-g's patches: 11,552 tokens, in a narrow model."""
    encoder = resized.at(vit.encoder("g", frames=64, size=266, attention="chunked").clone(**SMALL), trained=Grid(8, 16, 16))
    x, ids = flat_clip(encoder), jnp.arange(11552)[None]
    params = encoder.init(jax.random.key(0), x[:, :1], ids=ids[:, :1])
    assert np.isfinite(encoder.apply(params, x, ids=ids).tokens).all()


def test_only_fixed_tables_are_resized() -> None:
    """Learned positions are refused; a resized model keeps its training grid; an impossible grid is named."""
    with pytest.raises(UserError, match="mae_st.Encoder has positions of its own"):
        resized.at(mae_st.encoder("B"), trained=Grid(8, 14, 14))
    once = resized.at(vit.encoder("B"), trained=Grid(2, 3, 4))
    assert resized.at(once, trained=Grid(8, 14, 14)) is once
    with pytest.raises(UserError, match="allowed are three numbers"):
        resized.table(8, trained=(8, 14), grid=Grid(2, 2, 2))


def test_last_is_the_output_of_the_last_block() -> None:
    """Before the norm, the same as `keep` gives, with and without a class token."""
    for encoder in (vit.Encoder(**SMALL, patch=(2, 4, 4), frames=2, size=8), mae_st.Encoder(**SMALL, patch=(2, 4, 4), frames=2, size=8)):
        x, ids = jax.random.uniform(jax.random.key(1), (1, 4, encoder.values)), jnp.arange(4)[None]
        params = encoder.init(jax.random.key(0), x, ids=ids)
        out = encoder.apply(params, x, ids=ids, keep=(0,))
        np.testing.assert_array_equal(out.last, out.kept[0])
        assert not np.allclose(out.last, out.tokens)


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_impossible_drop_path(rate: float) -> None:
    """A rate of 1 would divide by zero; the encoder says so when it is made."""
    for make in (lambda: vit.encoder("S", drop_path=rate), lambda: layers.Stack(2, 2, 8, rate)):
        with pytest.raises(UserError, match="allowed are 0 <= drop_path < 1"):
            make()


def test_declared_padding_is_not_attended() -> None:
    """With `length` 4 of 8 frames the rest may hold anything: real tokens and their mean stay the same."""
    encoder = vit.Encoder(**SMALL, patch=(2, 4, 4), frames=8, size=8)
    objective = MAE(encoder, vit.Decoder(**SMALL))
    video = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 8, 3), np.uint8)
    params = parallel.unbox(objective.init(jax.random.key(0), {}))
    other = video.copy()
    other[:, 4:] = 255 - other[:, 4:]
    length = jnp.asarray([4, 3])  # a tubelet of one real frame is real
    found = [objective.represent(params, {}, {"video": jnp.asarray(v), "length": length})["video"] for v in (video, other)]
    np.testing.assert_array_equal(found[0].valid, np.repeat([[True, True, False, False]] * 2, 4, 1))
    np.testing.assert_array_equal(found[0].tokens[:, :8], found[1].tokens[:, :8])
    np.testing.assert_allclose(found[0].pooled, found[0].tokens[:, :8].mean(1), atol=1e-6)
    whole = objective.represent(params, {}, {"video": jnp.asarray(video)})["video"]
    assert np.abs(whole.tokens[:, :8] - found[0].tokens[:, :8]).max() > 1e-4
