"""One training step: phases, optimiser, moving average."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from videomae_jax import guards, losses, optim
from videomae_jax.accumulation import check_aux, gradients
from videomae_jax.errors import UserError
from videomae_jax.objectives.base import Objective, Output, Phase, draws, with_frozen
from videomae_jax.types import Array, Batch, Extra, Key, Params


@flax.struct.dataclass
class TrainState:
    """Everything a step changes. `opt` holds one optimiser state per phase; `ema` is {} when no average is kept.

    `rng` never changes: every draw folds the step into it, so a resumed run needs no generator state.
    """

    step: Array
    rng: Key
    params: Params
    opt: dict[str, Any]
    extra: Extra
    ema: Params


@dataclasses.dataclass(frozen=True)
class Updates:
    """How a phase's leaves move: the transformation without the learning rate, the rate as a function of the step, and the schedule it is of."""

    transform: optax.GradientTransformation
    rate: Callable[[Array], Array]
    schedule: optim.Schedule


def init_keys(rng: Key, /) -> Key:
    """Keys [3] for parameters, extra and frozen weights; no step folds their number in."""
    return jax.random.split(jax.random.fold_in(rng, 0xFFFFFFFF), 3)


def init_state(objective: Objective, updates: Mapping[str, Updates], rng: Key, batch: Batch, /, *, ema: float) -> TrainState:
    """A fresh state, still boxed with logical axes; pure, so that it can be traced for shapes or jitted with shardings."""
    return state_of(objective, updates, rng, objective.init(init_keys(rng)[0], batch), batch, ema=ema)


def state_of(objective: Objective, updates: Mapping[str, Updates], rng: Key, params: Params, batch: Batch, /, *, ema: float) -> TrainState:
    """The state before the first step from given parameters: teachers and averages start as copies of *these*."""
    extra = objective.init_extra(init_keys(rng)[1], params, batch)
    opt = {p.name: updates[p.name].transform.init(optim.select(params, p.trains)) for p in objective.phases()}
    return TrainState(jnp.zeros((), jnp.int32), rng, params, opt, extra, jax.tree.map(jnp.copy, params) if ema else {})


def logged(phase: Phase, out: Output, before: Mapping[str, Array], own: Mapping[str, Array], flags: Mapping[str, Array], /) -> dict[str, Array]:
    """Metrics of a phase as scalars: the step's `own`, loss_<term>, the objective's, and `flags` summed over repeats."""
    others = {k: m.value() for k, m in out.metrics.items()}
    values = {f"loss_{k}": losses.ratio(t.total, t.weight) for k, t in out.terms.items()} | own | flags
    if others.keys() & values.keys():
        raise ValueError(f"phase {phase.name!r} returns metrics named {', '.join(sorted(others.keys() & values.keys()))}, which the step logs itself")
    prefix = "" if phase.name == "train" else f"{phase.name}/"
    return {prefix + k: v + before.get(prefix + k, 0) if k in flags else v for k, v in (values | others).items()}


def make_train_step(objective: Objective, updates: Mapping[str, Updates], /, *, microbatches: int, ema: float, params_sharding: Any, norms: bool = False,
                    ingest: Callable[[Batch], Batch] = dict, deferred: bool = False) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """The pure function (state, frozen, *batches) -> (state, metrics); one batch for each of `draws(objective.phases())`.

    `ingest` makes what the objective works on of a batch; `deferred`, of the rows of every micro-batch by themselves, without `prepare`.

    Phases run in order on the updated parameters. The schedule is read once a step; Adam counts its own updates. A pass
    whose loss or gradient is not finite, or that a spike filter refuses, changes nothing but the count of steps: no
    parameter, moment, average or extra. The metrics `skipped` and `spikes` count such passes; with `norms` they also hold
    the norm of every gradient, by layer.
    """
    phases = objective.phases()
    if objective.batch_coupled and microbatches > 1:
        raise UserError(f"microbatches={microbatches}, but {type(objective).__name__} couples the rows of a batch; allowed is 1")

    def step(state: TrainState, frozen: Params, *batches: Batch) -> tuple[TrainState, dict[str, Array]]:
        if len(batches) != draws(phases):
            raise UserError(f"step was given {len(batches)} batches; its phases draw {draws(phases)}")
        rng = jax.random.fold_in(state.rng, state.step)
        prepared = batches if deferred else [objective.prepare(ingest(b), jax.random.fold_in(rng, 1000 + i), step=state.step, train=True)
                                             for i, b in enumerate(batches)]
        fresh = iter(prepared[int(any(p.data == "same" for p in phases)):])
        params, extra, opt, metrics, moved = state.params, state.extra, dict(state.opt), {}, jnp.bool_(False)
        for index, phase in enumerate(phases):
            rate = updates[phase.name].rate(state.step)
            places = optim.select(params_sharding, phase.trains)
            for repeat in range(phase.repeats):
                batch = next(fresh) if phase.data == "fresh" else prepared[0]
                key = jax.random.fold_in(jax.random.fold_in(rng, index), repeat)
                part = optim.select(params, phase.trains)

                def loss(part: Params, rows: Batch) -> Output:
                    rows = ingest(rows) if deferred else rows
                    return phase.loss(optim.merge(params, part), with_frozen(extra, frozen), rows, key, step=state.step, train=True)

                grads, out = gradients(loss, part, batch, microbatches=microbatches,
                                       constrain=lambda tree: jax.lax.with_sharding_constraint(tree, places))
                if not objective.batch_coupled:
                    check_aux(out.aux, batch)
                own = {"loss": losses.value(out.terms, denominators=losses.denominators(out.terms)), "grad_norm": optax.tree.norm(grads), "lr": rate}
                ok = guards.finite(own["loss"], own["grad_norm"])
                flags = {"skipped": (~ok).astype(jnp.int32)}
                moves, after = optax.with_extra_args_support(updates[phase.name].transform).update(grads, opt[phase.name], part, value=own["loss"])
                opt[phase.name] = guards.keep(ok, after, opt[phase.name])
                if (verdict := guards.accepted(after)) is not None:
                    flags["spikes"] = (ok & ~verdict).astype(jnp.int32)
                    ok &= verdict
                params = optim.merge(params, jax.tree.map(lambda p, u: jnp.where(ok, p - rate * u, p), part, moves))
                extra = guards.keep(ok, objective.update_extra(params, extra, out.aux, step=state.step), extra)
                metrics |= logged(phase, out, metrics, own | (guards.norms(grads) if norms else {}), flags)
                moved |= ok
        average = jax.tree.map(lambda a, p: jnp.where(moved, ema * a + (1 - ema) * p, a), state.ema, params) if ema else state.ema
        return TrainState(state.step + 1, state.rng, params, opt, extra, average), metrics

    return step


def staged(steps: Sequence[tuple[int, Callable[..., Any]]], last: Callable[..., Any], /) -> Callable[..., Any]:
    """One step out of several: each of `steps` (end, step) before its end, then `last`.

    All lie in one program and the state's counter chooses, so that a resumed run needs no memory of its stage.
    """
    if not steps:
        return last
    ends = np.asarray([end for end, _ in steps])

    def step(state: TrainState, *rest: Any) -> Any:
        return jax.lax.switch(jnp.sum(state.step >= ends), [fn for _, fn in steps] + [last], state, *rest)

    return step
