"""MAE-ST's weights: every array finds its leaf, learned positions are resized where that is allowed."""

import pathlib
from collections.abc import Mapping
from typing import Any

import described
import jax
import numpy as np
import pytest
from test_convert import PATCH, batch_of, objective_of, opened, params_of, random_tree, refused, save
from test_parity import distance

from videomae_jax import frame_targets
from videomae_jax.__main__ import main
from videomae_jax.models import mae_st
from videomae_jax.objectives.mae import MAE


def theirs(every: int = 2) -> tuple[dict[str, np.ndarray], Any]:
    """Arrays under MAE-ST's names, written from our tree by hand, and that tree; one frame in `every` is predicted."""
    objective = MAE(mae_st.Encoder(width=16, depth=2, heads=2, hidden=32, patch=PATCH, frames=8, size=32),
                    mae_st.Decoder(width=12, depth=1, heads=2, hidden=24, every=every), target=frame_targets.LoaderPixels(every=every))
    tree = random_tree(7, objective)
    state: dict[str, np.ndarray] = {}
    for part, mark, blocks in (("encoder", "", "blocks"), ("decoder", "decoder_", "decoder_blocks")):
        values, width = tree[part], {"encoder": 16, "decoder": 12}[part]
        for ours, theirs in (("space", "pos_embed_spatial"), ("time", "pos_embed_temporal"), ("class", "cls_token"), ("class_position", "pos_embed_class")):
            state[mark + theirs] = values["sequence"][ours][None]
        state |= {f"{mark}norm.weight": values["norm"]["scale"], f"{mark}norm.bias": values["norm"]["bias"]}
        for i in range({"encoder": 2, "decoder": 1}[part]):
            b = jax.tree.map(lambda x, i=i: x[i], values["stack"]["block"])
            for j, name in enumerate("qkv"):
                state[f"{blocks}.{i}.attn.{name}.weight"] = b["attn"]["qkv"][:, j].reshape(width, width).T
            state[f"{blocks}.{i}.attn.q.bias"], state[f"{blocks}.{i}.attn.v.bias"] = b["attn"]["q_bias"].reshape(-1), b["attn"]["v_bias"].reshape(-1)
            state[f"{blocks}.{i}.attn.k.bias"] = np.ones(width, np.float32)
            state[f"{blocks}.{i}.attn.proj.weight"], state[f"{blocks}.{i}.attn.proj.bias"] = b["attn"]["out"].reshape(width, width).T, b["attn"]["out_bias"]
            for norm in ("norm1", "norm2"):
                state |= {f"{blocks}.{i}.{norm}.weight": b[norm]["scale"], f"{blocks}.{i}.{norm}.bias": b[norm]["bias"]}
            for fc in ("fc1", "fc2"):
                state |= {f"{blocks}.{i}.mlp.{fc}.weight": b["mlp"][fc]["kernel"].T, f"{blocks}.{i}.mlp.{fc}.bias": b["mlp"][fc]["bias"]}
    e, d = tree["encoder"], tree["decoder"]
    state |= {"patch_embed.proj.weight": e["embed"]["kernel"].reshape(2, 8, 8, 3, 16).transpose(4, 3, 0, 1, 2), "patch_embed.proj.bias": e["embed"]["bias"],
              "decoder_embed.weight": d["bridge"]["kernel"].T, "decoder_embed.bias": d["bridge"]["bias"], "mask_token": d["mask"][None],
              "decoder_pred.weight": d["head"]["kernel"].T, "decoder_pred.bias": d["head"]["bias"]}
    return {k: np.ascontiguousarray(v) for k, v in state.items()}, tree


@pytest.mark.parametrize("every", [2, 1])
def test_mae_st(every: int, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every array finds its leaf; grid, heads and predicted frames follow from the file; key biases are called inert."""
    state, tree = theirs(every)
    path = save(tmp_path / "a.npz", state)
    assert main(["convert", "--from=mae_st", str(path), f"--out={tmp_path}/run", "--heads=2", "--decoder-heads=2"]) == 0
    jax.tree.map(np.testing.assert_array_equal, params_of(tmp_path / "run"), tree)
    assert "inert        3: blocks.0.attn.k.bias, blocks.1.attn.k.bias, decoder_blocks.0.attn.k.bias" in capsys.readouterr().err
    opened(tmp_path / "run", folder=tmp_path)
    objective = objective_of(tmp_path / "run")
    assert isinstance(objective.encoder, mae_st.Encoder) and (objective.encoder.frames, objective.encoder.size) == (8, 32)
    assert objective.decoder.every == objective.target.every == every
    assert "mae_st.Encoder has no counterpart there" in refused(capsys, "--to=hf", tmp_path / "run", f"--out={tmp_path}/hf")


def tower(x: np.ndarray, ids: np.ndarray, w: Mapping[str, np.ndarray], mark: str, /) -> np.ndarray:
    """Tokens [B V D] at the places `ids` [B V] -> [B V D]: positions, a class token with its own that attends and is dropped, blocks, norm."""
    rows, blocks = w[f"{mark}pos_embed_spatial"].shape[1], "decoder_blocks" if mark else "blocks"
    x = x + w[f"{mark}pos_embed_spatial"][0][ids % rows] + w[f"{mark}pos_embed_temporal"][0][ids // rows]
    x = np.concatenate([np.broadcast_to(w[f"{mark}cls_token"] + w[f"{mark}pos_embed_class"], (len(x), 1, x.shape[-1])), x], 1)
    for i in range(sum(name.startswith(f"{blocks}.") and name.endswith("norm1.bias") for name in w)):
        y = described.norm(x, w, f"{blocks}.{i}.norm1", eps=1e-6)
        y = described.attention(*(described.linear(y, w, f"{blocks}.{i}.attn.{name}") for name in "qkv"), heads=2)
        x = x + described.linear(y, w, f"{blocks}.{i}.attn.proj")
        x = x + described.mlp(described.norm(x, w, f"{blocks}.{i}.norm2", eps=1e-6), w, (f"{blocks}.{i}.mlp.fc1", f"{blocks}.{i}.mlp.fc2"))
    return described.norm(x, w, f"{mark}norm", eps=1e-6)[:, 1:]


def reference(state: Mapping[str, np.ndarray], video: np.ndarray, visible: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B N D] of all tubelets of clips in [0, 1], and predictions [B N P] for all of them from those `visible` i [B V], as published."""
    w = {k: v.astype(np.float64) for k, v in state.items()}
    pixels = (video.transpose(0, 4, 1, 2, 3) - 0.45) / 0.225
    x = described.tubelets(pixels, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"])
    everything = np.broadcast_to(np.arange(x.shape[1]), x.shape[:2])
    seen = described.linear(tower(np.take_along_axis(x, visible[..., None], 1), visible, w, ""), w, "decoder_embed")
    whole = np.repeat(np.repeat(w["mask_token"], x.shape[1], 1), len(x), 0)
    np.put_along_axis(whole, visible[..., None], seen, 1)
    return tower(x, everything, w, ""), described.linear(tower(whole, everything, w, "decoder_"), w, "decoder_pred")


def figures(run: pathlib.Path, state: Mapping[str, np.ndarray], /) -> dict[str, float]:
    """Largest differences of the converted run from `reference`, over the largest value."""
    objective, params = objective_of(run), params_of(run)
    video = np.random.default_rng(1).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    batch, rng = batch_of(video), jax.random.key(0)
    batch["key"] = batch["key"].at[1].add(1)  # another mask
    masks = objective.masks(batch, rng)
    predicted = objective.predict(params, {}, batch, rng, masks=masks).patches
    tokens, whole = reference(state, video / 255, np.asarray(masks.visible))
    hidden = np.take_along_axis(whole, np.asarray(masks.target)[..., None], 1)
    return {"tokens": distance(objective.represent(params, {}, batch)["video"].tokens, tokens), "predictions": distance(predicted, hidden)}


def test_the_network_is_the_published_one(tmp_path: pathlib.Path) -> None:
    """Tokens and predictions of the converted weights equal the description in numpy, which tells a wrong class token or place."""
    state, _ = theirs()
    assert main(["convert", "--from=mae_st", str(save(tmp_path / "a.npz", state)), f"--out={tmp_path}/run", "--heads=2", "--decoder-heads=2"]) == 0
    assert all(0 < figure <= 1e-5 for figure in figures(tmp_path / "run", state).values())
    for name in ("cls_token", "pos_embed_temporal"):
        assert max(figures(tmp_path / "run", state | {name: -state[name]}).values()) > 1e-4, name


def test_learned_positions_are_interpolated_when_allowed(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """16 frames instead of 8: the table in time is resized linearly, the one in space stays."""
    state, tree = theirs()
    words = ["--from=mae_st", str(save(tmp_path / "a.npz", state)), f"--out={tmp_path}/run", "--heads=2", "--decoder-heads=2", "--config.objective.encoder.frames=16"]
    assert "4 interpolated (position tables resized to another grid): encoder/sequence/space" in refused(capsys, *words)
    assert main(["convert", *words, "--allow=interpolated"]) == 0
    found = params_of(tmp_path / "run")["encoder"]["sequence"]
    np.testing.assert_array_equal(found["space"], tree["encoder"]["sequence"]["space"])
    time = tree["encoder"]["sequence"]["time"]
    np.testing.assert_allclose(found["time"][1], 0.75 * time[0] + 0.25 * time[1], atol=1e-6)
    assert objective_of(tmp_path / "run").encoder.grid.t == 8
