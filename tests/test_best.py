"""The best weights are chosen by all processes alike, and trouble with them costs no training."""

import dataclasses
import pathlib
from typing import Any

import jax
import noise_runs
import numpy as np
import orbax.checkpoint as ocp
import pytest
import test_externals as others
import test_train as loops
import written
from runs import shared_programs  # noqa: F401 (a fixture)

import videomae_jax
from videomae_jax import agreement, api, optim, parallel, run_directory, starts
from videomae_jax import config as configs
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.errors import UserError
from videomae_jax.evals import best
from videomae_jax.evals.base import Context
from videomae_jax.models import probing, vit
from videomae_jax.objectives import base
from videomae_jax.objectives.probe import Probe
from videomae_jax.step import TrainState


class Taught(Probe):
    """A probe whose frozen weights only training reads."""

    training_only = ("encoder",)


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


def full(*_: Any) -> None:
    """What a save meets on a full disk."""
    raise OSError(28, "No space left on device")


def test_the_best_of_other_frozen_weights_are_not_taken(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Heads that were trained on another encoder, as before a fork: new ones take their place, and until then none are evaluated.

    A value of theirs is no answer, where these cannot be saved either. Frozen weights that training alone reads, as a teacher's, are no part of the
    answers.
    """
    made = Probe(encoder=vit.Encoder(**written.ENCODER), head=probing.Linear(classes=2, count=2), weights="absent")
    run = noise_runs.run_of(made, optimizer=configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2)))
    params = parallel.unbox(jax.jit(lambda: made.init(run.rng(), base.dummy(run.fields)))())
    extra = parallel.unbox(made.init_extra(run.rng(), params, base.dummy(run.fields)))
    for objective in (made, Taught(**vars(made))):
        run, directory = dataclasses.replace(run, objective=objective), tmp_path / type(objective).__name__

        def at(step: int, run: Any = run, directory: pathlib.Path = directory, *, training: bool = True) -> Context:
            return Context(run, params, extra, step, directory, training=training)

        def begin(digest: str, step: int, directory: pathlib.Path = directory) -> None:
            directory.mkdir(exist_ok=True)
            starts.note(directory, {"externals": {"frozen/encoder": {"sha256": digest}}}, step=step, say=pytest.fail)

        begin("a", 0)
        assert best.keep(at(2), 90.0, metric="top1") == 90 and best.keep(at(3), 80.0, metric="top1") == 90
        begin("a", 3)
        assert best.keep(at(4), 80.0, metric="top1") == 90 and best.load(at(4))[0] == 2
        begin("b", 4)
        if objective.training_only:
            assert best.load(at(4))[0] == 2 and best.keep(at(6), 40.0, metric="top1") == 90 and not capsys.readouterr().err
            continue
        said = r"Probe/best holds the best of step 2, which was trained with other frozen weights than step 6; allowed are those of the same ones"
        for training in (True, False):
            with pytest.raises(UserError, match=said) as error:
                best.load(at(6, training=training))
            assert "\n" not in str(error.value)
        assert best.load(at(4, training=False))[0] == 2  # saved before the fork
        assert best.keep(at(6, training=False), 40.0, metric="top1") == 40 and best.keep(at(4, training=False), 40.0, metric="top1") == 90
        assert not capsys.readouterr().err
        assert best.keep(at(6), 40.0, metric="top1") == 40 and best.load(at(6, training=False))[0] == 6
        said = capsys.readouterr().err
        assert "the best of step 2, top1 90, which was trained with other frozen weights: the weights of step 6, top1 40, take its place" in said
        assert best.keep(at(7), 30.0, metric="top1") == 40 and not capsys.readouterr().err
        for digest, value, found in (("c", 25.0, 6), ("d", 24.0, 5)):  # the kept one lies ahead, or is of the same number
            begin(digest, 4)
            assert best.keep(at(5), value, metric="top1") == value and best.load(at(5))[0] == 5
            assert f"foreign checkpoints {found} now lie in" in capsys.readouterr().err
        assert sorted(p.name for p in (directory / "best_foreign").iterdir()) == ["00000005", "00000006"]
        begin("e", 4)
        with monkeypatch.context() as patch:
            patch.setattr(ocp.JsonCheckpointHandler, "finalize", full)
            for step in (6, 5):  # the kept one lies behind, and is left there, or makes room
                assert best.keep(at(step), 20.0, metric="top1") == 20 and "cannot be written" in capsys.readouterr().err
                assert [p.name for p in (directory / "best").iterdir() if p.name.isdigit()] == ["00000005"] * (step - 5)
        assert best.keep(at(6), 10.0, metric="top1") == 10 and best.load(at(6))[0] == 6


def test_the_best_open_with_their_own_frozen_weights(tmp_path: pathlib.Path) -> None:
    """A fork that begins before their step has others, and heads answer on those that they were trained on or not at all."""
    pre, directory, gone = others.grown(tmp_path / "pre", 1), tmp_path / "run", tmp_path / "gone"
    head = probing.Attentive(classes=2, count=2, blocks=1, heads=2, ratio=1)
    others.trained(others.probe_of(pre, head=head), directory)
    context = run_directory.context(directory)
    assert best.keep(dataclasses.replace(context, step=6, training=True), 50.0, metric="top1") == 50  # and the run goes back to step 4
    others.grown(pre, 2)
    (pre / "checkpoints" / "00000001").rename(gone)
    others.trained(others.probe_of(pre, total=8, head=head), directory, fork=True)
    assert others.of_step(api.load(directory).extra["frozen"]) == 2
    said = rf"{directory} was trained with other weights for frozen/encoder than {pre} has now: with sha256 .{{12}}, and {pre} holds 2; put them back$"
    with pytest.raises(UserError, match=said) as error:
        api.load(directory, best=True)
    assert "\n" not in str(error.value)
    gone.rename(pre / "checkpoints" / "00000001")
    model = api.load(directory, best=True)
    assert model.step == 6 and others.of_step(model.extra["frozen"]) == 1


def test_the_best_of_a_linear_probe_have_their_statistics(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Running means and variances of features are no parameters: heads answer with those that they were trained on, not with the last ones."""
    pre, directory = others.grown(tmp_path / "pre", 1), tmp_path / "run"
    others.trained(others.probe_of(pre), directory)
    last = run_directory.context(directory)
    saver = Checkpointer(directory / "best")  # as before they were kept
    saver.save(3, TrainState(last.step, last.assembly.rng(), last.params, {}, {}, {}), meta={"step": 3, "metric": "top1", "value": 90.0})
    saver.close()
    with pytest.raises(UserError, match=r"run/best holds the best of step 3 without mean, var; evaluations of the run that goes on put them there, or move") as error:
        best.load(last)
    assert "\n" not in str(error.value)
    earlier = dataclasses.replace(last, step=2, training=True, extra=last.extra | {"mean": last.extra["mean"] + 1, "var": 2 * last.extra["var"]})
    assert best.keep(earlier, 50.0, metric="top1") == 50
    assert "which was kept without what else the run learns: the weights of step 2, top1 50, take its place" in capsys.readouterr().err
    assert [p.name for p in (directory / "best_foreign").iterdir()] == ["00000003"]
    step, params, extra = best.load(last)
    model = api.load(directory, best=True)
    assert step == model.step == 2 and extra["frozen"] is last.extra["frozen"]
    for name in ("mean", "var"):
        for found in (extra, model.extra):
            np.testing.assert_array_equal(found[name], earlier.extra[name])


def test_the_best_open_as_a_model(tmp_path: pathlib.Path) -> None:
    """Where their step is among the checkpoints no more; by a word or by the path of their folder, and told apart from the last ones."""
    run = noise_runs.run_of(written.classifier(), optimizer=configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2)))
    state = run.create()
    context = Context(run, jax.tree.map(lambda x: x + 1, state.params), {}, 3, tmp_path)
    saver = Checkpointer(tmp_path / "checkpoints", keep_last=1)
    saver.save(9, state, meta={"step": 9})
    saver.close()
    run_directory.write(tmp_path / "config.json", configs.to_json(run.config))
    run_directory.write(tmp_path / "classes.json", '["wave", "jump", "sit"]')
    with pytest.raises(UserError, match="best is not there: no evaluator of this run keeps the best weights yet"):
        videomae_jax.load(tmp_path, best=True)
    best.keep(context, 0.5, metric="top1")
    step, kept, extra = best.load(context)
    assert extra == {}
    for model in (videomae_jax.load(tmp_path, best=True), videomae_jax.load(tmp_path / "best")):
        assert model.step == step == 3 and model.classes == written.CLASSES
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(model.params), jax.device_get(kept))
    last = videomae_jax.load(tmp_path)
    assert last.step == 9 and not np.array_equal(last.params["head"]["linear"]["bias"], kept["head"]["linear"]["bias"])
    digests = [api.digest(tmp_path, step=3, best=True), api.digest(tmp_path / "best", step=3), api.digest(tmp_path, step=9)]
    assert digests[0] == digests[1] != digests[2]
    with pytest.raises(UserError, match="step 9 and the best weights are asked for; allowed is one of them"):
        videomae_jax.load(tmp_path, step=9, best=True)
    np.savez(tmp_path / "others.npz", x=np.zeros(1))
    with pytest.raises(UserError, match="best is for run directories; .*others.npz is none"):
        videomae_jax.load(tmp_path / "others.npz", best=True)
