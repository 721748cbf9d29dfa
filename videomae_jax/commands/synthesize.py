"""The `synthesize` command."""

import os
import pathlib

from videomae_jax.commands import arguments


def main(argv: list[str]) -> int:
    """Writes the embedded data set and its index."""
    parser = arguments.Parser("synthesize", description="Write a seeded world of moving shapes as mp4 files with labels, and index it.")
    parser.add_argument("directory", metavar="DIR", help="folder to write")
    parser.add_argument("--train", type=int, default=2000, help="training clips")
    parser.add_argument("--val", type=int, default=400, help="validation clips")
    parser.add_argument("--test", type=int, default=400, help="test clips")
    parser.add_argument("--seed", type=int, default=0, help="seed of the world")
    parser.add_argument("--truth", action="store_true", help="also write exact masks, boxes and flow as npz")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(argv)
    from videomae_jax.data import index, synthetic

    directory = pathlib.Path(options.directory)
    plan = synthetic.Plan(seed=options.seed, train=options.train, val=options.val, test=options.test, truth=options.truth)
    synthetic.write(directory, plan, workers=options.workers)
    out = directory / "index.parquet"
    index.write(index.build(directory, labels=directory / "labels.csv", workers=options.workers), out)
    print(out)
    return 0
