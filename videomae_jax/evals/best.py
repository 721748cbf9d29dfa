"""The weights of the best evaluation of a run, kept beside its checkpoints in the folder `best`.

The folder is a checkpoint like any other: `pretrained`, and any other external weights, may name it. It holds the parameters, averaged
ones where the run averages, and what else the run learns (statistics of a linear probe); what opens it takes config, classes and frozen
weights from the run. Its metadata tell which frozen ones it was trained with: heads of another encoder answer as if they knew nothing.
"""

import json
import pathlib
import re
import sys
from typing import Any

import numpy as np

from videomae_jax import config as configs
from videomae_jax import agreement, parallel, reference, run_data, starts
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.errors import UserError
from videomae_jax.evals.base import Context
from videomae_jax.objectives import base
from videomae_jax.ownership import BEST
from videomae_jax.step import TrainState
from videomae_jax.types import Extra, Params

KEEPING = r"evaluators\.own\.(best|save|weights)"  # of an evaluator: what it keeps, and which weights it is shown


def folder(context: Context, /) -> pathlib.Path:
    """Where they lie."""
    return context.directory / BEST


def named(path: pathlib.Path, /, *, best: bool = False) -> tuple[pathlib.Path, bool]:
    """(run directory, whether its best weights are meant) of the path of a run, or of the folder `best` of one."""
    if path.name == BEST and not (path / "config.json").exists() and (path.parent / "config.json").is_file() and any(path.glob("[0-9]" * 8)):
        return path.parent, True
    return path, best


def checkpoints(run: pathlib.Path, /, *, best: bool = False) -> pathlib.Path:
    """The folder with the checkpoints of a run directory, or with its best weights. Raises UserError where it keeps none."""
    if best and not (run / BEST).is_dir():
        raise UserError(f"{run / BEST} is not there: no evaluator of this run keeps the best weights yet (evaluators.NAME.best=top1)")
    return run / (BEST if best else "checkpoints")


def measured(context: Context, evaluator: Any, /, *, source: Any) -> dict[str, Any]:
    """What makes values of `evaluator` on the clips of `source` comparable: its settings and those of eval_data that change what is measured,
    not only when or from which place, and which clips there are."""
    fields = configs.flat(configs.plain(evaluator), prefix="evaluators.own") | configs.flat(context.assembly.config.eval_data, prefix="data")
    kept = {k: v for k, v in fields.items() if not re.fullmatch(f"{reference.SCHEDULING}|{reference.OTHER}|{KEEPING}", k)}
    return json.loads(json.dumps(kept | {"clips": run_data.contents(source)}))


def keep(context: Context, value: float, /, *, metric: str, by: dict[str, Any] | None = None) -> float:
    """Saves the weights that the context shows if `value` is above that of the kept ones; returns the best value so far.

    `by` says what the value was `measured` by. Values of the kept ones that are known to come of another measurement cannot be compared
    with it, so the weights that the context shows take their place, as they do where the kept ones are known to have been trained with other frozen
    weights. A kept step that lies ahead, of a run that went back to an older checkpoint, stays: going on reaches it again; with other frozen weights it
    never does, and that step is moved away; so it is where the kept ones lack what else the run learns. Nothing is saved where a run is only looked
    at, and a value that cannot be compared is then no answer. Kept weights whose metadata are damaged are moved away, and these take their place. A
    save that fails is told and leaves the kept ones that were not moved away, whose value is the answer where it can be compared; of several
    processes it ends all, as any save does.
    """
    if not context.training and not folder(context).is_dir():
        return value
    saver = Checkpointer(folder(context), keep_last=1, read_only=not context.training, warn=lambda line: print(line, file=sys.stderr))
    try:
        found = saver.newest(repair=context.training)
        kept = found and found[1]
        if kept is not None and kept["metric"] != metric:
            raise UserError(f"{folder(context)} holds the best by {kept['metric']!r}, and the evaluator asks for {metric!r}; move the folder away")
        frozen = _frozen(context)
        bare = kept is not None and _bare(kept, context)
        foreign = kept is not None and (bare or _foreign(kept, frozen))
        other = foreign or (kept is not None and by is not None and kept.get("measured") not in (None, by))
        if other and not context.training:
            return value
        if kept is not None and not foreign and (kept["step"] >= context.step or (kept["value"] >= value and not other)):
            return float(kept["value"])
        if not context.training:
            return value
        if foreign and kept["step"] >= context.step:
            saver.set_aside([kept["step"]], "foreign")
        run = context.assembly
        state = TrainState(parallel.put(context.step, mesh=run.mesh), run.rng(), context.params, {}, {k: context.extra[k] for k in run.abstract.extra}, {})
        if other and parallel.is_lead():
            why = ("kept without what else the run learns" if bare else "trained with other frozen weights" if foreign
                   else "measured by other settings or on other clips")
            print(f"{folder(context)} holds the best of step {kept['step']}, {metric} {kept['value']:g}, which was {why}: "
                  f"the weights of step {context.step}, {metric} {value:g}, take its place", file=sys.stderr)
        saver.save(context.step, state, meta={"step": context.step, "metric": metric, "value": value, "measured": by, "frozen": frozen})
        saver.check(wait=True)
        return float(kept["value"]) if kept is not None and saver.failed and not other else value
    finally:
        saver.close()


def load(context: Context, /) -> tuple[int, Params, Extra]:
    """(step, parameters, extra) of the kept weights, as the context has those of its own step. Raises UserError where there are none, where they lack
    what else the run learns, and where they were trained with other frozen weights than those of the context."""
    saver = Checkpointer(checkpoints(context.directory, best=True), read_only=True)
    try:
        steps = saver.candidates()
        if not steps:
            raise UserError(f"{folder(context)} holds no checkpoint")
        if _bare(saver.meta(steps[-1]), context):
            raise UserError(f"{folder(context)} holds the best of step {steps[-1]} without {', '.join(context.assembly.abstract.extra)}; evaluations of the run "
                            "that goes on put them there, or move the folder away")
        found = saver.restore(steps[-1], context.assembly.abstract, rng=context.assembly.rng(), items=("params", "extra"))
        if _foreign(found.meta, _frozen(context)):
            raise UserError(f"{folder(context)} holds the best of step {found.step}, which was trained with other frozen weights than step "
                            f"{context.step}; allowed are those of the same ones, as evaluations of the run that goes on put them there")
        return found.step, found.state.params, context.extra | found.state.extra
    finally:
        saver.close()


def _frozen(context: Context, /) -> dict[str, str]:
    """{into: SHA-256} of the frozen weights that the answers at the step of the context need, {} where no start tells."""
    told = starts.frozen(context.directory, step=None if context.training else context.step)
    return {e.into: told[e.into]["sha256"] for e in base.answering(context.assembly.objective) if e.into in told}


def _bare(kept: dict[str, Any], context: Context, /) -> bool:
    """Whether weights with the metadata `kept` are those of an older version, which left out what else the run learns."""
    return bool(context.assembly.abstract.extra) and "extra" not in kept["leaves"]


def _foreign(kept: dict[str, Any], frozen: dict[str, str], /) -> bool:
    """Whether weights with the metadata `kept` are known to have been trained with others than the `frozen` ones; all processes ask together."""
    before = kept.get("frozen", {})
    return bool(agreement.from_lead(np.asarray(any(before.get(into, sha256) != sha256 for into, sha256 in frozen.items()))))
