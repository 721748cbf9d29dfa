"""The training loop: one for every recipe. It knows no modality and no recipe's name."""

import collections
import dataclasses
import pathlib
import time
from typing import Any

import jax

from videomae_jax import config as configs
from videomae_jax import parallel, run_directory
from videomae_jax.assembly import Assembly
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.data import pipeline
from videomae_jax.evals.base import Context
from videomae_jax.metrics import Clock, Progress, Writer
from videomae_jax.step import TrainState
from videomae_jax.stopping import Stop


@dataclasses.dataclass(frozen=True)
class Result:
    """Where a run ended: `finished` is False when it was asked to stop; `values` are the last results logged."""

    state: TrainState
    step: int
    finished: bool
    values: dict[str, float]


def train(run: Assembly, directory: pathlib.Path, /, *, stop: Stop, say: Any = print, trust: tuple[str, ...] = ()) -> Result:
    """Trains until the total, from the newest readable checkpoint of `directory` if there is one.

    The order within the loop decides what a checkpoint means: the state of step s is evaluated, then saved, then the
    batch s is drawn. So a checkpoint holds everything that is logged up to its step, a resumed run repeats neither its
    evaluation nor its save, and metrics.jsonl is cut at its step.
    """
    config, lead = run.config, parallel.is_lead()
    saver = Checkpointer(directory / "checkpoints", keep_last=config.checkpoint.keep_last, keep_every=_steps(run, config.checkpoint.keep_every))
    state, first, samples = _begin(run, saver, say)
    every = {"save": _steps(run, config.checkpoint.every), "log": _steps(run, config.log.every)}
    evaluators = {name: configs.build(node, trust=trust) for name, node in config.evaluators.items()}
    due = {name: _steps(run, e.every) for name, e in evaluators.items()}
    writer = Writer(directory, step=first if saver.steps() else -1, lead=lead)
    faults = run_directory.Faults(directory, source=run.source, lead=lead)
    step_fn = run.step()
    step, values, done = first, {}, first if saver.steps() else -1
    clock = Clock(Progress(total=run.total, first=first, lead=lead), writer, clips=run.clips * run.draws)
    try:
        with pipeline.stream(run.source, batch_size=config.batch_size, seed=config.seed, start=samples, host=jax.process_index(),
                             hosts=jax.process_count(), workers=config.workers, threads=config.threads) as stream:
            batches = _ahead(stream, run, faults, depth=config.prefetch)
            while True:
                last, stopping = step == run.total, stop.requested(step)
                if step != done:
                    names = [n for n in evaluators if last or step == 0 or (due[n] and step % due[n] == 0)]
                    if names:
                        clock.flush(step)
                        values |= _evaluate(run, state, step, {n: evaluators[n] for n in names}, directory, trust)
                        writer.write(step, values)
                        clock.restart()
                    if last or stopping or (step and every["save"] and step % every["save"] == 0):
                        clock.flush(step)
                        saver.save(step, state, meta={"config": configs.to_json(config), "samples": samples, "step": step})
                if last or stopping:
                    break
                begin = time.monotonic()
                drawn = [next(batches) for _ in range(run.draws)]
                clock.wait += time.monotonic() - begin
                with jax.transfer_guard("disallow"):
                    state, metrics = step_fn(state, *drawn)
                step += 1
                samples += run.draws * config.batch_size
                if step % every["log"] == 0 or step == first + 1 or step == run.total:
                    clock.put(step, metrics)
        saver.wait()
    finally:
        clock.close()
        writer.close()
        faults.close()
        saver.close()
    return Result(state=state, step=step, finished=step == run.total, values=clock.last | values)


def _begin(run: Assembly, saver: Checkpointer, say: Any, /) -> tuple[TrainState, int, int]:
    """A fresh or restored state, its step and the number of decoded clips drawn so far."""
    if not saver.steps():
        return run.create(), 0, 0
    restored = saver.latest_good(run.abstract, rng=run.rng(), warn=say)
    say(f"resuming from step {restored.step} in {saver.directory}")
    return restored.state, restored.step, int(restored.meta["samples"])


def _steps(run: Assembly, text: str, /) -> int:
    """A duration in whole steps; "" and "0" mean never, anything else at least 1."""
    if text in ("", "0"):
        return 0
    return max(1, configs.duration(text, total=run.total, steps_per_epoch=run.steps_per_epoch))


def _ahead(stream: Any, run: Assembly, faults: Any, /, *, depth: int) -> Any:
    """Device batches, `depth` of them in flight, so that the copy of one hides behind the step of another."""
    queue: collections.deque[Any] = collections.deque()
    for batch in stream:
        faults.note(batch)
        queue.append(parallel.to_device(batch, mesh=run.mesh))
        if len(queue) >= depth:
            yield queue.popleft()


def _evaluate(run: Assembly, state: TrainState, step: int, evaluators: dict[str, Any], directory: pathlib.Path, trust: tuple[str, ...]) -> dict[str, float]:
    """Results of the evaluators as {"name/metric": value}."""
    context = Context(run, state.ema or state.params, state.extra, step, directory, trust)
    return {f"{name}/{k}": float(v) for name, e in evaluators.items() for k, v in e.run(context).items()}
