"""From a config to the objects of a run: mesh, objective, data, optimisers, shardings, a jitted step."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from videomae_jax import config as configs
from videomae_jax import externals, head_rows, ingest, optim, parallel
from videomae_jax.data import sources
from videomae_jax.errors import UserError
from videomae_jax.objectives import base
from videomae_jax.programs import Programs
from videomae_jax.step import TrainState, Updates, init_keys, init_state, make_train_step, staged, state_of
from videomae_jax.types import Extra, Params


@dataclasses.dataclass(frozen=True)
class Assembly:
    """Everything that a command needs of a run; `abstract` holds shapes with shardings for every leaf of the state.

    `clips` counts device clips of a batch (decoded clips x copies), `draws` the batches of one step. `stages` holds
    (first step after it, objective) of a static curriculum. `source` gives the batches that cross to the devices, `fields`
    are what the objective sees of them: the ones behind the `ingest` of the step. `earlier` says which frozen weights the run was
    trained with before.
    """

    config: ml_collections.ConfigDict
    objective: base.Objective
    stages: tuple[tuple[int, base.Objective], ...]
    source: Any
    fields: Mapping[str, Any]
    mesh: Any
    updates: dict[str, Updates]
    boxed: TrainState
    abstract: TrainState
    shardings: TrainState
    abstract_frozen: Params
    total: int
    steps_per_epoch: float
    clips: int
    draws: int
    earlier: externals.Earlier = externals.Earlier()

    @functools.cached_property
    def programs(self) -> Programs:
        """Those of this run, which its state and its evaluators are made by."""
        return Programs()

    def after(self, directory: pathlib.Path, /, *, step: int | None = None, fork: bool = False) -> "Assembly":
        """The same with the frozen weights of the run in `directory`, which it was trained with when it saved `step` (None = lastly).

        With `fork` the newest take the place of those that are there no more.
        """
        return dataclasses.replace(self, earlier=externals.earlier(directory, step=step, fork=fork))

    @functools.cached_property
    def initial_weights(self) -> dict[base.External, str]:
        """What the parameters begin with, as `externals.settle` has it; one answer, for what is read and what is told of it. All processes ask together."""
        return externals.settle(self._externals("params"))

    @functools.cached_property
    def frozen_weights(self) -> dict[base.External, str]:
        """The same of the weights that no step changes. Raises UserError where those of before are there no more."""
        return externals.settle(self._externals("frozen") if jax.tree.leaves(self.abstract_frozen) else (), earlier=self.earlier)

    def _externals(self, root: str, /) -> list[base.External]:
        return [e for e in self.objective.externals() if e.into.split("/")[0] == root]

    def create(self) -> TrainState:
        """A fresh state, allocated sharded, with the external weights that the recipe starts from."""
        def fresh(rng: Any) -> TrainState:
            return parallel.unbox(init_state(self.objective, self.updates, rng, self._example(), ema=self.config.ema))

        def params(rng: Any) -> Params:
            return parallel.unbox(self.objective.init(init_keys(rng)[0], self._example()))

        def rest(rng: Any, params: Params) -> TrainState:
            return parallel.unbox(state_of(self.objective, self.updates, rng, params, self._example(), ema=self.config.ema))

        initial = self._externals("params")
        if not initial:
            return self.programs.jit(fresh, out_shardings=self.shardings)(self.rng())
        head_rows.check(initial, source=self.source, kind=self.objective.head_kind)
        encoder = getattr(self.objective, "encoder", None)
        externals.check_positions(initial, encoders={"params": encoder, "params/encoder": encoder})
        loaded = externals.load(self.programs.jit(params, out_shardings=self.shardings.params)(self.rng()), self.initial_weights, root="params")
        return self.programs.jit(rest, out_shardings=self.shardings)(self.rng(), loaded)

    def _example(self) -> dict[str, Any]:
        return base.dummy(self.fields)

    @functools.cached_property
    def frozen(self) -> Params:
        """The weights that no step changes, read and placed when they are first asked for; {} where a recipe has none.

        They are no part of the train state: nothing has to be saved, restored or handed through the step.
        """
        if not jax.tree.leaves(self.abstract_frozen):
            return {}
        read = self._externals("frozen")
        head_rows.check(read, source=self.source, kind=self.objective.head_kind)
        networks = {f"frozen/{name}": getattr(self.objective, name, None) for name in ("encoder", "teacher")}
        externals.check_positions(read, encoders=networks)
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract_frozen)
        made = jax.jit(lambda rng: parallel.unbox(self.objective.init_frozen(init_keys(rng)[2], self._example())),
                       out_shardings=shardings)(self.rng())
        return externals.load(made, self.frozen_weights, root="frozen")

    def seen(self, extra: Extra, /) -> Extra:
        """The `extra` of a state as the methods of the objective take it: with the frozen weights."""
        return base.with_frozen(extra, self.frozen)

    def check_step(self, newest: int, /, *, where: str) -> None:
        """Raises UserError where the newest checkpoint, of step `newest`, lies beyond the total: the run would never come to its end."""
        if newest > self.total:
            raise UserError(f"the newest checkpoint in {where} is of step {newest}, beyond the total of {self.total}; allowed are {newest} and more")

    @property
    def head_names(self) -> tuple[str, ...]:
        """What the outputs of a head are called in the data, in their order: classes or attributes; () where the data do not tell."""
        return sources.names(self.source, self.objective.head_kind)

    def rng(self) -> Any:
        """The run's key, replicated over the mesh."""
        return parallel.put(jax.random.key(self.config.seed), mesh=self.mesh)

    def step(self, *, norms: bool = False) -> "Step":
        """The jitted training step (state, *batches); the state is donated, the frozen weights are not."""
        return Step(self.jitted_step(norms=norms), self.frozen)

    def jitted_step(self, *, norms: bool = False) -> Any:
        """The jitted pure step (state, frozen, *batches); with `norms` its metrics hold the norm of every gradient. Raises UserError for labels of other classes."""
        self.objective.check_labels(self.head_names)
        deferred = self.defers(ways=parallel.batch_ways(self.mesh), microbatches=self.config.microbatches)
        foreign = self.objective.ignores_labels(self.head_names)

        def seen(batch: Any) -> Any:
            batch = ingest.ingest(batch, fields=self.fields)
            return batch | {"label": jnp.full_like(batch["label"], -1)} if foreign else batch

        def made(objective: base.Objective) -> Any:
            return make_train_step(objective, self.updates, microbatches=self.config.microbatches, ema=self.config.ema, params_sharding=self.shardings.params,
                                   norms=norms, ingest=seen, deferred=deferred)

        fn = staged([(end, made(objective)) for end, objective in self.stages], made(self.objective))

        def traced(state: TrainState, frozen: Params, *batches: Any) -> Any:
            with parallel.use(self.mesh):
                return fn(state, frozen, *batches)

        return jax.jit(traced, donate_argnums=0, out_shardings=(self.shardings, parallel.replicated(self.mesh)))

    def defers(self, *, ways: int, microbatches: int) -> bool:
        """Whether clips are cut from planes a micro-batch at a time: in the whole batch, of which `ways` devices hold a part each, they may be larger than all else.

        Not where an objective prepares whole batches, nor where the decodes do not divide.
        """
        objectives = (self.objective, *(objective for _, objective in self.stages))
        return microbatches > 1 and not any(objective.prepares for objective in objectives) and self.config.batch_size % (ways * microbatches) == 0

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and shardings of a global batch."""
        sharding, decodes = parallel.batch_sharding(self.mesh), self.config.batch_size
        shared = {k for k, f in self.source.fields.items() if f.shared}
        return {k: jax.ShapeDtypeStruct((decodes if k in shared else self.clips, *x.shape[1:]), x.dtype, sharding=sharding)
                for k, x in base.dummy(self.source.fields).items()}

    def compile(self, *, options: Mapping[str, str | int] | None = None) -> Any:
        """The compiled step for the shapes of this run, without data, parameters or external files; `options` of the compiler win over its flags."""
        lowered = self.jitted_step().lower(self.abstract, self.abstract_frozen, *[self.abstract_batch()] * self.draws)
        return lowered.compile(compiler_options=dict(options or {}) or None)

    def evaluator(self, fn: Any, /) -> Any:
        """`fn` jitted under this mesh, results replicated, so that every process can read them; compiled once (`Programs`)."""
        def traced(*args: Any) -> Any:
            with parallel.use(self.mesh):
                return fn(*args)
        return self.programs.jit(traced, out_shardings=parallel.replicated(self.mesh))


@dataclasses.dataclass(frozen=True)
class Step:
    """A jitted step with the frozen weights of its run."""

    jitted: Any
    frozen: Params

    def __call__(self, state: TrainState, *batches: Any) -> tuple[TrainState, dict[str, Any]]:
        return self.jitted(state, self.frozen, *batches)

    def lower(self, state: Any, *batches: Any) -> Any:
        """The step lowered for arguments or their shapes."""
        return self.jitted.lower(state, self.frozen, *batches)


def check_numbers(config: ml_collections.ConfigDict, /) -> None:
    """Raises UserError for a count or a share of the run itself that is out of range."""
    for field, least in (("batch_size", 1), ("microbatches", 1), ("prefetch", 1), ("threads", 1), ("workers", 0)):
        if config[field] < least:
            raise UserError(f"{field} is {config[field]}; allowed are {least} and more")
    if not 0 <= config.ema < 1:
        raise UserError(f"ema is {config.ema}; allowed are 0 (none) and decays below 1")


def check_named(config: ml_collections.ConfigDict, /) -> None:
    """Raises UserError for a part of the run that names no class."""
    several = {f"{group}.{name}": node for group in ("optimizers", "evaluators") for name, node in config[group].items()}
    parts = {"objective": config.objective, "data": config.data, **several}
    for name, node in parts.items():
        if not hasattr(node, "keys") or configs.SYMBOL not in node:
            raise UserError(f"config.{name} names no class; allowed is spec(...) of one, such as config.objective = spec(mae.MAE, ...)")


def assemble(config: ml_collections.ConfigDict, /, *, trust: tuple[str, ...] = (), devices: list[Any] | None = None) -> Assembly:
    """Builds and checks a run; allocates nothing on devices."""
    check_numbers(config)
    check_named(config)
    layout = parallel.Layout(**config.mesh)
    mesh = layout.mesh(devices)
    objective = configs.build(config.objective, trust=trust)
    source = configs.build(config.data, trust=trust)
    if not isinstance(objective, base.Objective):
        raise UserError(f"config.objective is a {type(objective).__name__}; allowed is a class that begins from objectives.base.Objective")
    base.check_phases(objective.phases())
    drawn = base.draws(objective.phases())
    parallel.check_batch(config.batch_size * source.repeats, mesh=mesh, microbatches=config.microbatches)
    with parallel.use(mesh):
        platform = parallel.target().platform
    fields, source = source.fields, ingest.placed(source, platform=platform, batch_size=config.batch_size, ways=parallel.batch_ways(mesh))
    steps_per_epoch = len(source) / (config.batch_size * drawn)
    total = configs.duration(config.total, total=None, steps_per_epoch=steps_per_epoch)
    if total < 1:
        raise UserError(f"total {config.total!r} is {total} steps; allowed are 1 and more")
    updates = make_updates(objective, config, total=total, steps_per_epoch=steps_per_epoch, trust=trust)

    def state(rng: Any, objective: base.Objective = objective) -> tuple[TrainState, Params]:
        example = base.dummy(fields)
        return init_state(objective, updates, rng, example, ema=config.ema), objective.init_frozen(init_keys(rng)[2], example)

    boxed = jax.eval_shape(state, jax.random.key(0))
    parallel.check_replication(boxed, mesh=mesh, limit=layout.replicated)
    shardings = parallel.state_shardings(boxed, mesh=mesh)
    abstract = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), parallel.unbox(boxed), shardings)
    return Assembly(config=config, objective=objective, stages=make_stages(objective, state, total=total, steps_per_epoch=steps_per_epoch),
                    source=source, fields=fields, mesh=mesh, updates=updates, boxed=boxed[0], abstract=abstract[0], shardings=shardings[0],
                    abstract_frozen=abstract[1], total=total, steps_per_epoch=steps_per_epoch, clips=config.batch_size * source.repeats, draws=drawn)


def make_stages(objective: base.Objective, state: Any, /, *, total: int, steps_per_epoch: float) -> tuple[tuple[int, base.Objective], ...]:
    """(end in steps, objective) of every stage; `state(rng, objective)` makes what all stages must share.

    Raises UserError where ends do not grow or a stage has other phases, parameters or coupling than the recipe.
    """
    stages = tuple((configs.duration(s.until, total=total, steps_per_epoch=steps_per_epoch), s.objective) for s in objective.stages())
    ends = [0, *(end for end, _ in stages), total + 1]
    if any(a >= b for a, b in zip(ends, ends[1:], strict=False)):
        raise UserError(f"stages end at steps {ends[1:-1]} of {total}; ends grow and lie within the run")

    def phases(one: base.Objective) -> Any:
        return one.batch_coupled, [(p.name, p.trains, p.optimizer, p.repeats, p.data) for p in one.phases()]

    def shapes(one: base.Objective) -> Any:
        return jax.eval_shape(lambda rng: state(rng, one), jax.random.key(0))

    for end, one in stages:
        if phases(one) != phases(objective) or shapes(one) != shapes(objective):
            raise UserError(f"the stage until step {end} changes phases or the shapes of the state; a stage may change the loss alone")
    return stages


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

        updates[phase.name] = Updates(chosen.transform(), rate, chosen.schedule)
    return updates


def state_bytes(abstract: TrainState, /) -> int:
    """Bytes of a saved state (parameters, moments, averages)."""
    return parallel.nbytes((abstract.params, abstract.opt, abstract.extra, abstract.ema))
