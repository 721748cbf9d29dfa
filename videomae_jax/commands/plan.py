"""The `plan` command: what a run will need and cost on hardware that is not there."""

import argparse
import json
import math
import os
import re

from videomae_jax.commands import arguments
from videomae_jax.commands.arguments import say
from videomae_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Prints a table and, as the last line, its figures as JSON; 0 where the run fits, 1 where it does not."""
    parser = arguments.Parser("plan", description="Compile the training step of a config for a topology and predict memory, time and cost. "
                              "Recomputation, accumulation and mesh are chosen, unless they are set with --config.")
    arguments.add_config(parser, required=False)
    parser.add_argument("--topology", default="", metavar="NAME", help="v5e-256, v5p-512, v6e-256, tpu7x-512, 2xv5p-512, h100x512, h200x1, ..., local")
    parser.add_argument("--measure", metavar="FILE", help="what `bench input` printed, or JSON with decode_seconds, crop_seconds, bytes_per_decode of one core")
    parser.add_argument("--memory", type=float, default=None, metavar="GB", help="plan for this much memory a device instead of the chip's")
    parser.add_argument("--videos", type=int, default=None, metavar="N", help="videos of the data set where config.data.index is not there (default 1,350,000; "
                        "to be given where --config.data.index is)")
    parser.add_argument("--then", action="append", default=[], metavar="FILE[,N[,TESTED]]",
                        help="config of a later stage (fine-tuning), for the cost; videos it is trained on (default: those of --videos) and tested on; repeatable")
    parser.add_argument("--grid", metavar="FILE", help="instead: list the cells of a config's grid, their chip-hours and the commands of the "
                        "unfinished ones; --config.a.b=value is an override of every cell")
    parser.add_argument("--root", default="runs", metavar="DIR", help="with --grid: folder of the run directories (default: runs)")
    parser.add_argument("--table", metavar="FILE", help="instead: the JSON lines of earlier plans as a table")
    options, assignments = arguments.parse(parser, argv)
    if options.table:
        return table(options.table)
    if options.grid:
        return grid(options, assignments)
    if not options.config or not options.topology:
        raise UserError("plan needs --config=FILE and --topology=NAME, or --grid=FILE (see python -m videomae_jax plan --help)")
    config = arguments.resolve(options, assignments)
    if options.memory is not None and not 0 < options.memory < math.inf:
        raise UserError(f"--memory={options.memory:g}; allowed are GB above 0")
    if options.videos is not None and options.videos < 1:
        raise UserError(f"--videos={options.videos}; allowed is 1 and more")
    if options.topology != "local":
        os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator of this machine has no part in it
    from videomae_jax import config as configs
    from videomae_jax import forecast, plan, run_data

    videos = options.videos or forecast.VIDEOS
    feed = plan.Input.read(options.measure) if options.measure else plan.Input()
    stages = [(configs.load(path), trained, tested) for path, trained, tested in (later(word, videos) for word in options.then)]
    needed = options.videos is None and any(re.fullmatch(run_data.PLACES, name) for name in assignments)
    config = forecast.without_index(config, videos=videos, needed=needed, trust=tuple(options.trust), say=say)
    then = [(forecast.without_index(one, videos=trained, trust=tuple(options.trust), say=say), tested) for one, trained, tested in stages]
    result = forecast.make(config, options.topology, fixed=frozenset(assignments), trust=tuple(options.trust), feed=feed,
                           memory=(options.memory or 0) * 1e9, then=then, say=say)
    for line in forecast.table(result):
        print(line)
    print(json.dumps(result))
    return 0 if result["fits"] else 1


def later(word: str, videos: int, /) -> tuple[str, int, int]:
    """Config, training and test videos of a --then."""
    path, *counts = word.split(",")
    if len(counts) > 2 or not all(n.isdigit() and int(n) for n in counts):
        raise UserError(f"--then={word}; allowed are FILE, FILE,N and FILE,N,TESTED with numbers of videos")
    trained, tested = (*map(int, counts), *(videos, 0)[len(counts):])
    return path, trained, tested


def grid(options: argparse.Namespace, assignments: dict[str, str], /) -> int:
    """The cells of a grid, for people and for the launchers."""
    if options.config:
        raise UserError("--grid brings its own configs; --config belongs to a plan of one run, --config.a.b=value to every cell")
    for name in ("memory", "videos", "measure", "then"):
        if getattr(options, name) not in (None, []):
            raise UserError(f"--{name} belongs to a plan of one run; allowed with --grid are --root, --topology and --trust")
    os.environ["JAX_PLATFORMS"] = "cpu"
    from videomae_jax import config as configs
    from videomae_jax import grid as grids

    found = grids.cells(configs.load(options.grid), root=options.root, topology=options.topology, trust=tuple(options.trust), overrides=assignments)
    print("\n".join(grids.lines(found, topology=options.topology)))
    return 0


def table(path: str, /) -> int:
    """The plans in a file of JSON lines."""
    from videomae_jax import forecast

    try:
        with open(path) as file:
            plans = [json.loads(line) for line in file if line.strip()]
        rows = forecast.markdown(plans)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--table={path} is no readable file of plans as JSON lines: {error!r}") from error
    print("\n".join(rows))
    return 0
