"""Fine-tuning: the head and the loss by hand, what trains, where weights come from, V2's layer decay, the published tables."""

import dataclasses
import functools
import json
import math
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from videomae_jax import config as configs
from videomae_jax import card, externals, losses, optim, parallel
from videomae_jax import train as loop
from videomae_jax.assembly import assemble
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.convert import videomae
from videomae_jax.data import sources
from videomae_jax.erasing import Erasing
from videomae_jax.errors import UserError
from videomae_jax.mixing import Mixing
from videomae_jax.models import heads, probing, videoprism, vit
from videomae_jax.objectives.classify import Classify
from videomae_jax.objectives.mae import MAE
from videomae_jax.objectives.probe import Probe
from videomae_jax.stopping import Stop

ROOT = pathlib.Path(__file__).resolve().parents[1]
ENCODER = vit.Encoder(width=16, depth=2, heads=2, hidden=32, patch=(2, 8, 8), frames=4, size=16)
CLASSES = 3
PLAIN = Classify(encoder=ENCODER, head=heads.Classifier(classes=CLASSES, init_scale=1.0), mixing=Mixing(probability=0.0), smoothing=0.0)
PRETRAINING = MAE(encoder=ENCODER, decoder=vit.Decoder(width=16, depth=1, heads=2, hidden=32))


@functools.cache
def params() -> Any:
    """Parameters of PLAIN."""
    return parallel.unbox(jax.jit(lambda key: PLAIN.init(key, {}))(jax.random.key(0)))


def batch(rows: int = 4, *, labels: tuple[int, ...] = (0, 2, 1, 2)) -> dict[str, jax.Array]:
    """Random clips."""
    video = np.random.default_rng(1).integers(0, 256, (rows, 4, 16, 16, 3), np.uint8)
    key = np.stack([np.arange(rows), np.zeros(rows)], -1).astype(np.uint32)
    return {"video": jnp.asarray(video), "label": jnp.asarray(labels, jnp.int32), "key": jnp.asarray(key), "valid": jnp.ones(rows, bool)}


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def evaluated(objective: Classify, params: Any, batch: Any, rng: jax.Array, *, train: bool) -> Any:
    """(prepared batch, output of the loss, logits of `predict` for the prepared batch)."""
    ready = objective.prepare(batch, jax.random.fold_in(rng, 1), step=jnp.int32(0), train=train)
    return ready, objective.loss(params, {}, ready, rng, step=jnp.int32(0), train=train), objective.predict(params, {}, ready, rng).logits


def loss_of(out: Any) -> float:
    """The loss of an output."""
    return float(losses.value(out.terms, denominators=losses.denominators(out.terms)))


# -- head -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_head_by_hand(eps: float) -> None:
    """Linear(LN(mean of tokens)) in float64; the other order, the mean of normed tokens, is something else."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(3, 5, 8)) * rng.uniform(0.2, 3, (3, 5, 1)) + 1
    weights = {"norm": {"scale": rng.normal(size=8), "bias": rng.normal(size=8)}, "linear": {"kernel": rng.normal(size=(8, 4)), "bias": rng.normal(size=4)}}
    out = heads.Classifier(classes=4, **({} if eps == 1e-6 else {"eps": eps})).apply({"params": jax.tree.map(jnp.float32, weights)}, jnp.float32(tokens))

    def norm(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weights["norm"]["scale"] + weights["norm"]["bias"]

    want = norm(tokens.mean(1)) @ weights["linear"]["kernel"] + weights["linear"]["bias"]
    np.testing.assert_allclose(out.logits, want, atol=1e-5)  # float32 of values near 10
    np.testing.assert_allclose(out.pooled, norm(tokens.mean(1)), atol=1e-5)
    assert np.abs(norm(tokens).mean(1) - out.pooled).max() > 0.1


def test_head_starts_small() -> None:
    """N(0, .02) times the scale, bias 0, norm 1 and 0; scale 0 makes all logits equal."""
    made = parallel.unbox(heads.Classifier(classes=500).init(jax.random.key(0), jnp.zeros((1, 1, 64)))["params"])
    kernel = np.asarray(made["linear"]["kernel"])
    assert kernel.shape == (64, 500) and abs(kernel.std() / 2e-5 - 1) < 0.02 and abs(kernel.mean()) < 1e-6
    assert not made["linear"]["bias"].any() and (made["norm"]["scale"] == 1).all() and not made["norm"]["bias"].any()


def test_dropout_has_a_key_for_every_row() -> None:
    """Kept values grow by 1 / (1 - rate); a row's draw follows its key, not its place; without keys nothing happens."""
    keys, x = jax.random.split(jax.random.key(0), 6), jnp.ones((6, 400))
    dropped = np.asarray(heads.drop(x, keys, rate=0.75))
    assert set(np.unique(dropped)) == {0, 4} and abs((dropped > 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 2400)
    assert not np.array_equal(dropped[0], dropped[1])
    np.testing.assert_array_equal(np.asarray(heads.drop(x, keys[::-1], rate=0.75)), dropped[::-1])
    assert heads.drop(x, None, rate=0.75) is x and heads.drop(x, keys, rate=0.0) is x


def test_ranks() -> None:
    """0 is best; equal scores go in the order of the classes, so that a head of zeros is right for class 0 alone."""
    scores = np.array([[0.1, 0.7, 0.2], [0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
    labels, want = np.array([1, 0, 0, 1, 2]), [0, 2, 0, 1, 2]
    np.testing.assert_array_equal(losses.ranks(scores, labels), want)
    np.testing.assert_array_equal(losses.ranks(jnp.asarray(scores), jnp.asarray(labels)), want)
    scores[0, 0], scores[1] = np.nan, np.nan  # a model that has diverged is not right
    scores[2, 0] = np.inf
    for kind in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(losses.ranks(kind(scores), kind(labels)), [2, 2, 2, *want[3:]])


def test_the_first_class() -> None:
    """The lower of equals; there is none where a score is not finite, and no agreement about it."""
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [np.nan, 0.0, 0.0], [0.0, np.inf, 0.0], [-np.inf, 0.0, 1.0]], np.float32)
    for kind in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(losses.first(kind(scores)), [1, 0, -1, -1, -1])
        np.testing.assert_array_equal(losses.agree(kind(scores), kind(scores)), [True, True, False, False, False])
        np.testing.assert_array_equal(losses.agree(kind(scores), kind(scores[::-1].copy())), [False] * 5)
        assert losses.agree(kind(scores[:1]), kind(2 * scores[:1])).all()


# -- loss -------------------------------------------------------------------------------------------------------------


def log_softmax(logits: Any) -> np.ndarray:
    """In float64."""
    x = np.asarray(logits, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_loss_and_accuracy_by_hand() -> None:
    """The mean of -log p of the label; rows without a label, and padding, count nothing; a smoothed label costs more."""
    objective = dataclasses.replace(PLAIN, smoothing=0.3)
    rows = batch(labels=(0, -1, 1, 2)) | {"valid": jnp.array([True, True, True, False])}
    ready, out, logits = evaluated(objective, params(), rows, jax.random.key(2), train=False)
    assert ready["video"].dtype == jnp.uint8
    picked, chosen = log_softmax(logits)[[0, 2]], [0, 1]
    want = -(0.7 * picked[[0, 1], chosen] + 0.1 * picked.sum(-1)).mean()
    assert loss_of(out) == pytest.approx(want, rel=1e-6)
    right = 100 * np.mean(picked.argmax(-1) == chosen)
    assert float(out.metrics["top1"].reduce().value()) == pytest.approx(right) and float(out.metrics["top5"].reduce().value()) == 100
    assert float(out.metrics["top1"].weight.sum()) == 2


def test_a_label_beyond_the_head_is_no_silent_zero() -> None:
    """An index with more classes than the head makes the loss NaN at once."""
    _, out, _ = evaluated(PLAIN, params(), batch(labels=(0, 1, 2, CLASSES)), jax.random.key(2), train=False)
    assert math.isnan(loss_of(out))


def test_mixed_clips() -> None:
    """Training blends pixels and labels with the same shares, before the loss; a clip mixed with an unlabelled one counts nothing."""
    objective = dataclasses.replace(PLAIN, mixing=Mixing(cutmix=0.0), smoothing=0.1)
    rows = batch(labels=(0, 2, -1, 2))
    ready, out, logits = evaluated(objective, params(), rows, jax.random.key(5), train=True)
    np.testing.assert_array_equal(ready["weight"], [1, 0, 0, 1])
    off, on = 0.1 / 3, 0.9 + 0.1 / 3
    share = (float(ready["target"][0, 0]) - off) / (on - off)
    assert 0 < share < 1
    unit = np.asarray(rows["video"], np.float64) / 255
    np.testing.assert_allclose(ready["video"], share * unit + (1 - share) * unit[::-1], atol=1e-6)
    want = -(np.asarray(ready["target"], np.float64) * log_softmax(logits)).sum(-1)[[0, 3]].mean()
    assert loss_of(out) == pytest.approx(want, rel=1e-6)
    ready, _, _ = evaluated(objective, params(), rows, jax.random.key(5), train=False)
    np.testing.assert_array_equal(ready["video"], rows["video"])


def test_a_clip_that_is_not_mixed_does_not_depend_on_its_partner() -> None:
    """Labelled clips beside an unlabelled one count where the draw of their group mixes nothing, and not where it does."""
    objective = dataclasses.replace(PLAIN, mixing=Mixing(cutmix=0.0, probability=0.5, rows=4))
    rows = batch(8, labels=(0, 2, -1, 1) * 2)
    seen = set()
    for seed in range(8):
        ready = objective.prepare(rows, jax.random.key(seed), step=jnp.int32(0), train=True)
        for group in (slice(0, 4), slice(4, 8)):
            plain = bool(np.array_equal(ready["video"][group], np.asarray(rows["video"][group], np.float32) * np.float32(1 / 255)))
            np.testing.assert_array_equal(ready["weight"][group], [1, 1, 0, 1] if plain else [1, 0, 0, 1])
            seen.add(plain)
    assert seen == {True, False}


def test_erased_clips_are_mixed() -> None:
    """A box of every clip becomes noise before clips are mixed, in training alone; it depends on the clip's key, not its row."""
    erasing = dataclasses.replace(PLAIN, erasing=Erasing(probability=1.0, area=(0.3, 0.33)))
    rows = batch()
    unit = np.asarray(rows["video"], np.float32) / 255
    ready = evaluated(erasing, params(), rows, jax.random.key(5), train=True)[0]
    erased = np.asarray(ready["video"])
    changed = (np.abs(erased - unit).max((1, 4)) > 1e-6).mean((1, 2))
    assert (np.abs(changed - 0.32) < 0.15).all() and (erased < 0).any() and (erased > 1).any()
    np.testing.assert_array_equal(ready["target"], np.eye(3)[np.asarray(rows["label"])])
    other = evaluated(erasing, params(), {k: v[::-1] for k, v in rows.items()}, jax.random.key(5), train=True)[0]
    np.testing.assert_array_equal(other["video"], erased[::-1])
    both = evaluated(dataclasses.replace(erasing, mixing=Mixing(cutmix=0.0)), params(), rows, jax.random.key(5), train=True)[0]
    share = float(both["target"][0, 0])
    np.testing.assert_allclose(both["video"], share * erased + (1 - share) * erased[::-1], atol=1e-6)
    assert evaluated(erasing, params(), rows, jax.random.key(5), train=False)[0]["video"].dtype == jnp.uint8


@pytest.mark.parametrize("kind", ["classify", "probe"])
def test_an_encoder_without_statistics_sees_erased_clips(kind: str) -> None:
    """VideoPrism takes pixels as they are: the noise is that of ImageNet's."""
    encoder = videoprism.Encoder(width=12, spatial_depth=1, temporal_depth=1, heads=2, hidden=16, patch=(1, 8, 8), frames=4, size=16)
    head = PLAIN.head if kind == "classify" else probing.Linear(classes=CLASSES, count=2)
    erasing = Erasing(probability=1.0, area=(0.3, 0.33))
    objective = dataclasses.replace(PLAIN, encoder=encoder, erasing=erasing) if kind == "classify" else Probe(encoder=encoder, head=head, weights="", erasing=erasing)
    ready = objective.prepare(batch(), jax.random.key(5), step=jnp.int32(0), train=True)
    want = dataclasses.replace(PLAIN, erasing=erasing).prepare(batch(), jax.random.key(5), step=jnp.int32(0), train=True)  # of an encoder with ImageNet's
    np.testing.assert_array_equal(ready["video"], want["video"])


def test_chance_acts_in_training_alone() -> None:
    """Drop-path and dropout change the loss from key to key; evaluation and the encoder of a linear probe know neither."""
    noisy = dataclasses.replace(PLAIN, encoder=dataclasses.replace(ENCODER, drop_path=0.9))
    dropping = dataclasses.replace(PLAIN, head=heads.Classifier(classes=CLASSES, dropout=0.9))

    def spread(objective: Classify, *, train: bool) -> float:
        return float(np.ptp([loss_of(evaluated(objective, params(), batch(), jax.random.key(k), train=train)[1]) for k in range(4)]))

    assert spread(noisy, train=True) > 0 and spread(dropping, train=True) > 0
    assert spread(noisy, train=False) == spread(dropping, train=False) == 0
    assert spread(dataclasses.replace(noisy, trains="head"), train=True) == 0


def test_features() -> None:
    """At the last layer `pooled` is what the logits are linear in, and tokens are raw; other layers are those of the encoder.

    Two programs round differently: without AVX-512 they are 1.3e-6 apart.
    """
    x, e = PLAIN.patchify(batch()), params()["encoder"]
    last, first = (jax.jit(lambda p, b, n=n: PLAIN.represent(p, {}, b, layer=n))(params(), batch())["video"] for n in (-1, 0))
    linear = params()["head"]["linear"]
    logits = jax.jit(PLAIN.predict)(params(), {}, batch(), jax.random.key(0)).logits
    np.testing.assert_allclose(np.asarray(last.pooled) @ linear["kernel"] + linear["bias"], logits, atol=1e-5)
    norm = {"scale": jnp.ones(16), "bias": jnp.zeros(16)}
    ids = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    kept = jax.jit(lambda e: ENCODER.apply({"params": e | {"norm": norm}}, x, ids=ids, keep=(0, 1)).kept)(e)
    np.testing.assert_allclose(first.tokens, kept[0], atol=5e-6)
    np.testing.assert_allclose(last.tokens, kept[1], atol=5e-6)
    np.testing.assert_allclose(first.pooled, kept[0].mean(1), atol=5e-6)
    assert last.grid == ENCODER.grid


# -- what trains --------------------------------------------------------------------------------------------------------


def run_of(objective: Any, *, layer_decay: float = 1.0) -> Any:
    """An assembled run on noise, one device."""
    config = configs.load(str(ROOT / "configs" / "tiny.py"))
    config.unlock()
    config.objective = configs.plain(objective)
    config.data = configs.spec(sources.NoiseClips, frames=4, size=16, length=16)
    config.batch_size, config.total = 4, "2"
    config.optimizers.main = configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2, warmup="0", unit=0, shape="constant"), layer_decay=layer_decay)
    return assemble(config, devices=jax.devices()[:1])


def stepped(run: Any) -> tuple[Any, Any]:
    """(state before, state after) one step, on the host."""
    state = run.create()
    before = jax.device_get(state)
    rows = batch() | {"row": jnp.arange(4, dtype=jnp.int32), "fault": jnp.zeros(4, jnp.int32)}
    after, _ = run.step()(state, parallel.to_device(jax.device_get(rows), mesh=run.mesh))
    return before, jax.device_get(after)


@pytest.mark.parametrize(("trains", "kept"), [("head", "encoder/"), ("linear", ("encoder/", "head/norm/"))])
def test_a_linear_probe_trains_its_head_alone(trains: str, kept: str | tuple[str, ...]) -> None:
    """The encoder, and where asked for the norm of the head, keeps its bits and has no moments; every other leaf moves."""
    before, after = stepped(run_of(dataclasses.replace(PLAIN, trains=trains)))
    for path, old in traverse_util.flatten_dict(before.params, sep="/").items():
        same = np.array_equal(old, traverse_util.flatten_dict(after.params, sep="/")[path])
        assert same is path.startswith(kept), path
    moments = {optim.path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path(after.opt)}
    assert any("head/linear" in m for m in moments) and not any("encoder" in m for m in moments)


def test_layer_decay_on_the_fine_tuning_tree() -> None:
    """V2 at B and .75: embedding .75^13, block k .75^(12 - k), the head's norm and kernel 1 (optim_factory)."""
    objective = Classify(encoder=vit.encoder("B"), head=heads.Classifier(classes=400))
    tree = parallel.unbox(jax.eval_shape(lambda key: objective.init(key, {}), jax.random.key(0)))
    scales = traverse_util.flatten_dict(optim.layer_scales(tree, 0.75), sep="/")
    assert scales["encoder/embed/kernel"] == scales["encoder/embed/bias"] == 0.75**13
    for path, scale in scales.items():
        if path.startswith("encoder/stack/"):
            np.testing.assert_allclose(np.ravel(scale), [0.75 ** (12 - k) for k in range(12)], rtol=1e-12)
    assert {k: v for k, v in scales.items() if k.startswith("head/")} == dict.fromkeys(
        ("head/norm/scale", "head/norm/bias", "head/linear/kernel", "head/linear/bias"), 1.0)
    decayed = traverse_util.flatten_dict(optim.decays(tree), sep="/")
    assert decayed["head/linear/kernel"] and not any(decayed[f"head/{leaf}"] for leaf in ("norm/scale", "norm/bias", "linear/bias"))


# -- where weights come from ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run directory with the checkpoint of two steps of pretraining, averaged weights included."""
    run, directory = run_of(PRETRAINING), tmp_path_factory.mktemp("pretrained")
    run.config.ema = 0.5
    run = assemble(run.config, devices=jax.devices()[:1])
    state, step = run.create(), run.step()
    rows = jax.device_get(batch() | {"row": jnp.arange(4, dtype=jnp.int32), "fault": jnp.zeros(4, jnp.int32)})
    for _ in range(2):
        state, _ = step(state, parallel.to_device(rows, mesh=run.mesh))
    saver = Checkpointer(directory / "checkpoints")
    saver.save(2, state, meta={"step": 2})
    saver.close()
    return directory


def loaded(objective: Classify) -> dict[str, np.ndarray]:
    """Leaves of `objective` by path after its externals, from the fresh ones of PLAIN."""
    return traverse_util.flatten_dict(jax.device_get(externals.load(params(), objective.externals(), root="params")), sep="/")


@pytest.mark.parametrize("item", ["params", "ema"])
def test_fine_tuning_starts_from_a_pretraining_run(pretrained: pathlib.Path, item: str) -> None:
    """The encoder comes bit for bit from the checkpoint, the head is fresh, decoder and final norm are left aside."""
    saver = Checkpointer(pretrained / "checkpoints", read_only=True)
    source = traverse_util.flatten_dict(saver.load(2, item=item), sep="/")
    saver.close()
    fresh, found = traverse_util.flatten_dict(jax.device_get(params()), sep="/"), loaded(dataclasses.replace(PLAIN, pretrained=str(pretrained), item=item))
    assert found.keys() == fresh.keys() and any(path.startswith("decoder/") for path in source)
    for path, value in found.items():
        np.testing.assert_array_equal(value, fresh[path] if path.startswith("head/") else source[path], err_msg=path)
    assert any(not np.array_equal(found[p], fresh[p]) for p in found if p.startswith("encoder/"))


def test_a_run_is_created_from_a_pretraining_run(pretrained: pathlib.Path) -> None:
    """The same through the trainer's own way of making a state, and a step on it."""
    before, after = stepped(run_of(dataclasses.replace(PLAIN, pretrained=str(pretrained)), layer_decay=0.75))
    want = loaded(dataclasses.replace(PLAIN, pretrained=str(pretrained)))["encoder/stack/block/attn/qkv"]
    np.testing.assert_array_equal(before.params["encoder"]["stack"]["block"]["attn"]["qkv"], want)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), before.params, after.params)
    assert all(jax.tree.leaves(changed))


def test_a_start_names_the_weights_it_read(pretrained: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Path and digest stand in starts.jsonl; the run that resumes reads them no more, and they may be gone."""
    first = pathlib.Path(shutil.copytree(pretrained, tmp_path / "first"))
    run = run_of(dataclasses.replace(PLAIN, pretrained=str(first)))
    run.config.total, run.config.evaluators = "1", {}
    run = assemble(run.config, devices=jax.devices()[:1])
    assert card.card(run)["outside"] == {"params": {"path": str(first), "label": "real"}} and str(first) in card.text(card.card(run))
    for _ in range(2):
        loop.train(run, tmp_path / "run", stop=Stop(), say=lambda line: None)
        shutil.rmtree(first, ignore_errors=True)
    begun = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    (found,) = begun[0]["externals"].values()
    assert found["path"].startswith(str(first)) and len(found["sha256"]) == 64 and begun[1]["externals"] == {}


def written(path: pathlib.Path, tree: Any) -> str:
    """An .npz of a tree."""
    np.savez(path, **traverse_util.flatten_dict(jax.device_get(tree), sep="/"))
    return str(path)


def test_what_is_taken_of_a_fine_tuned_run(tmp_path: pathlib.Path) -> None:
    """"encoder" leaves its head aside, "features" takes the norm, "model" everything; other classes are refused by name and shape."""
    shifted = jax.tree.map(lambda x: np.asarray(x) + 1, params())
    same = written(tmp_path / "same.npz", shifted)
    old, new = (traverse_util.flatten_dict(jax.device_get(tree), sep="/") for tree in (params(), shifted))
    for start, taken in (("encoder", ()), ("features", ("head/norm/scale", "head/norm/bias")), ("model", tuple(k for k in old if k.startswith("head/")))):
        found = loaded(dataclasses.replace(PLAIN, pretrained=same, start=start))
        for path, value in found.items():
            np.testing.assert_array_equal(value, new[path] if path.startswith("encoder/") or path in taken else old[path], err_msg=f"{start} {path}")
    shifted["head"]["linear"] = {"kernel": np.zeros((16, 7)), "bias": np.zeros(7)}
    other = written(tmp_path / "other.npz", shifted)
    with pytest.raises(UserError, match=r"other.npz into params: .*head/linear/bias is \(7,\) in the source, \(3,\) in the target") as error:
        loaded(dataclasses.replace(PLAIN, pretrained=other, start="model"))
    assert "\n" not in str(error.value)
    assert loaded(dataclasses.replace(PLAIN, pretrained=other, start="features"))["head/norm/scale"].max() == 2


def test_a_whole_head_has_the_classes_of_the_data(tmp_path: pathlib.Path) -> None:
    """In their order; "features" takes no classes."""
    objective = dataclasses.replace(PLAIN, head=heads.Classifier(classes=2), start="model", pretrained=str(tmp_path / "w.npz"))
    tree = jax.tree.map(lambda x: np.ones(x.shape, np.float32), jax.eval_shape(lambda: parallel.unbox(objective.init(jax.random.key(0), {}))))
    written(tmp_path / "w.npz", tree)
    (tmp_path / "classes.json").write_text('["odd", "even"]')
    with pytest.raises(UserError, match=r"w.npz has 'odd' as class 0 of 2, and the data 'even'.*or a map of classes \(objective.classes\)"):
        run_of(objective).create()
    found = run_of(dataclasses.replace(objective, start="features")).create().params
    assert found["head"]["norm"]["scale"].min() == 1 and np.asarray(found["head"]["linear"]["kernel"]).min() < 1
    (tmp_path / "classes.json").write_text('["even", "odd"]')
    assert np.asarray(run_of(objective).create().params["head"]["linear"]["kernel"]).min() == 1


def test_a_head_takes_rows_by_class(tmp_path: pathlib.Path) -> None:
    """Class i of the target is class rows[i] of the file's seven, or its own fresh row; other leaves are those of the file."""
    wide = jax.tree.map(lambda x: np.asarray(x) + 1, params())
    kernel, bias = np.random.default_rng(0).normal(size=(16, 7)).astype(np.float32), np.arange(7, dtype=np.float32)
    wide["head"]["linear"] = {"kernel": kernel, "bias": bias}
    weights, fresh = written(tmp_path / "wide.npz", wide), traverse_util.flatten_dict(jax.device_get(params()), sep="/")
    for content in ([6, -1, 2], {"rows": [6, -1, 2], "source": list("abcdefg"), "target": list("xyz")}):
        (tmp_path / "map.json").write_text(json.dumps(content))
        found = loaded(dataclasses.replace(PLAIN, pretrained=weights, start="model", classes=str(tmp_path / "map.json")))
        for place, row in enumerate((6, -1, 2)):
            np.testing.assert_array_equal(found["head/linear/kernel"][:, place], kernel[:, row] if row >= 0 else fresh["head/linear/kernel"][:, place])
            assert found["head/linear/bias"][place] == (bias[row] if row >= 0 else fresh["head/linear/bias"][place])
        np.testing.assert_array_equal(found["head/norm/scale"], fresh["head/norm/scale"] + 1)
        np.testing.assert_array_equal(found["encoder/embed/kernel"], fresh["encoder/embed/kernel"] + 1)


@pytest.mark.parametrize(("content", "message"), [
    ("[0, 1]", "is for 2 classes, and the head has 3"), ("[0, 1, 7]", r"asks for class 7, and the head in the file has 7 \(0 to 6\)"),
    ('{"rows": [0, 1, 2], "source": ["a"]}', "is for a source of 1 classes, and the file has 7"), ("[0, 1, -2]", "neither a list of class numbers"),
    ("[0, 1.5, 2]", "neither a list"), ("{}", "neither a list"), ("[0,", "cannot be read"), ('{"rows": [0], "target": []}', "1 rows for 0 target classes")])
def test_mistakes_of_a_map_of_classes(tmp_path: pathlib.Path, content: str, message: str) -> None:
    """Each names the map."""
    wide = dict(params()) | {"head": {"norm": params()["head"]["norm"], "linear": {"kernel": np.zeros((16, 7)), "bias": np.zeros(7)}}}
    (tmp_path / "map.json").write_text(content)
    mapped = dataclasses.replace(PLAIN, pretrained=written(tmp_path / "w.npz", wide), start="model", classes=str(tmp_path / "map.json"))
    with pytest.raises(UserError, match=message) as error:
        loaded(mapped)
    assert "map.json" in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_family_are_refused(tmp_path: pathlib.Path) -> None:
    """No encoder, or one of another shape: one line that names the file and the leaves."""
    alien = written(tmp_path / "alien.npz", {"generator": {"kernel": np.zeros((2, 2))}})
    with pytest.raises(UserError, match=r"alien.npz into params: .*encoder/embed/bias is not in the source") as error:
        loaded(dataclasses.replace(PLAIN, pretrained=alien))
    assert "\n" not in str(error.value)
    wide = dict(params()) | {"encoder": dict(params()["encoder"]) | {"embed": {"kernel": np.zeros((384, 32)), "bias": np.zeros(32)}}}
    with pytest.raises(UserError, match=r"encoder/embed/bias is \(32,\) in the source, \(16,\) in the target"):
        loaded(dataclasses.replace(PLAIN, pretrained=written(tmp_path / "wide.npz", wide)))
    with pytest.raises(UserError, match="nowhere"):
        loaded(dataclasses.replace(PLAIN, pretrained="nowhere"))
    assert PLAIN.externals() == ()


def test_mistakes() -> None:
    """Each with the value and what is allowed."""
    for field, value, message in (("start", "body", "start 'body'; allowed are encoder, features, model"),
                                  ("trains", "tail", "allowed are all, head, linear"), ("smoothing", 1.0, "smoothing 1.0")):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(PLAIN, **{field: value})
    with pytest.raises(UserError, match="which start 'features' does not take; allowed is start 'model'"):
        dataclasses.replace(PLAIN, start="features", classes="map.json")
    with pytest.raises(UserError, match="0 classes and dropout"):
        heads.Classifier(classes=0).init(jax.random.key(0), jnp.zeros((1, 1, 4)))


# -- published tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parameters", "batch_size", "peak"), [
    ("k400_s", 22_033_936, 384, 7.5e-4), ("k400_b", 86_534_800, 512, 1.4e-3), ("k400_l", 304_270_736, 192, 1.5e-3), ("k400_h", 632_119_440, 128, 5e-4),
    ("k400_g", 1_012_174_352, 192, 7.5e-4), ("k710_b", 86_773_190, 512, 1.4e-3), ("k710_h", 632_516_550, 128, 5e-4), ("k710_g", 1_012_611_142, 96, 3.75e-4),
    ("ssv2_b", 86_361_006, 256, 2e-3), ("ssv2_l", 304_039_086, 192, 3.75e-4), ("ssv2_h", 631_829_934, 128, 2.5e-4), ("ssv2_g", 1_011_855_918, 96, 1.125e-4),
    ("ucf101_b", 86_304_869, 128, 2.5e-4), ("ucf101_g", 1_011_753_061, 24, 9.375e-5), ("hmdb51_g", 1_011_682_611, 24, 4.6875e-5),
    ("k600_h", 632_375_640, 128, 5e-4), ("k400_g_after_k710", 1_012_174_352, 96, 3.75e-6), ("k600_g_after_k710", 1_012_456_152, 96, 3.75e-6),
    ("v1_k400_b800", 86_534_800, 512, 2e-3), ("v1_k400_b1600", 86_534_800, 384, 7.5e-4), ("v1_k400_l", 304_270_736, 128, 1e-3),
    ("v1_k400_h", 632_119_440, 512, 2e-3), ("v1_ssv2_s", 21_946_926, 384, 1.5e-3), ("v1_ssv2_b800", 86_361_006, 512, 1e-3),
    ("v1_ssv2_b2400", 86_361_006, 384, 7.5e-4)])
def test_published_sizes_and_rates(name: str, parameters: int, batch_size: int, peak: float) -> None:
    """Parameters as the official model counts them, clips a step, peak rate, and draws of mixup that fit the batch."""
    config = configs.load(str(ROOT / "configs" / "finetune" / f"{name}.py"))
    objective = configs.build(config.objective)
    tree = jax.eval_shape(lambda key: objective.init(key, {}), jax.random.key(0))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(parallel.unbox(tree))) == parameters
    schedule = configs.build(config.optimizers.main).schedule
    assert config.batch_size == batch_size and schedule.scaled(schedule.base, batch=batch_size) == pytest.approx(peak, rel=1e-9)
    assert batch_size * config.data.repeats % config.objective.mixing.rows == 0
    assert config.evaluators.test.views.crop.views * config.evaluators.test.views.sampling.views == (6 if "ssv2" in name else 15)
    assert (config.data.crop.flip == 0) is ("ssv2" in name)
    policy = config.data.crop.policy
    assert (policy.magnitude, policy.count, policy.deviation, policy.probability, config.objective.erasing.probability) == (7, 4, 0.5, 0.5, 0.25)
    videos = np.arange(config.objective.mixing.rows) // config.data.repeats
    partner = np.asarray(configs.build(config.objective.mixing).partners(jnp.asarray(videos), groups=1))
    assert config.data.repeats == 1 or (partner != videos).all(), "a video is mixed with itself"


@pytest.mark.parametrize(("size", "giga"), [("S", 56.9), ("B", 180.3), ("L", 596.8), ("H", 1191.0), ("g", 2542.8)])
def test_cost_of_a_view(size: str, giga: float) -> None:
    """Multiply-adds of a view of 16 frames, as published to a tenth of a giga."""
    assert Classify(encoder=vit.encoder(size), head=heads.Classifier(classes=400)).cost().macs / 1e9 == pytest.approx(giga, abs=0.05)


# -- weight formats ------------------------------------------------------------------------------------------------------


def test_converted_classifiers(tmp_path: pathlib.Path) -> None:
    """Round trips in both layouts; official names and shapes; a strayed name is refused; classes are selected by number."""
    tree = jax.device_get(jax.tree.map(lambda x: x + jnp.linspace(0.1, 0.2, x.size).reshape(x.shape), params()))
    flat = traverse_util.flatten_dict(tree, sep="/")
    official, hf = videomae.classifier_to_official(tree, patch=(2, 8, 8)), videomae.classifier_to_hf(tree, patch=(2, 8, 8))
    assert official["fc_norm.weight"].shape == (16,) and official["head.weight"].shape == (3, 16) and official["blocks.1.attn.qkv.weight"].shape == (48, 16)
    assert official["patch_embed.proj.weight"].shape == (16, 3, 2, 8, 8) and not any(k.startswith(("encoder", "norm")) for k in official)
    assert hf["classifier.weight"].shape == (3, 16) and "videomae.layernorm.weight" not in hf
    for back in (videomae.classifier_from_official({f"module.{k}": v for k, v in official.items()}, heads=2), videomae.classifier_from_hf(hf, heads=2)):
        assert {k: v.tobytes() for k, v in traverse_util.flatten_dict(back, sep="/").items()} == {k: v.tobytes() for k, v in flat.items()}
    with pytest.raises(UserError, match=r"not a VideoMAE classifier; .*1 left over: decoder.norm.weight"):
        videomae.classifier_from_official(official | {"decoder.norm.weight": np.zeros(4)}, heads=2)
    chosen = videomae.select_classes(tree, (2, 0))
    np.testing.assert_array_equal(chosen["head"]["linear"]["kernel"], flat["head/linear/kernel"][:, [2, 0]])
    np.testing.assert_array_equal(chosen["head"]["linear"]["bias"], flat["head/linear/bias"][[2, 0]])
    with pytest.raises(UserError, match=r"classes \[3\] of a head with 3; allowed are 0 to 2"):
        videomae.select_classes(tree, (3,))
    loaded(dataclasses.replace(PLAIN, pretrained=written(tmp_path / "c.npz", tree), start="model"))


def test_logits_equal_hugging_face() -> None:
    """VideoMAEForVideoClassification on random weights, eps 1e-6 set on its side; 1e-5 of the largest logit is float32 noise."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.18")  # before, q and v biases are loaded as zero
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(image_size=16, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                         intermediate_size=32, num_labels=CLASSES, use_mean_pooling=True, layer_norm_eps=1e-6)
    model = transformers.VideoMAEForVideoClassification(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.3 * torch.randn(p.shape) + float("norm" in name and name.endswith("weight")))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    tree = videomae.classifier_from_hf({k: v.numpy() for k, v in model.state_dict().items()}, heads=2)
    unit = torch.from_numpy(np.asarray(batch()["video"], np.float32) / np.float32(255))
    pixels = ((unit - torch.tensor((0.485, 0.456, 0.406))) / torch.tensor((0.229, 0.224, 0.225))).permute(0, 1, 4, 2, 3).contiguous()
    with torch.no_grad():
        theirs = model(pixels).logits.numpy()
    ours = np.asarray(jax.jit(PLAIN.predict)(tree, {}, batch(), jax.random.key(0)).logits)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    tree["encoder"]["stack"]["block"]["attn"]["q_bias"] *= 0  # so the comparison can tell
    assert np.abs(np.asarray(jax.jit(PLAIN.predict)(tree, {}, batch(), jax.random.key(0)).logits) - theirs).max() > 1e-3 * np.abs(theirs).max()
