"""Skipped updates in a row lead back to an older checkpoint and past the data that caused them, the same way after any restart."""

import dataclasses
import pathlib
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_train as loops
from runs import shared_programs  # noqa: F401 (a fixture)

from videomae_jax import events, ledger, metrics
from videomae_jax import train as loop
from videomae_jax.assembly import Assembly, Step
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.errors import UserError
from videomae_jax.rollback import Cursor, Policy, RollBack, Watch
from videomae_jax.upkeep import Safety


class Log(list):
    """Events in memory."""

    def add(self, event: str, step: int, /, **values: Any) -> None:
        """Keeps one."""
        self.append((event, step, values))


def fed(watch: Watch, flags: list[int], *, first: int = 0, reads: tuple[int, ...] = ()) -> Watch:
    """Steps of 8 clips with these flags, read at the end and after the given steps."""
    for number, flag in enumerate(flags, first + 1):
        rest = watch.note(number, 8 * number, {"loss": np.float32(1), "critic/skipped": np.int32(flag), "player/skipped": np.int32(0)})
        assert list(rest) == ["loss"]
        if number in reads:
            watch.read(number)
    watch.read(first + len(flags))
    return watch


def test_counts_rows_and_logs_each_update() -> None:
    """A good update ends a row; what is counted survives in the cursor."""
    log = Log()
    watch = fed(Watch(Cursor(), Policy(row=3), log), [0, 1, 1, 0, 1, 2])
    watch.check()
    assert watch.cursor == Cursor(48, (), {"skipped": 5}, row=2, since=4)
    assert [(step, values["samples"], values["passes"], values["row"]) for _, step, values in log] == [(2, [8, 16], 1, 1), (3, [16, 24], 1, 2), (5, [32, 40], 1, 1), (6, [40, 48], 2, 2)]
    assert Cursor.of({**watch.cursor.meta(), "config": "{}"}) == watch.cursor
    assert Cursor.of({"samples": 24, "step": 3}) == Cursor(24)
    again = fed(Watch(Cursor.of(watch.cursor.meta()), Policy(row=3), log), [1, 1], first=6)
    with pytest.raises(RollBack) as found:
        again.check()
    assert found.value.cursor == Cursor(56, (), {"skipped": 6}, row=3, since=4)


def test_spikes_are_counted_and_lead_nowhere() -> None:
    """A filter that refuses loss after loss lets them pass in the end, by itself: going back would show it the same ones again."""
    log = Log()
    watch = Watch(Cursor(), Policy(row=3), log)
    for number in range(1, 51):
        watch.note(number, 8 * number, {"skipped": np.int32(0), "spikes": np.int32(1)})
    assert watch.read(50) == {"skipped": 0, "spikes": 50}
    watch.check()
    assert (watch.cursor.row, len(log)) == (0, 50)


@pytest.mark.parametrize("reads", [(), (3,), (4, 5), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_the_way_back_does_not_depend_on_when_flags_are_read(reads: tuple[int, ...]) -> None:
    """Three in a row after step 2 end at position 40, also where later steps were taken before anybody looked."""
    watch = fed(Watch(Cursor(), Policy(row=3), Log()), [0, 0, 1, 1, 1, 0, 1, 0], reads=reads)
    with pytest.raises(RollBack) as found:
        watch.check()
    assert (found.value.cursor.since, found.value.cursor.samples) == (2, 40)
    assert found.value.after(Cursor(8)) == Cursor(40, ((8, 40),), {"skipped": 3})
    with pytest.raises(UserError, match="saved at clip 48 of the stream, and the run is at 40; allowed is one of step 2 or before"):
        found.value.after(Cursor(48))


def test_not_more_often_than_allowed() -> None:
    """Then the run ends with an error that says so; row=0 never goes back."""
    windows = ((0, 8), (8, 16), (16, 24))
    with pytest.raises(UserError, match="3 updates in a row were skipped after step 0, .* after 3 rollbacks of at most 3"):
        fed(Watch(Cursor(24, windows), Policy(row=3, rollbacks=3), Log()), [1, 1, 1]).check()
    fed(Watch(Cursor(), Policy(row=0), Log()), [1] * 50).check()
    with pytest.raises(UserError, match="-1 skipped updates in a row"):
        Policy(row=-1)


# -- a run ----------------------------------------------------------------------------------------------------------

POLICY = Policy(row=2, rollbacks=2)
BAD = {24, 28}  # first positions of the batches that spoil an update; batches of 4 from 0 on


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps on a bad batch have NaN for parameters and so for a gradient, which the step refuses; lists the positions of all batches."""
    taken: list[int] = []
    plain = Step.__call__

    def step(self: Step, state: Any, *batches: Any) -> Any:
        with jax.transfer_guard("allow"):
            position = int(batches[0]["key"][0, 0])
            taken.append(position)
            if position not in BAD:
                return plain(self, state, *batches)
            kept = jax.tree.map(jnp.copy, state)
            state, values = plain(self, state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params)), *batches)
            assert int(values["skipped"]) == 1
            return kept.replace(step=state.step), values

    monkeypatch.setattr(Step, "__call__", step)
    return taken


def go(run: Assembly, directory: pathlib.Path, *, stop: int = -1, say: Any = lambda line: None) -> loop.Result:
    """Trains with the policy of these tests."""
    return loop.train(run, directory, stop=loops.Asked(stop), say=say, trust=(loops.ME,), safety=Safety(POLICY))


def lines(directory: pathlib.Path) -> list[dict[str, float]]:
    """metrics.jsonl without timings."""
    return [{k: v for k, v in line.items() if k not in metrics.TIMING} for line in metrics.read(directory)]


def test_run_goes_back_and_past_the_data(tmp_path: pathlib.Path, spoilt: list[int]) -> None:
    """Steps 7 and 8 are skipped: back to the checkpoint of step 6, on with position 32; stopped anywhere it ends with the same bits."""
    said: list[str] = []
    run = loops.build(total=9, checkpoint__every=3, checkpoint__keep_last=2)
    result = go(run, tmp_path / "a", say=said.append)
    assert result.finished and result.step == 9
    first = list(dict.fromkeys(spoilt))
    assert first[:8] == [0, 4, 8, 12, 16, 20, 24, 28] and spoilt[-3:] == [32, 36, 40]
    saver = Checkpointer(tmp_path / "a" / "checkpoints", read_only=True)
    assert saver.steps() == [6, 9]
    meta = saver.meta(9)
    assert (meta["samples"], meta["skipped"], meta["passed"]) == (44, [[24, 32]], {"skipped": 2})
    happened = [(e["event"], e["step"]) for e in events.read(tmp_path / "a")]
    assert happened == [("update passed over", 7), ("update passed over", 8), ("rolled back", 6)]
    assert any(line.startswith("rolled back at step 6") for line in said)
    assert [line["skipped"] for line in lines(tmp_path / "a") if "loss" in line] == [0] * 6 + [2] * 3
    assert ledger.goodput(tmp_path / "a").seconds["lost"] > 0
    # Questions of the loop: one a step. Stops at step 7, within the row, and once more after the way back.
    for stop in (8, 2, -1):
        again = go(loops.build(total=9, checkpoint__every=3, checkpoint__keep_last=3), tmp_path / "b", stop=stop)
    loops.equal((again.state.params, again.state.opt), (result.state.params, result.state.opt))
    assert lines(tmp_path / "b") == lines(tmp_path / "a")


def test_the_old_state_is_gone_once_the_run_goes_on(tmp_path: pathlib.Path, spoilt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states at a time need not fit on the devices: an exception holds the frames that it came through, and they their variables."""
    spoiling, old, alive = Step.__call__, [], []

    def step(self: Step, state: Any, *batches: Any) -> Any:
        alive.append(old[-1]() is not None if old else None)
        state, values = spoiling(self, state, *batches)
        old.append(weakref.ref(jax.tree.leaves(state.params)[0]))
        return state, values

    monkeypatch.setattr(Step, "__call__", step)
    assert go(loops.build(total=9, checkpoint__every=3, evaluators__recorder__every=""), tmp_path).finished
    assert spoilt[-3:] == [32, 36, 40] and alive[-4] and not alive[-3], "a state that goes on is held, that before the way back no more"


def test_a_checkpoint_within_the_row_serves(tmp_path: pathlib.Path, spoilt: list[int]) -> None:
    """Saves between the skipped updates have crowded out those before: the oldest one that is left has the same weights."""
    result = go(loops.build(total=9, checkpoint__every=1, checkpoint__keep_last=1, evaluators__recorder__every=""), tmp_path)
    back = next(e for e in events.read(tmp_path) if e["event"] == "rolled back")
    assert result.finished and (back["step"], back["to"]) in ((6, 7), (6, 8)) and spoilt[:8] == [0, 4, 8, 12, 16, 20, 24, 28]
    assert 0 not in spoilt[8:]


def test_without_a_checkpoint_the_run_begins_anew_past_the_data(tmp_path: pathlib.Path, spoilt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first updates of all are bad: the fresh state goes on behind them; a third row is one too many."""
    for bad, error in (({0, 4}, False), (set(range(0, 400, 4)), True)):
        monkeypatch.setattr("test_rollback.BAD", bad)
        spoilt.clear()
        run = loops.build(total=3, evaluators__recorder__every="")
        if error:
            with pytest.raises(UserError, match="2 updates in a row were skipped after step 0, .* after 2 rollbacks of at most 2"):
                go(run, tmp_path / "b")
            continue
        assert go(run, tmp_path / "a").finished
        assert spoilt[-3:] == [8, 12, 16]


def test_a_way_back_is_no_error_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes take it alike; one that left would end them all, while an error of its own lets it leave at once."""
    left: list[BaseException] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop, "leave", lambda error, *, lead: left.append(error))
    loop._alone(None, RollBack(Cursor()), None)
    loop._alone(None, None, None)
    assert not left
    error = ValueError()
    loop._alone(None, error, None)
    assert left == [error]


def test_norms_by_layer_are_logged_on_demand(tmp_path: pathlib.Path) -> None:
    """Stacked layers one by one; they add up to the norm of the gradient."""
    run = loops.build(total=1, evaluators__recorder__every="")
    loop.train(run, tmp_path, stop=loops.Asked(), say=lambda line: None, trust=(loops.ME,), safety=dataclasses.replace(Safety(), norms=True))
    (line,) = [line for line in metrics.read(tmp_path) if "loss" in line]
    norms = {k: v for k, v in line.items() if k.startswith("norm/")}
    assert sum("/stack/" in k and k.endswith("/1") for k in norms) > 5
    assert np.sqrt(sum(v**2 for v in norms.values())) == pytest.approx(line["grad_norm"], rel=1e-5)
