"""VideoMAE's network: sizes, tables, initialisers and cost."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import masking, parallel
from videomae_jax.masking import Hidden, RunningCell
from videomae_jax.models import layers, patches, vit
from videomae_jax.objectives.mae import MAE, block_macs

V1 = {"L": {"depth": 12}, "H": {"depth": 12, "width": 640, "hidden": 2560}}  # decoders of VideoMAE V1


def published(size: str, /, **decoder: Any) -> MAE:
    """The V2 pretraining model of a size; keywords change its decoder."""
    return MAE(encoder=vit.encoder(size), decoder=vit.decoder(size, **decoder))


def abstract(objective: MAE, /) -> dict:
    """Shapes of the parameters, no memory."""
    return parallel.unbox(jax.eval_shape(lambda key: objective.init(key, {}), jax.random.key(0)))


def size_of(tree: Any, /) -> int:
    """Parameters in a tree."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(("size", "decoder", "encoder", "decoded", "bridge", "token", "total"), [
    ("S", {}, 21_879_936, 2_075_520, 73_728, 192, 24_029_376), ("B", {}, 86_227_200, 7_688_448, 294_912, 384, 94_210_944),
    ("L", {}, 303_860_736, 13_396_480, 524_288, 512, 317_782_016), ("H", {}, 631_607_040, 13_396_480, 655_360, 512, 645_659_392),
    ("g", {}, 1_011_610_752, 13_974_400, 720_896, 512, 1_026_306_560),
    ("L", V1["L"], 303_860_736, 38_611_456, 524_288, 512, 342_996_992), ("H", V1["H"], 631_607_040, 60_060_416, 819_200, 640, 692_487_296)])
def test_parameter_counts(size: str, decoder: dict, encoder: int, decoded: int, bridge: int, token: int, total: int) -> None:
    """To the unit; those of B and V1-L agree with the sizes of the released files."""
    params = abstract(published(size, **decoder))
    parts = {k: size_of(v) for k, v in params["decoder"].items()}
    assert size_of(params["encoder"]) == encoder
    assert (parts.pop("bridge"), parts.pop("mask_token")) == (bridge, token)
    assert sum(parts.values()) == decoded
    assert size_of(params) == total


@pytest.mark.parametrize(("size", "width", "heads", "hidden", "values"), [
    ("S", 192, 3, 768, 1536), ("B", 384, 6, 1536, 1536), ("L", 512, 8, 2048, 1536), ("H", 512, 8, 2048, 1536), ("g", 512, 8, 2234, 1176)])
def test_decoders(size: str, width: int, heads: int, hidden: int, values: int) -> None:
    """Four blocks; ViT-g's hidden size follows the encoder's MLP ratio 48/11."""
    d, e = vit.decoder(size), vit.encoder(size)
    assert (d.width, d.depth, d.heads, d.hidden, e.values) == (width, 4, heads, hidden, values)
    assert hidden == int(width * e.hidden / e.width) if size != "g" else hidden == int(512 * 48 / 11)


@pytest.mark.parametrize(("size", "dimension", "tokens"), [("S", 64, 1568), ("B", 64, 1568), ("L", 64, 1568), ("H", 80, 1568), ("g", 88, 2048)])
def test_encoders(size: str, dimension: int, tokens: int) -> None:
    """Head dimensions and token counts of a 16-frame clip of 224 x 224."""
    e = vit.encoder(size)
    assert e.width / e.heads == dimension and e.grid.tokens == tokens


def test_only_queries_and_values_have_biases() -> None:
    """The fused kernel, biases of q and v, output projection with bias: no leaf for a key bias."""
    shapes = {k: v.shape for k, v in abstract(published("B"))["encoder"]["stack"]["block"]["attn"].items()}
    assert shapes == {"qkv": (12, 768, 3, 12, 64), "q_bias": (12, 12, 64), "v_bias": (12, 12, 64), "out": (12, 12, 64, 768), "out_bias": (12, 768)}


TABLE = {768: (0.82843076, 0.56009149, 0.15981568, 0.98714687), 192: (0.78859304, 0.61491545, 0.17162487, 0.98516237),
         384: (0.81525065, 0.57910826, 0.16366064, 0.98651670), 512: (0.82185619, 0.56969501, 0.16172694, 0.98683555),
         1280: (0.83366546, 0.55226977, 0.15830266, 0.98739064), 1408: (0.83437744, 0.55119351, 0.15809743, 0.98742352)}


@pytest.mark.parametrize("width", TABLE)
def test_position_table_golden_values(width: int) -> None:
    """Published digits; 6e-8 is the cast to float32. A float32 computation misses them at position 1567."""
    table = patches.sincos(1568, width)
    assert table.shape == (1568, width) and table.dtype == np.float32
    two, three, last_but_one, last = TABLE[width]
    got = [table[0, 0], table[0, 1], table[1, 0], table[1, 1], table[1, 2], table[1, 3], table[196, 0], table[1567, -2], table[1567, -1],
           table[1567, 0], table[1567, 1]]
    want = [0, 1, 0.84147098, 0.54030231, two, three, 0.93953006, last_but_one, last, 0.60894838, -0.79320985]
    np.testing.assert_allclose(got, want, atol=6e-8)
    channel = np.arange(width, dtype=np.float32)
    angle = np.arange(1568, dtype=np.float32)[:, None] / np.power(np.float32(10000), 2 * (channel // 2) / np.float32(width))
    single = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    assert np.abs(single - table).max() > 1e-5  # so the test can tell


def test_patchify_order_and_inverse() -> None:
    """Tokens in raster order (t, h, w); values in the order (frame, row, column, channel)."""
    video = jnp.arange(2 * 4 * 6 * 9 * 3).reshape(2, 4, 6, 9, 3)
    x = patches.patchify(video, patch=(2, 2, 3))
    assert x.shape == (2, 2 * 3 * 3, 36)
    for t, h, w in np.ndindex(2, 3, 3):
        cube = video[1, 2 * t : 2 * t + 2, 2 * h : 2 * h + 2, 3 * w : 3 * w + 3]
        assert (x[1, (t * 3 + h) * 3 + w] == cube.reshape(-1)).all()
    assert (patches.unpatchify(x, grid=masking.Grid(2, 3, 3), patch=(2, 2, 3)) == video).all()


@pytest.mark.parametrize(("patch", "channels"), [((2, 2, 3), 3), ((1, 6, 3), 1), ((2, 3, 9), 2)])
def test_patches_of_bytes_on_a_tpu(patch: tuple[int, int, int], channels: int) -> None:
    """Every byte at the place that it has elsewhere, by another way; other values, which bfloat16 would round, go the usual one."""
    video = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, 4, 6, 9, channels), np.uint8)).at[0, 0, 0, :2, 0].set(jnp.asarray([0, 255], jnp.uint8))
    expected = patches.patchify(video, patch=patch)
    with parallel.aim(parallel.Target("tpu", 1)):
        found, text = patches.patchify(video, patch=patch), str(jax.make_jaxpr(lambda v: patches.patchify(v, patch=patch))(video))
        exact = patches.patchify(video.astype(jnp.float32) + 1 / 3, patch=patch)
    assert found.dtype == jnp.uint8 and (found == expected).all() and "dot_general" in text
    assert (exact == expected.astype(jnp.float32) + 1 / 3).all()


def test_pixels_to_unit_and_standardise() -> None:
    """uint8 is divided by 255; statistics apply to the fastest axis, the channel."""
    assert np.asarray(patches.to_unit(jnp.asarray([0, 51, 255], jnp.uint8))).tolist() == pytest.approx([0, 0.2, 1], abs=1e-7)
    assert patches.to_unit(jnp.asarray([0.25], jnp.bfloat16)).dtype == jnp.float32
    x = np.random.default_rng(0).uniform(size=(1, 2, 12)).astype(np.float32)
    want = (x.reshape(1, 2, 4, 3) - patches.IMAGENET_MEAN) / np.asarray(patches.IMAGENET_STD)
    got = patches.standardise(jnp.asarray(x), mean=patches.IMAGENET_MEAN, std=patches.IMAGENET_STD)
    np.testing.assert_allclose(got, want.reshape(1, 2, 12), atol=1e-6)


# -- initialisers ---------------------------------------------------------------------------------------------------


def test_initialisers() -> None:
    """Bounds of V2 modeling_pretrain: Xavier inside the blocks and the head, PyTorch defaults for embedding and bridge, zeros, ones."""
    objective = MAE(encoder=vit.Encoder(width=384, depth=2, heads=6, hidden=1536), decoder=vit.Decoder(width=192, depth=2, heads=3, hidden=768))
    params = parallel.unbox(jax.jit(lambda key: objective.init(key, {}))(jax.random.key(0)))

    def uniform(x: jax.Array, bound: float) -> None:
        x = np.asarray(x, np.float64)
        assert np.abs(x).max() <= bound * (1 + 1e-6)
        assert np.abs(x).max() > bound * (1 - 20 / x.size)  # the largest of n draws lies within 20 / n of the bound
        assert abs(x.std() / (bound / 3**0.5) - 1) < 5 / x.size**0.5
        assert abs(x.mean()) < 5 * bound / 3**0.5 / x.size**0.5

    uniform(params["encoder"]["embed"]["kernel"], 1536**-0.5)
    uniform(params["encoder"]["embed"]["bias"], 1536**-0.5)
    assert round(1536**-0.5, 6) == 0.025516 and round(1176**-0.5, 6) == 0.029161
    uniform(params["decoder"]["bridge"]["kernel"], 384**-0.5)
    assert set(params["decoder"]["bridge"]) == {"kernel"}
    uniform(params["decoder"]["head"]["kernel"], (6 / (192 + 1536)) ** 0.5)
    assert (params["decoder"]["head"]["bias"] == 0).all()
    token = np.asarray(params["decoder"]["mask_token"])
    assert token.shape == (192,) and 0 < np.abs(token).max() <= 0.02 and len(set(token.tolist())) == 192
    for part, width in (("encoder", 384), ("decoder", 192)):
        block = params[part]["stack"]["block"]
        uniform(block["attn"]["qkv"], (6 / (4 * width)) ** 0.5)
        uniform(block["attn"]["out"], (6 / (2 * width)) ** 0.5)
        uniform(block["mlp"]["fc1"]["kernel"], (6 / (5 * width)) ** 0.5)
        uniform(block["mlp"]["fc2"]["kernel"], (6 / (5 * width)) ** 0.5)
        assert (block["attn"]["qkv"][0] != block["attn"]["qkv"][1]).mean() > 0.99  # layers draw on their own
        for leaf in (block["attn"]["q_bias"], block["attn"]["v_bias"], block["attn"]["out_bias"], block["mlp"]["fc1"]["bias"], block["mlp"]["fc2"]["bias"]):
            assert (leaf == 0).all()
        for norm in (block["norm1"], block["norm2"], params[part]["norm"]):
            assert (norm["scale"] == 1).all() and (norm["bias"] == 0).all()


def test_mask_token_initialiser() -> None:
    """Normal of deviation .02 cut at one deviation: all within .02, true deviation .010791."""
    x = np.asarray(layers.truncated(0.02)(jax.random.key(0), (200_000,), jnp.float32), np.float64)
    assert np.abs(x).max() <= 0.02 and np.abs(x).max() > 0.0199
    assert abs(x.std() - 0.010791) < 5 * 0.010791 / (2 * 200_000) ** 0.5


def test_constant_ids_are_looked_up_at_run_time() -> None:
    """All tokens of a clip have constant ids: the compiler would compute the rows itself, 65 MB of them for a long clip."""
    table = patches.sincos(64, 8)

    def gathers(rows: Any) -> bool:
        return " gather(" in jax.jit(lambda x: x + rows(jnp.arange(64)[None])).lower(jnp.zeros((1, 64, 8))).compile().as_text()

    assert gathers(lambda ids: patches.looked_up(table, ids, dtype=jnp.float32)) and not gathers(lambda ids: jnp.asarray(table)[ids])
    found = patches.looked_up(table, jnp.asarray([[3, 1]]), dtype=jnp.bfloat16)
    np.testing.assert_array_equal(found, jnp.asarray(table[[[3, 1]]], jnp.bfloat16))


# -- cost -----------------------------------------------------------------------------------------------------------


MACS = {"S": (11.54, 10.02, 7.84, 6.13), "B": (35.44, 31.59, 25.84, 21.03), "L": (83.03, 77.17, 68.27, 60.63),
        "H": (136.86, 130.99, 122.09, 114.45), "g": (263.96, 255.00, 241.61, 230.38)}


def every_token_embedded(objective: MAE, /) -> float:
    """G multiply-adds with all N tokens embedded, as the official code does; ours embeds the visible ones, the same function."""
    n, e = objective.counts(), objective.encoder
    return (objective.cost().macs + (n["all"] - n["visible"]) * e.values * e.width) / 1e9


@pytest.mark.parametrize("size", MACS)
def test_multiply_adds_of_the_paper(size: str) -> None:
    """Encoder-only masking and the three ratios of the running cell; the paper calls them FLOPs. Two decimals."""
    for macs, mask in zip(MACS[size], (Hidden(), RunningCell(0.25), RunningCell(0.5), RunningCell(0.75)), strict=True):
        assert every_token_embedded(dataclasses.replace(published(size), decoder_mask=mask)) == pytest.approx(macs, abs=0.00501)


@pytest.mark.parametrize(("size", "visible", "decoded", "parts"), [
    ("B", 160, 784, (1.85, 14.06, 0.05, 9.42, 0.46)), ("g", 208, 1024, (3.39, 214.80, 0.15, 22.66, 0.62))])
def test_multiply_adds_by_part(size: str, visible: int, decoded: int, parts: tuple) -> None:
    """Embedding of all tokens, encoder, bridge, decoder and head."""
    objective = published(size)
    e, d = objective.encoder, objective.decoder
    embed, rest = e.grid.tokens * e.values * e.width, visible * e.values * e.width
    encoder, bridge = e.depth * block_macs(visible, e.width, e.hidden), visible * e.width * d.width
    decoder, head = 4 * block_macs(visible + decoded, d.width, d.hidden), decoded * d.width * e.values
    for got, want in zip((embed, encoder, bridge, decoder, head), parts, strict=True):
        assert got / 1e9 == pytest.approx(want, abs=0.00501)
    assert objective.cost().macs == rest + encoder + bridge + decoder + head
    assert objective.cost().tokens == {"all": e.grid.tokens, "visible": visible, "decoded": decoded, "decoder": visible + decoded}


@pytest.mark.parametrize(("size", "expected"), [("S", 56.9), ("B", 180.3), ("L", 596.8), ("H", 1191.0), ("g", 2542.8)])
def test_multiply_adds_of_a_whole_clip(size: str, expected: float) -> None:
    """The encoder on all tokens, as in fine-tuning."""
    e = vit.encoder(size)
    macs = e.grid.tokens * e.values * e.width + e.depth * block_macs(e.grid.tokens, e.width, e.hidden)
    assert macs / 1e9 == pytest.approx(expected, abs=0.0501)
