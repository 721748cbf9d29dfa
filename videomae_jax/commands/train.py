"""The `train` command."""

import argparse
import json
import pathlib
import shlex
import time
import typing

from videomae_jax.commands import arguments
from videomae_jax.commands.arguments import say

if typing.TYPE_CHECKING:
    from videomae_jax.upkeep import Safety


def main(argv: list[str]) -> int:
    """Trains or resumes; 0 when the run is finished, 75 or 130 when it was stopped with a checkpoint, 74 when one cannot be written."""
    parser = arguments.Parser("train", description="Train a config, or resume it: the newest checkpoint in --workdir is used.")
    arguments.add_config(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="run directory: checkpoints, metrics, pictures")
    parser.add_argument("--dry-run", action="store_true", help="build everything, compile one step, print the card, train nothing")
    parser.add_argument("--extend", action="store_true", help="go on with a run whose total changed")
    parser.add_argument("--fork", action="store_true", help="go on with a run whose learning rate, data, batch or seed changed")
    add_safety(parser)
    arguments.add_processes(parser)
    options, assignments = arguments.parse(parser, argv)
    config = arguments.resolve(options, assignments)
    arguments.start(options)
    from videomae_jax import card, parallel, run_directory
    from videomae_jax.assembly import assemble
    from videomae_jax.checkpoint import StorageError
    from videomae_jax.stopping import STORAGE, Stop
    from videomae_jax.train import train

    lead = parallel.is_lead()
    tell = say if lead else (lambda line: None)
    trust = tuple(options.trust)
    run = assemble(config, trust=trust)
    tell(card.text(card.card(run)))
    for line in parallel.dropped_axes(run.boxed, mesh=run.mesh):
        tell(f"not sharded: {line}")
    if options.dry_run:
        return dry_run(run, tell)
    directory = pathlib.Path(options.workdir)
    run_directory.claim(run, directory, extend=options.extend, fork=options.fork, say=tell)
    begin = time.monotonic()
    try:
        with Stop() as stop:
            result = train(run, directory, stop=stop, say=tell, trust=trust, safety=safety(options))
    except StorageError as error:
        say(f"error: {error}")
        return STORAGE
    if not result.finished:
        tell(f"stopped at step {result.step} of {run.total}; the checkpoint is saved. Resume with the same command:\n"
             f"  python -m videomae_jax train {shlex.join(argv)}")
        return stop.code
    if result.first == run.total:
        tell(f"nothing to do: {directory} finished at step {run.total} before; a longer total goes on with --extend")
    else:
        tell(f"finished at step {result.step}; everything is in {directory}")
    if lead and (result.first < run.total or not (directory / "summary.json").exists()):
        run_directory.summarise(directory, run, seconds=time.monotonic() - begin, trust=trust)
    return 0


def add_safety(parser: argparse.ArgumentParser, /) -> None:
    """What the run does about updates that are not finite, and when it counts as stuck."""
    parser.add_argument("--row", type=int, default=10, metavar="K", help="after K skipped updates in a row go back to an older checkpoint and past the data "
                        "that led there (0 = never)")
    parser.add_argument("--rollbacks", type=int, default=3, metavar="N", help="go back at most N times")
    parser.add_argument("--norms", action="store_true", help="log the norm of every gradient, by layer")
    for name, seconds, what in (("step", None, "a step or a wait for data, and at least 10 median steps (60, on a CPU 300; 0 = no watchdog)"), ("compile", 3600, "the first step"),
                                ("checkpoint", 1800, "what a save holds up"), ("evaluation", 1800, "one batch of an evaluation"),
                                ("start", 1800, "restore and first batch")):
        parser.add_argument(f"--{name}-limit", type=float, default=seconds, metavar="SECONDS", help=f"longest time without progress: {what}")


def safety(options: argparse.Namespace, /) -> "Safety":
    """The settings of `add_safety`. Raises UserError for a negative one."""
    import jax

    from videomae_jax import ledger
    from videomae_jax.rollback import Policy
    from videomae_jax.upkeep import Safety
    from videomae_jax.watchdog import Limits, step_limit

    step = step_limit(jax.default_backend()) if options.step_limit is None else options.step_limit
    limits = Limits(step=step, compile=options.compile_limit, checkpoint=options.checkpoint_limit, evaluation=options.evaluation_limit,
                    init=options.start_limit, restore=options.start_limit)
    return Safety(Policy(options.row, options.rollbacks), limits, norms=options.norms, began=ledger.process_start())


def dry_run(run: object, tell: object, /) -> int:
    """Compiles one step from shapes alone and prints what it needs."""
    compiled = run.compile()
    memory = compiled.memory_analysis()
    if memory is not None:
        tell("bytes of a step: " + json.dumps({"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
                                               "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes}))
    tell("dry run: the step compiles; nothing was trained and nothing was written")
    return 0
