"""Two runs on one page: values at the same step, curves, differences of the configs, and what may not be concluded."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest
import written

from videomae_jax import comparison, records
from videomae_jax import config as configs
from videomae_jax.__main__ import main
from videomae_jax.errors import UserError
from videomae_jax.evals import reconstruction


def record(directory: pathlib.Path, lines: list[dict[str, float]], /, *, total: int = 8, **fields: Any) -> pathlib.Path:
    """A run directory with these lines of metrics."""
    directory.mkdir(parents=True)
    config = written.config(written.pretraining())
    with config.unlocked():
        config.evaluators.reconstruction = configs.spec(reconstruction.Reconstruction)
    for name, value in fields.items():
        configs.override(config, {name.replace("__", "."): str(value)})
    (directory / "config.json").write_text(configs.to_json(config))
    (directory / "recipe_card.json").write_text(json.dumps({"steps": total}))
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "summary.json").write_text(json.dumps({"steps": lines[-1]["step"], "seconds": 1.0}))
    return directory


LONG = [{"step": s, "loss": 1.0 / s, "lr": 0.1} for s in (2, 4, 6, 8)]
SHORT = [{"step": s, "loss": 2.0 / s} for s in (2, 4)]


def test_values_are_those_of_the_same_step(tmp_path: pathlib.Path) -> None:
    """The last step that both have, not the last of each; a value of one run alone has no difference."""
    pair = [records.load(record(tmp_path / "a", LONG)), records.load(record(tmp_path / "b", SHORT))]
    rows = {row[0]: row[1:] for row in comparison.values(pair)}
    assert rows == {"loss": ["4", "0.25", "0.5", "+0.25", "0.125", "0.5"], "lr": ["", "", "", "", "0.1", ""]}


def test_the_command_writes_a_page(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Differences by their weight, names that tell the runs apart, and what does not follow from one seed."""
    one, two = record(tmp_path / "x/run", LONG), record(tmp_path / "y/run", SHORT, seed=3, objective__encoder__width=32)
    assert main(["report", "--compare", str(one), str(two), f"--out={tmp_path}/c.html"]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/c.html"
    page = (tmp_path / "c.html").read_text()
    for text in ("x/run and y/run", "<td>objective.encoder.width</td><td>16</td><td>32</td>", "<td>seed</td><td>0</td><td>3</td>", "another model or objective",
                 "Not both runs are finished", "a difference says nothing about chance", "do not compare"):
        assert text in page
    assert page.count("<svg") == 2 and "http://" not in page.replace("http://www.w3.org", "")


def test_equal_runs(tmp_path: pathlib.Path) -> None:
    """Equal settings say so; another length or another protocol is named, and a difference is then no matter of machines."""
    one, longer, same, other = (records.load(record(tmp_path / name, LONG, **more)) for name, more in (
        ("a", {}), ("b", {"total": 9}), ("c", {}), ("d", {"evaluators__reconstruction__clips": 2})))
    equal, length, protocol = (comparison.page([one, two], names=("a", "b")) for two in (same, longer, other))
    assert "The configs are equal" in equal and "Seed and settings are equal" in equal
    assert "8 and 9 steps long" in length and "settings are equal" not in length
    assert "measured otherwise (evaluators.reconstruction.clips)" in protocol and "settings are equal" not in protocol
    few, many = (dataclasses.replace(r, data={"clips": n, "sha256": "x"}) for r, n in ((one, 200), (same, 2000)))
    clips = comparison.page([few, many], names=("a", "b"))
    assert "other clips (200 and 2,000)" in clips and "settings are equal" not in clips
    assert "settings are equal" in comparison.page([few, same], names=("a", "b"))  # of before runs wrote it down


def test_mistakes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One run, three, the same twice, no run, another file name."""
    one, two = record(tmp_path / "a", LONG), record(tmp_path / "b", SHORT)
    for words, message in ((["--compare", one], "expected 2 arguments"), (["--compare", one, one], "is given twice"),
                           (["--compare", one, two, "--out=x.pdf"], "ends in .html"), ([one, "--compare", one, two], "needed are two runs"),
                           (["--compare", one, two, "--out=/dev/null/x.html"], "cannot write to --out=/dev/null/x.html: "),
                           ([], "name a run directory"), (["--compare", one, tmp_path], "holds no config.json")):
        assert main(["report", *map(str, words)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError, match="is given twice"):
        comparison.labels([one, one])
