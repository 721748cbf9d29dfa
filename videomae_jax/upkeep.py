"""What surrounds the training loop: where it begins, what it saves and evaluates, its books and its watchdog."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable

import jax

from videomae_jax import config as configs
from videomae_jax import durable, externals, metrics, parallel, starts
from videomae_jax.assembly import Assembly
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.data import workers
from videomae_jax.durable import Place
from videomae_jax.evals.base import Context
from videomae_jax.events import Events
from videomae_jax.ledger import Ledger
from videomae_jax.rollback import Cursor, Policy, RollBack
from videomae_jax.step import TrainState
from videomae_jax.stopping import InterruptedEvaluation, Stop
from videomae_jax.watchdog import Limits, Watchdog


LAST = (1.0, 4.0, 15.0)  # seconds before each new try of the last save, within the grace that a preempted job has


@dataclasses.dataclass(frozen=True)
class Safety:
    """What a run does about trouble: when it goes back, when it counts as stuck, where its checkpoints lie a second time, whether it
    logs norms by layer, and when its process `began`."""

    policy: Policy = Policy()
    limits: Limits = Limits()
    second: Place = Place()
    norms: bool = False
    began: float | None = None


class Upkeep:
    """Of one call of `train`; what has to be closed is entered on `stack`."""

    def __init__(self, run: Assembly, directory: pathlib.Path, /, *, stop: Stop, say: Callable[[str], None], trust: tuple[str, ...], safety: Safety,
                 stack: contextlib.ExitStack) -> None:
        lead = parallel.is_lead()
        directory.mkdir(parents=True, exist_ok=True)
        self.run, self.directory, self.stop, self.safety = run, directory, stop, safety
        self._say, self._trust = say, trust
        self.events, self.ledger = Events(directory, lead=lead, say=say), Ledger(directory, lead=lead, began=safety.began)
        self._step, self._start = 0, starts.describe(run.mesh)
        self.watchdog = stack.enter_context(Watchdog(directory, safety.limits.on(jax.default_backend()), rank=jax.process_index(),
                                                     ranks=jax.process_count(), tick=self.ledger.alive, broken=workers.lost, alarm=self.events.add))
        self.second = durable.of(safety.second, directory, warn=lambda line: self.events.add("durable place", self._step, what=line))
        if self.second:
            stack.callback(self.second.close)
        self.saver = Checkpointer(directory / "checkpoints", keep_last=run.config.checkpoint.keep_last,
                                  keep_every=steps_of(run, run.config.checkpoint.keep_every), warn=say, second=self.second)
        stack.callback(self.saver.close)
        found = {name: configs.build(node, trust=trust) for name, node in run.config.evaluators.items()}
        # What reads the best weights comes after what chooses them, whatever the names are.
        self.evaluators = dict(sorted(found.items(), key=lambda item: getattr(item[1], "weights", "last") == "best"))

    def at(self, phase: str, step: int, /) -> None:
        """From now on time belongs to a phase, for the books and for the watchdog."""
        self._step = step
        self.ledger.enter(phase)
        self.watchdog.enter(phase, step)

    def begin(self, back: RollBack | None, /) -> tuple[TrainState, int, Cursor, int]:
        """A fresh or restored state, its step, the cursor and the step saved last (-1 = none)."""
        run, state, step, cursor, saved = self.run, None, 0, Cursor(), -1
        steps = self.saver.candidates()
        run.check_step(max(steps, default=0), where=f"{self.directory} and {self.safety.second.path}" if self.second else str(self.directory))
        if self.second:
            self.second.take()
        if steps:
            self.at("restore", 0)
            restored = self.saver.latest_good(run.abstract, rng=run.rng())
            state, step, cursor, saved = restored.state, restored.step, Cursor.of(restored.meta), restored.step
            self._say(f"resuming from step {step} in {self.saver.directory}")
        else:
            state = run.create()
        if back:
            since, cursor = back.cursor.since, back.after(cursor)
            self.events.add("rolled back", since, to=step, samples=list(cursor.skipped[-1]), number=len(cursor.skipped))
        else:
            read = run.frozen_weights if saved >= 0 else run.initial_weights | run.frozen_weights  # a resumed run needs no first weights
            if parallel.is_lead():
                about = {"saved": saved, "externals": externals.manifest(read, source=run.source)}
                starts.note(self.directory, self._start | about, step=step, say=self._say)
        self.ledger.resumed(saved)
        self.ledger.line(step)
        return state, step, cursor, saved

    def save(self, state: TrainState, step: int, cursor: Cursor, /, *, last: bool) -> dict[str, float]:
        """Starts a save; the seconds that it held up training, and how many have failed."""
        begin = time.monotonic()
        self.saver.save(step, state, meta={"config": configs.to_json(self.run.config), "step": step, "start": self._start, **cursor.meta()}, last=last)
        self.ledger.line(step)
        failures = {"save_failures": self.saver.failures, "durable_failures": self.second.failures if self.second else 0}
        return {"save_blocked_s": time.monotonic() - begin} | {k: float(v) for k, v in failures.items() if v}

    def finish(self, state: TrainState, step: int, cursor: Cursor, /) -> None:
        """Waits for the last save and its copy, and repeats the save where it failed. Raises UserError when it fails for good."""
        self.at("checkpoint", step)
        for pause in LAST:
            self.saver.check(wait=True)
            if not self.saver.failed:
                break
            time.sleep(pause)
            self.save(state, step, cursor, last=True)
        self.saver.wait()
        if self.second:
            self.second.wait(seconds=self.safety.second.grace if self.stop.signal is not None else durable.EXIT)
            parallel.barrier("copied")  # the others' orderly end would not wait so long

    def evaluate(self, state: TrainState, step: int, names: list[str], writer: metrics.Writer, /) -> bool:
        """Writes the results of evaluators as {"name/metric": value}; False when a stop was asked for meanwhile."""
        def stopping() -> bool:
            self.watchdog.beat()
            return self.stop.requested()

        context = Context(self.run, state.ema or state.params, self.run.seen(state.extra), step, self.directory, self._trust, stopping)
        values: dict[str, float] = {}
        try:
            for name in names:
                values |= {f"{name}/{k}": float(v) for k, v in self.evaluators[name].run(context).items()}
        except InterruptedEvaluation:
            return False
        finally:
            if values:
                writer.write(step, values)
        return True


def steps_of(run: Assembly, text: str, /) -> int:
    """A duration in whole steps; "" and "0" mean never, anything else at least 1."""
    if text in ("", "0"):
        return 0
    return max(1, configs.duration(text, total=run.total, steps_per_epoch=run.steps_per_epoch))
