"""The `evaluate` command: the evaluators of a run on one of its checkpoints, or the evidence that a config declares."""

import json
import pathlib

from videomae_jax.commands import arguments


def main(argv: list[str]) -> int:
    """Runs evaluators and prints their results as one JSON line; with --suite see `suite`."""
    if any(word.partition("=")[0] == "--suite" for word in argv):
        return suite(argv)
    parser = arguments.Parser("evaluate", description="Run the evaluators of a run directory; prints one JSON line. With --suite=evidence "
                              "--config=FILE --workdir=DIR: train and compare the arms that a config declares (--suite=evidence --help).")
    parser.add_argument("workdir", type=arguments.path, metavar="DIR", help="run directory")
    parser.add_argument("--step", type=int, default=None, help="checkpoint to use (default: the newest)")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this evaluator; may be repeated")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="also build symbols of this package")
    options, assignments = arguments.parse(parser, argv)
    from videomae_jax import config as configs
    from videomae_jax import run_directory
    from videomae_jax.errors import UserError

    context = run_directory.context(pathlib.Path(options.workdir), step=options.step, trust=tuple(options.trust), assignments=assignments)
    nodes = context.assembly.config.evaluators
    unknown = [name for name in options.only if name not in nodes]
    if unknown:
        raise UserError(f"unknown evaluator {unknown[0]!r}; this run has {', '.join(nodes)}")
    results = {f"{name}/{k}": float(v) for name in (options.only or nodes)
               for k, v in configs.build(nodes[name], trust=tuple(options.trust)).run(context).items()}
    print(json.dumps({"step": context.step, **results}))
    return 0


def suite(argv: list[str]) -> int:
    """Runs or goes on with the evidence of a config; 0 when its cells are finished, 75 or 130 when it was stopped."""
    parser = arguments.Parser("evaluate", description="Train and compare the arms of a config over several seeds, by a protocol that is written "
                              "first; prints one JSON line and a table row.")
    parser.add_argument("--suite", choices=["evidence"], required=True, help="what to run")
    arguments.add_config(parser)
    parser.add_argument("--workdir", type=arguments.path, required=True, metavar="DIR",
                        help="folder: protocol.json, runs/ARM/seedN, evidence.json, evidence.png")
    parser.add_argument("--seeds", type=int, default=0, metavar="N", help="number of seeds (default: the number that the config states)")
    parser.add_argument("--budget", type=float, default=0.0, metavar="MINUTES", help="stop after so long, with a checkpoint; the same command goes on")
    parser.add_argument("--arms", default="", metavar="A,B", help="train only these arms now")
    options, assignments = arguments.parse(parser, argv)
    config = arguments.resolve(options, assignments)
    from videomae_jax import evidence

    return evidence.run(config, workdir=pathlib.Path(options.workdir), seeds=options.seeds, budget=options.budget,
                        arms=tuple(a for a in options.arms.split(",") if a), trust=tuple(options.trust), say=arguments.say)
