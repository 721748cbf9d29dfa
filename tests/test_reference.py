"""Reference curves: what belongs to one, what is compared, and that the shipped ones are of the shipped configs. And what ran a run."""

import dataclasses
import json
import pathlib
import re
import subprocess
from typing import Any

import jax
import numpy as np
import pytest
import written

from videomae_jax import config as configs
from videomae_jax import metrics, parallel, records, reference, report, starts
from videomae_jax.__main__ import main
from videomae_jax.config import spec
from videomae_jax.errors import UserError
from videomae_jax.evals import probe

ROOT = pathlib.Path(__file__).resolve().parents[1]
START = {"time": "2026-11-26T20:00:00+00:00", "step": 0, "videomae_jax": "0.1.0", "revision": "abc-dirty", "python": "3.11.7",
         "libraries": {"jax": "0.10.2", "numpy": "2"}, "device": "cpu", "devices": 2, "processes": 1, "mesh": {"data": 2, "fsdp": 1}}


def run(directory: pathlib.Path, losses: list[float], *, started: bool = True, steps: int = 8, **fields: Any) -> pathlib.Path:
    """A finished run directory with a loss at every second step and a probe at the last."""
    directory.mkdir(parents=True)
    config = written.config(written.pretraining())
    config.unlock()
    config.total, config.evaluators.motion = "8", spec(probe.Probe, label="motion")
    held_out = fields.pop("held_out", {})
    config.eval_data.update(held_out)
    configs.override(config, {name.replace("__", "."): str(value) for name, value in fields.items()})
    lines: list[dict[str, float]] = [{"step": 2 * i + 2, "loss": x, "clips_per_second": 9.0} for i, x in enumerate(losses)]
    lines.append({"step": lines[-1]["step"], "motion/trained": 100 * losses[-1]})
    (directory / "config.json").write_text(configs.to_json(config))
    (directory / "recipe_card.json").write_text(json.dumps({"steps": steps}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "summary.json").write_text(json.dumps({"steps": lines[-1]["step"], "seconds": 1.0}))
    if started:
        (directory / "starts.jsonl").write_text(json.dumps(START) + "\n")
    return directory


@pytest.fixture
def curve(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> reference.Curve:
    """The curve of two seeds, shipped."""
    runs = [run(tmp_path / str(seed), [1.0, 0.5, 0.3, loss], seed=seed, data__index=f"{seed}.parquet") for seed, loss in ((0, 0.2000041), (1, 0.3))]
    assert main(["report", str(runs[0]), f"--curve={tmp_path}/mine.json", "--with", str(runs[1])]) == 0
    found = reference.read(tmp_path / "mine.json")
    monkeypatch.setattr(reference, "shipped", lambda: (found,))
    return found


def test_a_curve_keeps_what_was_learned(curve: reference.Curve) -> None:
    """Values by seed without timings, at five digits, and where they are from."""
    assert curve.name == "mine" and curve.made == "2026-11-26, 2 x cpu, Python 3.11.7, jax 0.10.2"
    assert curve.at("loss") == {2: [1.0, 1.0], 4: [0.5, 0.5], 6: [0.3, 0.3], 8: [0.2, 0.3]}
    assert not {"clips_per_second"} & {key for lines in curve.lines.values() for line in lines for key in line}


def test_a_run_beside_its_curve(curve: reference.Curve, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the last step that both have, in the report too; the seed, the place of the data, workers and mesh may differ."""
    record = records.load(run(tmp_path / "a", [1.0, 0.4], steps=4, seed=7, data__index="mine.parquet", workers=3, mesh__fsdp=2))
    assert reference.rows(record, curve) == [["loss", "4", "0.4", "0.5", "0.5 to 0.5", "-0.1"]]
    whole = records.load(run(tmp_path / "b", [1.0, 0.4, 0.3, 0.24]))
    assert reference.rows(whole, curve) == [["loss", "8", "0.24", "0.25", "0.2 to 0.3", "-0.01"], ["motion/trained", "8", "24", "25", "20 to 30", "-1"]]
    page = report.page(whole)
    assert main(["report", str(tmp_path / "b")]) == 0
    assert "configs/curves/mine.json in brackets: loss 0.24 (0.2 to 0.3), motion/trained 24 (20 to 30)" in capsys.readouterr().err
    assert "Beside the reference curve" in page and "configs/curves/mine.json, 2 seeds: 2026-11-26" in page and "<h2>Starts</h2>" in page


def test_other_clips_are_told(curve: reference.Curve, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of the data may differ, and then nothing in the config tells a corpus from another; runs of one curve saw the same clips."""
    def told(directory: pathlib.Path, clips: int) -> pathlib.Path:
        (directory / "data.json").write_text(f'{{"clips": {clips}, "sha256": "b"}}')
        return directory

    directory = told(run(tmp_path / "a", [1.0, 0.5, 0.3, 0.2]), clips=200)
    record, known = records.load(directory), dataclasses.replace(curve, data={"clips": 2000, "sha256": "a"})
    assert reference.strange(record, curve) == ""
    monkeypatch.setattr(reference, "shipped", lambda: (known,))
    assert "in brackets (of 2,000 other training clips; this run has 200): loss 0.2" in reference.line(record)
    assert "other training clips" in report.page(record) and reference.strange(dataclasses.replace(record, data=known.data), known) == ""
    with pytest.raises(UserError, match="were trained on other clips"):
        reference.write([directory, told(run(tmp_path / "b", [1.0, 0.5, 0.3, 0.2], seed=1), clips=2000)], tmp_path / "new.json")
    old = run(tmp_path / "c", [1.0, 0.5, 0.3, 0.2], seed=2)  # of before runs wrote it down
    assert reference.read(reference.write([old, directory], tmp_path / "new.json")).data == {"clips": 200, "sha256": "b"}


def test_other_weights_are_told(curve: reference.Curve, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their place may differ, and then their digest tells; a run that begins from none belongs to no curve of one that does."""
    def tuned(name: str, digest: str, *, values: str = "", seed: int = 0, pretrained: str = "") -> pathlib.Path:
        directory = run(tmp_path / name, [1.0, 0.5, 0.3, 0.2], seed=seed)
        config = json.loads((directory / "config.json").read_text())
        config["objective"] = json.loads(configs.to_json(configs.plain(dataclasses.replace(written.classifier(), pretrained=pretrained))))
        (directory / "config.json").write_text(json.dumps(config))
        told = {"params": {"path": pretrained, "sha256": digest} | ({"values": values} if values else {}), "data/parts": {"sha256": name}} if digest else {}
        lines = [START | {"externals": told}, START | {"step": 4, "externals": {"data/parts": {"sha256": name}}}]
        (directory / "starts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return directory

    first = tuned("first", "a", pretrained="runs/smoke")
    made = reference.read(reference.write([first, tuned("old", "", seed=1, pretrained="runs/smoke")], tmp_path / "tuned.json"))
    assert made.weights == {"params": {"sha256": "a"}}
    monkeypatch.setattr(reference, "shipped", lambda: (made,))
    for name, digest, said in (("same", "a", ""), ("other", "b", " (began from other weights)"), ("unknown", "", "")):
        record = records.load(tuned(name, digest, pretrained=f"/elsewhere/{name}"))
        assert f"in brackets{said}: loss 0.2" in reference.line(record) and ("began from other weights" in report.page(record)) is bool(said)
        assert reference.strange(record, dataclasses.replace(made, weights={})) == ""  # a curve of before they were written down
    assert reference.of(records.load(tuned("scratch", "")).config) is None
    anew = tuned("anew", "b", values="v", pretrained="runs/smoke")  # the same pretraining, done a second time
    known = reference.read(reference.write([anew, tuned("again", "c", seed=1, values="v", pretrained="runs/smoke")], tmp_path / "anew.json"))
    for name, digest, values, other in (("equal", "d", "v", False), ("unequal", "e", "w", True), ("older", "b", "", False), ("other old", "a", "", True)):
        assert bool(reference.strange(records.load(tuned(name, digest, values=values, pretrained="runs/smoke")), known)) is other
    text = (tmp_path / "tuned.json").read_text()
    (tmp_path / "old.json").write_text(text.replace('{"params": {"sha256": "a"}}', '{"params": "a"}'))
    assert reference.read(tmp_path / "old.json").weights == made.weights
    with pytest.raises(UserError, match="began from other weights"):
        reference.write([first, tuned("third", "b", seed=2, pretrained="runs/smoke")], tmp_path / "new.json")


@pytest.mark.parametrize("changed", [{"batch_size": 4}, {"total": 4}, {"objective__encoder__width": 32}, {"optimizers__main__b2": 0.9}])
def test_another_recipe_has_no_curve(curve: reference.Curve, tmp_path: pathlib.Path, changed: dict[str, Any]) -> None:
    """Anything that changes what is learned."""
    record = records.load(run(tmp_path / "a", [1.0], **changed))
    assert not curve.belongs(record.config) and "reference" not in report.page(record).lower()


def test_another_protocol_is_not_compared(curve: reference.Curve, tmp_path: pathlib.Path) -> None:
    """A probe on fewer clips, or other held-out clips: the training loss alone is left."""
    for number, changed in enumerate(({"evaluators__motion__train": 64}, {"held_out": {"repeats": 3}})):
        record = records.load(run(tmp_path / f"x{number}", [1.0, 0.5, 0.3, 0.2], **changed))
        assert [row[0] for row in reference.rows(record, curve)] == ["loss"]
    often = records.load(run(tmp_path / "often", [1.0, 0.5, 0.3, 0.2], evaluators__motion__every="10%"))
    assert len(reference.rows(often, curve)) == 2


def test_mistakes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unfinished, of unknown origin, of other settings, one seed twice, another file name, --with alone: one line, nothing written."""
    good = run(tmp_path / "good", [1.0, 0.5, 0.3, 0.2])
    out = tmp_path / "c.json"
    for words, said in (([run(tmp_path / "a", [1.0]), f"--curve={out}"], "is not finished"),
                        ([run(tmp_path / "b", [1.0, 0.5, 0.3, 0.2], started=False), f"--curve={out}"], "holds no starts.jsonl"),
                        ([good, f"--curve={out}", "--with", run(tmp_path / "c", [1.0, 0.5, 0.3, 0.2], seed=1, batch_size=4)], "have other configs"),
                        ([good, f"--curve={out}", "--with", run(tmp_path / "d", [1.0, 0.5, 0.3, 0.2])], "the seeds of the runs are 0, 0"),
                        ([good, f"--curve={tmp_path}/c.txt"], "ends in .json"), ([good, "--with", good], "--with goes with --curve"),
                        ([good, "--curve=/dev/null/c.json"], "cannot write to --curve=/dev/null/c.json: ")):
        assert main(["report", *map(str, words)]) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1 and not out.exists()


SHIPPED = sorted((ROOT / "configs" / "curves").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_curves_are_of_shipped_configs(path: pathlib.Path) -> None:
    """A config that was changed since needs its curve made anew; no curve tells of a machine's folders."""
    curve = reference.read(path)
    owners = [p for p in (ROOT / "configs").rglob("*.py") if p.name not in ("base.py", "__init__.py") and curve.belongs(configs.load(str(p)))]
    assert owners, f"no config has these settings; train it again and write {path} with `report RUN --curve=`"
    assert curve in reference.shipped() and curve.lines and all(set(line).isdisjoint(metrics.TIMING) for lines in curve.lines.values() for line in lines)
    assert not any(str(value).startswith("/") for value in configs.flat(curve.config).values())


# -- what ran a run ----------------------------------------------------------------------------------------------------


def test_a_start_says_what_ran_it(tmp_path: pathlib.Path) -> None:
    """Devices, mesh and versions of this process; a line a start."""
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]).reshape(2, 1, 1), parallel.AXES)
    found = starts.describe(mesh)
    for step in (0, 6):
        starts.note(tmp_path, found, step=step, say=pytest.fail)
    lines = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 6] and lines[0]["libraries"]["jax"] == jax.__version__
    assert lines[0]["devices"] == 2 and lines[0]["mesh"]["data"] == 2 and lines[0]["processes"] == 1


def test_a_full_disk_costs_the_line(tmp_path: pathlib.Path) -> None:
    """It is said, and nothing is raised."""
    said: list[str] = []
    starts.note(tmp_path / "absent", {}, step=0, say=said.append)
    assert len(said) == 1 and "cannot be written (No such file or directory)" in said[0]


def test_the_revision_is_that_of_the_checkout(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marked where a file differs from the commit; none outside a checkout, nor where git refuses."""
    package = tmp_path / "videomae_jax"
    package.mkdir()
    (package / "a.py").write_text("1")
    monkeypatch.setattr(starts, "__file__", str(package / "starts.py"))
    monkeypatch.setattr(starts, "GIT", ("git", "-C", str(package), *starts.GIT[3:]))
    assert starts.revision() is None
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True,
                              text=True).stdout.strip()
    git("init", "-q")
    assert starts.revision() is None  # no commit yet
    git("add", ".")
    git("commit", "-qm", "one")
    assert starts.revision() == git("rev-parse", "--short=12", "HEAD")
    (package / "a.py").write_text("2")
    assert starts.revision() == git("rev-parse", "--short=12", "HEAD") + "-dirty"


def test_whatever_trains_here_has_a_curve() -> None:
    """Every config that tells how to train it on an embedded world, but those of which README says that they have none."""
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `report DIR` |"))
    excused = {f"configs/{name}" for name in re.findall(r"`([\w/]+\.py)`", row.partition(" has one, but ")[2].partition(";")[0])}
    files = {p.relative_to(ROOT).as_posix(): p for p in (ROOT / "configs").rglob("*.py")}
    told = {name: p for name, p in files.items() if "videomae_jax synthesize" in p.read_text() and f"videomae_jax train --config={name}" in p.read_text()}
    assert len(told) > 5 and excused & set(told) == {name for name, p in told.items() if reference.of(configs.load(str(p))) is None}
