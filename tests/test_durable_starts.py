"""Starts with a second place of checkpoints: which of several has it, what is there, and what must not be written over."""

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
from videomae_jax.errors import UserError

pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.usefixtures("collected")]
quick, storage = places.quick, places.storage


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
def test_a_start_that_could_not_take_the_place_takes_it_from_no_later_one(
        tmp_path: pathlib.Path, storage: Storage, operations: tuple[str, ...]) -> None:
    """Its network was down, for writing or at all, and is back.

    The later start goes on copying, and the next one takes the place from whom it finds there.
    """
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
def test_after_an_outage_at_its_beginning_a_start_takes_the_place_from_an_earlier_one(
        tmp_path: pathlib.Path, storage: Storage, operations: tuple[str, ...]) -> None:
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
    told = r"the newest checkpoint in \S+/run and \S+/place is of step 6, beyond the total of 4; allowed are 6 and more"
    with pytest.raises(UserError, match=told):
        go(tmp_path / "run", place, total=4, stop=3)
    assert everything(place) == before


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
