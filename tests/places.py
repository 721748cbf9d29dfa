"""Second places of checkpoints in tests: on storage with faults, with states whose seed is their step, or of the smallest run."""

import gc
import io
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import fsspec
import pytest
import test_checkpoint as checkpoints
import test_train as loops

from videomae_jax import copies, durable, train
from videomae_jax.assembly import Assembly
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.durable import Durable, Place
from videomae_jax.upkeep import Safety


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tries come at once."""
    monkeypatch.setattr(durable, "RETRY", (0.02, 0.02))
    monkeypatch.setattr(copies, "PAUSE", 0.001)
    yield
    gc.collect()


class Storage:
    """A file system in which `fault(operation, path)` is called first, and `spoil(path, bytes)` says what of a written file arrives."""

    def __init__(self, fs: Any, /) -> None:
        self.fs, self.fault, self.spoil = fs, lambda operation, path: None, lambda path, raw: raw

    def __getattr__(self, name: str) -> Any:
        def call(path: str = "", *args: Any, **kw: Any) -> Any:
            self.fault(name, path)
            if name == "open" and "wb" in args:
                storage = self

                class Written(io.BytesIO):
                    def close(self) -> None:
                        if not self.closed:
                            storage.fs.pipe_file(path, storage.spoil(path, self.getvalue()))
                        super().close()
                return Written()
            return getattr(self.fs, name)(path, *args, **kw) if path else getattr(self.fs, name)(*args, **kw)
        return call


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Storage:
    """What every place of the test lies on."""
    plain = fsspec.core.url_to_fs
    found = Storage(plain("/")[0])
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda path: (found, plain(path)[1]))
    return found


def away(operation: str, path: str) -> None:
    """An outage."""
    raise ConnectionError("no route to host")


def two(folder: pathlib.Path, /, *, said: Callable[[str], None] = lambda line: None, here: int = 2, keep_last: int = 2, keep_every: int = 0,
        run: str = "run") -> tuple[Durable, Checkpointer]:
    """A place and a checkpointer that hands its steps there."""
    (folder / run).mkdir(parents=True, exist_ok=True)
    place = Durable(Place(str(folder / "place"), keep_last, keep_every), folder / run, warn=said)
    return place, Checkpointer(folder / run / "checkpoints", second=place, warn=said, keep_last=here)


def steps_begun(folder: pathlib.Path, /) -> list[int]:
    """Steps of which a folder holds anything."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def save(place: Durable, saver: Checkpointer, *steps: int) -> None:
    """Saves states whose seed is the step, each copied before the next."""
    for step in steps:
        saver.save(step, checkpoints.state(seed=step)[0], meta={"config": "{}", "samples": 4 * step, "step": step})
        saver.wait()
        assert place.wait(seconds=60)


def newest(saver: Checkpointer) -> int:
    """The step that is restored, whose values are checked."""
    wanted, abstract = checkpoints.state()
    found = saver.latest_good(abstract, rng=wanted.rng)
    checkpoints.equal(found.state, checkpoints.state(seed=found.step)[0])
    return found.step


def short(total: int = 6) -> Assembly:
    """The smallest run, saved at every second step."""
    return loops.build(evaluators__recorder__every="", checkpoint__every=2, total=total)


def go(directory: pathlib.Path, place: pathlib.Path, /, *, total: int = 6, stop: int = -1, said: Callable[[str], None] = lambda line: None) -> train.Result:
    """The run of `short` with a second place."""
    return train.train(short(total), directory, stop=loops.Asked(stop), say=said, trust=(loops.ME,), safety=Safety(second=Place(str(place))))


def everything(folder: pathlib.Path, /) -> dict[str, bytes]:
    """{name: bytes} of all files."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
