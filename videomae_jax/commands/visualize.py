"""The `visualize` command: reconstructions of a run as png sheets and gifs."""

import pathlib

from videomae_jax.commands import arguments
from videomae_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Draws clips of a run, held-out ones unless another split is asked for, and says where the files are."""
    parser = arguments.Parser("visualize", description="Draw input | visible | prediction | pasted for held-out clips of a run.")
    parser.add_argument("workdir", type=arguments.path, metavar="DIR", help="run directory")
    parser.add_argument("--step", type=int, default=None, help="checkpoint to use (default: the newest)")
    parser.add_argument("--clips", type=int, default=8, help="number of clips to draw")
    parser.add_argument("--split", default="val", help="split of the index to draw from (default val); the names of pictures of another begin with it")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="also build symbols of this package")
    options = parser.parse_args(argv)
    if options.clips < 1:
        raise UserError(f"--clips={options.clips}; allowed are 1 and more")
    from videomae_jax import config as configs
    from videomae_jax import run_directory
    from videomae_jax.evals.pictures import Pictures, check

    trust = tuple(options.trust)
    check(configs.build(run_directory.open_run(pathlib.Path(options.workdir)).objective, trust=trust))
    context = run_directory.context(pathlib.Path(options.workdir), step=options.step, trust=trust)
    for stem, *_ in Pictures(clips=options.clips, split=options.split).draw(context):
        print(f"{stem}.gif\n{stem}.png")
    return 0
