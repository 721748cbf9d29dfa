"""The training loop: one for every recipe. It knows no modality and no recipe's name."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax

from videomae_jax import feed, metrics, occupancy, parallel, run_directory
from videomae_jax.assembly import Assembly
from videomae_jax.rollback import RollBack, Watch
from videomae_jax.step import TrainState
from videomae_jax.stopping import Stop, leave
from videomae_jax.upkeep import Safety, Upkeep, steps_of


@dataclasses.dataclass(frozen=True)
class Result:
    """Where a run began and ended: `finished` is False when it was asked to stop."""

    state: TrainState
    first: int
    step: int
    finished: bool


def train(run: Assembly, directory: pathlib.Path, /, *, stop: Stop, say: Callable[[str], None] = print, trust: tuple[str, ...] = (),
          safety: Safety = Safety()) -> Result:
    """Trains until the total, from the newest readable checkpoint of `directory` if there is one.

    The order within the loop decides what a checkpoint means: the state of step s is evaluated, then saved, then the
    batch s is drawn. So a checkpoint holds everything that is logged up to its step, a resumed run repeats neither its
    evaluation nor its save, and metrics.jsonl is cut at its step. An evaluation that a stop cut short has left no line
    there, which is how a resumed run knows that it is still due. Too many skipped updates in a row begin the loop anew,
    from an older checkpoint and past the data that led to them.
    """
    with occupancy.alone(directory, say=say), contextlib.ExitStack() as stack:
        run_directory.check_claimed(run, directory)
        upkeep = Upkeep(run, directory, stop=stop, say=say, trust=trust, safety=safety, stack=stack)
        step_fn, back = run.step(norms=safety.norms), None
        while True:
            try:
                return _loop(upkeep, step_fn, back)
            except RollBack as found:
                back = found.with_traceback(None)  # whose frames hold the old state and batches on the devices
                upkeep.ledger.line(found.cursor.since + found.cursor.row)  # closes what the way back makes worthless
                upkeep.saver.retreat(found.cursor.since)


def _alone(_: Any, error: BaseException | None, __: Any, /) -> None:
    """An error of one process of several ends it; only a way back is always that of all."""
    if isinstance(error, Exception) and not isinstance(error, RollBack) and jax.process_count() > 1:
        leave(error, lead=parallel.is_lead())


def _loop(upkeep: Upkeep, step_fn: Callable[..., Any], back: RollBack | None, /) -> Result:
    """From the newest checkpoint to the end; raises RollBack where the run has to begin at an older one."""
    run, config, saver = upkeep.run, upkeep.run.config, upkeep.saver
    state, first, cursor, saved = upkeep.begin(back)
    with contextlib.ExitStack() as stack:
        every = {"save": steps_of(run, config.checkpoint.every), "log": steps_of(run, config.log.every)}
        known = {key for line in metrics.read(upkeep.directory) if line["step"] == saved for key in line}
        due = {name: steps_of(run, e.every) for name, e in upkeep.evaluators.items()}
        writer = metrics.Writer(upkeep.directory, step=saved, lead=parallel.is_lead())
        stack.callback(writer.close)
        faults = run_directory.Faults(upkeep.directory, source=run.source)
        stack.callback(faults.close)
        watch = Watch(cursor, upkeep.safety.policy, upkeep.events)
        clock = metrics.Clock(metrics.Progress(total=run.total, first=first, lead=parallel.is_lead()), writer, clips=run.clips * run.draws, more=watch.read)
        stack.callback(clock.close)
        step, samples, batches = first, cursor.samples, feed.batches(run, cursor.samples, faults)
        stack.callback(batches.close)
        stack.push(_alone)  # before anything above is closed
        while True:
            last, stopping = step == run.total, upkeep.stop.requested()
            names = [n for n in upkeep.evaluators if last or step == 0 or (due[n] and step % due[n] == 0)]
            names = [n for n in names if step != saved or not any(key.startswith(f"{n}/") for key in known)]
            if names and not stopping:
                clock.flush(step, state)
                upkeep.at("evaluation", step)
                stopping = not upkeep.evaluate(state, step, names, writer)
                clock.restart(step)
            if step != saved and (last or stopping or saver.due() or (step and every["save"] and step % every["save"] == 0)):
                clock.flush(step, state)
                watch.read(step)
                watch.check()
                upkeep.at("checkpoint", step)
                clock.next |= upkeep.save(state, step, watch.cursor, last=last or stopping)
                clock.restart(step)
            if last or stopping:
                break
            upkeep.at("init" if step == first else "data_wait", step)
            begin = time.monotonic()
            drawn = [next(batches) for _ in range(run.draws)]
            clock.wait += time.monotonic() - begin
            upkeep.at("compile" if step == first else "step", step)
            with jax.transfer_guard("disallow"):
                state, values = step_fn(state, *drawn)
            step += 1
            samples += run.draws * config.batch_size
            upkeep.watchdog.dispatched(values)
            values = watch.note(step, samples, values)
            saver.check()
            upkeep.at("step", step)
            upkeep.ledger.line(step, force=step == first + 1)
            if step == 1 or step == run.total or (every["log"] and step % every["log"] == 0):
                clock.next |= faults.counters()
                clock.put(step, values)
                watch.check()
        upkeep.finish(state, step, watch.cursor)
    upkeep.ledger.line(step)
    return Result(state=state, first=0 if back else first, step=step, finished=last and not stopping)
