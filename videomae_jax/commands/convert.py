"""The `convert` command: weights of other codebases as a run directory, and runs as weights of others."""

import argparse
import pathlib

from videomae_jax.commands import arguments
from videomae_jax.commands.arguments import say

FROM = ("hf", "videomae", "videomae_v2", "mae_st", "marlin", "videoprism", "auto")
TO = ("hf", "videomae", "videomae_v2")


def main(argv: list[str]) -> int:
    """Converts in one direction and prints the account of all arrays."""
    parser = arguments.Parser("convert", description="Weights of other codebases -> a run directory that train (as a start), evaluate, extract, predict "
                              "and export open; or a run -> weights of Hugging Face or the official code. Nothing that a file holds is ever run: PyTorch "
                              "files, which are pickles, go through the restricted reader.")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--from", dest="source", choices=FROM, help="whose weights PATH holds: hf (transformers, V1), videomae, videomae_v2, mae_st, marlin, videoprism")
    way.add_argument("--to", choices=TO, help="whose format the run directory PATH is written in; the files of videomae and videomae_v2 "
                     "are the same")
    parser.add_argument("path", type=arguments.path, metavar="PATH", help="file or folder with weights, or with --to a run directory")
    parser.add_argument("--out", type=arguments.path, required=True, metavar="OUT", help="new folder (--to=videomae, videomae_v2: new .pth file)")
    parser.add_argument("--key", default="", metavar="NAME", help="entry of a PyTorch file that holds the weights (default: model, module, ...)")
    parser.add_argument("--heads", type=int, default=0, metavar="N", help="attention heads of the encoder, where the weights do not tell")
    parser.add_argument("--decoder-heads", type=int, default=0, metavar="N", help="likewise of the decoder")
    parser.add_argument("--trained-frames", type=int, default=0, metavar="N", help="frames of the clips the weights were trained on, where they do not tell (16)")
    parser.add_argument("--trained-size", type=int, default=0, metavar="N", help="rows and columns of those clips, where the weights do not tell (224)")
    parser.add_argument("--allow", action="append", default=[], metavar="CLASS[:PATTERN]",
                        help="accept differences: missing, unexpected, interpolated or zero, all of them or names that match; may be repeated")
    parser.add_argument("--config", default="", metavar="FILE", help="config that the run starts from (default: one of the same family)")
    parser.add_argument("--classes", default="", metavar="FILE", help="names of the classes of the head, one a line in its order, as in V2's label_map_k710.txt")
    parser.add_argument("--item", choices=("params", "ema"), default=None, help="with --to: the weights or their average (default params)")
    parser.add_argument("--best", action="store_true", help="with --to: weights of the best evaluation, where the run keeps them (evaluators.NAME.best)")
    parser.add_argument("--biases", choices=("q_bias", "query.bias"), default=None, help="with --to=hf: names of the q and v biases (default q_bias)")
    parser.epilog = "Fields of the config can be overridden: --config.data.index=FILE, --config.objective.encoder.frames=32 with --allow=interpolated."
    options, assignments = arguments.parse(parser, argv)
    return to_run(options, assignments) if options.source else from_run(options, assignments)


def to_run(options: argparse.Namespace, assignments: dict[str, str], /) -> int:
    """--from."""
    from videomae_jax.convert import exporting, importing, report
    from videomae_jax.errors import UserError

    if strays := [f"--{name}" for name in ("item", "best", "biases") if getattr(options, name)]:
        raise UserError(f"{strays[0]} belongs to --to; with --from the weights that PATH names are read")
    out = pathlib.Path(options.out)
    exporting.claim(out)
    found = importing.read(pathlib.Path(options.path), family="" if options.source == "auto" else options.source, key=options.key,
                           heads=options.heads, decoder_heads=options.decoder_heads,
                           trained_frames=options.trained_frames, trained_size=options.trained_size, config=options.config, assignments=assignments,
                           allow=report.allowances(options.allow), classes=options.classes)
    for line in found.report.lines():
        say(line)
    with arguments.writing(options.out):
        exporting.write_run(found, out)
    print(f"{found.family} weights written to {out}; every name is in {out / 'conversion.json'}")
    return 0


def from_run(options: argparse.Namespace, assignments: dict[str, str], /) -> int:
    """--to."""
    from videomae_jax.convert import exporting, videomae
    from videomae_jax.errors import UserError

    strays = [f"--{k.replace('_', '-')}" for k in ("key", "heads", "decoder_heads", "trained_frames", "trained_size", "allow", "config", "classes") if getattr(options, k)]
    strays += [f"--config.{k}" for k in assignments]
    if strays:
        raise UserError(f"{strays[0]} belongs to --from; with --to allowed are --out, --item, --best and --biases")
    if options.biases and options.to != "hf":
        raise UserError(f"--biases={options.biases} with --to={options.to}, whose files have one name for them; allowed is it with --to=hf")
    with arguments.writing(options.out):
        state = exporting.export(pathlib.Path(options.path), to=options.to.removesuffix("_v2"), out=pathlib.Path(options.out), item=options.item or "params", best=options.best,
                                 biases=videomae.Biases(options.biases or "q_bias"))
    print(f"{len(state)} arrays written to {options.out}")
    return 0
