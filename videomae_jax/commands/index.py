"""The `index` command."""

import argparse
import collections
import os
import pathlib
from fractions import Fraction
from typing import Any

from videomae_jax.commands import arguments

HELP = "List the videos of a folder, an address (gs://...) or an official list for training; labels come from a csv, class folders or the list."
SHOWN = 20  # classes and damaged files printed before the rest is only counted


def main(argv: list[str]) -> int:
    """Scans a folder or lists, writes the index, prints what it holds; with --merge see `merge`."""
    if any(word.partition("=")[0] == "--merge" for word in argv):
        return merge(argv)
    options = _options(argv)
    from videomae_jax.data import clips, index, lists
    from videomae_jax.errors import UserError

    out = pathlib.Path(options.out)
    if out.suffix != ".parquet":
        raise UserError(f"--out={options.out}; allowed is a file name that ends in .parquet")
    low, high = clips.RATES
    if options.fps is not None and not low <= options.fps <= high:
        raise UserError(f"--fps={options.fps}; allowed are {low:g} to {high:g}")
    if options.workers < 1:
        raise UserError(f"--workers={options.workers}; allowed are 1 and more")
    fps = Fraction(25.0 if options.fps is None else options.fps).limit_denominator(1001)
    _check_kind(options)
    root, formats = "." if options.root is None else options.root, options.format or ["v1"]
    index.claim(out)
    if options.list:
        table = lists.build([pathlib.Path(p) for p in options.list], root=root, form=formats if len(formats) > 1 else formats[0], template=options.template or lists.TEMPLATE, fps=fps,
                            verify=options.verify, workers=options.workers, val_fraction=options.val_fraction, say=arguments.say)
    else:
        table = index.build(options.directory, labels=pathlib.Path(options.labels) if options.labels else None,
                            val_fraction=0.1 if options.val_fraction is None else options.val_fraction, verify=options.verify, workers=options.workers,
                            template="" if options.pictures else options.template, fps=fps, say=arguments.say)
    index.write(table, out)
    print("\n".join(summary(table)))
    print(f"index written to {out}")
    if options.list and "val" not in table.column("split").to_pylist():
        print("no video is held out, so evaluators that read the split 'val' find none; --list=val.csv adds a list of such, "
              "--val-fraction=0.1 draws them")
    if table.column("template").null_count < table.num_rows or table.column("stride").null_count < table.num_rows:
        print("read it with --config.data.__symbol__=videomae_jax.data.frame_folders.FrameClips")
    if "ok" not in table.column("status").to_pylist():
        raise UserError(f"none of the {table.num_rows} videos in {options.directory or root} can be read")
    return 0


def merge(argv: list[str], /) -> int:
    """Makes one index of several."""
    parser = arguments.Parser("index", description="Merge indexes: classes of one name become one, no held-out clip of any part stays in training.")
    parser.add_argument("--merge", required=True, metavar="A.parquet,B.parquet,...", help="indexes, the preferred one first; their names name the parts")
    parser.add_argument("--out", type=arguments.path, required=True, metavar="FILE.parquet",
                        help="index to write, with maps of classes to and from every part beside it")
    parser.add_argument("--names", action="append", default=[], metavar="PART=FILE", help="for an index whose labels are numbers, as official lists "
                        "have them: names of its classes, one a line in the order of the numbers, e.g. k400=label_map_k400.txt; may be repeated")
    parser.add_argument("--aliases", default=None, metavar="FILE.json", help='further names of one class: {"name": "name that it is merged into"}, as in '
                        "V2's k710_identical_label_merge.json")
    parser.add_argument("--verify", action="store_true", help="also compare the bytes of files of equal size; without it a video is known by its "
                        "YouTube id, else by its name, and one that merely counts (001) by its size as well")
    options = parser.parse_args(argv)
    from videomae_jax.data.merge import merged

    print("\n".join(merged(options.merge, out=pathlib.Path(options.out), aliases=options.aliases, names=options.names, verify=options.verify)))
    return 0


def _options(argv: list[str], /) -> argparse.Namespace:
    parser = arguments.Parser("index", description=HELP)
    parser.add_argument("directory", nargs="?", default="", metavar="DIR", help="folder or address with videos, searched recursively")
    parser.add_argument("--out", type=arguments.path, required=True, metavar="FILE.parquet",
                        help="index to write; a cached .arrow file appears beside it")
    parser.add_argument("--labels", default=None, metavar="FILE.csv", help="csv with the header path,label[,split][,more columns]; only these files are listed")
    parser.add_argument("--val-fraction", type=float, default=None, metavar="X", help="share of videos held out where no split is given (default 0.1; "
                        "of lists none, unless it is given)")
    parser.add_argument("--list", action="append", default=[], metavar="FILE", help="official list instead of DIR; several are joined, val.csv and test.csv as those splits")
    parser.add_argument("--format", action="append", default=None, choices=("v1", "v2", "frames"), help="of lists: 'path label', 'path start total' or "
                        "'folder total label' (default v1); one of all lists, or repeated, one of each in their order")
    parser.add_argument("--root", default=None, metavar="DIR", help="folder or address that the paths of lists are relative to (default .)")
    parser.add_argument("--template", default=None, metavar="NAME", help="folders of pictures called so, e.g. img_{:05}.jpg, are the videos")
    parser.add_argument("--pictures", action="store_true", default=None, help="pictures are the videos, of one frame each")
    parser.add_argument("--fps", type=float, default=None, metavar="X", help="frames a second of folders of pictures, for sampling by rate (default 25)")
    parser.add_argument("--verify", action="store_true", help="decode every frame once")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                        metavar="N", help="processes (default: one a core)")
    parser.epilog = "Indexes become one with --merge=A.parquet,B.parquet,... instead of DIR; its options: index --merge=A,B --help."
    return parser.parse_args(argv)


def _check_kind(options: argparse.Namespace, /) -> None:
    """Raises UserError for a folder and a list at once, or none, and for options that the one given leaves unread."""
    from videomae_jax.errors import UserError

    if bool(options.list) == bool(options.directory):
        raise UserError("needed is a folder, or --list=FILE with --root=DIR, and not both")
    unread = ("labels", "pictures") if options.list else ("format", "root")
    given = [f"--{name.replace('_', '-')}" for name in unread if getattr(options, name) is not None]
    if given and options.list:
        raise UserError(f"{', '.join(given)} with --list; a list tells its labels itself, so allowed with it are --format, --root, --template "
                        "and --val-fraction")
    if given:
        raise UserError(f"{', '.join(given)} with the folder {options.directory}; allowed are these with --list=FILE alone")
    if options.pictures and options.template is not None:
        raise UserError(f"--pictures with --template={options.template}; allowed is one of them: a template names the pictures of a folder that is one video")
    frames = not {"v2", "frames"}.isdisjoint(options.format or ()) if options.list else options.pictures or options.template is not None
    if options.list and options.template is not None and not frames:
        raise UserError(f"--template={options.template} with lists of format v1, which name video files; allowed are --format=v2 and --format=frames")
    if options.fps is not None and not frames:
        raise UserError(f"--fps={options.fps:g} with video files, which tell their own; allowed is it with --template, --pictures, --format=v2 and --format=frames")


def summary(table: Any, /) -> list[str]:
    """Lines for people: totals, counts by status, codec, split and class, damaged files. Classes are those that loaders number."""
    from videomae_jax.data import index, sources

    columns = {c: table.column(c).to_pylist() for c in ("name", "status", "codec", "split", "label", "duration", "frames")}
    good = [i for i, status in enumerate(columns["status"]) if status == "ok"]
    bad = [i for i, status in enumerate(columns["status"]) if status != "ok"]
    frames, hours = sum(columns["frames"][i] for i in good), sum(columns["duration"][i] for i in good) / 3600
    lines = [f"{table.num_rows} videos, {len(good)} readable, {frames} frames, {hours:.2f} hours"]
    stages = collections.Counter(status.split(":")[0] for status in columns["status"])
    lines += _counts("status", stages)
    for column in ("codec", "split"):
        lines += _counts(column, collections.Counter(columns[column][i] for i in good))
    classes = sources.classes(table)
    known = set(classes)
    labels = collections.Counter(label for i in good if (label := columns["label"][i]) in known)
    labels.update(dict.fromkeys(classes, 0))  # a run counts the classes of damaged videos too
    remark = "; -1 is none where all others are whole numbers, as in official lists" if index.UNKNOWN in set(columns["label"]) - known else ""
    lines += _counts(f"label ({len(classes)} classes, {len(good) - labels.total()} videos without{remark})", labels)
    if empty := [label for label in classes if not labels[label]]:
        lines.append(f"  classes without a readable video: {', '.join(empty[:SHOWN])}{f' and {len(empty) - SHOWN} more' if len(empty) > SHOWN else ''}")
    lines += [f"  damaged: {columns['name'][i]}: {columns['status'][i]}" for i in bad[:SHOWN]]
    return lines + ([f"  ... and {len(bad) - SHOWN} more damaged; see column status"] if len(bad) > SHOWN else [])


def _counts(title: str, counts: "collections.Counter[str]", /) -> list[str]:
    """A histogram, the most frequent first."""
    widest = max((len(str(key)) for key in counts), default=0)
    lines = [f"  {title}"] + [f"    {key:<{widest}} {n:>8}" for key, n in counts.most_common(SHOWN)]
    return lines + ([f"    ... and {len(counts) - SHOWN} more"] if len(counts) > SHOWN else [])
