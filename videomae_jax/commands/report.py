"""The `report` command: one self-contained page about a run."""

import json
import pathlib

from videomae_jax.commands import arguments
from videomae_jax.errors import UserError


def main(argv: list[str]) -> int:
    """Writes report.html into a run directory and prints its path."""
    parser = arguments.Parser("report", description="Write report.html of a run directory, finished or not; it needs no network to be read.")
    parser.add_argument("workdir", metavar="DIR", help="run directory")
    parser.add_argument("--goodput", action="store_true", help="print where the time of the run went instead, over all its restarts; one JSON line on "
                        "standard output")
    options = parser.parse_args(argv)
    directory = pathlib.Path(options.workdir)
    if options.goodput:
        return goodput(directory)
    from videomae_jax import report

    print(report.write(directory))
    return 0


def goodput(directory: pathlib.Path, /) -> int:
    """A table on standard error and the same as one JSON line on standard output."""
    from videomae_jax import ledger

    found = ledger.goodput(directory)
    if found is None:
        raise UserError(f"{directory} holds no ledger.jsonl, so no run left its books there")
    arguments.say(ledger.text(found))
    print(json.dumps({"goodput": found.share, "wall": found.wall, "starts": found.starts, "seconds": dict(found.seconds)}))
    return 0
