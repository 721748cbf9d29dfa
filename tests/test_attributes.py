"""Yes-or-no labels: what the index says, the loss by its formula and by hand, accuracy and area under the curve by counting pairs."""

import dataclasses
import functools
import json
import math
import pathlib
import types
from typing import Any

import jax
import numpy as np
import pytest
import substitutes

from videomae_jax import config as configs
from videomae_jax import head_rows, losses, parallel, run_directory
from videomae_jax.assembly import assemble
from videomae_jax.data import attributes as data
from videomae_jax.data import clips, index, mixture, planes, sources, synthetic, transforms
from videomae_jax.errors import UserError
from videomae_jax.evals import attributes as evals
from videomae_jax.evals.base import Context
from videomae_jax.mixing import Mixing
from videomae_jax.models import heads, vit
from videomae_jax.objectives.attributes import Attributes
from videomae_jax.objectives.classify import Classify
from videomae_jax.objectives.mae import MAE
from videomae_jax.transfer import transfer

COUNT, ROWS = 3, 4
ENCODER = vit.Encoder(width=16, depth=1, heads=2, hidden=32, patch=(2, 8, 8), frames=4, size=16)
OBJECTIVE = Attributes(encoder=ENCODER, head=heads.Classifier(classes=COUNT, init_scale=50.0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Four videos; hat and smile in the words that files have, one column that says something else."""
    directory = tmp_path_factory.mktemp("answers")
    for name in "abcd":
        (directory / f"{name}.mp4").write_bytes(synthetic.encode(np.full((6, 32, 32, 3), 90, np.uint8), fps=10))
    (directory / "labels.csv").write_text("path,label,split,hat,smile,mood\na.mp4,x,train,1,No,1\nb.mp4,x,train,0,TRUE,2\nc.mp4,x,train,,yes,0\nd.mp4,x,train,1.0,false,1\n")
    index.write(index.build(directory, labels=directory / "labels.csv"), directory / "index.parquet")
    return directory


def source(folder: pathlib.Path, *names: str) -> data.AttributeClips:
    """Clips of the folder with these attributes, two copies of each."""
    return data.AttributeClips(index=str(folder / "index.parquet"), attributes=names, frames=2, size=16, repeats=2, sampling=clips.DenseCentre(stride=1),
                               crop=transforms.CentreCrop())


def test_answers_of_the_index(folder: pathlib.Path) -> None:
    """1, 0 and -1 in the order of the names, the same for both copies; the rest is what VideoClips gives."""
    found = [source(folder, "smile", "hat").read(row, rng=np.random.default_rng(0)) for row in range(4)]
    assert [x["attributes"].tolist() for x in found] == [[[0, 1]] * 2, [[1, 0]] * 2, [[1, -1]] * 2, [[0, 1]] * 2]
    field = source(folder, "smile", "hat").fields["attributes"]
    assert (field.shape, field.dtype) == ((2,), "int32") and found[0]["attributes"].dtype == np.int32 and found[0]["video"].shape == (2, 2, 16, 16, 3)


@pytest.mark.parametrize(("names", "message"), [
    (("hat", "beard"), "has no column 'beard' of an attribute; it has .*smile"), (("mood",), r"column 'mood' of index .* says '2' of b.mp4; allowed are 1, "),
    ((), r"attributes \(none\)"), (("hat", "hat"), "attributes hat, hat; allowed are one column of the index and more, each once")])
def test_answers_that_are_none(names: tuple[str, ...], message: str, folder: pathlib.Path) -> None:
    """Columns that are missing, doubled, or say something else."""
    with pytest.raises(UserError, match=message):
        [source(folder, *names).read(row, rng=np.random.default_rng(0)) for row in range(4)]


def test_binary_cross_entropy_by_formula_and_at_the_ends() -> None:
    """-t log s - (1 - t) log(1 - s) in float64; logits of +-100 stay finite, where the formula would take log 0."""
    rng = np.random.default_rng(0)
    x, t, w = rng.standard_normal((5, 7)).astype(np.float32) * 3, rng.random((5, 7)).astype(np.float32), rng.integers(0, 2, (5, 7)).astype(np.float32)
    s = 1 / (1 + np.exp(-x.astype(np.float64)))
    term = losses.binary_cross_entropy(x, t, weight=w)
    np.testing.assert_allclose(term.total, (-t * np.log(s) - (1 - t) * np.log(1 - s)) * w, rtol=2e-5, atol=1e-6)  # float32 of differences of order 10
    assert np.array_equal(term.weight, w)
    ends = losses.binary_cross_entropy(np.float32([100, -100, 100, -100]), np.float32([1, 0, 0, 1]), weight=np.ones(4, np.float32))
    np.testing.assert_allclose(ends.total, [0, 0, 100, 100], atol=1e-6)


def batch() -> dict[str, Any]:
    """Noise, of which the last row is padding; an answer of the second row is unknown."""
    video = np.random.default_rng(3).integers(0, 256, (ROWS, 4, 16, 16, 3), np.uint8)
    answers = np.array([[1, 0, 1], [0, -1, 0], [1, 1, 0], [0, 0, 0]], np.int32)
    return {"video": video, "attributes": answers, "label": np.zeros(ROWS, np.int32), "valid": np.arange(ROWS) < ROWS - 1,
            "key": np.stack([np.arange(ROWS), np.zeros(ROWS)], 1).astype(np.uint32)}


@functools.cache
def computed() -> tuple[Any, Any]:
    """The output of the loss and the logits, on one set of parameters."""
    params = parallel.unbox(OBJECTIVE.init(jax.random.key(0), batch()))

    def both(params: Any, rows: Any) -> Any:
        return OBJECTIVE.loss(params, {}, rows, jax.random.key(1), step=0, train=True), OBJECTIVE.predict(params, {}, rows, jax.random.key(1)).logits
    return jax.device_get(jax.jit(both)(params, batch()))


def test_unknown_answers_and_padding_count_nothing() -> None:
    """The mean over the eight known answers of three rows, from the logits in float64."""
    out, logits = computed()
    x, rows = logits.astype(np.float64), [(0, 0, 1), (0, 1, 0), (0, 2, 1), (1, 0, 0), (1, 2, 0), (2, 0, 1), (2, 1, 1), (2, 2, 0)]
    want = np.mean([math.log1p(math.exp(-x[b, a] if t else x[b, a])) for b, a, t in rows])
    term, right = out.terms["attributes"], out.metrics["accuracy"]
    assert float(term.total.sum() / term.weight.sum()) == pytest.approx(want, rel=1e-5) and float(term.weight.sum()) == 8
    assert float(right.total.sum() / right.weight.sum()) == pytest.approx(100 * np.mean([(x[b, a] > 0) == t for b, a, t in rows]))
    assert np.ptp(logits) > 0.1, "logits that are all alike would show nothing"


def test_mistakes_are_refused() -> None:
    """A head of another size, mixed clips, smoothed labels."""
    with pytest.raises(UserError, match="the head has 3 classes and a clip 2 attributes; set --config.objective.head.classes=2"):
        OBJECTIVE.labelled(batch() | {"attributes": np.zeros((ROWS, 2), np.int32)})
    for wrong in ({"mixing": Mixing()}, {"smoothing": 0.1}):
        with pytest.raises(UserError, match="attributes allow 0 and 0"):
            Attributes(encoder=ENCODER, head=heads.Classifier(classes=3), **wrong)


def test_scores_by_counting_pairs() -> None:
    """Accuracy at 0, the share of the frequent answer and the chance that a yes lies above a no, half for equals; unknown answers are left out."""
    rng = np.random.default_rng(0)
    logits, answers = np.round(rng.standard_normal((40, 4)), 1), rng.integers(-1, 2, (40, 4))
    answers[:, 3] = 1  # one kind of answer: no area under the curve of its own

    def area(x: np.ndarray, y: np.ndarray) -> float:
        return 100 * float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a in x[y == 1] for b in x[y == 0]]))

    columns = [(x[y >= 0], y[y >= 0]) for x, y in zip(logits.T, answers.T, strict=True)]
    right, known = [(x > 0) == (y == 1) for x, y in columns], answers >= 0
    want = {"accuracy": 100 * np.concatenate(right).mean(), "accuracy_mean": 100 * np.mean([r.mean() for r in right]),
            "frequent": 100 * sum(max((y == 1).sum(), (y == 0).sum()) for _, y in columns) / known.sum(),
            "auc": area(logits[known], answers[known]), "auc_mean": np.mean([area(x, y) for x, y in columns[:3]])}
    assert evals.scores(logits, answers) == pytest.approx(want) and want["auc"] != pytest.approx(want["auc_mean"], abs=0.1)
    assert all(map(math.isnan, evals.scores(logits, -np.ones_like(answers)).values()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_wrong(value: float) -> None:
    """A no would be right by any comparison, of which most answers are one; the other attribute counts as before."""
    answers = np.array([[0, 1], [0, 0], [1, 1], [0, 0]])
    found = evals.scores(np.array([[value, 3.0], [value, -3.0], [value, 3.0], [value, -3.0]]), answers)
    assert found == pytest.approx({"accuracy": 50, "accuracy_mean": 50, "frequent": 62.5, "auc": 400 / 15, "auc_mean": 50})
    params = jax.tree.map(lambda x: np.full_like(x, np.nan), parallel.unbox(OBJECTIVE.init(jax.random.key(0), batch())))
    out = OBJECTIVE.loss(params, {}, batch(), jax.random.key(1), step=0, train=False)
    assert float(out.metrics["accuracy"].total.sum()) == 0


def test_evaluator_sees_every_clip_of_the_split_once(folder: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four clips in batches of three: the scores of the logits of each clip by itself; without one that cannot be read, whatever stands in for it."""
    config = configs.load("configs/tiny.py")
    config.unlock()
    config.objective = configs.plain(dataclasses.replace(OBJECTIVE, head=heads.Classifier(classes=2, init_scale=50.0)))
    config.data, config.eval_data = configs.plain(dataclasses.replace(source(folder, "hat", "smile"), frames=4)), {"repeats": 1}
    run = assemble(config, devices=jax.devices()[:1])
    state, rows = run.create(), []
    clip = dataclasses.replace(configs.build(config.data), repeats=1)
    for row in range(4):
        rows.append({k: v[0] for k, v in clip.read(row, rng=np.random.default_rng(0)).items()} | {"key": np.array([row, 0], np.uint32), "valid": np.True_})
    rows = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
    logits = np.asarray(jax.jit(lambda p, b: run.objective.predict(p, {}, b, jax.random.key(0)).logits)(state.params, rows))
    found = evals.AttributeAccuracy(split="train", batch_size=3).run(Context(run, state.params, {}, 0, tmp_path))
    assert found == pytest.approx(evals.scores(logits, rows["attributes"])) and math.isfinite(found["auc_mean"])
    others = evals.scores(np.delete(logits, 2, 0), np.delete(rows["attributes"], 2, 0))
    for found in substitutes.outcomes(monkeypatch, lambda: evals.AttributeAccuracy(split="train", batch_size=3).run(Context(run, state.params, {}, 0, tmp_path))):
        assert found == pytest.approx(others, nan_ok=True)


@pytest.mark.parametrize("told", [True, False])
def test_a_head_keeps_its_attributes(folder: pathlib.Path, tmp_path: pathlib.Path, told: bool) -> None:
    """Their names lie beside the weights: who goes on with the head, takes it over or scores it asks for the same ones in the same order.

    Where a run is of before they were written there, its config tells them.
    """
    def made(*names: str, **fields: Any) -> Any:
        config = configs.load("configs/tiny.py")
        config.unlock()
        config.objective = configs.plain(dataclasses.replace(OBJECTIVE, head=heads.Classifier(classes=2), **fields))
        config.data, config.eval_data = configs.plain(dataclasses.replace(source(folder, *names), frames=4)), {"repeats": 1}
        return assemble(config, devices=jax.devices()[:1])

    def claim(*names: str) -> None:
        run_directory.claim(made(*names), tmp_path / "run", extend=False, fork=True, say=lambda line: None)
        assert json.loads((tmp_path / "run" / "classes.json").read_text()) == list(names)
        if not told:
            (tmp_path / "run" / "classes.json").unlink()

    claim("smile", "hat")
    (tmp_path / "run" / "summary.json").touch()  # it has saved something
    claim("smile", "hat")
    with pytest.raises(UserError, match="has 'smile' as class 0 of 2, the order of the run's head, and the data 'hat'"):
        claim("hat", "smile")
    with pytest.raises(UserError, match="run has 'smile' as class 0 of 2, and the data 'hat': it would answer with wrong names"):
        made("hat", "smile", pretrained=str(tmp_path / "run"), start="model").create()
    with pytest.raises(UserError, match="run holds no checkpoint"):  # only weights are missing
        made("smile", "hat", pretrained=str(tmp_path / "run"), start="model").create()
    for names, message in ((("hat", "smile"), "has 'smile' as class 0 of 2, the order of the run's head, and the data 'hat'"),
                           (("smile",), r"the head has 2 classes and a clip 1 attributes \(smile\); allowed in --config.data.attributes are those of the head")):
        with pytest.raises(UserError, match=message):
            evals.AttributeAccuracy(split="train").run(Context(made(*names), {}, {}, 0, tmp_path / "run"))


def test_attributes_of_a_run_on_a_mixture(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Those of the parts that it has; a config of classes, or of another program, tells none."""
    for other in ({"model_type": "videomae"}, {"data": "k400"}, {"data": {"parts": "faces"}}, {"data": {"parts": {"a": 1, "b": {"weight": 1.0}}, "missing": "a"}}):
        (tmp_path / "config.json").write_text(json.dumps(other))
        assert head_rows.own(tmp_path, kind="attributes") == ()
    parts = {name: configs.spec(mixture.Part, source=source(folder, *names)) for name, names in (("a", ("hat",)), ("b", ("smile", "hat")))}
    data = configs.spec(mixture.Concat, parts=parts, missing=("a",))
    assert sources.names(configs.build(data), "attributes") == ("smile", "hat")
    (tmp_path / "config.json").write_text(configs.to_json(configs.completed({"data": data})))
    assert head_rows.own(tmp_path, kind="attributes") == ("smile", "hat") and head_rows.own(tmp_path) == ()
    with pytest.raises(UserError, match=r"config.json has 2 names, and the head 3 classes; allowed is a name for each of them"):
        head_rows.own(tmp_path, kind="attributes", head=3)


def test_the_evaluator_refuses_other_heads_and_data(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """One line before training, where the program would fail amid its compilation."""
    def evaluated(objective: Any, data: Any) -> None:
        assembly = types.SimpleNamespace(objective=objective, config=types.SimpleNamespace(data=configs.plain(data), eval_data={}))
        evals.AttributeAccuracy(split="train").run(Context(assembly, {}, {}, 0, tmp_path))

    attributes, noise = source(folder, "smile", "hat", "hat2"), sources.NoiseClips(frames=4, size=16)
    for objective, data, message in ((MAE(ENCODER, vit.Decoder(width=8, depth=1, heads=2, hidden=8)), attributes, "MAE has no head; allowed is an objective with a head of attributes"),
                                     (Classify(ENCODER, OBJECTIVE.head), attributes, "Classify has a head of classes; allowed is an objective with a head of attributes"),
                                     (OBJECTIVE, noise, "the clips of NoiseClips have no attributes; allowed are data that have those of the head")):
        with pytest.raises(UserError, match=message):
            evaluated(objective, data)


def test_names_of_attributes_are_found_through_what_holds_their_source(folder: pathlib.Path) -> None:
    """Clips that the devices cut, and mixtures, whose parts have to agree about their order; other sources have none."""
    one, other = source(folder, "smile", "hat"), source(folder, "hat", "smile")
    mixed = mixture.Concat({"a": mixture.Part(one), "b": mixture.Part(one)})
    for found in (one, planes.PlaneClips(one), mixed, planes.shipped(mixed)):
        assert sources.names(found, "attributes") == ("smile", "hat")
    assert sources.names(sources.NoiseClips(frames=4, size=16), "attributes") == () and sources.names(mixed, "classes") == ("x",)
    with pytest.raises(UserError, match=r"attributes of source 'b' are \('hat', 'smile'\), those of 'a' \('smile', 'hat'\); allowed is that they agree"):
        mixture.Concat({"a": mixture.Part(one), "b": mixture.Part(other)})


def test_the_norm_of_pretraining_becomes_the_heads() -> None:
    """All of the encoder, its last norm as the norm of the head, a fresh linear layer; decoder and critic are left aside."""
    run = dataclasses.replace(OBJECTIVE, pretrained="runs/x")
    shapes = jax.eval_shape(lambda: parallel.unbox(run.init(jax.random.key(0), batch())))
    rng = np.random.default_rng(0)
    target, encoder = (jax.tree.map(lambda x: rng.standard_normal(x.shape), tree) for tree in (shapes, shapes["encoder"]))
    norm = {"scale": np.full(16, 7.0), "bias": np.full(16, 5.0)}
    source = {"encoder": encoder | {"norm": norm}, "decoder": {"norm": {"scale": np.ones(3)}}, "critic": {"fc1": {"kernel": np.ones(3)}}}
    (external,) = run.externals()
    found = transfer(target, source, rename=external.rename, fresh=external.fresh, ignore=external.ignore)
    assert np.all(found["head"]["norm"]["scale"] == 7) and np.all(found["head"]["norm"]["bias"] == 5)
    assert np.array_equal(found["head"]["linear"]["kernel"], target["head"]["linear"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, found["encoder"], encoder)
    assert OBJECTIVE.externals() == () and dataclasses.replace(run, start="features").externals()[0].rename == ()
