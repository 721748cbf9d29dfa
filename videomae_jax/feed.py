"""Batches on their way to the devices."""

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

from videomae_jax import parallel
from videomae_jax.assembly import Assembly
from videomae_jax.data import pipeline
from videomae_jax.stopping import shielded


def batches(run: Assembly, samples: int, faults: Any, /) -> Iterator[Any]:
    """Device batches from position `samples` of the stream, `prefetch` of them in flight, so that the copy of one hides behind the step of another."""
    config, queue = run.config, collections.deque()
    with contextlib.ExitStack() as stack:
        with shielded():
            stream = stack.enter_context(pipeline.stream(
                run.source, batch_size=config.batch_size, seed=config.seed, start=samples,
                blocks=parallel.rows(run.mesh, config.batch_size, repeats=run.source.repeats),
                workers=config.workers, threads=config.threads, quarantine=faults.quarantine))
            batch = next(stream)
        while True:
            faults.note(batch)
            queue.append(parallel.to_device(batch, mesh=run.mesh))
            if len(queue) >= config.prefetch:
                yield queue.popleft()
            batch = next(stream)
