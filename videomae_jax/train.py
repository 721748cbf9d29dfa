"""The training loop: one for every recipe. It knows no modality and no recipe's name."""

import collections
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from videomae_jax import config as configs
from videomae_jax import metrics, parallel, run_directory
from videomae_jax.assembly import Assembly
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.data import pipeline
from videomae_jax.evals.base import Context
from videomae_jax.step import TrainState
from videomae_jax.stopping import InterruptedEvaluation, Stop, shielded


@dataclasses.dataclass(frozen=True)
class Result:
    """Where a run began and ended: `finished` is False when it was asked to stop."""

    state: TrainState
    first: int
    step: int
    finished: bool


def train(run: Assembly, directory: pathlib.Path, /, *, stop: Stop, say: Callable[[str], None] = print, trust: tuple[str, ...] = ()) -> Result:
    """Trains until the total, from the newest readable checkpoint of `directory` if there is one.

    The order within the loop decides what a checkpoint means: the state of step s is evaluated, then saved, then the
    batch s is drawn. So a checkpoint holds everything that is logged up to its step, a resumed run repeats neither its
    evaluation nor its save, and metrics.jsonl is cut at its step. An evaluation that a stop cut short has left no line
    there, which is how a resumed run knows that it is still due.
    """
    config, lead = run.config, parallel.is_lead()
    with contextlib.ExitStack() as stack:
        saver = Checkpointer(directory / "checkpoints", keep_last=config.checkpoint.keep_last, keep_every=_steps(run, config.checkpoint.keep_every), warn=say)
        stack.callback(saver.close)
        state, first, samples, saved = _begin(run, saver, say)
        every = {"save": _steps(run, config.checkpoint.every), "log": _steps(run, config.log.every)}
        known = {key for line in metrics.read(directory) if line["step"] == saved for key in line}
        evaluators = {name: configs.build(node, trust=trust) for name, node in config.evaluators.items()}
        due = {name: _steps(run, e.every) for name, e in evaluators.items()}
        writer = metrics.Writer(directory, step=saved, lead=lead)
        stack.callback(writer.close)
        faults = run_directory.Faults(directory, source=run.source)
        stack.callback(faults.close)
        clock = metrics.Clock(metrics.Progress(total=run.total, first=first, lead=lead), writer, clips=run.clips * run.draws)
        stack.callback(clock.close)
        step_fn, step, batches = run.step(), first, _batches(run, samples, faults)
        stack.callback(batches.close)
        while True:
            last, stopping = step == run.total, stop.requested()
            names = [n for n in evaluators if last or step == 0 or (due[n] and step % due[n] == 0)]
            names = [n for n in names if step != saved or not any(key.startswith(f"{n}/") for key in known)]
            if names and not stopping:
                clock.flush(step)
                stopping = not _evaluate(run, state, step, {n: evaluators[n] for n in names}, directory, trust, stop, writer)
                clock.restart()
            if step != saved and (last or stopping or (step and every["save"] and step % every["save"] == 0)):
                clock.flush(step)
                saver.save(step, state, meta={"config": configs.to_json(config), "samples": samples, "step": step})
            if last or stopping:
                break
            begin = time.monotonic()
            drawn = [next(batches) for _ in range(run.draws)]
            clock.wait += time.monotonic() - begin
            with jax.transfer_guard("disallow"):
                state, values = step_fn(state, *drawn)
            step += 1
            samples += run.draws * config.batch_size
            saver.check()
            if step == 1 or step == run.total or (every["log"] and step % every["log"] == 0):
                clock.put(step, values)
        saver.wait()
    return Result(state=state, first=first, step=step, finished=last and not stopping)


def _begin(run: Assembly, saver: Checkpointer, say: Callable[[str], None], /) -> tuple[TrainState, int, int, int]:
    """A fresh or restored state, its step, the number of decoded clips drawn so far and the step saved last (-1 = none)."""
    if not saver.steps():
        return run.create(), 0, 0, -1
    restored = saver.latest_good(run.abstract, rng=run.rng())
    say(f"resuming from step {restored.step} in {saver.directory}")
    return restored.state, restored.step, int(restored.meta["samples"]), restored.step


def _steps(run: Assembly, text: str, /) -> int:
    """A duration in whole steps; "" and "0" mean never, anything else at least 1."""
    if text in ("", "0"):
        return 0
    return max(1, configs.duration(text, total=run.total, steps_per_epoch=run.steps_per_epoch))


def _batches(run: Assembly, samples: int, faults: Any, /) -> Iterator[Any]:
    """Device batches, `prefetch` of them in flight, so that the copy of one hides behind the step of another."""
    config, queue = run.config, collections.deque()
    with contextlib.ExitStack() as stack:
        with shielded():
            stream = stack.enter_context(pipeline.stream(
                run.source, batch_size=config.batch_size, seed=config.seed, start=samples, host=jax.process_index(), hosts=jax.process_count(),
                workers=config.workers, threads=config.threads))
            batch = next(stream)
        while True:
            faults.note(batch)
            queue.append(parallel.to_device(batch, mesh=run.mesh))
            if len(queue) >= config.prefetch:
                yield queue.popleft()
            batch = next(stream)


def _evaluate(run: Assembly, state: TrainState, step: int, evaluators: dict[str, Any], directory: pathlib.Path, trust: tuple[str, ...],
              stop: Stop, writer: metrics.Writer, /) -> bool:
    """Writes the results of the evaluators as {"name/metric": value}; False when a stop was asked for meanwhile."""
    context = Context(run, state.ema or state.params, run.seen(state.extra), step, directory, trust, stop.requested)
    values: dict[str, float] = {}
    try:
        for name, evaluator in evaluators.items():
            values |= {f"{name}/{k}": float(v) for k, v in evaluator.run(context).items()}
    except InterruptedEvaluation:
        return False
    finally:
        if values:
            writer.write(step, values)
    return True
