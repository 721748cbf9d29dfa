"""A run goes on with another number of processes or devices: the stream for every pair, training for a few; `tests/resize.py` does all."""

import pathlib
from typing import Any

import pytest
import resize
from runs import shared_programs  # noqa: F401 (a fixture)

from videomae_jax.data import pipeline


@pytest.mark.parametrize(("before", "after"), resize.PAIRS)
def test_stream_does_not_change_with_processes(before: int, after: int) -> None:
    """N readers and then M, with the same and with twice the batch: the global batches of one, bit for bit, every clip once an epoch."""
    assert resize.stream(before, after) == ""


@pytest.mark.parametrize(("change", "said"), [
    (lambda kw: kw | {"host": kw["hosts"] - 1 - kw["host"]}, "is not that of one host"),
    (lambda kw: kw | ({"seed": 4} if kw["hosts"] == 2 else {}), "is not that of one host"),
    (lambda kw: kw | ({"start": kw["start"] + resize.BATCH} if kw["start"] else {}), "positions are not consecutive"),
])
def test_a_stream_that_depends_on_processes_shows(monkeypatch: pytest.MonkeyPatch, change: Any, said: str) -> None:
    """Parts in another order, another seed for one number of readers, and a start that is a batch too late for all."""
    plain = pipeline.stream
    resize.leg.cache_clear()
    monkeypatch.setattr(pipeline, "stream", lambda source, **kw: plain(source, **change(kw)))
    assert said in resize.stream(2, 4)
    monkeypatch.undo()
    resize.leg.cache_clear()


@pytest.mark.slow
def test_training_goes_on_over_other_devices(tmp_path: pathlib.Path) -> None:
    """One device to two, and two to one and two: the saved state bit for bit, the parameters to 1e-5, the same bits where nothing changes."""
    devices = resize.Devices(tmp_path)
    for before, after in ((1, 2), (2, 1), (2, 2)):
        found = devices.change(before, after)
        assert found["restored"] and found["masks"] and found["parameters"] <= resize.TOLERANCE, (before, after, found)
        assert found["same_bits"] or before != after, (before, after, found)
