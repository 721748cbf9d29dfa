"""What keeps an update that went wrong out of the state, decided on the devices: the finite check, a filter of loss spikes, norms by layer.

A decision is a function of global values, so all processes take the same one, and no host waits for it.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from videomae_jax import optim
from videomae_jax.errors import UserError
from videomae_jax.types import Array, Params


def finite(loss: Array, norm: Array, /) -> Array:
    """bool []: whether an update may be applied. A norm is a sum over all gradients, and no number once one of them is none."""
    return jnp.isfinite(loss) & jnp.isfinite(norm)


def keep(accepted: Array, new: Any, old: Any, /) -> Any:
    """`new` where `accepted` bool [], else `old`; leaves that are the same object stay as they are."""
    return jax.tree.map(lambda a, b: a if a is b else jnp.where(accepted, a, b), new, old)


class Filtered(NamedTuple):
    """State of `SpikeFilter`: that of its optimiser, the newest finite losses f32 [window] as a ring, how many came, the last verdict."""

    inner: Any
    losses: Array
    count: Array
    accepted: Array


@dataclasses.dataclass(frozen=True)
class SpikeFilter:
    """An optimiser that passes over updates whose loss lies more than `sigmas` deviations above the mean of the last `window` losses.

    Only finite losses are remembered: one that is none would make mean and deviation useless for a whole window. Spikes
    are remembered too, so that a lasting change of the loss is accepted after a while. Nothing is passed over before the
    window is full. The rule is MaxText's skip_step_on_spikes, for the loss alone.
    """

    optimizer: Any
    window: int = 128
    sigmas: float = 6.0

    def __post_init__(self) -> None:
        if self.window < 2 or self.sigmas <= 0:
            raise UserError(f"spike filter with window={self.window} and sigmas={self.sigmas}; allowed are a window of 2 and more and positive sigmas")

    @property
    def schedule(self) -> Any:
        """That of the optimiser."""
        return self.optimizer.schedule

    def transform(self) -> optax.GradientTransformationExtraArgs:
        """The optimiser's transformation, which needs the loss as `value`; its moments do not move where the update is passed over."""
        inner = optax.with_extra_args_support(self.optimizer.transform())

        def init(params: Params) -> Filtered:
            return Filtered(inner.init(params), jnp.zeros(self.window, jnp.float32), jnp.int32(0), jnp.bool_(True))

        def update(grads: Params, state: Filtered, params: Params | None = None, *, value: Array, **extra: Any) -> tuple[Params, Filtered]:
            spread = self.sigmas * jnp.std(state.losses)
            accepted = (state.count < self.window) | (value <= jnp.mean(state.losses) + spread)
            moves, inner_state = inner.update(grads, state.inner, params, value=value, **extra)
            known = jnp.isfinite(value)
            remembered = jnp.where(known, state.losses.at[state.count % self.window].set(value.astype(jnp.float32)), state.losses)
            return moves, Filtered(keep(accepted, inner_state, state.inner), remembered, state.count + known, accepted)

        return optax.GradientTransformationExtraArgs(init, update)


def accepted(state: Any, /) -> Array | None:
    """The verdict of a spike filter in an optimiser's new state; None where there is no filter."""
    verdicts = [node.accepted for node in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, Filtered)) if isinstance(node, Filtered)]
    return verdicts[0] if verdicts else None


def norms(grads: Params, /) -> dict[str, Array]:
    """{"norm/a/b/c": f32 [] or f32 [L]} of every leaf; those of a stack keep their axis of layers (`optim.layer_axis`), all heads of a probe in one."""
    def norm(path: str, leaf: Array) -> Array:
        layers = optim.layer_axis(path)
        return jnp.sqrt(jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=tuple(axis for axis in range(leaf.ndim) if axis != layers)))

    named = optim.paths(grads)
    return {f"norm/{path}": norm(path, leaf) for path, leaf in zip(jax.tree.leaves(named), jax.tree.leaves(grads), strict=True)}
