"""What `predict` holds on to, and which head of a probe answers."""

import csv
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import written
from flax import traverse_util
from PIL import Image
from test_decode import encode

import videomae_jax
from videomae_jax import config as configs
from videomae_jax import api, artefact, prediction, run_directory
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
    journal = prediction.Journal(tmp_path / "p.csv", settings={})
    answers = prediction.predict(videomae_jax.load(run), videos, classes=written.CLASSES, top=1, journal=journal, say=print)
    for answer in answers:
        assert isinstance(answer.picture, np.ndarray) and answer.picture.base is None and answer.picture.shape == (156, 156, 3)
    prediction.sheet(answers, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").exists()


def test_an_interrupted_call_goes_on(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the second video, in the middle of a line: only that one is judged by the second call, whose table and sheet are those of a single one."""
    run = written.write(tmp_path / "run", written.classifier(), classes=written.CLASSES)
    paths, judged, judge = [str(path) for _, path in videos], [], prediction.judged
    assert main(["predict", str(run), *paths, f"--out={tmp_path}/whole.csv"]) == 0

    def interrupted(model: object, name: str, *rest: object, **more: object) -> prediction.Answer:
        judged.append(name)
        if judged == ["a.mp4", "b.mp4"]:
            raise KeyboardInterrupt
        return judge(model, name, *rest, **more)

    monkeypatch.setattr(prediction, "judged", interrupted)
    words, partial = ["predict", str(run), *paths, f"--out={tmp_path}/p.csv"], tmp_path / "p.csv.partial"
    assert main(words) == 130 and not (tmp_path / "p.csv").exists()
    with partial.open("a") as file:
        file.write('{"name": "b.mp4", "pa')
    capsys.readouterr()
    assert main(words) == 0 and judged == ["a.mp4", "b.mp4", "b.mp4"]
    assert f"goes on behind the 1 videos in {partial}" in capsys.readouterr().err and not partial.exists()
    for end in ("csv", "png"):
        assert (tmp_path / f"p.{end}").read_bytes() == (tmp_path / f"whole.{end}").read_bytes()


def test_answers_of_another_call_are_not_gone_on_with(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """Other weights, views, classes, numbers of them, and what is no journal: refused, byte for byte; another video of the name is judged."""
    run = written.write(tmp_path / "run", written.classifier(), classes=written.CLASSES)
    other = shutil.copytree(run, tmp_path / "other")
    config = run_directory.open_run(other)
    with config.unlocked():
        config.evaluators.test.views.sampling.stride = 1
    run_directory.write(other / "config.json", configs.to_json(config))
    again = written.write(tmp_path / "again", written.classifier(), classes=written.CLASSES)
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    partial, rest = tmp_path / "p.csv.partial", [str(videos[0][1]), f"--out={tmp_path}/p.csv"]
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "table", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["predict", str(run), *rest]) == 130
    kept = partial.read_bytes()
    for words, what in (([str(other)], "views"), ([str(again)], "weights"), ([str(run), "--top=1"], "top"), ([str(run), f"--classes={tmp_path}/names.txt"], "classes")):
        capsys.readouterr()
        assert main(["predict", *words, *rest]) == 2
        assert f"{partial} holds the answers of an earlier call with other {what}; remove it" in capsys.readouterr().err and partial.read_bytes() == kept
    for damaged in (b"mine\n", b"[]\n", kept + b"{}\n", b"\xff\n"):
        partial.write_bytes(damaged)
        assert main(["predict", str(run), *rest]) == 2
        assert f"{partial} does not hold the answers of an earlier call" in capsys.readouterr().err and partial.read_bytes() == damaged
    partial.write_bytes(kept)
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    assert main(["predict", str(run), f"{tmp_path}/a.mp4", rest[1]]) == 2 and "none of 1 videos can be read" in capsys.readouterr().err
    assert partial.read_bytes() == kept


def test_answers_on_another_encoder_are_not_gone_on_with(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe's own weights are its heads alone; those of a run without weights of others are told by its checkpoint alone, as ever."""
    plain = written.write(tmp_path / "plain", written.classifier(), classes=written.CLASSES)
    assert api.identity(videomae_jax.load(plain), plain) == api.digest(plain, step=0)
    weights = tmp_path / "weights.npz"
    run = probed(tmp_path / "run", [], objective=dataclasses.replace(PROBE, weights=str(weights), item="params"))
    words = ["predict", str(run), str(videos[0][1]), f"--out={tmp_path}/p.csv"]

    def encoder(seed: int) -> None:
        np.savez(weights, **traverse_util.flatten_dict(written.tree(written.pretraining(size=16), seed=seed), sep="/"))

    encoder(1)
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "table", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(words) == 130
    encoder(2)
    capsys.readouterr()
    assert main(words) == 2 and "holds the answers of an earlier call with other weights" in capsys.readouterr().err
    encoder(1)
    assert main(words) == 0 and "goes on behind the 1 videos" in capsys.readouterr().err


def test_the_best_weights_answer(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """By the probabilities that they give, and answers of the last ones are not gone on with."""
    run = written.write(tmp_path / "run", written.classifier(), classes=written.CLASSES)
    written.keep_best(run, written.classifier(), step=4, seed=1)
    tables, words = {}, [str(videos[0][1]), "--top=1"]
    for name, more in (("last", [str(run)]), ("best", [str(run), "--best"]), ("folder", [str(run / "best")])):
        assert main(["predict", *more, *words, f"--out={tmp_path}/{name}.csv"]) == 0
        tables[name] = (tmp_path / f"{name}.csv").read_bytes()
    assert tables["best"] == tables["folder"] != tables["last"]
    with monkeypatch.context() as patch:
        patch.setattr(prediction, "table", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["predict", str(run), "--best", *words, f"--out={tmp_path}/p.csv"]) == 130
    assert json.loads((tmp_path / "p.csv.partial").read_text().splitlines()[0])["weights"][:2] == [api.digest(run, step=4, best=True), 4]
    capsys.readouterr()
    assert main(["predict", str(run), *words, f"--out={tmp_path}/p.csv"]) == 2
    assert "holds the answers of an earlier call with other weights" in capsys.readouterr().err


def test_many_videos_have_no_pictures(videos: list[tuple[str, pathlib.Path]], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """The sheet ends where a viewer would, and no picture behind it stays in memory; the command says so."""
    run = written.write(tmp_path / "run", written.classifier(), classes=written.CLASSES)
    monkeypatch.setattr(prediction, "SHOWN", 1)
    journal = prediction.Journal(tmp_path / "q.csv", settings={})
    answers = prediction.predict(videomae_jax.load(run), videos, classes=written.CLASSES, top=1, journal=journal, say=print)
    assert [answer.picture is None for answer in answers] == [False, True] and all(answer.classes for answer in answers)
    assert main(["predict", str(run), *(str(path) for _, path in videos), f"--out={tmp_path}/p.csv"]) == 0
    assert f"{tmp_path}/p.png shows the first 1 of 2 videos" in capsys.readouterr().err and len((tmp_path / "p.csv").read_text().splitlines()) == 3
    drawn = np.asarray(Image.open(tmp_path / "p.png"))
    assert drawn.shape == (190, 800, 3) and drawn[20:140, 165:315].std() == 0


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
    about = json.loads((tmp_path / "program" / "about.json").read_text())
    assert not (run / "classes.json").exists() and model.classify(found).names == ("forged",) and about["classes"] == ["forged"]


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
