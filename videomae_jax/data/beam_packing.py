"""Packing on Apache Beam, for those who have an engine that runs it; the same shards, to the byte, as without.

    pip install apache-beam
    python -m videomae_jax pack index.parquet --out=packed --beam="--runner=FlinkRunner --flink_master=HOST:8081 --parallelism=64"

A shard is one element: it is written under another name and renamed, so Beam may run it twice or start it again. The packed folder,
the index and the videos must be seen by all workers under the same paths, and they need this package.
"""

import shlex
from typing import Any

from videomae_jax.data import packing
from videomae_jax.errors import UserError


def parsed(options: str, /) -> Any:
    """Options of a pipeline, "" = those of the embedded runner. Raises UserError where Beam is not installed."""
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(f"--beam needs the package apache-beam ({error}): pip install apache-beam") from error
    return PipelineOptions(shlex.split(options))


def pack(plan: packing.Plan, options: str, /) -> list[dict[str, Any]]:
    """`packing.pack` of all shards that are missing, by a Beam pipeline with these options; all manifests.

    Raises UserError where Beam is not installed, and what the pipeline raises.
    """
    chosen = parsed(options)
    import apache_beam as beam

    packing.claim(plan)
    missing = [(v, s) for v in range(plan.versions) for s in range(plan.shards) if not plan.manifest(v, s)]
    with beam.Pipeline(options=chosen) as pipeline:
        # Beam fuses neighbours: without the reshuffle one worker would get all shards.
        _ = pipeline | beam.Create(missing) | beam.Reshuffle() | beam.Map(shard, plan=plan)
    return packing.finished(plan)


def shard(job: tuple[int, int], /, *, plan: packing.Plan) -> int:
    """Packs the shard (version, number) of a plan; its clips."""
    version, number = job
    rows = (packing.pack_row(plan.source, row, version=version, settings=plan.settings) for row in plan.range(number))
    return packing.write_shard(plan, version, number, rows)["clips"]
