"""Probes against references in numpy: poolers, many heads with their own rates, BatchNorm, nearest neighbours, low-shot, choice of a head."""

import dataclasses
import functools
import math
import pathlib
import re
import tracemalloc
import types
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import noise_runs
import numpy as np
import optax
import pytest
import substitutes
import written
from flax import traverse_util

from videomae_jax import __main__ as entry
from videomae_jax import config as configs
from videomae_jax import externals, losses, optim, parallel
from videomae_jax.config import spec
from videomae_jax.data import clips, mixture, sources, transforms
from videomae_jax.errors import UserError
from videomae_jax.evals import attentive, features, knn, linear_probe, low_shot, probe
from videomae_jax.models import probing, vit
from videomae_jax.objectives.probe import Probe

ENCODER = vit.Encoder(width=16, depth=2, heads=2, hidden=16, **noise_runs.CLIP)
LINEAR = Probe(encoder=ENCODER, head=probing.Linear(classes=2, count=3), weights="")


# -- heads --------------------------------------------------------------------------------------------------------------


def gelu(x: np.ndarray) -> np.ndarray:
    """Exact."""
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def norm(x: np.ndarray, p: Any) -> np.ndarray:
    """LayerNorm, eps 1e-5."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def pooled(tokens: np.ndarray, p: Any, *, heads: int) -> np.ndarray:
    """q + softmax(q (LN kv)) V without output projection, then LN and MLP, in float64."""
    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ p[name]["kernel"] + p[name]["bias"]
    b, n, d = tokens.shape
    k, v = np.split(linear(norm(tokens, p["norm1"]), "kv"), 2, -1)
    q = linear(p["query_token"], "q").reshape(heads, -1) / math.sqrt(d // heads)
    score = np.einsum("hk,bnhk->bhn", q, k.reshape(b, n, heads, -1))
    share = np.exp(score) / np.exp(score).sum(-1, keepdims=True)
    x = p["query_token"] + np.einsum("bhn,bnhk->bhk", share, v.reshape(b, n, heads, -1)).reshape(b, d)
    return x + linear(gelu(linear(norm(x, p["norm2"]), "fc1")), "fc2")


def test_poolers_side_by_side() -> None:
    """Each of three poolers gives what it gives alone, in numpy; they start differently; parameters have a first axis without a name."""
    rng, module = np.random.default_rng(0), probing.Attentive(classes=5, count=3, blocks=1, heads=2, ratio=2)
    tokens = rng.normal(size=(4, 6, 8)) * np.sqrt([1, 1e-5, 1e-5, 1]).reshape(4, 1, 1)  # where eps counts, too
    boxed = jax.jit(lambda key: module.init(key, jnp.zeros((1, 1, 8))))(jax.random.key(0))["params"]
    assert parallel.logical_axes(boxed)["pooler"]["cross"]["fc1"]["kernel"] == (None, "embed", "mlp")
    params = jax.tree.map(lambda x: np.asarray(x) + rng.normal(size=x.shape).astype(np.float32) * 0.3, parallel.unbox(boxed))
    start = jax.tree.map(np.asarray, parallel.unbox(boxed)["pooler"])
    kernel, bias = start["linear"]["kernel"], start["linear"]["bias"]
    assert kernel.shape == (3, 8, 5) and not np.array_equal(kernel[0], kernel[1])
    assert 0.3 < np.abs(kernel).max() <= 8**-0.5 and 0.2 < np.abs(bias).max() <= 8**-0.5
    for name, spread in (("fc1", 0.02), ("fc2", 0.02 / 2**0.5)):
        assert start["cross"][name]["kernel"].std() == pytest.approx(spread, rel=0.1)
    got = jax.jit(module.apply)({"params": params}, jnp.float32(tokens))
    assert got.shape == (4, 3, 5)
    for head in range(3):
        p = jax.tree.map(lambda x, head=head: np.float64(x[head]), params["pooler"])
        want = pooled(tokens, p["cross"], heads=2) @ p["linear"]["kernel"] + p["linear"]["bias"]
        np.testing.assert_allclose(got[:, head], want, atol=2e-5)  # float32 sums of values near 3


def test_four_blocks_are_three_of_self_attention_and_the_pooler() -> None:
    """The pooler of four blocks is the pooler of one on the tokens that its three blocks make."""
    four, one = probing.Attentive(classes=3, count=2, blocks=4, heads=2, ratio=1), probing.Attentive(classes=3, count=1, blocks=1, heads=2, ratio=1)
    params = parallel.unbox(jax.jit(lambda key: four.init(key, jnp.zeros((1, 1, 4))))(jax.random.key(1))["params"])
    assert params["pooler"]["stack"]["block"]["mlp"]["fc1"]["kernel"].shape == (2, 3, 4, 4)
    tokens = jax.random.normal(jax.random.key(2), (2, 5, 4))
    got = jax.jit(four.apply)({"params": params}, tokens)
    stack = probing.layers.Stack(3, 2, 4, eps=1e-5)
    for head in range(2):
        mine = jax.tree.map(lambda x, head=head: x[head], params["pooler"])
        mixed = jax.jit(stack.apply)({"params": mine["stack"]}, tokens).tokens
        alone = jax.tree.map(lambda x: x[None], {k: v for k, v in mine.items() if k != "stack"})
        np.testing.assert_allclose(jax.jit(one.apply)({"params": {"pooler": alone}}, mixed)[:, 0], got[:, head], atol=1e-5)


def test_heads_take_batches_of_any_size() -> None:
    """An exported program of attentive heads is traced without knowing the number of clips."""
    module = probing.Attentive(classes=3, count=2, blocks=2, heads=2, ratio=1)
    params = parallel.unbox(jax.jit(lambda key: module.init(key, jnp.zeros((1, 1, 4))))(jax.random.key(0))["params"])
    rows = jax.export.symbolic_shape("b")
    exported = jax.export.export(jax.jit(module.apply))({"params": params}, jax.ShapeDtypeStruct((*rows, 5, 4), jnp.float32))
    tokens = jax.random.normal(jax.random.key(1), (3, 5, 4))
    np.testing.assert_allclose(exported.call({"params": params}, tokens), jax.jit(module.apply)({"params": params}, tokens), atol=1e-6)


def test_what_is_recalled_of_v_jepa_says_so() -> None:
    """V-JEPA 2's code has been read, its forerunner's has not: who names that says that the number is unverified."""
    folders = (noise_runs.ROOT / name for name in ("configs/probe", "videomae_jax/models", "videomae_jax/evals"))
    texts = [path.read_text() for folder in folders for path in sorted(folder.glob("*.py"))]
    assert sum("V-JEPA, unverified" in text for text in texts) == 2 and not any(re.search("V-JEPA(?! 2|, unverified)", text) for text in texts)


def test_attentive_probes_see_no_mirror_images() -> None:
    """As V-JEPA 2's; MAE's linear probe does."""
    found = {path.stem: configs.load(str(path)).data.crop.flip for path in (noise_runs.ROOT / "configs" / "probe").glob("*_*.py")}
    assert found == {"attentive_k400_l": 0.0, "attentive1_k400_l": 0.0, "attentive_ssv2_l": 0.0, "linear_k400_b": 0.5}


# -- a grid of optimisers -----------------------------------------------------------------------------------------------

SHAPES = {"kernel": (4, 5, 3), "bias": (4, 3), "query_token": (4, 5)}


def trees(seed: int) -> dict[str, np.ndarray]:
    """Random leaves of four heads."""
    rng = np.random.default_rng(seed)
    return {k: rng.normal(size=shape).astype(np.float32) for k, shape in SHAPES.items()}


def test_each_head_has_an_adamw_of_its_own() -> None:
    """Three steps of two rates x two decays equal four runs of optax.adamw; biases and tokens do not decay."""
    grid = optim.Grid(schedule=optim.Schedule(base=1.0), rates=(0.1, 0.01), decays=(0.0, 0.5), b2=0.95)
    assert grid.pairs == ((0.1, 0.0), (0.1, 0.5), (0.01, 0.0), (0.01, 0.5))
    params, transform = trees(0), grid.transform()
    state = transform.init(params)
    for step in range(1, 4):
        moves, state = transform.update(trees(step), state, params)
        params = jax.tree.map(lambda p, u: p - 0.5 * u, params, moves)  # the schedule is a factor
    for head, (rate, decay) in enumerate(grid.pairs):
        one = optax.adamw(0.5 * rate, b1=0.9, b2=0.95, weight_decay=decay, mask={"kernel": True, "bias": False, "query_token": False})
        alone = {k: v[head] for k, v in trees(0).items()}
        inner = one.init(alone)
        for step in range(1, 4):
            moves, inner = one.update({k: v[head] for k, v in trees(step).items()}, inner, alone)
            alone = optax.apply_updates(alone, moves)
        for k, want in alone.items():
            np.testing.assert_allclose(params[k][head], want, rtol=2e-5, atol=1e-6, err_msg=f"{k} of head {head}")


def test_each_head_has_a_lars_of_its_own() -> None:
    """Kernels: (g + wd p) 0.001 |p| / |g + wd p|, momentum .9, then the rate; biases: plain momentum."""
    grid = optim.Grid(schedule=optim.Schedule(base=1.0), rates=(2.0, 3.0), decays=(0.0, 0.1), method="lars")
    params, transform = trees(0), grid.transform()
    state, want, momentum = transform.init(params), {k: np.float64(v) for k, v in trees(0).items()}, {k: np.zeros(s) for k, s in SHAPES.items()}
    for step in range(1, 4):
        moves, state = transform.update(trees(step), state, params)
        params = jax.tree.map(lambda p, u: p - u, params, moves)
        for k, slopes in trees(step).items():
            for head, (rate, decay) in enumerate(grid.pairs):
                move = np.float64(slopes[head])
                if k == "kernel":
                    move = move + decay * want[k][head]
                    move = move * 0.001 * np.linalg.norm(want[k][head]) / np.linalg.norm(move)
                momentum[k][head] = 0.9 * momentum[k][head] + move
                want[k][head] = want[k][head] - rate * momentum[k][head]
    for k, value in want.items():
        np.testing.assert_allclose(params[k], value, rtol=1e-5, atol=1e-6, err_msg=k)


def test_a_grid_of_another_size() -> None:
    """The first axis is checked before the first step; names are checked at once."""
    with pytest.raises(UserError, match=r"is \(4, \d.*a grid of 2 heads \(rates x decays\) needs a first axis of 2"):
        optim.Grid(schedule=optim.Schedule(base=1.0), rates=(1.0, 2.0)).transform().init(trees(0))
    for change, message in (({"method": "sgd"}, "allowed are adamw, lars"), ({"rates": ()}, "at least one")):
        with pytest.raises(UserError, match=message):
            optim.Grid(**({"schedule": optim.Schedule(base=1.0), "rates": (1.0,)} | change))


# -- the objective ------------------------------------------------------------------------------------------------------


@functools.cache
def running() -> Any:
    """A run of linear probes on noise, one device."""
    return noise_runs.run_of(LINEAR, optimizer=spec(optim.Grid, schedule=optim.Schedule(base=1.0, warmup="0", unit=0, shape="constant"), rates=(1.0, 2.0, 4.0),
                                                    method="lars"))


def rows_of() -> dict[str, np.ndarray]:
    """Four clips: the third has no label, the fourth is padding."""
    return noise_runs.batch((0, 1, -1, 1), valid=(True, True, True, False))


def test_linear_heads_behind_a_batch_norm() -> None:
    """Batch statistics without padding in training, running ones in evaluation, momentum .1 with the unbiased variance; loss by hand."""
    run = running()
    state = jax.device_get(run.create())
    extra, rows = run.seen(state.extra), rows_of()

    @jax.jit
    def all_of(params: Any, extra: Any) -> Any:
        out, test = (LINEAR.loss(params, extra, rows, jax.random.key(0), step=jnp.int32(0), train=train) for train in (True, False))
        return LINEAR.seen(extra, rows), out, test, LINEAR.update_extra(params, state.extra, out.aux, step=jnp.int32(0)), LINEAR.judge(params, extra, rows)

    x, out, test, after, judged = jax.device_get(all_of(state.params, extra))
    x = np.float64(x)
    mean, var = x[:3].mean(0), x[:3].var(0)
    np.testing.assert_allclose(after["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(after["var"], 0.9 + 0.1 * x[:3].var(0, ddof=1), rtol=1e-5)

    def loss(z: np.ndarray) -> float:
        logits = np.einsum("be,hek->bhk", z, state.params["heads"]["kernel"]) + state.params["heads"]["bias"]
        p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -(p[0, :, 0] + p[1, :, 1]).sum() / 2

    def value(o: Any) -> float:
        return float(losses.value(o.terms, denominators=losses.denominators(o.terms)))
    assert value(out) == pytest.approx(loss((x - mean) / np.sqrt(var + 1e-6)), rel=1e-5)
    assert value(test) == pytest.approx(loss(x / np.sqrt(1 + 1e-6)), rel=1e-5)
    np.testing.assert_allclose(judged, np.einsum("be,hek->bhk", x / np.sqrt(1 + 1e-6), state.params["heads"]["kernel"]), atol=1e-5)
    assert LINEAR.batch_coupled and not dataclasses.replace(LINEAR, head=probing.Attentive(classes=2, count=1, blocks=1, heads=2)).batch_coupled


def test_the_encoder_is_frozen_and_taken_from_a_run(tmp_path: pathlib.Path) -> None:
    """No leaf of the state is the encoder's; a pretraining's norm is taken, a fine-tuned run's absence of one is an error that says so."""
    run = running()
    assert run.abstract.params.keys() == {"heads"} and run.abstract_frozen.keys() == {"encoder"}
    source = {f"encoder/{k}": np.full(v.shape, 0.5, np.float32) for k, v in traverse_util.flatten_dict(jax.device_get(run.frozen["encoder"]), sep="/").items()}
    np.savez(tmp_path / "pretrained.npz", **source, **{"decoder/head/kernel": np.zeros(3)})
    np.savez(tmp_path / "finetuned.npz", **{k: v for k, v in source.items() if "/norm/" not in k}, **{"head/linear/bias": np.zeros(3)})
    taken = externals.load(run.frozen, dataclasses.replace(LINEAR, weights=str(tmp_path / "pretrained.npz")).externals(), root="frozen")
    assert {float(v) for leaf in jax.tree.leaves(taken) for v in np.unique(leaf)} == {0.5}
    raw = dataclasses.replace(LINEAR, weights=str(tmp_path / "finetuned.npz"), norm="none")
    assert {float(v) for v in np.unique(externals.load(run.frozen, raw.externals(), root="frozen")["encoder"]["embed"]["kernel"])} == {0.5}
    with pytest.raises(UserError, match="norm/bias is not in the source"):
        externals.load(run.frozen, dataclasses.replace(raw, norm="final").externals(), root="frozen")


def test_mistakes() -> None:
    """Unknown norm, layer and head."""
    for change, message in (({"norm": "batch"}, "norm 'batch'"), ({"layers": (2,)}, r"layers \(2,\); allowed are 0 to 1"), ({"chosen": 3}, "chosen head 3 of 3")):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(LINEAR, **change)


def test_features_and_heads_of_a_run(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer's mean token of every readable clip, from one pass through the encoder, and the accuracy of all heads, by hand."""
    run, traced, before = running(), [], Probe.tokens
    monkeypatch.setattr(Probe, "tokens", lambda self, *words, blocks: traced.append(blocks) or before(self, *words, blocks=blocks))
    state = run.create()
    context = noise_runs.Noise(run, state.params, run.seen(state.extra), 1, tmp_path)
    bank = features.collect(context, split="val", label="", limit=0, batch_size=4, layers=(0, -1))
    assert traced == [(0,)]
    np.testing.assert_array_equal(bank.labels, np.arange(6) % 2)
    rows = {"video": noise_runs.clips_of(context.source("val"))}
    for layer in (0, -1):
        want = jax.jit(lambda extra, n=layer: LINEAR.represent({}, extra, rows, layer=n)["video"].tokens)(context.extra)
        np.testing.assert_allclose(bank.features[layer], np.asarray(want).mean(1), atol=1e-5)
    found = attentive.Heads(batch_size=4).run(context)
    logits = np.asarray(jax.jit(LINEAR.judge)(state.params, context.extra, rows))
    for head in range(3):
        assert found[f"head_{head}"] == pytest.approx(100 * np.mean(logits[:, head].argmax(-1) == bank.labels))
    assert found["videos"] == 6 and found["best"] == max(found[f"head_{i}"] for i in range(3))


def test_substitutes_and_padding_count_nowhere(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither among the features nor in the accuracy of a head: five of six clips can be read."""
    run = running()
    state = run.create()
    context = noise_runs.Noise(run, state.params, run.seen(state.extra), 1, tmp_path)
    one, other = substitutes.outcomes(monkeypatch, lambda: features.collect(context, split="val", label="", limit=0, batch_size=4))
    assert one.labels.tolist() == other.labels.tolist() == [0, 1, 1, 0, 1]
    np.testing.assert_allclose(one.features[-1], other.features[-1], atol=1e-6)
    one, other = substitutes.outcomes(monkeypatch, lambda: attentive.Heads(batch_size=4).run(context))
    assert one == other and one["videos"] == 5


@dataclasses.dataclass(frozen=True)
class Signs(sources.NoiseClips):
    """Noise with classes of its own."""

    @property
    def classes(self) -> tuple[str, ...]:
        return ("minus", "plus")


class Mixed(noise_runs.Noise):
    """A context whose splits are the six clips and four of other classes."""

    def source(self, split: str, /) -> Any:
        return mixture.Concat({"a": mixture.Part(super().source(split)), "b": mixture.Part(Signs(frames=4, size=16, length=4))})


def test_features_of_a_mixture(tmp_path: pathlib.Path) -> None:
    """Clips of all parts under the classes of all, for banks of features and for the ridge probe alike."""
    run = running()
    state = run.create()
    context = Mixed(run, state.params, run.seen(state.extra), 1, tmp_path)
    bank = features.collect(context, split="val", label="", limit=0, batch_size=5)
    assert bank.classes == ("even", "minus", "odd", "plus") and bank.labels.tolist() == [0, 2, 0, 2, 0, 2, 1, 3, 1, 3]
    assert features.collect(context, split="val", label="any", limit=5, batch_size=5).labels.tolist() == [0, 0, 0, 1, 1]
    ridge = probe.Probe(batch_size=5)
    assert ridge.collect(context, {}, "val", 0)["label"].tolist() == bank.labels.tolist() and ridge.source(context, "val", limit=0).classes == bank.classes


def passes(fn: Any, /, *words: Any) -> int:
    """Loops over the blocks of an encoder in a program."""
    return str(jax.make_jaxpr(fn)(*words)).count("scan[")


@pytest.mark.parametrize("objective", [LINEAR, dataclasses.replace(LINEAR, norm="none"), written.pretraining(size=16)], ids=["final", "none", "mae"])
def test_all_layers_take_one_pass(objective: Any) -> None:
    """Features of three layers are those of three calls, from a single run of the encoder; padding is left out of each."""
    batch = {"video": noise_runs.batch((0, 1))["video"]} | ({} if isinstance(objective, Probe) else {"length": np.array([4, 1], np.int32)})
    params = {} if isinstance(objective, Probe) else written.tree(objective)
    extra = running().seen({}) if isinstance(objective, Probe) else {}
    program = functools.partial(objective.represent_layers, layers=(1, -1, 0))
    assert passes(program, params, extra, batch) == 1
    found = jax.jit(program)(params, extra, batch)
    assert set(found) == {1, -1, 0}
    for layer in found:
        want = jax.jit(functools.partial(objective.represent, layer=layer))(params, extra, batch)["video"]
        for name in ("tokens", "pooled", "valid"):
            np.testing.assert_allclose(getattr(found[layer]["video"], name), getattr(want, name), atol=1e-6)
    assert not np.allclose(found[0]["video"].pooled, found[1]["video"].pooled)


def test_all_layers_of_a_classifier_take_one_pass() -> None:
    """As above; the last layer alone has the norm of the head."""
    objective = written.classifier()
    params, batch = written.tree(objective), {"video": noise_runs.batch((0, 1))["video"]}
    program = functools.partial(objective.represent_layers, layers=(-1, 0, 1))
    assert passes(program, params, {}, batch) == 1
    found = jax.jit(program)(params, {}, batch)
    for layer in (-1, 0, 1):
        want = jax.jit(functools.partial(objective.represent, layer=layer))(params, {}, batch)["video"]
        np.testing.assert_allclose(found[layer]["video"].pooled, want.pooled, atol=1e-6)
    np.testing.assert_array_equal(found[-1]["video"].tokens, found[1]["video"].tokens)
    assert not np.allclose(found[-1]["video"].pooled, found[1]["video"].pooled)


def test_the_choice_of_a_head() -> None:
    """The maximum looks at the answers; each half is scored by the head that is best on the other half; unlabelled clips do not count."""
    labels = np.array([0, 0, 1, 1, 0, 0, -1])
    right = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [1, 0], [0, 1], [1, 1]])  # even rows: head 0; odd rows: head 1 with 2 of 3
    total = np.zeros((7, 2, 2), np.float32)
    for row, head in np.ndindex(7, 2):
        total[row, head, labels[row] if right[row, head] else 1 - labels[row]] = 1
    found = attentive.scores(total, labels)
    assert found["head_0"] == pytest.approx(400 / 6) and found["head_1"] == pytest.approx(200 / 6) and found["best_head"] == 0 and found["videos"] == 6
    # Chosen on even rows: head 0, right in 1 of the 3 odd ones. Chosen on odd rows: head 1, right in none of the even ones.
    assert found["selected"] == pytest.approx(100 / 6) and found["best"] == found["head_0"]
    with pytest.raises(UserError, match="no video of the split"):
        attentive.scores(total, np.full(7, -1))


# -- probes of cached features ------------------------------------------------------------------------------------------


def test_nearest_neighbours_by_hand() -> None:
    """Votes of exp(cosine / .07) of the k most similar, against numpy; duplicates decide; a tie goes to the lower class."""
    rng = np.random.default_rng(0)
    train, labels, test = rng.normal(size=(40, 6)), rng.integers(0, 4, 40), rng.normal(size=(25, 6)) * 3
    found = knn.vote(train, labels, test, classes=4, ks=(1, 7, 100), temperature=0.07)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    cosine = unit[1] @ unit[0].T
    for k, guesses in found.items():
        for row in range(25):
            best = np.argsort(-cosine[row])[:k]
            votes = np.bincount(labels[best], np.exp(cosine[row, best] / 0.07), minlength=4)
            assert guesses[row] == votes.argmax()
    twice = np.array([[1.0, 0], [1, 0], [0.98, 0.2], [0, 1]])
    np.testing.assert_array_equal(knn.vote(twice, np.array([2, 2, 1, 0]), np.array([[2.0, 0]]), classes=3, ks=(3,), temperature=0.07)[3], [2])
    np.testing.assert_array_equal(knn.vote(twice, np.array([2, 1, 0, 0]), np.array([[2.0, 0]]), classes=3, ks=(2,), temperature=0.07)[2], [1])
    near = np.array([[0.5, 0.866], [0.98, 0.199], [0.99, 0.141]])  # exp of a cosine over such a temperature is beyond float64
    np.testing.assert_array_equal(knn.vote(near, np.array([0, 1, 1]), np.array([[2.0, 0]]), classes=2, ks=(3,), temperature=1e-4)[3], [1])


def test_votes_for_many_classes_take_little_memory() -> None:
    """A weight for each of 128 clips, 200 neighbours and 700 classes would be 143 MB; the guesses are those that these give, in any order of k."""
    rng = np.random.default_rng(0)
    train, labels, test = rng.normal(size=(400, 8)), rng.integers(0, 700, 400), rng.normal(size=(128, 8))
    asked = {"classes": 700, "ks": (200, 10, 50), "temperature": 0.07}
    knn.vote(train, labels, test, **asked)  # what is compiled once is not what is measured
    tracemalloc.start()
    found = knn.vote(train, labels, test, **asked)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24 and list(found) == [200, 10, 50]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test)]
    cosine = unit[1] @ unit[0].T
    best = np.argsort(-cosine, axis=1)
    for k, guesses in found.items():
        weight = np.exp(np.take_along_axis(cosine, best[:, :k], 1) / 0.07)
        dense = [(weight[row][:, None] * np.eye(700)[labels[best[row, :k]]]).sum(0).argmax() for row in range(128)]
        np.testing.assert_array_equal(guesses, dense)


def blobs(n: int, *, seed: int, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Three clouds in six dimensions, far from 0 and of very different scales."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.random.default_rng(0).normal(size=(3, 6))
    return ((centres[labels] + noise * rng.normal(size=(n, 6))) * 10.0 ** np.arange(-2, 4) + 50).astype(np.float32), labels


def test_linear_heads_of_every_rate() -> None:
    """Two epochs of two heads equal a loop in numpy: BatchNorm, LARS, warm-up and cosine."""
    x, labels = blobs(24, seed=1)
    rates, epochs, size = (0.5, 8.0), 2, 8
    got = linear_probe.fit(x, labels, classes=3, rates=rates, epochs=epochs, batch_size=size, seed=3)
    rng = np.random.default_rng(3)
    orders = np.concatenate([rng.permutation(24) for _ in range(epochs)]).reshape(6, size)
    start = parallel.unbox(jax.jit(lambda key: probing.Linear(3, 2).init(key, jnp.zeros((1, 6))))(jax.random.key(3))["params"])
    grid_rate = [float(optim.Schedule(base=1.0, minimum=0.0, warmup="10%", unit=0).at(jnp.int32(s), batch=1, total=6, steps_per_epoch=1.0)) for s in range(6)]
    for head, rate in enumerate(rates):
        kernel, bias, mean, var = np.float64(start["kernel"][head]), np.zeros(3), np.zeros(6), np.ones(6)
        trace = [np.zeros((6, 3)), np.zeros(3)]
        for step, ids in enumerate(orders):
            rows = np.float64(x[ids])
            z = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-6)
            p = np.exp(z @ kernel + bias)
            error = (p / p.sum(1, keepdims=True) - np.eye(3)[labels[ids]]) / size
            slope = z.T @ error
            slope *= 0.001 * np.linalg.norm(kernel) / np.linalg.norm(slope)
            trace = [0.9 * trace[0] + slope, 0.9 * trace[1] + error.sum(0)]
            kernel, bias = kernel - rate * grid_rate[step] * trace[0], bias - rate * grid_rate[step] * trace[1]
            mean, var = 0.9 * mean + 0.1 * rows.mean(0), 0.9 * var + 0.1 * rows.var(0, ddof=1)
        np.testing.assert_allclose(got["kernel"][head], kernel, rtol=1e-3, atol=1e-6)  # float32 statistics of features near 50
        np.testing.assert_allclose(got["bias"][head], bias, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(got["mean"], mean, rtol=1e-4)
        np.testing.assert_allclose(got["var"], var, rtol=1e-3)


def test_features_that_are_not_finite_have_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first class, which the largest of scores without a number would be, is every clip's: no probe counts it as right."""
    x, labels = blobs(24, seed=1)[0], np.zeros(24, np.int64)
    lost = np.full((5, 6), np.nan, np.float32)
    assert linear_probe.LinearProbe(epochs=1).compare(x, labels, lost, labels[:5], classes=3)["best"] == 0
    np.testing.assert_array_equal(knn.vote(x, labels, lost, classes=3, ks=(3,), temperature=0.07)[3], [-1] * 5)
    banks = {"train": features.Bank({-1: x}, labels, ("a", "b", "c")), "val": features.Bank({-1: lost}, labels[:5], ("a", "b", "c"))}
    monkeypatch.setattr(features, "collect", lambda context, *, split, **_: banks[split])
    assert low_shot.LowShot(shares=(1.0,)).run(types.SimpleNamespace(step=0))["100%"] == 0


@pytest.fixture
def clouds(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A context for evaluators of cached features: layer 0 is noise, layer -1 tells three classes apart."""
    def collect(context: Any, /, *, split: str, limit: int, layers: tuple[int, ...], **_: Any) -> features.Bank:
        x, labels = blobs(limit or 90, seed=1 if split == "train" else 2)
        noise = np.random.default_rng(limit + (split == "val")).normal(size=x.shape).astype(np.float32)
        return features.Bank({n: x if n == -1 else noise for n in layers}, labels, ("a", "b", "c"))
    monkeypatch.setattr(features, "collect", collect)
    return types.SimpleNamespace(step=5)


def test_a_rate_is_not_chosen_on_one_clip() -> None:
    """Nothing is left to train on; two are enough."""
    x, labels = blobs(2, seed=0)
    with pytest.raises(UserError, match="1 labelled training clip; allowed are 2 and more"):
        linear_probe.LinearProbe(epochs=1).compare(x[:1], labels[:1], x, labels, classes=3)
    assert linear_probe.LinearProbe(epochs=1).compare(x, labels, x, labels, classes=3).keys() == {"best", "selected", "rate"}


def test_the_suite_tells_good_layers_from_bad(clouds: Any) -> None:
    """A layer sweep finds the layer with the classes; low-shot accuracy rises with the labels; all chances are named."""
    sweep = linear_probe.LinearProbe(layers=(0, -1), rates=(0.1, 3.0, 30.0), epochs=30, rows=16).run(clouds)
    assert sweep["best_layer"] == -1 and sweep["layer-1_selected"] > 75 > 60 > sweep["layer0_best"] and sweep["chance"] == pytest.approx(100 / 3)
    assert sweep["layer-1_rate"] in (0.1, 3.0, 30.0) and sweep["layer-1_best"] >= sweep["layer-1_selected"]
    near = knn.Neighbours(layers=(0, -1), k=(5, 20)).run(clouds)
    assert near.keys() == {f"layer{n}_k{k}" for n in (0, -1) for k in (5, 20)} | {"chance"}
    curve = low_shot.LowShot(shares=(0.02, 0.2, 1.0), seeds=4, test=300).run(clouds)
    assert curve["2%_clips"] == 3 and curve["20%_clips"] == 18 and curve["100%_clips"] == 90
    assert curve["2%"] < curve["20%"] < curve["100%"] and curve["100%"] > 80 and curve["2%_std"] > 0


def test_probes_of_cached_features_can_wait(clouds: Any) -> None:
    """Before the step that they wait for they look at no clip."""
    for probe_of in (linear_probe.LinearProbe, knn.Neighbours, low_shot.LowShot):
        assert probe_of(first=6).run(clouds) == {} != probe_of(first=5, **({"epochs": 1} if probe_of is linear_probe.LinearProbe else {})).run(clouds)


def fitted_pooler(tokens: jax.Array, labels: np.ndarray, /) -> Any:
    """Parameters of one attentive head of one block after 60 steps of Adam on all tokens [n N D], and that head."""
    head = probing.Attentive(classes=4, count=1, blocks=1, heads=2, ratio=2)
    adam, params = optax.adam(3e-3), parallel.unbox(head.init(jax.random.key(0), tokens[:1])["params"])

    def loss(params: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(head.apply({"params": params}, tokens)[:, 0], labels).mean()

    def step(carry: Any, _: Any) -> Any:
        moves, state = adam.update(jax.grad(loss)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], moves), state), None
    return jax.jit(lambda params: jax.lax.scan(step, (params, adam.init(params)), length=60)[0][0])(params), head


def test_real_clips(real_videos: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of real videos: neighbours, linear layers by layer, a low-shot curve and an attentive head tell which video other windows are from."""
    names = ("arm_wrestling.mp4", "bottle_drumming.mp4", "flipping_pancake.mkv", "talking_face.mp4")
    (tmp_path / "labels.csv").write_text("path,label,split\n" + "".join(f"{name},{name[:-4]},train\n" for name in names))
    out = tmp_path / "index.parquet"
    assert entry.main(["index", str(real_videos), f"--out={out}", f"--labels={tmp_path / 'labels.csv'}"]) == 0
    views = [sources.VideoClips(index=str(out), frames=4, size=16, sampling=clips.DenseView(stride=4, views=8, view=v), crop=transforms.CentreCrop())
             for v in range(8)]
    found = [source.read(row, rng=np.random.default_rng(0)) for source in views for row in range(4)]
    labels, run = np.array([clip["label"][0] for clip in found]), running()
    represent = jax.jit(lambda extra, video: {n: (f["video"].pooled, f["video"].tokens) for n, f in LINEAR.represent_layers(
        {}, extra, {"video": video}, layers=(0, -1)).items()})
    seen = represent(run.seen({}), np.stack([clip["video"][0] for clip in found]))
    banks, tokens = {n: np.asarray(pooled) for n, (pooled, _) in seen.items()}, seen[-1][1]
    x = banks[-1]
    learnt = np.arange(len(x)) // 4 % 2 == 0
    guesses = knn.vote(x[learnt], labels[learnt], x[~learnt], classes=4, ks=(1,), temperature=0.07)[1]
    assert np.mean(guesses == labels[~learnt]) >= 0.75  # chance is a quarter
    fitted = linear_probe.LinearProbe(rates=(1.0, 10.0), epochs=40, rows=8).compare(x[learnt], labels[learnt], x[~learnt], labels[~learnt], classes=4)
    assert fitted["selected"] >= 75
    monkeypatch.setattr(features, "collect", lambda _, *, split, layers, **kw: features.Bank(
        {n: banks[n][learnt == (split == "train")] for n in layers}, labels[learnt == (split == "train")], tuple("abcd")))
    sweep = linear_probe.LinearProbe(layers=(0, -1), rates=(1.0, 10.0), epochs=40, rows=8).run(types.SimpleNamespace(step=0))
    assert sweep["layer-1_selected"] == fitted["selected"] and sweep["layer0_selected"] >= 50  # twice chance
    curve = low_shot.LowShot(shares=(0.25, 1.0), seeds=2).run(types.SimpleNamespace(step=0))
    assert (curve["25%_clips"], curve["100%_clips"]) == (4, 16) and curve["100%"] >= max(75, curve["25%"])
    tuned, head = fitted_pooler(tokens[learnt], labels[learnt])
    assert np.mean(np.asarray(head.apply({"params": tuned}, tokens[~learnt]))[:, 0].argmax(-1) == labels[~learnt]) >= 0.75


def test_one_clip_of_each_class_is_enough_where_classes_lie_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every drawn clip is learnt from: a class that is left out cannot be found again."""
    centres = 5 * np.random.default_rng(0).normal(size=(20, 64))

    def collect(context: Any, /, *, split: str, **_: Any) -> features.Bank:
        labels = np.tile(np.arange(20), 100 if split == "train" else 10)
        noise = 0.1 * np.random.default_rng(len(labels)).normal(size=(len(labels), 64))
        return features.Bank({-1: centres[labels] + noise}, labels, tuple(map(str, range(20))))
    monkeypatch.setattr(features, "collect", collect)
    found = low_shot.LowShot(shares=(0.01, 0.02)).run(types.SimpleNamespace(step=0))
    assert found["1%_clips"] == 20 and found["1%"] == found["2%"] == 100


def test_balanced_parts() -> None:
    """The same share of every class, at least one clip; other seeds draw others."""
    labels = np.repeat([0, 1, 2], [100, 10, 1])
    rows = [features.balanced(labels, share=0.1, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(np.bincount(labels[rows[0]]), [10, 1, 1])
    np.testing.assert_array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2]) and len(set(rows[2])) == len(rows[2])
