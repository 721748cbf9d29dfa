"""Processes that go on together: none chooses by a listing of its own."""

from typing import Any

import jax
import numpy as np
import pytest

from videomae_jax import agreement
from videomae_jax.errors import StorageError


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The second of two processes, whose first tells steps 10 and 20; the list says which processes find something wrong."""
    wrong = [False, False]

    def gathered(bad: np.ndarray) -> np.ndarray:
        return np.asarray([wrong[0], bool(bad)])

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    told = np.pad([10, 20], (0, agreement.MOST - 2), constant_values=-1)
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all", lambda mine: told)
    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gathered)
    return wrong


def test_a_late_listing_is_waited_for(pair: list[bool]) -> None:
    """What the first process sees is what counts, here too: no more and no less."""
    listings: list[list[int]] = [[10], [10], [10, 20, 30]]
    assert agreement.numbers(lambda: listings.pop(0), what="checkpoint", seconds=60) == [10, 20] and not listings


@pytest.mark.parametrize("here", [True, False])
def test_all_processes_end_where_one_sees_less(pair: list[bool], here: bool) -> None:
    """Going on from another step than the others would mix their states: a supervisor starts them all again."""
    pair[0] = not here
    said = "process 1 does not see checkpoint 20 after 0.2 s" if here else "process 0 does not see every checkpoint"
    with pytest.raises(StorageError, match=f"{said}; all processes have to start again"):
        agreement.numbers(lambda: [10] if here else [10, 20], what="checkpoint", seconds=0.2)


def test_one_process_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own listing, as it is."""
    monkeypatch.setattr("jax.experimental.multihost_utils.broadcast_one_to_all", lambda mine: pytest.fail("asked"))
    assert agreement.numbers(lambda: [3], what="checkpoint") == [3] and agreement.anywhere("x") == "x"


def test_checkpoints_are_those_of_the_first_process(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of a checkpoint asks, and so does the way back."""
    from videomae_jax.checkpoint import Checkpointer

    saver = Checkpointer(tmp_path / "checkpoints")
    monkeypatch.setattr(agreement, "numbers", lambda own, what: [*own(), 7])
    assert saver.steps() == [] and saver.candidates() == [7]
    aside: list[list[int]] = []
    monkeypatch.setattr(agreement, "numbers", lambda own, what: [3, 7])
    monkeypatch.setattr(saver, "set_aside", lambda steps, why: aside.append(steps))
    saver.retreat(5)
    assert aside == [[7]]  # and no other, nor none, where the own listing is late: all wait for each other there
    saver.close()
