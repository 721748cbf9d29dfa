"""Power laws recovered from points with known exponents; the held-out run; the reading of run directories."""

import json
import math
import pathlib
import types
from typing import Any

import numpy as np
import pytest
import written

from videomae_jax import config as configs
from videomae_jax import run_directory, scaling
from videomae_jax.commands import report as command
from videomae_jax.data import mixture
from videomae_jax.errors import UserError
from videomae_jax.scaling import Fit, Law, Point

SIZES = (1e6, 4e6, 16e6, 64e6)
CLIPS = (1e5, 4e5, 16e5)


def points(noise: float, *, seed: int = 0) -> list[Point]:
    """Four sizes x three budgets on loss = 0.3 + 0.2 (N/8e6)^-0.35 + 0.1 (D/4e5)^-0.5, each times exp(noise)."""
    rng = np.random.default_rng(seed)
    return [Point(f"{n:g}-{d:g}", n, d, 6 * n * d, (0.3 + 0.2 * (n / 8e6) ** -0.35 + 0.1 * (d / 4e5) ** -0.5) * math.exp(noise * rng.standard_normal()))
            for n in SIZES for d in CLIPS]


def one_budget(noise: float = 0.0, count: int = 8) -> list[Point]:
    """One variable: loss = 0.5 + 2 (C/1e12)^-0.25."""
    rng = np.random.default_rng(0)
    return [Point(f"{i}", 1e6, 10.0**i, 10.0 ** (10 + i / 2), (0.5 + 2 * 10 ** (-0.25 * (i / 2 - 2))) * math.exp(noise * rng.standard_normal())) for i in range(count)]


def test_exponents_without_noise() -> None:
    """Exactly, as far as the optimiser goes."""
    found = scaling.fit(points(0.0), draws=3)
    assert found.law.variables == ("parameters", "clips")
    np.testing.assert_allclose((found.law.floor, *found.law.exponents), (0.3, 0.35, 0.5), rtol=1e-3)
    np.testing.assert_allclose(found.errors, 0, atol=1e-5)


def test_one_variable_where_the_runs_vary_in_one() -> None:
    """FLOPs alone, also for few runs."""
    found = scaling.fit(one_budget(), draws=3)
    assert found.law.variables == ("flops",) and scaling.variables(points(0.0)[:7]) == ("flops",)
    np.testing.assert_allclose((found.law.floor, found.law.exponents[0]), (0.5, 0.25), rtol=1e-3)


def test_intervals_hold_the_truth_and_grow_with_the_noise() -> None:
    """90 % intervals of the exponents at 0.2 % noise; ten times the noise gives wider ones."""
    small, large = (scaling.fit(points(noise), draws=24) for noise in (0.002, 0.02))
    for i, truth in enumerate((0.35, 0.5)):
        low, high = small.interval([law.exponents[i] for law in small.drawn])
        assert low <= truth <= high and 0 < high - low < 0.4
        wide = large.interval([law.exponents[i] for law in large.drawn])
        assert wide[1] - wide[0] > 2 * (high - low)


def test_the_held_out_run_lies_in_its_interval_and_an_outlier_does_not() -> None:
    """The prediction of a run four times larger; a run 10 % off its law is seen."""
    *known, held = sorted(points(0.005), key=lambda p: p.flops)
    found = scaling.fit(known, draws=30)
    low, high = found.prediction(held)
    assert low <= held.loss <= high and (high - low) / held.loss < 0.06
    assert not low <= 1.1 * held.loss <= high


def test_the_interval_of_a_further_run_has_the_errors_of_the_fitted_ones() -> None:
    """Laws that all say 2 / 4^0.5: errors of 0.1 left by 3 parameters in 6 points are sqrt(6 / 3) times as large beside a run that was not fitted."""
    law = Law(("flops",), (1.0,), 0.0, (2.0,), (0.5,))
    found = Fit(law, (law,) * 100, (0.1, -0.1) * 3).prediction(Point("x", 1, 1, 4.0, 1.0))
    assert found == pytest.approx((math.exp(-0.1 * math.sqrt(2)), math.exp(0.1 * math.sqrt(2))))


def test_the_same_seed_gives_the_same_interval() -> None:
    """A report can be repeated."""
    a, b = (scaling.fit(one_budget(0.01), draws=5) for _ in range(2))
    assert a == b and a.prediction(one_budget()[-1]) == b.prediction(one_budget()[-1])


@pytest.mark.parametrize(("some", "message"), [
    (one_budget()[:3], "3 finished runs at 3 budgets; a law of flops needs 4 runs"), ([one_budget()[0]] * 5, "5 finished runs at 1 budgets"),
    ([*one_budget()[:5], Point("bad", 1, 1, 1e9, math.nan)], "the loss of bad is no positive number")])
def test_what_no_law_can_be_fitted_to(some: list[Point], message: str) -> None:
    """Too few, all alike, not finite."""
    with pytest.raises(UserError, match=message):
        scaling.fit(some)


def write(root: pathlib.Path, point: Point, *, finished: bool = True) -> pathlib.Path:
    """A run directory with what the trainer leaves in it."""
    folder = root / point.name
    folder.mkdir()
    (folder / "recipe_card.json").write_text(json.dumps({"steps": 8, "parameters": point.parameters, "clips_seen": point.clips, "train_flops_total": point.flops}))
    if finished:
        (folder / "summary.json").write_text(json.dumps({"steps": 8, "results": {scaling.METRIC: point.loss, "other/x": 1.0}}))
    return folder


def test_report_of_run_directories(tmp_path: pathlib.Path) -> None:
    """The largest run is held out, an unfinished one is named, the picture has a line for each size."""
    folders = [write(tmp_path, p) for p in points(0.002)]
    folders.append(write(tmp_path, Point("running", 1e9, 1e9, 1e18, 0.1), finished=False))
    folders.append(longer := write(tmp_path, Point("longer", 1e9, 1e9, 1e18, 0.1)))  # with the results of its first end
    (longer / "recipe_card.json").write_text((longer / "recipe_card.json").read_text().replace('"steps": 8', '"steps": 32'))
    result = json.loads(json.dumps(scaling.report(folders, draws=10)))
    assert len(result["runs"]) == 12 and result["unfinished"] == ["running", "longer"]
    held = result["held_out"]
    assert held["run"] == "6.4e+07-1.6e+06" and held["within"] and held["interval"][0] < held["predicted"] < held["interval"][1]
    assert result["law"]["exponents"]["parameters"]["value"] == pytest.approx(0.35, abs=0.05)
    text = scaling.lines(result)
    assert "of 12 runs = " in text[0] and text[-1].endswith("within")
    scaling.write(result, tmp_path / "scaling.html")
    page = (tmp_path / "scaling.html").read_text()
    assert "<svg" in page and all(f"{n / 1e6:.3g} M" in page for n in SIZES) and "predicted" in page


@pytest.mark.parametrize(("off", "within"), [(1.0, True), (1.15, False)])
def test_all_seeds_of_the_largest_run_are_held_out(off: float, within: bool, tmp_path: pathlib.Path) -> None:
    """Four budgets of three seeds: a mean 15 % off the law of the others is seen, however alike the largest are."""
    rng = np.random.default_rng(0)
    folders = []
    for i in range(4):
        for seed in range(3):
            loss = (0.5 + 2 * 10 ** (-0.25 * i)) * math.exp(0.004 * rng.standard_normal()) * (off if i == 3 else 1)
            folders.append(write(tmp_path, Point(f"{i}-{seed}", 1e6, 10.0**i, 10.0 ** (10 + i), loss)))
    held = scaling.report(folders, draws=20)["held_out"]
    assert held["run"] == "3-0, 3-1, 3-2" and held["within"] is within
    assert held["loss"] == pytest.approx(off * (0.5 + 2 * 10**-0.75), rel=0.01) and held["predicted"] == pytest.approx(0.5 + 2 * 10**-0.75, rel=0.05)


def test_the_metric_is_one_that_runs_have(tmp_path: pathlib.Path) -> None:
    """What `Reconstruction` logs is what a summary's results hold."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "reconstruction/loss": 0.5, "reconstruction/loss_zero": 0.9, "reconstruction/loss_trivial": 0.8}\n')
    run_directory.summarise(tmp_path, types.SimpleNamespace(total=4, config=configs.load("configs/scaling/toy.py")), seconds=1.0)
    assert json.loads((tmp_path / "summary.json").read_text())["results"][scaling.METRIC] == 0.5
    assert command.METRIC == scaling.METRIC


def test_the_command(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`report --scaling RUNS`: lines on standard error, one JSON line on standard output, a page."""
    folders = [str(write(tmp_path, p)) for p in one_budget(0.001, 6)]
    assert command.main(["--scaling", *folders, f"--out={tmp_path}/x.html"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["law"]["variables"] == ["flops"] and "held out" in shown.err and (tmp_path / "x.html").is_file()
    law = json.loads(shown.out)
    assert command.main(["--scaling", *map(str, sorted(tmp_path.iterdir())), f"--out={tmp_path}/x.html"]) == 0
    assert json.loads(capsys.readouterr().out) == law, "the page in the folder of the runs is none of them"
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="notes.txt is a file; allowed are run directories"):
        command.main(["--scaling", *folders, f"{tmp_path}/notes.txt"])
    with pytest.raises(UserError, match="missing/x.html cannot be written"):
        command.main(["--scaling", *folders, f"--out={tmp_path}/missing/x.html"])
    assert json.loads(capsys.readouterr().out)["law"], "the fit is not lost with the page"
    with pytest.raises(UserError, match="with --scaling needed are runs and nothing else"):
        command.main([folders[0], "--scaling", *folders[1:]])


@pytest.mark.parametrize(("changes", "message"), [
    ({"data.index": "/mnt/k400.parquet"}, "data.index is 'index.parquet' and 'k400.parquet'"), ({"eval_data.sampling.stride": "2"}, "data.sampling.stride is 4 and 2"),
    ({"objective.encoder.patch": "(2, 8, 8)"}, r"objective.encoder.patch is \(2, 16, 16\) and \(2, 8, 8\)"),
    ({"data.index": "/mnt/index.parquet"}, ""),
    ({"data.sampling.stride": "2", "data.timeout": "9.0", "data.repeats": "2", "total": "9", "objective.encoder.depth": "3", "seed": "1"}, "")])
def test_losses_of_other_clips_or_patches_have_no_common_law(changes: dict[str, str], message: str, tmp_path: pathlib.Path) -> None:
    """One line that names two runs and what differs; other sizes, lengths and training data are what a law is about, and an old run without a config says nothing."""
    folders = [write(tmp_path, p) for p in one_budget()]
    for i, folder in enumerate(folders[1:]):
        config = configs.load("configs/pretrain/vit_b.py")
        configs.override(config, changes if i == 4 else {})
        (folder / "config.json").write_text(configs.to_json(config))
    if message:  # a field that the run between does not say is compared all the same
        (folders[4] / "config.json").unlink()
        folders = [folders[i] for i in (0, 1, 2, 3, 5, 4, *range(6, len(folders)))]
    if not message:
        assert len(scaling.report(folders, draws=2)["runs"]) == len(folders)
        return
    with pytest.raises(UserError, match=f"1 and 5 have no losses of one law: {message}; allowed are") as error:
        scaling.report(folders, draws=2)
    assert "\n" not in str(error.value)


def test_data_of_another_machine_are_compared_by_their_names() -> None:
    """Of every part of a mixture too, and folders, whose last name is a version alone."""
    def measured(place: str, folder: str = "hmdb51") -> dict[str, Any]:
        config = written.config(written.pretraining(), index=f"{place}/all.parquet")
        with config.unlocked(), config.ignore_type():
            config.data.folder = f"{place}/{folder}/2.0.0"
            config.data = configs.spec(mixture.Concat, parts={"a": {"source": config.data}})
        return scaling.measured(config)

    assert measured("/data") == measured("/mnt/data") and {"all.parquet", "hmdb51/2.0.0"} <= set(map(str, measured("/data").values()))
    assert measured("/data") != measured("/data", "ucf101")


def test_packed_sets_are_told_apart_by_their_folders(tmp_path: pathlib.Path) -> None:
    """Each has an index.parquet; the same set below another root, or in a folder of another name, stays the same. In a mixture too."""
    def config(index: str, *, mixed: bool = False, held: str = "") -> Any:
        made = written.config(written.pretraining(), index=index)
        with made.unlocked(), made.ignore_type():
            if mixed:
                made.data = configs.spec(mixture.Concat, parts={"a": {"source": made.data}})
            if held:
                made.eval_data.index = held
        return made

    def compare(a: Any, b: Any, *, trained: tuple[str, str] = ("", "")) -> None:
        for name, one, clips in zip("ab", (a, b), trained, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.json").write_text(configs.to_json(one))
            (tmp_path / name / "data.json").write_text(json.dumps({"clips": 5, "sha256": clips}) if clips else "")
        scaling.check_comparable([tmp_path / "a", tmp_path / "b"])

    for mixed, field in ((False, "data.index"), (True, "data.parts.a.source.index")):
        kinetics, something = (config(f"/data/{name}_packed/index.parquet", mixed=mixed) for name in ("k400", "ssv2"))
        for trained in (("", ""), ("x", "y"), ("x", "")):
            with pytest.raises(UserError, match=f"the folder of {field} is 'k400_packed' and 'ssv2_packed'; allowed are"):
                compare(kinetics, something, trained=trained)
        compare(kinetics, config("/mnt/k400_packed/index.parquet", mixed=mixed))
        compare(kinetics, config("index.parquet", mixed=mixed))
        compare(kinetics, config("/mnt/index.parquet", mixed=mixed), trained=("x", "x"))
    with pytest.raises(UserError, match="the folder of data.index is 'a' and 'b'"):  # whose held-out clips are others than those that they trained on
        compare(config("t.parquet", held="/data/a/index.parquet"), config("t.parquet", held="/data/b/index.parquet"), trained=("x", "x"))


def test_mistakes_in_run_directories(tmp_path: pathlib.Path) -> None:
    """No run, another metric, nothing finished."""
    folder = write(tmp_path, points(0.0)[0])
    with pytest.raises(UserError, match="no recipe_card.json"):
        scaling.read(tmp_path, metric=scaling.METRIC)
    with pytest.raises(UserError, match=r"no 'probe/top1'; it has reconstruction/loss, other/x"):
        scaling.read(folder, metric="probe/top1")
    (folder / "summary.json").unlink()
    with pytest.raises(UserError, match="none of the 1 runs is finished"):
        scaling.report([folder])
    (folder / "summary.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        scaling.read(folder, metric=scaling.METRIC)
