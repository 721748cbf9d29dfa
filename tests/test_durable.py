"""Checkpoints in two places: copied after the commit, read back, kept as asked, taken from the newest good one of both.

Trouble there stops nothing.
"""

import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time

import places
import pytest
import test_checkpoint as checkpoints
import test_train as loops
from places import Storage, away, go, newest, save, short, steps_begun, two
from runs import ROOT, shared_programs  # noqa: F401 (a fixture)

from videomae_jax import copies, durable, events, manifest, metrics, run_directory
from videomae_jax.durable import Durable, Place
from videomae_jax.errors import StorageError, UserError
from videomae_jax.evals import best
from videomae_jax.evals.base import Context

pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.usefixtures("collected")]
quick, storage = places.quick, places.storage


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

    rng, failed, storage.fault = random.Random(0), [], fail  # which request has which draw is the threads' affair: no request fails twelve times
    monkeypatch.setattr(copies, "TRIES", 12)
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
    monkeypatch.setattr(copies, "TRIES", 1)
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
    assert "does not match its checksum" in said[0] and "training goes on" in said[0] and any("checkpoint 1 is not in" in line for line in said)
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


@pytest.mark.parametrize("operation", ["get_file", "ls"])
@pytest.mark.parametrize("kind", ["wiped", "flipped"])
def test_an_outage_while_a_checkpoint_comes_back_is_no_damage(tmp_path: pathlib.Path, storage: Storage, kind: str, operation: str) -> None:
    """The run neither goes on from an older step nor gives up: the same command is started again, and takes it."""
    place, saver = two(tmp_path)
    save(place, saver, 1, 2)
    saver.close()
    if kind == "wiped":
        shutil.rmtree(tmp_path / "run" / "checkpoints")
    else:
        checkpoints.damage(tmp_path / "run" / "checkpoints" / "00000002", kind, random.Random(0))
    place, saver = two(tmp_path)
    wanted, abstract = checkpoints.state()
    storage.fault = lambda name, path: away("", "") if name == operation and "/00000002" in path else None
    with pytest.raises(StorageError, match=r"checkpoint 2 cannot be brought back from \S+ \(ConnectionError: no route to host\); start the same"):
        saver.latest_good(abstract, rng=wanted.rng)
    saver.close()
    storage.fault = lambda name, path: None
    place, saver = two(tmp_path)
    assert newest(saver) == 2 and place.failures == 0
    saver.close()


def test_a_step_that_the_place_does_not_hold_is_passed_over(tmp_path: pathlib.Path) -> None:
    """That is an answer, unlike an outage: the damaged newest one here was not copied before the run ended."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append)
    save(place, saver, 1, 2)
    shutil.rmtree(tmp_path / "place" / "00000002")
    checkpoints.damage(tmp_path / "run" / "checkpoints" / "00000002", "flipped", random.Random(0))
    assert newest(saver) == 1 and any("the copy of checkpoint 2" in line and "it is not there" in line for line in said)
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


def test_a_damaged_copy_takes_the_place_of_no_good_one(tmp_path: pathlib.Path) -> None:
    """Where one copy is kept, the steps before the damaged one are there all the same; it goes once the run is past it, or is made anew."""
    place, saver = two(tmp_path, here=9, keep_last=1)
    save(place, saver, 1, 5)
    damaged = tmp_path / "place" / "00000005"
    checkpoints.damage(damaged, "flipped", random.Random(1))
    assert not place.fetch(5, into=tmp_path / "fetched")
    place.offer(1)
    assert place.wait(seconds=60) and place.steps(needed=True) == [1, 5]
    place.offer(5)
    assert place.wait(seconds=60) and place.steps(needed=True) == [5] and manifest.problem(damaged, step=5) == ""
    checkpoints.damage(damaged, "flipped", random.Random(1))
    assert not place.fetch(5, into=tmp_path / "fetched")
    save(place, saver, 6)
    assert place.steps(needed=True) == steps_begun(tmp_path / "place") == [6]
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
    with pytest.raises(StorageError, match="the run would begin anew"):
        saver.candidates()
    with pytest.raises(UserError, match="cannot be used"):
        place.recall()
    storage.fault = lambda operation, path: away("", "") if operation == "info" else None
    with pytest.raises(StorageError, match="the run would begin anew"):  # nobody knows whether its manifest is there
        saver.candidates()
    storage.fault = lambda operation, path: away("", "") if operation == "ls" else None
    with pytest.raises(UserError, match="cannot be used"):
        place.recall()
    saver.close()


def test_copies_slower_than_saves_skip_steps(tmp_path: pathlib.Path, storage: Storage) -> None:
    """While one is under way only the newest waits; a step that is removed meanwhile is given up, loudly, and nothing else is."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append, keep_last=9)
    reached, gate = threading.Event(), threading.Event()

    def slow(operation: str, path: str) -> None:
        if operation == "open" and "00000001" in path:
            reached.set()
            assert gate.wait(60)

    storage.fault = slow
    for step in (1, 2, 3, 4):
        saver.save(step, checkpoints.state(seed=step)[0], meta={"step": step})
        saver.wait()
        assert reached.wait(60)
    gate.set()
    assert place.wait(seconds=60) and place.steps(needed=True) == steps_begun(tmp_path / "place") == [4]
    assert any("checkpoint 1 was removed before its copy" in line for line in said)
    saver.close()


def test_a_step_that_is_removed_as_its_copy_begins_leaves_none(tmp_path: pathlib.Path, storage: Storage) -> None:
    """Between the reading of its manifest and the listing of its files; where no folder is needed, a copy without any would be complete."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append)
    step = tmp_path / "run" / "checkpoints" / "00000001"

    def fault(operation: str, path: str) -> None:
        if operation == "cat_file" and path.endswith(f"00000001/{manifest.NAME}"):
            shutil.rmtree(step, ignore_errors=True)
        if operation == "pipe_file":  # as on an object store
            pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)

    storage.fault = fault
    saver.save(1, checkpoints.state(seed=1)[0], meta={"step": 1})
    saver.wait()
    assert place.wait(seconds=60) and not step.exists()
    assert place.steps(needed=True) == steps_begun(tmp_path / "place") == [] and "checkpoint 1 was removed before its copy" in said[-1]
    saver.close()


def test_a_copy_that_never_ends_holds_up_no_exit(tmp_path: pathlib.Path) -> None:
    """The address answers no more: a run that was told to stop leaves with its own code before it is killed."""
    code = ("import pathlib, sys, threading\nfrom videomae_jax import manifest\nfrom videomae_jax.durable import Durable, Place\n"
            "run = pathlib.Path(sys.argv[1])\nsource = run / 'checkpoints' / '00000001'\nsource.mkdir(parents=True)\n"
            "for name in 'abcdef':\n    (source / name).touch()\nmanifest.write(source, step=1)\nplace = Durable(Place(sys.argv[2]), run)\n"
            "plain, reached = place._copies._fs.plain, threading.Event()\nopened = plain.open\n"
            "def silent(path, mode, *rest, **kw):\n    if mode == 'rb' or '00000001' not in path:\n        return opened(path, mode, *rest, **kw)\n"
            "    reached.set()\n    threading.Event().wait()\nplain.open = silent\n"
            "place.offer(1)\nassert reached.wait(60) and not place.wait(seconds=0)\nplace.close()\nsys.exit(75)")
    words = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "place")]
    assert subprocess.run(words, cwd=ROOT, timeout=120, check=False).returncode == 75


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
    run = short()
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
    one, two = ([{k: v for k, v in line.items() if k not in metrics.TIMING} for line in metrics.read(tmp_path / name) if "loss" in line]
                for name in ("run", "straight"))
    assert one == two


def test_the_last_best_weights_are_copied_at_the_second_try(tmp_path: pathlib.Path, storage: Storage) -> None:
    """No checkpoint comes after them with which they could be tried again."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append)
    save(place, saver, 1)
    shutil.copytree(tmp_path / "run" / "checkpoints" / "00000001", tmp_path / "run" / "best" / "00000001")
    storage.fault = lambda operation, path: away("", "") if "/best/" in path and not said else None
    save(place, saver, 2)
    assert len(said) == 1 and "the best weights cannot be copied to" in said[0]
    assert manifest.problem(tmp_path / "place" / "best" / "00000001", step=1) == ""
    shutil.copytree(tmp_path / "run" / "checkpoints" / "00000002", tmp_path / "run" / "best" / "00000002")
    assert place.wait(seconds=60) and steps_begun(tmp_path / "place" / "best") == [2]  # of an evaluation after the last save
    saver.close()


def test_best_weights_that_fail_hold_up_no_checkpoint(tmp_path: pathlib.Path, storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that comes while they wait for their next try, nor some that wait at the end of the run."""
    said: list[str] = []
    place, saver = two(tmp_path, said=said.append, here=9, keep_every=1)
    saver.save(1, checkpoints.state(seed=1)[0], meta={"step": 1})
    saver.wait()
    shutil.copytree(tmp_path / "run" / "checkpoints" / "00000001", tmp_path / "run" / "best" / "00000001")
    assert place.wait(seconds=60) and place.steps(needed=True) == [1]
    shutil.rmtree(tmp_path / "place" / "best")
    monkeypatch.setattr(durable, "RETRY", (1000.0, 1000.0))
    reached, gate = threading.Event(), threading.Event()

    def fault(operation: str, path: str) -> None:
        if "/best/" in path:
            away("", "")
        if "00000003" in path:
            reached.set()
            assert gate.wait(60)

    storage.fault = fault
    deadline = time.monotonic() + 60
    for step in range(2, 9):
        saver.save(step, checkpoints.state(seed=step)[0], meta={"step": step})
        saver.wait()
        while step in (2, 3) and not (tmp_path / "place" / "00000002" / manifest.NAME).exists() or not said:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert reached.wait(60)
    gate.set()
    monkeypatch.setattr(durable, "RETRY", (0.02, 0.02))
    assert not place.wait(seconds=60) and place.steps(needed=True) == list(range(1, 9))
    assert any("the best weights are not in" in line for line in said)
    saver.close()


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
    saver.save(3, checkpoints.state(seed=3)[0], meta={"config": "{}", "samples": 12, "step": 3})
    saver.wait()
    assert not place.wait(seconds=60) and 3 in place.steps(needed=True) and any("the best weights are not in" in line for line in said)
    assert place.failures >= durable.ROW and all("the best weights cannot be copied" in line for line in said if " not in " not in line)
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
