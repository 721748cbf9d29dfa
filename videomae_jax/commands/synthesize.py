"""The `synthesize` command."""

import os
import pathlib

from videomae_jax.commands import arguments
from videomae_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Writes an embedded data set and its index."""
    parser = arguments.Parser("synthesize", description="Write a seeded synthetic world as mp4 files with labels, and index it.",
                              epilog="Any parameter of the world can be set: --world.FIELD=VALUE, e.g. --world.size=64 or --world.crop=tight.")
    parser.add_argument("directory", type=arguments.path, metavar="DIR", help="folder to write; an interrupted writing goes on")
    parser.add_argument("--family", default="shapes", metavar="NAME", help="shapes (default), faces or collisions")
    parser.add_argument("--train", type=int, default=2000, help="training clips")
    parser.add_argument("--val", type=int, default=400, help="validation clips")
    parser.add_argument("--test", type=int, default=400, help="test clips")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    parser.add_argument("--truth", action="store_true", help="also write exact masks, boxes, flow, part maps, ... as npz, and sound as wav")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args([word for word in argv if not word.startswith("--world.")])
    from videomae_jax.data import index, synthetic

    world = synthetic.world(options.family, changes=changes(argv))
    directory = pathlib.Path(options.directory)
    plan = synthetic.Plan(world=world, seed=options.seed, train=options.train, val=options.val, test=options.test, truth=options.truth)
    written, out = synthetic.write(directory, plan, workers=options.workers), directory / "index.parquet"
    if written or not out.exists():
        index.write(index.build(directory, labels=directory / "labels.csv", workers=options.workers), out)
    print(out)
    return 0


def changes(argv: list[str], /) -> dict[str, str]:
    """{field: text} of the --world.FIELD=VALUE words."""
    found = {}
    for word in argv:
        if word.startswith("--world."):
            name, equals, value = word.removeprefix("--world.").partition("=")
            if not equals:
                raise UserError(f"{word} needs a value: {word}=value")
            found[name] = value
    return found
