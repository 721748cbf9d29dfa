"""The best weights are chosen by all processes alike, and trouble with them costs no training."""

import pathlib
from typing import Any

import orbax.checkpoint as ocp
import pytest
import test_train as loops
from runs import shared_programs  # noqa: F401 (a fixture)

from videomae_jax import agreement
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.evals import best
from videomae_jax.evals.base import Context


def context(directory: pathlib.Path, /, *, step: int) -> Context:
    """A small run at a step, with its first weights."""
    run = loops.build()
    return Context(run, run.create().params, {}, step, directory)


def test_the_best_are_those_of_the_first_process(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of its own may be late: whoever chooses by it would save, or evaluate, what the others do not."""
    asked: list[str] = []

    def numbers(own: Any, what: str) -> list[int]:
        asked.append(what)
        return [3]

    assert best.keep(context(tmp_path, step=3), 0.5, metric="top1") == 0.5
    monkeypatch.setattr(agreement, "numbers", numbers)
    monkeypatch.setattr(Checkpointer, "steps", lambda self: [])
    assert best.keep(context(tmp_path, step=4), 0.4, metric="top1") == 0.5
    assert best.load(context(tmp_path, step=4))[0] == 3 and asked == ["checkpoint"] * 2


def test_a_save_of_the_best_that_fails_ends_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The kept ones stay the best, and the next that are better are saved."""
    plain, full = ocp.JsonCheckpointHandler.finalize, []

    def finalize(self: Any, directory: Any) -> None:
        if full:
            raise OSError(28, "No space left on device")
        plain(self, directory)

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "finalize", finalize)
    assert best.keep(context(tmp_path, step=3), 0.5, metric="top1") == 0.5
    full.append(True)
    assert best.keep(context(tmp_path, step=4), 0.6, metric="top1") == 0.5
    said = capsys.readouterr().err
    assert f"checkpoint 4 cannot be written to {tmp_path / 'best'}" in said and said.count("cannot be written") == 1 and "training goes on" in said
    full.clear()
    assert best.load(context(tmp_path, step=5))[0] == 3
    assert best.keep(context(tmp_path, step=5), 0.6, metric="top1") == 0.6 and best.load(context(tmp_path, step=5))[0] == 5


def test_damaged_best_weights_make_room(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are told of and moved away: they end no training, and every start after them too."""
    assert best.keep(context(tmp_path, step=3), 0.5, metric="top1") == 0.5
    found = next((tmp_path / "best").rglob("meta/metadata"))
    found.write_text(found.read_text().replace("0.5", "0.9"))
    assert best.keep(context(tmp_path, step=4), 0.4, metric="top1") == 0.4
    said = capsys.readouterr().err
    assert f"checkpoint 3 in {tmp_path / 'best'} is damaged" in said and f"damaged checkpoints 3 now lie in {tmp_path / 'best_damaged'}" in said
    assert best.load(context(tmp_path, step=5))[0] == 4 and (tmp_path / "best_damaged" / "00000003").is_dir()


def test_a_kept_step_that_lies_ahead_stays(tmp_path: pathlib.Path) -> None:
    """A run that went back to an older checkpoint reaches it again, and a step once saved is never saved anew."""
    assert best.keep(context(tmp_path, step=5), 0.5, metric="top1") == 0.5
    assert best.keep(context(tmp_path, step=3), 0.9, metric="top1") == 0.5
    assert best.load(context(tmp_path, step=3))[0] == 5
