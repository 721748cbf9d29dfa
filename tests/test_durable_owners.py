"""Whose a second place of checkpoints is, what is no such place, and how a run is taken up from there, amid outages and full disks too."""

import errno
import os
import pathlib
import shutil
from typing import Any

import places
import pytest
import test_checkpoint as checkpoints
from places import Storage, away, everything, save, short, steps_begun, two

from videomae_jax import copies, durable, ownership, run_directory
from videomae_jax.durable import Durable, Place
from videomae_jax.errors import StorageError, UserError

pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.usefixtures("collected")]
quick, storage = places.quick, places.storage


def test_an_outage_at_the_start_of_a_run_that_has_begun(tmp_path: pathlib.Path, storage: Storage) -> None:
    """The run goes on with what is in its directory; one that has never used the place is refused."""
    said: list[str] = []
    storage.fault = away
    (tmp_path / "run").mkdir()
    place = Durable(Place(str(tmp_path / "place")), tmp_path / "run", warn=said.append)
    with pytest.raises(UserError, match="cannot be used .*no route to host"):
        place.recall()
    (tmp_path / "run" / ownership.OWNER).write_text('{"run": "this", "place": "elsewhere"}')
    with pytest.raises(UserError, match="cannot be used"):
        place.recall()
    (tmp_path / "run" / ownership.OWNER).unlink()
    place.own()
    place.recall()
    assert place.failures == 1 and "no route to host); the run goes on with what is in" in said[0]


def test_an_outage_at_the_start_of_a_run_that_changed_its_place(tmp_path: pathlib.Path, storage: Storage) -> None:
    """It goes on with the place that it used last, however that is written, and is the same run in the one before."""
    said: list[str] = []
    _, saver = two(tmp_path)
    (tmp_path / "run" / "config.json").write_text("{}")
    for name in ("first", "second"):
        place = Durable(Place(str(tmp_path / name)), tmp_path / "run", warn=said.append)
        place.recall()
        saver.save(1 + (name == "second"), checkpoints.state(seed=1)[0], meta={"step": 1})
        saver.wait()
        place.take()
        place.offer(saver.steps()[-1])
        assert place.wait(seconds=60) and not said
    saver.close()
    Durable(Place(str(tmp_path / "first")), tmp_path / "run").recall()
    storage.fault = away
    Durable(Place(f"{tmp_path / 'second'}/"), tmp_path / "run", warn=said.append).recall()
    assert "no route to host); the run goes on with what is in" in said[0]
    with pytest.raises(UserError, match="cannot be used"):
        Durable(Place(str(tmp_path / "first")), tmp_path / "run").recall()


@pytest.mark.parametrize("mark", ["", "[]"])
def test_a_mark_that_is_cut_off_is_no_other_run(tmp_path: pathlib.Path, mark: str) -> None:
    """Of an earlier version, which a kill ended amid it: here and there it is the same; it is left as it is."""
    for folder in ("run", "place"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}")
        (tmp_path / folder / ownership.OWNER).write_text(mark)
    place = Durable(Place(str(tmp_path / "place")), tmp_path / "run")
    place.recall()
    place.own()
    assert (tmp_path / "run" / ownership.OWNER).read_text() == mark
    (tmp_path / "run" / ownership.OWNER).write_text("{")
    with pytest.raises(UserError, match="holds checkpoints of another run"):
        place.recall()


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
    (tmp_path / "b" / ownership.OWNER).write_text('{"run": "other"}')
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


def test_folders_that_no_run_began_are_not_taken_for_copies(tmp_path: pathlib.Path) -> None:
    """A folder of days beside one another, given as the place: they would go with the first removal."""
    day = tmp_path / "place" / "20261127"
    day.mkdir(parents=True)
    place = Durable(Place(str(tmp_path / "place")), tmp_path / "run")
    with pytest.raises(UserError, match="holds '20261127', which no run's copies began"):
        place.recall()
    (tmp_path / "run").mkdir()
    place.own()  # a run that used it before: somebody removed its mark there
    place.recall()
    assert day.is_dir()


@pytest.mark.parametrize(("marked", "folder", "used"), [
    (False, "checkpoints", False), (False, "best", False), (False, "", False), (True, "checkpoints", False), (True, "checkpoints", True)])
def test_the_directory_of_another_run_is_no_place(tmp_path: pathlib.Path, marked: bool, folder: str, used: bool) -> None:
    """Its books would be written over and its best weights dropped; one that has a place of its own is marked like a place. It stays as it is."""
    old, run = tmp_path / "old", tmp_path / "run"
    for name in ("config.json", "metrics.jsonl", *[ownership.OWNER] * marked, *[f"{folder}/00000900/params"] * bool(folder)):
        (old / name).parent.mkdir(parents=True, exist_ok=True)
        (old / name).write_text('{"run": "old", "place": "gs://bucket/old"}')
    before, place = everything(old), Durable(Place(str(old)), run)
    run.mkdir()
    if used:  # an earlier version has copied there
        place.own()
    with pytest.raises(UserError, match=f"old holds '{folder or 'config.json'}', which no run's copies began"):
        place.recall()
    assert everything(old) == before and not (run / "config.json").exists()


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_first_copy_that_is_cut_off_keeps_no_run_from_the_place(tmp_path: pathlib.Path, storage: Storage, written: int) -> None:
    """No step is there yet: where the run directory is gone the run begins anew, with the config that is there if there is one; else it goes on."""
    def fault(operation: str, path: str) -> None:
        if operation == "mv" and path.endswith(copies.PART) and not path.endswith(durable.HOLDER + copies.PART):
            moved.append(path)
            if len(moved) > written:
                away("", "")

    def claimed() -> Durable:
        place = Durable(Place(str(there)), run, warn=said.append)
        run_directory.claim(short(), run, extend=False, fork=False, say=said.append, place=place)
        return place

    there, run, said, moved = tmp_path / "place", tmp_path / "run", [], []
    claimed()
    place, saver = two(tmp_path, said=said.append)
    storage.fault = fault
    saver.save(1, checkpoints.state(seed=1)[0], meta={"config": "{}", "samples": 4, "step": 1})
    saver.wait()
    assert not place.wait(seconds=60)
    saver.close()
    place.close()
    place._thread.join(60)  # the try that is under way fails too
    names = {path.name for path in there.iterdir() if not path.name.endswith(copies.PART)}
    assert names == {durable.HOLDER, *[ownership.OWNER, "config.json"][:written]}
    storage.fault = lambda operation, path: None
    Durable(Place(str(there)), run, warn=said.append).recall()
    shutil.rmtree(run)
    assert claimed().steps(needed=True) == [] and (run / ownership.OWNER).exists() == (written == 2)
    place, saver = two(tmp_path)
    place.take()
    save(place, saver, 2)
    assert place.steps(needed=True) == [2] and (there / ownership.OWNER).read_bytes() == (run / ownership.OWNER).read_bytes()
    saver.close()


def test_an_outage_after_the_place_has_shown_its_run_passes(tmp_path: pathlib.Path, storage: Storage) -> None:
    """A place that lists its mark is the right one: a supervisor starts the command again, which it never does where the place is a mistake."""
    place = tmp_path / "place"
    place.mkdir()
    for name, text in ((ownership.OWNER, '{"run": "1"}'), ("config.json", "{}")):
        (place / name).write_text(text)
    for operation in ("cat_file", "ls"):
        storage.fault = lambda name, path, operation=operation: away("", "") if name == operation else None
        with pytest.raises(StorageError if operation == "cat_file" else UserError, match=r"place cannot be used \(ConnectionError: no route to host\)"):
            Durable(Place(str(place)), tmp_path / "run").recall()
    assert not (tmp_path / "run").exists() or not everything(tmp_path / "run")


@pytest.mark.parametrize("name", ["checkpoints", "best", "20261127"])
def test_the_object_of_a_folder_itself_is_none_of_its_names(tmp_path: pathlib.Path, storage: Storage, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Consoles of object stores make one, "b/run/checkpoints/", which a listing gives as an entry of the folder."""
    place = tmp_path / name
    place.mkdir()
    plain = storage.fs.ls
    monkeypatch.setattr(storage.fs, "ls", lambda path, *args, **kw: [f"{path}/", *plain(path, *args, **kw)])
    Durable(Place(str(place)), tmp_path / "run").recall()
    copies = Durable(Place(str(place)), tmp_path / "run")._copies
    assert copies.names() == [] and copies.begun() == []


@pytest.mark.parametrize("operation", ["get_file", "ls"])
def test_best_weights_that_do_not_arrive_are_not_given_up(tmp_path: pathlib.Path, storage: Storage, operation: str) -> None:
    """The run is not taken up without them: its next evaluation, however bad, would take their place."""
    place, saver = two(tmp_path)
    (tmp_path / "run" / "config.json").write_text("{}")
    saver.save(4, checkpoints.state(seed=4)[0], meta={"step": 4})
    saver.wait()
    shutil.copytree(tmp_path / "run" / "checkpoints" / "00000004", tmp_path / "run" / "best" / "00000004")
    assert place.wait(seconds=60) and steps_begun(tmp_path / "place" / "best") == [4]
    saver.close()
    shutil.rmtree(tmp_path / "run")
    storage.fault = lambda name, path: away("", "") if name == operation and "best/00000004" in path else None
    place = Durable(Place(str(tmp_path / "place")), tmp_path / "run", warn=lambda line: None)
    with pytest.raises(StorageError, match=r"best weights in \S+, of step 4, cannot be brought back \(ConnectionError: no route to host\)"):
        place.recall()
    assert not everything(tmp_path / "run")
    storage.fault = lambda name, path: None
    place.recall()
    assert steps_begun(tmp_path / "run" / "best") == [4] and (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_while_a_run_is_taken_up_leaves_no_half_of_it(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """One line that says so, and the same start goes once there is room."""
    there, run, calls, plain = tmp_path / "place", tmp_path / "run", [], os.replace
    there.mkdir()
    texts = {ownership.OWNER: b'{"run": "1"}', "metrics.jsonl": b'{"step": 1}', "config.json": b"{}"}
    for name, raw in texts.items():
        (there / name).write_bytes(raw)

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        plain(source, target)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match=f"cannot write to --workdir={run}: No space left on device"):
        patch.setattr(os, "replace", replace)
        Durable(Place(str(there)), run, warn=lambda line: None).recall()
    assert all(texts[path.name] == path.read_bytes() for path in run.iterdir()) and not (run / "config.json").exists()
    (run / ".metrics.jsonl.7").write_text("{")  # of a start that was killed there
    run_directory.check_free(run, also=ownership.RUN)
    Durable(Place(str(there)), run, warn=lambda line: None).recall()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == texts | {".metrics.jsonl.7": b"{"}


def test_a_full_disk_leaves_no_half_mark_in_the_run_directory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of it would be told from the one in the place, and the run refused its own copies."""
    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    (tmp_path / "run").mkdir()
    place = Durable(Place(str(tmp_path / "place")), tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left on device"):
        patch.setattr(os, "replace", full)
        place.own()
    assert not list((tmp_path / "run").iterdir())
    place.own()
    assert (tmp_path / "run" / ownership.OWNER).exists()
