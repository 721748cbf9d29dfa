"""Learning where to look from the errors of a model: the score of a sampling policy, and what the policy is judged by."""

import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.losses import Term
from videomae_jax.types import Array

SCORES = ("log", "probability")


def sampling(logits: Array, error: Array, /, *, ids: Array, weight: Array, coefficient: float, score: str = "log") -> Term:
    """AdaMAE's sampling loss: rewards probability on the tokens `ids` i32 [B M] that were hidden and badly predicted.

    With p = softmax of `logits` f32 [B N] over all tokens and the `error` f32 [B M], which gets no gradient: "log" is the mean
    over hidden tokens of -log(p) * error (released code), "probability" the mean over clips of the sum of -p * error
    (the paper's formula). `weight` f32 [B M] of a token is 0 or 1; a clip counts where any is 1. Float32.

    The score is that of the *hidden* tokens and every one of them counts, so this is no unbiased estimate of the gradient
    over drawn sets: "log" is a cross-entropy that fits p to the expected error of a token times its chance of being hidden.
    """
    error = jax.lax.stop_gradient(error).astype(jnp.float32) * weight
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1), ids, axis=-1)
    if score == "log":
        return Term(total=-log_p * error, weight=weight, coefficient=coefficient)
    if score == "probability":
        return Term(total=-jnp.exp(log_p) * error, weight=jnp.any(weight > 0, axis=-1).astype(jnp.float32), coefficient=coefficient)
    raise UserError(f"score {score!r}; allowed are {', '.join(SCORES)}")


def entropy(logits: Array, /) -> Array:
    """Entropy of softmax(logits [B N]) over that of the uniform distribution: f32 [B], 1 where nothing is preferred."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1) / jnp.log(jnp.asarray(logits.shape[-1], jnp.float32))


def correlation(a: Array, b: Array, /, *, weight: Array) -> Array:
    """Pearson's correlation f32 [B] of a and b [B M] under weights [B M]; 0 where one of them is constant."""
    total = jnp.maximum(weight.sum(-1, keepdims=True), 1e-12)

    def centred(x: Array) -> Array:
        x = x.astype(jnp.float32)
        return (x - (x * weight).sum(-1, keepdims=True) / total) * jnp.sqrt(weight)

    a, b = centred(a), centred(b)
    scale = jnp.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    return jnp.where(scale > 0, (a * b).sum(-1) / jnp.where(scale > 0, scale, 1), 0.0)


def preference(p: Array, share: Array, /) -> tuple[Array, Array]:
    """Mean of p [B N] over objects / its mean over the background: f32 [B], and bool [B] where a clip has both.

    `share` f32 [B N] is the part of a token's pixels that lies on objects; a token counts on either side by its share.
    1 is a policy blind to objects; the ratio is 0 where it is not defined.
    """
    on, off = share.sum(-1), (1 - share).sum(-1)
    inside = (p * share).sum(-1) / jnp.where(on > 0, on, 1)
    outside = (p * (1 - share)).sum(-1) / jnp.where(off > 0, off, 1)
    defined = (on > 0) & (off > 0) & (outside > 0)
    return jnp.where(defined, inside / jnp.where(defined, outside, 1), 0.0), defined
