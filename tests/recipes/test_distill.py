"""Distillation: the KL by hand, no gradient into the teacher and none of it in a checkpoint, the same views, agreement, resume."""

import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import noise_runs
import numpy as np
import pytest
import substitutes
import test_gpu_plans
import written
from flax import traverse_util
from noise_runs import CLIP, batch, clips_of

import videomae_jax
from videomae_jax import config as configs
from videomae_jax import artefact, externals, footprint, forecast, losses, optim, parallel, plan, supervision
from videomae_jax.assembly import Assembly
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.data import sources
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.evals.agreement import Agreement
from videomae_jax.evals.base import Context
from videomae_jax.mixing import Mixing
from videomae_jax.models import heads, vit
from videomae_jax.objectives.distill import Distill

STUDENT, TEACHER = vit.Encoder(width=16, depth=1, heads=2, hidden=16, **CLIP), vit.Encoder(width=32, depth=1, heads=2, hidden=32, **CLIP)
HEAD = heads.Classifier(classes=3, init_scale=20.0)  # large enough that classes differ
PLAIN = Distill(encoder=STUDENT, head=HEAD, teacher=TEACHER, teacher_head=HEAD, weights="", mixing=Mixing(probability=0.0))
LABELS = (0, 2, -1, 1)  # one clip has none


@dataclasses.dataclass(frozen=True)
class Named(sources.NoiseClips):
    """Noise whose classes have these names; labels are 0 and 1 by turns."""

    classes: tuple[str, ...] = ("even", "odd", "other")


@dataclasses.dataclass(frozen=True)
class Few(Context):
    """A context whose splits are six clips of these classes, as many as the head's."""

    classes: tuple[str, ...] = ("even", "odd", "other")

    def source(self, split: str, /) -> Any:
        """They."""
        return Named(frames=4, size=16, length=6, classes=self.classes)


@functools.cache
def running() -> tuple[Assembly, Any]:
    """The run of PLAIN on data=2, fsdp=2, and its first parameters on the host."""
    run = noise_runs.run_of(PLAIN, mesh=(2, 2, 1), optimizer=configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2, warmup="0", unit=0, shape="constant")))
    return run, jax.device_get(run.create().params)


def log_softmax(x: Any) -> np.ndarray:
    """In float64."""
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_by_hand(temperature: float) -> None:
    """ln 2 between a certain and an even choice of two; in general tau^2 sum p (log p - log q), 0 between equals, its gradient tau (q - p)."""
    sure, even = jnp.array([[40.0, -40.0]]), jnp.zeros((1, 2))
    assert float(supervision.divergence(sure, even, temperature=1.0, weight=jnp.ones(1)).total[0]) == pytest.approx(math.log(2), rel=1e-6)
    p, q = (np.random.default_rng(i).normal(size=(5, 4)).astype(np.float32) for i in (0, 1))
    weight = np.float32([1, 0, 1, 1, 1])
    lp, lq = log_softmax(p / temperature), log_softmax(q / temperature)
    want = temperature**2 * (np.exp(lp) * (lp - lq)).sum(-1) * weight
    term = supervision.divergence(jnp.asarray(p), jnp.asarray(q), temperature=temperature, weight=jnp.asarray(weight))
    np.testing.assert_allclose(term.total, want, rtol=2e-5)
    np.testing.assert_allclose(supervision.divergence(p, p, temperature=temperature, weight=jnp.asarray(weight)).total, 0, atol=1e-6)
    slope = jax.grad(lambda q: supervision.divergence(p, q, temperature=temperature, weight=jnp.asarray(weight)).total.sum())(q)
    np.testing.assert_allclose(slope, temperature * (np.exp(lq) - np.exp(lp)) * weight[:, None], atol=1e-5)


def test_the_loss_is_that_of_both_networks_on_the_same_mixed_clips() -> None:
    """Teacher and student get the erased and mixed pixels; a clip without a label counts for the KL alone."""
    objective = dataclasses.replace(PLAIN, mixing=Mixing(cutmix=0.0), erasing=Erasing(probability=1.0), matching=0.25, labels=0.5, temperature=2.0, smoothing=0.0)
    run, params = running()
    extra = run.seen({})

    @jax.jit
    def all_of(params: Any, extra: Any, rows: Any, rng: Any) -> Any:
        ready = objective.prepare(rows, rng, step=jnp.int32(0), train=True)
        out = objective.loss(params, extra, ready, rng, step=jnp.int32(0), train=True)
        return ready, out, objective.predict(params, extra, ready, rng).logits, objective.teach(extra, ready)

    rows = batch(LABELS)
    ready, out, student, teacher = jax.device_get(all_of(params, extra, rows, jax.random.key(3)))
    assert ready["video"].dtype == np.float32 and np.abs(ready["video"] - rows["video"] / 255).max() > 0.1
    lp, lq = log_softmax(teacher / 2), log_softmax(student / 2)
    kl = 4 * (np.exp(lp) * (lp - lq)).sum(-1).mean()
    ce = -(ready["target"] * log_softmax(student)).sum(-1)[[0, 3]].mean()  # rows 1 and 2 are mixed with each other, and 2 has no label
    np.testing.assert_array_equal(ready["weight"], [1, 0, 0, 1])
    assert float(losses.value(out.terms, denominators=losses.denominators(out.terms))) == pytest.approx(0.25 * kl + 0.5 * ce, rel=1e-5)
    assert kl > 0.01
    same = 100 * np.mean(student.argmax(-1) == teacher.argmax(-1))
    assert float(np.sum(out.metrics["agreement"].total) / np.sum(out.metrics["agreement"].weight)) == pytest.approx(same)


def test_the_teacher_stays_as_it_is(tmp_path: pathlib.Path) -> None:
    """Split over fsdp, in bfloat16, no leaf of the state or of a checkpoint, the same bits after steps; a restored run goes on bit for bit."""
    run, params = running()
    leaves = jax.tree.leaves(run.frozen["teacher"])
    assert {x.dtype for x in leaves} == {jnp.dtype("bfloat16")}
    assert any("fsdp" in str(x.sharding.spec) for x in leaves)
    before = jax.device_get(run.frozen)
    state, step = run.create(), run.step()
    assert state.params.keys() == {"encoder", "head"} and state.params["encoder"]["embed"]["kernel"].shape[-1] == 16
    rows = parallel.to_device(batch(LABELS), mesh=run.mesh)
    saver, losses_seen = Checkpointer(tmp_path), []
    for number in range(1, 4):
        state, metrics = step(state, rows)
        losses_seen.append(float(metrics["loss"]))
        if number == 1:
            saver.save(1, state, meta={"step": 1})
            saver.wait()
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, jax.device_get(state.params))
    assert all(jax.tree.leaves(changed)) and losses_seen[-1] < losses_seen[0]
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(run.frozen)), strict=True):
        np.testing.assert_array_equal(old, new)
    saved = {path for item in ("params", "opt") for path in traverse_util.flatten_dict(saver.load(1, item=item), sep="/")}
    assert not any("teacher" in path or "frozen" in path for path in saved)
    other = saver.restore(1, run.abstract, rng=run.rng()).state
    saver.close()
    for _ in range(2):
        other, _ = step(other, rows)
    for got, want in zip(jax.tree.leaves(other.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(got, want)


def test_no_gradient_reaches_the_teacher() -> None:
    """Not even when somebody asks for it."""
    run, params = running()
    rows = PLAIN.prepare(batch(LABELS), jax.random.key(0), step=jnp.int32(0), train=False)

    def loss(extra: Any) -> Any:
        out = PLAIN.loss(params, extra, rows, jax.random.key(0), step=jnp.int32(0), train=True)
        return losses.value(out.terms, denominators=losses.denominators(out.terms))
    frozen = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), jax.device_get(run.frozen))
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(jax.jit(jax.grad(loss))({"frozen": frozen})))


def test_the_teacher_has_no_backward_pass() -> None:
    """Two operations a multiply-add instead of six; four for the student's embedding."""
    objective = configs.build(configs.load("configs/distill/k710_s.py").objective)
    taught, embedding = objective.cost(), 1568 * 1536 * 384
    assert taught.train_flops == 6 * objective.network.cost().macs - 2 * embedding + 2 * objective.taught_by.cost().macs
    assert taught.frozen == objective.taught_by.cost().macs > objective.network.cost().macs


def test_weights_of_both(tmp_path: pathlib.Path) -> None:
    """A fine-tuned run becomes the teacher, head included; the student starts from its own."""
    def saved(name: str, encoder: vit.Encoder, value: float) -> str:
        tree = parallel.unbox(supervision.Network(encoder, HEAD).init(jax.random.key(0)))
        np.savez(tmp_path / name, **{k: np.full(v.shape, value, np.float32) for k, v in traverse_util.flatten_dict(tree, sep="/").items()})
        return str(tmp_path / name)
    objective = dataclasses.replace(PLAIN, weights=saved("t.npz", TEACHER, 0.25), pretrained=saved("s.npz", STUDENT, 0.5))
    run, params = running()
    frozen = externals.load(run.frozen, objective.externals(), root="frozen")
    assert {float(x) for leaf in jax.tree.leaves(frozen) for x in np.unique(np.asarray(leaf, np.float32))} == {0.25}
    assert jax.tree.leaves(frozen)[0].dtype == jnp.bfloat16
    loaded = externals.load(jax.tree.map(jnp.asarray, params), objective.externals(), root="params")
    assert {float(x) for leaf in jax.tree.leaves(loaded) for x in np.unique(leaf)} == {0.5}


def test_a_teacher_has_the_classes_of_the_data(tmp_path: pathlib.Path) -> None:
    """In their order, "even" and "odd" here: a student of another would have the wrong names, and no label of its loss tells."""
    head = heads.Classifier(classes=2)
    tree = parallel.unbox(supervision.Network(TEACHER, head).init(jax.random.key(0)))
    np.savez(tmp_path / "t.npz", **traverse_util.flatten_dict(jax.device_get(tree), sep="/"))
    objective = dataclasses.replace(PLAIN, head=head, teacher_head=head, weights=str(tmp_path / "t.npz"))
    optimizer = configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2))
    (tmp_path / "classes.json").write_text('["odd", "even"]')
    with pytest.raises(UserError, match="t.npz has 'odd' as class 0 of 2, and the data 'even'"):
        noise_runs.run_of(objective, optimizer=optimizer).step()
    (tmp_path / "classes.json").write_text('["Even", "odd"]')
    assert noise_runs.run_of(objective, optimizer=optimizer).frozen["teacher"].keys() == tree.keys()


def test_data_of_other_classes_have_no_labels() -> None:
    """An accuracy by them would be one of unrelated names, and a loss would teach them: the first has no weight, the second is refused before a step."""
    def made(classes: tuple[str, ...], **fields: Any) -> Any:
        run = noise_runs.run_of(dataclasses.replace(PLAIN, **fields), optimizer=configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2)))
        return dataclasses.replace(run, source=Named(frames=4, size=16, length=16, classes=classes))

    def first(classes: tuple[str, ...], **fields: Any) -> dict[str, Any]:
        run = made(classes, **fields)
        step, rows = run.step(), batch((0, 1, 0, 1))
        rows["label"] = np.asarray(jax.jit(PLAIN.teach)(run.seen({}), rows).argmax(-1), np.int32)
        return step(run.create(), parallel.to_device(rows, mesh=run.mesh))[1]

    counted, other = first(("even", "odd", "other")), first(("even", "odd"))
    assert float(counted["teacher_top1"]) == 100 and float(other["top1"]) == float(other["teacher_top1"]) == 0
    assert float(other["loss"]) == float(counted["loss"]) and float(other["agreement"]) == float(counted["agreement"])
    for classes in (("even", "odd"), tuple("abcdefg")):
        with pytest.raises(UserError, match=rf"the head has 3 classes and the data {len(classes)} \({', '.join(classes[:6])}.*objective.labels=0, which is 0.5"):
            first(classes, labels=0.5)
        with pytest.raises(UserError, match="the head has 3 classes"):  # --dry-run and plans compile alone
            made(classes, labels=0.5).compile()
    assert math.isfinite(float(first(("even", "odd", "other"), labels=0.5)["loss"])) and math.isfinite(float(first((), labels=0.5)["loss"]))


def test_a_student_goes_without_its_teacher(tmp_path: pathlib.Path) -> None:
    """Its run opens, answers and is exported where the teacher's weights are gone, and carries none of them."""
    run = written.write(tmp_path / "run", dataclasses.replace(PLAIN, weights=str(tmp_path / "gone")), classes=written.CLASSES)
    model = videomae_jax.load(run)
    assert model.extra == {} and model.classify(batch((0, 1))["video"]).probabilities.shape == (2, 3)
    longer = videomae_jax.load(run, frames=8, size=24)
    assert longer.classify(np.zeros((1, 8, 24, 24, 3), np.uint8)).probabilities.shape == (1, 3)
    coarse = dataclasses.replace(PLAIN, teacher=dataclasses.replace(TEACHER, patch=(2, 16, 16)), weights=str(tmp_path / "gone"))
    coarse = videomae_jax.load(written.write(tmp_path / "coarse", coarse, classes=written.CLASSES), size=24)  # no multiple of the teacher's patch
    assert coarse.classify(np.zeros((1, 4, 24, 24, 3), np.uint8)).probabilities.shape == (1, 3)
    artefact.write(model, tmp_path / "out", what="classes")
    size = sum(x.nbytes for x in jax.tree.leaves(model.params))
    assert size < (tmp_path / "out" / "weights.npz").stat().st_size < size + 20_000


def test_agreement(tmp_path: pathlib.Path) -> None:
    """A student that is the teacher agrees in all clips; another by counting."""
    run, params = running()
    context = Few(run, jax.device_put(params), run.seen({}), 1, tmp_path)
    found = Agreement(batch_size=4).run(context)
    rows = batch((0, 1, 0, 1, 0, 1)) | {"video": clips_of(context.source("val"))}
    student = jax.jit(PLAIN.predict)(params, {}, rows, jax.random.key(0)).logits
    teacher = jax.jit(PLAIN.teach)(run.seen({}), rows)
    lp, lq = log_softmax(teacher), log_softmax(student)
    assert found["agreement"] == pytest.approx(100 * np.mean(np.argmax(student, -1) == np.argmax(teacher, -1)))
    assert found["divergence"] == pytest.approx((np.exp(lp) * (lp - lq)).sum(-1).mean(), rel=1e-4)
    assert found["student_top1"] == pytest.approx(100 * np.mean(np.argmax(student, -1) == np.arange(6) % 2))
    assert found["teacher_top1"] == pytest.approx(100 * np.mean(np.argmax(teacher, -1) == np.arange(6) % 2))


def test_networks_that_have_diverged_agree_about_nothing(tmp_path: pathlib.Path) -> None:
    """The largest of scores without a number would be the first class, of both."""
    run, params = running()
    params, extra = (jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tree) for tree in (jax.device_put(params), run.seen({})))
    assert Agreement(batch_size=4).run(Few(run, params, extra, 1, tmp_path))["agreement"] == 0
    out = jax.jit(functools.partial(PLAIN.loss, step=jnp.int32(0), train=False))(params, extra, batch((0, 1, 2)), jax.random.key(0))
    assert not out.metrics["agreement"].total.any() and float(out.metrics["agreement"].weight.sum()) == 3


def test_every_distillation_tells_the_agreement() -> None:
    """With the teacher, on held-out clips: the loss alone is of mixed ones that were trained on."""
    found = {path.name: config for path in sorted((noise_runs.ROOT / "configs").rglob("*.py")) if path.name not in ("base.py", "__init__.py")
             and (config := configs.load(str(path))).objective[configs.SYMBOL].endswith(".Distill")}
    assert {"k710_s.py", "k710_b.py", "shapes.py"} <= found.keys()
    assert not [name for name, config in found.items() if not any(isinstance(configs.build(node), Agreement) for node in config.evaluators.values())]


def test_agreement_without_substitutes_and_padding(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of six clips can be read; what is shown besides counts nowhere."""
    run, params = running()
    context = Few(run, jax.device_put(params), run.seen({}), 1, tmp_path)
    one, other = substitutes.outcomes(monkeypatch, lambda: Agreement(batch_size=4).run(context))
    assert one == pytest.approx(other, rel=1e-6) and all(one[k] / 20 == pytest.approx(round(one[k] / 20)) for k in ("agreement", "student_top1", "teacher_top1"))


def test_agreement_about_labels_of_the_head_alone(tmp_path: pathlib.Path) -> None:
    """Those of other classes, or of the same in another order, would be accuracies of unrelated names; clips without classes have none."""
    run, params = running()
    context = Few(run, jax.device_put(params), run.seen({}), 1, tmp_path)
    assert set(Agreement(batch_size=4).run(dataclasses.replace(context, classes=("even", "odd")))) == {"agreement", "divergence"}
    (tmp_path / "classes.json").write_text('["other", "odd", "even"]')
    with pytest.raises(UserError, match="classes.json has 'other' as class 0 of 3, the order of the run's head, and the data 'even'"):
        Agreement(batch_size=4).run(context)
    assert Agreement(batch_size=4).run(dataclasses.replace(context, classes=()))["agreement"] >= 0


def test_mistakes() -> None:
    """Other classes, other clips, a temperature of nothing."""
    for change, message in (({"teacher_head": heads.Classifier(classes=4)}, "has 3 classes and the teacher's 4"), ({"temperature": 0.0}, "temperature 0.0"),
                            ({"labels": -1.0}, "labels -1.0"), ({"matching": 0.0}, "not both 0"),
                            ({"teacher": dataclasses.replace(TEACHER, frames=8)}, "both see the same clip"), ({"start": "body"}, "start 'body'")):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(PLAIN, **change)


def test_a_teacher_counts_a_third_in_plans() -> None:
    """It runs forward alone, on its own tokens. By hand: layers x width x tokens."""
    student, teacher, run = 12 * 384 * 1568, 40 * 1408 * 2048, test_gpu_plans.of("distill/k710_s")
    assert footprint.widths(run) == pytest.approx(student + teacher / 3) and not footprint.pretrains(run)
    assert footprint.widths(run, recompute=1.0) == pytest.approx(student * 4 / 3 + teacher / 3)


def test_distillation_is_as_slow_as_the_traffic_of_its_teacher() -> None:
    """Three quarters of the peak would be more than a forward pass of ViT-g reaches; nobody measured one, and the label does not say so."""
    result = forecast.make(forecast.without_index(configs.load("configs/distill/k710_s.py"), videos=240_000), "h100x1", fixed=frozenset())
    assert 0.35 < result["predicted_mfu"] < 0.55 and result["label"] == plan.LABEL != plan.MEASURED
