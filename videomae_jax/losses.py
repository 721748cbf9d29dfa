"""Loss terms: numerator and denominator apart, so that accumulation and meshes stay exact."""

from collections.abc import Callable, Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

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


def soft_targets(labels: Array, /, *, classes: int, smoothing: float) -> Array:
    """f32 [B classes] that sum to 1: 1 - s + s / K for the label, s / K for every other class (V2, timm one_hot)."""
    hot = (labels[:, None] == jnp.arange(classes)).astype(jnp.float32)
    return hot * (1 - smoothing) + smoothing / classes


def soft_cross_entropy(logits: Array, target: Array, /, *, weight: Array, coefficient: float = 1.0) -> Term:
    """-sum(target * log softmax(logits)) per row of [B classes], weighted by f32 [B]; float32."""
    error = -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)
    return Term(total=error * weight, weight=weight, coefficient=coefficient)


def binary_cross_entropy(logits: Array, target: Array, /, *, weight: Array) -> Term:
    """-target log sigmoid(logit) - (1 - target) log sigmoid(-logit), element by element, weighted by f32 of the same shape; float32."""
    logits = logits.astype(jnp.float32)
    return Term(total=(jax.nn.softplus(logits) - target * logits) * weight, weight=weight)


def ranks(scores: Array, labels: Array, /) -> Array:
    """Place i32 [B] of the labelled class among scores [B classes], best 0; of equal scores the lower class comes first.

    So a prediction is right when its place is 0, and right within five when it is below 5. A tie is no success: equal
    scores for all classes give every row the place of its label. A row with a score that is not finite has the last place: a model that
    has diverged knows no class. Takes arrays of numpy as well as of jax.
    """
    finite = (abs(scores) < np.inf).all(-1)
    hot = np.arange(scores.shape[-1]) == labels[:, None]
    own = (scores * hot).sum(-1, keepdims=True)
    behind = (scores < own) | ((scores == own) & (np.arange(scores.shape[-1]) > labels[:, None]))
    return scores.shape[-1] - 1 - behind.sum(-1) * finite


def first(scores: Array, /) -> Array:
    """The class i [...] with the highest of scores [... classes], -1 where one is not finite; arrays of numpy as well as of jax."""
    return (scores.argmax(-1) + 1) * (abs(scores) < np.inf).all(-1) - 1


def agree(scores: Array, others: Array, /) -> Array:
    """bool [...]: whether both have the same `first` class; what has none agrees with nothing."""
    return (first(scores) == first(others)) & (first(scores) >= 0)


def wasserstein(fake: Array, real: Array, /, *, weight: Array) -> Term:
    """What a critic minimises: the mean score of `fake` minus that of `real`, f32 [B M] each (WGAN, arXiv 1701.07875)."""
    return Term(total=(fake - real).astype(jnp.float32) * weight, weight=weight)


def adversarial(score: Array, /, *, weight: Array, coefficient: float) -> Term:
    """What the critic's opponent minimises: minus the mean score f32 [B M] of what it made."""
    return Term(total=-score.astype(jnp.float32) * weight, weight=weight, coefficient=coefficient)


def gradient_penalty(score: Callable[[Array], Array], real: Array, fake: Array, /, *, share: Array, weight: Array, coefficient: float) -> Term:
    """Mean of (|gradient| - 1)^2 of `score` ([B M P] -> [B M], tokens apart) at real * share + fake * (1 - share) (arXiv 1704.00028).

    `share` f32 [B M] is drawn from U(0, 1). The norm, over the P values of a token, is that of a gradient of at least 1e-6.
    """
    between = share[..., None] * real.astype(jnp.float32) + (1 - share[..., None]) * fake.astype(jnp.float32)
    slope = jax.grad(lambda x: jnp.sum(score(x)))(between)
    norm = jnp.sqrt(jnp.maximum(jnp.sum(slope * slope, axis=-1), 1e-12))
    return Term(total=(norm - 1) ** 2 * weight, weight=weight, coefficient=coefficient)
