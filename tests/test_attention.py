"""Attention in blocks of queries: the same numbers as the plain form, forward and backward, and no matrix of all logits."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.errors import UserError
from videomae_jax.models import attention, layers, vit
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
    y, back = jax.vjp(lambda *x: layers.attend(*x, implementation=implementation, valid=valid), q, k, v)
    return y, *back(gradient)


def close(found: Arrays, expected: Arrays, tolerance: float) -> None:
    """Largest difference over largest value."""
    for a, b in zip(found, expected, strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.fixture(params=["many devices", "one device"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to run: all heads together, and one after the other."""
    monkeypatch.setattr(jax, "device_count", lambda: 1 if request.param == "one device" else 8)
    return request.param


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [50, 25, 16, 1, 400])
def test_equals_the_plain_form(loop: str, block: int, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that divide the queries and blocks that do not, with and without padded keys."""
    monkeypatch.setattr(attention, "BLOCK", block)
    valid = jnp.asarray(np.arange(50)[None] < np.array([[50], [31]])) if masked else None
    close(both("chunked", inputs(), valid), both("xla", inputs(), valid), TOLERANCE)


def test_queries_and_keys_may_differ_in_number(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in cross-attention."""
    monkeypatch.setattr(attention, "BLOCK", 8)
    close(both("chunked", inputs(tokens=13, keys=50), None), both("xla", inputs(tokens=13, keys=50), None), TOLERANCE)


def test_equals_float64(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_padded_keys_have_no_influence(loop: str) -> None:
    """Neither on the result nor through gradients."""
    q, k, v, gradient = inputs()
    valid = jnp.broadcast_to(jnp.arange(50) < 31, (2, 50))
    spoilt = both("chunked", (q, k.at[:, 31:].set(9.0), v.at[:, 31:].set(-9.0), gradient), valid)
    clean = both("chunked", (q, k, v, gradient), valid)
    close(spoilt[:2], clean[:2], 0.0)
    assert not spoilt[2][:, 31:].any() and not spoilt[3][:, 31:].any() and spoilt[3][:, :31].any()


def test_bfloat16_keeps_a_float32_softmax(loop: str) -> None:
    """Two bfloat16 roundings from the float32 result, as the plain form is."""
    arrays = inputs(dtype=jnp.bfloat16)
    found = both("chunked", arrays, None)
    assert all(x.dtype == jnp.bfloat16 for x in found)
    close(found, both("xla", tuple(x.astype(jnp.float32) for x in arrays), None), 2e-2)


def test_the_matrix_of_all_logits_is_never_made(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No array of N x N values in the compiled forward and backward pass; the plain form has some."""
    monkeypatch.setattr(attention, "BLOCK", 10)
    arrays = inputs()

    def squares(implementation: str) -> int:
        text = jax.jit(lambda *x: both(implementation, x, None)).lower(*arrays).compile().as_text()
        return len(re.findall(r"\[(?:\d+,)*50,50\]", text))

    assert squares("chunked") == 0 < squares("xla")


def test_a_stack_of_blocks_may_use_it() -> None:
    """Within scan and remat, and an unknown name is an error that lists the allowed ones."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 20, 16)), jnp.float32)
    plain, blocks = (layers.Stack(depth=2, heads=2, hidden=32, attention=name, remat="dots") for name in ("xla", "chunked"))
    params = plain.init(jax.random.key(0), x)

    def slope(stack: layers.Stack) -> Any:
        return jax.jit(jax.grad(lambda p: (stack.apply(p, x).tokens ** 2).sum()))(params)

    close(tuple(jax.tree.leaves(slope(blocks))), tuple(jax.tree.leaves(slope(plain))), 1e-5)
    with pytest.raises(UserError, match="attention 'flash'; allowed are 'xla', 'chunked' and 'cudnn'"):
        layers.attend(x[..., None], x[..., None], x[..., None], implementation="flash", valid=None)
    assert vit.decoder("B", attention="chunked").attention == "chunked"


@pytest.mark.parametrize("name", ["standardise", "gelu"])
def test_element_wise_functions_keep_only_their_argument(name: str) -> None:
    """Nothing of the size of the activations is stored for the backward pass but the input itself."""
    x = jnp.ones((4, 6, 8))
    scale = (jnp.ones(8), jnp.zeros(8))
    functions = {"standardise": lambda x: layers.standardise(x, *scale, 1e-6), "gelu": layers.gelu}
    _, back = jax.vjp(functions[name], x)
    large = [leaf for leaf in jax.tree.leaves(back) if getattr(leaf, "size", 0) >= x.size]
    assert len(large) == 1 and np.array_equal(large[0], x)
