"""The `pack` command."""

import dataclasses
import os
import re
from typing import Any

from videomae_jax.commands import arguments

HELP = "Re-encode the videos of an index as short clips that decode several times as fast."


def main(argv: list[str]) -> int:
    """Packs the shards of this part that are missing; 0 when they are done."""
    parser = arguments.Parser("pack", description=HELP)
    parser.add_argument("index", metavar="INDEX", help="index.parquet that the index command wrote")
    parser.add_argument("--out", required=True, metavar="DIR", help="packed folder; the same command goes on with what is missing")
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="part I, from 0, of N that share the work, on any hosts; auto under launch/slurm.sh and on TPU VMs (default 0/1: everything)")
    parser.add_argument("--shards", type=int, default=0, metavar="N", help="files of a version (default: one for every 1,000 videos)")
    parser.add_argument("--versions", type=int, default=1, metavar="K", help="versions with other windows; more can be added later (default 1)")
    parser.add_argument("--verify", action="store_true", help="read finished shards again and repeat damaged ones")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
                        metavar="N", help="processes (default: one a core)")
    parser.add_argument("--beam", default=None, metavar="OPTIONS", help='run on Apache Beam with these options of a pipeline, "" = its embedded runner')
    parser.add_argument("--tfds", action="store_true", help="write a data set of TensorFlow Datasets instead of plain shards; with --beam on Beam, else in this process")
    from videomae_jax.data import beam_packing, packing, remote
    from videomae_jax.errors import UserError

    said = {"frames": "frames of a window", "stride": "source frames from one to the next", "rate": "frames a second instead of a stride (0 = by stride)",
            "short_side": "pixels; smaller videos keep their size", "windows": "windows of a video", "gop": "frames from key frame to key frame",
            "crf": "quality of x264: 0 lossless, 51 worst", "preset": "of x264", "seed": "of the places of windows"}
    for field in dataclasses.fields(packing.Settings):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default, help=f"{said[field.name]} (default {field.default})")
    options = parser.parse_args(argv)
    part, parts = _part(options.shard)
    for field, least in (("shards", 0), ("versions", 1), ("workers", 1)):
        if getattr(options, field) < least:
            raise UserError(f"--{field}={getattr(options, field)}; allowed are {least} and more")
    settings = packing.Settings(**{f.name: getattr(options, f.name) for f in dataclasses.fields(packing.Settings)})
    folder = remote.local(options.out, what="packed folder")
    plan = packing.planned(options.index, folder, settings=settings, shards=options.shards, versions=options.versions)
    if (options.beam is not None or options.tfds) and (parts > 1 or options.verify or (options.tfds and options.shards)):
        raise UserError("--beam and --tfds share the work and count shards by themselves; allowed with them is neither --shard nor --verify, with --tfds not --shards")
    if options.tfds:
        from videomae_jax.data import tfds_packing

        plan, manifests = tfds_packing.pack(plan, options.beam, say=arguments.say)
        return _done(plan, manifests)
    manifests = packing.pack(plan, part=part, parts=parts, workers=options.workers, verify=options.verify, say=arguments.say) if options.beam is None \
        else beam_packing.pack(plan, options.beam)
    return _done(plan, manifests)


def _done(plan: Any, manifests: list[dict[str, Any]], /) -> int:
    """Says what there is, and how to train on it where that is everything."""
    from videomae_jax.data import packing

    if len(manifests) == plan.shards * plan.versions:
        print(f"train on it: --config.data.__symbol__=videomae_jax.data.packed.PackedClips --config.data.index={plan.folder / 'index.parquet'}")
    print(packing.summary(plan, manifests))
    return 0


def _part(text: str, /) -> tuple[int, int]:
    """(part, parts) of "I/N", or of "auto": the number of this process among those that a launcher started."""
    from videomae_jax.errors import UserError

    if text == "auto":
        slurm, hosts = (os.environ.get("SLURM_PROCID"), os.environ.get("SLURM_NTASKS")), os.environ.get("TPU_WORKER_HOSTNAMES")
        number, count = slurm if all(slurm) else (os.environ.get("TPU_WORKER_ID"), str(len(hosts.split(","))) if hosts else None)
        if not number or not count:
            raise UserError("--shard=auto finds neither SLURM_PROCID and SLURM_NTASKS nor TPU_WORKER_ID and TPU_WORKER_HOSTNAMES; allowed elsewhere is I/N")
        text = f"{number}/{count}"
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard={text}; allowed is I/N with I from 0 to N - 1, or auto")
    return int(match[1]), int(match[2])
