"""The `bench` command: `bench step` times the training step of a model or a config, `bench input` what feeds it."""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile
from typing import Any

from videomae_jax.commands import arguments
from videomae_jax.commands.arguments import say

SIZES = ("S", "B", "L", "H", "g")
MODES = ("dual", "v1")
DTYPES = ("float32", "bfloat16")
ON_CPU, ELSEWHERE = 2, 32  # clips per device unless --batch says otherwise


def main(argv: list[str]) -> int:
    """Dispatches to a kind of benchmark; prints one JSON line on standard output."""
    if argv and argv[0] in KINDS:
        return KINDS[argv[0]](argv[1:])
    parser = arguments.Parser("bench", description="Measure something; one JSON line on standard output, the rest on standard error.")
    parser.add_argument("kind", choices=tuple(KINDS), help="what to measure; 'bench KIND --help' lists its options")
    parser.parse_args(argv[:1])
    return 0


def options_of_step(argv: list[str], /) -> tuple[argparse.Namespace, dict[str, str]]:
    """Checked options of `bench step` and the --config.a.b=value assignments."""
    parser = arguments.Parser("bench step", description="Time the training step of a published size or of a config, on noise that lies on the device.")
    arguments.add_config(parser, required=False)
    parser.add_argument("--size", choices=SIZES, help="published size: its pretraining config with --mode, --dtype and --batch")
    parser.add_argument("--mode", choices=MODES, help="decoded tokens: dual (VideoMAE V2, half of them) or v1 (all hidden ones); default: as in the config")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the computation; default: float32 on a CPU, else as in the config")
    parser.add_argument("--attention", choices=("auto", "xla", "recomputed", "chunked", "cudnn", "splash"), help="default: as in the config")
    parser.add_argument("--batch", type=int, default=0, metavar="N",
                        help=f"clips of a step over all devices; default: {ON_CPU} a device on a CPU, {ELSEWHERE} elsewhere")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="steps of a repeat (default 0: about a second)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="repeats, of which median, minimum and maximum are given (default 5)")
    parser.add_argument("--warmup", type=int, default=2, metavar="N", help="steps before the clock starts (default 2)")
    parser.add_argument("--peak-tflops", type=float, default=0.0, metavar="X", help="peak of one device for the MFU, where the table is not right")
    parser.add_argument("--against", choices=("torch",), help="also time the same in PyTorch on this machine, in turns: Hugging Face's VideoMAE, or V2 on its blocks")
    parser.add_argument("--torch-compile", default="", metavar="WAYS", help="with --against: of none,blocks,whole those that torch.compile tries "
                        "(default: all on GPUs, none on CPUs)")
    parser.add_argument("--torch-batch", default="", metavar="N,...", help="with --against: clips a step that the rival tries, of which it takes the fastest "
                        "a clip (default: as many as ours, on GPUs half and twice as many too)")
    parser.add_argument("--profile", type=arguments.path, default="", metavar="DIR",
                        help="also trace three steps into DIR (for TensorBoard) and say where their time goes")
    options, assignments = arguments.parse(parser, argv)
    check(options)
    return options, assignments


def step(argv: list[str], /) -> int:
    """Times the training step on noise, without input cost."""
    options, assignments = options_of_step(argv)
    if options.against:  # JAX takes three quarters of a GPU at its start unless told not to, and the rival needs its share
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from videomae_jax import benchmarks
    from videomae_jax.assembly import assemble
    from videomae_jax.errors import UserError

    config, dtype = prepared(options, assignments)
    run = assemble(config, trust=tuple(options.trust))
    say(f"{config.name}: {run.clips * run.draws} clips a step, {dtype}")
    rival = None
    if options.against:
        from videomae_jax import torch_reference

        ways = tuple(filter(None, options.torch_compile.split(",")))
        if unknown := set(ways) - set(torch_reference.COMPILED):
            raise UserError(f"--torch-compile={options.torch_compile}: {sorted(unknown)[0]!r}; allowed are {', '.join(torch_reference.COMPILED)}")
        clips = tuple(int(word) for word in options.torch_batch.split(",") if word)
        rival = functools.partial(torch_reference.fastest, run, dtype=dtype, compiled=ways, clips=clips, say=say)
    result = benchmarks.step(run, steps=options.steps, repeats=options.repeats, warmup=options.warmup, peak_tflops=options.peak_tflops,
                             dtype=dtype, rival=rival, profile=options.profile, say=say)
    for line in benchmarks.lines(result):
        say(line)
    print(json.dumps(result | {"dtype": dtype, **layout(config.objective)}))
    return 0


def input_(argv: list[str], /) -> int:
    """Times reading clips by stage, from files and packed, beside the usual loader; the JSON line has exactly the keys of `result`."""
    parser = arguments.Parser("bench input", description="CPU time of reading clips: open, seek, decode, convert, crop, batch, transfer; one JSON line. A clip "
                              "counts as read when it is on the device; crops that are cut there are part of the step and given apart.")
    parser.add_argument("--index", default="", metavar="FILE", help="index.parquet of video files (default: videos written for this, like those of Kinetics)")
    parser.add_argument("--packed", default="", metavar="FILE", help="with --index: index.parquet that `pack` wrote of it (default: none)")
    from videomae_jax.data import footage

    said = {"frames": "of a clip", "stride": "frames of the video from one to the next", "size": "pixels of a crop", "copies": "crops of one decode",
            "crops": "where they are cut, device or host", "decodes": "clips of a repeat", "repeats": "of which median and spread are given",
            "opens": "reads over which the resident set is followed"}
    fields = dataclasses.fields(footage.Settings)
    for field in fields:
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default, help=f"{said[field.name]} (default {field.default})")
    parser.add_argument("--videos", type=int, default=3, metavar="N", help="videos to write without --index (default 3)")
    parser.add_argument("--step-ms", type=float, default=0.0, metavar="X", help="duration of a training step, for the verdict")
    parser.add_argument("--batch", type=int, default=256, metavar="N", help="clips of that step (default 256)")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, metavar="N", help="cores that read for it (default: those of this machine)")
    options = parser.parse_args(argv)
    from videomae_jax import input_benchmark
    from videomae_jax.errors import UserError

    if options.packed and not options.index:
        raise UserError(f"--packed={options.packed} goes with --index, the index that was packed")
    for name, least in (("videos", 1), ("step_ms", 0), ("batch", 1), ("cores", 1)):
        if not getattr(options, name) >= least:
            raise UserError(f"--{name.replace('_', '-')}={getattr(options, name)}; allowed are {least} and more")
    settings = footage.Settings(**{field.name: getattr(options, field.name) for field in fields})
    with tempfile.TemporaryDirectory() as folder:
        paths = (options.index, options.packed) if options.index else input_benchmark.prepare(pathlib.Path(folder), videos=options.videos, settings=settings, say=say)
        found = input_benchmark.measure(*input_benchmark.sources_of(*paths, settings), settings, say=say)
    result = input_benchmark.result(found, settings)
    for line in input_benchmark.lines(found, settings):
        say(line)
    if options.step_ms:
        say(input_benchmark.verdict(result["raw_clips_per_s_core"], step_ms=options.step_ms, clips=options.batch, cores=options.cores))
    print(json.dumps(result))
    return 0


KINDS = {"step": step, "input": input_}
NO_FILES = {"pretrained": "", "weights": "", "classes": "", "initial": None}  # fields of objectives that name files: no step's time depends on their content


def nodes(objective: Any, *fields: str) -> dict[str, Any]:
    """The parts of an objective's config (encoder, decoder, ...) that have all of `fields`."""
    return {k: node for k, node in objective.items() if hasattr(node, "keys") and set(fields) <= set(node)}


def layout(objective: Any, /) -> dict[str, Any]:
    """What of the objective's config decides its speed."""
    mask = nodes(objective, "__symbol__").get("decoder_mask", {"__symbol__": ""})["__symbol__"].rpartition(".")[2]
    names = ("remat", "unroll", "attention")
    parts = {k: {n: node[n] for n in names} for k, node in nodes(objective, *names).items()}
    return {"mode": {"Hidden": "v1", "RunningCell": "dual"}.get(mask, mask), **parts}


def check(options: argparse.Namespace, /) -> None:
    """Raises UserError for options that contradict each other or cannot be measured."""
    from videomae_jax.errors import UserError

    if bool(options.size) == bool(options.config):
        raise UserError("bench step needs either --size or --config")
    for name, value in (("compile", options.torch_compile), ("batch", options.torch_batch)):
        if value and not options.against:
            raise UserError(f"--torch-{name}={value} goes with --against=torch")
    if options.torch_batch and not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", options.torch_batch):
        raise UserError(f"--torch-batch={options.torch_batch}; allowed are whole numbers of 1 and more with commas between them")
    for name, least in (("batch", 0), ("steps", 0), ("repeats", 1), ("warmup", 1), ("peak_tflops", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')}={getattr(options, name)}; allowed are {least} and more")
    if options.profile:
        try:
            os.makedirs(options.profile, exist_ok=True)
        except OSError as error:
            raise UserError(f"--profile={options.profile} cannot be made: {error.strerror}") from error


def prepared(options: argparse.Namespace, assignments: dict[str, str], /) -> tuple[Any, str]:
    """The config to run, on noise instead of its data and with fresh weights in place of files, and the dtype of its computation."""
    import jax

    from videomae_jax import config as configs
    from videomae_jax import masking
    from videomae_jax.data import sources
    from videomae_jax.errors import UserError

    config = configs.load(options.config or f"configs/pretrain/vit_{options.size.lower()}.py")
    config.unlock()
    objective, cpu = config.objective, jax.default_backend() == "cpu"
    typed = list(nodes(objective, "dtype").values())
    for node in typed:
        node.dtype = options.dtype or ("float32" if cpu else typed[0].dtype)
    for node in nodes(objective, "attention").values():
        node.attention = options.attention or node.attention
    if options.mode:
        if "decoder_mask" not in objective:
            raise UserError(f"--mode={options.mode}: the objective of this config has no decoder_mask")
        objective.decoder_mask = configs.spec(masking.Hidden if options.mode == "v1" else masking.RunningCell)
    if not {"frames", "size"} <= set(config.data):
        raise UserError(f"bench step feeds noise of `frames` x `size` x `size`, but the data of this config have the fields {', '.join(config.data)}")
    noise = {k: config.data[k] for k in ("frames", "size")}
    if options.batch or options.size:
        config.batch_size = options.batch or (ON_CPU if cpu else ELSEWHERE) * jax.device_count()
    else:
        noise["repeats"] = config.data.get("repeats", 1)
    config.data = configs.spec(sources.NoiseClips, **noise)
    with config.ignore_type():
        for name in NO_FILES.keys() & set(objective):
            objective[name] = NO_FILES[name]
    configs.override(config, assignments)
    return config, dtype_of(config.objective, asked=options.dtype)


def dtype_of(objective: Any, /, *, asked: str | None) -> str:
    """The dtype that all parts of an objective's config compute in. Raises UserError where they differ, or are not in the one `asked` for."""
    from videomae_jax.errors import UserError

    told = ({"--dtype": asked} if asked else {}) | {f"objective.{name}.dtype": node.dtype for name, node in nodes(objective, "dtype").items()}
    found = set(told.values()) or {"float32"}
    if len(found) > 1 or not found <= set(DTYPES):
        raise UserError(f"{', '.join(f'{name}={dtype}' for name, dtype in told.items())}; a step is timed in one dtype, so allowed is one of "
                        f"{', '.join(DTYPES)} for all of them")
    return found.pop()
