"""The `index` command."""

import collections
import os
import pathlib

from videomae_jax.commands import arguments


def main(argv: list[str]) -> int:
    """Scans a folder, writes the index, prints what it holds."""
    parser = arguments.Parser("index", description="List the videos of a folder for training; labels from a csv or from class folders.")
    parser.add_argument("directory", metavar="DIR", help="folder with videos, searched recursively")
    parser.add_argument("--out", required=True, metavar="FILE.parquet", help="index to write; a cached .arrow file appears beside it")
    parser.add_argument("--labels", default=None, metavar="FILE.csv", help="csv with the header path,label[,split][,more columns]")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="share of videos held out where the csv names no split")
    parser.add_argument("--verify", action="store_true", help="decode every frame once")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(argv)
    from videomae_jax.data import index
    from videomae_jax.errors import UserError

    out = pathlib.Path(options.out)
    if out.suffix != ".parquet":
        raise UserError(f"--out={options.out}; allowed is a file that ends in .parquet")
    table = index.build(pathlib.Path(options.directory), out=out, labels=pathlib.Path(options.labels) if options.labels else None,
                        val_fraction=options.val_fraction, verify=options.verify, workers=options.workers)
    index.write(table, out)
    rows = table.to_pylist()
    good = [r for r in rows if r["status"] == "ok"]
    print(f"{len(rows)} videos, {len(good)} readable, {sum(r['duration'] for r in good) / 3600:.2f} hours; index written to {out}")
    for column in ("codec", "split", "label"):
        counts = collections.Counter(r[column] for r in good)
        print(f"  {column}: " + ", ".join(f"{k} {n}" for k, n in counts.most_common(12)) + (" ..." if len(counts) > 12 else ""))
    for row in rows:
        if row["status"] != "ok":
            print(f"  unreadable: {row['name']}: {row['status']}")
    if not good:
        raise UserError(f"none of the {len(rows)} videos in {options.directory} can be read")
    return 0
