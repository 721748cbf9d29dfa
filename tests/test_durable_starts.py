"""Starts with a second place of checkpoints: whose it is, what is there, and what must not be written over."""

import errno
import os
import pathlib
import shutil
from typing import Any

import places
import pytest
import test_checkpoint as checkpoints
from places import Storage, away, everything, go, save, short, steps_begun, two
from runs import shared_programs  # noqa: F401 (a fixture)

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


def test_of_two_live_starts_the_later_has_the_place(tmp_path: pathlib.Path, storage: Storage) -> None:
    """From a second run directory the same command takes the run up; the first, which still runs, is told once and leaves alone what lies there."""
    said: list[str] = []
    directory, there = tmp_path / "one", tmp_path / "place"
    run_directory.claim(short(), directory, extend=False, fork=False, say=said.append)
    go(directory, there, stop=5)
    first = Durable(Place(str(there), keep_last=1), directory, warn=said.append)
    first.take()
    first.offer(4)
    assert first.wait(seconds=60) and not said and first.steps(needed=True) == [4]
    Durable(Place(str(there)), tmp_path / "two").recall()
    assert first.wait(seconds=60)  # who only looks takes nothing
    requests: list[tuple[str, str]] = []
    storage.fault = lambda operation, path: requests.append((operation, pathlib.Path(path).name))
    assert go(tmp_path / "two", there).step == 6
    names = [operation for operation, name in requests if operation == "get_file" or (operation, name) == ("pipe_file", durable.HOLDER + copies.PART)]
    assert names[0] == "pipe_file" and names.count("pipe_file") == 1 and len(names) > 1  # before it reads what the first might still remove
    before = everything(there)
    first.offer(4)
    assert not first.wait(seconds=60) and everything(there) == before
    assert len(said) == 2 and f"another start has taken {there} ({tmp_path / 'two'} on " in said[0] and "checkpoint 4 is not in" in said[1]
    assert not first.fetch(4, into=tmp_path / "fetched") and "cannot be used: another start has taken the place" in said[2]
    first.forget(0)
    assert not (directory / durable.CUT).exists() and first.steps(needed=True) == [] and not first.wait(seconds=60) and everything(there) == before


def test_what_a_start_cut_off_after_it_lost_the_place_is_left_alone(tmp_path: pathlib.Path) -> None:
    """It went back before it knew of the loss; its next start removes nothing of what the later start copied."""
    said: list[str] = []
    one, saver = two(tmp_path, run="one", here=9, keep_last=9, said=said.append)
    one.take()
    save(one, saver, 1, 2, 3)
    other, others = two(tmp_path, run="other", here=9, keep_last=9)
    other.take()
    saver.retreat(2)
    one.wait(seconds=60)
    assert "another start has taken" in said[-1] and (tmp_path / "one" / durable.CUT).exists()
    save(other, others, 6)
    for closed in (saver, other, others):
        closed.close()
    again, saver = two(tmp_path, run="one", here=9, keep_last=9)
    assert again.steps(needed=True) == [1, 2, 3, 6]
    again.take()
    save(again, saver, 7)
    assert again.steps(needed=True) == steps_begun(tmp_path / "place") == [1, 2, 3, 6, 7] and not (tmp_path / "one" / durable.CUT).exists()
    saver.close()


@pytest.mark.parametrize("what", ["step", "best"])
def test_a_start_that_loses_the_place_amid_a_copy_completes_none(what: str, tmp_path: pathlib.Path, storage: Storage) -> None:
    """Files went over before the other start came; the manifest, which makes a copy of them, is no longer written."""
    one, saver = two(tmp_path, run="one")
    other, others = two(tmp_path, run="other")
    one.take()
    save(one, saver, 1)
    lost: list[str] = []

    def fault(operation: str, path: str) -> None:
        if operation == "open" and f"/{'best/' if what == 'best' else '00000002'}" in path and not lost:
            lost.append(path)
            other.take()

    storage.fault = fault
    if what == "best":
        shutil.copytree(tmp_path / "one" / "checkpoints" / "00000001", tmp_path / "one" / "best" / "00000001")
    saver.save(2, checkpoints.state(seed=2)[0], meta={"config": "{}", "samples": 8, "step": 2})
    saver.wait()
    assert not one.wait(seconds=60) and lost
    manifests = {name for name in everything(tmp_path / "place") if name.endswith("files.json")}
    assert manifests == {"00000001/files.json"} | ({"00000002/files.json"} if what == "best" else set())
    for closed in (saver, others, one, other):
        closed.close()


@pytest.mark.parametrize("moment", ["before", "after", "taken"])
def test_what_was_cut_off_outlives_a_start_that_ends_while_it_takes_the_place(tmp_path: pathlib.Path, storage: Storage, moment: str) -> None:
    """Before its token is there, right after, or later: the next start neither takes an abandoned step nor keeps it."""
    place, saver = two(tmp_path, here=9, keep_last=9)
    place.take()
    save(place, saver, 1, 2, 3)
    storage.fault = lambda operation, path: away("", "") if operation in ("rm", "rm_file") else None
    saver.retreat(1)
    place.wait(seconds=60)
    assert place.failures
    saver.close()
    place.close()
    cut, noted = tmp_path / "run" / durable.CUT, []

    def fault(operation: str, path: str) -> None:
        if operation == "pipe_file" and path.endswith(durable.HOLDER + copies.PART):
            noted.append(cut.read_text())
            if moment == "before":
                away("", "")

    storage.fault = fault
    place, saver = two(tmp_path, here=9, keep_last=9)
    place.take()
    assert noted and place.failures == (moment == "before")
    if moment == "after":
        cut.write_text(noted[0])
    saver.close()
    storage.fault = lambda operation, path: None
    place, saver = two(tmp_path, here=9, keep_last=9)
    assert place.steps(needed=True) == [1]
    place.take()
    save(place, saver, 4)
    assert steps_begun(tmp_path / "place") == [1, 4] and not cut.exists()
    saver.close()


def begun_amid_an_outage(tmp_path: pathlib.Path, storage: Storage, operations: tuple[str, ...], **kw: Any) -> tuple[Durable, Any]:
    """A start that could not take the place of an earlier one, which had saved step 1, because these operations failed; they work again."""
    zero, saver = two(tmp_path, run="zero")
    zero.take()
    save(zero, saver, 1)
    saver.close()
    storage.fault = lambda operation, path: away("", "") if operation in operations else None
    first, saver = two(tmp_path, run="first", **kw)
    first.take()
    storage.fault = lambda operation, path: None
    return first, saver


@pytest.mark.parametrize("operations", [("makedirs",), ("cat_file", "makedirs", "pipe_file")])
def test_a_start_that_could_not_take_the_place_takes_it_from_no_later_one(tmp_path: pathlib.Path, storage: Storage, operations: tuple[str, ...]) -> None:
    """Its network was down, for writing or at all, and is back: the later start goes on copying, and the next one takes the place from whom it finds there."""
    said: list[str] = []
    first, saver = begun_amid_an_outage(tmp_path, storage, operations, said=said.append)
    assert "cannot be written to (ConnectionError" in said[0]
    second, others = two(tmp_path, run="second")
    second.take()
    first.take()
    first.offer(5)
    assert not first.wait(seconds=60) and f"another start has taken {tmp_path / 'place'} ({tmp_path / 'second'} on " in said[1]
    save(second, others, 6)
    assert second.steps(needed=True) == [1, 6]
    others.close()
    saver.close()
    (tmp_path / "place" / durable.HOLDER).write_text("/run on a host, start 1 at 2999-01-01T00:00:00+00:00")  # whose clock is wrong
    third, saver = two(tmp_path, run="third")
    third.take()
    save(third, saver, 7)
    saver.close()


@pytest.mark.parametrize("operations", [("makedirs",), ("cat_file", "makedirs", "pipe_file")])
def test_after_an_outage_at_its_beginning_a_start_takes_the_place_from_an_earlier_one(tmp_path: pathlib.Path, storage: Storage, operations: tuple[str, ...]) -> None:
    """With the first copy."""
    first, saver = begun_amid_an_outage(tmp_path, storage, operations)
    assert first.failures == 1
    save(first, saver, 2)
    assert first.steps(needed=True) == [1, 2] and first.failures == 1
    saver.close()


def test_a_copy_beyond_the_total_is_told(tmp_path: pathlib.Path) -> None:
    """Of a longer run whose directory is gone: it would train on without end and write over what lies there."""
    place = tmp_path / "place"
    run_directory.claim(short(), tmp_path / "run", extend=False, fork=False, say=lambda line: None)
    go(tmp_path / "run", place)
    shutil.rmtree(tmp_path / "run")
    before, shorter = everything(place), short(4)
    run_directory.claim(shorter, tmp_path / "run", extend=True, fork=False, say=lambda line: None, place=Durable(Place(str(place)), tmp_path / "run"))
    with pytest.raises(UserError, match=r"the newest checkpoint in \S+/run and \S+/place is of step 6, beyond the total of 4; allowed are 6 and more"):
        go(tmp_path / "run", place, total=4, stop=3)
    assert everything(place) == before


def test_a_place_that_is_a_file_is_told_before_the_run_begins(tmp_path: pathlib.Path) -> None:
    """Every copy would fail for as long as the run lasts; a place that is not there yet is made."""
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        with pytest.raises(UserError, match=rf"{place} cannot be used \((FileExists|NotADirectory)Error"):
            Durable(Place(str(tmp_path / place)), tmp_path / "run").recall()
    Durable(Place(str(tmp_path / "new" / "place")), tmp_path / "run").recall()
    assert (tmp_path / "new" / "place").is_dir()


def test_a_damaged_list_of_what_was_cut_off_is_told(tmp_path: pathlib.Path) -> None:
    """The run must not go on with steps of an abandoned part."""
    (tmp_path / "run").mkdir()
    for text in ("", "[]", '{"beyond": 1}'):
        (tmp_path / "run" / durable.CUT).write_text(text)
        with pytest.raises(UserError, match=rf"{durable.CUT} cannot be read .* remove those, then it"):
            Durable(Place(str(tmp_path / "place")), tmp_path / "run")


def test_a_place_that_somebody_emptied_is_filled_again(tmp_path: pathlib.Path) -> None:
    """No other start has taken it."""
    place, saver = two(tmp_path)
    save(place, saver, 1)
    shutil.rmtree(tmp_path / "place")
    save(place, saver, 2)
    assert place.steps(needed=True) == [2] and place.failures == 0
    saver.close()


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "link/best", "file://{home}/run", "."])
def test_the_run_directory_is_no_place_for_its_copies(tmp_path: pathlib.Path, place: str) -> None:
    """What is no longer kept there would be removed here: the milestones of the run, or a run directory whose name is a date."""
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    address = place.format(home=tmp_path) if "://" in place else str(tmp_path / place)
    with pytest.raises(UserError, match=r"are one folder or lie in one another; allowed is a folder apart from it, or an address"):
        Durable(Place(address), tmp_path / "run")
    for other in (str(tmp_path / "run_place"), "memory://run"):
        Durable(Place(other), tmp_path / "run")


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


def test_a_copy_that_is_cut_off_leaves_what_the_place_says_of_the_run_whole(tmp_path: pathlib.Path, storage: Storage) -> None:
    """A kill or a full disk amid one of its files: the old one stays. Those that did not change are not written again."""
    place, saver = two(tmp_path)
    config = tmp_path / "run" / "config.json"
    config.write_text('{"seed": 0}')
    save(place, saver, 1)
    written: list[str] = []

    def fault(operation: str, path: str) -> None:
        written.extend([pathlib.Path(path).name] if operation == "pipe_file" else [])
        if operation == "mv" and path.endswith(f"config.json{copies.PART}"):
            away("", "")

    storage.fault = fault
    save(place, saver, 2)
    assert written and not {f"{name}{copies.PART}" for name in ("config.json", ownership.OWNER)} & set(written)
    assert all(name.endswith(copies.PART) for name in written)  # opening one by its own name empties it
    config.write_text('{"seed": 1, "more": 2}')
    place.offer(2)
    assert not place.wait(seconds=60) and (tmp_path / "place" / "config.json").read_text() == '{"seed": 0}'
    storage.fault = lambda operation, path: None
    assert place.wait(seconds=60) and (tmp_path / "place" / "config.json").read_text() == config.read_text()
    assert not list((tmp_path / "place").rglob(f"*{copies.PART}"))
    saver.close()


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
    assert {path.name for path in there.iterdir() if not path.name.endswith(copies.PART)} == {durable.HOLDER, *[ownership.OWNER, "config.json"][:written]}
    storage.fault = lambda operation, path: None
    Durable(Place(str(there)), run, warn=said.append).recall()
    shutil.rmtree(run)
    assert claimed().steps(needed=True) == [] and (run / ownership.OWNER).exists() == (written == 2)
    place, saver = two(tmp_path)
    place.take()
    save(place, saver, 2)
    assert place.steps(needed=True) == [2] and (there / ownership.OWNER).read_bytes() == (run / ownership.OWNER).read_bytes()
    saver.close()


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
