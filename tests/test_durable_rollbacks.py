"""Rollbacks of a run with a second place of checkpoints: what is cut off is taken from neither, and the place is never left without a checkpoint."""

import pathlib
import shutil
import threading
import time

import places
import pytest
import test_checkpoint as checkpoints
from places import Storage, away, newest, save, steps_begun, two

from videomae_jax import copies, durable, manifest

pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.usefixtures("collected")]
quick, storage = places.quick, places.storage


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
    assert place.steps(needed=True) == [1, 2] and not (tmp_path / "run" / durable.CUT).exists()
    saver.close()


def test_what_a_rollback_cut_off_outlives_the_process(tmp_path: pathlib.Path, storage: Storage) -> None:
    """While nothing can be removed there, copies of new steps go on, and the next start takes these and none that was cut off, and removes those."""
    said: list[str] = []
    place, saver = two(tmp_path, here=9, keep_last=9)
    save(place, saver, 1, 2, 3)
    storage.fault = lambda operation, path: away("", "") if operation in ("rm", "rm_file") else None
    saver.retreat(1)
    for step in (2, 4):  # the first would take the place of one that was cut off
        saver.save(step, checkpoints.state(seed=step)[0], meta={"config": "{}", "samples": 4 * step, "step": step})
        saver.wait()
        place.wait(seconds=60)
    place.close()
    saver.close()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    place, saver = two(tmp_path, here=9, keep_last=9, said=said.append)
    assert place.steps(needed=True) == saver.candidates() == [1, 4] and (tmp_path / "place" / "00000003").exists()
    assert not place.fetch(3, into=tmp_path / "fetched") and not (tmp_path / "fetched").exists()  # asked for where the new one here is damaged
    assert "the copy of checkpoint 3" in said[-1] and "cannot be used: it is of an abandoned part of the run" in said[-1]
    storage.fault = lambda operation, path: None
    assert newest(saver) == 4 and place.wait(seconds=60)
    assert steps_begun(tmp_path / "place") == [1, 4] and not (tmp_path / "run" / durable.CUT).exists()
    saver.close()


def test_a_copy_of_an_abandoned_step_is_none_of_the_new_one(tmp_path: pathlib.Path, storage: Storage) -> None:
    """It was under way when the run went back, and ended when the same step was saved anew."""
    place, saver = two(tmp_path, here=9, keep_last=9)
    save(place, saver, 1)
    reached, gate = threading.Event(), threading.Event()

    def hold(operation: str, path: str) -> None:
        if operation == "pipe_file" and path.endswith(f"00000003/{manifest.NAME}{copies.PART}"):
            reached.set()
            assert gate.wait(60)

    storage.fault = hold
    for seed in (3, 30):
        saver.save(3, checkpoints.state(seed=seed)[0], meta={"config": "{}", "samples": seed, "step": 3})
        saver.wait()
        assert reached.wait(60)
        if seed == 3:
            saver.retreat(1)
    gate.set()
    assert place.wait(seconds=60) and place.steps(needed=True) == [1, 3]
    assert len({(tmp_path / folder / "00000003" / manifest.NAME).read_bytes() for folder in ("place", "run/checkpoints")}) == 1
    saver.close()


@pytest.mark.parametrize("since", [1, 2])
def test_the_place_is_not_emptied_by_a_rollback(tmp_path: pathlib.Path, since: int) -> None:
    """Where only abandoned steps are there they stay until the one that the run goes on from is copied, be it the step of the way back or older."""
    place, saver = two(tmp_path, here=9, keep_last=1)
    save(place, saver, 1, 3)
    assert steps_begun(tmp_path / "place") == [3]
    saver.retreat(since)
    saver.check()
    assert place.wait(seconds=60) and place.steps(needed=True) == [] and steps_begun(tmp_path / "place") == [3]
    assert newest(saver) == 1
    saver.check()
    assert place.wait(seconds=60) and place.steps(needed=True) == steps_begun(tmp_path / "place") == [1]
    assert place.failures == 0 and not (tmp_path / "run" / durable.CUT).exists()
    saver.close()
