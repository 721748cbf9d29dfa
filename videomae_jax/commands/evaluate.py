"""The `evaluate` command: the evaluators of a run on one of its checkpoints."""

import json
import pathlib

from videomae_jax.commands import arguments


def main(argv: list[str]) -> int:
    """Runs evaluators and prints their results as one JSON line."""
    parser = arguments.Parser("evaluate", description="Run the evaluators of a run directory; prints one JSON line.")
    parser.add_argument("workdir", metavar="DIR", help="run directory")
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
