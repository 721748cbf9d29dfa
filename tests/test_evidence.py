"""Evidence: every verdict by hand-made numbers, a protocol that comes first and stays, and a suite of four tiny runs."""

import dataclasses
import functools
import json
import math
import pathlib
import types
from typing import Any

import jax
import numpy as np
import pytest
import scipy.stats

from videomae_jax import config as configs
from videomae_jax import evidence, evidence_costs, evidence_report, masking, optim, records, verdicts
from videomae_jax.commands import evaluate
from videomae_jax.data import sources
from videomae_jax.errors import UserError
from videomae_jax.evals import probe, reconstruction
from videomae_jax.evidence import Arm, Suite
from videomae_jax.models import vit
from videomae_jax.objectives import mae
from videomae_jax.verdicts import Claim, Requirement, Value

LEFT, RIGHT = Value("a", "probe/trained"), Value("b", "probe/trained")
SEEDS = (0, 1, 2, 3, 4)


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs on one device: they take two steps."""
    monkeypatch.setattr(evidence, "assemble", functools.partial(evidence.assemble, devices=jax.devices()[:1]))


def claim(kind: str = "superior", margin: float = 0.0, **kw: Any) -> Claim:
    """a against b."""
    return Claim("claim", "a beats b", LEFT, RIGHT, kind, margin, **kw)


def table(differences: Any, *, base: float = 50.0) -> verdicts.Table:
    """b has `base` plus something of the seed, a that and the difference."""
    b = {s: base + 7 * s for s in range(len(differences))}
    return {"a": {s: {"probe/trained": b[s] + d, "probe/untrained": 20.0} for s, d in enumerate(differences)},
            "b": {s: {"probe/trained": x} for s, x in b.items()}}


def judged(one: Claim, differences: Any, *, stated: int = 5) -> verdicts.Verdict:
    """The verdict over as many seeds as there are differences."""
    return verdicts.judge(one, table(differences), seeds=tuple(range(len(differences))), stated=stated, confidence=0.9)


def test_the_interval_is_students() -> None:
    """1 2 3 4 5: mean 3, standard error sqrt(2.5 / 5), t(4) at 95 % = 2.131847 from the tables; scipy's paired test agrees."""
    mean, low, high = verdicts.interval([1, 2, 3, 4, 5], confidence=0.9)
    assert mean == 3 and math.isclose(high - 3, 2.131847 * math.sqrt(0.5), rel_tol=1e-6) and math.isclose(3 - low, high - 3)
    x, y = np.random.default_rng(0).random((2, 7))
    ours = verdicts.interval(x - y, confidence=0.9)
    assert np.allclose(ours[1:], scipy.stats.ttest_rel(x, y).confidence_interval(0.9), rtol=1e-12)


# Differences 1 2 3 4 5 have the interval [1.492557, 4.507443].
@pytest.mark.parametrize(("kind", "margin", "shift", "verdict"), [
    ("superior", 0, 0, "shown"), ("superior", 1.4, 0, "shown"), ("superior", 1.6, 0, "not shown"), ("superior", 0, -3, "not shown"),
    ("superior", 0, -6, "reversed"), ("superior", 1, -4.4, "not shown"), ("superior", 1, -4.6, "reversed"),
    ("noninferior", 1, 0, "shown"), ("noninferior", 2, -3, "shown"), ("noninferior", 1, -3, "not shown"), ("noninferior", 1, -6, "reversed"),
    ("equivalent", 5, 0, "shown"), ("equivalent", 2, -3, "shown"), ("equivalent", 4, 0, "not shown"), ("equivalent", 1.4, 0, "reversed"),
    ("equivalent", 1.4, -6, "reversed"), ("equivalent", 1.4, -3, "not testable at toy size"), ("equivalent", 1.6, -2, "not shown")])
def test_every_verdict(kind: str, margin: float, shift: float, verdict: str) -> None:
    """On both sides of every edge of the rules."""
    result = judged(claim(kind, margin), [d + shift for d in (1, 2, 3, 4, 5)])
    assert result.verdict == verdict and np.allclose(result.differences, [d + shift for d in (1, 2, 3, 4, 5)])
    assert math.isclose(result.low, 1.492557 + shift, abs_tol=1e-6) and math.isclose(result.high, 4.507443 + shift, abs_tol=1e-6)


def test_differences_are_paired_by_seed() -> None:
    """The seeds spread by 28 points and the arms differ by 1: an unpaired interval would hide it."""
    assert judged(claim(), [1, 1.1, 0.9, 1, 1]).verdict == "shown"
    shuffled = table([1, 1.1, 0.9, 1, 1])
    shuffled["b"] = {s: shuffled["b"][(s + 1) % 5] for s in SEEDS}
    assert verdicts.judge(claim(), shuffled, seeds=SEEDS, stated=5, confidence=0.9).verdict == "not shown"


def test_a_number_may_be_what_is_beaten() -> None:
    """The same one for every seed; one that is not finite is refused."""
    above = dataclasses.replace(claim(), right=1.0)
    values = {"a": {s: {"probe/trained": 1 + d, "probe/untrained": 0.0} for s, d in zip(SEEDS, (1, 2, 3, 4, 5), strict=True)}}
    found = verdicts.judge(above, values, seeds=SEEDS, stated=5, confidence=0.9)
    assert found.verdict == "shown" and found.differences == (1, 2, 3, 4, 5) and math.isclose(found.low, 1.492557, abs_tol=1e-6)
    assert Suite((Arm("a"),), (above,), "").claims[0].values == (LEFT,)
    with pytest.raises(UserError, match="compares with nan; allowed are a measurement and a finite number"):
        dataclasses.replace(claim(), right=math.nan)


def test_what_makes_a_claim_not_testable() -> None:
    """Fewer seeds than stated, a requirement that fails, a measurement that is not finite; each is the reason given."""
    few = judged(claim(), [1, 1, 1], stated=5)
    assert few.verdict == "not testable at toy size" and few.reason == "3 of the 5 seeds stated beforehand"
    one = judged(claim(), [1], stated=5)
    assert one.verdict == "not testable at toy size" and one.mean == 1 and math.isnan(one.low)
    learnt = Requirement(LEFT, Value("a", "probe/untrained"), 45.0)  # a is at 50 + 7 x 2 + 1 on average, untrained at 20
    assert judged(claim(requires=(learnt,)), [1] * 5).verdict == "shown"
    failed = judged(claim(requires=(dataclasses.replace(learnt, least=45.1),)), [1] * 5)
    assert failed.verdict == "not testable at toy size" and failed.reason == "a probe/trained - a probe/untrained is 45, required are 45.1 and more"
    nan = judged(claim(), [1, 1, math.nan, 1, 1])
    assert nan.verdict == "not testable at toy size" and nan.reason == "a measurement is not finite"


def test_unfinished_cells_and_unknown_measurements() -> None:
    """A claim waits for all of its seeds; a misspelt measurement names those there are."""
    part = table([1] * 5)
    del part["b"][3]
    result = verdicts.judge(claim(), part, seeds=SEEDS, stated=5, confidence=0.9)
    assert result.verdict == "unfinished" and result.reason == "not finished: b/seed3"
    with pytest.raises(UserError, match="names 'probe/traned', but arm 'a' has probe/trained, probe/untrained"):
        verdicts.judge(dataclasses.replace(claim(), left=Value("a", "probe/traned")), table([1] * 5), seeds=SEEDS, stated=5, confidence=0.9)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: claim("better"), "of kind 'better'; allowed are superior, noninferior, equivalent"),
    (lambda: claim("equivalent"), "margin 0.0"), (lambda: claim(margin=-1.0), "margin -1.0"),
    (lambda: Suite((Arm("a"),), (claim(),), ""), "names arm 'b'; there are a"),
    (lambda: Suite((Arm("a", after="b"), Arm("b")), (claim(),), ""), "arm 'a' builds on 'b'; allowed are arms before it"),
    (lambda: Suite((Arm("a"), Arm("a")), (claim(),), ""), "distinct names"), (lambda: Suite((Arm("a"), Arm("b")), (), ""), "at least one claim"),
    (lambda: Suite((Arm("a"), Arm("b")), (claim(),), "", seeds=1), "1 seeds"), (lambda: Suite((Arm("a"), Arm("b", seeds=1)), (claim(),), ""), "1 seeds"),
    (lambda: Suite((Arm("a", seeds=2), Arm("b", after="a")), (claim(),), ""), "arm 'b' of 5 seeds builds on 'a' of 2"),
    (lambda: Suite((Arm("a"), Arm("b")), (claim(),), "", costs=("c",)), "costs of arms c; there are a, b"),
    (lambda: Suite((Arm("a"), Arm("b")), (claim(),), "", curve="probe/trained"), "a curve needs some")])
def test_suites_that_cannot_be(make: Any, message: str) -> None:
    """Mistakes in a config are said before anything runs."""
    with pytest.raises(UserError, match=message):
        make()


# -- a suite of tiny runs ----------------------------------------------------------------------------------------------


def config_of(**suite: Any) -> Any:
    """Two arms on noise, two steps each: the loss on hidden tokens of V1 and of the running cell."""
    config = configs.load("configs/base.py").copy_and_resolve_references()
    config.unlock()
    encoder = vit.Encoder(width=16, depth=1, heads=2, hidden=32, patch=(2, 8, 8), frames=4, size=16)
    config.objective = configs.spec(mae.MAE, encoder=encoder, decoder=vit.Decoder(width=16, depth=1, heads=2, hidden=32),
                                    encoder_mask=masking.Random(ratio=0.5), decoder_mask=masking.Hidden())
    config.data = configs.spec(sources.NoiseClips, frames=4, size=16, length=64)
    config.optimizers.main = configs.spec(optim.AdamW, schedule=optim.Schedule(base=1e-2, warmup="0", unit=0, shape="constant"))
    config.update({"name": "mini", "total": "2", "batch_size": 8})
    config.log.every = "1"
    config.evaluators.reconstruction = configs.spec(reconstruction.Reconstruction, every="", clips=8, batch_size=8)
    loss = {"measurement": "reconstruction/loss"}
    fields = {"arms": (Arm("v1"), Arm("dual", (("objective.decoder_mask", masking.RunningCell()),))), "protocol": "p", "seeds": 2,
              "claims": (Claim("same", "dual is like V1", Value("dual", **loss), Value("v1", **loss), "equivalent", 5.0),)}
    config.evidence = configs.spec(Suite, **(fields | suite))
    return config


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells that would train; each sees the protocol and leaves a measurement."""
    asked: list[str] = []

    def cell(self: Any, arm: Arm, seed: int, /) -> bool:
        assert (self.workdir / "protocol.json").exists()
        asked.append(f"{arm.name}{seed}")
        path = self.directory(arm.name, seed) / "measurements.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seed": seed, "step": 1, "values": {"reconstruction/loss": seed + (arm.name == "dual")}}))
        return True

    monkeypatch.setattr(evidence.Bench, "cell", cell)
    return asked


def test_two_arms_two_seeds(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Stopped after the second cell and gone on with: every cell trains once, the files and lines are there, the figures agree."""
    trained, real = [], evidence.train

    def train(run: Any, directory: pathlib.Path, /, **kw: Any) -> Any:
        assert json.loads((tmp_path / "protocol.json").read_text())["claims"]["same"]["margin"] == 5.0, "the protocol comes first"
        if len(trained) == 2:
            trained.append("stop")
            return types.SimpleNamespace(finished=False)
        trained.append(f"{directory.parent.name}/{directory.name}")
        return real(run, directory, **kw)

    monkeypatch.setattr(evidence, "train", train)
    monkeypatch.setattr(evidence_costs, "measure", functools.partial(evidence_costs.measure, repeats=2, steps=1))
    config = config_of(costs=("v1",), curve="reconstruction/loss")
    config.ema = 0.5  # what a cell measures at its end is what the run itself evaluates: the averaged weights
    assert evidence.run(config, workdir=tmp_path, say=lambda _: None) == 75
    first = capsys.readouterr().out.splitlines()
    assert json.loads(first[0])["claims"]["same"]["verdict"] == "unfinished"
    before = (tmp_path / "protocol.json").stat()
    assert not (tmp_path / "costs.json").exists()
    assert evidence.run(config, workdir=tmp_path, say=lambda _: None) == 0
    assert trained == ["v1/seed0", "dual/seed0", "stop", "v1/seed1", "dual/seed1"]
    after = (tmp_path / "protocol.json").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    printed, row = capsys.readouterr().out.splitlines()
    saved, printed = json.loads((tmp_path / "evidence.json").read_text()), json.loads(printed)
    result = printed["claims"]["same"]
    losses = {a: [saved["measurements"][a][s]["reconstruction/loss"] for s in "01"] for a in ("v1", "dual")}
    assert np.allclose(result["differences"], np.subtract(losses["dual"], losses["v1"])) and losses["v1"][0] != losses["v1"][1]
    assert result["verdict"] == "shown" and row == printed["row"] and row.startswith("| mini | dual is like V1: ")
    assert (tmp_path / "evidence.png").read_bytes()[:4] == b"\x89PNG"
    costs, steps = saved["costs"]["v1"], [point for point in saved["curves"]["reconstruction/loss"]["v1"]["seed1"]]
    assert list(saved["costs"]) == ["v1"] and costs["clips_per_step"] == 8 and costs["times_longer"]["of_medians"] == 1 and costs["step_bytes"] > 0
    assert [x for x, _ in steps] == pytest.approx([0, 2e-3 * costs["ms_per_step"]["median"]]) and steps[1][1] == losses["v1"][1] != steps[0][1]
    assert (tmp_path / "evidence_curve.png").read_bytes()[:4] == b"\x89PNG"
    measured = (tmp_path / "costs.json").read_text()
    assert evidence.run(config, workdir=tmp_path, say=lambda _: None) == 0 and len(trained) == 5 and (tmp_path / "costs.json").read_text() == measured
    for arm, steps in (("v1", [0, 2]), ("dual", [2])):  # arms without costs are measured at the end alone
        found = records.load(tmp_path / "runs" / arm / "seed0")
        assert [line["step"] for line in found.lines if "reconstruction/loss" in line] == steps and found.finished
        assert found.last("reconstruction/loss") == losses[arm][0] == found.summary["results"]["reconstruction/loss"]
    cells = saved["summary"]["v1"]
    assert cells["1"]["loss_last"] == losses["v1"][1] and cells["1"]["loss_first"] != losses["v1"][1]
    assert saved["summary_arm"] == "v1" and list(saved["summary"]) == ["v1", "dual"]
    for key in ("loss_first", "loss_last", "loss_predict_zero", "loss_trivial", "seconds", "clips_per_second"):
        assert saved[key] == printed[key] == pytest.approx((cells["0"][key] + cells["1"][key]) / 2)
    stored = json.loads((tmp_path / "runs" / "dual" / "seed1" / "config.json").read_text())
    assert stored["seed"] == 1 and not stored["evidence"] and list(stored["evaluators"]) == ["reconstruction"]
    assert stored["objective"]["decoder_mask"]["__symbol__"].endswith("RunningCell")


def test_the_protocol_never_changes_once_a_run_exists(tmp_path: pathlib.Path, no_training: list[str]) -> None:
    """Before the first run it may be rewritten; afterwards a margin, a seed or a field of any arm is an error that names it."""
    evidence.fix(tmp_path, {"margin": 1})
    evidence.fix(tmp_path, {"margin": 2})
    assert json.loads((tmp_path / "protocol.json").read_text()) == {"margin": 2}
    assert evidence.run(config_of(), workdir=tmp_path / "suite", say=lambda _: None) == 0
    text = (tmp_path / "suite" / "protocol.json").read_text()
    changed = config_of()
    changed.total = "3"
    with pytest.raises(UserError, match=r"fixed before the first run, and these fields differ now: arms.dual.config.total, arms.v1.config.total"):
        evidence.run(changed, workdir=tmp_path / "suite", say=lambda _: None)
    with pytest.raises(UserError, match="differ now: seeds.dual, seeds.v1"):
        evidence.run(config_of(), workdir=tmp_path / "suite", seeds=3, say=lambda _: None)
    assert (tmp_path / "suite" / "protocol.json").read_text() == text
    (tmp_path / "suite" / "protocol.json").unlink()
    with pytest.raises(UserError, match="exists without protocol.json, so nothing was stated beforehand"):
        evidence.run(config_of(), workdir=tmp_path / "suite", say=lambda _: None)


def test_chosen_arms_and_their_order(tmp_path: pathlib.Path, no_training: list[str]) -> None:
    """--arms trains these alone, seeds come outermost, and what is missing is said to be unfinished."""
    assert evidence.run(config_of(), workdir=tmp_path, arms=("dual",), say=lambda _: None) == 0
    assert no_training == ["dual0", "dual1"]
    saved = json.loads((tmp_path / "evidence.json").read_text())["claims"]["same"]
    assert saved["verdict"] == "unfinished" and saved["mean"] is None and "v1/seed0, v1/seed1" in saved["reason"]
    no_training.clear()
    assert evidence.run(config_of(), workdir=tmp_path, say=lambda _: None) == 0
    assert no_training == ["v10", "dual0", "v11", "dual1"]
    assert json.loads((tmp_path / "evidence.json").read_text())["claims"]["same"]["mean"] == 1
    with pytest.raises(UserError, match="arms nobody, seeds 0, budget 0.0; arms are v1, dual"):
        evidence.run(config_of(), workdir=tmp_path, arms=("nobody",))


def test_an_arm_may_have_seeds_of_its_own(tmp_path: pathlib.Path, no_training: list[str]) -> None:
    """Three for v1 and two for dual: all five cells run, the claim is judged over the shared two, which are all that were stated."""
    config = config_of(arms=(Arm("v1", seeds=3), Arm("dual", (("objective.decoder_mask", masking.RunningCell()),))))
    assert evidence.run(config, workdir=tmp_path / "stated", say=lambda _: None) == 0
    assert no_training == ["v10", "dual0", "v11", "dual1", "v12"]
    result = json.loads((tmp_path / "stated" / "evidence.json").read_text())
    assert result["claims"]["same"]["differences"] == [1.0, 1.0] and result["claims"]["same"]["verdict"] == "shown" and list(result["measurements"]["v1"]) == ["0", "1", "2"]
    fixed = json.loads((tmp_path / "stated" / "protocol.json").read_text())
    assert fixed["seeds"] == {"v1": [0, 1, 2], "dual": [0, 1]} and fixed["seeds_stated"] == {"v1": 3, "dual": 2}
    no_training.clear()
    assert evidence.run(config, workdir=tmp_path / "one", seeds=1, say=lambda _: None) == 0
    assert no_training == ["v10", "dual0"], "--seeds is for every arm"
    assert json.loads((tmp_path / "one" / "evidence.json").read_text())["claims"]["same"]["reason"] == "1 of the 2 seeds stated beforehand"


def test_only_what_makes_a_headline_is_measured_on_untrained_weights(tmp_path: pathlib.Path) -> None:
    """The reconstruction and the primary probe; another probe, which compares with untrained weights anyway, costs nothing more."""
    config = config_of()
    config.evaluators.first, config.evaluators.other = (configs.spec(probe.Probe, label="motion", primary=x) for x in (True, False))
    (tmp_path / "config.json").write_text(configs.to_json(config))
    names = {"reconstruction": ("loss", "loss_zero", "loss_trivial"), **dict.fromkeys(("first", "other"), ("trained", "untrained", "pixels", "chance"))}
    values = {f"{evaluator}/{name}": 1.0 for evaluator, found in names.items() for name in found}
    (tmp_path / "measurements.json").write_text(json.dumps({"seed": 0, "step": 1, "values": values}))
    bench = evidence.Bench(configs.build(config.evidence), tmp_path, {}, evidence.Deadline(seconds=0), print)
    assert sorted(bench.headlined(tmp_path)) == ["first", "reconstruction"]


def test_curves_stand_against_time_measured_side_by_side(tmp_path: pathlib.Path) -> None:
    """2 and 4 ms a step: step 100 is 0.2 and 0.4 s; lines without the measurement, or without a number, have no point."""
    lines = {"seed0": [{"step": 0, "p/x": 1.0}, {"step": 50, "loss": 3.0}, {"step": 100, "p/x": 5.0}], "seed1": [{"step": 0, "p/x": 3.0}, {"step": 100, "p/x": math.nan}]}
    for name, values in lines.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(v) + "\n" for v in values))
    steps = evidence_costs.follow(sorted(tmp_path.glob("seed*")), "p/x")
    assert steps == {"seed0": [(0, 1.0), (100, 5.0)], "seed1": [(0, 3.0)]}
    curves = evidence_costs.against_time({"a": steps, "b": steps}, {"a": {"ms_per_step": {"median": 2.0}}, "b": {"ms_per_step": {"median": 4.0}}})
    assert curves["a"]["seed0"] == [(0.0, 1.0), (0.2, 5.0)] and curves["b"]["seed0"] == [(0.0, 1.0), (0.4, 5.0)]
    assert evidence_costs.mean_curve(steps) == [(0, 2.0)] and evidence_costs.mean_curve({}) == []


def test_arms_change_fields_and_whole_nodes() -> None:
    """As on the command line, or by an object; unknown fields and missing evaluators are errors before any run."""
    config = config_of()
    changed = Arm("x", (("total", "7"), ("batch_size", 16), ("objective.encoder_mask", masking.Random(0.25, "token")), ("data.size", 16))).resolve(config)
    built = configs.build(changed.objective)
    assert changed.total == "7" and changed.batch_size == 16 and built.encoder_mask == masking.Random(0.25, "token")
    assert config.total == "2" and not changed.evidence and changed.name == "mini_x" and config.evidence
    for path, value in (("totl", "7"), ("objective.enc.width", 3), ("objective.encodr", masking.Hidden()), ("objective.x.y", masking.Hidden())):
        with pytest.raises(UserError, match="unknown config key"):
            Arm("x", ((path, value),)).resolve(config)
    del config.evaluators["reconstruction"]
    with pytest.raises(UserError, match="arm 'v1' needs evaluator 'reconstruction'; its config has \\(none\\)"):
        configs.build(config.evidence).evaluators(Arm("v1"), Arm("v1").resolve(config))


def test_arms_that_follow_others(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """"{after}" is the run of the same seed, and equal time is the other arm's steps at the measured speeds."""
    seen: dict[str, Any] = {}

    def train(run: Any, directory: pathlib.Path, /, **kw: Any) -> Any:
        """5 clips a second for the first arm, 20 for the second."""
        seen[str(directory.relative_to(tmp_path))] = run.config
        rate = 5.0 if "first" in str(directory) else 20.0
        (directory / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "clips_per_second": r}) + "\n" for i, r in enumerate((1.0, rate, rate))))
        return types.SimpleNamespace(finished=True, step=run.total, state=types.SimpleNamespace(ema=None, params={}, extra={}))

    @dataclasses.dataclass(frozen=True)
    class Constant:
        def run(self, context: Any, /) -> dict[str, float]:
            return {"loss": 1.0, "loss_zero": 1.0, "loss_trivial": 1.0}

    monkeypatch.setattr(evidence, "train", train)
    monkeypatch.setattr(reconstruction.Reconstruction, "run", Constant.run)
    loss = {"measurement": "reconstruction/loss"}
    arms = (Arm("first"), Arm("second", (("name", "of {after}"),), after="first"), Arm("long", as_long_as=("first", "second")))
    config = config_of(arms=arms, claims=(Claim("c", "c", Value("long", **loss), Value("first", **loss)), Claim("d", "d", Value("second", **loss), Value("first", **loss))))
    with pytest.raises(UserError, match="arm 'long' builds on 'first', whose seed 0 is not finished; name 'first' among --arms too"):
        evidence.run(config, workdir=tmp_path, arms=("long",), say=lambda _: None)
    assert evidence.run(config, workdir=tmp_path, say=lambda _: None) == 0
    assert seen["runs/second/seed1"].name == f"of {tmp_path}/runs/first/seed1"
    # Two steps of 8 clips at 5 and at 20 clips a second: 3.2 + 0.8 s, in which 20 clips a second make 10 steps of 8.
    assert seen["runs/long/seed0"].total == "10" and seen["budgets/long_seed0"].total == str(evidence.CALIBRATION)
    assert json.loads((tmp_path / "budgets" / "long_seed1.json").read_text())["seconds"] == pytest.approx(4.0)


def test_a_budget_stops_between_steps(tmp_path: pathlib.Path) -> None:
    """A budget of no time at all: stopped with the code of a run that goes on, nothing measured."""
    assert evidence.run(config_of(), workdir=tmp_path, budget=1e-9, say=lambda _: None) == 75
    assert not list(tmp_path.glob("runs/*/*/measurements.json"))


def test_training_ignores_evidence() -> None:
    """A resumed run may gain, lose and change it."""
    with_it, without = config_of(), config_of()
    without.evidence = {}
    for a, b in ((with_it, without), (without, with_it), (with_it, config_of(seeds=3))):
        difference = configs.compare(a, b)
        assert difference["free"] and not (difference["never"] or difference["fork"] or difference["extend"])


def test_command_passes_its_options_on(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """--seeds, --budget, --arms and overrides of the config."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr(evidence, "run", lambda config, /, **kw: asked.update(kw, config=config) or 0)
    words = ["--suite=evidence", "--config=configs/toy/videomae_v2.py", f"--workdir={tmp_path}", "--seeds=3", "--budget=1.5", "--arms=v1,dual", "--config.total=9"]
    assert evaluate.main(words) == 0
    assert asked["seeds"] == 3 and asked["budget"] == 1.5 and asked["arms"] == ("v1", "dual") and asked["workdir"] == tmp_path and asked["config"].total == "9"
    with pytest.raises(UserError, match="declares no evidence"):
        monkeypatch.undo()
        evidence.run(configs.load("configs/tiny.py"), workdir=tmp_path)


def test_the_row_names_every_claim() -> None:
    """One row whatever the number of claims; what has no interval says so."""
    good = verdicts.Verdict("claim", "shown", "", (1.0, 2.0), 1.5, 1.0, 2.0)
    none = verdicts.Verdict("claim", "unfinished", "", ())
    assert evidence_report.row("r", (claim(),), [good, none]) == "| r | a beats b: +1.50 [+1.00, +2.00] (2 seeds)<br>a beats b: no result | shown<br>unfinished |"
