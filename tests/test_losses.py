"""Terms keep numerator and denominator apart; the loss of a batch is the same however it is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax import losses
from videomae_jax.losses import Term


def test_masked_mse_by_hand() -> None:
    """Mean over the values of a token, weighted mean over tokens."""
    prediction = jnp.asarray([[[1.0, 3.0], [0.0, 0.0], [5.0, 5.0]]])
    target = jnp.asarray([[[0.0, 1.0], [2.0, 0.0], [0.0, 0.0]]])
    term = losses.masked_mse(prediction, target, weight=jnp.asarray([[1.0, 0.5, 0.0]]), coefficient=3.0)
    assert term.total.tolist() == [[2.5, 1.0, 0.0]] and term.coefficient == 3.0
    assert float(losses.value({"x": term}, denominators=losses.denominators({"x": term}))) == pytest.approx(3 * 3.5 / 1.5)


def test_masked_mse_is_a_float32_island() -> None:
    """The difference of bfloat16 values is taken in float32."""
    term = losses.masked_mse(jnp.full((1, 1, 4), 1.0078125, jnp.bfloat16), jnp.full((1, 1, 4), 0.001, jnp.float32), weight=jnp.ones((1, 1)))
    assert term.total.dtype == jnp.float32
    assert float(term.total[0, 0]) == pytest.approx((1.0078125 - np.float32(0.001)) ** 2, rel=1e-6)


def test_unsupervised_tokens_have_no_gradient() -> None:
    """Weight 0 keeps a token out of value and gradient."""
    weight = jnp.asarray([[1.0, 0.0]])

    def loss(prediction: jax.Array) -> jax.Array:
        terms = {"x": losses.masked_mse(prediction, jnp.zeros((1, 2, 3)), weight=weight)}
        return losses.value(terms, denominators=losses.denominators(terms))

    grad = jax.grad(loss)(jnp.ones((1, 2, 3)))
    assert (grad[0, 1] == 0).all()
    np.testing.assert_allclose(grad[0, 0], 2 / 3, rtol=1e-6)


def test_a_missing_term_contributes_zero_and_no_nan() -> None:
    """Weights that sum to 0: value 0 and gradient 0, beside a term that is present."""
    def loss(x: jax.Array) -> jax.Array:
        terms = {"video": Term(x * 2, jnp.ones(3)), "audio": Term(x * 0, jnp.zeros(3), 5.0)}
        return losses.value(terms, denominators=losses.denominators(terms))

    value, grad = jax.value_and_grad(loss)(jnp.asarray([1.0, 2.0, 3.0]))
    assert float(value) == 4.0
    np.testing.assert_allclose(grad, 2 / 3, rtol=1e-6)


def test_terms_divide_by_their_own_denominators_and_add_with_coefficients() -> None:
    """loss = sum over terms of coefficient * sum(total) / sum(weight)."""
    terms = {"a": Term(jnp.asarray([1.0, 2.0]), jnp.asarray([1.0, 1.0])), "b": Term(jnp.asarray([6.0]), jnp.asarray([4.0]), 0.5)}
    assert {k: float(v) for k, v in losses.denominators(terms).items()} == {"a": 2.0, "b": 4.0}
    assert float(losses.value(terms, denominators=losses.denominators(terms))) == 1.5 + 0.75


def uneven(params: jax.Array, rows: dict[str, jax.Array]) -> dict[str, Term]:
    """Two terms whose weights differ from row to row; some rows have no audio at all."""
    video = Term((rows["x"] * params[0] - 1) ** 2 * rows["w"], rows["w"])
    audio = Term((rows["x"] * params[1] + 2) ** 2 * rows["v"], rows["v"], 0.3)
    return {"video": video, "audio": audio}


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_of_a_batch_add_up_under_global_denominators(parts: int) -> None:
    """Value and gradient of the parts add up to those of the whole; dividing within each part gives another gradient."""
    rng = np.random.default_rng(0)
    rows = {"x": jnp.asarray(rng.normal(size=8), jnp.float32), "w": jnp.asarray(rng.uniform(size=8), jnp.float32),
            "v": jnp.asarray([0, 0, 1, 2, 0, 0, 3, 0], jnp.float32)}
    params = jnp.asarray([0.7, -0.4])
    total = losses.denominators(uneven(params, rows))
    cut = [{k: x[i::parts] for k, x in rows.items()} for i in range(parts)]
    grad = jax.value_and_grad(lambda p, r, d: losses.value(uneven(p, r), denominators=d))
    whole = grad(params, rows, total)
    summed = [grad(params, r, total) for r in cut]
    np.testing.assert_allclose(sum(v for v, _ in summed), whole[0], rtol=1e-6)
    np.testing.assert_allclose(sum(g for _, g in summed), whole[1], rtol=1e-5)
    x, w, v = (np.asarray(rows[k], np.float64) for k in "xwv")
    by_hand = [2 * (x * (x * 0.7 - 1) * w).sum() / w.sum(), 0.3 * 2 * (x * (x * -0.4 + 2) * v).sum() / v.sum()]
    np.testing.assert_allclose(whole[1], by_hand, rtol=1e-5)
    local = [grad(params, r, losses.denominators(uneven(params, r)))[1] for r in cut]
    assert np.abs(sum(local) / parts - whole[1]).max() > 1e-3  # so the test can tell


def test_ratio_of_arrays() -> None:
    """0 where the weight is 0, whatever the total."""
    assert losses.ratio(jnp.asarray([4.0, 3.0]), jnp.asarray([2.0, 0.0])).tolist() == [2.0, 0.0]
