"""AdaMAE: counts, the law of the draw, the sampling loss by its formula, who learns from what, and a sampler that finds the errors."""

import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import mapped
import numpy as np
import pytest
import scipy.stats
import substitutes
import test_attention
import test_forward
from mapped import value

from videomae_jax import config as configs
from videomae_jax import losses, masking, reinforce
from videomae_jax.assembly import assemble
from videomae_jax.data import clips, parts, shapes, sources, synthetic, transforms
from videomae_jax.errors import UserError
from videomae_jax.evals import sampling
from videomae_jax.evals.base import Context
from videomae_jax.models import patches, sampler, vit
from videomae_jax.objectives.adamae import AdaMAE
from videomae_jax.objectives.mae import MAE

FRAMES, SIZE, PATCH, ROWS = 4, 16, (2, 4, 4), 3
TOKENS, VISIBLE = 32, 6  # 32 * (1 - .8), rounded down
ENCODER = vit.Encoder(width=16, depth=1, heads=2, hidden=32, patch=PATCH, frames=FRAMES, size=SIZE)
OBJECTIVE = AdaMAE(encoder=ENCODER, decoder=vit.Decoder(width=16, depth=1, heads=2, hidden=32), sampler=sampler.Sampler(heads=2, hidden=32),
                   encoder_mask=masking.Random(ratio=0.8, layout="token", truncate="visible"))
KEY = jax.random.key(5)


def batch(*, rows: int = ROWS, seed: int = 0, valid: Any = None) -> dict[str, Any]:
    """Noise whose maps mark the left half of every frame."""
    maps = np.zeros((rows, FRAMES, SIZE, SIZE), np.uint8)
    maps[..., : SIZE // 2] = 2
    return mapped.batch(maps, seed=seed, valid=valid)


@functools.cache
def initial() -> Any:
    """Parameters whose positions and biases are no longer 0."""
    return mapped.parameters(OBJECTIVE, batch(rows=1))


LOSS = jax.jit(lambda params, rows, masks=None: OBJECTIVE.loss(params, {}, rows, KEY, step=0, train=False, masks=masks))
PREDICT = jax.jit(lambda params, rows, rng=KEY, masks=None: OBJECTIVE.predict(params, {}, rows, rng, masks=masks))
LOGITS = jax.jit(lambda params, rows: OBJECTIVE.logits(params, OBJECTIVE.patchify(rows), keys=None))


@functools.cache
def gradients(term: str) -> dict[str, float]:
    """Largest entry of the gradient of a term in training, by leaf."""
    tree = jax.jit(jax.grad(lambda params: value(OBJECTIVE.loss(params, {}, batch(), KEY, step=0, train=True), term)))(initial())
    return {"/".join(k.key for k in path): float(np.abs(leaf).max()) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


# -- counts and the draw -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio, visible", [(0.98, 31), (0.95, 78), (0.9, 156), (0.85, 235), (0.8, 313)])
def test_counts_of_the_published_ratios(ratio: float, visible: int) -> None:
    """The visible count is the one that is rounded down: int(1568 * (1 - ratio))."""
    config = configs.load("configs/adamae/ssv2_b.py")
    config.objective.encoder_mask.ratio = ratio
    objective = configs.build(config.objective)
    mask = jax.eval_shape(lambda: objective.draw(jnp.zeros((2, 1568)), jax.random.split(KEY, 2)))
    assert mask.visible.shape == (2, visible) and mask.target.shape == mask.weight.shape == (2, 1568 - visible)
    assert objective.counts() | {"sampler": 1568} == dict(objective.cost().tokens) == {
        "all": 1568, "visible": visible, "decoded": 1568 - visible, "decoder": 1568, "sampler": 1568}


def test_visible_and_target_are_all_tokens_once() -> None:
    """Sorted ids that complement each other, whatever the logits."""
    logits = 5 * jax.random.normal(KEY, (64, TOKENS))
    mask = OBJECTIVE.draw(logits, jax.random.split(KEY, 64))
    both = np.concatenate([mask.visible, mask.target], 1)
    assert mask.visible.shape == (64, VISIBLE)
    np.testing.assert_array_equal(np.sort(both, 1), np.broadcast_to(np.arange(TOKENS), both.shape))
    assert (np.diff(mask.visible) > 0).all() and (np.diff(mask.target) > 0).all() and (np.asarray(mask.weight) == 1).all()


def test_the_draw_has_the_law_of_successive_draws() -> None:
    """Pairs of 4 tokens occur as often as drawing one by one without putting back says: sum over orders of p_i p_j / (1 - p_i)."""
    p, number = np.array([0.5, 0.25, 0.15, 0.1]), 40_000
    tiny = dataclasses.replace(OBJECTIVE, encoder=dataclasses.replace(ENCODER, frames=2, size=8),
                               encoder_mask=masking.Random(ratio=0.5, layout="token", truncate="visible"))
    pairs = np.asarray(tiny.draw(jnp.broadcast_to(jnp.log(p), (number, 4)), jax.random.split(KEY, number)).visible)
    expected = [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in itertools.combinations(range(4), 2)]
    assert sum(expected) == pytest.approx(1)
    counts = [int(((pairs == pair).all(1)).sum()) for pair in itertools.combinations(range(4), 2)]
    assert scipy.stats.chisquare(counts, number * np.array(expected)).pvalue > 1e-3


def test_other_layouts_and_decoders_are_refused() -> None:
    """Whatever the learned draw does not do is not silently something else."""
    with pytest.raises(UserError, match="'tube'.*allowed are 'token' and Hidden"):
        dataclasses.replace(OBJECTIVE, encoder_mask=masking.Random(ratio=0.9))
    with pytest.raises(UserError, match="RunningCell.*allowed"):
        dataclasses.replace(OBJECTIVE, decoder_mask=masking.RunningCell())
    with pytest.raises(UserError, match="'odds'; allowed are log, probability"):
        dataclasses.replace(OBJECTIVE, score="odds")


# -- the network -------------------------------------------------------------------------------------------------------


def layer_norm(x: np.ndarray, p: Any, /, *, eps: float) -> np.ndarray:
    """LayerNorm over the last axis."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def test_logits_by_a_transcription_in_numpy() -> None:
    """Embedding of every patch + positions -> pre-LN block (eps 1e-5, no biases on q, k, v) -> one linear unit, in float64."""
    start = initial()  # small embeddings, of variance 1e-4, on which the eps of the norm shows
    start = start | {"encoder": start["encoder"] | {"embed": jax.tree.map(lambda x: 0.01 * x, start["encoder"]["embed"])},
                     "sampler": start["sampler"] | {"positions": 0.1 * start["sampler"]["positions"]}}
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), start)
    s, e = params["sampler"], params["encoder"]["embed"]
    x = np.asarray(OBJECTIVE.patchify(batch()), np.float64).reshape(ROWS, TOKENS, -1, 3)
    x = ((x - patches.IMAGENET_MEAN) / patches.IMAGENET_STD).reshape(ROWS, TOKENS, -1)
    x = x @ e["kernel"] + e["bias"] + s["positions"]
    q, k, v = np.einsum("bnd,dchk->cbhnk", layer_norm(x, s["norm1"], eps=1e-5), s["attn"]["qkv"])
    weights = np.exp(q @ k.swapaxes(-1, -2) / np.sqrt(8))
    y = (weights / weights.sum(-1, keepdims=True)) @ v
    x = x + np.einsum("bhnk,hkd->bnd", y, s["attn"]["out"]) + s["attn"]["out_bias"]
    y = layer_norm(x, s["norm2"], eps=1e-5) @ s["mlp"]["fc1"]["kernel"] + s["mlp"]["fc1"]["bias"]
    y = y * scipy.stats.norm.cdf(y)
    logits = (x + y @ s["mlp"]["fc2"]["kernel"] + s["mlp"]["fc2"]["bias"]) @ s["head"]["kernel"][:, 0]
    found = np.asarray(LOGITS(start, batch()))
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-4 * np.abs(logits).max())  # float32 through 6 products
    probabilities = np.asarray(OBJECTIVE.probabilities(start, batch()))
    np.testing.assert_allclose(probabilities, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-3)


def test_the_sampler_sees_the_embeddings_of_the_encoder() -> None:
    """Without blocks, the encoder's tokens before the norm are these embeddings plus its table of positions."""
    x, ids = OBJECTIVE.patchify(batch()), jnp.broadcast_to(jnp.arange(TOKENS), (ROWS, TOKENS))
    still = jax.tree.map(jnp.zeros_like, initial()["encoder"]["stack"])
    kept = ENCODER.apply({"params": initial()["encoder"] | {"stack": still}}, x, ids=ids, keep=(0,)).kept[0]
    np.testing.assert_allclose(sampler.embed(ENCODER, initial()["encoder"], x) + patches.sincos(TOKENS, 16), kept, atol=1e-5)


def test_dropout_of_rows() -> None:
    """A tenth of the entries is 0 and the others are 10/9; rows have their own draws; none without keys."""
    x = jnp.ones((2, 400, 50))
    dropped = np.asarray(sampler.dropout(x, jax.random.split(KEY, 2), rate=0.1))
    assert (dropped == 0).mean() == pytest.approx(0.1, abs=0.01)
    np.testing.assert_allclose(dropped[dropped != 0], 10 / 9, rtol=1e-6)
    assert (dropped[0] != dropped[1]).any()
    assert sampler.dropout(x, None, rate=0.1) is x


def test_dropout_keeps_the_expectation_in_bfloat16() -> None:
    """1 - rate is divided by as it is; rounded to bfloat16 it would make what is kept .17 % larger."""
    x = jax.random.uniform(KEY, (2, 400, 50), minval=1, maxval=2).astype(jnp.bfloat16)
    dropped = sampler.dropout(x, jax.random.split(KEY, 2), rate=0.1)
    found, given = np.asarray(dropped, np.float64), np.asarray(x, np.float64)
    assert dropped.dtype == x.dtype and abs(found.sum() / given[found > 0].sum() * 0.9 - 1) < 1e-4


def test_the_scale_of_the_sampler_is_not_rounded_to_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of the encoder."""
    test_attention.scale_is_kept(sampler.Attention, monkeypatch)


# -- the sampling loss -------------------------------------------------------------------------------------------------


def problem(*, rows: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [B N], errors [B M] and ids [B M] of hidden tokens."""
    rng = np.random.default_rng(3)
    ids = np.stack([np.sort(rng.permutation(7)[:4]) for _ in range(rows)])
    return rng.standard_normal((rows, 7)), rng.random((rows, 4)), ids


def released(logits: np.ndarray, error: np.ndarray, ids: np.ndarray) -> float:
    """The released loop: for every clip -mean over hidden tokens of log p times error, then the mean over clips."""
    total = 0.0
    for row in range(len(logits)):
        p = np.exp(logits[row]) / np.exp(logits[row]).sum()
        total += -np.mean(np.log(p)[ids[row]] * error[row])
    return total / len(logits)


def published(logits: np.ndarray, error: np.ndarray, ids: np.ndarray) -> float:
    """The formula: for every clip -sum over hidden tokens of p times error, then the mean over clips."""
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return float(np.mean([-(p[row, ids[row]] * error[row]).sum() for row in range(len(p))]))


@pytest.mark.parametrize("score, formula", [("log", released), ("probability", published)])
def test_sampling_loss_and_gradient_by_formula(score: str, formula: Any) -> None:
    """Value and finite differences of the transcription, in float32 against float64; a row of weight 0 changes nothing."""
    logits, error, ids = problem(rows=3)
    weight = np.repeat([[1.0], [1.0], [0.0]], 4, 1)

    def loss(logits: Any) -> Any:
        term = reinforce.sampling(logits, jnp.asarray(error), ids=jnp.asarray(ids), weight=jnp.asarray(weight), coefficient=1e-4, score=score)
        return losses.value({"s": term}, denominators=losses.denominators({"s": term}))

    assert float(loss(jnp.asarray(logits))) == pytest.approx(1e-4 * formula(logits[:2], error[:2], ids[:2]), rel=1e-5)
    slope = np.zeros_like(logits)
    for place in np.ndindex(2, 7):
        step = np.zeros_like(logits)
        step[place] = 1e-5
        slope[place] = 1e-4 * (formula((logits + step)[:2], error[:2], ids[:2]) - formula((logits - step)[:2], error[:2], ids[:2])) / 2e-5
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(logits)), slope, rtol=1e-4, atol=1e-9)  # differences of float64 are good to 1e-6


def test_sampling_loss_by_hand() -> None:
    """p = (1/2, 1/4, 1/4), tokens 1 and 2 hidden with errors 2 and 4: -(2 log(1/4) + 4 log(1/4)) / 2 = 6 log 2, and -(2/4 + 4/4) = -1.5.

    Descent pushes p towards both and more towards the worse: the gradient of log is (p S - w) / 2 with w = (0, 2, 4), S = 6.
    """
    logits, arguments = jnp.log(jnp.array([[0.5, 0.25, 0.25]])), {"ids": jnp.array([[1, 2]]), "weight": jnp.ones((1, 2)), "coefficient": 1.0}
    error = jnp.array([[2.0, 4.0]])
    for score, wanted in (("log", 6 * np.log(2)), ("probability", -1.5)):
        term = reinforce.sampling(logits, error, score=score, **arguments)
        assert float(term.total.sum() / term.weight.sum()) == pytest.approx(wanted, rel=1e-6)
    slope = jax.grad(lambda x: reinforce.sampling(x, error, **arguments).total.sum() / 2)(logits)
    np.testing.assert_allclose(slope, [[1.5, -0.25, -1.25]], atol=1e-6)
    with pytest.raises(UserError, match="allowed are log, probability"):
        reinforce.sampling(logits, error, score="odds", **arguments)


def test_loss_is_the_two_terms_under_their_coefficients() -> None:
    """Reconstruction is MAE's under the same masks; sampling is the transcription fed with its token errors, times 1e-4."""
    rows = batch(valid=[True, False, True])
    out = LOSS(initial(), rows)
    predicted = PREDICT(initial(), rows)
    twin = MAE(encoder=ENCODER, decoder=OBJECTIVE.decoder, decoder_mask=masking.Hidden())
    other = jax.jit(lambda params, masks: twin.loss(params, {}, rows, KEY, step=0, train=False, masks=masks))(
        {k: initial()[k] for k in ("encoder", "decoder")}, predicted.masks)
    np.testing.assert_allclose(out.terms["reconstruction"].total, other.terms["reconstruction"].total, rtol=1e-6)
    error = np.mean((np.asarray(predicted.patches) - np.asarray(predicted.targets)) ** 2, -1, dtype=np.float64)[[0, 2]]
    logits = np.asarray(LOGITS(initial(), rows), np.float64)[[0, 2]]
    wanted = 1e-4 * released(logits, error, np.asarray(predicted.masks.target)[[0, 2]])
    assert float(value(out, "sampling")) == pytest.approx(wanted, rel=1e-5)
    assert out.terms["reconstruction"].coefficient == 1.0


def test_given_masks_replace_the_draw() -> None:
    """Loss and predictions use them, and the draw's own logits cannot change the reconstruction under them."""
    uniform = OBJECTIVE.masks(batch(), KEY)
    assert uniform.visible.shape == (ROWS, VISIBLE)
    predicted = PREDICT(initial(), batch(), masks=uniform)
    np.testing.assert_array_equal(predicted.masks.visible, uniform.visible)
    blind = initial() | {"sampler": jax.tree.map(jnp.zeros_like, initial()["sampler"])}
    found = [float(value(LOSS(p, batch(), uniform), "reconstruction")) for p in (initial(), blind)]
    assert found[0] == found[1] == pytest.approx(float(np.mean((np.asarray(predicted.patches) - np.asarray(predicted.targets)) ** 2)), rel=1e-5)
    assert float(value(LOSS(initial(), batch()), "reconstruction")) != found[0]


# -- who learns from what ----------------------------------------------------------------------------------------------


def test_reconstruction_never_reaches_the_sampler() -> None:
    """Exactly 0 in every leaf of the sampler, not 0 in every other."""
    for path, size in gradients("reconstruction").items():
        assert (size == 0) == path.startswith("sampler/"), path


def test_sampling_reaches_the_sampler_and_the_embedding_alone() -> None:
    """Exactly 0 in the encoder's blocks and the decoder; the tubelet embedding is not detached in the released code."""
    for path, size in gradients("sampling").items():
        assert (size != 0) == path.startswith(("sampler/", "encoder/embed/")), path


# -- learning ----------------------------------------------------------------------------------------------------------


def test_p_goes_to_the_tokens_with_errors() -> None:
    """With fixed errors (1, 3, 1, 6, 1, 1) and 2 of 6 visible, p becomes proportional to error x chance of being hidden.

    Plain descent on the loss of 64 drawn masks a step; the chances are those of p itself, by enumeration of the pairs.
    """
    errors, keep = jnp.array([1.0, 3.0, 1.0, 6.0, 1.0, 1.0]), 2

    def loss(logits: Any, key: Any) -> Any:
        many = jnp.broadcast_to(logits, (64, 6))
        visible = masking.select(jax.random.split(key, 64), jax.lax.stop_gradient(many)[:, None], keep=keep, layout=masking.Layout.TOKEN)
        hidden = masking.complement(visible, tokens=6)
        term = reinforce.sampling(many, errors[hidden], ids=hidden, weight=jnp.ones(hidden.shape), coefficient=1.0)
        return losses.value({"s": term}, denominators=losses.denominators({"s": term}))

    @jax.jit
    def learn(keys: Any) -> Any:
        return jax.lax.scan(lambda x, key: ((x := x - 0.3 * jax.grad(loss)(x, key)), x), jnp.zeros(6), keys)[1]

    logits = np.asarray(learn(jax.random.split(KEY, 400)))[200:]
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p = (p / p.sum(-1, keepdims=True)).mean(0)
    seen = np.zeros(6)
    for i, j in itertools.permutations(range(6), 2):
        seen[[i, j]] += p[i] * p[j] / (1 - p[i])
    wanted = np.asarray(errors) * (1 - seen)
    assert p.argmax() == 3
    np.testing.assert_allclose(p, wanted / wanted.sum(), atol=0.02)  # noise of 64 masks a step, averaged over 200


# -- metrics and the evaluator -----------------------------------------------------------------------------------------


def test_correlation_entropy_and_preference() -> None:
    """Against scipy and by hand; constants and clips without one of the sides are defined."""
    rng = np.random.default_rng(0)
    a, b, weight = rng.random((2, 3, 9)).tolist() + [np.ones((3, 9))]
    a, b = np.asarray(a), np.asarray(b)
    weight[1, :4] = 0
    found = np.asarray(reinforce.correlation(jnp.asarray(a), jnp.asarray(b), weight=jnp.asarray(weight)))
    wanted = [scipy.stats.pearsonr(x[w > 0], y[w > 0])[0] for x, y, w in zip(a, b, weight, strict=True)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert float(reinforce.correlation(jnp.ones((1, 9)), jnp.asarray(b[:1]), weight=jnp.ones((1, 9)))[0]) == 0
    entropies = np.asarray(reinforce.entropy(jnp.log(jnp.array([[0.25] * 4, [0.5, 0.5, 1e-12, 1e-12]]))))
    np.testing.assert_allclose(entropies, [1, 0.5], atol=1e-6)
    ratio, defined = reinforce.preference(jnp.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.2, 0.4, 0.4]]), jnp.array([[1, 0.5, 0], [0, 0, 0], [1, 0, 0]]))
    np.testing.assert_allclose(ratio, [(0.65 / 1.5) / (0.35 / 1.5), 0, 0.5], rtol=1e-6)
    assert defined.tolist() == [True, False, True]


def test_coverage_counts_pixels() -> None:
    """The left half of the frame is 8 pixels of 16: the two left columns of tokens, whole."""
    share = np.asarray(sampler.coverage(jnp.asarray(batch()["parts"]), patch=PATCH)).reshape(ROWS, 2, 4, 4)
    np.testing.assert_array_equal(share, np.broadcast_to([1, 1, 0, 0], share.shape))
    narrow = np.zeros((1, FRAMES, SIZE, SIZE), np.uint8)
    narrow[:, 0, :4, :2] = 1  # half of a patch in one of its two frames
    assert float(sampler.coverage(jnp.asarray(narrow), patch=PATCH)[0, 0]) == 0.25


def test_metrics_of_a_step_are_of_valid_rows() -> None:
    """Means over valid rows of what the functions above say; the object ratio needs part maps."""
    rows = batch(valid=[True, False, True])
    out = LOSS(initial(), rows)
    p = np.asarray(OBJECTIVE.probabilities(initial(), rows), np.float64)[[0, 2]]
    found = {k: float(m.reduce().value()) for k, m in out.metrics.items()}
    assert found["entropy"] == pytest.approx(np.mean([scipy.stats.entropy(x) for x in p]) / np.log(TOKENS), rel=1e-5)
    left = np.tile([True, True, False, False], 8)
    assert found["object_ratio"] == pytest.approx(np.mean(p[:, left].mean(1) / p[:, ~left].mean(1)), rel=1e-5)
    predicted = PREDICT(initial(), rows)
    error, target = np.mean((np.asarray(predicted.patches) - np.asarray(predicted.targets)) ** 2, -1)[[0, 2]], np.asarray(predicted.masks.target)[[0, 2]]
    assert found["correlation"] == pytest.approx(np.mean([scipy.stats.pearsonr(x[i], e)[0] for x, i, e in zip(p, target, error, strict=True)]), abs=1e-5)
    assert "object_ratio" not in jax.eval_shape(LOSS, initial(), {k: v for k, v in rows.items() if k != "parts"}).metrics


class Toy(Context):
    """A context whose evaluation data is noise with part maps in memory."""

    def source(self, split: str, /) -> Any:
        return Halves(frames=FRAMES, size=SIZE, length=5, split=split)


@dataclasses.dataclass(frozen=True)
class Halves(mapped.Mapped):
    """The left half is marked, but for every fourth clip, which has no object."""

    def parts(self, row: int, /) -> np.ndarray:
        return batch(rows=1)["parts"] * (row % 4 != 3)


def context(directory: pathlib.Path, objective: Any, params: Any) -> Toy:
    """A run of an objective at given parameters."""
    config = configs.load("configs/tiny.py")
    config.unlock()
    config.objective, config.data = configs.plain(objective), configs.spec(sources.NoiseClips, frames=FRAMES, size=SIZE)
    return Toy(assemble(config, devices=jax.devices()[:1]), params, {}, 7, directory)


def test_evaluator_by_a_slow_transcription(tmp_path: pathlib.Path) -> None:
    """Correlations with scipy on error maps collected mask by mask, padding left out, clips without object out of the ratio."""
    toy = context(tmp_path, OBJECTIVE, initial())
    mask = masking.Random(ratio=0.5, layout="token", truncate="visible")
    found = sampling.Sampling(batch_size=2, clips=5, mask=mask, draws=2).run(toy)
    expected: dict[str, list[float]] = {}
    for rows in toy.sweep(toy.source("val"), batch_size=5):
        p, own = np.asarray(OBJECTIVE.probabilities(initial(), rows)), PREDICT(initial(), rows, toy.rng)
        total, times = np.zeros((5, TOKENS)), np.zeros((5, TOKENS))
        for number in range(2):
            keys = [jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(toy.rng, number), k[0]), k[1]) for k in np.asarray(rows["key"])]
            drawn = masking.draw(jnp.stack(keys), encoder=mask, decoder=masking.Hidden(), grid=ENCODER.grid)
            predicted = PREDICT(initial(), rows, toy.rng, drawn)
            for row, (ids, error) in enumerate(zip(np.asarray(drawn.target), np.mean((predicted.patches - predicted.targets) ** 2, -1), strict=True)):
                total[row, ids] += error
                times[row, ids] += 1
        for row in range(5):
            some = times[row] > 0
            errors, left = total[row, some] / times[row, some], np.tile([True, True, False, False], 8)
            values = {"correlation": scipy.stats.pearsonr(p[row, some], errors)[0], "rank_correlation": scipy.stats.spearmanr(p[row, some], errors)[0],
                      "loss_uniform": total[row].sum() / times[row].sum(), "entropy": scipy.stats.entropy(p[row]) / np.log(TOKENS),
                      "loss_own": float(np.mean((own.patches[row] - own.targets[row]) ** 2)),
                      "object_share": 0.5 * (row != 3), "object_seen": left[np.asarray(own.masks.visible[row])].mean() * (row != 3)}
            values |= {"object_ratio": p[row, left].mean() / p[row, ~left].mean()} if row != 3 else {}
            for name, number in values.items():
                expected.setdefault(name, []).append(number)
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert found[name] == pytest.approx(np.mean(numbers), rel=2e-5, abs=2e-6), name


def test_evaluator_without_substitutes_and_padding(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Means are over the readable clips, whatever else is shown."""
    toy = context(tmp_path, OBJECTIVE, initial())
    evaluator = sampling.Sampling(batch_size=2, clips=5, mask=masking.Random(ratio=0.5, layout="token", truncate="visible"), draws=1)
    one, other = substitutes.outcomes(monkeypatch, lambda: evaluator.run(toy))
    assert one == pytest.approx(other, rel=1e-6)


def test_evaluator_needs_a_learned_distribution(tmp_path: pathlib.Path) -> None:
    """Another recipe is told what is missing."""
    twin = MAE(encoder=ENCODER, decoder=OBJECTIVE.decoder)
    with pytest.raises(UserError, match="MAE draws its masks without a learned distribution"):
        sampling.Sampling().run(context(tmp_path, twin, {}))


def test_objects_of_the_world_reach_the_batch(tmp_path: pathlib.Path) -> None:
    """Maps called `objects` in the truth of moving shapes: bright pixels of the clip are those of the sprite."""
    plan = synthetic.Plan(world=shapes.Shapes(size=32, frames=8, radius=(0.15, 0.2)), train=1, val=0, test=0, truth=True)
    synthetic.write(tmp_path, plan, workers=1)
    from videomae_jax.data import index

    index.write(index.build(tmp_path, labels=tmp_path / "labels.csv"), tmp_path / "index.parquet")
    source = parts.PartClips(index=str(tmp_path / "index.parquet"), frames=4, size=32, sampling=clips.DenseCentre(stride=1),
                             crop=transforms.WholeFrame(), array="objects")
    example = source.read(0, rng=np.random.default_rng(0))
    on, off = (example["video"][example["parts"] == k].mean() for k in (1, 0))
    assert set(np.unique(example["parts"])) == {0, 1} and 0.04 < (example["parts"] > 0).mean() < 0.16
    assert on > 2 * off


def test_probabilities_of_the_sampler_are_not_rounded_by_devices() -> None:
    """In float32, which TPUs and GPUs multiply in fewer bits by themselves."""
    test_forward.scores_are_exact(sampler.Sampler(heads=2, hidden=16), (2, 5, 8))
