"""Schedules, learning-rate scaling, weight decay and layer decay by path."""

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from videomae_jax import config
from videomae_jax.errors import UserError, allow
from videomae_jax.types import Array, Params


def paths(tree: Any, /) -> Any:
    """A tree of "a/b/c" strings, one per leaf; a box of logical axes adds nothing to the path."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path), tree)


def path_name(path: Any, /) -> str:
    """ "a/b/c" of a key path; only dict keys and sequence positions count."""
    return "/".join(str(getattr(p, "key", getattr(p, "idx", ""))) for p in path if hasattr(p, "key") or hasattr(p, "idx"))


def layer_axis(path: str, /) -> int | None:
    """The axis of layers of the leaf at "a/b/c": 0 under a stack of blocks, of one modality too ("audio_stack"), 1 under "heads", where
    every leaf begins with an axis of heads; None outside of stacks.
    """
    if not re.search(r"(^|/)(\w+_)?stack/", path):
        return None
    return 1 if path.startswith("heads/") else 0


def select(params: Params, pattern: str, /) -> Params:
    """The sub-tree of leaves whose "a/b/c" path fully matches `pattern`.

    Raises UserError when nothing matches: a phase that trains nothing is a mistake.
    """
    def prune(node: Any, prefix: str) -> Any:
        if not isinstance(node, dict):
            return node if re.fullmatch(pattern, prefix) else None
        children = {k: prune(v, f"{prefix}/{k}" if prefix else k) for k, v in node.items()}
        return {k: v for k, v in children.items() if v is not None} or None
    chosen = prune(params, "")
    if chosen is None:
        raise UserError(f"no parameter matches {pattern!r}; there are {', '.join(jax.tree.leaves(paths(params))[:8])} ...")
    return chosen


def merge(params: Params, part: Params, /) -> Params:
    """`params` with the leaves of the sub-tree `part` replaced."""
    if not isinstance(part, dict):
        return part
    return {k: merge(v, part[k]) if k in part else v for k, v in params.items()}


def warmup_cosine(step: Array, /, *, peak: float, minimum: float, warmup: int, total: int) -> Array:
    """V2's learning rate at `step` (0-based): linear 0..peak over `warmup` steps with the end included, then a cosine.

    Step i of the cosine is min + (peak - min)(1 + cos(pi i / (total - warmup))) / 2, so the minimum is never quite
    reached, and the first update has learning rate 0 (V2 utils.cosine_scheduler).
    """
    step = jnp.asarray(step, jnp.float32)
    rising = peak * step / max(warmup - 1, 1)
    falling = minimum + 0.5 * (peak - minimum) * (1 + jnp.cos(jnp.pi * (step - warmup) / max(total - warmup, 1)))
    return jnp.where(step < warmup, rising, falling)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Learning rate in the paper's units: `base` per `unit` clips; peak = base * batch / unit.

    `minimum` is scaled in the same way. The batch counts decoded clips, not their copies: V2 leaves repeated
    augmentation out of the product. `unit` 0 switches scaling off. `shape` is "cosine" or "constant" (after warm-up).
    """

    base: float
    minimum: float = 1e-5
    warmup: str = "5%"
    unit: int = 256
    shape: str = "cosine"

    def __post_init__(self) -> None:
        if self.shape not in ("cosine", "constant"):
            raise UserError(f"schedule shape {self.shape!r}; allowed are 'cosine' and 'constant'")
        allow(self, base=(0, math.inf), minimum=(0, math.inf), unit=(0, math.inf))

    def scaled(self, rate: float, /, *, batch: int) -> float:
        """`rate` under the linear scaling rule."""
        return rate * batch / self.unit if self.unit else rate

    def at(self, step: Array, /, *, batch: int, total: int, steps_per_epoch: float) -> Array:
        """Learning rate f32 [] at `step`."""
        warmup = config.duration(self.warmup, total=total, steps_per_epoch=steps_per_epoch)
        peak, minimum = self.scaled(self.base, batch=batch), self.scaled(self.minimum, batch=batch)
        if warmup >= total:
            raise UserError(f"warm-up of {warmup} steps ({self.warmup}) is not shorter than the total of {total} steps")
        if self.shape == "cosine":
            return warmup_cosine(step, peak=peak, minimum=minimum, warmup=warmup, total=total)
        return jnp.minimum(peak, peak * jnp.asarray(step, jnp.float32) / max(warmup - 1, 1)) if warmup else jnp.float32(peak)


NO_DECAY = r".*(bias|scale|_token|_embed)"  # biases, scales, tokens, positions by name: stacked over layers they are not 1-D


def decays(params: Params, /) -> Any:
    """True for every leaf that weight decay applies to: neither 1-D nor named by NO_DECAY (V2 optim_factory)."""
    return jax.tree.map(lambda path, leaf: leaf.ndim > 1 and re.fullmatch(NO_DECAY, path) is None, paths(params), params)


def layer_scales(params: Params, decay: float, /) -> Any:
    """Learning-rate multipliers per leaf: decay ** (L + 1 - i), i = 0 for the encoder below its blocks, k + 1 for block k, L + 1 else.

    Below the blocks lie the embedding, learned positions and class tokens (V2 optim_factory, mae_st lr_decay); above them the encoder's
    norm. A stacked encoder leaf [L ...] gets a vector f64 that broadcasts over its first axis. Raises UserError for parameters without an
    encoder stack, or with several ones, whose depth nobody knows.
    """
    leaves = dict(zip(jax.tree.leaves(paths(params)), jax.tree.leaves(params), strict=True))
    depth = next((leaf.shape[0] for path, leaf in leaves.items() if path.startswith("encoder/stack/")), 0)
    if not depth:
        raise UserError(f"layer decay {decay} needs leaves under encoder/stack; there are {', '.join(list(leaves)[:8])} ...")
    if others := sorted({found[0] for path in leaves if (found := re.match(r"encoder/\w+_stack(?=/)", path))}):
        raise UserError(f"layer decay {decay} needs all blocks of the encoder under encoder/stack; there are {', '.join(others)} too")

    def scale(path: str, leaf: Any) -> Any:
        if path.startswith("encoder/stack/"):
            return (decay ** (depth - np.arange(depth, dtype=np.float64))).reshape(-1, *(1,) * (leaf.ndim - 1))
        return decay ** (depth + 1) if re.match(r"encoder/(?!norm/)", path) else 1.0

    return jax.tree.map(scale, paths(params), params)


def scale_layers(decay: float, /) -> optax.GradientTransformation:
    """Multiplies updates by `layer_scales`; fails at `init` where they are not defined."""
    def init(params: Any) -> Any:
        layer_scales(params, decay)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(lambda u, s: u * jnp.asarray(s, u.dtype), updates, layer_scales(updates, decay)), state
    return optax.GradientTransformation(init, update)


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW with decoupled decay, global-norm clipping before it (`clip` 0 = off) and layer-wise learning rates.

    `first_moment` "bfloat16" stores the mean of the gradients in two bytes (the second moment needs its mantissa).
    """

    schedule: Schedule
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 0.0
    layer_decay: float = 1.0
    first_moment: str = "float32"

    def __post_init__(self) -> None:
        if self.first_moment not in ("float32", "bfloat16"):
            raise UserError(f"first_moment {self.first_moment!r}; allowed are 'float32' and 'bfloat16'")
        allow(self, b1=(0, 1), b2=(0, 1), eps=(0, 1), weight_decay=(0, math.inf), clip=(0, math.inf), layer_decay=(0, 1))

    def transform(self) -> optax.GradientTransformation:
        """Everything but the learning rate, which the step applies once.

        The state has one structure whatever is switched off, so that a forked run may change `clip` and `layer_decay`.
        """
        return optax.chain(
            optax.clip_by_global_norm(self.clip) if self.clip else optax.identity(),
            optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=jnp.bfloat16 if self.first_moment == "bfloat16" else None),
            optax.add_decayed_weights(self.weight_decay, mask=decays),
            scale_layers(self.layer_decay) if self.layer_decay != 1 else optax.identity())


@dataclasses.dataclass(frozen=True)
class SGD:
    """Plain gradient descent: shows a wrong gradient scale, which Adam hides."""

    schedule: Schedule

    def transform(self) -> optax.GradientTransformation:
        """The gradient itself."""
        return optax.identity()


@dataclasses.dataclass(frozen=True)
class Grid:
    """AdamW or LARS for many heads side by side: the first axis of every leaf is a head, and each head has a rate and a decay of its own.

    Head i * len(decays) + j has rates[i] and decays[j]. The schedule is a factor: base 1, unit 0. `method` "lars" is that of MAE's
    linear probe (arXiv 1708.03888): momentum .9, trust coefficient .001 on kernels, no decay of biases.
    """

    schedule: Schedule
    rates: tuple[float, ...]
    decays: tuple[float, ...] = (0.0,)
    method: str = "adamw"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.method not in ("adamw", "lars"):
            raise UserError(f"method {self.method!r}; allowed are adamw, lars")
        if not self.rates or not self.decays:
            raise UserError(f"rates {self.rates}, decays {self.decays}; allowed is at least one of each")
        allow(self, rates=(0, math.inf), decays=(0, math.inf), b1=(0, 1), b2=(0, 1), eps=(0, 1))

    @property
    def pairs(self) -> tuple[tuple[float, float], ...]:
        """(rate, decay) of every head."""
        return tuple((rate, decay) for rate in self.rates for decay in self.decays)

    def transform(self) -> optax.GradientTransformation:
        """Everything but the schedule."""
        rate, decay = (jnp.asarray(x, jnp.float32) for x in zip(*self.pairs, strict=True))
        if self.method == "lars":
            return optax.chain(_each_head(decay, rate=None), optax.trace(self.b1), _each_head(None, rate=rate))
        return optax.chain(optax.scale_by_adam(self.b1, self.b2, self.eps), _each_head(None, rate=rate, decay=decay))


def _each_head(trusted: Array | None, /, *, rate: Array | None, decay: Array | None = None) -> optax.GradientTransformation:
    """Updates of every head plus `decay` x parameters, times `rate`; with `trusted`, a decay, scaled by LARS's trust ratio first."""
    count = next(len(x) for x in (trusted, rate, decay) if x is not None)

    def init(params: Any) -> Any:
        for path, leaf in zip(jax.tree.leaves(paths(params)), jax.tree.leaves(params), strict=True):
            if leaf.shape[:1] != (count,):
                raise UserError(f"{path} is {leaf.shape}; a grid of {count} heads (rates x decays) needs a first axis of {count}")
        return optax.EmptyState()

    def one(update: Array, param: Array, decayed: bool) -> Array:
        wide = (count, *(1,) * (update.ndim - 1))
        if trusted is not None and decayed:
            update = update + trusted.reshape(wide) * param
            own, size = (jnp.sqrt(jnp.sum(x * x, axis=tuple(range(1, x.ndim)))) for x in (param, update))
            update = update * jnp.where((own > 0) & (size > 0), 0.001 * own / jnp.where(size > 0, size, 1), 1).reshape(wide)
        if decay is not None and decayed:
            update = update + decay.reshape(wide) * param
        return update if rate is None else update * rate.reshape(wide)

    def change(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        kernels = jax.tree.map(lambda path, leaf: leaf.ndim > 2 and re.fullmatch(NO_DECAY, path) is None, paths(params), params)
        return jax.tree.map(one, updates, params, kernels), state
    return optax.GradientTransformation(init, change)
