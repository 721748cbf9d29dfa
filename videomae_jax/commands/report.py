"""The `report` command: one self-contained page about a run."""

import argparse
import json
import os
import pathlib

from videomae_jax.commands import arguments
from videomae_jax.errors import UserError

METRIC = "reconstruction/loss"  # what a law is fitted to unless --metric says otherwise


def main(argv: list[str]) -> int:
    """Writes report.html into a run directory and prints its path, and how the run stands beside the shipped curve of its config."""
    if any(word.partition("=")[0] == "--against" for word in argv):
        return against(argv)
    parser = arguments.Parser("report", description="Write report.html of a run directory, finished or not; it needs no network to be read.")
    parser.add_argument("workdir", type=arguments.path, metavar="DIR", nargs="?", default="", help="run directory")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--compare", type=arguments.path, nargs=2, default=[], metavar="RUN", help="a page about two runs side by side instead")
    way.add_argument("--against", metavar="paper", help="the published tables with the commands of every row and which runs match, with what deviations; see --against=paper --help")
    way.add_argument("--scaling", type=arguments.path, nargs="+", default=[], metavar="RUN",
                     help="fit a power law to finished runs, predict the largest from the others")
    parser.add_argument("--metric", default="", help=f"with --scaling: result to fit (default: {METRIC})")
    parser.add_argument("--out", type=arguments.path, default="", metavar="FILE.html",
                        help="with --compare or --scaling: page to write (default: comparison.html, scaling.html)")
    way.add_argument("--curve", type=arguments.path, default="", metavar="FILE.json",
                     help="write the reference curve of the finished run DIR instead, and of further seeds --with")
    parser.add_argument("--with", dest="others", type=arguments.path, nargs="+", default=[], metavar="RUN",
                        help="with --curve: runs that differ in nothing but the seed")
    way.add_argument("--goodput", action="store_true", help="print where the time of the run went instead, over all its restarts; one JSON line on "
                     "standard output")
    options = parser.parse_args(argv)
    for name, value, ways in (("out", options.out, ("compare", "scaling")), ("metric", options.metric, ("scaling",)), ("with", options.others, ("curve",))):
        if value and not any(getattr(options, given) for given in ways):
            raise UserError(f"--{name} goes with {' or '.join(f'--{given}' for given in ways)}")
    if options.compare:
        return compare(options)
    if options.scaling:
        return scaling(options)
    if not options.workdir:
        raise UserError("report needs a run: name a run directory, or two with --compare RUN RUN")
    directory = pathlib.Path(options.workdir)
    if options.curve:
        from videomae_jax import reference

        print(reference.write([directory, *map(pathlib.Path, options.others)], pathlib.Path(options.curve)))
        return 0
    if options.goodput:
        return goodput(directory)
    from videomae_jax import records, reference, report

    record = records.load(directory)
    print(report.write(record))
    if line := reference.line(record):
        arguments.say(line)
    return 0


def against(argv: list[str], /) -> int:
    """The published tables beside what runs have reached, as Markdown; one JSON line on standard error counts the verdicts, matches with deviations apart."""
    parser = arguments.Parser("report", description="Every published result of VideoMAE and V2: commands of all stages, match, miss or not run. "
                              "A match whose clips, test, settings or earlier stages differ counts as \"match, with deviations\".")
    parser.add_argument("--against", choices=["paper"], required=True, help="what to compare with")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="folder of run directories (default: runs)")
    parser.add_argument("--tolerance", type=float, default=0.3, metavar="POINTS", help="how far below the published top-1 still is a match (default 0.3)")
    parser.add_argument("--topology", default="h100x64", metavar="NAME", help="chips whose hours every stage is counted in, which takes some seconds: "
                        "h100x64 (default), v5p-512, ...; nothing for none")
    options = parser.parse_args(argv)
    if options.topology:
        os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator of this machine has no part in it
    from videomae_jax import reproduction

    if not pathlib.Path(options.runs).is_dir() and options.runs != parser.get_default("runs"):  # whoever has no runs yet wants the commands
        raise UserError(f"--runs={options.runs} is no folder; allowed is the one that holds the run directories")
    hours = reproduction.chip_hours(options.topology, say=arguments.say) if options.topology else {}
    text, counts = reproduction.page(pathlib.Path(options.runs), tolerance=options.tolerance, hours=hours)
    if hours:
        text += (f"\nChip-hours are of {options.topology} at a flat {100 * reproduction.MFU:g} % of the chips' peak; model, unvalidated: this rate has no "
                 "measured error. `plan` predicts one for each config.\n")
    print(text, end="")
    arguments.say(json.dumps(counts))
    return 0


def compare(options: argparse.Namespace, /) -> int:
    """Two runs on one page."""
    if options.workdir:
        raise UserError("with --compare needed are two runs and nothing else: --compare RUN RUN [--out=FILE.html]")
    from videomae_jax import comparison

    with arguments.writing(options.out or "comparison.html"):
        print(comparison.write([pathlib.Path(run) for run in options.compare], pathlib.Path(options.out or "comparison.html")))
    return 0


def scaling(options: argparse.Namespace, /) -> int:
    """A power law over runs: lines on standard error, a page with a picture, one JSON line on standard output."""
    if options.workdir:
        raise UserError("with --scaling needed are runs and nothing else: --scaling RUN RUN ... [--metric=NAME] [--out=FILE.html]")
    out = pathlib.Path(options.out or "scaling.html")
    if out.suffix != ".html":
        raise UserError(f"--out={out}; allowed is a file name that ends in .html")
    from videomae_jax import scaling as law

    runs = [path for path in map(pathlib.Path, options.scaling) if not (path.suffix == ".html" and path.is_file())]  # RUNS/* has the page of the last time
    result = law.report(runs, metric=options.metric or METRIC)
    for line in law.lines(result):
        arguments.say(line)
    print(json.dumps(result))
    with arguments.writing(str(out)):
        law.write(result, out)
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
