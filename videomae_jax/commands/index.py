"""The `index` command."""

import collections
import os
import pathlib
from typing import Any

from videomae_jax.commands import arguments

HELP = "List the videos of a folder for training; labels come from a csv or from class folders."
SHOWN = 20  # classes and damaged files printed before the rest is only counted


def main(argv: list[str]) -> int:
    """Scans a folder, writes the index, prints what it holds; with --merge see `merge`."""
    if any(word.partition("=")[0] == "--merge" for word in argv):
        return merge(argv)
    parser = arguments.Parser("index", description=HELP)
    parser.add_argument("directory", metavar="DIR", help="folder with videos, searched recursively")
    parser.add_argument("--out", required=True, metavar="FILE.parquet", help="index to write; a cached .arrow file appears beside it")
    parser.add_argument("--labels", default=None, metavar="FILE.csv", help="csv with the header path,label[,split][,more columns]; only these files are listed")
    parser.add_argument("--val-fraction", type=float, default=0.1, metavar="X", help="share of videos held out where no split is given (default 0.1)")
    parser.add_argument("--verify", action="store_true", help="decode every frame once")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                        metavar="N", help="processes (default: one a core)")
    options = parser.parse_args(argv)
    from videomae_jax.data import index
    from videomae_jax.errors import UserError

    out = pathlib.Path(options.out)
    if out.suffix != ".parquet":
        raise UserError(f"--out={options.out}; allowed is a file name that ends in .parquet")
    index.claim(out)
    table = index.build(pathlib.Path(options.directory), labels=pathlib.Path(options.labels) if options.labels else None,
                        val_fraction=options.val_fraction, verify=options.verify, workers=options.workers, say=arguments.say)
    index.write(table, out)
    print("\n".join(summary(table)))
    print(f"index written to {out}")
    if "ok" not in table.column("status").to_pylist():
        raise UserError(f"none of the {table.num_rows} videos in {options.directory} can be read")
    return 0


def merge(argv: list[str], /) -> int:
    """Makes one index of several."""
    parser = arguments.Parser("index", description="Merge indexes: classes of one name become one, no held-out clip of any part stays in training.")
    parser.add_argument("--merge", required=True, metavar="A.parquet,B.parquet,...", help="indexes, the preferred one first; their names name the parts")
    parser.add_argument("--out", required=True, metavar="FILE.parquet", help="index to write, with maps of classes to and from every part beside it")
    parser.add_argument("--aliases", default=None, metavar="FILE.json", help='further names of one class: {"name": "name that it is merged into"}')
    parser.add_argument("--verify", action="store_true", help="also compare the bytes of files of equal size")
    options = parser.parse_args(argv)
    from videomae_jax.data.merge import merged

    print("\n".join(merged(options.merge, out=pathlib.Path(options.out), aliases=options.aliases, verify=options.verify)))
    return 0


def summary(table: Any, /) -> list[str]:
    """Lines for people: totals, counts by status, codec, split and class, damaged files."""
    columns = {c: table.column(c).to_pylist() for c in ("name", "status", "codec", "split", "label", "duration", "frames")}
    good = [i for i, status in enumerate(columns["status"]) if status == "ok"]
    bad = [i for i, status in enumerate(columns["status"]) if status != "ok"]
    frames, hours = sum(columns["frames"][i] for i in good), sum(columns["duration"][i] for i in good) / 3600
    lines = [f"{table.num_rows} videos, {len(good)} readable, {frames} frames, {hours:.2f} hours"]
    stages = collections.Counter(status.split(":")[0] for status in columns["status"])
    lines += _counts("status", stages)
    for column in ("codec", "split"):
        lines += _counts(column, collections.Counter(columns[column][i] for i in good))
    labels = collections.Counter(columns["label"][i] for i in good)
    unlabelled = labels.pop(None, 0)
    lines += _counts(f"label ({len(labels)} classes, {unlabelled} videos without)", labels)
    lines += [f"  damaged: {columns['name'][i]}: {columns['status'][i]}" for i in bad[:SHOWN]]
    return lines + ([f"  ... and {len(bad) - SHOWN} more damaged; see column status"] if len(bad) > SHOWN else [])


def _counts(title: str, counts: "collections.Counter[str]", /) -> list[str]:
    """A histogram, the most frequent first."""
    widest = max((len(str(key)) for key in counts), default=0)
    lines = [f"  {title}"] + [f"    {key:<{widest}} {n:>8}" for key, n in counts.most_common(SHOWN)]
    return lines + ([f"    ... and {len(counts) - SHOWN} more"] if len(counts) > SHOWN else [])
