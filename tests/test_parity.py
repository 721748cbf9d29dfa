"""Our V1 model against Hugging Face's VideoMAEForPreTraining: forward, loss and gradients, and both weight formats.

The first half reads tests/golden/hf_parity.npz and needs no PyTorch; the second compares live where it is installed.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from videomae_jax import losses, masking, targets
from videomae_jax.convert import videomae
from videomae_jax.convert.videomae import Biases
from videomae_jax.errors import UserError
from videomae_jax.models import layers, vit
from videomae_jax.objectives.mae import MAE

GOLDEN = pathlib.Path(__file__).parent / "golden" / "hf_parity.npz"
SMALL = MAE(encoder=vit.Encoder(width=32, depth=2, heads=4, hidden=64, patch=(2, 8, 8), frames=8, size=32),
            decoder=vit.Decoder(width=24, depth=2, heads=3, hidden=48), decoder_mask=masking.Hidden())
MEDIUM = MAE(encoder=vit.Encoder(width=192, depth=3, heads=3, hidden=768, patch=(2, 16, 16), frames=16, size=112),
             decoder=vit.Decoder(width=96, depth=2, heads=3, hidden=384), decoder_mask=masking.Hidden())
FORWARD = 1e-5  # largest difference over largest value; float32 noise is 1e-6
GRADIENT = 1e-5
BROKEN = 1e-3  # what a real fault must exceed
NORMALISATIONS = {"normalised": "channel", "raw": "none"}


def distance(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the largest absolute value of `theirs`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def mask_of(masked: np.ndarray) -> masking.Mask:
    """V1's mask of a boolean array [B N], True = masked."""
    visible = np.stack([np.flatnonzero(~row) for row in masked]).astype(np.int32)
    target = np.stack([np.flatnonzero(row) for row in masked]).astype(np.int32)
    return masking.Mask(*map(jnp.asarray, (visible, target, np.ones(target.shape, np.float32), np.ones(visible.shape, bool))))


def compared(objective: MAE, params: Any, batch: Any, masks: masking.Mask, /) -> dict[str, Any]:
    """Our `loss`, gradient tree `grad`, encoder `tokens` and `predictions`."""
    rng = jax.random.key(0)

    def loss(params: Any) -> jax.Array:
        terms = objective.loss(params, {}, batch, rng, step=jnp.int32(0), train=True, masks=masks).terms
        return losses.value(terms, denominators=losses.denominators(terms))

    value, grad = jax.value_and_grad(loss)(params)
    visible = masking.take(objective.patchify(batch), ids=masks.visible)
    tokens = objective.encoder.apply({"params": params["encoder"]}, visible, ids=masks.visible).tokens
    prediction = objective.predict(params, {}, batch, rng, masks=masks)
    return {"loss": value, "grad": grad, "tokens": tokens, "predictions": prediction.patches}


compiled = jax.jit(compared, static_argnums=0)


def evaluate(objective: MAE, params: Any, video: np.ndarray, masked: np.ndarray, *, label: str, run: Any = compiled) -> dict[str, Any]:
    """`compared` for u8 clips, fed as floats in [0, 1]."""
    objective = dataclasses.replace(objective, target=targets.Pixels(normalise=NORMALISATIONS[label]))
    rows, unit = len(video), video.astype(np.float32) / np.float32(255)
    batch = {"video": jnp.asarray(unit), "key": jnp.zeros((rows, 2), jnp.uint32), "valid": jnp.ones(rows, bool)}
    return jax.device_get(run(objective, params, batch, mask_of(masked)))


@dataclasses.dataclass(frozen=True)
class Golden:
    """The stored comparison: weights in Hugging Face's names, and everything else."""

    state: Mapping[str, np.ndarray]
    arrays: Mapping[str, np.ndarray]

    @property
    def params(self) -> Any:
        """A fresh copy of our parameters."""
        return videomae.from_hf(self.state, heads=4, decoder_heads=3)

    def distances(self, params: Any, *, label: str, run: Any = compiled) -> dict[str, float]:
        """{what: distance} of our model with `params`."""
        ours = evaluate(SMALL, params, self.arrays["video"], self.arrays["masked"], label=label, run=run)
        grads = videomae.to_hf(ours["grad"], patch=(2, 8, 8), biases=Biases.MODULE)
        found = {"loss": distance(ours["loss"], self.arrays[f"{label}/loss"]), "tokens": distance(ours["tokens"], self.arrays["tokens"]),
                 "predictions": distance(ours["predictions"][:, ::2], self.arrays["predictions"])}
        prefix = f"{label}/grad/"
        names = [n.removeprefix(prefix) for n in self.arrays if n.startswith(prefix)]
        assert len(names) >= 4
        return found | {f"grad/{n}": distance(grads[n], self.arrays[prefix + n]) for n in names}


@pytest.fixture(scope="module")
def golden() -> Golden:
    """The stored file."""
    with np.load(GOLDEN) as file:
        arrays = {k: file[k] for k in file.files}
    return Golden({k.removeprefix("weight/"): v for k, v in arrays.items() if k.startswith("weight/")}, arrays)


@pytest.fixture(scope="module")
def official(golden: Golden) -> dict[str, np.ndarray]:
    """The stored weights in the official names."""
    return videomae.to_official(golden.params, patch=(2, 8, 8))


def check(found: Mapping[str, float]) -> None:
    """Every distance is within its limit."""
    assert all(value <= (GRADIENT if name.startswith("grad") else FORWARD) for name, value in found.items()), found


# -- against the stored results ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", NORMALISATIONS)
def test_model_equals_the_stored_results(golden: Golden, label: str) -> None:
    """Loss, encoder tokens, predictions and gradients, for both targets."""
    assert all(np.any(v) for k, v in golden.state.items() if k.endswith((".query.bias", ".value.bias")))
    check(golden.distances(golden.params, label=label))


def swap_query_and_key(params: Any) -> None:
    """q and k exchanged in every block of the encoder."""
    attention = params["encoder"]["stack"]["block"]["attn"]
    attention["qkv"] = attention["qkv"][:, :, [1, 0, 2]]


def permute_patch(params: Any) -> None:
    """Patch values in the order (channel, frame, row, column)."""
    kernel = params["encoder"]["embed"]["kernel"]
    params["encoder"]["embed"]["kernel"] = kernel.reshape(-1, 3, kernel.shape[1]).swapaxes(0, 1).reshape(kernel.shape)


def drop_query_bias(params: Any) -> None:
    """What transformers 5.8 to 5.17 do to a checkpoint, in the decoder only."""
    params["decoder"]["stack"]["block"]["attn"]["q_bias"] *= 0


def swap_blocks(params: Any) -> None:
    """Blocks in the reverse order."""
    params["encoder"]["stack"] = jax.tree.map(lambda x: x[::-1], params["encoder"]["stack"])


@pytest.mark.parametrize("mutate", [swap_query_and_key, permute_patch, drop_query_bias, swap_blocks])
def test_a_wrong_conversion_is_noticed(golden: Golden, mutate: Any) -> None:
    """The comparison can fail: each fault moves the predictions far beyond the limit."""
    params = golden.params
    mutate(params)
    assert golden.distances(params, label="raw")["predictions"] > BROKEN


def afresh() -> Any:
    """`compiled` without its cache, which does not know that a function was replaced."""
    return jax.jit(lambda *a: compared(*a), static_argnums=0)


def test_another_gelu_is_noticed(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tanh approximation, which is JAX's default."""
    exact = jax.nn.gelu
    monkeypatch.setattr(layers, "gelu", lambda x: exact(x, approximate=True))
    found = golden.distances(golden.params, label="raw", run=afresh())
    assert min(v for k, v in found.items() if k != "loss") > 3 * FORWARD, found


def test_another_eps_is_noticed(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's default 1e-5 in place of 1e-6, the smallest of the known differences between ports, moves some gradients."""
    norm = layers.LayerNorm
    monkeypatch.setattr(layers, "LayerNorm", lambda eps, *a, **kw: norm(1e-5, *a, **kw))
    found = golden.distances(golden.params, label="raw", run=afresh())
    assert max(found.values()) > FORWARD, found


def test_another_target_is_noticed(golden: Golden) -> None:
    """Normalising all values of a patch together is MAE-ST's target."""
    arrays, masks = golden.arrays, mask_of(golden.arrays["masked"])
    ours = evaluate(SMALL, golden.params, arrays["video"], arrays["masked"], label="normalised")
    patches = SMALL.patchify({"video": jnp.asarray(arrays["video"])})
    for normalise, noticed in (("channel", False), ("joint", True)):
        target = masking.take(targets.Pixels(normalise=normalise)(patches), ids=masks.target)
        loss = np.mean((ours["predictions"] - target) ** 2)
        assert (distance(loss, arrays["normalised/loss"]) > FORWARD) is noticed


# -- weight formats ----------------------------------------------------------------------------------------------------


def assert_same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> None:
    """Same names, shapes, dtypes and bits."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert value.dtype == right[name].dtype and value.shape == right[name].shape, name
        assert np.array_equal(value, right[name]), name


@pytest.mark.parametrize("biases", Biases)
def test_hugging_face_round_trip_is_exact(golden: Golden, biases: Biases) -> None:
    """Theirs -> ours -> theirs, in both spellings of the biases."""
    state = videomae.to_hf(golden.params, patch=(2, 8, 8), biases=biases)
    assert any(name.endswith(f"0.attention.attention.{biases.value}") for name in state)
    again = videomae.from_hf(state, heads=4, decoder_heads=3)
    assert_same(state, videomae.to_hf(again, patch=(2, 8, 8), biases=biases))
    assert_same(traverse_util.flatten_dict(golden.params, sep="/"), traverse_util.flatten_dict(again, sep="/"))
    if biases is Biases.MODULE:
        assert_same(golden.state, state)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "backbone."])
def test_official_round_trip_is_exact(golden: Golden, official: Mapping[str, np.ndarray], prefix: str) -> None:
    """Official -> ours -> official, with the prefixes of wrappers, and the same tree as through Hugging Face's names."""
    params = videomae.from_official({prefix + k: v for k, v in official.items()}, heads=4, decoder_heads=3)
    assert_same(official, videomae.to_official(params, patch=(2, 8, 8)))
    assert_same(traverse_util.flatten_dict(golden.params, sep="/"), traverse_util.flatten_dict(params, sep="/"))


def test_official_names_and_packing(golden: Golden, official: Mapping[str, np.ndarray]) -> None:
    """Names and shapes of the released files, and the fused matrix in the order q, k, v."""
    assert len(official) == 2 * 2 * 13 + 4 + 2 + 4
    shapes = {"encoder.patch_embed.proj.weight": (32, 3, 2, 8, 8), "encoder.blocks.1.attn.qkv.weight": (96, 32), "mask_token": (1, 1, 24),
              "encoder.blocks.0.mlp.fc1.weight": (64, 32), "encoder_to_decoder.weight": (24, 32), "decoder.head.weight": (384, 24)}
    assert {k: official[k].shape for k in shapes} == shapes
    theirs = [golden.state[f"videomae.encoder.layer.0.attention.attention.{n}.weight"] for n in ("query", "key", "value")]
    assert np.array_equal(official["encoder.blocks.0.attn.qkv.weight"], np.concatenate(theirs))


def test_converted_tree_is_the_models_own(golden: Golden) -> None:
    """Same paths, shapes and dtypes as a fresh initialisation."""
    shape = jax.eval_shape(lambda: SMALL.init(jax.random.key(0), {}))
    ours = {jax.tree_util.keystr(k).replace(".value", ""): (v.shape, v.dtype) for k, v in jax.tree_util.tree_leaves_with_path(shape)}
    converted = {jax.tree_util.keystr(k): (v.shape, v.dtype) for k, v in jax.tree_util.tree_leaves_with_path(golden.params)}
    assert ours == converted


def test_strays_are_errors(golden: Golden, official: Mapping[str, np.ndarray]) -> None:
    """A name more, a name less, a name twice, a stray leaf of ours."""
    hf = {"heads": 4, "decoder_heads": 3}
    less = {k: v for k, v in golden.state.items() if k != "decoder.norm.bias"}
    with pytest.raises(UserError, match=r"1 missing: decoder\.norm\.bias$"):
        videomae.from_hf(less, **hf)
    with pytest.raises(UserError, match=r"1 left over: classifier\.weight$"):
        videomae.from_hf({**golden.state, "classifier.weight": np.zeros((2, 32))}, **hf)
    with pytest.raises(UserError, match="twice"):
        videomae.from_hf({**golden.state, "decoder.decoder_layers.0.attention.attention.q_bias": np.zeros(24)}, **hf)
    with pytest.raises(UserError, match=r"2 missing: encoder\.blocks\.0\.norm1\..*2 left over: encoder\.blocks\.5\."):
        videomae.from_official({k.replace("encoder.blocks.0.norm1", "encoder.blocks.5.norm1"): v for k, v in official.items()}, **hf)
    with pytest.raises(UserError, match="left over"):
        videomae.to_official({**golden.params, "head": {"kernel": np.zeros((2, 2))}}, patch=(2, 8, 8))
    with pytest.raises(UserError, match="not a VideoMAE encoder and decoder"):
        videomae.from_hf(official, **hf)


def test_lost_biases_are_noticed(golden: Golden, official: Mapping[str, np.ndarray]) -> None:
    """transformers 5.8 to 5.17 load q and v biases as zero: missing ones are refused, zero ones are announced."""
    for state, convert in ((golden.state, videomae.from_hf), (official, videomae.from_official)):
        biases = [k for k in state if k.endswith(("query.bias", "value.bias", "q_bias", "v_bias"))]
        assert len(biases) == 8
        with pytest.raises(UserError, match="5.8 to 5.17"):
            convert({k: v for k, v in state.items() if k not in biases}, heads=4, decoder_heads=3)
        with pytest.raises(UserError, match="1 missing"):
            convert({k: v for k, v in state.items() if k != biases[0]}, heads=4, decoder_heads=3)
        with pytest.warns(UserWarning, match="5.8 to 5.17"):
            convert({k: v * 0 if k in biases else v for k, v in state.items()}, heads=4, decoder_heads=3)


def test_impossible_sizes_are_errors(golden: Golden) -> None:
    """Heads that do not divide the width, and a patch that does not fit the embedding."""
    with pytest.raises(UserError, match="5 heads for the encoder of width 32"):
        videomae.from_hf(golden.state, heads=5, decoder_heads=3)
    with pytest.raises(UserError, match="5 heads for the decoder of width 24"):
        videomae.from_hf(golden.state, heads=4, decoder_heads=5)
    with pytest.raises(UserError, match="384 values"):
        videomae.to_hf(golden.params, patch=(2, 16, 16))


# -- live --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def live() -> Any:
    """tests/parity/make_golden.py, where PyTorch and a sound transformers are installed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.18")  # before, q and v biases are loaded as zero
    from parity import make_golden

    assert transformers.__name__
    torch.set_num_threads(1)
    return make_golden


@pytest.mark.parametrize("label", NORMALISATIONS)
@pytest.mark.parametrize("size", ["small", "medium"])
def test_model_equals_the_live_one(live: Any, size: str, label: str) -> None:
    """As above with every gradient, on other weights; "medium" has 8x7x7 tokens of 16 frames."""
    sizes, objective, batch = (live.SMALL, SMALL, 2) if size == "small" else (live.MEDIUM, MEDIUM, 1)
    model = live.build(sizes, seed=5)
    video, masked = live.clips(sizes, batch=batch, seed=6), live.tube(sizes, batch=batch, seed=7, ratio=0.9 if size == "medium" else 0.75)
    theirs = live.reference(model, video, masked, normalise=label == "normalised")
    heads = {"heads": objective.encoder.heads, "decoder_heads": objective.decoder.heads}
    params = videomae.from_hf({k: v.numpy() for k, v in model.state_dict().items()}, **heads)
    ours = evaluate(objective, params, video, masked, label=label)
    found = {k: distance(ours[k], theirs[k]) for k in ("loss", "tokens", "predictions")}
    wanted = videomae.from_hf({k.removeprefix("grad/"): v for k, v in theirs.items() if k.startswith("grad/")}, **heads)
    pairs = jax.tree.map(distance, ours["grad"], wanted)
    check(found | {f"grad/{k}": v for k, v in traverse_util.flatten_dict(pairs, sep="/").items()})


@pytest.mark.parametrize("label", NORMALISATIONS)
def test_dual_masking_equals_v2_on_their_blocks(live: Any, label: str) -> None:
    """Loss and every gradient under a second mask that selects seen and hidden tokens alike; the loss counts the hidden ones alone."""
    import torch

    from videomae_jax import torch_reference

    model = live.build(live.SMALL, seed=9)
    model.config.norm_pix_loss = label == "normalised"
    video, masked = live.clips(live.SMALL, batch=2, seed=10), live.tube(live.SMALL, batch=2, seed=11)
    rng = np.random.default_rng(12)
    selected = np.stack([rng.permutation(masked.shape[1]) < masked.shape[1] // 2 for _ in range(2)])
    assert (selected & ~masked).any(1).all()
    unit = torch.from_numpy(video.astype(np.float32) / np.float32(255))
    pixels = ((unit - torch.tensor(live.MEAN)) / torch.tensor(live.STD)).permute(0, 1, 4, 2, 3).contiguous()
    loss = torch_reference.Dual(model)(pixels, torch.from_numpy(masked), torch.from_numpy(selected))
    loss.backward()
    heads = {"heads": SMALL.encoder.heads, "decoder_heads": SMALL.decoder.heads}
    params = videomae.from_hf({k: v.numpy() for k, v in model.state_dict().items()}, **heads)
    ids = np.stack([np.flatnonzero(row) for row in selected]).astype(np.int32)
    visible = mask_of(masked).visible
    masks = masking.Mask(visible, jnp.asarray(ids), jnp.asarray(np.take_along_axis(masked, ids, 1), jnp.float32), jnp.ones(visible.shape, bool))
    objective = dataclasses.replace(SMALL, target=targets.Pixels(normalise=NORMALISATIONS[label]))
    batch = {"video": jnp.asarray(unit.numpy()), "key": jnp.zeros((2, 2), jnp.uint32), "valid": jnp.ones(2, bool)}
    ours = jax.device_get(compiled(objective, params, batch, masks))
    wanted = videomae.from_hf({name: p.grad.numpy() for name, p in model.named_parameters()}, **heads)
    pairs = jax.tree.map(distance, ours["grad"], wanted)
    check({"loss": distance(ours["loss"], loss.detach().numpy())} | {f"grad/{k}": v for k, v in traverse_util.flatten_dict(pairs, sep="/").items()})


@pytest.mark.parametrize("biases", Biases)
def test_transformers_loads_what_we_write(live: Any, biases: Biases, tmp_path: pathlib.Path) -> None:
    """`from_pretrained` of our arrays: no key missing or unexpected, no bias lost, the same bits."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    model = live.build(live.SMALL, seed=8)
    state = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    model.config.save_pretrained(tmp_path)
    written = videomae.to_hf(videomae.from_hf(state, heads=4, decoder_heads=3), patch=(2, 8, 8), biases=biases)
    numpy_files.save_file(written, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    loaded_state = {k: v.numpy() for k, v in loaded.state_dict().items()}
    assert all(np.any(v) for k, v in loaded_state.items() if k.endswith((".query.bias", ".value.bias")))
    assert_same(state, loaded_state)


def test_stored_results_are_reproducible(live: Any, golden: Golden) -> None:
    """The file is what its script writes today, up to float32 noise."""
    model = live.build(live.SMALL, seed=0)
    assert_same(golden.state, {k: v.numpy() for k, v in model.state_dict().items()})
    theirs = live.reference(model, golden.arrays["video"], golden.arrays["masked"], normalise=True)
    assert distance(theirs["loss"], golden.arrays["normalised/loss"]) <= FORWARD
    assert distance(theirs["predictions"][:, ::2], golden.arrays["predictions"]) <= FORWARD
