"""Packing as a data set of TensorFlow Datasets, made here or on Apache Beam: the clips of `packing`, in shards that tfds sizes and describes.

    pip install apache-beam
    python -m videomae_jax pack index.parquet --out=packed --tfds --beam="--runner=FlinkRunner --flink_master=HOST:8081 --parallelism=64"

`packed/packed_videos/1.0.0` is a data set like any other of tfds, with a split for every split of the index; `packed/index.parquet` is for
`packed.PackedClips`, which reads its shards without TensorFlow. tfds makes all of it or nothing: what is killed begins again. Where a video
was left out for what may pass, the data set stays as it is, but has no index.
"""

import contextlib
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module as array_record

from videomae_jax.data import beam_packing, decode, omission, packed, packing, tfds_source
from videomae_jax.errors import UserError


class Info(tfds.core.DatasetInfo):
    """What is said of a data set that is made here. tfds asks the bucket of its own ones about every new one, and leaves an empty temporary folder behind."""

    def initialize_from_bucket(self) -> None:
        """Nothing is known beforehand."""


class PackedVideos(tfds.core.GeneratorBasedBuilder):
    """The packed clips of a plan, in the order of its rows.

    Features: `name`, `label` ("" where there is none), `clips` (mp4 files; none where a video cannot be read, and `error` says why), their
    mean `psnr` in dB, and `about`, the JSON of packing.about.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # nothing is downloaded, so no checksums lie beside the code, and the package by which tfds would look for them may be missing

    def __init__(self, *, plan: packing.Plan, on_beam: bool, **options: Any) -> None:
        self.plan, self.on_beam = plan, on_beam
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {"name": text(), "label": text(), "error": text(), "about": text(), "psnr": tfds.features.Scalar(np.float32),
                    "clips": tfds.features.Sequence(tfds.features.Tensor(shape=(), dtype=np.object_))}
        return Info(builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True)

    def _split_generators(self, manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(numbers) for split, numbers in rows(self.plan).items()}

    def _generate_examples(self, numbers: list[int]) -> Any:
        if not self.on_beam:
            return examples(numbers, plan=self.plan)
        import apache_beam as beam

        # Beam fuses neighbours: without the reshuffle one worker would get all rows.
        return beam.Create(list(enumerate(numbers))) | beam.Reshuffle() | beam.Map(example, plan=self.plan)


def rows(plan: packing.Plan, /) -> dict[str, list[int]]:
    """The rows of every split, in order."""
    found: dict[str, list[int]] = {}
    for row, split in enumerate(plan.source.select("split").column("split").to_pylist()):
        found.setdefault(split, []).append(row)
    return found


def example(job: tuple[int, int], /, *, plan: packing.Plan) -> tuple[int, dict[str, Any]]:
    """(place, features) of (place in its split, row). A video that cannot be read has an error, whatever it is: tfds would throw away all others."""
    place, row = job
    record, made = plan.source.record(row), packing.pack_row(plan.source, row, version=0, settings=plan.settings)
    return place, {"name": record["name"], "label": record["label"] or "", "error": made.error, "psnr": np.float32(made.psnr),
                   "about": json.dumps(packing.about(made.data), sort_keys=True), "clips": packing.windows(made.data)}


def examples(numbers: list[int], /, *, plan: packing.Plan) -> Iterator[tuple[int, dict[str, Any]]]:
    """`example` of the rows of a split, one after another. Raises UserError for two in succession that are late: a mount that hangs would be
    waited for at every row that is left.
    """
    last = omission.Outcome()
    for job in enumerate(numbers):
        place, found = example(job, plan=plan)
        now = omission.Outcome(found["name"], found["error"])
        if now.late:
            omission.check(now, last, then="the same command begins again")
        last = now
        yield place, found


def check(plan: packing.Plan, errors: dict[int, str], home: pathlib.Path, /, *, say: Callable[[str], None]) -> None:
    """Says all videos that the data set in `home` lacks for what may pass, and raises UserError unless each is at fault itself: `omission.check`."""
    order, then = [row for numbers in rows(plan).values() for row in numbers], f"remove {home}, and the same command makes it again"
    found = [omission.Outcome(plan.source.name(row), errors.get(row, "")) for row in order]
    for outcome in found:
        if outcome.error.partition(":")[0] in decode.PASSING:
            say(f"{outcome.name} is without clips: {outcome.error}")
    for last, now in itertools.pairwise([omission.Outcome(), *found]):
        omission.check(now, last, then=then)
    packing.check_last(plan, order[-1], found[-1], version=0, then=then)


def pack(plan: packing.Plan, options: str | None, /, *, say: Callable[[str], None] = lambda line: None) -> tuple[packing.Plan, list[dict[str, Any]]]:
    """Makes the data set, by a Beam pipeline with these options (None = in this process), then reads all of it back and writes the index.

    Returns the plan with the number of its shards, and a manifest of each. Raises UserError where Beam is not installed, the plan has several
    versions, the folder is of another packing, the data set there of other splits or labels, or a video was left out for what may pass, RuntimeError
    where the data set does not hold what was just put into it.
    """
    if plan.versions > 1:
        raise UserError(f"--tfds with {plan.versions} versions; allowed is 1: more windows serve as well")
    packing.claim(plan)
    if list(plan.folder.glob("v*/*.array_record")):
        raise UserError(f"{plan.folder} holds plain shards of this packing; use another --out for --tfds")
    settings = {} if options is None else {"beam_options": beam_packing.parsed(options)}
    builder = PackedVideos(plan=plan, on_beam=options is not None, data_dir=str(plan.folder), file_format="array_record")
    home = pathlib.Path(builder.data_dir)
    made = home.exists()
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**settings))
    try:
        places, manifests = read_back(home, plan=plan)
    except (RuntimeError, UserError) as error:
        if not made:
            raise
        # Names and sizes of its videos are those of the index: `packing.claim` compares them.
        raise UserError(f"{home} has other splits or labels than the index, or is damaged ({str(error).splitlines()[0]}); remove it, and the same command "
                        "makes it again") from error
    errors = {int(row): error for m in manifests for row, error in m["failed"].items()}
    check(plan, errors, home, say=say)
    packing.write_index(plan, places, errors)
    packing.write_manifest(plan, clips=sum(m["clips"] for m in manifests), size=sum(m["bytes"] for m in manifests), failed=len(errors), sha256={})
    return dataclasses.replace(plan, shards=len(manifests)), manifests


def read_back(home: pathlib.Path, /, *, plan: packing.Plan) -> tuple[list[tuple[pathlib.Path, int]], list[dict[str, Any]]]:
    """(shard, place in it) of every row of the plan, and a manifest of every shard.

    Raises UserError for a split that is not there, RuntimeError for one of other rows, and what `verify` raises.
    """
    info = json.loads((home / "dataset_info.json").read_text())
    places: list[Any] = [None] * plan.rows
    manifests = []
    for split, numbers in rows(plan).items():
        left = iter(numbers)
        for path, count, _ in tfds_source._shards(home, info, split=split):
            own = list(itertools.islice(left, count))
            manifests.append(verify(path, own, plan=plan))
            for place, row in enumerate(own):
                places[row] = path, place
        if (missing := next(left, None)) is not None:
            raise RuntimeError(f"split {split} ends before {plan.source.name(missing)}")
    return places, manifests


def verify(path: pathlib.Path, numbers: list[int], /, *, plan: packing.Plan) -> dict[str, Any]:
    """The manifest of a shard that should hold these rows. Raises RuntimeError where it holds others, fewer clips than it tells of, or other labels."""
    clips, failed, levels = 0, {}, []
    with contextlib.closing(array_record.ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")) as reader:
        if reader.num_records() != len(numbers):
            raise RuntimeError(f"{path} holds {reader.num_records()} records, not {len(numbers)}")
        for place, row in enumerate(numbers):
            found, name = packed.features(reader.read([place])[0]), plan.source.name(row)
            text, error, label = (found[k].bytes_list.value[0].decode() for k in ("about", "error", "label"))
            count = len(found["clips"].bytes_list.value)
            if found["name"].bytes_list.value[0].decode() != name or (not error and count != len(json.loads(text)["ids"])):
                raise RuntimeError(f"{path}[{place}] is not {name} with all its clips")
            if label != (wanted := plan.source.record(row)["label"] or ""):
                raise RuntimeError(f"{path}[{place}] says label {label!r} of {name}, not {wanted!r}")
            clips += count
            if error:
                failed[str(row)] = error
            else:
                levels.append(found["psnr"].float_list.value[0])
    return {"videos": len(numbers), "clips": clips, "bytes": path.stat().st_size, "psnr": float(np.mean(levels)) if levels else None, "failed": failed}
