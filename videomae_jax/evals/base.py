"""What an evaluator is given and what it returns."""

import collections
import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import ml_collections

from videomae_jax import config as configs
from videomae_jax import metrics, parallel
from videomae_jax.assembly import Assembly
from videomae_jax.data import pipeline
from videomae_jax.stopping import InterruptedEvaluation, shielded
from videomae_jax.types import Array, Batch, Extra, Key, Params


def evaluation_source(config: ml_collections.ConfigDict, /, *, split: str, trust: tuple[str, ...] = ()) -> Any:
    """The run's data with the changes of `config.eval_data` and one split: no augmentation, no repeats."""
    fields = {**dict(config.data.items()), **dict(config.eval_data.items())}
    if "split" in fields:
        fields["split"] = split
    return configs.build(fields, trust=trust)


@dataclasses.dataclass(frozen=True)
class Context:
    """A trained state seen by an evaluator: `params` are the averaged weights where the run keeps them, `extra` holds the frozen ones.

    `directory` is the run directory, where an evaluator may leave pictures and tables (the lead process alone). While
    `stopping` is true no more batches come. `training` is False where a run is only looked at, perhaps while another process trains it.
    """

    assembly: Assembly
    params: Params
    extra: Extra
    step: int
    directory: pathlib.Path
    trust: tuple[str, ...] = ()
    stopping: Callable[[], bool] = lambda: False
    training: bool = True

    @property
    def rng(self) -> Key:
        """The same key at every step of a run, so that all evaluations see the same masks."""
        return parallel.put(jax.random.key(self.assembly.config.seed + 1), mesh=self.assembly.mesh)

    def source(self, split: str, /) -> Any:
        """The evaluation source of a split."""
        return evaluation_source(self.assembly.config, split=split, trust=self.trust)

    @contextlib.contextmanager
    def leaving(self, path: pathlib.Path, /) -> Iterator[None]:
        """Within it the lead writes `path`, which an evaluator leaves beside its values. While a run trains, a full disk is said and costs these files:
        the values are kept, and the checkpoint that is saved next. Where a run is only looked at it raises OSError."""
        with metrics.tolerant(str(path)) if self.training else contextlib.nullcontext():
            yield

    def sweep(self, source: Any, /, *, batch_size: int) -> Iterator[Batch]:
        """Device batches of one ordered pass; the last one is padded with rows whose `valid` is False.

        Every process must take equally many. Raises InterruptedEvaluation when the run is asked to stop.
        """
        config, mesh = self.assembly.config, self.assembly.mesh
        ways = parallel.batch_ways(mesh)
        size = -(-batch_size // ways) * ways
        with contextlib.ExitStack() as stack:
            with shielded():
                stream = stack.enter_context(pipeline.sweep(
                    source, batch_size=size, blocks=parallel.rows(mesh, size, repeats=source.repeats), seed=config.seed,
                    workers=config.workers, threads=config.threads))
                batch = next(stream, None)
            while batch is not None:
                if self.stopping():
                    raise InterruptedEvaluation
                yield parallel.to_device(batch, mesh=mesh)
                batch = next(stream, None)

    def results(self, program: Callable[[Batch], Any], source: Any, /, *, batch_size: int) -> Iterator[Any]:
        """What `program` gives for every batch of a sweep, as numpy arrays; errors as there.

        The next batch is under way before a result is waited for, so that the devices do not wait for the host between two.
        """
        running: collections.deque[Any] = collections.deque()
        for batch in self.sweep(source, batch_size=batch_size):
            running.append(program(batch))
            if len(running) > 1:
                yield jax.device_get(running.popleft())
        for found in running:
            yield jax.device_get(found)


class Evaluator(Protocol):
    """`every` is a duration; the trainer also runs each evaluator before the first and after the last step.

    One with a field `weights` of "best" comes after the others, which may have to choose them first.
    """

    every: str

    def run(self, context: Context, /) -> dict[str, float]:
        """Named results, logged as "<evaluator>/<name>"."""


def readable(batch: Batch, /) -> Array:
    """bool [B]: rows that are no padding, and no substitute of a clip that cannot be read: the split does not hold it twice."""
    return batch["valid"] & (batch["fault"] == 0)


@runtime_checkable
class Headlined(Protocol):
    """An evaluator with something to say in summary.json."""

    def headline(self, first: Mapping[str, float], last: Mapping[str, float], /) -> dict[str, Any]:
        """Entries of summary.json from the first and the latest results of the run."""
