"""The `export` command: an encoder or classifier as a StableHLO program for serving."""

import pathlib

from videomae_jax.commands import arguments


def main(argv: list[str]) -> int:
    """Writes the folder and says how to run it."""
    parser = arguments.Parser("export", description="Write the encoder of a run, or its classifier, as a StableHLO program for any batch: a folder with "
                              "program, weights and a runner that needs jax and numpy alone.")
    arguments.add_model(parser)
    parser.add_argument("--out", type=arguments.path, required=True, metavar="DIR", help="new folder")
    parser.add_argument("--what", choices=("features", "classes"), default="features", help="tokens and pooled features, or probabilities of the classes")
    parser.add_argument("--layer", type=int, default=-1, metavar="L", help="block whose raw output is taken, from 0 (default -1: what the recipe represents a clip by)")
    parser.add_argument("--platforms", default="cpu", metavar="A,B", help="cpu, cuda, rocm, tpu: where the program may run (default: cpu)")
    parser.add_argument("--frames", type=int, default=0, metavar="T", help="frames of a clip (default: as trained)")
    parser.add_argument("--size", type=int, default=0, metavar="S", help="rows and columns of a clip (default: as trained)")
    options = parser.parse_args(argv)
    from videomae_jax import artefact

    model = arguments.model(options, frames=options.frames, size=options.size)
    with arguments.writing(options.out):
        about = artefact.write(model, pathlib.Path(options.out), what=options.what, layer=options.layer,
                               platforms=tuple(p for p in options.platforms.split(",") if p))
    print(f"{', '.join(f'{k} {v}' for k, v in about['output'].items())} for {', '.join(about['platforms'])}; run it with: python {options.out}/run.py clip.npy")
    return 0
