"""What `predict` holds on to, and which head of a probe answers."""

import csv
import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
import written
from test_decode import encode

import videomae_jax
from videomae_jax import config as configs
from videomae_jax import artefact, prediction, run_directory
from videomae_jax.__main__ import main
from videomae_jax.data import clips, decode, three_crop
from videomae_jax.data.attributes import AttributeClips
from videomae_jax.data.transforms import CentreCrop
from videomae_jax.evals import attentive, classification
from videomae_jax.models import heads, probing, vit
from videomae_jax.objectives import attributes, probe
from videomae_jax.runner import Program


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, pathlib.Path]]:
    """Two videos."""
    out = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "b.mp4"):
        (out / name).write_bytes(encode(frames=21))
    return [(p.name, p) for p in sorted(out.iterdir())]


def test_answers_hold_no_views(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path) -> None:
    """A picture owns its pixels, as many as the sheet shows: all views of every video would fill the memory."""
    run = written.write(tmp_path / "run", written.classifier(), classes=written.CLASSES)
    answers = prediction.predict(videomae_jax.load(run), videos, classes=written.CLASSES, top=1, say=print)
    for answer in answers:
        assert isinstance(answer.picture, np.ndarray) and answer.picture.base is None and answer.picture.shape == (156, 156, 3)
    prediction.sheet(answers, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


PROBE = probe.Probe(vit.Encoder(**written.ENCODER), probing.Attentive(classes=3, count=4, blocks=1, heads=2), weights="")


def probed(out: pathlib.Path, lines: list[dict[str, float]], /, *, objective: probe.Probe = PROBE) -> pathlib.Path:
    """A probe's run directory with two tests of its heads, "many" of two views, and these lines of metrics."""
    written.write(out, objective, classes=written.CLASSES)
    config = run_directory.open_run(out)
    with config.unlocked():
        del config.evaluators.test
        config.evaluators.few = configs.spec(attentive.Heads)
        config.evaluators.many = configs.spec(attentive.Heads, views=classification.Views(clips.DenseView(stride=2, views=2), three_crop.ThreeCrop(views=1)))
    run_directory.write(out / "config.json", configs.to_json(config))
    (out / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return out


@pytest.mark.parametrize(("lines", "step", "chosen", "answers"), [
    ([], 9, 0, 0), ([{"step": 4, "few/best_head": 1.0}], 9, 0, 1), ([{"step": 4, "few/best_head": 1.0}, {"step": 8, "few/best_head": 3.0}], 9, 0, 3),
    ([{"step": 4, "few/best_head": 1.0}, {"step": 8, "few/best_head": 3.0}], 7, 0, 1),
    ([{"step": 8, "few/best_head": 3.0, "many/best_head": 2.0}], 9, 0, 2), ([{"step": 4, "few/best_head": 1.0}], 9, 2, 2)])
def test_the_head_that_answers(lines: list[dict[str, float]], step: int, chosen: int, answers: int, tmp_path: pathlib.Path) -> None:
    """That of the config, else the best of the newest results up to the checkpoint, of the test with most views, else the first."""
    objective = dataclasses.replace(PROBE, chosen=chosen)
    run = probed(tmp_path / "run", lines, objective=objective)
    config = run_directory.open_run(run)
    assert attentive.with_best_head(objective, run, config=config, step=step).chosen == answers
    other = written.pretraining()
    assert attentive.with_best_head(other, run, config=config, step=step) is other


def test_predictions_of_a_probe(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command names the head that answers, and its answers are of that head."""
    run = probed(tmp_path / "run", [{"step": 0, "many/best_head": 2.0}])
    assert main(["predict", str(run), str(videos[0][1]), f"--out={tmp_path}/p.csv", "--top=3"]) == 0
    assert "head 2 of 0 to 3 answers" in capsys.readouterr().err
    row = next(csv.DictReader((tmp_path / "p.csv").open()))
    model = videomae_jax.load(run)
    found = prediction.read(videos[0][1], prediction.views(model), model=model)
    judged = jax.jit(model.objective.judge)(model.params, model.extra, {"video": found})
    want = np.sort(np.asarray(jax.nn.softmax(judged, -1)).mean(0), -1)[:, ::-1]
    np.testing.assert_allclose([float(row[f"probability{i + 1}"]) for i in range(3)], want[2], atol=2e-6)
    assert not np.allclose(want[2], want[0], atol=1e-4)


def test_attributes_are_answered_each_for_itself(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path) -> None:
    """A softmax over independent answers would be wrong, and over a single one always 1: the command, `classify` and the exported program."""
    objective = attributes.Attributes(vit.Encoder(**written.ENCODER), heads.Classifier(classes=1))
    run = written.write(tmp_path / "run", objective, source=AttributeClips, attributes=("forged",))
    model = videomae_jax.load(run)
    found = prediction.read(videos[0][1], prediction.views(model), model=model)
    logits = jax.jit(lambda video: objective.predict(model.params, model.extra, {"video": video, "key": np.zeros((len(video), 2), np.uint32)}, jax.random.key(0)).logits)
    want = np.asarray(jax.nn.sigmoid(logits(found)))
    assert not np.allclose(want, 1, atol=1e-3)
    np.testing.assert_allclose(model.classify(found).probabilities, want, atol=1e-6)
    assert main(["predict", str(run), str(videos[0][1]), f"--out={tmp_path}/p.csv"]) == 0
    row = next(csv.DictReader((tmp_path / "p.csv").open()))
    assert row["class1"] == "forged" and float(row["probability1"]) == pytest.approx(want.mean(), abs=2e-6)
    artefact.write(model, tmp_path / "program", what="classes")
    np.testing.assert_allclose(Program(tmp_path / "program")(found)["probabilities"], want, atol=1e-5)


@pytest.mark.parametrize("long", [False, True])
def test_clips_by_rate(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path, long: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """A run whose evaluation samples frames a second: the frames of training's source, and no stride that `extract` could guess."""
    sampling = clips.PerSecond(rate=5.0, position="centre")
    run = written.write(tmp_path / "run", written.classifier(), classes=written.CLASSES, sampling=clips.LongVideo(sampling=sampling, position="centre") if long else sampling)
    config = run_directory.open_run(run)
    with config.unlocked():
        del config.evaluators.test
    run_directory.write(run / "config.json", configs.to_json(config))
    model, (_, path) = videomae_jax.load(run), videos[0]
    info = decode.probe(path)
    ids = clips.at(sampling, fps=info.fps, pts=info.pts, time_base=info.time_base).ids(info.frames, clip=4, rng=np.random.default_rng(0))
    want = CentreCrop()(decode.decode(path, ids, info=info), size=16, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(model.clip(path), want)
    np.testing.assert_array_equal(prediction.read(path, prediction.views(model), model=model)[0], want)
    assert main(["extract", str(run), str(path), f"--out={tmp_path}/f"]) == 2
    assert "which has no stride; say --rate=N" in capsys.readouterr().err
    assert main(["extract", str(run), str(path), f"--out={tmp_path}/f", "--rate=3"]) == 0
