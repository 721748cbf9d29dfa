"""The `extract` command: features of whole videos by sliding windows."""

import pathlib

from videomae_jax.commands import arguments
from videomae_jax.commands.arguments import say


def main(argv: list[str]) -> int:
    """Writes features of videos; a second call goes on where the first stopped. 0, or 1 when some videos could not be read."""
    parser = arguments.Parser("extract", description="Features of videos by sliding windows, a file a video: features, first frame of each window, "
                              "seconds of each tubelet, which tokens are real. Tokens are in the order (time, rows, columns).")
    arguments.add_model(parser)
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, folders (searched recursively) or an index of video files (.parquet)")
    parser.add_argument("--out", type=arguments.path, required=True, metavar="DIR", help="folder for the features")
    parser.add_argument("--layer", type=int, default=-1, metavar="L", help="block whose raw output is taken, from 0 (default -1: what the recipe represents a clip by)")
    parser.add_argument("--keep", choices=("pooled", "tokens"), default="pooled", help="one vector a window, or all tokens")
    parser.add_argument("--frames", type=int, default=0, metavar="T", help="frames of a window (default: as trained; others resize the position table)")
    parser.add_argument("--size", type=int, default=0, metavar="S", help="rows and columns of a frame (default: as trained)")
    parser.add_argument("--rate", type=int, default=0, metavar="N", help="frames from one of a window to the next (default: as the run's evaluation; tad: 1)")
    parser.add_argument("--stride", type=int, default=0, metavar="N", help="frames from one window to the next (default: the length of a window; tad: 4)")
    parser.add_argument("--tail", choices=("mask", "drop"), default=None, help="pad and mask the last window, or take whole windows alone (default: mask; tad: drop)")
    parser.add_argument("--frame", choices=("eval", "whole", "bilinear"), default=None,
                        help="crop as the run's evaluation, or resize the whole frame, with or without antialiasing (default: eval; tad: bilinear)")
    parser.add_argument("--format", choices=("npz", "zarr", "tad"), default="npz", help="tad: an .npy [windows, D] a video and its .json, for detectors of actions")
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the features in the files")
    parser.add_argument("--unnormalised", action="store_true",
                        help="skip the normalisation of the pixels, as V2's feature script does; its published features were presumably made so")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="windows a device runs at a time")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="only every N-th video from the I-th on, for several machines")
    return run(parser.parse_args(argv))


def run(options: object, /) -> int:
    """Opens the model, extracts, says what came of it."""
    import jax

    from videomae_jax import api, extraction
    from videomae_jax.errors import UserError

    number, _, shards = options.shard.partition("/")
    if not (number.isdigit() and shards.isdigit() and int(number) < int(shards)):
        raise UserError(f"--shard={options.shard}; allowed is I/N with I from 0 to N - 1")
    if options.batch < 1:
        raise UserError(f"--batch={options.batch}; allowed are 1 and more")
    found = extraction.find(options.videos)
    videos = found[int(number):: int(shards)]
    path, devices = pathlib.Path(options.workdir), jax.local_devices()
    model = arguments.model(options, frames=options.frames, size=options.size, devices=devices)
    model = unnormalised(model) if options.unnormalised else model
    what = chosen(options, model)
    extraction.targets_of([name for name, _ in found], out=pathlib.Path(options.out), what=what)  # of all shards, which share the folder
    weights = f"{api.identity(model, path, best=options.best)} step {model.step}{' unnormalised' if options.unnormalised else ''} {model.frames}x{model.size}"
    with arguments.writing(options.out):
        done = extraction.extract(model, videos, out=pathlib.Path(options.out), what=what, weights=weights, batch=options.batch * len(devices), say=say)
    print(f"{done.windows} windows of {done.written} videos written to {options.out}; {done.present} were there, {len(done.failed)} failed")
    if done.failed and not done.written and not done.present:
        raise UserError(f"none of the {len(videos)} videos can be read")
    return 1 if done.failed else 0


def unnormalised(model: object, /) -> object:
    """The model on pixels in [0, 1] as they are. Raises UserError where its encoder takes them so anyway."""
    import dataclasses

    from videomae_jax.errors import UserError

    encoder = model.objective.encoder
    if not hasattr(encoder, "mean"):
        raise UserError("--unnormalised: the encoder of this run does not normalise pixels; leave the option out")
    plain = encoder.clone(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return dataclasses.replace(model, objective=dataclasses.replace(model.objective, encoder=plain))


def chosen(options: object, model: object, /) -> object:
    """What is taken, with the defaults of the format."""
    from videomae_jax.data import clips, windows
    from videomae_jax.errors import UserError
    from videomae_jax.evals.base import evaluation_source
    from videomae_jax.extraction import Extraction

    tad = options.format == "tad"
    sampling = getattr(evaluation_source(model.config, split="all", trust=model.trust), "sampling", None)
    rate = options.rate or (1 if tad else clips.stride(sampling))
    if not rate:
        raise UserError(f"the evaluation of this run samples by {type(sampling).__name__}, which has no stride; say --rate=N")
    plan = windows.Plan(clip=model.frames, rate=rate, step=options.stride or (4 if tad else model.frames * rate), tail=options.tail or ("drop" if tad else "mask"))
    return Extraction(plan, layer=options.layer, keep=options.keep, frame=options.frame or ("bilinear" if tad else "eval"), format=options.format, dtype=options.dtype)
