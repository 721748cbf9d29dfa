"""Heads on top of an encoder."""

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from videomae_jax.errors import UserError
from videomae_jax.models import layers
from videomae_jax.types import Array, Key


@flax.struct.dataclass
class Classified:
    """`logits` f32 [B classes] and the normalised mean token `pooled` f32 [B D] that they are linear in."""

    logits: Array
    pooled: Array


class Classifier(nn.Module):
    """V2's classifier: mean over all tokens, LayerNorm, dropout, Linear; all in float32 (V2 modeling_finetune).

    Pool first, norm second: LN(mean(x)) and mean(LN(x)) differ. The kernel starts as N(0, 0.02) times `init_scale`, the
    bias as 0. `dropout` is the chance of a feature to be dropped, drawn for every row with its own key.
    """

    classes: int
    dropout: float = 0.0
    init_scale: float = 0.001
    eps: float = layers.LN_EPS

    @nn.compact
    def __call__(self, tokens: Array, /, *, keys: Key | None = None) -> Classified:
        """[B N D] raw tokens of the last block, `keys` [B] or None for evaluation -> Classified."""
        if self.classes < 1 or not 0 <= self.dropout < 1:
            raise UserError(f"a head with {self.classes} classes and dropout {self.dropout}; allowed are 1 class and more, and 0 <= dropout < 1")
        pooled = layers.LayerNorm(self.eps, name="norm")(tokens.astype(jnp.float32).mean(1))
        x = drop(pooled, keys, rate=self.dropout)
        # PyTorch's trunc_normal_ cuts at +-2 in absolute terms, a hundred deviations away: nothing is cut.
        start = nn.initializers.normal(0.02 * self.init_scale)
        logits = layers.Linear(self.classes, ("embed", None), start, dtype=jnp.float32, precision=layers.EXACT, name="linear")(x)
        return Classified(logits=logits, pooled=pooled)


def drop(x: Array, keys: Key | None, /, *, rate: float) -> Array:
    """Dropout of [B D]: each value is 0 with probability `rate`, the others grow by 1 / (1 - rate); `keys` [B] or None = off."""
    if keys is None or not rate:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), 0)
