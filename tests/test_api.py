"""Models in Python: clips in, features, pictures and classes out, from run directories and from weights of others."""

import json
import pathlib
import re
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import written

import videomae_jax
from videomae_jax import api, artefact, head_rows, run_directory
from videomae_jax import config as configs
from videomae_jax.__main__ import main
from videomae_jax.convert import videomae
from videomae_jax.errors import UserError
from videomae_jax.models import patches, resized, vit
from videomae_jax.objectives import mae
from videomae_jax.runner import Program

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of pretraining, 4 frames of 32 pixels."""
    return written.write(tmp_path_factory.mktemp("api") / "pretrained", written.pretraining())


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of fine-tuning, 4 frames of 16 pixels."""
    return written.write(tmp_path_factory.mktemp("api") / "finetuned", written.classifier(), classes=written.CLASSES)


def clips(model: api.Model, rows: int = 3) -> np.ndarray:
    """Random ones."""
    return RNG.integers(0, 256, (rows, model.frames, model.size, model.size, 3), np.uint8)


def test_features_are_those_of_the_objective(pretrained: pathlib.Path) -> None:
    """Tokens in the grid's axes, their mean, another layer; one clip or several, bytes or floats, on one device or on several."""
    model = videomae_jax.load(pretrained)
    assert (model.frames, model.size, model.step, model.classes) == (4, 32, 0, ())
    video = clips(model)
    found = model.encode(video)
    assert found.tokens.shape == (3, 2, 4, 4, 16) and found.pooled.shape == (3, 16) and found.valid.all()
    params = written.tree(model.objective)
    want = jax.jit(lambda p, v: model.objective.represent(p, {}, {"video": v})["video"])(params, jnp.asarray(video))
    np.testing.assert_allclose(found.tokens.reshape(3, 32, 16), want.tokens, atol=1e-5)
    np.testing.assert_allclose(found.pooled, found.tokens.mean((1, 2, 3)), atol=1e-5)
    alone = model.encode((video[1] / np.float32(255)).astype(np.float32))
    np.testing.assert_allclose(alone.tokens[0], found.tokens[1], atol=1e-5)
    assert np.abs(model.encode(video, layer=0).tokens - found.tokens).max() > 0.1
    spread = videomae_jax.load(pretrained, devices=jax.devices()[:2]).encode(video)  # three clips on two devices
    np.testing.assert_allclose(spread.tokens, found.tokens, atol=1e-5)


def test_reconstruction(pretrained: pathlib.Path) -> None:
    """Panels of the clip's shape, the same for the same seed; visible cells are the input's own."""
    model = videomae_jax.load(pretrained)
    video = clips(model, 2)
    found = model.reconstruct(video, seed=3)
    assert set(found.panels) == {"input", "visible", "prediction", "pasted"} and found.error.shape == (2,) and np.isfinite(found.error).all()
    np.testing.assert_allclose(found.panels["input"], video / 255, atol=1e-6)
    seen = np.isclose(found.panels["visible"], found.panels["input"], atol=1e-6).all(-1).mean()
    assert 0.05 < seen < 0.2  # a tenth of the places
    np.testing.assert_array_equal(model.reconstruct(video, seed=3).panels["pasted"], found.panels["pasted"])
    assert (model.reconstruct(video, seed=4).panels["visible"] != found.panels["visible"]).any()


def test_learned_positions_open_as_well(tmp_path: pathlib.Path) -> None:
    """MAE-ST, which predicts one of the two frames of a tubelet: features, pictures and a program."""
    objective = written.with_learned_positions()
    model = videomae_jax.load(written.write(tmp_path / "run", objective))
    assert (model.frames, model.size) == (4, 16)
    video = clips(model, 2)
    found = model.encode(video)
    want = jax.jit(lambda p, v: objective.represent(p, {}, {"video": v})["video"])(written.tree(objective), jnp.asarray(video))
    np.testing.assert_allclose(found.pooled, want.pooled, atol=1e-5)
    assert model.reconstruct(video).panels["pasted"].shape == (2, 4, 16, 16, 3)
    artefact.write(model, tmp_path / "out")
    np.testing.assert_allclose(Program(tmp_path / "out")(video)["pooled"], found.pooled, atol=1e-5)


def test_classes(finetuned: pathlib.Path) -> None:
    """Probabilities that sum to one, named; the pooled feature is what they are linear in."""
    model = videomae_jax.load(finetuned)
    video = clips(model)
    found = model.classify(video)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-6)
    best = found.top(2)
    assert len(best) == 3 and all(len(row) == 2 and row[0][1] >= row[1][1] for row in best)
    assert best[0][0][0] == written.CLASSES[int(found.probabilities[0].argmax())]
    head = written.tree(model.objective)["head"]["linear"]
    logits = model.encode(video).pooled @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(found.probabilities, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(("text", "message"), [('["wave", "jump", "sit",]', "names of classes .*classes.json cannot be read: "),
                                               ('["wave", "jump"]', "classes.json has 2 names, and the head 3 classes; allowed is a name for each of them, in the order of the head")])
def test_names_that_cannot_be_those_of_the_head(text: str, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line of whoever opens the run: the file is one that people edit."""
    run = written.write(tmp_path / "run", written.classifier(), classes=written.CLASSES)
    (run / "classes.json").write_text(text)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(UserError, match=message):
        videomae_jax.load(run)
    for words in (["predict", run, tmp_path], ["export", run, "--what=classes"], ["convert", "--to=hf", run]):
        assert main([*map(str, words), f"--out={tmp_path / 'out.csv'}"]) == 2
        assert re.search(message, said := capsys.readouterr().err) and said.count("\n") == 1 and not (tmp_path / "out.csv").exists()
    with pytest.raises(UserError, match=message):
        head_rows.check_labels(run, written.CLASSES, head=3)


def test_padding_is_left_out(finetuned: pathlib.Path) -> None:
    """The pooled feature of a clip that is real up to frame 2 does not depend on the rest."""
    model = videomae_jax.load(finetuned)
    video = clips(model, 2)
    other = video.copy()
    other[:, 2:] = 0
    found = [model.encode(v, length=2) for v in (video, other)]
    np.testing.assert_allclose(found[0].pooled, found[1].pooled, atol=1e-6)
    assert found[0].valid[:, 0].all() and not found[0].valid[:, 1].any()
    assert np.abs(model.encode(video).pooled - found[0].pooled).max() > 1e-3


def test_weights_of_others_open_without_a_run(tmp_path: pathlib.Path) -> None:
    """The same features as from the run they were written from; a bad keyword for either kind is named."""
    objective = written.pretraining()
    np.savez(tmp_path / "a.npz", **videomae.to_official(written.tree(objective), patch=(2, 8, 8)))
    size = {"objective.encoder.frames": "4", "objective.encoder.size": "32"}
    model = videomae_jax.load(tmp_path / "a.npz", family="videomae_v2", heads=2, decoder_heads=2, assignments=size, allow={"interpolated": [".*"]})
    assert isinstance(model.objective.encoder, resized.Encoder) and model.objective.encoder.trained == (8, 28, 28)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.params), written.tree(objective))
    assert model.encode(clips(model, 1)).tokens.shape == (1, 2, 4, 4, 16)
    with pytest.raises(UserError, match="step is for run directories"):
        videomae_jax.load(tmp_path / "a.npz", step=3)
    with pytest.raises(UserError, match="there is no such file or folder"):
        videomae_jax.load(tmp_path / "nothing")


def test_other_clips_than_trained(pretrained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Longer and larger ones take the table of the training grid, resized; a mean patch keeps its meaning."""
    model = videomae_jax.load(pretrained, frames=8, size=48)
    encoder = model.objective.encoder
    assert isinstance(encoder, resized.Encoder) and encoder.trained == (2, 4, 4) and model.encode(clips(model, 1)).tokens.shape == (1, 4, 6, 6, 16)
    assert isinstance(model.objective.decoder, resized.Decoder) and model.fields["video"].shape == (8, 48, 48, 3)
    with pytest.raises(UserError, match="clip 5x32x32 is not a multiple of the patch 2x8x8"):
        videomae_jax.load(pretrained, frames=5)
    learned = written.write(tmp_path / "learned", written.with_learned_positions())
    with pytest.raises(UserError, match="mae_st.Encoder has positions of its own"):
        videomae_jax.load(learned, frames=8)
    assert videomae_jax.load(learned).objective.encoder.frames == 4
    with pytest.raises(UserError, match=r"objective.encoder.frames would leave the positions of the weights as they are; `frames` and `size`"):
        videomae_jax.load(pretrained, assignments={"objective.encoder.frames": "8"})


def test_averages_that_begin_later(pretrained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A run that goes on with `ema` has none in the checkpoint it goes on from: what averages would begin with are the parameters."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"ema": 0.99}))
    model = videomae_jax.load(run)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.params), written.tree(model.objective))


def test_a_run_of_an_earlier_version_takes_new_fields(pretrained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """What its config could not say yet has its default, and may be said now, to Python and to the commands."""
    run = shutil.copytree(pretrained, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    assert config["objective"]["encoder"].pop("eps") and config["data"].pop("max_bad_fraction")
    (run / "config.json").write_text(json.dumps(config))
    video = clips(plain := videomae_jax.load(run))
    np.testing.assert_array_equal(plain.encode(video).pooled, videomae_jax.load(pretrained).encode(video).pooled)
    assert configs.to_json(plain.config.data) == configs.to_json(run_directory.open_run(run).data)  # by which an interrupted `predict` knows its views
    said = {"objective.encoder.eps": "100.0"}
    assert np.abs(videomae_jax.load(run, assignments=said).encode(video).pooled - plain.encode(video).pooled).max() > 0.01
    with pytest.raises(UserError, match="no index absent"):  # not that the field is none
        run_directory.context(run, assignments=said)


class Mine(vit.Encoder):
    """An encoder of a package of the user's own."""


def test_parts_of_ones_own_open_with_trust(tmp_path: pathlib.Path) -> None:
    """`--trust` reaches every place that builds a part of the run."""
    run = written.write(tmp_path / "run", mae.MAE(Mine(**(written.ENCODER | {"size": 32})), vit.Decoder(**written.DECODER)))
    with pytest.raises(UserError, match="--trust"):
        videomae_jax.load(run)
    assert isinstance(videomae_jax.load(run, trust=(__name__,)).objective.encoder, Mine)
    with pytest.raises(UserError, match="Mine has positions of its own"):
        videomae_jax.load(run, frames=8, trust=(__name__,))


def test_a_mixture_is_cut_to_other_clips_too() -> None:
    """Each of its parts, as the corpus of V2 has them."""
    config = configs.load("configs/data/unlabeled_hybrid.py")
    with config.unlocked():
        configs.cut_to(config.data, frames=8, size=96)
    assert len(config.data.parts) > 3 and {(p.source.frames, p.source.size) for p in config.data.parts.values()} == {(8, 96)}


def test_mistakes(pretrained: pathlib.Path, finetuned: pathlib.Path) -> None:
    """Each names the offending value and what is allowed."""
    model, classifier = videomae_jax.load(pretrained), videomae_jax.load(finetuned)
    for call, message in ((lambda: model.encode(np.zeros((3, 32, 32, 3), np.uint8)), r"this model takes \(\[B,\] 4, 32, 32, 3\)"),
                          (lambda: model.encode(np.zeros((4, 32, 32, 3), np.int64)), "clips of int64; allowed are uint8"),
                          (lambda: model.encode(np.full((4, 32, 32, 3), 200.0)), "clips of floats from 200 to 200; allowed are floats in"),
                          (lambda: model.encode(clips(model), layer=2), "layer 2; allowed are -1 and 0 to 1"),
                          (lambda: model.classify(clips(model)), "MAE has no classes; allowed are fine-tuned runs"),
                          (lambda: classifier.reconstruct(clips(classifier)), "Classify does not reconstruct pixels"),
                          (lambda: videomae_jax.load(pretrained, step=7), r"no checkpoint 7 in .*; its steps are \[0\]"),
                          (lambda: videomae_jax.load(pretrained, heads=2), "heads is for weights of others")):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        getattr(videomae_jax, "lod")  # noqa: B009
    with pytest.raises(UserError, match="'parts' is nothing that this recipe reads beside a clip; allowed are no fields"):
        model.reconstruct(clips(model), parts=np.zeros((3, 4, 32, 32), np.uint8))


def test_pictures_of_a_classifier(finetuned: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`visualize` says what it needs, in one line."""
    for words, message in (([], "does not reconstruct pixels; allowed are runs of pretraining"), (["--clips=0"], "--clips=0; allowed are 1 and more")):
        assert main(["visualize", str(finetuned), *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_clips_of_files(pretrained: pathlib.Path, real_videos: pathlib.Path) -> None:
    """Cut as the run's evaluation does, and ready to be encoded."""
    model = videomae_jax.load(pretrained)
    clip = model.clip(real_videos / "arm_wrestling.mp4")
    assert clip.shape == (4, 32, 32, 3) and clip.dtype == np.uint8
    unit: Any = patches.to_unit(jnp.asarray(clip))
    np.testing.assert_allclose(model.encode(clip).tokens, model.encode(np.asarray(unit)).tokens, atol=1e-5)
