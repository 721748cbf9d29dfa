"""Loss terms: numerator and denominator apart, so that accumulation and meshes stay exact."""

from collections.abc import Mapping

import flax.struct
import jax.numpy as jnp

from videomae_jax.types import Array


@flax.struct.dataclass
class Term:
    """A mean that is not divided yet: loss = coefficient * sum(total) / sum(weight) over the *global* batch.

    Both sums run over all devices and micro-batches before the division. `weight` may depend on the batch and the
    masks only, never on parameters; a term whose weights sum to 0 (a missing modality) contributes 0.
    """

    total: Array
    weight: Array
    coefficient: float | Array = 1.0


def masked_mse(prediction: Array, target: Array, /, *, weight: Array, coefficient: float = 1.0) -> Term:
    """Mean over P of the squared error [B M P], then a weighted mean over tokens with `weight` f32 [B M]; float32."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return Term(total=jnp.mean(error * error, axis=-1) * weight, weight=weight, coefficient=coefficient)


def ratio(total: Array, weight: Array, /) -> Array:
    """total / weight, and 0 where the weight is 0."""
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0.0)


def value(terms: Mapping[str, Term], /, *, denominators: Mapping[str, Array]) -> Array:
    """The scalar loss of `terms` under given global `denominators` (one per term)."""
    return sum(t.coefficient * ratio(jnp.sum(t.total), denominators[name]) for name, t in terms.items())


def denominators(terms: Mapping[str, Term], /) -> dict[str, Array]:
    """Sum of the weights of every term."""
    return {name: jnp.sum(t.weight) for name, t in terms.items()}
