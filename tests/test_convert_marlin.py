"""MARLIN's weights: every array finds its leaf, patches change their order, positions are checked, an encoder alone is enough."""

import pathlib
from collections.abc import Mapping
from typing import Any

import described
import jax
import numpy as np
import pytest
from flax import traverse_util
from test_convert import batch_of, objective_of, opened, params_of
from test_parity import distance

from videomae_jax import config as configs
from videomae_jax import externals, parallel, run_directory
from videomae_jax.__main__ import main
from videomae_jax.convert import marlin
from videomae_jax.errors import UserError
from videomae_jax.models import critic, patches, vit
from videomae_jax.objectives.base import External
from videomae_jax.objectives.marlin import MARLIN

PATCH, TOKENS = (2, 8, 8), 64
SIZES = ("--heads=4", "--decoder-heads=3", "--trained-frames=8", "--trained-size=32", "--config.objective.critic.hidden=8")  # what files do not tell
OBJECTIVE = MARLIN(vit.Encoder(width=32, depth=2, heads=4, hidden=64, patch=PATCH, frames=8, size=32),
                   vit.Decoder(width=24, depth=1, heads=3, hidden=48), critic=critic.Critic(hidden=8))


def table(width: int) -> np.ndarray:
    """The stored positions [1 N D], in a loop as they are written down."""
    rows = [[(np.cos if j % 2 else np.sin)(place / 10000 ** (2 * (j // 2) / width)) for j in range(width)] for place in range(TOKENS)]
    return np.float32([rows])


def theirs() -> tuple[dict[str, np.ndarray], Any]:
    """Arrays under MARLIN's names, written from a tree of ours by hand, and that tree."""
    rng = np.random.default_rng(3)
    shapes = jax.eval_shape(lambda: parallel.unbox(OBJECTIVE.init(jax.random.key(0), {})))
    tree = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) * 0.3, shapes)
    state: dict[str, np.ndarray] = {}
    for part, depth in (("encoder", 2), ("decoder", 1)):
        values, width = tree[part], {"encoder": 32, "decoder": 24}[part]
        state |= {f"{part}.pos_embedding.emb": table(width), f"{part}.norm.weight": values["norm"]["scale"], f"{part}.norm.bias": values["norm"]["bias"]}
        for i in range(depth):
            b, name = jax.tree.map(lambda x, i=i: x[i], values["stack"]["block"]), f"{part}.blocks.{i}"
            state |= {f"{name}.attn.qkv.weight": b["attn"]["qkv"].reshape(width, -1).T, f"{name}.attn.q_bias": b["attn"]["q_bias"].reshape(-1),
                      f"{name}.attn.v_bias": b["attn"]["v_bias"].reshape(-1), f"{name}.attn.proj.weight": b["attn"]["out"].reshape(width, width).T,
                      f"{name}.attn.proj.bias": b["attn"]["out_bias"]}
            for norm in ("norm1", "norm2"):
                state |= {f"{name}.{norm}.weight": b[norm]["scale"], f"{name}.{norm}.bias": b[norm]["bias"]}
            for j in (0, 1):
                fc = b["mlp"][f"fc{j + 1}"]
                state |= {f"{name}.mlp.layers.{j}.linear.weight": fc["kernel"].T, f"{name}.mlp.layers.{j}.linear.bias": fc["bias"]}
    e, d = tree["encoder"], tree["decoder"]
    head = d["head"]["kernel"].T.reshape(*PATCH, 3, 24).transpose(3, 0, 1, 2, 4).reshape(-1, 24)
    state |= {"encoder.patch_embedding.projection.weight": e["embed"]["kernel"].reshape(*PATCH, 3, 32).transpose(4, 3, 0, 1, 2),
              "encoder.patch_embedding.projection.bias": e["embed"]["bias"], "enc_dec_proj.weight": d["bridge"]["kernel"].T,
              "decoder.mask_token": d["mask_token"].reshape(1, 1, -1), "decoder.head.weight": head,
              "decoder.head.bias": d["head"]["bias"].reshape(*PATCH, 3).transpose(3, 0, 1, 2).reshape(-1)}
    return {k: np.ascontiguousarray(v) for k, v in state.items()}, tree


def converted(folder: pathlib.Path, state: dict[str, np.ndarray], *allowed: str, family: str = "auto") -> int:
    """The exit code of the command."""
    np.savez(folder / "a.npz", **state)
    return main(["convert", f"--from={family}", str(folder / "a.npz"), f"--out={folder}/run", *SIZES, *(f"--allow=missing:{x}" for x in allowed)])


def test_whole_model(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the critic, which no file has, is the tree that the arrays were written from; the run starts from nothing else."""
    state, tree = theirs()
    assert converted(tmp_path, state) == 2 and "critic/fc1/kernel" in capsys.readouterr().err
    assert converted(tmp_path, state, "critic/.*") == 0
    found = externals.read(External("params", str(tmp_path / "run")))
    for part in ("encoder", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, found[part], tree[part])
    opened(tmp_path / "run", folder=tmp_path)
    err = capsys.readouterr().err
    assert "encoder.pos_embedding.emb" in err
    config = run_directory.open_run(tmp_path / "run")
    objective = configs.build(config.objective)
    assert isinstance(objective, MARLIN) and objective.initial is None and objective.encoder.mean == (0.0, 0.0, 0.0) and (objective.encoder.frames, objective.encoder.size) == (8, 32)
    assert objective.encoder.eps == objective.decoder.eps == 1e-5


def tower(x: np.ndarray, w: Mapping[str, np.ndarray], part: str, /, *, heads: int) -> np.ndarray:
    """Blocks and norm of a part [B V D] -> [B V D]: one product for q, k and v, of which k has no bias, and eps 1e-5."""
    for i in range(sum(name.startswith(f"{part}.blocks.") and name.endswith("norm1.bias") for name in w)):
        name = f"{part}.blocks.{i}"
        bias = np.concatenate([w[f"{name}.attn.q_bias"], np.zeros(x.shape[-1]), w[f"{name}.attn.v_bias"]])
        y = described.linear(described.norm(x, w, f"{name}.norm1", eps=1e-5), w, f"{name}.attn.qkv") + bias
        x = x + described.linear(described.attention(*np.split(y, 3, -1), heads=heads), w, f"{name}.attn.proj")
        x = x + described.mlp(described.norm(x, w, f"{name}.norm2", eps=1e-5), w, [f"{name}.mlp.layers.{j}.linear" for j in (0, 1)])
    return described.norm(x, w, f"{part}.norm", eps=1e-5)


def reference(state: Mapping[str, np.ndarray], video: np.ndarray, visible: np.ndarray, hidden: np.ndarray, /) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [B N D] of all tubelets of clips in [0, 1], and pixels [B M P] at `hidden` i [B M] from those `visible` i [B V], as published."""
    w = {k: v.astype(np.float64) for k, v in state.items()}
    kernel, bias = (w[f"encoder.patch_embedding.projection.{name}"] for name in ("weight", "bias"))
    x = described.tubelets(video.transpose(0, 4, 1, 2, 3), kernel, bias)
    x = x + w["encoder.pos_embedding.emb"]
    seen = tower(np.take_along_axis(x, visible[..., None], 1), w, "encoder", heads=4)
    places = w["decoder.pos_embedding.emb"][0]
    both = [described.linear(seen, w, "enc_dec_proj") + places[visible], w["decoder.mask_token"] + places[hidden]]
    predicted = described.linear(tower(np.concatenate(both, 1), w, "decoder", heads=3)[:, visible.shape[1]:], w, "decoder.head")
    frames = predicted.reshape(*hidden.shape, 3, *PATCH)  # channel, frame, row, column; ours has the channel last
    return tower(x, w, "encoder", heads=4), np.moveaxis(frames, 2, -1).reshape(predicted.shape)


def figures(run: pathlib.Path, state: Mapping[str, np.ndarray], /) -> dict[str, float]:
    """Largest differences of the converted run from `reference`, over the largest value."""
    objective, params = objective_of(run), params_of(run)
    video = np.random.default_rng(1).integers(0, 256, (2, 8, 32, 32, 3), np.uint8)
    batch, rng = batch_of(video), jax.random.key(0)
    batch |= {"key": batch["key"].at[1].add(1), "parts": np.zeros(video.shape[:-1], np.uint8)}
    masks = objective.masks(batch, rng)
    tokens, hidden = reference(state, video / 255, np.asarray(masks.visible), np.asarray(masks.target))
    return {"tokens": distance(objective.represent(params, {}, batch)["video"].tokens, tokens),
            "predictions": distance(objective.predict(params, {}, batch, rng, masks=masks).patches, hidden)}


def test_the_network_is_the_published_one(tmp_path: pathlib.Path) -> None:
    """Tokens and predictions of the converted weights equal the description in numpy."""
    state, _ = theirs()
    assert converted(tmp_path, state, "critic/.*") == 0
    assert all(0 < figure <= 1e-5 for figure in figures(tmp_path / "run", state).values())


def test_an_encoder_alone(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The smaller published file."""
    state, tree = theirs()
    state = {k: v for k, v in state.items() if k.startswith("encoder.")}
    assert converted(tmp_path, state, "critic/.*", "decoder/.*", family="marlin") == 0
    found = traverse_util.flatten_dict(externals.read(External("params", str(tmp_path / "run"))), sep="/")
    for name, value in traverse_util.flatten_dict(tree["encoder"], sep="/").items():
        np.testing.assert_array_equal(found[f"encoder/{name}"], value)


def test_values_of_a_patch_change_their_order() -> None:
    """What their head says of channel c, frame t, row y, column x, ours says at the place that `patchify` gives to that pixel."""
    t, h, w = PATCH
    video = np.arange(t * h * w * 3).reshape(1, t, h, w, 3)  # each value its own number
    channel_first = video[0].transpose(3, 0, 1, 2).reshape(-1)
    np.testing.assert_array_equal(marlin.channel_last(channel_first), np.asarray(patches.patchify(video, patch=PATCH))[0, 0])


def test_other_positions_are_refused() -> None:
    """A table that was trained, or of another order of tokens, would be lost."""
    marlin.check_positions("encoder.pos_embedding.emb", table(24))
    with pytest.raises(UserError, match=r"decoder.pos_embedding.emb is not the fixed table"):
        marlin.check_positions("decoder.pos_embedding.emb", table(24)[:, ::-1])
