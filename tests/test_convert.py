"""The `convert` command: whole paths from files of others to run directories and back, strict, itemised, without pickles."""

import argparse
import json
import os
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import written
from runs import shared_programs  # noqa: F401 (a fixture)

import videomae_jax
from videomae_jax import config as configs
from videomae_jax import externals, head_rows, masking, parallel, run_directory
from videomae_jax.__main__ import main
from videomae_jax.convert import files, importing, report, videomae
from videomae_jax.data.attributes import AttributeClips
from videomae_jax.errors import UserError
from videomae_jax.evals.attributes import AttributeAccuracy
from videomae_jax.evals.base import evaluation_source
from videomae_jax.models import heads, patches, resized, vit
from videomae_jax.objectives import attributes, classify, mae
from videomae_jax.objectives.base import External

PATCH, HEADS = (2, 8, 8), ["--heads=4", "--decoder-heads=3"]
SIZES = ["--trained-frames=8", "--trained-size=32"]
SMALLER = ["--config.objective.encoder.frames=8", "--config.objective.encoder.size=32"]


def params_of(run: pathlib.Path) -> Any:
    """The parameters that a run directory holds."""
    return externals.read(External("params", str(run)))


def objective_of(run: pathlib.Path) -> Any:
    """The objective that its config describes."""
    return configs.build(run_directory.open_run(run).objective)


def random_tree(seed: int, objective: Any) -> Any:
    """Parameters of an objective whose every value is drawn, none of them 0 or 1."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: parallel.unbox(objective.init(jax.random.key(0), {})))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) * 0.3, shapes)


def pretraining() -> Any:
    """An objective of 32 wide, 8 frames of 32 pixels."""
    from videomae_jax.objectives.mae import MAE

    return MAE(vit.Encoder(width=32, depth=2, heads=4, hidden=64, patch=PATCH, frames=8, size=32), vit.Decoder(width=24, depth=2, heads=3, hidden=48))


@pytest.fixture(scope="module")
def official() -> dict[str, np.ndarray]:
    """A pre-training state dict under the official names."""
    return videomae.to_official(random_tree(0, pretraining()), patch=PATCH)


@pytest.fixture(scope="module")
def finetuned(official: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A fine-tuned one of four classes."""
    rng = np.random.default_rng(1)
    state = {k.removeprefix("encoder."): v for k, v in official.items() if k.startswith("encoder.") and ".norm." not in k.replace("encoder.", ".", 1)[:6]}
    shapes = {"fc_norm.weight": (32,), "fc_norm.bias": (32,), "head.weight": (4, 32), "head.bias": (4,)}
    return state | {k: rng.standard_normal(s, np.float32) for k, s in shapes.items()}


@pytest.fixture(scope="module")
def torch() -> Any:
    """PyTorch, for its own files and for what transformers computes."""
    return pytest.importorskip("torch")


def save(path: pathlib.Path, state: Mapping[str, np.ndarray], **more: Any) -> pathlib.Path:
    """An .npz, or a PyTorch file as the official scripts write it."""
    if path.suffix == ".npz":
        np.savez(path, **state)
    else:
        torch = pytest.importorskip("torch")
        torch.save({"model": {k: torch.from_numpy(v.copy()) for k, v in state.items()}, **more}, path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    assert main(["convert", *map(str, words)]) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def assert_same(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray]) -> None:
    """Same names and bits."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


def opened(run: pathlib.Path, /, *, folder: pathlib.Path) -> None:
    """The weights as `evaluate` takes them, with the shipped config's optimisers, on an index of a few videos."""
    found = run_directory.context(run, assignments={"data.index": str(runs.world(folder / "world")), "batch_size": "8"}).params
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), params_of(run))


# -- whole paths -------------------------------------------------------------------------------------------------------


def test_names_of_classes_go_to_an_official_file_and_back(finetuned: dict[str, np.ndarray], torch: Any, tmp_path: pathlib.Path) -> None:
    """Beside the tensors, in plain containers, which PyTorch's restricted reader opens for the official loaders."""
    (tmp_path / "names.txt").write_text("juggle\nbowl\nrun\nfly a kite\n")
    path = save(tmp_path / "a.npz", finetuned)
    assert main(["convert", "--from=videomae", str(path), f"--out={tmp_path}/run", "--heads=4", *SIZES, f"--classes={tmp_path}/names.txt"]) == 0
    assert main(["convert", "--to=videomae", f"{tmp_path}/run", f"--out={tmp_path}/b.pth"]) == 0
    assert torch.load(tmp_path / "b.pth", weights_only=True)["args"] == {
        "num_frames": 8, "input_size": 32, "num_heads": 4, "image_mean": list(patches.IMAGENET_MEAN), "image_std": list(patches.IMAGENET_STD),
        "id2label": {"0": "juggle", "1": "bowl", "2": "run", "3": "fly a kite"}}
    assert main(["convert", "--from=videomae", f"{tmp_path}/b.pth", f"--out={tmp_path}/back"]) == 0
    assert json.loads((tmp_path / "back" / head_rows.CLASSES).read_text()) == ["juggle", "bowl", "run", "fly a kite"]


@pytest.mark.parametrize(("options", "assumed"), [
    ((), "16 frames (--trained-frames) of 224 pixels a side (--trained-size)"), (("--trained-frames=16",), "224 pixels a side (--trained-size)"),
    (("--trained-frames=16", "--trained-size=224"), "")])
def test_an_assumed_size_is_told(finetuned: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], assumed: str) -> None:
    """The tensors are the same for every length and size of clips, and the model is not."""
    path = save(tmp_path / "a.npz", finetuned)
    assert main(["convert", "--from=videomae", str(path), f"--out={tmp_path}/run", "--heads=4", *options]) == 0
    shown = capsys.readouterr().err
    assert (f"the files do not tell on which clips they were trained: {assumed} are assumed" in shown) if assumed else "assumed" not in shown


@pytest.mark.parametrize("kind", ["official", "finetuned"])
def test_official_files_round_trip_bit_for_bit(kind: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """.pth with the script's options -> run -> .pth and -> Hugging Face -> run -> .pth: the same arrays, all of them accounted for."""
    state = request.getfixturevalue(kind)
    source = save(tmp_path / "a.pth", {f"module.{k}": v for k, v in state.items()}, args=argparse.Namespace(num_frames=8, input_size=32), epoch=3)
    assert main(["convert", "--from=videomae_v2", str(source), f"--out={tmp_path}/run", *HEADS]) == 0
    shown = capsys.readouterr().err
    assert "missing      0" in shown and "unexpected   0" in shown and "interpolated 0" in shown
    account = json.loads((tmp_path / "run/conversion.json").read_text())
    norms = {name for name in state if "norm" in name or name.endswith((".proj.bias", "fc1.bias", "fc2.bias", "head.bias"))}
    assert set(account["loaded"]) == norms and set(account["reshaped"]) == state.keys() - norms
    assert account["files"]["a.pth"] == externals.digest(source)
    assert main(["convert", "--to=videomae", f"{tmp_path}/run", f"--out={tmp_path}/b.pth"]) == 0
    assert_same(files.read(tmp_path / "b.pth").state, state)
    assert main(["convert", "--to=videomae_v2", f"{tmp_path}/run", f"--out={tmp_path}/v2.pth"]) == 0
    assert_same(files.read(tmp_path / "v2.pth").state, state)
    capsys.readouterr()
    assert main(["convert", "--from=videomae", f"{tmp_path}/v2.pth", f"--out={tmp_path}/back"]) == 0  # the file tells what the tensors do not
    back, run = (objective_of(tmp_path / name) for name in ("back", "run"))
    assert back.encoder == run.encoder and getattr(back, "decoder", 0) == getattr(run, "decoder", 0) and "assumed" not in capsys.readouterr().err
    assert main(["convert", "--to=hf", f"{tmp_path}/run", f"--out={tmp_path}/hf", "--biases=query.bias"]) == 0
    assert main(["convert", "--from=auto", f"{tmp_path}/hf", f"--out={tmp_path}/again"]) == 0
    assert main(["convert", "--to=videomae", f"{tmp_path}/again", f"--out={tmp_path}/c.pth"]) == 0
    assert_same(files.read(tmp_path / "c.pth").state, state)
    encoder = objective_of(tmp_path / "again").encoder
    assert (type(encoder), encoder.frames, encoder.size, encoder.heads, encoder.hidden) == (vit.Encoder, 8, 32, 4, 64)


@pytest.fixture(scope="module")
def live(torch: Any) -> Any:
    """transformers, where a sound one is installed."""
    transformers = pytest.importorskip("transformers", minversion="5.18")  # before, q and v biases are loaded as zero
    torch.set_num_threads(1)
    return transformers


def settings(live: Any, **more: Any) -> Any:
    """A tiny config of theirs with our eps."""
    from parity import make_golden

    return live.VideoMAEConfig(**make_golden.SMALL, layer_norm_eps=1e-6, **more)


def randomised(model: Any, *, seed: int, scale: float = 0.1) -> Any:
    """Every parameter moved by noise of deviation `scale`, eps 1e-6 in every LayerNorm."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    return model.eval()


def clip(seed: int = 3) -> tuple[np.ndarray, Any]:
    """u8 [1 8 32 32 3] and what their processor makes of it."""
    import torch

    video = np.random.default_rng(seed).integers(0, 256, (1, 8, 32, 32, 3), np.uint8)
    pixels = (video / np.float32(255) - np.asarray(patches.IMAGENET_MEAN, np.float32)) / np.asarray(patches.IMAGENET_STD, np.float32)
    return video, torch.from_numpy(pixels.transpose(0, 1, 4, 2, 3).astype(np.float32))


def close(ours: Any, theirs: Any) -> None:
    """Within 1e-5 of the largest value; float32 noise is 1e-6."""
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def batch_of(video: np.ndarray) -> dict[str, jax.Array]:
    """A batch of clips without a label."""
    rows = len(video)
    return {"video": jnp.asarray(video), "key": jnp.zeros((rows, 2), jnp.uint32), "valid": jnp.ones(rows, bool), "label": jnp.full(rows, -1)}


def test_pretraining_equals_transformers(live: Any, torch: Any, tmp_path: pathlib.Path) -> None:
    """Their saved folder -> run directory: predictions of the hidden patches and features; and back into `from_pretrained`."""
    model = randomised(live.VideoMAEForPreTraining(settings(live, use_mean_pooling=False)), seed=1)
    model.save_pretrained(tmp_path / "hf")
    assert main(["convert", "--from=hf", f"{tmp_path}/hf", f"--out={tmp_path}/run"]) == 0
    video, pixels = clip()
    objective, params = objective_of(tmp_path / "run"), params_of(tmp_path / "run")
    batch = batch_of(video)
    masks = objective.masks(batch, jax.random.key(0))
    masked = torch.ones((1, 64), dtype=torch.bool)
    masked[0, torch.from_numpy(np.array(masks.visible[0], np.int64))] = False
    predict = jax.jit(lambda params: (objective.predict(params, {}, batch, jax.random.key(0), masks=masks).patches, objective.represent(params, {}, batch)))
    predicted, features = predict(params)
    close(predicted, model(pixels, bool_masked_pos=masked).logits)
    close(features["video"].tokens, model.videomae(pixels).last_hidden_state)
    assert main(["convert", "--to=hf", f"{tmp_path}/run", f"--out={tmp_path}/back"]) == 0
    loaded, info = live.VideoMAEForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same({k: v.numpy() for k, v in loaded.state_dict().items()}, {k: v.numpy() for k, v in model.state_dict().items()})


def test_classification_equals_transformers(live: Any, tmp_path: pathlib.Path) -> None:
    """Logits and the pooled feature, the names of the classes, and back."""
    labels = {0: "wave", 1: "jump", 2: "sit"}
    model = randomised(live.VideoMAEForVideoClassification(settings(live, use_mean_pooling=True, id2label=labels)), seed=2)
    model.save_pretrained(tmp_path / "hf")
    assert main(["convert", "--from=hf", f"{tmp_path}/hf", f"--out={tmp_path}/run"]) == 0
    assert json.loads((tmp_path / "run/classes.json").read_text()) == ["wave", "jump", "sit"]
    video, pixels = clip()
    objective, params, batch = objective_of(tmp_path / "run"), params_of(tmp_path / "run"), batch_of(video)
    predict = jax.jit(lambda params: (objective.predict(params, {}, batch, jax.random.key(0)).logits, objective.represent(params, {}, batch)))
    logits, features = predict(params)
    close(logits, model(pixels).logits)
    close(features["video"].pooled, model.fc_norm(model.videomae(pixels).last_hidden_state.mean(1)))
    named = json.loads((tmp_path / "hf/config.json").read_text())
    (tmp_path / "hf/config.json").write_text(json.dumps(named | {"id2label": named["id2label"] | {"3": "run"}}))
    assert main(["convert", "--from=hf", f"{tmp_path}/hf", f"--out={tmp_path}/other"]) == 2 and not (tmp_path / "other").exists()
    assert main(["convert", "--to=hf", f"{tmp_path}/run", f"--out={tmp_path}/back"]) == 0
    again = live.VideoMAEForVideoClassification.from_pretrained(tmp_path / "back")
    assert again.config.id2label == labels
    assert_same({k: v.numpy() for k, v in again.state_dict().items()}, {k: v.numpy() for k, v in model.state_dict().items()})


def whole(kind: str, live: Any, folder: pathlib.Path) -> dict[str, float]:
    """ViT-B, 16 frames of 224 pixels, noise as large as its initial weights: {what: largest difference from theirs over the largest value}."""
    import torch
    from test_parity import distance

    video = np.random.default_rng(0).integers(0, 256, (1, 16, 224, 224, 3), np.uint8)
    pixels = (video / np.float32(255) - np.asarray(patches.IMAGENET_MEAN, np.float32)) / np.asarray(patches.IMAGENET_STD, np.float32)
    theirs, rng = torch.from_numpy(pixels.transpose(0, 1, 4, 2, 3).astype(np.float32)), jax.random.key(0)
    config = live.VideoMAEConfig(layer_norm_eps=1e-6, use_mean_pooling=kind != "pretraining", num_labels=400)
    model = randomised((live.VideoMAEForPreTraining if kind == "pretraining" else live.VideoMAEForVideoClassification)(config), seed=3, scale=0.02)
    model.save_pretrained(folder / "hf")
    assert main(["convert", "--from=hf", f"{folder}/hf", f"--out={folder}/run"]) == 0
    objective, params, batch = objective_of(folder / "run"), params_of(folder / "run"), batch_of(video)
    represent = jax.jit(lambda params: objective.represent(params, {}, batch)["video"])
    with torch.no_grad():
        tokens = model.videomae(theirs).last_hidden_state
        if kind == "classification":
            logits = jax.jit(lambda params: objective.predict(params, {}, batch, rng).logits)(params)
            return {"logits": distance(logits, model(theirs).logits), "pooled": distance(represent(params).pooled, model.fc_norm(tokens.mean(1)))}
        masks = objective.masks(batch, rng)
        hidden = torch.ones((1, 1568), dtype=torch.bool)
        hidden[0, torch.from_numpy(np.array(masks.visible[0], np.int64))] = False
        predicted = jax.jit(lambda params: objective.predict(params, {}, batch, rng, masks=masks).patches)(params)
        return {"predictions": distance(predicted, model(theirs, bool_masked_pos=hidden).logits),
                "tokens": distance(represent(params).tokens, tokens)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pretraining", "classification"])
def test_a_whole_vit_b_equals_transformers(kind: str, live: Any, tmp_path: pathlib.Path) -> None:
    """Predictions and features; logits of 400 classes and the mean token."""
    assert all(0 < figure <= 1e-5 for figure in whole(kind, live, tmp_path).values())


def test_a_converted_run_starts_another(finetuned: dict[str, np.ndarray], tmp_path: pathlib.Path) -> None:
    """As `pretrained` of fine-tuning: the encoder is the converted one, the head fresh."""
    assert main(["convert", "--from=videomae", str(save(tmp_path / "a.npz", finetuned)), f"--out={tmp_path}/run", *HEADS, *SIZES]) == 0
    config = run_directory.open_run(tmp_path / "run")
    config.objective.pretrained = str(tmp_path / "run")
    objective = configs.build(config.objective)
    fresh = jax.tree.map(jnp.asarray, random_tree(5, objective))
    loaded = externals.load(fresh, objective.externals(), root="params")
    np.testing.assert_array_equal(loaded["encoder"]["stack"]["block"]["attn"]["qkv"], params_of(tmp_path / "run")["encoder"]["stack"]["block"]["attn"]["qkv"])
    np.testing.assert_array_equal(loaded["head"]["linear"]["kernel"], fresh["head"]["linear"]["kernel"])


def test_a_converted_run_is_evaluated(finetuned: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the `evaluate` command, on an index named when it is converted: the accuracy that its weights give clip by clip."""
    index = runs.world(tmp_path / "world")
    words = ["--from=videomae", str(save(tmp_path / "a.npz", finetuned)), f"--out={tmp_path}/run", *HEADS, *SIZES]
    assert main(["convert", *words, f"--config.data.index={index}", "--config.data.label=appearance"]) == 0
    capsys.readouterr()
    assert main(["evaluate", f"{tmp_path}/run", "--only=val", "--config.evaluators.val.batch_size=8", "--config.workers=0"]) == 0
    found = json.loads(capsys.readouterr().out)
    model = videomae_jax.load(tmp_path / "run")
    source = evaluation_source(model.config, split="val")
    examples = [source.read(row, rng=np.random.default_rng(0)) for row in range(8)]
    best = model.classify(np.concatenate([e["video"] for e in examples])).probabilities.argmax(1)
    assert found["val/videos"] == 8 and found["val/top1"] == pytest.approx(100 * np.mean(best == np.concatenate([e["label"] for e in examples])))


def test_v2_features_of_hugging_face(finetuned: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its wrapper's prefix and config, no head: the missing head must be allowed by name, the norm is loaded."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    folder = tmp_path / "hf"
    folder.mkdir()
    state = {f"model.{k}": v for k, v in finetuned.items() if not k.startswith("head.")}
    numpy_files.save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_config": {"num_heads": 4, "img_size": 32, "num_frames": 8, "num_classes": 0}}))
    assert "2 missing (leaves of the model without arrays, which keep the values of a fresh model): head/linear/bias, head/linear/kernel" in refused(
        capsys, "--from=videomae_v2", folder, f"--out={tmp_path}/run")
    assert not (tmp_path / "run").exists()
    assert main(["convert", "--from=videomae_v2", str(folder), f"--out={tmp_path}/run", "--allow=missing:head/linear/.*"]) == 0
    np.testing.assert_array_equal(params_of(tmp_path / "run")["head"]["norm"]["scale"], finetuned["fc_norm.weight"])


def test_an_encoder_without_its_decoder(official: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The decoder is fresh once that is allowed, and the encoder is the file's."""
    path = save(tmp_path / "a.npz", {k: v for k, v in official.items() if k.startswith("encoder.")})
    words = ["--from=videomae", str(path), f"--out={tmp_path}/run", *HEADS, *SIZES, "--config.objective.decoder.width=24", "--config.objective.decoder.heads=3",
             "--config.objective.decoder.depth=1", "--config.objective.decoder.hidden=8"]
    assert "missing" in refused(capsys, *words)
    assert main(["convert", *words, "--allow=missing:decoder/.*"]) == 0
    params = params_of(tmp_path / "run")
    np.testing.assert_array_equal(params["encoder"]["norm"]["bias"], official["encoder.norm.bias"])
    assert params["decoder"]["stack"]["block"]["mlp"]["fc1"]["kernel"].shape == (1, 24, 8) and np.any(params["decoder"]["mask_token"])


# -- VideoPrism --------------------------------------------------------------------------------------------------------


PRISM = {"width": 12, "heads": 2, "hidden": 20, "spatial": 2, "temporal": 1, "patch": 6, "frames": 3, "rows": 2}


def videoprism_state(seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays under VideoPrism's names, every value drawn."""
    rng, p, width = np.random.default_rng(seed), PRISM, PRISM["width"]
    size = width // p["heads"]
    shapes: dict[str, tuple[int, ...]] = {"patch_projection/linear/kernel": (p["patch"] ** 2 * 3, width), "patch_projection/linear/bias": (width,),
                                          "spatial_pos_emb/emb_var": (p["rows"] ** 2, width), "temporal_pos_emb/emb_var": (p["frames"], width)}
    for name in ("spatial", "temporal"):
        layers = f"{name}_encoder/transformers_stack/x_layers"
        blocks: dict[str, tuple[int, ...]] = {f"self_attention/{n}/w": (width, p["heads"], size) for n in ("query", "key", "value", "post")}
        blocks |= {f"self_attention/{n}/b": (p["heads"], size) for n in ("query", "key", "value")} | {"self_attention/post/b": (width,)}
        blocks |= {f"{n}layer_norm/{k}": (width,) for n in ("", "ff_layer/") for k in ("scale", "bias")}
        blocks |= {"ff_layer/ffn_layer1/linear/kernel": (width, p["hidden"]), "ff_layer/ffn_layer1/linear/bias": (p["hidden"],),
                   "ff_layer/ffn_layer2/linear/kernel": (p["hidden"], width), "ff_layer/ffn_layer2/linear/bias": (width,)}
        shapes |= {f"{layers}/{k}": (p[name], *v) for k, v in blocks.items()}
        shapes |= {f"{name}_ln/{k}": (width,) for k in ("scale", "bias")}
    return {f"params/{k}": rng.standard_normal(v, np.float32) for k, v in shapes.items()}


def videoprism_reference(state: Mapping[str, np.ndarray], video: np.ndarray, /, *, cap: float = 50.0) -> np.ndarray:
    """Tokens [B t*h*w D] of clips in [0, 1], in float64 numpy from the published description, without anything of ours."""
    from scipy.special import erf

    w = {k.removeprefix("params/"): v.astype(np.float64) for k, v in state.items()}
    side, rows, width = PRISM["patch"], PRISM["rows"], PRISM["width"]

    def norm(x: np.ndarray, name: str, at: Any = slice(None)) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * (1 + w[f"{name}/scale"][at]) + w[f"{name}/bias"][at]

    def tower(x: np.ndarray, name: str, depth: int) -> np.ndarray:
        for i in range(depth):
            base = f"{name}/transformers_stack/x_layers"
            y = norm(x, f"{base}/layer_norm", i)
            q, k, v = (np.einsum("btd,dnh->btnh", y, w[f"{base}/self_attention/{n}/w"][i]) + w[f"{base}/self_attention/{n}/b"][i] for n in ("query", "key", "value"))
            logits = np.einsum("btnh,bsnh->bnts", q * q.shape[-1] ** -0.5, k)
            logits = np.exp(cap * np.tanh(logits / cap))
            y = np.einsum("bnts,bsnh->btnh", logits / logits.sum(-1, keepdims=True), v)
            x = x + np.einsum("btnh,dnh->btd", y, w[f"{base}/self_attention/post/w"][i]) + w[f"{base}/self_attention/post/b"][i]
            y = norm(x, f"{base}/ff_layer/layer_norm", i) @ w[f"{base}/ff_layer/ffn_layer1/linear/kernel"][i] + w[f"{base}/ff_layer/ffn_layer1/linear/bias"][i]
            x = x + y * (1 + erf(y / np.sqrt(2))) / 2 @ w[f"{base}/ff_layer/ffn_layer2/linear/kernel"][i] + w[f"{base}/ff_layer/ffn_layer2/linear/bias"][i]
        return x

    b, frames = video.shape[:2]
    cells = [video[:, :, r * side:(r + 1) * side, c * side:(c + 1) * side].reshape(b * frames, -1) for r in range(rows) for c in range(rows)]
    x = np.stack(cells, 1) @ w["patch_projection/linear/kernel"] + w["patch_projection/linear/bias"] + w["spatial_pos_emb/emb_var"]
    x = norm(tower(x, "spatial_encoder", PRISM["spatial"]), "spatial_ln").reshape(b, frames, rows * rows, width)
    x = x.transpose(0, 2, 1, 3).reshape(-1, frames, width) + w["temporal_pos_emb/emb_var"]
    x = norm(tower(x, "temporal_encoder", PRISM["temporal"]), "temporal_ln")
    return x.reshape(b, rows * rows, frames, width).transpose(0, 2, 1, 3).reshape(b, -1, width)


def test_videoprism(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tokens equal the description in numpy; sizes follow from the file; the head, which it has not, must be allowed; text is unexpected."""
    state = videoprism_state()
    path, words = save(tmp_path / "a.npz", state), ["--from=videoprism", f"--out={tmp_path}/run"]
    assert "4 missing (leaves of the model without arrays, which keep the values of a fresh model): head/linear/bias" in refused(capsys, path, *words)
    assert main(["convert", str(path), *words, "--allow=missing:head/.*"]) == 0
    opened(tmp_path / "run", folder=tmp_path)
    model = videomae_jax.load(tmp_path / "run")
    assert (model.frames, model.size, model.objective.encoder.spatial_depth, model.objective.encoder.heads) == (3, 12, 2, 2)
    video = np.random.default_rng(1).integers(0, 256, (2, 3, 12, 12, 3), np.uint8)
    want = videoprism_reference(state, video / 255)
    found = model.encode(video).tokens.reshape(want.shape)
    np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())
    (tmp_path / "a.mp4").write_bytes(b"")
    assert main(["extract", str(tmp_path / "run"), str(tmp_path / "a.mp4"), f"--out={tmp_path}/f", "--unnormalised"]) == 2
    assert "--unnormalised: the encoder of this run does not normalise pixels; leave the option out" in capsys.readouterr().err
    assert np.abs(videoprism_reference(state, video / 255, cap=1e9) - want).max() > 1e-3  # the cap tells
    changed = {k: v + (k.endswith("key/b") and "temporal" in k) for k, v in state.items()}
    assert np.abs(videoprism_reference(changed, video / 255) - want).max() > 1e-4  # and so does a key bias
    both = save(tmp_path / "b.npz", {k.replace("params/", "params/vision_encoder/"): v for k, v in state.items()} | {"params/text_encoder/cls_emb": np.ones((1, 1, 12))})
    assert "1 unexpected (arrays that no leaf of the model takes): text_encoder/cls_emb" in refused(capsys, both, *words[:1], f"--out={tmp_path}/c", "--allow=missing")


def test_videoprism_leaves_out_padded_frames(tmp_path: pathlib.Path) -> None:
    """No real frame attends a padded one, in the tower along time either; its blocks are numbered through both towers; masks are refused."""
    main(["convert", str(save(tmp_path / "a.npz", videoprism_state())), "--from=videoprism", f"--out={tmp_path}/run", "--allow=missing:head/.*"])
    model = videomae_jax.load(tmp_path / "run")
    video = np.random.default_rng(1).integers(0, 256, (1, 3, 12, 12, 3), np.uint8)
    other = video.copy()
    other[:, 2] = 0
    found = [model.encode(v, length=2).tokens[:, :2] for v in (video, other)]
    np.testing.assert_allclose(*found, atol=1e-6)
    assert np.abs(model.encode(video).tokens[:, :2] - found[0]).max() > 1e-4
    first, last = model.encode(video, layer=0).tokens, model.encode(video, layer=2).tokens
    changed = model.encode(other, layer=0).tokens
    np.testing.assert_allclose(first[:, :2], changed[:, :2], atol=1e-6)  # the first block stays within frames
    assert np.abs(last - first).max() > 0.1
    with pytest.raises(UserError, match="5 of 12 tokens reach VideoPrism's encoder"):
        model.objective.encoder.apply({"params": {}}, jnp.zeros((1, 5, 108)), ids=jnp.zeros((1, 5), jnp.int32))


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_other_sizes_take_the_table_of_the_training_grid(official: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """224 pixels are assumed where the file does not tell; other ones are an interpolation that has to be allowed."""
    words = ["--from=videomae", str(save(tmp_path / "a.npz", official)), f"--out={tmp_path}/run", *HEADS, *SMALLER]
    assert "2 interpolated (position tables resized to another grid): encoder positions, decoder positions" in refused(capsys, *words)
    assert main(["convert", *words, "--allow=interpolated"]) == 0
    objective = objective_of(tmp_path / "run")
    assert objective.encoder.trained == objective.decoder.trained == (8, 28, 28) and objective.encoder.grid.h == 4
    assert run_directory.open_run(tmp_path / "run").data.frames == 8
    assert "resized.Encoder has no counterpart there" in refused(capsys, "--to=videomae", tmp_path / "run", f"--out={tmp_path}/b.pth")


def edited(state: Mapping[str, np.ndarray], case: str) -> dict[str, np.ndarray]:
    """A state dict with one fault."""
    state = dict(state)
    if case == "torn":
        del state["encoder.blocks.1.norm1.bias"]
    elif case == "unexpected":
        state["encoder.pos_embed"] = np.ones((1, 4, 32), np.float32)
    elif case == "zero":
        state["encoder.blocks.1.attn.v_bias"] = np.zeros(32, np.float32)
    elif case == "missing":
        del state["decoder.norm.weight"]
    elif case == "shape":
        state["decoder.head.weight"] = np.ones((7, 24), np.float32)
    elif case == "channels":
        state["encoder.patch_embed.proj.weight"] = np.ones((32, 1, 2, 8, 8), np.float32)
    elif case == "embedding":
        del state["encoder.patch_embed.proj.weight"]
    elif case == "no MLP":
        del state["encoder.blocks.0.mlp.fc1.weight"]
    elif case == "flat":
        state["encoder.blocks.0.mlp.fc1.weight"] = np.ones(32, np.float32)
    elif case == "unpacked":
        state["encoder.blocks.0.attn.qkv.weight"] = np.ones((5, 32), np.float32)
    elif case == "uneven":
        state["encoder.blocks.1.mlp.fc1.weight"] = np.ones((7, 32), np.float32)
    elif case == "complex":
        state["encoder.norm.weight"] = state["encoder.norm.weight"].astype(np.complex64)
    elif case == "text":
        state["note"] = np.array(["a"])
    elif case == "diverged":
        state["encoder.norm.weight"] = state["encoder.norm.weight"] * np.nan
    return state


FAULTS = {
    "torn": "1 arrays of stacks that are otherwise there are missing: encoder.blocks.1.norm1.bias; the file is incomplete",
    "unexpected": "1 unexpected (arrays that no leaf of the model takes): encoder.pos_embed; accept them with --allow=unexpected",
    "zero": "1 zero (arrays whose every value is 0: transformers 5.8 to 5.17 load the q and v biases so): encoder.blocks.1.attn.v_bias",
    "missing": "1 missing (leaves of the model without arrays, which keep the values of a fresh model): decoder/norm/scale",
    "shape": "decoder/head/kernel is (24, 7) in the source, (24, 384) in the target",
    "channels": "the weights take 1 channels; converted are models of 3",
    "embedding": "the weights have no tubelet embedding encoder.patch_embed.proj.weight",
    "no MLP": "the first block encoder.blocks.0 has no MLP (fc1.weight), so the width of the encoder is unknown",
    "flat": "the first block encoder.blocks.0 has an MLP of shape (32,), so the width",
    "unpacked": "no leaf encoder/stack/block/attn/qkv of 4 heads can be made of encoder.blocks.0.attn.qkv.weight (5, 32)",
    "uneven": "encoder.blocks.1.mlp.fc1.weight has the shape (7, 32), encoder.blocks.0.mlp.fc1.weight (",
    "complex": "encoder.norm.weight in {file} is of complex64; allowed are arrays of real numbers",
    "text": "note in {file} is of <U1; allowed are arrays of real numbers",
    "diverged": "encoder.norm.weight in {file} holds values that are not finite",
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_itemised(case: str, official: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each names the array, and nothing is written; what may be allowed passes with its class allowed, and only then."""
    words = ["--from=videomae", save(tmp_path / "a.npz", edited(official, case)), f"--out={tmp_path}/run", *HEADS, *SIZES]
    fault = FAULTS[case].format(file=tmp_path / "a.npz")
    assert fault in refused(capsys, *words)
    assert fault in refused(capsys, *words, "--allow=missing:encoder/.*", "--allow=unexpected:decoder.*", "--allow=zero:head.*")
    assert not (tmp_path / "run").exists()
    if case in ("unexpected", "zero"):
        assert main(["convert", *map(str, words), f"--allow={case}"]) == 0


class Payload:
    """What a malicious pickle looks like."""

    def __init__(self, target: pathlib.Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_pickles_are_never_run(official: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Code in a file is refused and not executed, wherever it hides; options of the official scripts are read."""
    target = tmp_path / "owned"
    assert "has no dict of tensors under 'ema'; it has model" in refused(
        capsys, "--from=videomae", save(tmp_path / "a.pth", official), f"--out={tmp_path}/run", "--key=ema")
    bad = save(tmp_path / "bad.pth", official, args=Payload(target))
    assert "is refused: it holds more than weights" in refused(capsys, "--from=videomae", bad, f"--out={tmp_path}/run", *HEADS)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Payload(target)))
    assert "error" in refused(capsys, "--from=videomae", tmp_path / "plain.bin", f"--out={tmp_path}/run")
    np.savez(tmp_path / "objects.npz", a=np.asarray([Payload(target)], object))
    assert "cannot be read as .npz of arrays" in refused(capsys, "--from=videomae", tmp_path / "objects.npz", f"--out={tmp_path}/run")
    assert not target.exists()
    assert files.read(save(tmp_path / "good.pth", official, args=argparse.Namespace(num_frames=8))).settings == {"num_frames": 8}


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.safetensors", b"no header", r"a\.safetensors (cannot be read as|needs the package) safetensors"), ("a.npz", b"PK broken", "cannot be read as .npz"),
    ("a.pth", b"nothing", "a.pth"), ("a.h5", b"", "ends in '.h5'; allowed are .safetensors, .npz"), ("absent.pth", None, "there is no such file or folder")])
def test_unreadable_files(name: str, content: bytes | None, message: str, tmp_path: pathlib.Path) -> None:
    """One clear error each."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        files.read(tmp_path / name)


def test_folders(official: dict[str, np.ndarray], tmp_path: pathlib.Path) -> None:
    """Parts listed by an index, which may not point elsewhere; bfloat16 parts are widened exactly."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    half = len(official) // 2
    parts = [dict(list(official.items())[:half]), dict(list(official.items())[half:])]
    for i, part in enumerate(parts):
        numpy_files.save_file(part, tmp_path / f"part{i}.safetensors")
    index = {"weight_map": {k: f"part{i}.safetensors" for i, part in enumerate(parts) for k in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same(files.read(tmp_path).state, official)
    index["weight_map"]["x"] = "../elsewhere.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="allowed are files of the same folder"):
        files.read(tmp_path)
    for broken in ({}, {"weight_map": ["part0.safetensors"]}, {"weight_map": {"x": 1}}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match="has no weight_map that names the file of every array"):
            files.read(tmp_path)
    (tmp_path / "absent").mkdir()
    with pytest.raises(UserError, match="holds none of model.safetensors"):
        files.read(tmp_path / "absent")
    numpy_files.save_file({"x": np.asarray(jnp.asarray([1.5, -2.0], jnp.bfloat16))}, tmp_path / "b.safetensors")
    found = files.read(tmp_path / "b.safetensors")
    assert found.state["x"].dtype == np.float32 and found.state["x"].tolist() == [1.5, -2.0] and found.dtypes == {"bfloat16": 1}


def test_wrong_families_and_words(official: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The family is told from the names; options of one direction are refused in the other; nothing is overwritten."""
    path = save(tmp_path / "a.npz", official)
    run = f"--out={tmp_path}/run"
    assert "is not of the family 'hf'; its arrays are named like those of videomae or videomae_v2" in refused(capsys, "--from=hf", path, run)
    assert "is of none of the families marlin, hf, videomae" in refused(capsys, "--from=auto", save(tmp_path / "b.npz", {"x.y": np.ones(2, np.float32)}), run)
    assert "the number of heads of the encoder of width 32 is neither" in refused(capsys, "--from=videomae", path, run)
    assert "5 heads for the encoder of width 32" in refused(capsys, "--from=videomae", path, run, "--heads=5", "--decoder-heads=3")
    assert "names an entry of a PyTorch file; " in refused(capsys, "--from=videomae", path, run, "--key=ema")
    assert "'lost' is no class of differences; allowed are missing, unexpected" in refused(capsys, "--from=videomae", path, run, "--allow=lost")
    for option in ("--item=params", "--item=ema", "--best", "--biases=q_bias"):
        assert f"{option.partition('=')[0]} belongs to --to" in refused(capsys, "--from=videomae", path, run, *HEADS, *SIZES, option)
    for to in ("videomae", "videomae_v2"):
        assert "allowed is it with --to=hf" in refused(capsys, f"--to={to}", tmp_path, f"--out={tmp_path}/x.pth", "--biases=query.bias")
    assert "--key belongs to --from" in refused(capsys, "--to=hf", tmp_path, f"--out={tmp_path}/x", "--key=model")
    assert "holds no config.json" in refused(capsys, "--to=hf", tmp_path / "nowhere", f"--out={tmp_path}/x")
    assert "is there already and not an empty folder" in refused(capsys, "--from=videomae", path, f"--out={tmp_path}")
    assert "a.npz/run cannot be written" in refused(capsys, "--from=videomae", path, f"--out={path}/run", *HEADS, *SIZES)
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(("setting", "message"), [
    ({"hidden_act": "relu"}, "hidden_act 'relu'; converted are models with the exact 'gelu'"),
    ({"layer_norm_eps": "1e-12"}, "layer_norm_eps '1e-12'; allowed are numbers"), ({"id2label": ["a"]}, "id2label of the config beside the weights is a list"),
    ({"num_attention_heads": "four"}, "num_attention_heads 'four'; allowed are whole numbers"), ({"image_size": [32, 64]}, r"image_size \[32, 64\]"),
    ({"tubelet_size": 4, "hidden_size": 16}, "hidden_size 16 but 32 by the shapes; tubelet_size 4 but 2 by the shapes"),
    ({"patch_size": [8, 8], "num_hidden_layers": 2, "image_size": [32, 32]}, "")])
def test_settings_of_another_model_are_refused(setting: dict[str, Any], message: str, finetuned: dict[str, np.ndarray], tmp_path: pathlib.Path) -> None:
    """An activation that is not ours, sizes that are no numbers, a config.json that belongs to other weights; what agrees passes."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "videomae", "num_frames": 8, "image_size": 32, "num_attention_heads": 4} | setting))
    path = save(tmp_path / "a.npz", finetuned)
    if not message:
        assert importing.read(path, family="videomae").config.objective.encoder.size == 32
        return
    with pytest.raises(UserError, match=message):
        importing.read(path, family="videomae")


def test_a_config_whose_data_are_a_mixture(official: dict[str, np.ndarray], tmp_path: pathlib.Path) -> None:
    """V2's own corpus is one: every part gets the frames and the size of the encoder."""
    words = [str(save(tmp_path / "a.npz", official)), *HEADS, *SIZES, "--config=configs/data/unlabeled_hybrid.py"]
    assert main(["convert", "--from=videomae_v2", *words, f"--out={tmp_path}/run"]) == 0
    parts = run_directory.open_run(tmp_path / "run").data.parts
    assert len(parts) > 1 and {(p.source.frames, p.source.size) for p in parts.values()} == {(8, 32)}


def test_a_config_that_fails_is_one_line(official: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its file and line, as of every other command."""
    (tmp_path / "own.py").write_text("def get_config():\n    return 1 / 0\n")
    words = [str(save(tmp_path / "a.npz", official)), *HEADS, *SIZES, f"--config={tmp_path}/own.py", f"--out={tmp_path}/run"]
    assert main(["convert", "--from=videomae_v2", *words]) == 2
    assert capsys.readouterr().err == f"error: config file {tmp_path}/own.py, line 2: ZeroDivisionError: division by zero\n"


@pytest.mark.parametrize("packed", [False, True])
def test_flipped_bits_of_an_npz(tmp_path: pathlib.Path, packed: bool) -> None:
    """Whatever numpy, its zip and its headers make of them: arrays, or the one line."""
    (np.savez_compressed if packed else np.savez)(tmp_path / "a.npz", **{f"{i}": np.arange(40, dtype=np.float32) for i in range(3)})
    raw = (tmp_path / "a.npz").read_bytes()
    refused, rng = 0, np.random.default_rng(0)
    for place in rng.integers(0, 8 * len(raw), 400):
        other = bytearray(raw)
        other[place // 8] ^= 1 << place % 8
        (tmp_path / "b.npz").write_bytes(other)
        for read in (lambda: files.of_numpy(tmp_path / "b.npz"), lambda: externals.read(External("params", str(tmp_path / "b.npz")))):
            try:
                read()
            except UserError:
                refused += 1
    assert refused > 200


def test_other_classes_are_refused(finetuned: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With what to do instead."""
    words = ["--from=videomae", save(tmp_path / "a.npz", finetuned), f"--out={tmp_path}/run", *HEADS, *SIZES, "--config.objective.head.classes=7"]
    assert "the weights have 4 classes and the config 7; convert them as they are, and fine-tune for others" in refused(capsys, *words)


def test_names_of_the_classes_of_an_official_head(finetuned: dict[str, np.ndarray], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The files of the official code tell none: with a list of them `predict` names what it sees, and a head can start from its rows by name."""
    path, names = save(tmp_path / "a.npz", finetuned), tmp_path / "label_map.txt"
    names.write_text("zumba\narchery\nbowling\nplaying chess\n")
    words = [str(path), *HEADS, *SIZES]
    assert main(["convert", "--from=videomae", *words, f"--out={tmp_path}/run", f"--classes={names}"]) == 0
    assert head_rows.stored(str(tmp_path / "run")) == ("zumba", "archery", "bowling", "playing chess")
    clip = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    plain = videomae_jax.load(path, family="videomae", heads=4, trained_frames=8, trained_size=32).classify(clip)
    assert videomae_jax.load(tmp_path / "run").classify(clip).top(1)[0][0][0] == names.read_text().split("\n")[int(plain.probabilities.argmax())]
    names.write_text("zumba\narchery\n")
    assert "names 2 classes, and the weights have a head of 4" in refused(capsys, "--from=videomae", *words, f"--out={tmp_path}/b", f"--classes={names}")
    assert "--classes belongs to --from" in refused(capsys, "--to=hf", tmp_path / "run", f"--out={tmp_path}/b", f"--classes={names}")


def test_the_eps_of_a_run_is_exported(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hugging Face's config holds it; the official code, and two of them at Hugging Face, cannot be told."""
    pytest.importorskip("safetensors")
    encoder, decoder = ({"width": w, "depth": 1, "heads": 2, "hidden": 8, "eps": 1e-5} for w in (16, 8))
    encoder |= {"patch": PATCH, "frames": 4, "size": 16}
    run = written.write(tmp_path / "run", mae.MAE(vit.Encoder(**encoder), vit.Decoder(**decoder)))
    assert main(["convert", "--to=hf", str(run), f"--out={tmp_path}/hf"]) == 0
    assert json.loads((tmp_path / "hf/config.json").read_text())["layer_norm_eps"] == 1e-5
    assert "eps 1e-05, and the official code has 1e-06" in refused(capsys, "--to=videomae", run, f"--out={tmp_path}/a.pth")
    mixed = written.write(tmp_path / "mixed", mae.MAE(vit.Encoder(**encoder), vit.Decoder(**(decoder | {"eps": 1e-6}))))
    assert "eps 1e-05 in the encoder and 1e-06 in the decoder; Hugging Face has one" in refused(capsys, "--to=hf", mixed, f"--out={tmp_path}/b")
    assert not (tmp_path / "a.pth").exists() and not (tmp_path / "b").exists()


def test_the_best_weights_of_a_run_are_exported(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With config and classes of the run; they are one set of weights, and those of others are never any."""
    numpy_files = pytest.importorskip("safetensors.numpy")
    run = written.write(tmp_path / "run", written.classifier(), classes=written.CLASSES)
    assert "no evaluator of this run keeps the best weights yet" in refused(capsys, "--to=hf", run, "--best", f"--out={tmp_path}/none")
    written.keep_best(run, written.classifier(), step=4, seed=1)
    of = {}
    for name, words in (("last", [run]), ("best", [run, "--best"]), ("folder", [run / "best"])):
        assert main(["convert", "--to=hf", *map(str, words), f"--out={tmp_path / name}"]) == 0
        of[name] = numpy_files.load_file(tmp_path / name / "model.safetensors")
        assert json.loads((tmp_path / name / "config.json").read_text())["id2label"]["1"] == written.CLASSES[1]
    for name, seed in (("last", 0), ("best", 1), ("folder", 1)):
        np.testing.assert_array_equal(of[name]["classifier.bias"], written.tree(written.classifier(), seed=seed)["head"]["linear"]["bias"])
    assert "has no 'ema'; it has params" in refused(capsys, "--to=hf", run, "--best", "--item=ema", f"--out={tmp_path}/none")
    assert "--best belongs to --to" in refused(capsys, "--from=auto", run, "--best", f"--out={tmp_path}/none")


def test_pixels_and_eps_come_back_from_hugging_face(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Statistics of preprocessor_config.json and an eps of its own, there and back: the same classes of the same clips. Without the file ImageNet's, and a note."""
    pytest.importorskip("safetensors")
    encoder = vit.Encoder(width=16, depth=1, heads=2, hidden=8, eps=1e-3, patch=PATCH, frames=4, size=16, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    run = written.write(tmp_path / "run", classify.Classify(encoder, heads.Classifier(classes=3)), classes=written.CLASSES)
    assert main(["convert", "--to=hf", str(run), f"--out={tmp_path}/hf"]) == 0
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    back = videomae_jax.load(tmp_path / "hf", family="hf")
    np.testing.assert_allclose(back.classify(clip).probabilities, videomae_jax.load(run).classify(clip).probabilities, atol=1e-6)
    capsys.readouterr()
    (tmp_path / "hf" / "preprocessor_config.json").unlink()
    assert main(["convert", "--from=hf", str(tmp_path / "hf"), f"--out={tmp_path}/again"]) == 0
    assert "no preprocessor_config.json beside them" in "".join(capsys.readouterr())
    assert configs.from_json((tmp_path / "again" / "config.json").read_text()).objective.encoder.mean == (0.485, 0.456, 0.406)
    (tmp_path / "hf" / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5]}')
    assert "image_mean [0.5, 0.5]; allowed are three numbers" in refused(capsys, "--from=hf", tmp_path / "hf", f"--out={tmp_path}/x")


def test_attributes_come_back_from_hugging_face(tmp_path: pathlib.Path) -> None:
    """As a sigmoid of each, there and here, with the names of the run; data that are asked for the columns, and an evaluator of theirs. Without names they are numbers."""
    pytest.importorskip("safetensors")
    objective = attributes.Attributes(vit.Encoder(width=16, depth=1, heads=2, hidden=8, patch=PATCH, frames=4, size=16), heads.Classifier(classes=2))
    run = written.write(tmp_path / "run", objective, source=AttributeClips, attributes=("smile", "hat"))  # of before names were written beside the weights
    assert main(["convert", "--to=hf", str(run), f"--out={tmp_path}/hf"]) == 0
    path = tmp_path / "hf" / "config.json"
    settings = json.loads(path.read_text())
    assert settings["problem_type"] == "multi_label_classification" and settings["id2label"] == {"0": "smile", "1": "hat"}
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    want = videomae_jax.load(run).classify(clip)
    assert np.abs(want.probabilities.sum(1) - 1).max() > 1e-2

    def opened(name: str, names: tuple[str, ...], columns: tuple[str, ...]) -> None:
        assert main(["convert", "--from=hf", str(tmp_path / "hf"), f"--out={tmp_path / name}"]) == 0
        for found in (videomae_jax.load(tmp_path / "hf", family="hf"), videomae_jax.load(tmp_path / name)):
            np.testing.assert_allclose(found.classify(clip).probabilities, want.probabilities, atol=1e-6)
            assert found.classify(clip).names == names and found.config.data.attributes == columns and found.objective.mixing.probability == found.objective.smoothing == 0
            assert [type(configs.build(node)) for node in found.config.evaluators.values()] == [AttributeAccuracy]

    opened("again", ("smile", "hat"), ("smile", "hat"))
    path.write_text(json.dumps(settings | {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    opened("numbers", ("0", "1"), ("0", "1"))
    path.write_text(json.dumps(settings | {"id2label": {"0": "yes", "1": "yes"}}))
    opened("twice", ("yes", "yes"), ("0", "1"))
    path.write_text(json.dumps(settings | {"problem_type": None}))
    np.testing.assert_allclose(videomae_jax.load(tmp_path / "hf").classify(clip).probabilities.sum(1), 1, atol=1e-6)


def test_an_official_file_tells_what_its_tensors_do_not(torch: Any, tmp_path: pathlib.Path) -> None:
    """A sigmoid of each attribute, with its name, and the statistics of the pixels: the same answers there and back, without an option."""
    encoder = vit.Encoder(width=16, depth=1, heads=2, hidden=8, patch=PATCH, frames=4, size=16, mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.2))
    run = written.write(tmp_path / "run", attributes.Attributes(encoder, heads.Classifier(classes=2)), source=AttributeClips, attributes=("smile", "hat"))
    assert main(["convert", "--to=videomae", str(run), f"--out={tmp_path}/a.pth"]) == 0
    assert main(["convert", "--from=videomae", f"{tmp_path}/a.pth", f"--out={tmp_path}/again"]) == 0
    clip = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    want = videomae_jax.load(run).classify(clip)
    for found in (videomae_jax.load(tmp_path / "a.pth", family="videomae"), videomae_jax.load(tmp_path / "again")):
        np.testing.assert_allclose(found.classify(clip).probabilities, want.probabilities, atol=1e-6)
        assert found.classify(clip).names == ("smile", "hat") and found.objective.encoder.mean == (0.5, 0.4, 0.3)


@pytest.mark.parametrize("kind", [dict, argparse.Namespace])
def test_options_of_an_official_file(official: dict[str, np.ndarray], torch: Any, tmp_path: pathlib.Path, kind: Any) -> None:
    """What they leave open is passed over, what the command says comes first, and raw pixels are predicted where their script was told so."""
    options = kind(**{"num_frames": 8, "input_size": 32.5, "num_heads": None, "normlize_target": False})
    path = save(tmp_path / "a.pth", official, args=options)
    assert main(["convert", "--from=videomae", str(path), f"--out={tmp_path}/run", *HEADS, "--trained-size=32"]) == 0
    found = objective_of(tmp_path / "run")
    assert (found.encoder.frames, found.encoder.size, found.encoder.heads, found.decoder.heads, found.target.normalise) == (8, 32, 4, 3, "none")
    assert main(["convert", "--to=videomae", f"{tmp_path}/run", f"--out={tmp_path}/b.pth"]) == 0
    assert torch.load(tmp_path / "b.pth", weights_only=True)["args"]["normlize_target"] is False


def test_a_family_goes_with_its_recipe(official: dict[str, np.ndarray], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first config of a family that is there is the start; where none is, the error names it, and another one may be given."""
    absent = {"videomae": "configs/absent/a.py configs/pretrain/vit_b.py", "videomae_v2": "configs/absent/a.py"}
    families = {name: importing.FAMILIES[name] | {"pretraining": names} for name, names in absent.items()}
    monkeypatch.setattr(importing, "FAMILIES", importing.FAMILIES | families)
    path, sizes = save(tmp_path / "a.npz", official), {"heads": 4, "decoder_heads": 3, "trained_frames": 8, "trained_size": 32}
    config = importing.read(path, family="videomae", **sizes).config
    assert config.name == configs.load("configs/pretrain/vit_b.py").name and isinstance(configs.build(config.objective).decoder_mask, masking.Hidden)
    with pytest.raises(UserError, match="videomae_v2 weights start from the config configs/absent/a.py, which is not here; name another one with --config"):
        importing.read(path, family="videomae_v2", **sizes)
    assert importing.read(path, family="videomae_v2", config="configs/pretrain/vit_s.py", **sizes).family == "videomae_v2"


def test_lists_without_a_class_are_impossible() -> None:
    """An account with nothing to allow passes; patterns must match a whole name."""
    report.Report(loaded=("a",), reshaped=()).check({})
    with pytest.raises(UserError, match="1 missing"):
        report.Report(loaded=(), reshaped=(), missing=("head/bias",)).check({"missing": ["head"]})
    with pytest.raises(UserError, match="is no regular expression"):
        report.allowances(["missing:("])
    assert importing.recognise({"blocks.0.attn.q.weight": np.ones(1)}, family="", path=pathlib.Path("x")) == "mae_st"
    assert resized.TRAINED == (8, 14, 14)
