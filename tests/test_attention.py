"""Attention in blocks and by kernels: the same numbers as the plain form, forward and backward, no matrix of all logits; the choice by device."""

import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import parallel
from videomae_jax.errors import UserError
from videomae_jax.models import attention, kernels, layers, vit
from videomae_jax.types import Array

TOLERANCE = 2e-6  # of the largest value: float32 logits of 10 and sums in another order
Arrays = tuple[Array, ...]


def inputs(*, tokens: int = 50, keys: int = 50, dtype: Any = jnp.float32) -> Arrays:
    """Scaled queries, keys, values and a gradient [2 N 3 8]; logits within about 10, whose float32 rounding is 1e-6."""
    rng = np.random.default_rng(tokens)
    shapes = [(2, n, 3, 8) for n in (tokens, keys, keys, tokens)]
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)


def both(implementation: str, arrays: Arrays, valid: Array | None) -> Arrays:
    """Result and gradients of queries, keys and values."""
    q, k, v, gradient = arrays
    y, back = jax.vjp(lambda *x: attention.attend(*x, implementation=implementation, valid=valid), q, k, v)
    return y, *back(gradient)


def close(found: Arrays, expected: Arrays, tolerance: float) -> None:
    """Largest difference over largest value."""
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.fixture(params=[8, 1], ids=["many devices", "one device"])
def loop(request: pytest.FixtureRequest) -> Iterator[int]:
    """Both ways to run: all heads together, and one after the other."""
    with parallel.aim(parallel.Target("cpu", request.param)):
        yield request.param


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [50, 25, 16, 1, 400])
def test_equals_the_plain_form(loop: int, block: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that divide the queries and blocks that do not, with and without padded keys."""
    monkeypatch.setattr(attention, "BLOCK", block)
    valid = jnp.asarray(np.arange(50)[None] < np.array([[50], [31]])) if masked else None
    close(both("chunked", inputs(), valid), both("xla", inputs(), valid), TOLERANCE)


def test_queries_and_keys_may_differ_in_number(loop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in cross-attention."""
    monkeypatch.setattr(attention, "BLOCK", 8)
    close(both("chunked", inputs(tokens=13, keys=50), None), both("xla", inputs(tokens=13, keys=50), None), TOLERANCE)


def test_equals_float64(loop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax written out in numpy, and logits so large that they overflow without the maximum taken off."""
    monkeypatch.setattr(attention, "BLOCK", 16)
    q, k, v, _ = inputs()
    q = 100 * q
    logits = np.einsum("bqhd,bkhd->bhqk", *(np.asarray(x, np.float64) for x in (q, k)))
    assert logits.max() > 200
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weight / weight.sum(-1, keepdims=True), np.asarray(v, np.float64))
    found = both("chunked", (q, k, v, jnp.ones_like(q)), None)
    assert all(np.isfinite(x).all() for x in found)
    np.testing.assert_allclose(found[0], expected, atol=1e-4)  # float32 logits of 400 are exact to 3e-5


def test_padded_keys_have_no_influence(loop: int) -> None:
    """Neither on the result nor through gradients."""
    q, k, v, gradient = inputs()
    valid = jnp.broadcast_to(jnp.arange(50) < 31, (2, 50))
    spoilt = both("chunked", (q, k.at[:, 31:].set(9.0), v.at[:, 31:].set(-9.0), gradient), valid)
    clean = both("chunked", (q, k, v, gradient), valid)
    close(spoilt[:2], clean[:2], 0.0)
    assert not spoilt[2][:, 31:].any() and not spoilt[3][:, 31:].any() and spoilt[3][:, :31].any()


def test_bfloat16_keeps_a_float32_softmax(loop: int) -> None:
    """Two bfloat16 roundings from the float32 result, as the plain form is."""
    arrays = inputs(dtype=jnp.bfloat16)
    found = both("chunked", arrays, None)
    assert all(x.dtype == jnp.bfloat16 for x in found)
    close(found, both("xla", tuple(x.astype(jnp.float32) for x in arrays), None), 2e-2)


def scale_is_kept(module: Any, monkeypatch: pytest.MonkeyPatch, /) -> None:
    """ViT-g's 88 channels: over many queries, whose own rounding has no direction, it is met to .01 %; rounded to bfloat16 it is .14 % too small."""
    seen: list[Arrays] = []
    monkeypatch.setitem(attention.IMPLEMENTATIONS, "xla", lambda q, k, v, *, valid: seen.append((q, k)) or v)
    x, block = jax.random.normal(jax.random.key(0), (4, 50, 176), jnp.bfloat16), module(heads=2, dtype=jnp.bfloat16)
    params = parallel.unbox(block.init(jax.random.key(1), x))
    kernel = params["params"]["qkv"]
    params["params"]["qkv"] = kernel.at[:, 1].set(kernel[:, 0])  # the keys are the queries before they are scaled
    block.apply(params, x)
    q, k = (np.asarray(y, np.float64) for y in seen[-1])
    assert seen[-1][0].dtype == jnp.bfloat16 and abs((q * k).sum() / (k * k).sum() * 88**0.5 - 1) < 1e-4


def test_the_scale_is_not_rounded_to_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would move all logits in one direction."""
    scale_is_kept(layers.Attention, monkeypatch)


def test_the_matrix_of_all_logits_is_never_made(loop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No array of N x N values in the compiled forward and backward pass; the plain form has some."""
    monkeypatch.setattr(attention, "BLOCK", 10)
    arrays = inputs()

    def squares(implementation: str) -> int:
        text = jax.jit(lambda *x: both(implementation, x, None)).lower(*arrays).compile().as_text()
        return len(re.findall(r"\[(?:\d+,)*50,50\]", text))

    assert squares("chunked") == 0 < squares("xla")


@pytest.mark.parametrize("masked", [False, True])
def test_recomputed_logits_are_not_kept(masked: bool) -> None:
    """The same numbers as the plain form, of which the backward pass gets the weights and this one queries, keys and values alone."""
    valid = jnp.asarray(np.arange(50)[None] < np.array([[50], [31]])) if masked else None
    close(both("recomputed", inputs(), valid), both("xla", inputs(), valid), TOLERANCE)

    def kept(implementation: str) -> list[tuple[int, ...]]:
        found = jax.vjp(lambda *x: attention.attend(*x, implementation=implementation, valid=valid), *inputs()[:3])[1]
        return [x.shape for x in jax.tree.leaves(found) if x.ndim == 4]

    assert set(kept("recomputed")) == {(2, 50, 3, 8)} and (2, 3, 50, 50) in kept("xla")


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_devices_make_their_products_apart(platform: str) -> None:
    """Queries, keys and values of an accelerator's own products are those of the one product: result and gradients."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 16)), jnp.float32)
    module = layers.Attention(heads=2, implementation="xla")
    params = module.init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(p.size), p.shape), parallel.unbox(params))  # biases too

    def slopes() -> Arrays:
        y, back = jax.vjp(lambda p, x: module.apply(p, x), params, x)
        return tuple(jax.tree.leaves((y, back(jnp.cos(y)))))

    expected = slopes()
    with parallel.aim(parallel.Target(platform, 1)):
        found = slopes()
        text = str(jax.make_jaxpr(lambda x: module.apply(params, x))(x))
    close(found, expected, TOLERANCE)
    assert text.count("dot_general") == 3 + 2 + 1  # of one for all it would be four


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_gathered_matrices_are_not_kept(platform: str, remat: str) -> None:
    """Of queries, keys and values the backward pass gets the parameter, which fsdp splits, not its copy in half precision, whole on every device; their
    products it gets, also where only those are kept."""
    stack = layers.Stack(depth=2, heads=2, hidden=32, attention="chunked", remat=remat, dtype=jnp.bfloat16)
    x = jnp.zeros((3, 8, 16), jnp.bfloat16)
    with parallel.aim(parallel.Target(platform, 1)):
        params = parallel.unbox(jax.eval_shape(lambda: stack.init(jax.random.key(0), x)))
        kept = jax.tree.leaves(jax.eval_shape(lambda p, x: jax.vjp(lambda p, x: stack.apply(p, x).tokens, p, x)[1], params, x))
    assert [k.dtype for k in kept if k.shape == (2, 16, 3, 2, 8)] == [jnp.float32]
    assert sum(k.dtype == jnp.bfloat16 and k.size == 2 * x.size for k in kept) >= 5  # with the input of the block and the product behind the attention


def test_a_stack_of_blocks_may_use_it() -> None:
    """Within scan and remat, and an unknown name is an error that lists the allowed ones."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 16)), jnp.float32)
    plain, blocks = (layers.Stack(depth=2, heads=2, hidden=32, attention=name, remat="dots") for name in ("xla", "chunked"))
    params = plain.init(jax.random.key(0), x)

    def slope(stack: layers.Stack) -> Any:
        return jax.jit(jax.grad(lambda p: (stack.apply(p, x).tokens ** 2).sum()))(params)

    close(tuple(jax.tree.leaves(slope(blocks))), tuple(jax.tree.leaves(slope(plain))), 1e-5)
    with pytest.raises(UserError, match="attention 'flash'; allowed are 'xla', 'recomputed', 'chunked', 'cudnn', 'splash' and 'auto'"):
        attention.attend(x[..., None], x[..., None], x[..., None], implementation="flash", valid=None)
    assert vit.decoder("B", attention="chunked").attention == "chunked"


# -- kernels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "padded", "block"), [
    (160, 256, 256), (208, 256, 256), (944, 1024, 512), (1232, 1280, 640), (1568, 1792, 256), (2048, 2048, 512), (11552, 12160, 640), (1, 128, 128)])
def test_blocks_of_the_splash_kernel(length: int, padded: int, block: int) -> None:
    """Multiples of 128 that divide the padded length, which is at most a twelfth more than 128 alone would make it."""
    assert kernels.blocks(length) == (padded, block) and padded % block == block % 128 == 0 <= padded - length
    assert padded <= -(-length // 128) * 128 * 13 / 12


@pytest.mark.parametrize(("tokens", "size", "masked", "whole"), [(200, 88, True, 16), (130, 64, False, 16), (300, 80, True, 1), (944, 88, True, 16),
                                                                  (1232, 64, False, 16), (1568, 64, True, 16)])
def test_splash_equals_the_plain_form(tokens: int, size: int, masked: bool, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The TPU kernel interpreted: V2's head sizes, lengths that are padded (944 and 1232 are its decoders', 1568 V1's), padded keys
    anywhere, one block of keys and several."""
    monkeypatch.setattr(kernels, "WHOLE", whole)
    monkeypatch.setattr(kernels, "BLOCK", 1 if whole == 1 else 5)
    rng = np.random.default_rng(tokens)
    rows, heads = (1, 1) if tokens > 900 else (2, 2)  # the interpreter is slow
    arrays = tuple(jnp.asarray(rng.normal(size=(rows, tokens, heads, size)) * size**-0.25, jnp.float32) for _ in range(4))
    valid = jnp.asarray(rng.random((rows, tokens)) < 0.7) if masked else None
    close(both("splash", arrays, valid), both("xla", arrays, valid), TOLERANCE)


def test_splash_runs_on_every_device_s_part() -> None:
    """Clips over data and fsdp, heads over tensor: the compiler cannot split a kernel, so nothing may be gathered for it."""
    mesh = parallel.Layout(data=2, fsdp=2, tensor=2).mesh()
    rng = np.random.default_rng(0)
    arrays = tuple(jnp.asarray(rng.normal(size=(4, 20, 2, 8)) * 8**-0.25, jnp.float32) for _ in range(4))
    valid = jnp.asarray(np.arange(20)[None] < np.array([[20], [11], [3], [17]]))

    def run(*arrays: Array) -> Arrays:
        with parallel.use(mesh):
            arrays = tuple(parallel.shard(x, "batch", None, "heads", None) for x in arrays)
            return both("splash", arrays, valid)

    compiled = jax.jit(run).lower(*arrays).compile()
    assert not re.search("all-gather|all-to-all", compiled.as_text())
    close(compiled(*arrays), both("xla", arrays, valid), TOLERANCE)
    assert set(compiled.output_shardings[0].shard_shape((4, 20, 2, 8))) == {1, 20, 8}


def test_the_choice_follows_the_device_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one that is here: a mesh of TPU devices, an aim, and without either what JAX sees."""
    def choice(tokens: int = 208, size: int = 88, dtype: Any = jnp.bfloat16) -> str:
        return attention.chosen(tokens=tokens, size=size, dtype=dtype)

    assert parallel.target() == parallel.Target("cpu", 8) and choice() == "xla" and choice(tokens=1568) == "chunked"
    with parallel.aim(parallel.Target("gpu", 1)):
        assert choice() == "cudnn" and parallel.estimating() and choice(dtype=jnp.float32) == choice(size=90) == choice(size=136) == "xla"
        with pytest.raises(UserError, match="attention 'splash' is a kernel of TPUs, and this program is for gpu"):
            both("splash", inputs(), None)
        close(both("cudnn", inputs(), None), both("chunked", inputs(), None), 0.0)  # what an estimate traces where cuDNN is not
    with parallel.aim(parallel.Target("gpu", 1, "7.5")):
        assert choice() == "xla"  # cuDNN's kernels begin with Ampere
    with parallel.use(parallel.Layout(data=1).mesh(jax.devices()[:1])):
        assert parallel.target() == parallel.Target("cpu", 1)
        with parallel.aim(parallel.Target("tpu", 256)):
            assert choice() == choice(tokens=320) == "recomputed" and choice(tokens=321) == choice(tokens=944) == "splash"
        assert choice() == "xla"
    monkeypatch.setitem(attention.IMPLEMENTATIONS, "splash", lambda q, k, v, *, valid: v)
    monkeypatch.setattr(attention, "SHORT", 49)
    with parallel.aim(parallel.Target("tpu", 1)):
        q, k, v, _ = inputs()
        assert attention.attend(q, k, v, implementation="auto", valid=None) is v


@pytest.mark.parametrize(("tokens", "size"), [(944, 64), (1232, 64), (208, 88), (205, 80)])
@pytest.mark.parametrize("masked", [False, True])
def test_cudnn_takes_the_shapes_of_v2(tokens: int, size: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lowered for a GPU, forward and backward, on a machine without one: no array of all queries and keys, no mask of that shape."""
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(parallel, "target", lambda: parallel.Target("gpu", 1, "8.0"))
    shape = jax.ShapeDtypeStruct((2, tokens, 2, size), jnp.bfloat16)
    valid = jax.ShapeDtypeStruct((2, tokens), bool) if masked else None

    def slopes(q: Array, k: Array, v: Array, valid: Array | None) -> Any:
        y, back = jax.vjp(lambda *x: attention.attend(*x, implementation="cudnn", valid=valid), q, k, v)
        return y, back(y)

    text = jax.jit(slopes).trace(shape, shape, shape, valid).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmha" in text and f"{tokens}x{tokens}" not in text
    assert ("PADDING" in text) == (masked or tokens % 2 == 1)
    for bad, dtype in ((size, jnp.float32), (size + 4, jnp.bfloat16)):
        wrong = jnp.zeros((1, 2, 1, bad), dtype)
        with pytest.raises(UserError, match="attention 'cudnn' of .* allowed are bfloat16 and float16"):
            attention.attend(wrong, wrong, wrong, implementation="cudnn", valid=None)


@pytest.mark.parametrize(("target", "message"), [
    (parallel.Target("cpu", 1), "attention 'cudnn' is a kernel of GPUs, and this program is for cpu; allowed here are 'xla', 'recomputed', 'chunked', 'splash' and 'auto'"),
    (parallel.Target("tpu", 4), "attention 'cudnn' is a kernel of GPUs, and this program is for tpu"),
    (parallel.Target("gpu", 1, "7.5"), "attention 'cudnn' of 64 channels a head in bfloat16 on compute capability 7.5; allowed are .* GPUs from 8.0 on"),
    (parallel.Target("gpu", 1, "gfx942"), "attention 'cudnn' of 64 channels a head in bfloat16 on compute capability gfx942; allowed are .* GPUs from 8.0 on")])
def test_cudnn_is_refused_where_it_is_not(target: parallel.Target, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line before JAX looks for the library."""
    monkeypatch.setattr(parallel, "target", lambda: target)
    x = jnp.zeros((1, 4, 1, 64), jnp.bfloat16)
    with pytest.raises(UserError, match=message):
        attention.attend(x, x, x, implementation="cudnn", valid=None)


def test_cudnn_gets_valid_keys_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """And their number, an odd one too: with JAX's own form in the kernel's place the result is that of the mask."""
    plain = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *x, implementation, **kw: plain(*x, implementation="xla", **kw))
    monkeypatch.setattr(kernels, "HALF", (jnp.float32,))
    monkeypatch.setattr(parallel, "target", lambda: parallel.Target("gpu", 1))
    for tokens, masked in ((50, True), (13, True), (13, False)):
        valid = jnp.asarray(np.random.default_rng(1).random((2, tokens)) < 0.6) if masked else None
        arrays = inputs(tokens=tokens, keys=tokens)
        close(both("cudnn", arrays, valid), both("xla", arrays, valid), TOLERANCE)


@pytest.mark.parametrize("implementation", ["xla", "recomputed", "chunked", "cudnn", "splash"])
def test_a_row_without_valid_keys_stays_finite(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward, and the other row is what it is without it. cuDNN's kernel, which gives NaN for no keys, gets one at least."""
    plain, lengths = jax.nn.dot_product_attention, []

    def kernel(*x: Any, implementation: str, key_value_seq_lengths: Array, **kw: Any) -> Array:
        lengths.append(np.asarray(key_value_seq_lengths))
        return plain(*x, implementation="xla", key_value_seq_lengths=key_value_seq_lengths, **kw)
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    monkeypatch.setattr(kernels, "HALF", (jnp.float32,))
    if implementation == "cudnn":
        monkeypatch.setattr(parallel, "target", lambda: parallel.Target("gpu", 1))
    arrays, valid = inputs(), jnp.asarray(np.arange(50)[None] < np.array([[0], [31]]))
    found = both(implementation, arrays, valid)
    assert all(np.isfinite(x).all() for x in found)
    close(tuple(x[1:] for x in found), both("xla", tuple(x[1:] for x in arrays), valid[1:]), TOLERANCE)
    assert implementation != "cudnn" or [x.tolist() for x in lengths] == [[1, 31]]


def test_offloaded_products_are_those_of_dots() -> None:
    """The policy "offload" sends to the host's memory what "dots" keeps, and brings it back: same gradients, and no other array moves."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 16)), jnp.float32)
    stacks = {name: layers.Stack(depth=2, heads=2, hidden=32, remat=name) for name in ("dots", "offload", "full")}
    params = stacks["dots"].init(jax.random.key(0), x)
    slope = {name: jax.grad(lambda p, stack=stack: (stack.apply(p, x).tokens ** 2).sum()) for name, stack in stacks.items()}
    found = {name: jax.tree.leaves(jax.jit(fn)(params)) for name, fn in slope.items()}
    close(tuple(found["offload"]), tuple(found["dots"]), 1e-6)
    moved = {name: str(jax.make_jaxpr(fn)(params)).count("f32<host>") for name, fn in slope.items()}
    assert moved["dots"] == moved["full"] == 0 < moved["offload"]


@pytest.mark.parametrize("name", ["standardise", "gelu"])
def test_element_wise_functions_keep_only_their_argument(name: str) -> None:
    """Nothing of the size of the activations is stored for the backward pass but the input itself."""
    x = jnp.ones((4, 6, 8))
    scale = (jnp.ones(8), jnp.zeros(8))
    functions = {"standardise": lambda x: layers.standardise(x, *scale, 1e-6), "gelu": layers.gelu}
    _, back = jax.vjp(functions[name], x)
    large = [leaf for leaf in jax.tree.leaves(back) if getattr(leaf, "size", 0) >= x.size]
    assert len(large) == 1 and np.array_equal(large[0], x)


def lowered(fn: Any, *args: Any) -> str:
    """The program before any optimisation."""
    return jax.jit(fn).lower(*args).as_text()


def test_the_passes_of_an_unrolled_stack_share_nothing_but_what_is_kept() -> None:
    """Behind a barrier, or the compiler finds the same erf in both passes and stores it; in a loop it cannot."""
    x = jnp.ones((4, 6, 8))
    for platform in ("gpu", "tpu", "cpu"):
        with parallel.aim(parallel.Target(platform, 1)):
            assert ("optimization_barrier" in lowered(jax.grad(lambda x: layers.gelu(x).sum()), x)) == (platform == "gpu")

    def barriers(unroll: int, **fields: str) -> int:
        stack = layers.Stack(depth=2, heads=2, hidden=16, unroll=unroll, **fields)
        params = parallel.unbox(stack.init(jax.random.key(0), x))
        return lowered(jax.grad(lambda p: stack.apply(p, x).tokens.sum()), params).count("optimization_barrier")

    assert barriers(2, remat="full") > barriers(1, remat="full")
    for platform, apart in (("gpu", 1), ("tpu", 1), ("cpu", 0)):  # the products of queries, keys and values, then logits
        with parallel.aim(parallel.Target(platform, 1)):
            others = 1 if platform == "gpu" else 0  # GELU's
            for form, more in (("xla", 0), ("recomputed", 1)):
                found = [barriers(unroll, attention=form) for unroll in (1, 2)]
                assert found == [others, others + apart + more], (platform, form, found)  # one body, which is called twice


def test_stacks_are_unrolled_where_a_loop_would_copy() -> None:
    """GPUs, unless blocks keep their inputs alone; the result is the same."""
    found = {}
    for platform in ("gpu", "tpu", "cpu"):
        with parallel.aim(parallel.Target(platform, 1)):
            found[platform] = [layers.unrolled(12, remat=remat) for remat in layers.REMAT]
    assert found == {"gpu": [12, 12, 12, 1], "tpu": [1] * 4, "cpu": [1] * 4}
    assert list(layers.REMAT) == ["none", "dots", "offload", "full"]
    with parallel.aim(parallel.Target("gpu", 1)):
        stack = layers.Stack(depth=3, heads=2, hidden=16, unroll=0)
        params = parallel.unbox(stack.init(jax.random.key(0), jnp.ones((2, 4, 8))))
        assert "stablehlo.while" not in lowered(lambda p: stack.apply(p, jnp.ones((2, 4, 8))).tokens, params)
    assert "stablehlo.while" in lowered(lambda p: stack.apply(p, jnp.ones((2, 4, 8))).tokens, params)


def test_queries_keys_and_values_are_never_one_array_on_gpus() -> None:
    """Neither they nor their gradients are put together or taken apart, which a kernel would pay in copies and transposes; the result is the same."""
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))
    block = layers.Attention(heads=2)
    params = parallel.unbox(block.init(jax.random.key(0), x))
    found, largest = {}, {}
    for platform in ("gpu", "cpu"):
        with parallel.aim(parallel.Target(platform, 1)):
            slope = jax.grad(lambda p, x: (block.apply(p, x) ** 2).sum(), argnums=(0, 1))
            jaxpr = jax.make_jaxpr(slope)(params, x)
            largest[platform] = max(v.aval.size for e in jaxpr.jaxpr.eqns for v in e.outvars if v.aval.shape[:2] == x.shape[:2])
            found[platform] = slope(params, x)
    assert largest["gpu"] <= max(x.size, 2 * 2 * 6 * 6) < largest["cpu"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found["gpu"], found["cpu"])
