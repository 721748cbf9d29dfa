"""Audiovisual MAE: counts, layouts, mathematics against numpy, what does not exist, inpainting, features, evaluators, sound."""

import dataclasses
import functools
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import substitutes
import test_optim
import test_targets
import written

import videomae_jax
from videomae_jax import artefact
from videomae_jax import config as configs
from videomae_jax import losses, masking, optim, parallel, step
from videomae_jax.assembly import assemble
from videomae_jax.data import audiovisual as data
from videomae_jax.data import index, synthetic
from videomae_jax.data.clips import DenseCentre, DenseView
from videomae_jax.data.collisions import Collisions
from videomae_jax.data.spectrogram import LogMel
from videomae_jax.errors import UserError
from videomae_jax.evals import completion, modalities, pictures, probe
from videomae_jax.evals.base import Context
from videomae_jax.masking import Grid
from videomae_jax.models import fusion, vit
from videomae_jax.objectives import audiovisual, mae
from videomae_jax.objectives.audiovisual import AudiovisualMAE
from videomae_jax.runner import Program

ROOT = pathlib.Path(__file__).resolve().parents[2]
VIDEO = fusion.Video(frames=4, size=12, patch=(2, 4, 4))  # 2 x 3 x 3 tokens of 96 values
SOUND = fusion.Sound(spectrogram=26, mels=8, patch=(4, 4))  # 6 x 1 x 2 tokens of 16 values; two frames are left over
DEPTH, HEADS = 3, 2


def recipe(encoder: str = "mid", decoder: str = "shared", inpainting: str = "none", **fields: Any) -> AudiovisualMAE:
    """A small recipe: 5 of 18 video tokens and 6 of 12 sound tokens are visible."""
    return AudiovisualMAE(encoder=fusion.Encoder(width=16, depth=DEPTH, heads=HEADS, hidden=24, layout=encoder, fused=1, video=VIDEO, audio=SOUND),
                          decoder=fusion.Decoder(width=12, depth=2, heads=HEADS, hidden=20, layout=decoder, head="xavier"),
                          video_mask=masking.Random(ratio=0.75, layout="token"), audio_mask=masking.Random(ratio=0.5, layout="token"),
                          inpainting=inpainting, **fields)


def shapes(objective: AudiovisualMAE) -> Any:
    """Parameters as shapes."""
    return jax.eval_shape(lambda: parallel.unbox(objective.init(jax.random.key(0), {})))


@functools.cache
def parameters(objective: AudiovisualMAE) -> Any:
    """Parameters with nothing at 0 or 1, so that no bias, scale or token can be forgotten."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda path, x: np.float32(0.3 * rng.standard_normal(x.shape) + path.endswith("scale")), optim.paths(shapes(objective)), shapes(objective))


def clips(*heard: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch whose row i has its first heard[i] spectrogram frames; the others hold noise as well, which nothing may see."""
    rng, rows = np.random.default_rng(seed), len(heard)
    return {"video": rng.integers(0, 256, (rows, 4, 12, 12, 3), np.uint8), "audio": rng.standard_normal((rows, 26, 8)).astype(np.float32),
            "audio_valid": np.arange(26) < np.asarray(heard)[:, None], "key": np.stack([np.arange(rows), np.zeros(rows)], 1).astype(np.uint32),
            "valid": np.ones(rows, bool)}


@functools.cache
def compiled(objective: AudiovisualMAE) -> tuple[Any, Any]:
    """(predictions of both modalities, Output of the training loss) as functions of (parameters, batch, key, masks or None)."""
    def loss(params: Any, batch: Any, rng: Any, masks: Any) -> Any:
        return objective.loss(params, {}, batch, rng, step=jnp.zeros((), jnp.int32), train=True, masks=masks)
    return jax.jit(lambda params, batch, rng, masks: objective.predictions(params, batch, rng, masks=masks)), jax.jit(loss)


def loss_of(objective: AudiovisualMAE, params: Any, batch: Any, *, rng: int = 3, masks: Any = None) -> Any:
    """The Output of the training loss."""
    return compiled(objective)[1](params, batch, jax.random.key(rng), masks)


def predicted(objective: AudiovisualMAE, batch: Any, *, rng: int = 3, masks: Any = None) -> dict[str, Any]:
    """Predictions of both modalities, as numpy."""
    return jax.device_get(compiled(objective)[0](parameters(objective), batch, jax.random.key(rng), masks))


# -- counts and configs ---------------------------------------------------------------------------------------------


def built(name: str) -> AudiovisualMAE:
    """The objective of a config file."""
    return configs.build(configs.load(str(ROOT / "configs" / f"{name}.py")).objective)


@pytest.mark.parametrize(("name", "tokens", "visible"), [("av_mae/audioset_l", 496, 149), ("av_mae/vggsound_l", 400, 200)])
def test_token_counts_are_those_of_the_released_configs(name: str, tokens: int, visible: int) -> None:
    """1000 or 800 frames of 128 mel in patches of 16 x 16; 16 frames of 224 x 224 in tubelets of 2 x 16 x 16."""
    counts = built(name).counts()
    assert counts["video"] == {"all": 1568, "visible": 157, "decoded": 1411, "decoder": 1568}
    assert counts["audio"] == {"all": tokens, "visible": visible, "decoded": tokens - visible, "decoder": tokens}


def test_the_toy_config_says_its_counts() -> None:
    """The numbers of its docstring."""
    counts = built("toy/av_mae").counts()
    assert (counts["video"]["all"], counts["video"]["visible"], counts["audio"]["all"], counts["audio"]["visible"]) == (128, 32, 48, 15)


def test_cost_counts_every_product() -> None:
    """Written out for mid-fusion with a joint decoder, whose attention spans both modalities."""
    def block(n: int, width: int, hidden: int) -> int:
        return n * (4 * width**2 + 2 * width * hidden) + 2 * n * n * width

    cost = recipe("mid", "joint").cost()
    embed_and_bridge = 5 * (96 * 16 + 16 * 12) + 6 * (16 * 16 + 16 * 12)
    encoder = 2 * (block(5, 16, 24) + block(6, 16, 24)) + block(11, 16, 24)
    assert cost.macs == embed_and_bridge + encoder + 2 * block(30, 12, 20) + 13 * 12 * 96 + 6 * 12 * 16
    assert cost.tokens["all"] == 30 and cost.tokens["visible"] == 11 and cost.tokens["audio_decoded"] == 6
    assert recipe("separate", "shared").cost().macs < cost.macs


@pytest.mark.parametrize(("changes", "text"), [
    ({"encoder": "late"}, "layout 'late'"), ({"decoder": "both"}, "layout 'both'"), ({"inpainting": "off"}, "inpainting 'off'"),
    ({"encoder": "separate", "decoder": "separate"}, "never meet"),
    ({"inpainting": "released", "audio_mask": masking.Random(ratio=0.0, layout="token"), "video_mask": masking.Random(ratio=0.3, layout="token")}, "13 visible video"),
])
def test_mistakes_are_refused(changes: dict[str, Any], text: str) -> None:
    """With the offending value."""
    with pytest.raises(UserError, match=text):
        dataclasses.replace(recipe(), **changes) if "audio_mask" in changes else recipe(**changes)


def test_fusion_blocks_have_to_fit() -> None:
    """Mid-fusion of all blocks would be early fusion under another name; and the statistics of pixels have to be one a channel."""
    with pytest.raises(UserError, match="fused is 3 of 3"):
        AudiovisualMAE(encoder=fusion.Encoder(16, 3, 2, 24, fused=3), decoder=fusion.Decoder(12, 1, 2, 20))
    with pytest.raises(UserError, match=r"std \(1.0,\); allowed are as many numbers as channels, 3"):
        AudiovisualMAE(encoder=fusion.Encoder(16, 3, 2, 24, std=(1.0,)), decoder=fusion.Decoder(12, 1, 2, 20))
    with pytest.raises(UserError, match="head 'ones'"):
        AudiovisualMAE(encoder=fusion.Encoder(16, 3, 2, 24), decoder=fusion.Decoder(12, 1, 2, 20, head="ones"))


# -- layouts --------------------------------------------------------------------------------------------------------

PARTS = {  # blocks of {stack: depth} in encoder and decoder
    ("early", "shared"): ({"": 3}, {"": 2}), ("shared", "joint"): ({"": 3}, {"": 2}),
    ("separate", "shared"): ({"video_": 3, "audio_": 3}, {"": 2}), ("mid", "separate"): ({"video_": 2, "audio_": 2, "": 1}, {"video_": 2, "audio_": 2}),
}


@pytest.mark.parametrize("layout", PARTS, ids="-".join)
def test_parameters_of_every_layout(layout: tuple[str, str]) -> None:
    """Stacks with their norms, an embedding, a bridge, a mask token and a head for each modality, and nothing else."""
    objective = recipe(*layout)
    made = shapes(objective)
    for part, stacks, rest in zip(("encoder", "decoder"), PARTS[layout], (("embed",), ("bridge", "mask_token", "head")), strict=True):
        wanted = {f"{m}_{name}" for m in fusion.MODALITIES for name in rest} | {f"{s}{name}" for s in stacks for name in ("stack", "norm")}
        assert set(made[part]) == wanted
        for prefix, depth in stacks.items():
            assert made[part][f"{prefix}stack"]["block"]["attn"]["qkv"].shape[0] == depth
    assert made["encoder"]["video_embed"]["kernel"].shape == (96, 16) and made["encoder"]["audio_embed"]["kernel"].shape == (16, 16)
    assert made["decoder"]["video_head"]["kernel"].shape == (12, 96) and made["decoder"]["audio_head"]["kernel"].shape == (12, 16)


def test_heads_and_mask_tokens_start_at_zero() -> None:
    """So the first loss of the released recipe is the error of predicting 0, in both modalities, each with its share."""
    objective = dataclasses.replace(recipe(), decoder=fusion.Decoder(width=12, depth=2, heads=HEADS, hidden=20))
    params = parallel.unbox(objective.init(jax.random.key(0), {}))
    for m in fusion.MODALITIES:
        assert not np.any(params["decoder"][f"{m}_head"]["kernel"]) and not np.any(params["decoder"][f"{m}_mask_token"])
    assert np.std(parameters(recipe())["decoder"]["video_head"]["kernel"]) > 0
    out = loss_of(objective, params, clips(26, 26, 13, 0))
    for m, term in out.terms.items():
        assert float(term.coefficient) == 0.5
        np.testing.assert_allclose(losses.ratio(term.total.sum(), term.weight.sum()), out.metrics[f"zero_{m}"].reduce().value(), rtol=1e-6)


# -- mathematics ----------------------------------------------------------------------------------------------------


def norm(x: np.ndarray, p: Any) -> np.ndarray:
    """LayerNorm."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def blocks(x: np.ndarray, p: Any, *, prefix: str = "") -> np.ndarray:
    """All blocks of a stack and its norm on the tokens [n D] of one clip."""
    b = p[f"{prefix}stack"]["block"]
    for layer in range(len(b["norm1"]["scale"])):
        one = jax.tree.map(lambda leaf, layer=layer: np.asarray(leaf[layer], np.float64), b)
        y, a = norm(x, one["norm1"]), one["attn"]
        q, k, v = (np.einsum("nd,dhk->hnk", y, a["qkv"][:, i]) for i in range(3))
        q, v = q + a["q_bias"][:, None], v + a["v_bias"][:, None]
        weights = scipy.special.softmax(np.einsum("hnk,hmk->hnm", q, k) / np.sqrt(q.shape[-1]), axis=-1)
        x = x + np.einsum("hnm,hmk,hkd->nd", weights, v, a["out"]) + a["out_bias"]
        y = norm(x, one["norm2"]) @ one["mlp"]["fc1"]["kernel"] + one["mlp"]["fc1"]["bias"]
        x = x + 0.5 * y * (1 + scipy.special.erf(y / np.sqrt(2))) @ one["mlp"]["fc2"]["kernel"] + one["mlp"]["fc2"]["bias"]
    return norm(x, p[f"{prefix}norm"])


def places(ids: np.ndarray, width: int) -> np.ndarray:
    """Sines and cosines of positions, interleaved."""
    channel = np.arange(width)
    angle = ids[:, None] / 10000 ** (2 * (channel // 2) / width)
    return np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))


def dense(x: np.ndarray, p: Any) -> np.ndarray:
    """A linear layer."""
    return x @ np.asarray(p["kernel"], np.float64) + p["bias"]


def together(run: Any, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`run` on all tokens of all modalities, cut apart again."""
    done = run(np.concatenate(list(x.values())))
    return dict(zip(x, np.split(done, np.cumsum([len(v) for v in x.values()])[:-1]), strict=True))


def transcribed(objective: AudiovisualMAE, params: Any, patches: Mapping[str, np.ndarray], masks: Any, there: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Predictions of one clip at the targets that exist: what does not exist is *left out* of every sequence."""
    e, d = params["encoder"], params["decoder"]
    seen = {m: masks[m].visible[there[m][masks[m].visible]] for m in patches}
    x = {m: dense(2 * p - 1 if m == "video" else p, e[f"{m}_embed"]) + places(np.arange(len(p)), 16) for m, p in patches.items()}
    x = {m: x[m][seen[m]] for m in x}
    layout = objective.encoder.layout
    if layout in ("separate", "mid"):
        x = {m: blocks(t, e, prefix=f"{m}_") if len(t) else t for m, t in x.items()}
    if layout == "shared":
        x = {m: blocks(t, e) if len(t) else t for m, t in x.items()}
    if layout in ("early", "mid"):
        x = together(lambda t: blocks(t, e), x)
    y = {m: dense(t, d[f"{m}_bridge"]) for m, t in x.items()}
    sequences, context = {}, {}
    for m in y:
        source = m if objective.inpainting == "none" else {"video": "audio", "audio": "video"}[m]
        ids = np.flatnonzero(there[source][masks[source].visible]) if objective.inpainting == "released" else seen[source]
        target = masks[m].target[there[m][masks[m].target]]
        sequences[m] = np.concatenate([y[source] + places(ids, 12), d[f"{m}_mask_token"] + places(target, 12)])
        context[m] = len(ids)
    if objective.decoder.layout == "joint":
        out = together(lambda t: blocks(t, d), sequences)
    else:
        out = {m: blocks(t, d, prefix=f"{m}_" if objective.decoder.layout == "separate" else "") if len(t) else t for m, t in sequences.items()}
    return {m: dense(out[m][context[m]:], d[f"{m}_head"]) for m in out}


@pytest.mark.parametrize("layout", [("early", "shared", "none"), ("separate", "joint", "none"), ("mid", "shared", "none"), ("shared", "separate", "none"),
                                    ("mid", "shared", "released"), ("early", "joint", "all")], ids="-".join)
def test_predictions_agree_with_a_transcription(layout: tuple[str, str, str]) -> None:
    """Whole, half, shorter and missing sound; float32 against float64 over five blocks: 2e-5 of values of order one."""
    objective, batch = recipe(*layout), clips(26, 13, 5, 0)
    got, params = predicted(objective, batch), parameters(objective)
    masks = jax.device_get(objective.masks(batch, jax.random.split(jax.random.key(3))[0]))
    video = batch["video"].reshape(4, 2, 2, 3, 4, 3, 4, 3).transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(4, 18, 96) / 255
    sound = batch["audio"][:, :24].reshape(4, 6, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(4, 12, 16)
    for row, heard in enumerate((6, 3, 1, 0)):  # whole tokens in time
        one = jax.tree.map(lambda x, row=row: x[row], masks)
        there = {"video": np.ones(18, bool), "audio": np.arange(12) < 2 * heard}
        for m, want in transcribed(objective, params, {"video": video[row], "audio": sound[row]}, one, there).items():
            exists = there[m][one[m].target]
            np.testing.assert_allclose(got[m].patches[row][exists], want, atol=2e-5, err_msg=f"{m} of row {row}")
            raw = 2 * video[row] - 1 if m == "video" else sound[row]
            np.testing.assert_allclose(got[m].targets[row], raw[one[m].target], atol=1e-6)
            other = there["audio" if m == "video" else "video"][one["audio" if m == "video" else "video"].visible].any()
            np.testing.assert_array_equal(got[m].masks.weight[row], exists & (other or layout[2] == "none"))


# -- what does not exist --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [("separate", "joint", "none"), ("mid", "shared", "released")], ids="-".join)
def test_frames_that_do_not_exist_change_nothing(layout: tuple[str, str, str]) -> None:
    """Other values there leave every weighted prediction bit for bit as it was; a frame that exists does not."""
    objective, batch = recipe(*layout), clips(26, 13, 5, 0)
    other = batch | {"audio": np.where(batch["audio_valid"][..., None], batch["audio"], np.float32(1e3))}
    first, second = predicted(objective, batch), predicted(objective, other)
    for m in fusion.MODALITIES:
        counted = first[m].masks.weight > 0
        assert counted[0].all()
        np.testing.assert_array_equal(first[m].patches[counted], second[m].patches[counted])
    heard = batch | {"audio": batch["audio"] + 1}
    assert np.abs(predicted(objective, heard)["video"].patches - first["video"].patches)[0].max() > 1e-3


@functools.cache
def gradients(objective: AudiovisualMAE, microbatches: int) -> Any:
    """The step's own gradients as a function of (parameters, batch)."""
    def run(params: Any, batch: Any) -> Any:
        def loss(params: Any, rows: Any) -> Any:
            return objective.loss(params, {}, rows, jax.random.key(3), step=jnp.zeros((), jnp.int32), train=True)
        return step.gradients(loss, params, batch, microbatches=microbatches, constrain=lambda tree: tree)[0]
    return jax.jit(run)


@pytest.mark.parametrize("layout", [("mid", "joint"), ("early", "shared")], ids="-".join)
def test_a_batch_without_sound_leaves_the_parameters_of_sound_alone(layout: tuple[str, str]) -> None:
    """Exactly: their gradient is 0. All others have one, and with sound these have one too."""
    objective = recipe(*layout)
    run = gradients(objective, 1)
    for heard, alone in (((0, 0), True), ((0, 26), False)):
        grads = jax.device_get(run(parameters(objective), clips(*heard)))
        for path, leaf in zip(jax.tree.leaves(optim.paths(grads)), jax.tree.leaves(grads), strict=True):
            silent = alone and path.split("/")[1].startswith("audio_")
            assert (not leaf.any()) if silent else leaf.any(), path
            assert np.isfinite(leaf).all()


def test_a_micro_batch_without_sound_gives_the_gradient_of_the_whole() -> None:
    """Rows 1 and 3 are the second micro-batch and silent. A mean of the two parts' own gradients is far off."""
    objective, batch = recipe("mid", "joint"), clips(26, 0, 14, 0)
    params = parameters(objective)
    whole, parts = (jax.device_get(gradients(objective, m)(params, batch)) for m in (1, 2))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
    for path, a, b in zip(jax.tree.leaves(optim.paths(whole)), jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert np.abs(a - b).max() <= 1e-6 * scale, path
    halves = [jax.device_get(gradients(objective, 1)(params, {k: v[i::2] for k, v in batch.items()})) for i in (0, 1)]
    head = [tree["decoder"]["audio_head"]["kernel"] for tree in (whole, *halves)]
    assert np.abs(head[0] - (head[1] + head[2]) / 2).max() > 0.4 * np.abs(head[0]).max()


def test_each_modality_has_its_own_denominator() -> None:
    """Weights count predicted tokens that exist in rows that are no padding; a term without any is 0."""
    objective = recipe()
    batch = clips(26, 13, 26, 0) | {"valid": np.array([True, True, False, False])}
    terms = loss_of(objective, parameters(objective), batch).terms
    target = objective.masks(batch, jax.random.split(jax.random.key(3))[0])["audio"].target
    assert float(terms["video"].weight.sum()) == 2 * 13
    assert float(terms["audio"].weight.sum()) == 6 + (np.asarray(target)[1] < 6).sum()
    silent = loss_of(objective, parameters(objective), clips(0, 0, 0, 0)).terms
    assert float(silent["audio"].weight.sum()) == 0 and float(losses.value(silent, denominators=losses.denominators(silent))) > 0


def test_no_grid_of_floats_is_made() -> None:
    """Pixels that are neither seen nor predicted stay bytes: no float32 array of the compiled gradient has the values of all clips."""
    objective, rows = recipe(decoder="joint"), clips(26, 26, 26, 26, 26)

    def total(params: Any) -> Any:
        terms = objective.loss(params, {}, rows, jax.random.key(3), step=jnp.int32(0), train=True).terms
        return losses.value(terms, denominators=losses.denominators(terms))

    found = test_targets.floats(jax.jit(jax.grad(total)).lower(parameters(objective)).compile().as_text())
    hidden, clip = VIDEO.grid.tokens - objective.video_mask.count(VIDEO.grid), VIDEO.grid.tokens * VIDEO.values
    assert 5 * hidden * VIDEO.values in found and 5 * clip not in found


# -- who sees whom --------------------------------------------------------------------------------------------------


def reaches(objective: AudiovisualMAE, source: str, goal: str) -> bool:
    """Whether other values of a modality change the predictions of another one under the same masks; if not, bit for bit."""
    batch, other = clips(26, 26, 26, 26), clips(26, 26, 26, 26, seed=1)
    before, after = predicted(objective, batch), predicted(objective, batch | {k: other[k] for k in modalities.KEYS[source]})
    return bool((before[goal].patches != after[goal].patches).any())


@pytest.mark.parametrize(("layout", "own", "across"), [
    (("separate", "shared", "none"), True, False), (("shared", "separate", "none"), True, False), (("separate", "joint", "none"), True, True),
    (("early", "shared", "none"), True, True), (("mid", "shared", "none"), True, True), (("mid", "shared", "released"), True, True),
    (("separate", "shared", "all"), False, True)], ids=str)
def test_where_modalities_meet(layout: tuple[str, str, str], own: bool, across: bool) -> None:
    """Separate stacks never mix; fusion and a joint decoder do; inpainting sees its own modality only through fusion."""
    objective = recipe(*layout)
    assert reaches(objective, "audio", "audio") is own
    assert reaches(objective, "audio", "video") is across


def test_inpainting_predicts_what_the_code_predicts() -> None:
    """ "released": positions from the number of the other's visible tokens on; "all": every position, seen or not."""
    batch = clips(26, 26)
    for inpainting, first in (("released", {"video": 6, "audio": 5}), ("all", {"video": 0, "audio": 0})):
        objective = recipe("mid", "shared", inpainting)
        masks = objective.masks(batch, jax.random.key(0))
        for m, tokens in (("video", 18), ("audio", 12)):
            np.testing.assert_array_equal(masks[m].target, np.tile(np.arange(first[m], tokens), (2, 1)))
            assert masks[m].weight.shape == (2, tokens - first[m]) and float(masks[m].weight.min()) == 1
    assert recipe("mid", "shared", "released").counts()["video"]["decoder"] == 18  # as many as the video has tokens
    assert recipe("mid", "shared", "all").counts()["audio"]["decoder"] == 5 + 12


def test_masks_can_be_given_and_differ_between_modalities_and_examples() -> None:
    """Given masks replace the draw whatever the key; one that is left out is drawn."""
    objective, batch = recipe(), clips(26, 26, 26, 26)
    masks = objective.masks(batch, jax.random.key(0))
    assert masks["video"].visible.shape == (4, 5) and masks["audio"].visible.shape == (4, 6)
    assert (masks["video"].visible[0] != masks["video"].visible[1]).any()
    a, b = (predicted(objective, batch, rng=k, masks=masks) for k in (1, 2))
    jax.tree.map(np.testing.assert_array_equal, a, b)
    c, d = (predicted(objective, batch, rng=k, masks={"audio": masks["audio"]}) for k in (1, 2))
    np.testing.assert_array_equal(c["audio"].masks.visible, masks["audio"].visible)
    assert (c["video"].masks.visible != d["video"].masks.visible).any()
    with pytest.raises(UserError, match="prediction of 'text'"):
        objective.predict(parameters(objective), {}, batch, jax.random.key(0), modality="text")


# -- features -------------------------------------------------------------------------------------------------------


def test_features_of_each_modality_and_of_both() -> None:
    """Fed alone a modality knows nothing of the other; "joint" holds all tokens; means leave out what does not exist."""
    objective = recipe("mid")
    params, batch = parameters(objective), clips(26, 13, 0)
    represent = jax.jit(lambda batch, inputs=None, layer=-1: objective.represent(params, {}, batch, inputs=inputs, layer=layer), static_argnames=("inputs", "layer"))
    both, alone = represent(batch), represent(batch, inputs=("audio",))
    assert set(both) == {"video", "audio", "joint"} and set(alone) == {"audio"}
    assert both["joint"].tokens.shape == (3, 30, 16) and both["joint"].grid == Grid(30, 1, 1) and both["audio"].grid == Grid(6, 1, 2)
    np.testing.assert_array_equal(both["joint"].tokens[:, 18:], both["audio"].tokens)
    np.testing.assert_array_equal(both["audio"].valid.sum(1), [12, 6, 0])
    np.testing.assert_allclose(both["audio"].pooled[1], both["audio"].tokens[1, :6].mean(0), atol=1e-6)
    assert not both["audio"].pooled[2].any()
    assert np.abs(both["audio"].tokens[0] - alone["audio"].tokens[0]).max() > 1e-3
    np.testing.assert_allclose(both["video"].tokens[2], represent(batch, inputs=("video",))["video"].tokens[2], atol=1e-5)
    deep = [represent(batch, layer=k)["video"].tokens for k in (0, 2)]  # one before fusion, one after it
    scale = norm(np.asarray(deep[1], np.float64), params["encoder"]["norm"])
    np.testing.assert_allclose(scale, both["video"].tokens, atol=1e-5)
    silent = represent(batch | {"audio": batch["audio"] + 1}, layer=0)["video"].tokens
    np.testing.assert_array_equal(deep[0], silent)
    for inputs in ((), ("text",)):
        with pytest.raises(UserError, match="features of inputs"):
            objective.represent(params, {}, batch, inputs=inputs)
    with pytest.raises(UserError, match="layer 3"):
        objective.represent(params, {}, batch, layer=3)


def test_a_batch_of_another_shape_is_refused() -> None:
    """Both modalities say what they are built for."""
    objective, batch = recipe(), clips(26)
    with pytest.raises(UserError, match=r"spectrograms of \(24, 8\)"):
        objective.represent(parameters(objective), {}, batch | {"audio": batch["audio"][:, :24], "audio_valid": batch["audio_valid"][:, :24]})
    with pytest.raises(UserError, match="clips of"):
        objective.patchify(batch | {"video": batch["video"][:, :2]})


# -- evaluators -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Pairs:
    """`length` random clips in memory; clips in odd rows have no sound where `silent`."""

    length: int = 6
    silent: bool = False
    limit: int = 0
    label: str = ""
    repeats: int = 1

    @property
    def fields(self) -> Any:
        from videomae_jax.data.sources import Field
        return {"video": Field((4, 12, 12, 3), "uint8", "image"), "label": Field((), "int32", "static"),
                "audio": Field((26, 8), "float32", "sequence"), "audio_valid": Field((26,), "bool", "sequence")}

    @property
    def classes(self) -> tuple[str, ...]:
        return ("even", "odd")

    def __len__(self) -> int:
        return min(self.length, self.limit) if self.limit else self.length

    def name(self, row: int, /) -> str:
        return str(row)

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        one = clips(0 if self.silent and row % 2 else 26, seed=row)
        return {k: one[k] for k in ("video", "audio", "audio_valid")} | {"label": np.full(1, row % 2, np.int32)}


class Still(Context):
    """A context whose evaluation data is in memory."""

    pairs = Pairs()

    def source(self, split: str, /) -> Any:
        return self.pairs


@functools.cache
def assembled(objective: AudiovisualMAE) -> Any:
    """A run of an objective on one device."""
    config = configs.load("configs/tiny.py")
    config.unlock()
    config.objective, config.data, config.mesh = configs.plain(objective), configs.spec(Pairs), {"data": 1, "fsdp": 1, "tensor": 1}
    return assemble(config, trust=("test_av_mae",), devices=jax.devices()[:1])


def context(objective: AudiovisualMAE, pairs: Pairs) -> Still:
    """The objective's test parameters and clips in memory."""
    still = Still(assembled(objective), parameters(objective), {}, 0, pathlib.Path("."))
    object.__setattr__(still, "pairs", pairs)
    return still


def test_gain_is_zero_exactly_where_modalities_do_not_meet() -> None:
    """The control of the control."""
    got = modalities.CrossModal(batch_size=4).run(context(recipe("separate"), Pairs()))
    assert got["gain_audio"] == got["gain_video"] == 0 and got["loss_audio"] == got["loss_audio_shuffled"] > 0
    assert got["loss_audio_place"] > 0 and got["loss_video_clip"] > 0 and got["loss_video_clip"] != got["loss_video_place"]


def test_shuffled_loss_is_that_of_the_exchanged_clips_under_the_same_masks() -> None:
    """By hand: 6 clips in batches of 4 and 2, odd rows without sound: its targets are not counted, nor videos without sound or with a silent partner."""
    objective, pairs = recipe("mid"), Pairs(silent=True)
    got = modalities.CrossModal(batch_size=4).run(context(objective, pairs))
    names = ("", "_shuffled", "_video", "_video_shuffled")
    rng, total, weight = jax.random.key(1), dict.fromkeys(names, 0.0), {"audio": 0.0, "video": 0.0}
    def run(batch: Any, masks: Any) -> Any:
        return compiled(objective)[0](parameters(objective), batch, rng, masks)
    for first, count in ((0, 4), (4, 2)):
        read = [pairs.read(first + i, rng=None) for i in range(count)]
        batch = {k: np.concatenate([r[k] for r in read]) for k in read[0]} | {"key": np.stack([first + np.arange(count), np.zeros(count)], 1).astype(np.uint32)}
        masks = objective.masks(batch, jax.random.split(rng)[0])
        partner = (np.arange(count) + count // 2) % count
        strange = {k: batch[k][partner] for k in ("audio", "audio_valid")}
        outputs = {"": run(batch, masks)["audio"], "_shuffled": run(batch | {"video": batch["video"][partner]}, masks)["audio"],
                   "_video": run(batch, masks)["video"], "_video_shuffled": run(batch | strange, masks)["video"]}
        heard = (batch["audio_valid"].any(1) & strange["audio_valid"].any(1))[:, None]
        for name, p in outputs.items():
            total[name] += float((((p.patches - p.targets) ** 2).mean(-1) * p.masks.weight * (heard if "video" in name else 1)).sum())
        weight["audio"] += float(outputs[""].masks.weight.sum())
        weight["video"] += float((outputs["_video"].masks.weight * heard).sum())
    np.testing.assert_allclose(got["loss_audio"], total[""] / weight["audio"], rtol=1e-5)
    np.testing.assert_allclose(got["loss_audio_shuffled"], total["_shuffled"] / weight["audio"], rtol=1e-5)
    np.testing.assert_allclose(got["loss_video"], total["_video"] / weight["video"], rtol=1e-5)
    np.testing.assert_allclose(got["gain_audio"], 100 * (total["_shuffled"] / total[""] - 1), atol=1e-3)
    np.testing.assert_allclose(got["loss_video_shuffled"], total["_video_shuffled"] / weight["video"], rtol=1e-5)
    np.testing.assert_allclose(got["gain_video"], 100 * (total["_video_shuffled"] / total["_video"] - 1), atol=1e-3)
    assert weight == {"audio": 3 * 6, "video": 2 * 13} and abs(got["gain_audio"]) > 1e-3 and abs(got["gain_video"]) > 1e-3


def test_one_modality_has_no_pairing_to_judge() -> None:
    """A recipe of video alone is refused in one line."""
    plain = mae.MAE(encoder=vit.Encoder(width=16, depth=1, heads=2, hidden=24), decoder=vit.Decoder(width=16, depth=1, heads=2, hidden=24))
    with pytest.raises(UserError, match="^MAE does not see video and audio; allowed are recipes that see both$"):
        modalities.CrossModal().run(Still(types.SimpleNamespace(objective=plain), {}, {}, 0, pathlib.Path(".")))


def test_completion_hides_stretches_of_the_video() -> None:
    """A mask of the evaluator's own is that of the video; the sound keeps the recipe's. Inpainting predicts nothing from video."""
    still = context(recipe("mid"), Pairs())
    found = completion.Completion(batch_size=4, mask=masking.Random(ratio=0.5, layout="token")).run(still)
    assert np.isfinite(list(found.values())).all() and {"loss", "psnr", "loss_trivial"} <= found.keys()
    with pytest.raises(UserError, match="^a mask of video alone beside inpainting 'all', which predicts it from audio; allowed is inpainting 'none'"):
        completion.Completion(batch_size=4).run(context(recipe("mid", inpainting="all"), Pairs()))


def test_pictures_of_clips_that_predict_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second clip is silent, so that nothing predicts its video: all are drawn, and the result is that of the others."""
    still = context(recipe("mid", inpainting="all"), Pairs(silent=True))
    object.__setattr__(still, "directory", tmp_path)
    found = [(error, values) for _, error, values in pictures.Pictures(clips=6).draw(still)]
    assert len(found) == 6 and all(found[row] == (0, 0) for row in (1, 3, 5)) and len({values for _, values in found[::2]}) == 1 and found[0][1] > 0
    want = -10 * np.log10(np.mean([error / values for error, values in found[::2]]))
    assert pictures.Pictures(clips=6).run(still)["psnr_hidden"] == pytest.approx(want)
    monkeypatch.setattr(Pairs, "read", lambda self, row, *, rng, plain=Pairs.read: plain(self, 2 * row + 1, rng=rng))
    with pytest.raises(UserError, match="no clip of split 'val' that can be read has a hidden token under this mask"):
        pictures.Pictures(clips=2).run(still)


def test_a_single_mask_is_that_of_the_modality() -> None:
    """The prediction is that of both masks given by name."""
    objective, batch, rng = recipe("mid"), clips(26, 14), jax.random.key(3)
    drawn = objective.masks(batch, jax.random.split(rng)[0])
    other = objective.masks(batch, jax.random.key(9))
    for m in fusion.MODALITIES:
        got = objective.predict(parameters(objective), {}, batch, rng, masks=other[m], modality=m)
        want = objective.predict(parameters(objective), {}, batch, rng, masks=drawn | {m: other[m]}, modality=m)
        np.testing.assert_array_equal(got.patches, want.patches)
        np.testing.assert_array_equal(got.masks.target, other[m].target)


def test_losses_without_substitutes_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the readable clips, whatever else is shown; what cannot be read may still be the partner of another clip."""
    still = context(recipe("mid"), Pairs())
    one, other = substitutes.outcomes(monkeypatch, lambda: modalities.CrossModal(batch_size=4).run(still))
    for name in ("loss_video", "loss_audio", "loss_video_place", "loss_audio_place"):
        assert one[name] == pytest.approx(other[name], rel=1e-6), name


def test_padding_rows_are_neither_partners_nor_moved() -> None:
    """Three valid rows of five."""
    x = jnp.arange(10.0, 15.0)
    assert modalities.exchanged(x, jnp.array([True, True, True, False, False])).tolist() == [11, 12, 10, 13, 14]
    assert modalities.exchanged(x, jnp.array([True] + [False] * 4)).tolist() == x.tolist()


def test_place_means_look_only_at_what_is_visible_and_exists() -> None:
    """Grid of 2 times x 2 places; token 3 is padding."""
    patches = np.array([[[1.0], [2.0], [5.0], [100.0]], [[1.0], [2.0], [5.0], [100.0]], [[9.0]] * 4], np.float32)
    masks = masking.Mask(visible=np.array([[0, 2, 3], [0, 1, 3], [0, 1, 2]]), target=np.array([[1, 2], [2, 3], [0, 1]]), weight=np.ones((3, 2)),
                         visible_valid=np.array([[True, True, False], [True, True, False], [False] * 3]))
    np.testing.assert_allclose(modalities.place_means(patches, masks, grid=Grid(2, 1, 2))[..., 0], [[3, 3], [1, 2], [0, 0]])
    np.testing.assert_allclose(modalities.clip_means(patches, masks)[..., 0], [[3, 3], [1.5, 1.5], [0, 0]])


def test_probe_of_each_modality_uses_that_modality(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that reach the ridge are the pooled ones of `represent` with those inputs; both are side by side."""
    seen: list[np.ndarray] = []

    def accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray, **_: Any) -> float:
        seen.append(test)
        return float(train.shape[1])

    monkeypatch.setattr(probe, "accuracy", accuracy)
    objective = recipe("mid")
    still = context(objective, Pairs())
    got = modalities.ModalityProbe(seeds=1, batch_size=4).run(still)
    assert (got["video"], got["audio"], got["both"], got["chance"]) == (16, 16, 32, 50)
    rows = [Pairs().read(i, rng=None) for i in range(6)]
    batch = {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
    for features, inputs in zip(seen[:3], (("video",), ("audio",), ("video", "audio")), strict=True):
        found = objective.represent(parameters(objective), {}, batch, inputs=inputs)
        np.testing.assert_allclose(features, np.concatenate([found[m].pooled for m in inputs], -1), atol=1e-5)
    assert len(seen) == 6 and np.abs(seen[0] - seen[3]).max() > 1e-3  # the last three are untrained


# -- sound of the toy world -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collisions(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The index of two tiny colliding clips of 2 s."""
    folder = tmp_path_factory.mktemp("collisions")
    synthetic.write(folder, synthetic.Plan(world=Collisions(size=32), train=2, val=0, test=0, seed=5), workers=1)
    index.write(index.build(folder, labels=folder / "labels.csv", workers=1), folder / "index.parquet")
    return folder / "index.parquet"


def test_proportional_sound_has_the_place_of_the_clip_in_its_file(collisions: pathlib.Path) -> None:
    """1 s of sound of a 2 s file: from its beginning, middle or end, as the clip of 8 frames is; longer sound begins with the file."""
    mel = LogMel(mels=16, window=320)

    def heard(view: int, spectrogram: int) -> Any:
        source = data.AudioVideoClips(index=str(collisions), frames=8, size=32, sampling=DenseView(stride=1, views=3, view=view), mel=mel,
                                      spectrogram=spectrogram, span="proportional")
        return source.listen(0, rng=np.random.default_rng(0))

    whole, valid = heard(0, 199)  # 32,000 samples
    assert valid.all()
    for view, first in enumerate((0, 50, 100)):
        sound, there = heard(view, 99)  # 16,000 samples
        assert there.all()
        np.testing.assert_allclose(sound, whole[first: first + 99], atol=1e-3)
    longer, there = heard(1, 300)
    np.testing.assert_array_equal(longer[:199], whole)
    assert there[:199].all() and not there[206:].any()  # an AAC frame is 6.4 hops


def test_the_index_may_be_a_link(collisions: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Sound is found beside the index that the link points to, as the pictures are."""
    link = tmp_path / "index.parquet"
    link.symlink_to(collisions)
    source = data.AudioVideoClips(index=str(link), frames=4, size=16, sampling=DenseCentre(stride=2), spectrogram=16)
    assert source.listen(0, rng=np.random.default_rng(0))[1].all()


def test_the_masks_of_a_modality_are_its_own() -> None:
    """Video and sound with equal grids and ratios still draw different tokens."""
    same = dataclasses.replace(recipe(), encoder=dataclasses.replace(recipe().encoder, audio=dataclasses.replace(SOUND, spectrogram=36)),
                               audio_mask=masking.Random(ratio=0.75, layout="token"))
    masks = same.masks(clips(26, 26), jax.random.key(0))
    assert masks["video"].visible.shape == masks["audio"].visible.shape
    assert (masks["video"].visible != masks["audio"].visible).any()
    assert set(audiovisual.OTHER) == set(fusion.MODALITIES)


# -- opened in Python -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A saved run of the small recipe."""
    return saved(tmp_path_factory.mktemp("run") / "plain", recipe())


def saved(out: pathlib.Path, objective: AudiovisualMAE) -> pathlib.Path:
    """A run directory with drawn parameters."""
    return written.write(out, objective, source=data.AudioVideoClips, spectrogram=26, mel=LogMel(mels=8))


def test_a_run_opens_and_encodes(run: pathlib.Path) -> None:
    """The features of the video alone, which are those of the recipe; frames that do not exist are left out."""
    model = videomae_jax.load(run)
    assert (model.frames, model.size, model.objective.encoder.channels) == (4, 12, 3)
    batch = clips(26, 26)
    found = model.encode(batch["video"])
    want = jax.jit(lambda p, b: model.objective.represent(p, {}, b, inputs=("video",))["video"])(written.tree(model.objective), batch)
    assert found.tokens.shape == (2, 2, 3, 3, 16) and found.valid.all()
    np.testing.assert_allclose(found.tokens.reshape(want.tokens.shape), want.tokens, atol=1e-5)
    np.testing.assert_allclose(found.pooled, want.pooled, atol=1e-5)
    cut = [model.encode(v, length=2) for v in (batch["video"], np.concatenate([batch["video"][:, :2], 255 - batch["video"][:, 2:]], 1))]
    assert cut[0].valid[:, 0].all() and not cut[0].valid[:, 1].any()
    np.testing.assert_allclose(cut[0].pooled, cut[1].pooled, atol=1e-6)
    with pytest.raises(UserError, match="has positions of its own, which cannot be resized here"):
        videomae_jax.load(run, frames=8)


def test_a_run_reconstructs(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The video, without its sound or beside it; what predicts the video from the sound alone says that it needs one."""
    model, batch = videomae_jax.load(run), clips(26, 14)
    sound = {name: batch[name] for name in ("audio", "audio_valid")}
    silent, heard = (model.reconstruct(batch["video"], **more) for more in ({}, sound))
    assert silent.panels["pasted"].shape == (2, 4, 12, 12, 3) and np.isfinite(silent.error).all()
    np.testing.assert_array_equal(silent.panels["visible"], heard.panels["visible"])
    assert np.abs(silent.panels["prediction"] - heard.panels["prediction"]).max() > 1e-3
    for more, message in (({"sound": 1}, "'sound' is nothing that this recipe reads beside a clip; allowed are audio, audio_valid"),
                          ({"audio": np.zeros((26, 9))}, r"audio of float64 \(26, 9\); allowed is float32 \(2, 26, 8\)")):
        with pytest.raises(UserError, match=message):
            model.reconstruct(batch["video"], **more)
    crossed = videomae_jax.load(saved(tmp_path / "crossed", recipe("separate", inpainting="all")))
    with pytest.raises(UserError, match="predicts nothing of a clip by itself; give what it reads beside it: audio, audio_valid"):
        crossed.reconstruct(batch["video"])
    assert np.isfinite(crossed.reconstruct(batch["video"], **sound).error).all()


def test_a_run_is_exported(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The program gives the features of the model."""
    model, video = videomae_jax.load(run), clips(26, 26)["video"]
    artefact.write(model, tmp_path / "out")
    np.testing.assert_allclose(Program(tmp_path / "out")(video)["pooled"], model.encode(video).pooled, atol=1e-5)


@pytest.mark.parametrize("layout", ["early", "separate", "mid", "shared"])
def test_the_axis_of_layers_is_the_one_that_the_stacks_name(layout: str) -> None:
    """Stacks of one modality and of both, in encoder and decoder."""
    objective = recipe(layout, "joint" if layout == "separate" else "separate")
    test_optim.check_axis_of_layers(jax.eval_shape(lambda key: objective.init(key, {}), jax.random.key(0)))
