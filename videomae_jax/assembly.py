"""From a config to the objects of a run: mesh, objective, data, optimisers, shardings, a jitted step."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from videomae_jax import config as configs
from videomae_jax import optim, parallel
from videomae_jax.errors import UserError
from videomae_jax.objectives import base
from videomae_jax.step import TrainState, Updates, init_state, make_train_step


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Everything that a command needs of a run; `abstract` holds shapes with shardings for every leaf of the state.

    `clips` counts device clips of a batch (decoded clips x copies), `draws` the batches of one step.
    """

    config: ml_collections.ConfigDict
    objective: base.Objective
    source: Any
    mesh: Any
    updates: dict[str, Updates]
    boxed: TrainState
    abstract: TrainState
    shardings: TrainState
    total: int
    steps_per_epoch: float
    clips: int
    draws: int

    def create(self) -> TrainState:
        """A fresh state, allocated sharded."""
        def init(rng: Any) -> TrainState:
            return parallel.unbox(init_state(self.objective, self.updates, rng, base.dummy(self.source.fields), ema=self.config.ema))

        return jax.jit(init, out_shardings=self.shardings)(self.rng())

    def rng(self) -> Any:
        """The run's key, replicated over the mesh."""
        return parallel.put(jax.random.key(self.config.seed), mesh=self.mesh)

    def step(self) -> Any:
        """The jitted training step; the state is donated."""
        fn = make_train_step(self.objective, self.updates, microbatches=self.config.microbatches, ema=self.config.ema,
                             params_sharding=self.shardings.params)

        def traced(state: TrainState, *batches: Any) -> Any:
            with parallel.use(self.mesh):
                return fn(state, *batches)

        return jax.jit(traced, donate_argnums=0, out_shardings=(self.shardings, parallel.replicated(self.mesh)))

    def compile(self) -> Any:
        """The compiled step for the shapes of this run, without data or parameters."""
        rows, sharding = self.clips, parallel.batch_sharding(self.mesh)
        batch = {k: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype, sharding=sharding) for k, x in base.dummy(self.source.fields).items()}
        return self.step().lower(self.abstract, *[batch] * self.draws).compile()

    def evaluator(self, fn: Any, /) -> Any:
        """`fn` jitted under this mesh, results replicated, so that every process can read them."""
        def traced(*args: Any) -> Any:
            with parallel.use(self.mesh):
                return fn(*args)
        return jax.jit(traced, out_shardings=parallel.replicated(self.mesh))


def assemble(config: ml_collections.ConfigDict, /, *, trust: tuple[str, ...] = (), devices: list[Any] | None = None) -> Assembly:
    """Builds and checks a run; allocates nothing on devices."""
    mesh = parallel.Layout(**config.mesh).mesh(devices)
    objective = configs.build(config.objective, trust=trust)
    source = configs.build(config.data, trust=trust)
    drawn = base.draws(objective.phases())
    parallel.check_batch(config.batch_size * source.repeats, mesh=mesh, microbatches=config.microbatches)
    steps_per_epoch = len(source) / (config.batch_size * drawn)
    total = configs.duration(config.total, total=None, steps_per_epoch=steps_per_epoch)
    if total < 1:
        raise UserError(f"total {config.total!r} is {total} steps; allowed are 1 and more")
    updates = make_updates(objective, config, total=total, steps_per_epoch=steps_per_epoch, trust=trust)
    boxed = jax.eval_shape(lambda rng: init_state(objective, updates, rng, base.dummy(source.fields), ema=config.ema), jax.random.key(0))
    shardings = parallel.state_shardings(boxed, mesh=mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), parallel.unbox(boxed), shardings)
    return Assembly(config=config, objective=objective, source=source, mesh=mesh, updates=updates, boxed=boxed, abstract=abstract,
                    shardings=shardings, total=total, steps_per_epoch=steps_per_epoch, clips=config.batch_size * source.repeats, draws=drawn)


def make_updates(objective: base.Objective, config: ml_collections.ConfigDict, /, *, total: int, steps_per_epoch: float,
                 trust: tuple[str, ...] = ()) -> dict[str, Updates]:
    """The optimiser of every phase, its schedule bound to this run's length and batch."""
    optimizers = {name: configs.build(node, trust=trust) for name, node in config.optimizers.items()}
    updates = {}
    for phase in objective.phases():
        if phase.optimizer not in optimizers:
            raise UserError(f"phase {phase.name!r} wants optimizer {phase.optimizer!r}; config.optimizers has {', '.join(optimizers)}")
        chosen = optimizers[phase.optimizer]
        chosen.schedule.at(jnp.zeros(()), batch=config.batch_size, total=total, steps_per_epoch=steps_per_epoch)  # fails early

        def rate(step: Any, schedule: optim.Schedule = chosen.schedule) -> Any:
            return schedule.at(step, batch=config.batch_size, total=total, steps_per_epoch=steps_per_epoch)

        updates[phase.name] = Updates(chosen.transform(), rate)
    return updates


def state_bytes(abstract: TrainState, /) -> int:
    """Bytes of a saved state (parameters, moments, averages)."""
    saved = (abstract.params, abstract.opt, abstract.extra, abstract.ema)
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(saved))
