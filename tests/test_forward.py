"""VideoMAE's network at work: the forward pass against a float64 transcription in numpy, stacks, bfloat16, traced cost."""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import masking, optim, parallel
from videomae_jax.errors import UserError
from videomae_jax.evals import linear_probe
from videomae_jax.models import attention, heads, layers, patches, probing, vit
from videomae_jax.objectives.mae import MAE

SMALL = MAE(encoder=vit.Encoder(width=32, depth=3, heads=4, hidden=64, patch=(2, 8, 8), frames=8, size=32),
            decoder=vit.Decoder(width=24, depth=2, heads=3, hidden=48))
EPS = 1e-6  # VideoMAE's, of every LayerNorm


def abstract(objective: MAE, /) -> dict:
    """Shapes of the parameters, no memory."""
    return parallel.unbox(jax.eval_shape(lambda key: objective.init(key, {}), jax.random.key(0)))


@functools.cache
def initial() -> dict:
    """Fresh parameters of SMALL."""
    return parallel.unbox(jax.jit(lambda key: SMALL.init(key, {}))(jax.random.key(0)))


def perturbed() -> dict:
    """Parameters of SMALL with noise on all of them, so that a forgotten bias or scale is noticed."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(size=x.shape) * 0.05, jnp.float32), initial())


def batch_of(rows: int, /, *, objective: MAE = SMALL) -> dict[str, jax.Array]:
    """Noise clips with distinct stream keys."""
    e = objective.encoder
    video = np.random.default_rng(1).integers(0, 256, (rows, e.frames, e.size, e.size, 3), np.uint8)
    return {"video": jnp.asarray(video), "key": jnp.stack([jnp.arange(rows), jnp.zeros(rows, int)], 1).astype(jnp.uint32), "valid": jnp.ones(rows, bool)}


def norm64(x: np.ndarray, p: dict, /) -> np.ndarray:
    """LayerNorm."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * p["scale"] + p["bias"]


def gelu64(x: np.ndarray, /) -> np.ndarray:
    """x * Phi(x), exact."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / 2**0.5))


def block64(x: np.ndarray, p: dict, /) -> np.ndarray:
    """Pre-LN block with the official packing: rows of the fused matrix are q, k, v; bias (q, 0, v); q scaled after its bias."""
    b, n, width = x.shape
    heads, size = p["attn"]["q_bias"].shape
    matrix = p["attn"]["qkv"].reshape(width, 3 * width)
    bias = np.concatenate([p["attn"]["q_bias"].ravel(), np.zeros(width), p["attn"]["v_bias"].ravel()])
    qkv = (norm64(x, p["norm1"]) @ matrix + bias).reshape(b, n, 3, heads, size).transpose(2, 0, 3, 1, 4)
    logits = qkv[0] * size**-0.5 @ qkv[1].transpose(0, 1, 3, 2)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    y = (weights / weights.sum(-1, keepdims=True) @ qkv[2]).transpose(0, 2, 1, 3).reshape(b, n, width)
    x = x + y @ p["attn"]["out"].reshape(width, width) + p["attn"]["out_bias"]
    y = gelu64(norm64(x, p["norm2"]) @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"])
    return x + y @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]


def stack64(x: np.ndarray, p: dict, /) -> list[np.ndarray]:
    """Outputs of all blocks."""
    outputs = []
    for layer in range(p["block"]["norm1"]["scale"].shape[0]):
        x = block64(x, jax.tree.map(lambda leaf, i=layer: leaf[i], p["block"]))
        outputs.append(x)
    return outputs


def table64(tokens: int, width: int, /) -> np.ndarray:
    """The position table, one entry at a time."""
    table = np.empty((tokens, width))
    for j in range(width):
        angle = np.arange(tokens) / 10000 ** (2 * (j // 2) / width)
        table[:, j] = np.sin(angle) if j % 2 == 0 else np.cos(angle)
    return table


def forward64(params: dict, batch: dict, masks: masking.Mask, /) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Encoder tokens, predictions and block outputs of SMALL: embed all tokens, add positions, gather (V2 modeling_pretrain)."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    video = np.asarray(batch["video"], np.float64) / 255
    video = (video - patches.IMAGENET_MEAN) / np.asarray(patches.IMAGENET_STD)
    cubes = np.stack([video[:, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8].reshape(len(video), -1) for t, h, w in np.ndindex(4, 4, 4)], 1)
    x = cubes @ p["encoder"]["embed"]["kernel"] + p["encoder"]["embed"]["bias"] + table64(64, 32)
    rows = np.arange(len(video))[:, None]
    outputs = stack64(x[rows, np.asarray(masks.visible)], p["encoder"]["stack"])
    tokens = norm64(outputs[-1], p["encoder"]["norm"])
    d, table = p["decoder"], table64(64, 24)
    x = np.concatenate([tokens @ d["bridge"]["kernel"] + table[np.asarray(masks.visible)], d["mask_token"] + table[np.asarray(masks.target)]], 1)
    x = stack64(x, d["stack"])[-1][:, masks.visible.shape[1] :]
    return tokens, norm64(x, d["norm"]) @ d["head"]["kernel"] + d["head"]["bias"], outputs


@pytest.fixture(scope="module")
def case() -> tuple[dict, dict, masking.Mask]:
    """Parameters, batch and masks of SMALL."""
    batch = batch_of(2)
    return perturbed(), batch, SMALL.masks(batch, jax.random.key(5))


def test_forward_pass_against_numpy(case: tuple) -> None:
    """Tokens, kept layers and predictions to 5e-6 of values up to 4: float32 through five blocks against float64."""
    params, batch, masks = case
    tokens, prediction, outputs = forward64(params, batch, masks)
    visible = masking.take(SMALL.patchify(batch), ids=masks.visible)
    encoded = SMALL.encoder.apply({"params": params["encoder"]}, visible, ids=masks.visible, keep=(0, 2))
    np.testing.assert_allclose(encoded.tokens, tokens, atol=5e-6)
    np.testing.assert_allclose(encoded.kept, np.stack([outputs[0], outputs[2]]), atol=5e-6)
    np.testing.assert_allclose(SMALL.predict(params, {}, batch, jax.random.key(0), masks=masks).patches, prediction, atol=5e-6)


def test_eps_is_that_of_every_layer_norm(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one that changes everything: the numpy network with it, and no other."""
    params, batch, masks = case
    changed = dataclasses.replace(SMALL, encoder=SMALL.encoder.clone(eps=0.1), decoder=SMALL.decoder.clone(eps=0.1))
    got = changed.predict(params, {}, batch, jax.random.key(0), masks=masks).patches
    assert np.abs(np.asarray(got) - forward64(params, batch, masks)[1]).max() > 0.01
    monkeypatch.setitem(globals(), "EPS", 0.1)
    np.testing.assert_allclose(got, forward64(params, batch, masks)[1], atol=5e-6)


def test_forward_pass_notices_the_tanh_gelu(case: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """The approximation that jax defaults to exceeds the tolerance of the comparison with numpy."""
    params, batch, masks = case
    exact = jax.nn.gelu
    monkeypatch.setattr(layers, "gelu", lambda x: exact(x, approximate=True))
    got = SMALL.predict(params, {}, batch, jax.random.key(0), masks=masks).patches
    assert np.abs(np.asarray(got) - forward64(params, batch, masks)[1]).max() > 1e-5


def test_layer_norm_eps_and_two_pass_variance() -> None:
    """eps 1e-6 where the variance is 1e-6, and no cancellation at mean 100."""
    norm = layers.LayerNorm()
    params = parallel.unbox(norm.init(jax.random.key(0), jnp.zeros((1, 8))))
    x = np.tile([1e-3, -1e-3], 4)[None]
    np.testing.assert_allclose(norm.apply(params, jnp.asarray(x, jnp.float32)), x / np.sqrt(2e-6), rtol=1e-5)
    y = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32) + np.float32(100)
    params = parallel.unbox(norm.init(jax.random.key(0), jnp.zeros((1, 64))))
    np.testing.assert_allclose(norm.apply(params, jnp.asarray(y)), norm64(y.astype(np.float64), {"scale": 1, "bias": 0}), atol=2e-5)


def test_gelu_is_exact() -> None:
    """x * Phi(x) by the error function; the tanh approximation is off by up to 5e-4."""
    mlp, x = layers.Mlp(hidden=1), jnp.linspace(-4, 4, 81)[:, None]
    params = parallel.unbox(mlp.init(jax.random.key(0), jnp.zeros((1, 1, 1))))
    params = jax.tree.map(lambda p: jnp.ones_like(p) if p.ndim == 2 else jnp.zeros_like(p), params)
    got = np.asarray(mlp.apply(params, x[None]))[0, :, 0]
    np.testing.assert_allclose(got, gelu64(np.asarray(x[:, 0], np.float64)), atol=1e-6)
    assert np.abs(np.asarray(jax.nn.gelu(x[:, 0], approximate=True)) - got).max() > 1e-4  # so the test can tell


# -- stacks ---------------------------------------------------------------------------------------------------------


def tiny_stack(**kw: Any) -> tuple[layers.Stack, dict, jax.Array]:
    """A stack of 3 blocks, parameters and tokens of 6 rows."""
    stack = layers.Stack(**({"depth": 3, "heads": 2, "hidden": 16} | kw))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 8)), jnp.float32)
    return stack, parallel.unbox(jax.jit(lambda key: stack.init(key, x[:1]))(jax.random.key(1))), x


def stack_grad(stack: layers.Stack, params: dict, x: jax.Array, /) -> tuple[jax.Array, dict]:
    """A scalar of the stack's output and its gradient."""
    return jax.jit(jax.value_and_grad(lambda p: (stack.apply(p, x).tokens ** 3).mean()))(params)


def test_remat_and_unroll_do_not_change_the_function() -> None:
    """Value and gradient equal those of the plain scan; 2e-6 of the largest gradient is float32 reordering."""
    stack, params, x = tiny_stack()
    value, grad = stack_grad(stack, params, x)
    largest = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grad))
    for change in ({"remat": "full"}, {"remat": "dots"}, {"unroll": 3}):
        value_2, grad_2 = stack_grad(stack.clone(**change), params, x)
        np.testing.assert_allclose(value_2, value, rtol=2e-6, err_msg=str(change))
        for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(grad_2), strict=True):
            assert float(jnp.abs(a - b).max()) < 2e-6 * largest, change


def equations(jaxpr: Any, /, *, times: int = 1) -> Iterator[tuple[Any, int]]:
    """Every primitive of a jaxpr and how often it runs."""
    for equation in jaxpr.eqns:
        inner = [v for value in equation.params.values() for v in (value if isinstance(value, (tuple, list)) else [value])
                 if hasattr(v, "eqns") or hasattr(getattr(v, "jaxpr", None), "eqns")]
        if not inner:
            yield equation, times
        for v in inner:
            repeat = equation.params["length"] if equation.primitive.name == "scan" else 1
            yield from equations(getattr(v, "jaxpr", v), times=times * repeat)


def test_remat_recomputes() -> None:
    """"full" recomputes every matrix product in the backward pass, "dots" those of attention only, both the softmax."""
    def count(remat: str, primitive: str) -> int:
        stack = layers.Stack(depth=3, heads=2, hidden=16, remat=remat)
        params = parallel.unbox(jax.eval_shape(lambda key: stack.init(key, jnp.zeros((1, 4, 8))), jax.random.key(0)))
        jaxpr = jax.make_jaxpr(jax.grad(lambda p: stack.apply(p, jnp.ones((1, 4, 8))).tokens.sum()))(params)
        return sum(n for e, n in equations(jaxpr.jaxpr) if e.primitive.name == primitive)

    assert count("none", "dot_general") < count("dots", "dot_general") < count("full", "dot_general")
    assert count("none", "exp") < count("dots", "exp") == count("full", "exp")


def test_drop_path_follows_the_key_of_the_row() -> None:
    """Permuting rows with their keys permutes the result; other keys give another; without keys nothing is dropped."""
    stack, params, x = tiny_stack(drop_path=0.5)
    keys, order = jax.random.split(jax.random.key(7), 6), jnp.asarray([3, 0, 5, 1, 4, 2])
    run = jax.jit(lambda x, keys: stack.apply(params, x, keys=keys).tokens)
    whole = run(x, keys)
    np.testing.assert_allclose(run(x[order], keys[order]), whole[order], atol=1e-6)
    assert jnp.abs(run(x, keys[order]) - whole).max() > 1e-2
    plain = tiny_stack(drop_path=0.0)[0]
    bare = jax.jit(lambda x: plain.apply(params, x).tokens)(x)
    np.testing.assert_allclose(jax.jit(lambda x: stack.apply(params, x).tokens)(x), bare, atol=0)
    np.testing.assert_allclose(jax.jit(lambda x: plain.apply(params, x, keys=keys).tokens)(x), bare, atol=0)


def test_drop_path_rates_rise_linearly_and_branches_drop_apart() -> None:
    """linspace(0, rate, depth): block 0 never drops; block k leaves a row untouched with probability rate_k ** 2."""
    stack, params, _ = tiny_stack(drop_path=0.8)
    rows = 1000
    x = jnp.broadcast_to(jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 8)), jnp.float32), (rows, 2, 8))
    kept = np.asarray(jax.jit(lambda keys: stack.apply(params, x, keys=keys, keep=(0, 1, 2)).kept)(jax.random.split(jax.random.key(0), rows)))
    assert np.ptp(kept[0], axis=0).max() == 0
    for block, rate in ((1, 0.4), (2, 0.8)):
        untouched = (kept[block] == kept[block - 1]).all((1, 2)).mean()
        assert abs(untouched - rate**2) < 5 * (rate**2 * (1 - rate**2) / rows) ** 0.5


def test_drop_path_keeps_the_expectation() -> None:
    """Kept rows are scaled by 1 / (1 - rate); 5 deviations of a mean of 20000 rows."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    y = np.asarray(layers.drop_path(jnp.ones((20_000, 1, 1)), keys, rate=jnp.float32(0.25))).ravel()
    np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
    assert abs(y.mean() - 1) < 5 * (1 / 3 / 20_000) ** 0.5


def test_drop_path_keeps_the_expectation_in_bfloat16() -> None:
    """1 - rate is divided by as it is; rounded to bfloat16 it would make kept rows .17 % larger."""
    x = jax.random.uniform(jax.random.key(1), (20_000, 1, 8), minval=1, maxval=2).astype(jnp.bfloat16)
    y = layers.drop_path(x, jax.random.split(jax.random.key(0), 20_000), rate=jnp.float32(0.1))
    found, given = np.asarray(y, np.float64), np.asarray(x, np.float64)
    assert y.dtype == x.dtype and abs(found.sum() / given[found > 0].sum() * 0.9 - 1) < 1e-4


def test_padding_keys_are_inert() -> None:
    """Tokens that are not valid change nothing for the others, in encoder and decoder: as if they were absent."""
    params, batch = perturbed(), batch_of(2)
    x = SMALL.patchify(batch)[:, :12]
    ids = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32) * 5, (2, 12))
    valid = jnp.broadcast_to(jnp.arange(12) < 9, (2, 12))

    @jax.jit
    def encode(x: jax.Array, ids: jax.Array, valid: jax.Array | None) -> jax.Array:
        return SMALL.encoder.apply({"params": params["encoder"]}, x, ids=ids, valid=valid).tokens

    @jax.jit
    def decode(tokens: jax.Array, ids: jax.Array, valid: jax.Array | None) -> jax.Array:
        target = jnp.broadcast_to(jnp.arange(4, dtype=jnp.int32) + 1, (2, 4))
        return SMALL.decoder.apply({"params": params["decoder"]}, tokens, visible=ids, target=target, grid=SMALL.encoder.grid, values=384, valid=valid)

    padded, absent, seen = encode(x, ids, valid), encode(x[:, :9], ids[:, :9], None), encode(x, ids, None)
    np.testing.assert_allclose(padded[:, :9], absent, atol=1e-5)
    np.testing.assert_allclose(encode(x.at[:, 9:].set(0.0), ids, valid)[:, :9], padded[:, :9], atol=0)
    assert jnp.abs(seen[:, :9] - absent).max() > 1e-3  # so the test can tell
    np.testing.assert_allclose(decode(padded, ids, valid), decode(absent, ids[:, :9], None), atol=1e-5)


# -- bfloat16 -------------------------------------------------------------------------------------------------------


BF16 = dataclasses.replace(SMALL, encoder=SMALL.encoder.clone(dtype="bfloat16"), decoder=SMALL.decoder.clone(dtype="bfloat16"))


def test_bfloat16_keeps_float32_islands(case: tuple) -> None:
    """Softmax, LayerNorm, target and loss in float32, matrix products on bfloat16, parameters float32; close to float32 in value."""
    params, batch, masks = case
    assert {x.dtype for x in jax.tree.leaves(abstract(BF16))} == {jnp.dtype("float32")}

    def loss(params: dict, masks: masking.Mask) -> jax.Array:
        term = BF16.loss(params, {}, batch, jax.random.key(0), step=jnp.int32(0), train=True, masks=masks).terms["reconstruction"]
        assert term.total.dtype == term.weight.dtype == jnp.float32
        return term.total.sum() / term.weight.sum()

    found: dict[str, set] = {}
    products = []
    for equation, _ in equations(jax.make_jaxpr(loss)(params, masks).jaxpr):
        for x in equation.invars:
            found.setdefault(equation.primitive.name, set()).add(x.aval.dtype.name)
        products += [equation] if equation.primitive.name == "dot_general" else []
    for island in ("exp", "rsqrt", "reduce_max", "sqrt", "reduce_sum"):
        assert found[island] == {"float32"}, island
    target = jax.make_jaxpr(BF16.target)(jnp.zeros((1, 2, BF16.encoder.values)))
    exact = [e for e, _ in equations(target.jaxpr) if e.primitive.name == "dot_general"]
    kinds = [{x.aval.dtype.name for x in e.invars} for e in products]
    assert kinds.count({"float32"}) == len(exact) and kinds.count({"bfloat16"}) == len(kinds) - len(exact) > 0
    prediction, exact = (o.predict(params, {}, batch, jax.random.key(0), masks=masks).patches for o in (BF16, SMALL))
    assert prediction.dtype == jnp.float32
    error = float(jnp.abs(prediction - exact).max() / jnp.abs(exact).max())
    assert 1e-5 < error < 3e-2  # 8 bits of mantissa through five blocks


def test_bfloat16_softmax_is_summed_in_float32() -> None:
    """Weights over 4096 equal keys: a bfloat16 sum would stop at 256."""
    q = jnp.zeros((1, 1, 1, 8), jnp.bfloat16)
    k = jnp.zeros((1, 4096, 1, 8), jnp.bfloat16)
    y = attention.attend(q, k, jnp.ones_like(k), implementation="xla", valid=None)
    assert y.dtype == jnp.bfloat16 and float(jnp.abs(y - 1).max()) < 1e-2


@pytest.mark.parametrize(("island", "shape"), [
    (heads.Classifier(classes=3), (2, 5, 8)), (probing.Linear(classes=3, count=2), (2, 8)),
    (probing.Attentive(classes=3, count=2, blocks=2, heads=2), (2, 5, 8))], ids=lambda x: type(x).__name__)
def test_float32_scores_are_not_rounded_by_devices(island: Any, shape: tuple[int, ...]) -> None:
    """Of heads."""
    scores_are_exact(island, shape)


def scores_are_exact(island: Any, shape: tuple[int, ...]) -> None:
    """The last product, forward and in both gradients, says that its factors stay float32, which TPUs and GPUs round by themselves."""
    x = jnp.zeros(shape)
    params = jax.eval_shape(lambda: parallel.unbox(island.init(jax.random.key(0), x)["params"]))

    def total(params: dict, x: jax.Array) -> jax.Array:
        return sum(y.sum() for y in jax.tree.leaves(island.apply({"params": params}, x)))

    for function, count in ((total, 1), (jax.grad(total, argnums=(0, 1)), 3)):
        found = [e.params["precision"] for e, _ in equations(jax.make_jaxpr(function)(params, x).jaxpr) if e.primitive.name == "dot_general"]
        assert sum(p == (jax.lax.Precision.HIGHEST,) * 2 for p in found) == count, found


def test_heads_of_cached_features_are_fitted_in_float32() -> None:
    """Every product of the fit and of its gradient: a rounded one would choose another rate on a TPU."""
    grid = optim.Grid(schedule=optim.Schedule(base=1.0, minimum=0.0, warmup="10%", unit=0), rates=(0.1, 1.0), method="lars")
    made = jax.make_jaxpr(functools.partial(linear_probe._fit, classes=3, grid=grid))(
        jnp.zeros((8, 6)), jnp.zeros(8, jnp.int32), jnp.zeros((2, 4), jnp.int32), jax.random.key(0))
    found = [e.params["precision"] for e, _ in equations(made.jaxpr) if e.primitive.name == "dot_general"]
    assert found and set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


# -- cost -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["S", "B", "g"])
def test_cost_counts_every_matrix_product(size: str) -> None:
    """The multiply-adds of the traced forward pass, loops unrolled, equal the formula exactly."""
    objective = MAE(encoder=vit.encoder(size, attention="xla"), decoder=vit.decoder(size, attention="xla"))  # blocks pad the queries
    n, e = objective.counts(), objective.encoder
    shape = jax.ShapeDtypeStruct
    masks = masking.Mask(shape((1, n["visible"]), jnp.int32), shape((1, n["decoded"]), jnp.int32), None, None)
    arguments = abstract(objective), shape((1, n["all"], e.values), jnp.float32), masks
    cost = objective.cost()
    assert products(jax.make_jaxpr(lambda p, x, m: objective.forward(p, x, m, keys=None))(*arguments).jaxpr) == cost.macs
    slopes = jax.make_jaxpr(jax.grad(lambda p, x, m: jnp.sum(objective.forward(p, x, m, keys=None) ** 2)))(*arguments)
    assert 2 * products(slopes.jaxpr) == cost.train_flops  # nobody asks for the gradient of the pixels


def products(jaxpr: Any) -> int:
    """Multiply-adds of all matrix products."""
    total = 0
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "dot_general":
            (contract, _), _ = equation.params["dimension_numbers"]
            total += times * math.prod(equation.outvars[0].aval.shape) * math.prod(equation.invars[0].aval.shape[i] for i in contract)
    return total


# -- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "message"), [
    (lambda: patches.grid_of(frames=15, size=224, patch=(2, 16, 16)), "clip 15x224x224 is not a multiple of the patch 2x16x16"),
    (lambda: patches.grid_of(frames=16, size=220, patch=(2, 16, 16)), "clip 16x220x220 is not a multiple"),
    (lambda: tiny_stack(heads=3), "width 8 is not divisible by 3 heads"),
    (lambda: tiny_stack(remat="some"), "remat 'some'; allowed are none, dots, offload, full"),
    (lambda: tiny_stack(attention="flash"), "attention 'flash'; allowed are 'xla', 'recomputed', 'chunked', 'cudnn', 'splash' and 'auto'"),
    (lambda: layers.Stack(depth=3, heads=2, hidden=16).init(jax.random.key(0), jnp.zeros((1, 5, 8)), keep=(3,)), r"layers \(3,\) asked of a stack of 3 blocks"),
    (lambda: SMALL.patchify({"video": jnp.zeros((1, 8, 64, 64, 3), jnp.uint8)}), r"clips of \(8, 64, 64, 3\) reach an encoder built for \(8, 32, 32, 3\)")])
def test_mistakes(make: object, message: str) -> None:
    """Each names the value and what is allowed."""
    with pytest.raises(UserError, match=message):
        make()
