"""The accuracy evaluator: every video once, views averaged as probabilities, unreadable views left out; and the three crops."""

import csv
import dataclasses
import errno
import functools
import pathlib
import pickle
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from test_decode import encode

from videomae_jax import config as configs
from videomae_jax import externals
from videomae_jax.assembly import assemble
from videomae_jax.data import clips, decode, index, pipeline, sources, transforms
from videomae_jax.data.decode import DecodeError
from videomae_jax.data.three_crop import ThreeCrop
from videomae_jax.errors import UserError
from videomae_jax.evals import attentive, best, per_class
from videomae_jax.evals.base import Context
from videomae_jax.evals.classification import Classification, Sums, Views, results
from videomae_jax.models import heads, vit
from videomae_jax.objectives.attributes import Attributes
from videomae_jax.objectives.base import External, Prediction
from videomae_jax.objectives.classify import Classify
from videomae_jax.objectives.mae import MAE

VIDEOS, CLASSES = 11, 7
LABELS = np.random.default_rng(5).integers(0, CLASSES, VIDEOS)
# Logits of every video in every one of 2 x 3 views, as bytes that stand in the first row of its first frame.
CODES = np.random.default_rng(9).integers(0, 200, (VIDEOS, 2, 3, CLASSES), np.uint8)
CODES[np.arange(VIDEOS), :, :, LABELS] += 30


@dataclasses.dataclass(frozen=True)
class At:
    """A view with a number; as a crop it moves that row of the frames to the front."""

    views: int = 1
    view: int = 0

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        return np.roll(video, -self.view, axis=1)

    def every(self, video: np.ndarray, /, *, size: int) -> np.ndarray:
        return np.stack([np.roll(video, -view, axis=1) for view in range(self.views)])


@dataclasses.dataclass(frozen=True)
class Coded(sources.NoiseClips):
    """Videos that hold their logits, those of a spatial view in a row of their first frame; `broken` names (video, temporal view) that cannot be read."""

    sampling: Any = At()
    crop: Any = At()
    broken: tuple[tuple[int, int], ...] = ()
    reads: Any = None
    unlabelled: int = -1
    classes: tuple[str, ...] = tuple("abcdefg")

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        rows = sources.spread(np.arange(VIDEOS), limit=self.limit)
        row, t = int(rows[row]), self.sampling.view
        if self.reads is not None:
            self.reads.append((row, t))
        if (row, t) in self.broken:
            raise DecodeError(self.name(row), "decode", "broken")
        video = np.zeros((self.frames, self.size, self.size, 3), np.uint8)
        video[0, :3, :CLASSES, 0] = CODES[row, t]
        return {"video": self.crop(video, size=self.size, rng=rng)[None], "label": np.asarray([-1 if row == self.unlabelled else LABELS[row]], np.int32)}


@dataclasses.dataclass(frozen=True)
class Reader(Classify):
    """A classifier that knows what the videos hold."""

    def predict(self, params: Any, extra: Any, batch: Any, rng: Any, /, *, masks: Any = None) -> Prediction:
        return Prediction(logits=batch["video"][:, 0, 0, :CLASSES, 0].astype(jnp.float32) / 64)


@dataclasses.dataclass(frozen=True)
class Toy(Context):
    """A context whose videos are in memory."""

    fields: tuple[tuple[str, Any], ...] = ()

    def source(self, split: str, /) -> Any:
        return Coded(frames=4, size=16, length=VIDEOS, split=split, **dict(self.fields))


@functools.cache
def run(classes: int = CLASSES) -> Any:
    """A run with the reader on two devices: padding in every view."""
    config = configs.load(str(pathlib.Path(__file__).resolve().parents[1] / "configs" / "tiny.py"))
    config.unlock()
    encoder = vit.Encoder(width=16, depth=1, heads=2, hidden=16, patch=(2, 8, 8), frames=4, size=16)
    config.objective = configs.plain(Reader(encoder=encoder, head=heads.Classifier(classes=classes)))
    config.data, config.batch_size = configs.spec(sources.NoiseClips, frames=4, size=16), 4
    return assemble(config, devices=jax.devices()[:2], trust=(__name__,))


def evaluate(evaluator: Classification, /, *, classes: int = CLASSES, step: int = 3, directory: pathlib.Path = pathlib.Path(), params: Any = None,
             **fields: Any) -> dict[str, float]:
    """Results on the coded videos."""
    return evaluator.run(Toy(run(classes), params or {}, {}, step, directory, fields=tuple(fields.items())))


def expected(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracies in percent and loss of fused probabilities, by sorting."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")
    hits = order == labels[:, None]
    loss = -np.log(probabilities[np.arange(len(labels)), labels]).mean()
    return {"top1": 100 * hits[:, :1].any(1).mean(), "top5": 100 * hits[:, :5].any(1).mean(), "loss": loss}


def softmax(logits: np.ndarray) -> np.ndarray:
    """In float64."""
    e = np.exp(logits.astype(np.float64))
    return e / e.sum(-1, keepdims=True)


PROBABILITIES = softmax(CODES / 64)
MANY = Classification(batch_size=4, views=Views(sampling=At(views=2), crop=At(views=3)))


def assert_results(got: dict[str, float], want: dict[str, float]) -> None:
    """Within float32 of the probabilities."""
    for key, value in want.items():
        assert got[key] == pytest.approx(value, rel=1e-5), key


def test_one_view_counts_every_video_once() -> None:
    """Eleven videos in batches of four: the twelfth row is padding and a copy of the last."""
    got = evaluate(Classification(batch_size=4))
    assert_results(got, expected(PROBABILITIES[:, 0, 0], LABELS) | {"videos": VIDEOS, "unreadable": 0, "chance": 100 / CLASSES})
    assert 0 < got["top1"] < got["top5"] < 100  # so that neither can hide a mistake


def test_views_are_averaged_as_probabilities() -> None:
    """Softmax first, mean second; the mean of logits ranks these videos differently."""
    got = evaluate(MANY)
    assert_results(got, expected(PROBABILITIES.mean((1, 2)), LABELS) | {"videos": VIDEOS})
    other = expected(softmax((CODES / 64).mean((1, 2))), LABELS)
    assert other["top1"] != got["top1"]


def test_a_temporal_view_is_decoded_once() -> None:
    """Its three crops come of one read."""
    reads: list[tuple[int, int]] = []
    evaluate(MANY, reads=reads)
    assert sorted(set(reads)) == [(row, t) for row in range(VIDEOS) for t in range(2)] and len(reads) == len(set(reads))


def test_the_next_batch_is_under_way_before_a_result_is_waited_for() -> None:
    """Three batches: the second is submitted before the first is read, and none is lost or swapped."""
    class Batches(Context):
        def sweep(self, source: Any, /, *, batch_size: int) -> Any:
            return iter(np.arange(3))

    done: list[str] = []

    def program(batch: Any) -> Any:
        done.append(f"submit {batch}")
        return batch * 10
    for found in Batches(run(), {}, {}, 0, pathlib.Path()).results(program, None, batch_size=1):
        done.append(f"read {found}")
    assert done == ["submit 0", "submit 1", "read 0", "submit 2", "read 10", "read 20"]


def test_unreadable_views_do_not_count() -> None:
    """What is shown instead is another video, of another class: a view is left out, and a video without views altogether."""
    broken = ((2, 0), (4, 1), (5, 0), (5, 1))
    got = evaluate(MANY, broken=broken)
    kept = np.ones((VIDEOS, 2, 3, 1))
    for place in broken:
        kept[place] = 0
    rows = np.arange(VIDEOS) != 5
    fused = (PROBABILITIES * kept).sum((1, 2))[rows] / kept.sum((1, 2))[rows]
    assert_results(got, expected(fused, LABELS[rows]) | {"videos": VIDEOS - 1, "unreadable": 1})


def test_padding_adds_nothing() -> None:
    """A row that is not valid changes neither sums nor counts nor labels, whatever it shows."""
    view = {"probabilities": np.float32([[0.9, 0.1], [0.2, 0.8]]), "row": np.array([1, 1]), "label": np.array([0, 1]), "valid": np.array([True, False]),
            "fault": np.zeros(2, int)}
    sums = Sums.empty(2, classes=2)
    sums.add(view)
    np.testing.assert_allclose(sums.total, [[0, 0], [0.9, 0.1]], rtol=1e-6)
    np.testing.assert_array_equal(sums.seen, [0, 1])
    np.testing.assert_array_equal(sums.labels, [-1, 0])


def test_heads_average_the_readable_views_of_a_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that reads the codes and one that takes the classes in reverse; 66 views in batches of 12: the last view of all fills the last batch up."""
    codes, last = CODES.copy(), VIDEOS - 1
    label = LABELS[last]
    codes[last] = 0
    codes[last, 0, :, label], codes[last, 1, :, (label + 1) % CLASSES] = 200, 190  # right by a little, and wrong where the last view counts three times
    monkeypatch.setattr(f"{__name__}.CODES", codes)
    probability, broken, read = softmax(codes / 64), ((2, 0), (5, 0), (5, 1)), np.ones((VIDEOS, 2, 1, 1))
    for place in broken:
        read[place] = 0

    def judge(params: Any, extra: Any, batch: Any, /) -> Any:
        logits = batch["video"][:, 0, 0, :CLASSES, 0].astype(jnp.float32) / 64
        return jnp.stack([logits, logits[:, ::-1]], 1)

    probe = types.SimpleNamespace(judge=judge, head=types.SimpleNamespace(classes=CLASSES, count=2))
    context = Toy(dataclasses.replace(run(), objective=probe), {}, {}, 3, pathlib.Path(), fields=(("broken", broken),))
    found = attentive.Heads(batch_size=12, views=Views(sampling=At(views=2), crop=At(views=3))).run(context)
    mean, known = (probability * read).sum((1, 2)), np.arange(VIDEOS) != 5
    assert mean[last].argmax() == label != (mean[last] + 2 * probability[last, 1].sum(0)).argmax()
    assert found["videos"] == VIDEOS - 1
    assert [found["head_0"], found["head_1"]] == pytest.approx([100 * np.mean(x.argmax(-1) == LABELS[known]) for x in (mean[known], mean[known, ::-1])])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_every_host_covers_its_part_once(hosts: int) -> None:
    """Eleven videos over hosts that share batches of four: each video once whatever the number of hosts, padding never."""
    sums = Sums.empty(VIDEOS, classes=CLASSES)
    streams = [pipeline.sweep(Coded(frames=4, size=16, length=VIDEOS), batch_size=4, host=h, hosts=hosts, threads=1) for h in range(hosts)]
    for parts in zip(*streams, strict=True):
        batch = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        sums.add(batch | {"probabilities": softmax(batch["video"][:, 0, 0, :CLASSES, 0] / 64)})
    for stream in streams:
        stream.close()
    np.testing.assert_array_equal(sums.seen, 1)
    np.testing.assert_allclose(sums.total, PROBABILITIES[:, 0, 0], rtol=1e-6)
    assert_results(results(sums), expected(PROBABILITIES[:, 0, 0], LABELS) | {"videos": VIDEOS})


def test_a_model_that_has_diverged_takes_nothing_for_a_class(tmp_path: pathlib.Path) -> None:
    """Its rows are wrong, and in no column of the confusions."""
    mean = np.full((4, 3), np.nan)
    mean[3] = (0.1, 0.2, 0.7)
    per_class.write(tmp_path, names=list("wxyz"), classes=list("abc"), labels=np.array([0, 0, 1, 2]), logits=np.zeros((4, 1, 3)), seen=np.ones((4, 1), bool), mean=mean)
    rows = (tmp_path / "per_class.csv").read_text().splitlines()[1:]
    assert [row.split(",")[2:] for row in rows] == [["0.00", "100.00", "", ""], ["0.00", "100.00", "", ""], ["100.00", "100.00", "", ""]]
    assert per_class.confusion(np.array([-1, 2]), np.array([0, 2]), classes=3).sum() == 1


def test_what_is_saved(tmp_path: pathlib.Path) -> None:
    """Logits of every view, NaN for those that could not be read; the table of classes and the confusions by counting."""
    got = evaluate(dataclasses.replace(MANY, save="test"), directory=tmp_path, broken=((2, 1),))
    with np.load(tmp_path / "test" / "logits.npz") as saved:
        logits, seen = saved["logits"], saved["seen"]
        np.testing.assert_array_equal(saved["labels"], LABELS)
        assert list(saved["names"][:2]) == ["noise 0", "noise 1"] and list(saved["classes"]) == list("abcdefg")
    assert logits.dtype == np.float32 and logits.shape == (VIDEOS, 6, CLASSES)
    np.testing.assert_array_equal(np.argwhere(~seen), [[2, 3], [2, 4], [2, 5]])
    np.testing.assert_array_equal(np.isnan(logits), np.broadcast_to(~seen[..., None], logits.shape))
    np.testing.assert_allclose(logits[seen], (CODES / 64).reshape(VIDEOS, 6, CLASSES)[seen])
    fused = np.nanmean(np.where(seen[..., None], softmax(np.nan_to_num(logits)), np.nan), 1)
    with (tmp_path / "test" / "per_class.csv").open(newline="") as file:
        rows = {row["class"]: row for row in csv.DictReader(file)}
    assert list(rows) == list("abcdefg")
    for number, name in enumerate("abcdefg"):
        mine = np.flatnonzero(LABELS == number)
        guesses = fused[mine].argmax(1)
        assert int(rows[name]["videos"]) == len(mine)
        if len(mine):
            assert float(rows[name]["top1"]) == pytest.approx(100 * np.mean(guesses == number), abs=0.006)
        wrong = [int(g) for g in guesses if g != number]
        assert (rows[name]["most often taken for"] != "") is bool(wrong)
        if wrong:
            worst = min(set(wrong), key=lambda g: (-wrong.count(g), g))
            assert rows[name]["most often taken for"] == "abcdefg"[worst]
            assert float(rows[name]["share"]) == pytest.approx(100 * wrong.count(worst) / len(mine), abs=0.006)
    assert got["class_top1"] == pytest.approx(np.mean([np.mean(fused[LABELS == c].argmax(1) == c) for c in np.unique(LABELS)]) * 100)
    with Image.open(tmp_path / "test" / "confusion.png") as picture:
        cell, side = 720 // CLASSES, picture.width - 720 // CLASSES * CLASSES - 1
        guess = fused[0].argmax()
        share = np.mean(fused[LABELS == LABELS[0]].argmax(1) == guess)
        middle = picture.getpixel((side + int(guess) * cell + cell // 2, 24 + int(LABELS[0]) * cell + cell // 2))
    np.testing.assert_allclose(middle, 255 + share * (np.array([8, 48, 107]) - 255), atol=1)


def test_a_full_disk_costs_what_is_saved_alone(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """All three files of the evaluation before are left, and nothing half; the values are those of a disk with room. Whoever asks for the files is told."""
    saving = dataclasses.replace(MANY, save="test")
    wanted = evaluate(saving, directory=tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "test").iterdir()}
    assert sorted(before) == ["confusion.png", "logits.npz", "per_class.csv"]

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(per_class.np, "savez", full)
    assert evaluate(saving, directory=tmp_path) == wanted
    assert capsys.readouterr().err == f"{tmp_path}/test cannot be written (No space left on device)\n"
    assert {path.name: path.read_bytes() for path in (tmp_path / "test").iterdir()} == before
    with pytest.raises(OSError, match="No space left"):
        saving.run(Toy(run(), {}, {}, 7, tmp_path, training=False))


def test_the_best_weights_are_kept(tmp_path: pathlib.Path) -> None:
    """Of three evaluations the second is best: its weights are what "best" evaluates, and what fine-tuning can start from."""
    weights = run().create().params
    of = {step: jax.tree.map(lambda x, step=step: x + step, weights) for step in (3, 4, 5, 6)}
    scores = {}
    for step, hidden in ((3, 2), (4, 0), (5, 2)):
        wrong = tuple((int(row), 0) for row in np.flatnonzero(PROBABILITIES[:, 0, 0].argmax(1) == LABELS)[:hidden])
        if step == 4:  # whoever only looks at the run leaves the worse weights where they are, and a folder without any empty
            for place in (tmp_path, tmp_path / "other"):
                watched = Toy(run(), of[6], {}, 6, place, training=False)
                assert Classification(batch_size=4, best="top1").run(watched)["best"] > scores[3]["top1"]
            assert best.load(Toy(run(), {}, {}, 6, tmp_path))[0] == 3 and not (tmp_path / "other").exists()
        scores[step] = evaluate(Classification(batch_size=4, best="top1"), step=step, directory=tmp_path, params=of[step], broken=wrong)
    assert scores[4]["top1"] > max(scores[3]["top1"], scores[5]["top1"])
    assert [scores[s]["best"] for s in (3, 4, 5)] == [scores[3]["top1"], scores[4]["top1"], scores[4]["top1"]]
    step, kept, _ = best.load(Toy(run(), {}, {}, 6, tmp_path))
    assert step == 4 and [p.name for p in (tmp_path / "best").iterdir() if p.name.isdigit()] == ["00000004"]
    for got, want in zip(jax.tree.leaves(kept), jax.tree.leaves(of[4]), strict=True):
        np.testing.assert_array_equal(got, want)
    assert evaluate(Classification(batch_size=4, weights="best"), step=6, directory=tmp_path, params=of[6])["best_step"] == 4
    read = externals.read(External("params", str(tmp_path / "best")))
    np.testing.assert_array_equal(read["encoder"]["embed"]["kernel"], of[4]["encoder"]["embed"]["kernel"])
    lost = evaluate(Classification(batch_size=4, best="top1"), step=2, directory=tmp_path, params=of[3])
    assert lost["best"] == scores[4]["top1"] and best.load(Toy(run(), {}, {}, 6, tmp_path))[0] == 4


def test_the_best_of_another_measurement_make_room(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Other views, clips or settings measure otherwise: those values cannot be compared. When it runs, and what is not known of old folders, changes nothing."""
    params = run().create().params
    one = Classification(batch_size=4, best="top1")

    def kept(evaluator: Classification, step: int, **fields: Any) -> int:
        evaluate(evaluator, step=step, directory=tmp_path, params=params, **fields)
        return best.load(Toy(run(), {}, {}, 99, tmp_path))[0]

    full, wrong = kept(one, 3), tuple((int(row), 0) for row in np.flatnonzero(PROBABILITIES[:, 0, 0].argmax(1) == LABELS)[:2])
    assert full == 3 and kept(one, 4, broken=wrong) == 3
    assert kept(dataclasses.replace(one, batch_size=6, every="5%", save="logits"), 5, broken=wrong) == 3 and not capsys.readouterr().err
    assert kept(dataclasses.replace(one, clips=VIDEOS - 1), 6, broken=wrong) == 6
    said = capsys.readouterr().err
    assert "holds the best of step 3, top1 " in said and "the weights of step 6, top1 " in said and said.count("\n") == 1
    assert kept(one, 7, broken=wrong) == 7 and "take its place" in capsys.readouterr().err
    assert kept(one, 2) == 7 and not capsys.readouterr().err  # a step ahead is reached again
    for clips in (0, VIDEOS - 1):  # whoever only looks, at the kept step too, is told no value of another measurement
        found = dataclasses.replace(one, clips=clips).run(Toy(run(), params, {}, 7, tmp_path, training=False))
        assert (found["best"] == found["top1"]) is bool(clips)
    best.keep(Toy(run(), params, {}, 3, tmp_path / "old"), 100.0, metric="top1")
    assert evaluate(one, step=8, directory=tmp_path / "old", params=params)["best"] == 100 and not capsys.readouterr().err


def test_mistakes_about_the_best(tmp_path: pathlib.Path) -> None:
    """None kept, unknown names, another measure."""
    with pytest.raises(UserError, match="no evaluator of this run keeps the best weights yet"):
        evaluate(Classification(weights="best"), directory=tmp_path)
    for field in ("weights", "best"):
        with pytest.raises(UserError, match="'loss'"):
            Classification(**{field: "loss"})
    evaluate(Classification(batch_size=4, best="top1"), directory=tmp_path, params=run().create().params)
    with pytest.raises(UserError, match="holds the best by 'top1', and the evaluator asks for 'top5'"):
        evaluate(Classification(batch_size=4, best="top5"), directory=tmp_path, step=9)


def test_a_part_of_the_split() -> None:
    """Four videos, spread over the split."""
    rows = np.arange(4) * VIDEOS // 4
    assert_results(evaluate(Classification(batch_size=4, clips=4)), expected(PROBABILITIES[rows, 0, 0], LABELS[rows]) | {"videos": 4})


@pytest.mark.parametrize("evaluator", [Classification(first=1), attentive.Heads(first=1)], ids=lambda e: type(e).__name__)
def test_mistakes_are_told_before_training(evaluator: Any, tmp_path: pathlib.Path) -> None:
    """No classes, another number of them or another order, even where there would be no result yet."""
    def told(directory: pathlib.Path, /, *, count: int = CLASSES, **fields: Any) -> dict[str, float]:
        assembly = run(count)
        if isinstance(evaluator, attentive.Heads):
            assembly = dataclasses.replace(assembly, objective=types.SimpleNamespace(judge=None, head=assembly.objective.head))
        return evaluator.run(Toy(assembly, {}, {}, 0, directory, fields=tuple(fields.items())))

    assert told(tmp_path) == {}
    with pytest.raises(UserError, match="the index has no labels, so there are no classes to test; index the videos with class folders or --labels=FILE.csv"):
        told(tmp_path, classes=())
    with pytest.raises(UserError, match=r"the head has 4 classes and the index 7 \(a, b, c, d, e, f, ...\); set --config.objective.head.classes=7"):
        told(tmp_path, count=4)
    (tmp_path / "classes.json").write_text('["a", "b", "c", "d", "e", "g", "f"]')
    with pytest.raises(UserError, match="has 'g' as class 5 of 7, the order of the run's head, and the data 'f'"):
        told(tmp_path)


def test_objectives_without_classes_are_refused(tmp_path: pathlib.Path) -> None:
    """One line before training: pretraining has no head, and a softmax over yes-or-no answers says nothing of any."""
    encoder = run().objective.encoder
    for objective, message in ((MAE(encoder, vit.Decoder(width=8, depth=1, heads=2, hidden=8)), "MAE has no head; allowed is an objective with a head of classes"),
                               (Attributes(encoder, heads.Classifier(classes=CLASSES)), "Attributes has a head of attributes; allowed is an objective with a head of classes")):
        with pytest.raises(UserError, match=message):
            Classification(first=1).run(Toy(dataclasses.replace(run(), objective=objective), {}, {}, 0, tmp_path))


def test_results_begin_with_the_first_step() -> None:
    """None before it; videos without a label are a mistake from then on."""
    assert evaluate(Classification(first=1), step=0) == {} and evaluate(Classification(first=1, batch_size=4), step=1)
    with pytest.raises(UserError, match="1 of 11 videos of the split have no label"):
        evaluate(Classification(batch_size=4), unlabelled=3)


@pytest.mark.parametrize(("height", "width", "places"), [(16, 30, ((0, 0), (0, 7), (0, 14))), (25, 16, ((0, 0), (4, 0), (9, 0))), (16, 16, ((0, 0),) * 3)])
def test_three_crops(height: int, width: int, places: tuple[tuple[int, int], ...]) -> None:
    """Start int(j * (long - size) / 2) along the long side of frames whose short side is right already."""
    video = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    for view, (top, left) in enumerate(places):
        crop = ThreeCrop(view=view)(video, size=16, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(crop, video[:, top: top + 16, left: left + 16])
        np.testing.assert_array_equal(crop, ThreeCrop().every(video, size=16)[view])


def test_joined_views_are_the_single_ones(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of real files: every view bit for bit and in order, its label and name, one decode for three crops, also in another process."""
    for i, frames in enumerate((40, 9)):
        (tmp_path / f"{i}.mp4").write_bytes(encode(frames=frames, bf="0"))
    (tmp_path / "labels.csv").write_text("path,label\n0.mp4,a\n1.mp4,b\n")
    index.write(index.build(tmp_path, labels=tmp_path / "labels.csv"), tmp_path / "index.parquet")
    source = sources.VideoClips(index=str(tmp_path / "index.parquet"), split="all", frames=4, size=16, repeats=2)
    views, rng = Views(sampling=clips.DenseView(stride=2, views=2), crop=ThreeCrop()), np.random.default_rng(0)
    single, joined = views.sources(dataclasses.replace(source, repeats=1)), pickle.loads(pickle.dumps(views.joined(source)))
    assert len(single) == 6 and (len(joined), joined.repeats, joined.classes, joined.timeout) == (4, 3, ("a", "b"), source.timeout)
    decoded, before = [], decode.decode
    monkeypatch.setattr(decode, "decode", lambda *args, **kw: decoded.append(args[0]) or before(*args, **kw))
    found = [joined.read(row, rng=rng) for row in range(4)]
    assert len(decoded) == 4
    for row, example in enumerate(found):
        assert {k: (v.shape, v.dtype.name) for k, v in example.items()} == {k: ((3, *f.shape), f.dtype) for k, f in joined.fields.items()}
        assert joined.name(row) == f"{row % 2}.mp4"
        for copy in range(3):
            want = single[row // 2 * 3 + copy].read(row % 2, rng=rng)
            np.testing.assert_array_equal(example["video"][copy], want["video"][0])
            assert example["label"][copy] == want["label"][0] == row % 2
    assert not np.array_equal(found[0]["video"], found[2]["video"])


def test_three_crops_resize_first() -> None:
    """The short side becomes `size`; one view is the first; a fourth of three does not exist."""
    video = np.full((1, 40, 60, 3), 7, np.uint8)
    assert ThreeCrop(view=2)(video, size=20, rng=np.random.default_rng(0)).shape == (1, 20, 20, 3)
    video[:, :, :30] = 200
    assert ThreeCrop(views=1)(video, size=20, rng=np.random.default_rng(0))[0, 5, 5, 0] == 200
    video = np.random.default_rng(0).integers(0, 256, (2, 40, 60, 3), np.uint8)
    np.testing.assert_array_equal(ThreeCrop(view=2, antialias=False)(video, size=20, rng=np.random.default_rng(0)),
                                  transforms.linear(video, width=30, height=20)[:, :, 10:])
    with pytest.raises(UserError, match="view 3 of 3; allowed are 0 to 2"):
        ThreeCrop(view=3)


def test_views_of_a_source_without_sampling_are_refused() -> None:
    """A mixture has none of its own."""
    with pytest.raises(UserError, match="views need a source with `sampling` and `crop`, and NoiseClips has none"):
        Views(sampling=At(views=2), crop=At(views=3)).sources(sources.NoiseClips(frames=4, size=16, length=4))
