"""Packing: the videos of an index as shards of short re-encoded clips that decode several times as fast.

A packed folder holds `pack.json` (settings), `v<version>/<shard>.array_record` with a manifest `<shard>.json` beside each, and,
once every shard is there, `manifest.json` and `index.parquet`: an index like any other, for `packed.PackedClips`. Every shard is a function of the
videos, the index and the settings, to the byte for one version of x264 (of one thread each: more threads encode otherwise), is written under another name and renamed when verified, so that any number of processes can
share the work, be killed, and go on. Row r of n readable videos lies in shard floor(r * shards / n).

A record holds the windows of one video: RECORD head, sizes, json, then each window as an mp4 of its own without sound. A video
that cannot be read leaves an empty record, so that all versions agree about places.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from array_record.python import array_record_module as array_record

from videomae_jax.data import clips, columns, decode, encoding, frame_folders, index, omission, sources
from videomae_jax.data.workers import processes
from videomae_jax.errors import UserError

MAGIC = b"VMJ1"
HEAD = struct.Struct("<4sII")  # MAGIC, number of windows, bytes of the json; then one u32 a window: its bytes
VIDEOS_PER_SHARD = 1000  # what a killed process loses at most: minutes
TIMEOUT = 600.0  # seconds that reading a video may take: nobody waits for a batch, and what is left out is left out for good
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo")
SETTINGS, MANIFEST = "pack.json", "manifest.json"
FACTS = ("size", "frames", "width", "height", "fps_num", "fps_den", "stride")  # columns that differ where a video was replaced by another of its name


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a packed clip is: `frames` frames `stride` apart, or `rate` a second where that is not 0; `windows` of them a video.

    `short_side` in pixels (smaller videos keep their size, sides become even), `gop` frames from key to key, `crf` and `preset`
    of x264, whose fast-decode profile is used. The windows of a video start in `windows` equal parts of what it leaves free, at a
    place drawn from (seed, version, name).
    """

    frames: int = 16
    stride: int = 4
    rate: float = 0.0
    short_side: int = 256
    windows: int = 1
    gop: int = 16
    crf: int = 20
    preset: str = "medium"
    seed: int = 0

    def __post_init__(self) -> None:
        for field, least in (("frames", 1), ("stride", 1), ("rate", 0), ("short_side", 16), ("windows", 1), ("gop", 1), ("crf", 0), ("seed", 0)):
            if not getattr(self, field) >= least:
                raise UserError(f"{field} is {getattr(self, field)}; allowed are {least} and more")
        if self.crf > 51:
            raise UserError(f"crf is {self.crf}; allowed are 0 (lossless) to 51")
        if self.rate and not clips.RATES[0] <= self.rate <= clips.RATES[1]:
            raise UserError(f"rate is {self.rate}; allowed are 0 (by stride) and {clips.RATES[0]:g} to {clips.RATES[1]:g} frames a second")
        if self.preset not in PRESETS:
            raise UserError(f"preset is {self.preset!r}; allowed are {', '.join(PRESETS)}")

    def of(self, record: dict[str, Any], /) -> "Settings":
        """With the stride that an index row has of its own."""
        return self if record["stride"] is None else dataclasses.replace(self, stride=record["stride"])

    def step(self, fps: Fraction, /) -> Fraction:
        """Source frames from one packed frame to the next."""
        return fps / Fraction(self.rate).limit_denominator(1001) if self.rate else Fraction(self.stride)

    def size(self, *, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the packed clip of a displayed picture."""
        scale = min(1.0, self.short_side / min(width, height))
        return tuple(max(round(side * scale) // 2 * 2, 2) for side in (width, height))

    def starts(self, frames: int, /, *, span: int, rng: np.random.Generator) -> list[int]:
        """First frames of the windows of a video, ascending and distinct; one window covers `span` frames."""
        room = max(frames - span + 1, 1)
        edges = [room * i // self.windows for i in range(self.windows + 1)]
        return sorted({low + int(rng.integers(max(high - low, 1))) for low, high in itertools.pairwise(edges)})

    def ids(self, info: decode.VideoInfo, /, *, rng: np.random.Generator) -> list[np.ndarray]:
        """Source frames i64 [frames] of every window; strides as in V2 pretraining (`clips.strided`), rates as in `clips.PerSecond`."""
        if not self.rate:
            return [clips.strided(info.frames, start=start, clip=self.frames, stride=self.stride)
                    for start in self.starts(info.frames, span=self.frames * self.stride, rng=rng)]
        chosen = clips.at(clips.PerSecond(self.rate), fps=info.fps, pts=info.pts, time_base=info.time_base)
        span = info.frames + 1 - chosen.room(info.frames, clip=self.frames)
        return [chosen.after(start, frames=info.frames, clip=self.frames) for start in self.starts(info.frames, span=span, rng=rng)]

    def facts(self, record: dict[str, Any], /) -> dict[str, Any]:
        """The columns of `index.describe` that every window of an index row has; its rate is the nearest that its clock can carry (`encoding.RATES`)."""
        source = Fraction(record["fps_num"], record["fps_den"])
        fps = min(max(source / self.step(source), encoding.RATES[0]), encoding.RATES[1]).limit_denominator(1001)
        width, height = self.size(width=record["width"], height=record["height"])
        return {"status": "ok", "codec": "h264", "width": width, "height": height, "rotation": 0, "frames": self.frames, "fps_num": fps.numerator,
                "fps_den": fps.denominator, "duration": float(self.frames / fps), "time_base_num": 1, "time_base_den": fps.numerator * encoding.TICKS,
                "pts_start": 0, "pts_step": fps.denominator * encoding.TICKS if self.frames > 1 else 0, "pts": None,
                "keys": [k * fps.denominator * encoding.TICKS for k in range(0, self.frames, self.gop)]}


class Packed(NamedTuple):
    """A record, and what encoding cost in it: the mean PSNR in dB; or why there is none."""

    data: bytes
    windows: int
    psnr: float
    error: str


def pack_row(source: sources.VideoClips, row: int, /, *, version: int, settings: Settings) -> Packed:
    """The record of a row of a source; every window is decoded again and compared with what went in.

    What may pass is tried again; whether the video is left out for what then stays is for `omission.check`.
    """
    record = source.record(row)
    try:
        info, settings = columns.info(record), settings.of(record)
        facts, digest = settings.facts(record), hashlib.sha256(f"{settings.seed}/{version}/{record['name']}".encode()).digest()
        chosen = settings.ids(info, rng=np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little"))))
        frames = omission.frames(source, record, np.concatenate(chosen), info, seconds=TIMEOUT)
    except decode.DecodeError as error:
        return Packed(HEAD.pack(MAGIC, 0, 0), 0, 0.0, f"{error.stage}: {error.cause}")
    frames = encoding.shrink(frames, width=facts["width"], height=facts["height"])
    fps, blobs, levels = Fraction(facts["fps_num"], facts["fps_den"]), [], []
    for number in range(len(chosen)):
        video = frames[number * settings.frames: (number + 1) * settings.frames]
        blobs.append(encoding.encode(video, fps=fps, preset=settings.preset, crf=settings.crf, gop=settings.gop))
        levels.append(encoding.compare(video, blobs[-1], facts=facts, name=record["name"]))
    text = json.dumps({"name": record["name"], "label": record["label"], "split": record["split"], "version": version,
                       "settings": dataclasses.asdict(settings), "source": {k: record[k] for k in ("codec", "width", "height", "rotation", "frames",
                       "fps_num", "fps_den", "time_base_num", "time_base_den")}, "ids": [ids.tolist() for ids in chosen],
                       "pts": [info.pts[ids].tolist() for ids in chosen]}, sort_keys=True).encode()
    head = HEAD.pack(MAGIC, len(blobs), len(text)) + struct.pack(f"<{len(blobs)}I", *map(len, blobs))
    return Packed(head + text + b"".join(blobs), len(blobs), float(np.mean(levels)), "")


def windows(record: bytes, /) -> list[bytes]:
    """The mp4 files of a record; [] for a video that could not be packed. Raises ValueError for anything but a record."""
    if record[:4] != MAGIC:
        raise ValueError(f"a record begins with {record[:4]!r}, not {MAGIC!r}")
    try:
        _, count, length = HEAD.unpack_from(record)
        sizes = struct.unpack_from(f"<{count}I", record, HEAD.size)
    except struct.error as error:
        raise ValueError(f"a record of {len(record)} bytes is cut: {error}") from error
    ends = np.cumsum([HEAD.size + 4 * count + length, *sizes]).tolist()
    if ends[-1] != len(record):
        raise ValueError(f"a record of {len(record)} bytes announces {ends[-1]}")
    return [record[a:b] for a, b in itertools.pairwise(ends)]


def about(record: bytes, /) -> dict[str, Any]:
    """What a record says of itself: name, label, split, settings, and the source's frames (`ids`) and times (`pts`) of every window."""
    _, count, length = HEAD.unpack_from(record)
    return json.loads(record[HEAD.size + 4 * count:][:length] or "{}")


@dataclasses.dataclass(frozen=True)
class Plan:
    """A packed folder to be: `rows` readable videos of the index `source`, in `shards` files of each of `versions` versions."""

    folder: pathlib.Path
    source: sources.VideoClips
    settings: Settings
    shards: int
    versions: int

    @property
    def rows(self) -> int:
        """Readable videos."""
        return len(self.source)

    def range(self, shard: int, /) -> range:
        """The rows of a shard."""
        return range(self.rows * shard // self.shards, self.rows * (shard + 1) // self.shards)

    def path(self, version: int, shard: int, /, suffix: str = ".array_record") -> pathlib.Path:
        """File of a shard, or with ".json" its manifest."""
        return self.folder / f"v{version}" / f"{shard:05}{suffix}"

    def manifest(self, version: int, shard: int, /) -> dict[str, Any] | None:
        """What is known of a finished shard; None where it is missing or not the file that its manifest describes."""
        path = self.path(version, shard)
        try:
            found = json.loads(self.path(version, shard, ".json").read_text())
            return found if path.stat().st_size == found["bytes"] else None
        except (OSError, ValueError, KeyError):
            return None

    def finished(self) -> list[dict[str, Any]]:
        """Manifests of all finished shards."""
        return [m for v in range(self.versions) for s in range(self.shards) if (m := self.manifest(v, s))]


def planned(path: str, folder: pathlib.Path, /, *, settings: Settings, shards: int = 0, versions: int = 1) -> Plan:
    """The plan for an index; `shards` 0 is one for every VIDEOS_PER_SHARD. Raises UserError for an index that cannot be packed."""
    source = frame_folders.FrameClips(index=path, split="all", timeout=TIMEOUT)
    if shards > len(source):
        raise UserError(f"{shards} shards of {len(source)} readable videos; allowed are 1 to {len(source)}, and 0 for one every {VIDEOS_PER_SHARD}")
    return Plan(folder, source, settings, shards or -(-len(source) // VIDEOS_PER_SHARD), versions)


def claim(plan: Plan, /) -> None:
    """Makes the folder, or checks that it is one of the same packing. Raises UserError with the differences."""
    table = plan.source.select("name", *FACTS)
    digests = {"names_sha256": "\n".join(table.column("name").to_pylist()), "facts_sha256": json.dumps([table.column(k).to_pylist() for k in FACTS])}
    wanted = {"settings": dataclasses.asdict(plan.settings), "shards": plan.shards, "videos": plan.rows,
              **{k: hashlib.sha256(text.encode()).hexdigest() for k, text in digests.items()}}
    path = plan.folder / SETTINGS
    index.claim(plan.folder / "index.parquet")
    strangers = [p for p in plan.folder.iterdir() if not p.name.startswith(".")]  # seen before the settings, which any other process writes first
    if not path.exists():
        if strangers:
            raise UserError(f"{plan.folder} is not empty and holds no {SETTINGS}, so it is no packed folder; use another --out")
        replace(path, json.dumps(wanted, indent=2).encode())
    try:
        found = json.loads(path.read_text())
        old, new = ({"facts_sha256": wanted["facts_sha256"], **x, **x["settings"]} for x in (found, wanted))  # which folders made before do not say
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say how {plan.folder} was packed ({error!r}); use another --out, or remove the folder") from error
    said = {"names_sha256": "its videos have other names", "facts_sha256": f"its videos differ in {', '.join(FACTS[:-1])} or {FACTS[-1]}"}
    differences = [said.get(k, f"{k} is {old.get(k)!r} there and {new[k]!r} here") for k in new if k != "settings" and old.get(k) != new[k]]
    if differences:
        raise UserError(f"{plan.folder} holds another packing: {'; '.join(differences)}; use the same options or another --out")


def replace(path: pathlib.Path, data: bytes, /) -> None:
    """Writes a file as a whole: killed processes leave the old one or the new one."""
    for last in (False, True):
        temporary = path.with_name(f".{path.name}.partial-{secrets.token_hex(8)}")
        temporary.write_bytes(data)
        try:
            os.replace(temporary, path)
            return
        except FileNotFoundError:  # a process that finished the same packing has just taken it for one of a killed process
            if last:
                raise


def check_last(plan: Plan, row: int, found: omission.Outcome, /, *, version: int, **words: str) -> None:
    """`omission.check` of what the last of several rows came to, which none follows: where it was late, one more row of the plan is read for it."""
    if found.late:
        other = (row + 1) % plan.rows
        error = pack_row(plan.source, other, version=version, settings=plan.settings).error
        omission.check(omission.Outcome(plan.source.name(other), error), found, **words)


def write_shard(plan: Plan, version: int, shard: int, records: Iterator[Packed], /) -> dict[str, Any]:
    """Writes, reads back and names one shard; its manifest, or that of another process that was faster.

    Raises OSError, RuntimeError where the disk gives back something else, and what `omission.check` raises.
    """
    temporary = plan.path(version, shard).with_name(f".{plan.path(version, shard).name}.partial-{secrets.token_hex(8)}")
    try:
        return _write_shard(plan, version, shard, records, temporary)
    except (OSError, RuntimeError):
        # Whoever finishes a packing takes away what killed processes left, and cannot tell it from what slower ones still write.
        found = None if temporary.exists() else plan.manifest(version, shard)
        if found is None or file_sha256(plan.path(version, shard)) != found["sha256"]:
            raise
        return found


def _write_shard(plan: Plan, version: int, shard: int, records: Iterator[Packed], temporary: pathlib.Path, /) -> dict[str, Any]:
    path, digests, failed, levels, count = plan.path(version, shard), [], {}, [], 0
    path.parent.mkdir(exist_ok=True)
    with contextlib.closing(array_record.ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")) as writer:
        last = omission.Outcome()
        for row, packed in zip(plan.range(shard), records, strict=True):
            omission.check(now := omission.Outcome(plan.source.name(row), packed.error), last)
            last = now
            writer.write(packed.data)
            digests.append(hashlib.sha256(packed.data).digest())
            count += packed.windows
            if packed.error:
                failed[str(row)] = packed.error
            else:
                levels.append(packed.psnr)
    check_last(plan, plan.range(shard)[-1], last, version=version)
    reader = array_record.ArrayRecordReader(str(temporary), "readahead_buffer_size:0,max_parallelism:0")
    with contextlib.closing(reader):
        if reader.num_records() != len(digests) or any(hashlib.sha256(reader.read([i])[0]).digest() != d for i, d in enumerate(digests)):
            raise RuntimeError(f"{temporary} does not give back what was written; is the disk full or damaged?")
    with temporary.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    manifest = {"version": version, "shard": shard, "videos": len(digests), "clips": count, "bytes": temporary.stat().st_size, "sha256": digest,
                "psnr": round(float(np.mean(levels)), 3) if levels else None, "failed": failed}
    os.replace(temporary, path)
    replace(plan.path(version, shard, ".json"), json.dumps(manifest, indent=2).encode())
    return manifest


_worker: dict[str, Any] = {}


def _begin(source: sources.VideoClips, settings: Settings, /) -> None:
    _worker.update(source=source, settings=settings)


def _task(job: tuple[int, int], /) -> Packed:
    return pack_row(_worker["source"], job[1], version=job[0], settings=_worker["settings"])


def pack(plan: Plan, /, *, part: int = 0, parts: int = 1, workers: int = 1, verify: bool = False,
         say: Callable[[str], None] = lambda line: None) -> list[dict[str, Any]]:
    """Packs the shards part, part + parts, ... that are not finished, and writes the index once all shards are; all manifests.

    `verify` reads finished shards again and repeats those whose checksum is another. Raises UserError, and what `write_shard` raises.
    """
    claim(plan)
    jobs = [(v, s) for v in range(plan.versions) for s in range(plan.shards) if s % parts == part]
    if not jobs:
        say(f"part {part} of {parts} has nothing to do: the packing has {plan.shards} shards a version; more of them with --shards=N")
    with contextlib.ExitStack() as stack:
        run: Callable[..., Iterator[Packed]] = map
        if workers > 1:
            run = stack.enter_context(processes(workers, _begin, plan.source, plan.settings)).map
        else:
            _begin(plan.source, plan.settings)
        for version, shard in jobs:
            manifest = plan.manifest(version, shard)
            if manifest and (not verify or file_sha256(plan.path(version, shard)) == manifest["sha256"]):
                continue
            if manifest:
                say(f"v{version}/{shard:05} is damaged and packed anew")
            try:
                manifest = write_shard(plan, version, shard, run(_task, [(version, row) for row in plan.range(shard)]))
            except concurrent.futures.BrokenExecutor as error:
                raise UserError(f"a process that packed v{version}/{shard:05} of {plan.folder} was killed (memory, or a video that ends its decoder); the same "
                                "command goes on, with fewer --workers") from error
            for row, cause in manifest["failed"].items():
                if cause.startswith("timeout:"):
                    say(f"v{version}/{shard:05}: {plan.source.name(int(row))} is left out: {cause}, twice")
            say(f"v{version}/{shard:05}: {manifest['clips']} clips, {manifest['bytes'] / 1e6:.1f} MB, PSNR {manifest['psnr']} dB, {len(manifest['failed'])} failed")
    return finished(plan)


def finished(plan: Plan, /) -> list[dict[str, Any]]:
    """Manifests of all finished shards; the packed index is written once these are all there are."""
    found = plan.finished()
    if len(found) == plan.shards * plan.versions:
        finish(plan, found)
    return found


def file_sha256(path: pathlib.Path, /) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def finish(plan: Plan, manifests: list[dict[str, Any]], /) -> None:
    """Writes the packed index and the manifest, and takes away what killed processes left."""
    errors = {int(row): error for m in manifests for row, error in m["failed"].items()}
    write_index(plan, [(plan.path(0, shard), place) for shard in range(plan.shards) for place in range(len(plan.range(shard)))], errors)
    write_manifest(plan, clips=sum(m["clips"] for m in manifests), size=sum(m["bytes"] for m in manifests), failed=len(errors),
                   sha256={f"v{m['version']}/{m['shard']:05}": m["sha256"] for m in manifests})
    for path in plan.folder.rglob(".*.partial-*"):
        path.unlink(missing_ok=True)


def write_index(plan: Plan, places: list[tuple[pathlib.Path, int]], errors: dict[int, str], /) -> None:
    """The packed index: every row with its (shard, place) and the facts of its packed clips, or why it has none."""
    kept = [name for name in plan.source.columns if name in index.LISTED or name not in index.SCHEMA.names]
    rows = plan.source.select(*kept).to_pylist()
    records = plan.source.select("width", "height", "fps_num", "fps_den", "stride").to_pylist()
    for row, (values, record, (path, place)) in enumerate(zip(rows, records, places, strict=True)):
        facts = plan.settings.of(record).facts(record) if row not in errors else {"status": errors[row]}
        values.update(facts, path=str(path.resolve()), **{index.PACKED: str(place)})
    extra = [pa.field(name, pa.string()) for name in kept if name not in index.SCHEMA.names]
    index.write(pa.Table.from_pylist(rows, schema=pa.schema([*index.SCHEMA, *extra, pa.field(index.PACKED, pa.string())])), plan.folder / "index.parquet")


def write_manifest(plan: Plan, /, *, clips: int, size: int, failed: int, sha256: dict[str, str]) -> None:
    """What a packed folder holds, for its readers."""
    replace(plan.folder / MANIFEST, json.dumps({"settings": dataclasses.asdict(plan.settings), "versions": plan.versions, "clips": clips,
                                                "bytes": size, "failed": failed, "sha256": sha256}, indent=2).encode())


def summary(plan: Plan, manifests: list[dict[str, Any]], /) -> str:
    """One line: what is packed, how faithful it is, and what a million clips weigh."""
    clips_, size = sum(m["clips"] for m in manifests), sum(m["bytes"] for m in manifests)
    failed = len({row for m in manifests for row in m["failed"]})
    levels = [m["psnr"] for m in manifests if m["psnr"] is not None]
    return (f"{clips_} clips of {plan.rows - failed} videos ({failed} unreadable) in {len(manifests)} of {plan.shards * plan.versions} shards, "
            f"PSNR {np.mean(levels) if levels else 0:.1f} dB: {size / max(clips_, 1) / 1e3:.2f} GB per million clips")
