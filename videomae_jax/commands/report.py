"""The `report` command: one self-contained page about a run."""

import pathlib

from videomae_jax.commands import arguments


def main(argv: list[str]) -> int:
    """Writes report.html into a run directory and prints its path."""
    parser = arguments.Parser("report", description="Write report.html of a run directory, finished or not; it needs no network to be read.")
    parser.add_argument("workdir", metavar="DIR", help="run directory")
    options = parser.parse_args(argv)
    from videomae_jax import report

    print(report.write(pathlib.Path(options.workdir)))
    return 0
