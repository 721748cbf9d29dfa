"""The `train` command."""

import argparse
import json
import pathlib
import shlex
import time
import typing
from typing import Any

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
    parser.add_argument("--fork", action="store_true", help="go on with a run whose learning rate, data, batch or seed changed, or from whose frozen weights of "
                        "another run the checkpoint is gone, with the newest")
    add_safety(parser)
    arguments.add_processes(parser)
    options, assignments = arguments.parse(parser, argv)
    config = arguments.resolve(options, assignments)
    from videomae_jax import stopping
    from videomae_jax.errors import UserError

    if "://" in options.workdir:
        raise UserError(f"--workdir={options.workdir} is no folder; allowed is one that all hosts share (a bucket that is mounted, too), and "
                        f"--durable={options.workdir} copies checkpoints there")
    several = bool(options.coordinator) and (options.processes > 1 or options.coordinator == "auto")
    with stopping.together(several=several, lead=options.process == 0):
        arguments.start(options)
        return run(config, options, argv)


def run(config: Any, options: argparse.Namespace, argv: list[str], /) -> int:
    """The command, once all processes are there."""
    from videomae_jax import card, durable, parallel, run_directory
    from videomae_jax.assembly import assemble
    from videomae_jax.stopping import Stop
    from videomae_jax.train import train

    lead = parallel.is_lead()
    tell = say if lead else (lambda line: None)
    trust = tuple(options.trust)
    built = assemble(config, trust=trust)
    tell(card.text(card.card(built)))
    for line in parallel.dropped_axes(built.boxed, mesh=built.mesh):
        tell(f"not sharded: {line}")
    if options.dry_run:
        return dry_run(built, tell)
    directory, chosen = pathlib.Path(options.workdir), safety(options)
    place = durable.of(chosen.second, directory, warn=tell)
    built = run_directory.claim(built, directory, extend=options.extend, fork=options.fork, say=tell, place=place)
    begin = time.monotonic()
    with Stop() as stop:
        result = train(built, directory, stop=stop, say=tell, trust=trust, safety=chosen)
    if not result.finished:
        tell(f"stopped at step {result.step} of {built.total}; the checkpoint is saved. Resume with the same command:\n"
             f"  python -m videomae_jax train {shlex.join(argv)}")
        return stop.code
    if result.first == built.total:
        tell(f"nothing to do: {directory} finished at step {built.total} before; a longer total goes on with --extend")
    else:
        tell(f"finished at step {result.step}; everything is in {directory}")
    if lead and (result.first < built.total or not (directory / "summary.json").exists()):
        run_directory.summarise(directory, built, seconds=time.monotonic() - begin, trust=trust)
    return 0


def add_safety(parser: argparse.ArgumentParser, /) -> None:
    """What the run does about updates that are not finite, and when it counts as stuck."""
    parser.add_argument("--row", type=int, default=10, metavar="K", help="after K skipped updates in a row go back to an older checkpoint and past the data "
                        "that led there (0 = never)")
    parser.add_argument("--rollbacks", type=int, default=3, metavar="N", help="go back at most N times")
    parser.add_argument("--durable", default="", metavar="PLACE", help="copy every checkpoint and the best weights to this folder or address (gs://...) too, "
                        "in the background, and resume from there when --workdir is new or damaged; what fails there stops no run that has begun")
    parser.add_argument("--durable-keep", type=int, default=2, metavar="N", help="checkpoints that stay there")
    parser.add_argument("--durable-keep-every", type=int, default=0, metavar="N", help="and for ever those whose step is a multiple of N (0 = none)")
    parser.add_argument("--durable-grace", type=float, default=15.0, metavar="SECONDS", help="how long a run that was told to stop waits for its last copy (15)")
    parser.add_argument("--norms", action="store_true", help="log the norm of every gradient, by layer")
    for name, seconds, what in (("step", None, "a step or a wait for data, and at least 10 median steps (60, on a CPU 300; 0 = no watchdog)"), ("compile", 3600, "the first step"),
                                ("checkpoint", 1800, "what a save holds up"), ("evaluation", 1800, "one batch of an evaluation"),
                                ("start", 1800, "restore and first batch")):
        parser.add_argument(f"--{name}-limit", type=float, default=seconds, metavar="SECONDS", help=f"longest time without progress: {what}")


def safety(options: argparse.Namespace, /) -> "Safety":
    """The settings of `add_safety`. Raises UserError for a negative one."""
    from videomae_jax import ledger
    from videomae_jax.durable import Place
    from videomae_jax.rollback import Policy
    from videomae_jax.upkeep import Safety
    from videomae_jax.watchdog import Limits

    limits = Limits(step=options.step_limit, compile=options.compile_limit, checkpoint=options.checkpoint_limit, evaluation=options.evaluation_limit,
                    init=options.start_limit, restore=options.start_limit)
    second = Place(options.durable, options.durable_keep, options.durable_keep_every, options.durable_grace)
    return Safety(Policy(options.row, options.rollbacks), limits, second, norms=options.norms, began=ledger.process_start())


def dry_run(run: object, tell: object, /) -> int:
    """Compiles one step from shapes alone and prints what it needs. Raises UserError for what is to be there before any stage: maps of classes."""
    from videomae_jax import head_rows

    head_rows.check_maps(run.objective.externals())
    compiled = run.compile()
    memory = compiled.memory_analysis()
    if memory is not None:
        tell("bytes of a step: " + json.dumps({"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
                                               "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes}))
    tell("dry run: the step compiles; nothing was trained and nothing was written")
    return 0
