"""MARLIN's critic: a score for every patch, real or predicted."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from videomae_jax.models import layers
from videomae_jax.types import Array


class Critic(nn.Module):
    """Two layers with a leaky ReLU between them, on the values of one patch (arXiv 2211.06627, released code).

    It sees no neighbours and no position. `hidden` is four times the decoder's width there, 1536 for B. Both layers start as
    PyTorch's default, U(+-1/sqrt(fan_in)), and `slope` is its default, as in the code. Deviation: the last layer has no
    bias, because only differences of scores count. The score is made in float32.
    """

    hidden: int = 1536
    slope: float = 0.01
    dtype: str = "float32"

    @nn.compact
    def __call__(self, patches: Array, /) -> Array:
        """Patches [... P] -> scores f32 [...]."""
        dtype, first, second = jnp.dtype(self.dtype), layers.uniform(patches.shape[-1] ** -0.5), layers.uniform(self.hidden**-0.5)
        x = layers.Linear(self.hidden, ("embed", "mlp"), first, first, dtype=dtype, name="fc1")(patches)
        x = jax.nn.leaky_relu(x, self.slope).astype(jnp.float32)
        return layers.Linear(1, ("mlp", None), second, use_bias=False, dtype=jnp.float32, precision=layers.EXACT, name="fc2")(x)[..., 0]
