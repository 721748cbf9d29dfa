"""Checkpoints in two places: copied after the commit, read back, kept as asked, taken from the newest good one of both; trouble there stops nothing."""

import gc
import io
import pathlib
import random
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import test_checkpoint as checkpoints
import test_train as loops
from runs import shared_programs  # noqa: F401 (a fixture)

from videomae_jax import durable, events, manifest, metrics, run_directory, train
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.durable import Durable, Place
from videomae_jax.errors import UserError
from videomae_jax.evals import best
from videomae_jax.evals.base import Context
from videomae_jax.upkeep import Safety

pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.usefixtures("collected")]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """New tries come at once."""
    monkeypatch.setattr(durable, "RETRY", (0.02, 0.02))
    monkeypatch.setattr(durable, "PAUSE", 0.001)
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
    plain = durable.fsspec.core.url_to_fs
    found = Storage(plain("/")[0])
    monkeypatch.setattr(durable.fsspec.core, "url_to_fs", lambda path: (found, plain(path)[1]))
    return found


def away(operation: str, path: str) -> None:
    """An outage."""
    raise ConnectionError("no route to host")


def two(folder: pathlib.Path, /, *, said: Callable[[str], None] = lambda line: None, here: int = 2, keep_last: int = 2, keep_every: int = 0) -> tuple[Durable, Checkpointer]:
    """A place and a checkpointer that hands its steps there."""
    (folder / "run").mkdir(parents=True, exist_ok=True)
    place = Durable(Place(str(folder / "place"), keep_last, keep_every), folder / "run", warn=said)
    return place, Checkpointer(folder / "run" / "checkpoints", second=place, warn=said, keep_last=here)


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


def test_each_place_keeps_what_it_is_asked_to(tmp_path: pathlib.Path) -> None:
    """Two here, the newest and every third there; the copies are whole, by the same manifest; an old try of a step leaves nothing behind."""
    place, saver = two(tmp_path, keep_last=1, keep_every=3)
    strange = tmp_path / "place" / "00000004" / "params" / "of an old try"
    strange.parent.mkdir(parents=True)
    strange.write_text("x")
    save(place, saver, 1, 2, 3, 4, 5)
    assert saver.steps() == [4, 5] and place.steps(needed=True) == [3, 5] and place.failures == 0
    for step in (3, 5):
        assert manifest.problem(tmp_path / "place" / f"{step:08d}", step=step) == ""
    assert not strange.exists()
    for keep in ({"keep_last": 0}, {"keep_every": -1}):
        with pytest.raises(UserError, match="allowed are 1 and more"):
            Place("x", **keep)


def test_a_fifth_of_all_requests_fails(tmp_path: pathlib.Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies are complete and read back all the same, because requests are repeated one by one; without that not one copy gets through."""
    def fail(operation: str, path: str) -> None:
        if rng.random() < 0.2:
            failed.append(operation)
            raise ConnectionError("reset by peer")

    rng, failed, storage.fault = random.Random(0), [], fail
    place, saver = two(tmp_path / "a", keep_last=3)
    save(place, saver, 1, 2, 3)
    assert place.steps(needed=True) == [1, 2, 3] and len(failed) > 20
    for step in (1, 2, 3):
        assert manifest.problem(tmp_path / "a" / "place" / f"{step:08d}", step=step) == ""
    shutil.rmtree(tmp_path / "a" / "run" / "checkpoints" / "00000003")
    saver.close()
    _, again = two(tmp_path / "a", keep_last=3)
    assert newest(again) == 3
    again.close()
    monkeypatch.setattr(durable, "TRIES", 1)
    place, saver = two(tmp_path / "b")
    saver.save(1, checkpoints.state(seed=1)[0], meta={"config": "{}", "samples": 4, "step": 1})
    saver.wait()
    assert not place.wait(seconds=20)
    saver.close()


def test_what_was_written_is_read_back(tmp_path: pathlib.Path, storage: Storage) -> None:
    """A storage that flips a bit of a file: an alarm, no checkpoint there, and another try, which is good once the storage is."""
    said: list[str] = []
    storage.spoil = lambda path, raw: bytes([raw[0] ^ 1]) + raw[1:] if "opt" in path and raw else raw
    place, saver = two(tmp_path, said=said.append)
    saver.save(1, checkpoints.state(seed=1)[0], meta={"step": 1})
    saver.wait()
    assert not place.wait(seconds=60)
    assert place.steps(needed=True) == [] and place.failures >= durable.ROW
    assert "does not match its checksum" in said[0] and "training goes on" in said[0] and "checkpoint 1 is not in" in said[-1]
    storage.spoil = lambda path, raw: raw
    assert place.wait(seconds=60) and place.steps(needed=True) == [1]
    place.close()


@pytest.mark.parametrize("kind", ["wiped", "flipped", "cut", "removed"])
def test_the_newest_good_step_of_both_places_is_taken(tmp_path: pathlib.Path, kind: str) -> None:
    """A run directory that is gone, or whose newest checkpoint is damaged, costs no step; the damaged one is set aside."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append)
    save(place, saver, 1, 2)
    saver.close()
    if kind == "wiped":
        shutil.rmtree(tmp_path / "run")
    else:
        checkpoints.damage(tmp_path / "run" / "checkpoints" / "00000002", kind, random.Random(0))
    place, saver = two(tmp_path, said=said.append)
    assert newest(saver) == 2 and saver.steps() == ([2] if kind == "wiped" else [1, 2])
    assert "checkpoint 2 is brought back" in "".join(said) and (tmp_path / "run" / "checkpoints_damaged" / "00000002").exists() == (kind != "wiped")
    save(place, saver, 3)
    assert place.steps(needed=True) == [2, 3]
    saver.close()


def test_damage_in_both_places_is_passed_over(tmp_path: pathlib.Path) -> None:
    """Neither the damaged step here nor its damaged copy is taken: the one before is, loudly; a copy that lies elsewhere is none."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append)
    save(place, saver, 1, 2)
    for where in ("run/checkpoints", "place"):
        checkpoints.damage(tmp_path / where / "00000002", "flipped", random.Random(1))
    assert newest(saver) == 1
    assert any("the copy of checkpoint 2" in line and "do not match their checksum" in line for line in said)
    assert place.failures == 1
    (tmp_path / "place" / "00000002" / manifest.NAME).unlink()
    assert place.steps(needed=True) == [1]  # a copy without its manifest was never complete
    saver.close()


def test_an_outage_neither_loses_nor_invents_a_run(tmp_path: pathlib.Path, storage: Storage) -> None:
    """With checkpoints here the run goes on and says so; with none it must not begin anew in silence."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append)
    save(place, saver, 1)
    storage.fault = away
    assert newest(saver) == 1 and any("cannot be listed (ConnectionError" in line and "the run goes on" in line for line in said)
    shutil.rmtree(tmp_path / "run")
    place, saver = two(tmp_path)
    with pytest.raises(UserError, match="the run would begin anew"):
        saver.candidates()
    with pytest.raises(UserError, match="cannot be used"):
        place.recall()
    saver.close()


def test_a_rollback_is_one_in_both_places(tmp_path: pathlib.Path, storage: Storage) -> None:
    """Later steps are not taken from there while they cannot be removed, and are removed when they can."""
    place, saver = two(tmp_path, here=9, keep_last=9)
    save(place, saver, 1, 2, 3)
    storage.fault = lambda operation, path: away("", "") if operation in ("rm", "rm_file") else None
    saver.retreat(1)
    assert saver.steps() == [1] and saver.candidates() == [1] and newest(saver) == 1
    storage.fault = lambda operation, path: None
    deadline = time.monotonic() + 60
    while (tmp_path / "place" / "00000002").exists() or (tmp_path / "place" / "00000003").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    save(place, saver, 2)
    assert place.steps(needed=True) == [1, 2]
    saver.close()


def test_copies_slower_than_saves_skip_steps(tmp_path: pathlib.Path, storage: Storage) -> None:
    """While one is under way only the newest waits; a step that is removed meanwhile is given up, loudly, and nothing else is."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append, keep_last=9)
    gate = [True]

    def slow(operation: str, path: str) -> None:
        while gate[0] and "00000001" in path:
            time.sleep(0.01)

    storage.fault = slow
    for step in (1, 2, 3, 4):
        saver.save(step, checkpoints.state(seed=step)[0], meta={"step": step})
        saver.wait()
    gate[0] = False
    assert place.wait(seconds=60) and place.steps(needed=True) == [4]
    assert any("checkpoint 1 was removed before its copy" in line for line in said)
    saver.close()


def go(directory: pathlib.Path, place: pathlib.Path, /, *, stop: int = -1, said: Callable[[str], None] = lambda line: None) -> train.Result:
    """Six steps, saved at every second, with a second place."""
    return train.train(loops.build(evaluators__recorder__every="", checkpoint__every=2), directory, stop=loops.Asked(stop), say=said, trust=(loops.ME,),
                       safety=Safety(second=Place(str(place))))


def test_a_run_outlives_its_directory_and_an_outage(tmp_path: pathlib.Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at step 4 and wiped, the run goes on at 4 from the place, with the same bits and metrics, what its data are and its best weights.

    An outage to the end costs alarms alone.
    """
    said: list[str] = []
    storage.fault = lambda operation, path: away("", "") if operation in ("open", "pipe_file", "makedirs") else None
    straight = go(tmp_path / "straight", tmp_path / "nowhere", said=said.append)
    assert straight.finished and not (tmp_path / "nowhere").exists()
    assert any("checkpoint 6 is not in" in line and "no route to host" in line for line in said)
    assert any(line["event"] == "durable place" for line in events.read(tmp_path / "straight"))
    assert max(line.get("durable_failures", 0) for line in metrics.read(tmp_path / "straight")) >= 1
    storage.fault = lambda operation, path: None
    run = loops.build(evaluators__recorder__every="", checkpoint__every=2)
    run_directory.claim(run, tmp_path / "run", extend=False, fork=False, say=said.append)
    (tmp_path / "run" / "classes.json").write_text('["a"]')
    for step in (1, 2):
        best.keep(Context(run, run.create().params, {}, step, tmp_path / "run"), step / 10, metric="top1")
        if step == 1:
            go(tmp_path / "run", tmp_path / "place", stop=1)
    assert go(tmp_path / "run", tmp_path / "place", stop=5).step == 4
    kept = {path.relative_to(tmp_path / "run"): path.read_bytes() for path in (tmp_path / "run" / "best").rglob("*") if path.is_file()}
    assert [path.name for path in (tmp_path / "place" / "best").iterdir()] == ["00000002"]
    shutil.rmtree(tmp_path / "run")
    Durable(Place(str(tmp_path / "place")), tmp_path / "run").recall()
    assert {path.relative_to(tmp_path / "run"): path.read_bytes() for path in (tmp_path / "run" / "best").rglob("*") if path.is_file()} == kept
    assert (tmp_path / "run" / "classes.json").read_text() == '["a"]' and best.load(Context(run, {}, {}, 5, tmp_path / "run"))[0] == 2
    with pytest.raises(UserError, match="; data: 64 clips, .* -> 48 clips"):
        run_directory.claim(loops.build(evaluators__recorder__every="", data__length=48), tmp_path / "run", extend=False, fork=False, say=said.append)
    again = go(tmp_path / "run", tmp_path / "place")
    assert again.finished and again.first == 4
    loops.equal(again.state.params, straight.state.params)
    one, two = ([{k: v for k, v in line.items() if k not in metrics.TIMING} for line in metrics.read(d)] for d in (tmp_path / "run", tmp_path / "straight"))
    assert [line for line in one if "loss" in line] == [line for line in two if "loss" in line]


def test_best_weights_that_cannot_be_copied_or_used(tmp_path: pathlib.Path) -> None:
    """Those that better ones replaced meanwhile are no failure; damaged ones here hold up no checkpoint, and there they are left out."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append)
    (tmp_path / "run" / "config.json").write_text("{}")
    place.own()
    shutil.copytree(tmp_path / "run" / "checkpoints", tmp_path / "run" / "best")
    (tmp_path / "run" / "best" / "00000007").symlink_to(tmp_path / "gone")
    save(place, saver, 1)
    assert place.failures == 0 and not (tmp_path / "place" / "best").exists()
    (tmp_path / "run" / "best" / "00000007").unlink()
    shutil.copytree(tmp_path / "run" / "checkpoints" / "00000001", tmp_path / "run" / "best" / "00000001")
    save(place, saver, 2)
    checkpoints.damage(tmp_path / "run" / "best" / "00000001", "flipped", random.Random(0))
    shutil.rmtree(tmp_path / "place" / "best")
    save(place, saver, 3)
    assert place.failures == 1 and [line for line in said if "cannot be copied" in line] == [line for line in said if "the best weights of step 1 cannot be copied" in line]
    shutil.rmtree(tmp_path / "run" / "best")
    shutil.copytree(tmp_path / "run" / "checkpoints" / "00000003", tmp_path / "run" / "best" / "00000003")
    save(place, saver, 4)
    saver.close()
    checkpoints.damage(tmp_path / "place" / "best" / "00000003", "flipped", random.Random(0))
    shutil.rmtree(tmp_path / "run")
    place, saver = two(tmp_path, said=said.append)
    place.recall()
    saver.close()
    assert any("the best weights in" in line and "the run goes on without them" in line for line in said)
    assert (tmp_path / "run" / "config.json").exists() and not list((tmp_path / "run" / "best").iterdir())


def test_an_outage_at_the_start_of_a_run_that_has_begun(tmp_path: pathlib.Path, storage: Storage) -> None:
    """The run goes on with what is in its directory; one that has never used the place is refused."""
    said: list[str] = []
    storage.fault = away
    (tmp_path / "run").mkdir()
    place = Durable(Place(str(tmp_path / "place")), tmp_path / "run", warn=said.append)
    with pytest.raises(UserError, match="cannot be used .*no route to host"):
        place.recall()
    (tmp_path / "run" / durable.OWNER).write_text('{"run": "this", "place": "elsewhere"}')
    with pytest.raises(UserError, match="cannot be used"):
        place.recall()
    (tmp_path / "run" / durable.OWNER).unlink()
    place.own()
    place.recall()
    assert place.failures == 1 and "no route to host); the run goes on with what is in" in said[0]


def test_a_place_belongs_to_one_run(tmp_path: pathlib.Path) -> None:
    """Another run directory that holds a run is refused; a new one takes the run up; names that leave the place are refused."""
    place, saver = two(tmp_path / "a")
    (tmp_path / "a" / "run" / "config.json").write_text('{"name": "a"}')
    place.own()
    save(place, saver, 1)
    saver.close()
    (tmp_path / "b").mkdir()
    other = Durable(Place(str(tmp_path / "a" / "place")), tmp_path / "b")
    other.recall()
    assert (tmp_path / "b" / "config.json").read_text() == '{"name": "a"}'
    (tmp_path / "b" / durable.OWNER).write_text('{"run": "other"}')
    with pytest.raises(UserError, match="holds checkpoints of another run"):
        other.recall()
    with pytest.raises(UserError, match="cannot be reached"):
        Durable(Place("strange://x"), tmp_path)


def test_a_place_that_is_a_file_is_told_before_the_run_begins(tmp_path: pathlib.Path) -> None:
    """Every copy would fail for as long as the run lasts; a place that is not there yet is made."""
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        with pytest.raises(UserError, match=rf"{place} cannot be used \((FileExists|NotADirectory)Error"):
            Durable(Place(str(tmp_path / place)), tmp_path / "run").recall()
    Durable(Place(str(tmp_path / "new" / "place")), tmp_path / "run").recall()
    assert (tmp_path / "new" / "place").is_dir()
