"""Classes of own videos as a table and a picture; programs for serving that need nothing of this package."""

import csv
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import runs
import written
from PIL import Image
from test_decode import encode

import videomae_jax
from videomae_jax import artefact, parallel, prediction, runner
from videomae_jax.__main__ import main
from videomae_jax.data import clips, decode, three_crop
from videomae_jax.models import attention, kernels, probing, vit
from videomae_jax.objectives.probe import Probe
from videomae_jax.runner import Program


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A fine-tuned run whose test has 2 x 3 views."""
    return written.write(tmp_path_factory.mktemp("serving") / "run", written.classifier(), classes=written.CLASSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two videos and a file that is none."""
    out = tmp_path_factory.mktemp("videos")
    for name, frames in (("a.mp4", 21), ("b.mp4", 41)):
        (out / name).write_bytes(encode(frames=frames))
    (out / "broken.mp4").write_bytes(b"nothing")
    return out


def test_predictions_average_the_views_of_the_test(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Softmax of each of the 2 x 3 views, then their mean; the unreadable file has a row and a cell; exit code 1 tells of it."""
    assert main(["predict", str(run), str(folder), f"--out={tmp_path}/p.csv", "--top=9"]) == 1
    out, err = capsys.readouterr()
    assert "2 videos of 3 classified" in out and "broken.mp4" in err
    rows = {row["video"]: row for row in csv.DictReader((tmp_path / "p.csv").open())}
    model = videomae_jax.load(run)
    for name in ("a.mp4", "b.mp4"):
        info, total = decode.probe(folder / name), np.zeros(3)
        for t in range(2):
            video = decode.decode(folder / name, clips.DenseView(stride=2, views=2, view=t).ids(info.frames, clip=4, rng=np.random.default_rng(0)), info=info)
            for s in range(3):
                total += model.classify(three_crop.ThreeCrop(views=3, view=s)(video, size=16, rng=np.random.default_rng(0))).probabilities[0] / 6
        order = np.argsort(-total)
        assert [rows[name][f"class{i + 1}"] for i in range(3)] == [written.CLASSES[i] for i in order] and rows[name]["error"] == ""
        np.testing.assert_allclose([float(rows[name][f"probability{i + 1}"]) for i in range(3)], total[order], atol=2e-6)
    assert rows["broken.mp4"]["class1"] == "" and rows["broken.mp4"]["error"].startswith("open: ")
    picture = np.asarray(Image.open(tmp_path / "p.png"))
    assert main(["predict", str(run), str(folder / "broken.mp4"), f"--out={tmp_path}/none.csv"]) == 2 and not list(tmp_path.glob("none.csv*"))
    assert "none of 1 videos can be read, and no table is written; first broken.mp4: open: " in capsys.readouterr().err
    assert picture.shape == (190, 800, 3) and all(picture[20:140, left: left + 150].std() > 5 for left in (5, 165)) and picture[5:150, 330:470].std() < 1


def test_names_of_classes(run: pathlib.Path, folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given ones win; a wrong number of them, a file that cannot be read, and a run without classes are refused."""
    words = ["predict", str(run), str(folder / "a.mp4"), f"--out={tmp_path}/p.csv", "--top=1"]
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n")
    assert main([*words, f"--classes={tmp_path}/names.txt"]) == 0
    assert next(csv.DictReader((tmp_path / "p.csv").open()))["class1"] in ("one", "two", "three")
    for name, text in (("marked.txt", "one\ntwo\nthree\n"), ("marked.json", json.dumps(["one", "two", "three"]))):  # as Windows writes them
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert main([*words[:-1], "--top=3", f"--classes={tmp_path}/{name}"]) == 0
        row = next(csv.DictReader((tmp_path / "p.csv").open()))
        assert {row[f"class{i}"] for i in (1, 2, 3)} == {"one", "two", "three"}
    (tmp_path / "names.json").write_text(json.dumps(["one", "two"]))
    pretrained = written.write(tmp_path / "pretrained", written.pretraining())
    for more, message in (([f"--classes={tmp_path}/names.json"], "2 names of classes for a head of 3"), (["--classes=absent"], "names of classes absent cannot be read"),
                          (["--out=p.txt"], "allowed are a name that ends in .csv"), ([f"--sheet={tmp_path}/p.csv"], "p.csv; allowed is a file name that ends in .png"),
                          ([f"--sheet={tmp_path}/names.txt/p.png"], f"--sheet={tmp_path}/names.txt/p.png cannot be written"), ([f"--out={tmp_path}/names.txt/p.csv"], "names.txt/p.csv cannot be written")):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["predict", str(pretrained), str(folder / "a.mp4"), f"--out={tmp_path}/q.csv"]) == 2
    assert "MAE has no classes" in capsys.readouterr().err
    bare = written.write(tmp_path / "bare", written.classifier())  # neither names nor the index it was trained on
    assert main(["predict", str(bare), str(folder / "a.mp4"), f"--out={tmp_path}/r.csv", "--top=1"]) == 0
    assert next(csv.DictReader((tmp_path / "r.csv").open()))["class1"] in ("0", "1", "2")


@pytest.mark.parametrize("what", ["features", "classes"])
def test_programs_equal_the_model_for_any_batch(what: str, run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Exported once, run with 1 and 3 clips: what the model gives; other clips are refused."""
    assert main(["export", str(run), f"--out={tmp_path}/out", f"--what={what}", "--platforms=cpu,cuda,tpu"]) == 0
    program, model = Program(tmp_path / "out"), videomae_jax.load(run)
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
    for rows in (1, 3):
        found = program(video[:rows])
        if what == "classes":
            np.testing.assert_allclose(found["probabilities"], model.classify(video[:rows]).probabilities, atol=1e-5)
        else:
            want = model.encode(video[:rows])
            np.testing.assert_allclose(found["tokens"].reshape(want.tokens.shape), want.tokens, atol=1e-5)
            np.testing.assert_allclose(found["pooled"], want.pooled, atol=1e-5)
    assert program.about["classes"] == (list(written.CLASSES) if what == "classes" else [])
    assert {k: tuple(v) for k, v in program.about["output"].items()} == {k: ("b", *v.shape[1:]) for k, v in found.items()}
    with pytest.raises(ValueError, match="allowed is uint8 of shape"):
        program(video[:, :2])


def test_a_program_of_the_best_weights(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """It says their step, and gives their answers."""
    mine = pathlib.Path(shutil.copytree(run, tmp_path / "run"))
    written.keep_best(mine, written.classifier(), step=4, seed=1)
    assert main(["export", str(mine), f"--out={tmp_path}/out", "--what=classes", "--best"]) == 0
    program, video = Program(tmp_path / "out"), np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    assert program.about["step"] == 4 and program.about["classes"] == list(written.CLASSES)
    np.testing.assert_allclose(program(video)["probabilities"], videomae_jax.load(mine, best=True).classify(video).probabilities, atol=1e-5)


def test_the_folder_runs_without_this_package(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """In a process that cannot import it, by the runner that was copied beside the program."""
    assert main(["export", str(run), f"--out={tmp_path}/out", "--layer=0"]) == 0
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    np.save(tmp_path / "clip.npy", video)
    code = ("import sys; sys.modules.update(dict.fromkeys(('videomae_jax', 'flax', 'ml_collections'))); sys.argv = sys.argv[1:]; "
            "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "out/run.py"), str(tmp_path / "clip.npy"), f"--out={tmp_path}/result.npz"],
                          cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and "pooled float32 (2, 16)" in done.stdout, done.stderr
    with np.load(tmp_path / "result.npz") as found:
        np.testing.assert_allclose(found["pooled"], videomae_jax.load(run).encode(video, layer=0).pooled, atol=1e-5)


def test_mistakes_of_the_runner_are_one_line(run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing, foreign or misshapen clip, a place that cannot be written, another platform, a damaged folder."""
    assert main(["export", str(run), f"--out={tmp_path}/out"]) == 0 == main(["export", str(run), f"--out={tmp_path}/tpu", "--platforms=tpu"])
    np.save(tmp_path / "clip.npy", np.zeros((1, 4, 16, 16, 3), np.uint8))
    np.save(tmp_path / "short.npy", np.zeros((1, 2, 16, 16, 3), np.uint8))
    np.savez(tmp_path / "several.npz", a=np.zeros(1))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").write_bytes(b"")
    shutil.copytree(tmp_path / "out", tmp_path / "cut")
    (tmp_path / "cut/weights.npz").write_bytes((tmp_path / "out/weights.npz").read_bytes()[:100])
    for name in ("program.bin", "about.json"):
        shutil.copytree(tmp_path / "out", tmp_path / name)
        (tmp_path / name / name).write_bytes((tmp_path / "out" / name).read_bytes()[:100] if name == "program.bin" else b"{}")
    capsys.readouterr()
    for folder, words, message in (("out", ["absent.npy"], "absent.npy"), ("out", ["short.npy"], "allowed is uint8 of shape (B, 4, 16, 16, 3)"),
                                   ("out", ["several.npz"], "several.npz holds several arrays"), ("out", ["text.npy"], "text.npy is no .npy file"),
                                   ("out", ["empty.npy"], "empty.npy is no .npy file"), ("out", ["clip.npy", "--out=absent/x.npz"], "absent/x.npz"),
                                   ("tpu", ["clip.npy"], "tpu"), ("cut", ["clip.npy"], "weights.npz"),
                                   ("program.bin", ["clip.npy"], "program.bin is damaged"), ("about.json", ["clip.npy"], "about.json is damaged")):
        monkeypatch.setattr(runner, "__file__", str(tmp_path / folder / "run.py"))
        monkeypatch.chdir(tmp_path)
        assert runner.main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and message in said, said


def test_bfloat16_weights_are_served(tmp_path: pathlib.Path) -> None:
    """A probe keeps its encoder so, and numpy's files know no such numbers: the program gives what the model gives, bit for bit; old folders open too."""
    encoder = vit.Encoder(**written.ENCODER)
    objective = Probe(encoder=encoder, head=probing.Attentive(classes=3, count=2, blocks=2, heads=2, ratio=1), weights="", storage="bfloat16")
    model = videomae_jax.load(written.write(tmp_path / "run", objective, classes=written.CLASSES))
    assert {str(x.dtype) for x in jax.tree.leaves(model.extra)} == {"bfloat16"}
    artefact.write(model, tmp_path / "out", what="classes")
    clip = np.random.default_rng(0).integers(0, 256, (3, 4, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(Program(tmp_path / "out")(clip)["probabilities"], model.classify(clip).probabilities, atol=1e-6)
    artefact.write(videomae_jax.load(written.write(tmp_path / "plain", written.classifier(), classes=written.CLASSES)), tmp_path / "old", what="classes")
    about = json.loads((tmp_path / "old" / "about.json").read_text())
    del about["dtypes"]  # as folders of before have it
    (tmp_path / "old" / "about.json").write_text(json.dumps(about))
    assert Program(tmp_path / "old")(clip)["probabilities"].shape == (3, 3)


def named(run: pathlib.Path, kernel: str, /) -> None:
    """The config of a run names a kernel."""
    text = (run / "config.json").read_text()
    assert '"attention": "xla"' in text
    (run / "config.json").write_text(text.replace('"attention": "xla"', f'"attention": "{kernel}"'))


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_runs_of_a_gpu_or_tpu_open_and_export_elsewhere(run: pathlib.Path, tmp_path: pathlib.Path, kernel: str) -> None:
    """Attention by a kernel of theirs becomes attention in blocks: the same features as by plain attention, also for any batch."""
    gpu = written.write(tmp_path / "gpu", written.classifier())
    named(gpu, kernel)
    model, video = videomae_jax.load(gpu), np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    assert model.objective.encoder.attention == "chunked"
    want = videomae_jax.load(run).encode(video).pooled
    np.testing.assert_allclose(model.encode(video).pooled, want, atol=1e-5)
    assert main(["export", str(gpu), f"--out={tmp_path}/out"]) == 0
    np.testing.assert_allclose(Program(tmp_path / "out")(video)["pooled"], want, atol=1e-5)


def test_a_kernel_of_the_devices_that_are_here_is_not_exported(run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TPU keeps its kernel for itself; the program has blocks, not the kernel interpreted."""
    tpu, portable = written.write(tmp_path / "run", written.classifier()), kernels.portable
    named(tpu, "splash")
    monkeypatch.setattr(kernels, "portable", lambda node, device: portable(node, device=types.SimpleNamespace(platform="tpu")))
    model, video = videomae_jax.load(tpu), np.random.default_rng(0).integers(0, 256, (2, 4, 16, 16, 3), np.uint8)
    assert model.objective.encoder.attention == "splash"
    monkeypatch.setitem(attention.IMPLEMENTATIONS, "splash", None)
    for platforms in (("cpu",), ("tpu",), ("cpu", "cuda", "tpu")):
        artefact.write(model, tmp_path / "-".join(platforms), platforms=platforms)
    np.testing.assert_allclose(Program(tmp_path / "cpu")(video)["pooled"], videomae_jax.load(run).encode(video).pooled, atol=1e-5)


@pytest.mark.parametrize(("platform", "capability", "cudnn", "splash"), [
    ("gpu", "9.0", "cudnn", "chunked"), ("gpu", "8.0", "cudnn", "chunked"), ("gpu", "7.5", "chunked", "chunked"), ("gpu", "gfx942", "chunked", "chunked"),
    ("gpu", "", "cudnn", "chunked"), ("tpu", "", "chunked", "splash"), ("cpu", "", "chunked", "chunked")])
def test_kernels_stay_where_a_device_runs_them(platform: str, capability: str, cudnn: str, splash: str) -> None:
    """cuDNN's begin with Ampere, and AMD has none; whatever the depth."""
    device = types.SimpleNamespace(platform=platform, **({"compute_capability": capability} if capability else {}))
    node = {"encoder": {"attention": "cudnn", "depth": 2}, "teacher": {"encoder": {"attention": "splash"}}, "decoder": {"attention": "auto"}}
    kernels.portable(node, device=device)
    assert (node["encoder"]["attention"], node["teacher"]["encoder"]["attention"], node["decoder"]["attention"]) == (cudnn, splash, "auto")


def test_an_export_is_not_for_the_devices_that_are_here(run: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that the device decides is decided for where the program goes, whatever JAX sees."""
    text = (run / "config.json").read_text()
    automatic = pathlib.Path(shutil.copytree(run, tmp_path / "auto"))
    (automatic / "config.json").write_text(text.replace('"attention": "xla"', '"attention": "auto"'))
    seen, chosen = [], attention.chosen
    monkeypatch.setattr(attention, "chosen", lambda **kw: seen.append(parallel.target()) or chosen(**kw))
    model = videomae_jax.load(automatic)
    for platforms, wanted in ((("cpu",), parallel.Target("cpu", 1)), (("cuda",), parallel.Target("export", 0)), (("cpu", "tpu"), parallel.Target("export", 0))):
        seen.clear()
        artefact.write(model, tmp_path / "-".join(platforms), platforms=platforms)
        assert wanted in seen and all(one == wanted for one in seen[:1])


def test_export_mistakes(run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, and nothing is written."""
    pretrained = written.write(tmp_path / "pretrained", written.pretraining())
    for path, words, message in ((run, ["--platforms=abacus"], "for abacus; allowed are features, classes for cpu, cuda, rocm, tpu"),
                                 (pretrained, ["--what=classes"], "MAE has no classes; allowed is 'features'"), (run, ["--layer=9"], "layer 9; allowed are"),
                                 (run, ["--what=classes", "--layer=0"], "layer 0 for 'classes', which come from the head whatever the layer; allowed is")):
        assert main(["export", str(path), f"--out={tmp_path}/out", *words]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    for out, message in ((tmp_path / "pretrained", "is there already and not an empty folder"), (run / "config.json/out", "config.json/out cannot be written")):
        assert main(["export", str(run), f"--out={out}"]) == 2
        assert message in capsys.readouterr().err


def test_weights_of_others_are_served_without_a_run(run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file without a head: what it lacks is allowed by name here too."""
    from videomae_jax.convert import videomae

    objective = written.classifier(width=384, heads=6)  # a published width, whose heads are known
    state = videomae.classifier_to_official(written.tree(objective), patch=(2, 8, 8))
    np.savez(tmp_path / "a.npz", **{k: v for k, v in state.items() if not k.startswith("head.")})
    words = ["export", str(tmp_path / "a.npz"), f"--out={tmp_path}/out", "--frames=4", "--size=16"]
    assert main(words) == 2
    assert "accept them with --allow=missing" in capsys.readouterr().err
    assert main([*words, "--allow=missing:head/linear/.*"]) == 0
    assert Program(tmp_path / "out").about["output"]["pooled"] == ["b", 384]


@pytest.mark.slow
def test_from_converted_weights_to_predictions(tmp_path: pathlib.Path) -> None:
    """convert, train from it, evaluate, predict, extract, export: each command opens what the one before left."""
    from videomae_jax.convert import videomae

    index = runs.world(tmp_path / "world")
    objective = written.pretraining(width=32, heads=4, hidden=64, frames=8)
    np.savez(tmp_path / "a.npz", **videomae.to_official(written.tree(objective), patch=(2, 8, 8)))
    same = [f"--config.objective.encoder.{k}={v}" for k, v in {"width": 32, "heads": 4, "hidden": 64, "depth": 2, "unroll": 1}.items()]
    grid = ["--config.objective.encoder.frames=8", "--config.objective.encoder.size=32"]
    converted, tuned = tmp_path / "converted", tmp_path / "tuned"
    words = ["convert", "--from=videomae", str(tmp_path / "a.npz"), "--heads=4", "--decoder-heads=2"]
    assert main([*words, f"--out={tmp_path}/taken_for_224", "--allow=interpolated", *grid]) == 0
    assert main([*words, f"--out={converted}", "--trained-frames=8", "--trained-size=32"]) == 0
    train = ["train", f"--config={runs.ROOT}/configs/finetune/shapes.py", f"--workdir={tuned}", f"--config.data.index={index}", "--config.total=2", "--config.data.limit=0",
             f"--config.objective.pretrained={converted}", "--config.batch_size=8", "--config.evaluators.val.batch_size=8", *same]
    assert main([*train, f"--config.objective.pretrained={tmp_path}/taken_for_224"]) == 2  # the positions of another grid
    shutil.rmtree(tuned)
    assert main(train) == 0 and main(["evaluate", str(tuned)]) == 0
    videos = [str(p) for p in sorted((tmp_path / "world").rglob("*.mp4"))[:2]]
    assert main(["predict", str(tuned), *videos, f"--out={tmp_path}/p.csv"]) == 0
    names = {row["class1"] for row in csv.DictReader((tmp_path / "p.csv").open())}
    assert names and not any(name.isdigit() for name in names)  # of the index
    assert main(["extract", str(tuned), *videos, f"--out={tmp_path}/features"]) == 0
    assert main(["export", str(tuned), f"--out={tmp_path}/served", "--what=classes"]) == 0


def test_a_model_that_has_diverged_names_no_class() -> None:
    """Where its probabilities are not finite the first class would be as good as any."""
    model = types.SimpleNamespace(classify=lambda views: types.SimpleNamespace(probabilities=np.array([[0.2, 0.8], [np.nan, np.nan]], np.float32)))
    answer = prediction.judged(model, "a.mp4", np.zeros((2, 1, 1, 1, 3), np.uint8), classes=("x", "y"), top=1)
    assert answer.classes == () and answer.error == "the probabilities of the model are not finite"
