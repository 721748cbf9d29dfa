"""Grids: cells with their costs, what is finished, the commands, and the launchers that submit the rest."""

import json
import pathlib
import shlex
from typing import Any

import ml_collections
import pytest

from videomae_jax import config as configs
from videomae_jax import forecast, grid, plan, topologies
from videomae_jax.commands import plan as command
from videomae_jax.errors import UserError
from videomae_jax.objectives.base import Phase
from videomae_jax.objectives.mae import MAE


def small(**cells: Any) -> Any:
    """A grid over configs/tiny.py."""
    return ml_collections.ConfigDict({"name": "g", "grid": {
        name: {"config": "configs/tiny.py", "videos": videos, "overrides": (("total", total), ("data.index", "a b.parquet"))} for name, (videos, total) in cells.items()}})


def test_cells(tmp_path: pathlib.Path) -> None:
    """Costs grow with videos and epochs; a summary of all the steps of the run's own index says finished, of fewer, of another total or a broken one does not."""
    config = small(once=(400, "1ep"), twice=(400, "2ep"), more=(800, "1ep"), steps=(400, "100"), other=(400, "3ep"))
    for name, total, text, card in (("once", "1ep", '{"steps": 98}', 98), ("twice", "2ep", '{"steps": 100}', 196), ("more", "1ep", "{", 200),
                                    ("other", "1ep", '{"steps": 98}', 98)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(text)
        (tmp_path / name / "recipe_card.json").write_text(json.dumps({"steps": card}))
        stored = configs.load("configs/tiny.py")
        configs.override(stored, {"total": total, "data.index": "elsewhere.parquet"})
        (tmp_path / name / "config.json").write_text(configs.to_json(stored))
    found = {c.name: c for c in grid.cells(config, root=str(tmp_path), topology="h100x8")}
    assert found["twice"].cost == pytest.approx(2 * found["once"].cost) and found["more"].cost == pytest.approx(2 * found["once"].cost)
    assert found["once"].cost > 0
    assert found["steps"].cost == pytest.approx(found["once"].cost)
    assert [c.name for c in found.values() if c.finished] == ["once"]
    words = ("train", "--config=configs/tiny.py", f"--workdir={tmp_path}/more", "--config.total=1ep", "--config.data.index=a b.parquet")
    assert found["more"].words[:len(words)] == words and found["more"].words[len(words):] == (
        "--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.mesh.tensor=1", "--config.microbatches=1", "--config.objective.decoder.remat=none",
        "--config.objective.encoder.remat=none")
    text = grid.lines(list(found.values()), topology="h100x8")
    commands = dict(line.split("\t") for line in text if not line.startswith("#"))
    assert commands.keys() == {"twice", "more", "steps", "other"} and tuple(shlex.split(commands["more"])) == found["more"].words
    assert any("4 of 5 cells to run" in line and line.endswith(f"chip-hours on h100x8; {plan.LABEL}") for line in text) and "within" in plan.LABEL
    plain = {c.name: c for c in grid.cells(config, root=str(tmp_path))}
    assert plain["more"].words == words  # without a topology nothing is chosen
    assert any(line.endswith("EFLOP; --topology=NAME (v5p-512, h100x512, ...) counts chip-hours") for line in grid.lines(list(plain.values()), topology=""))
    flops = {name: c.cost for name, c in plain.items()}
    assert flops["twice"] == pytest.approx(2 * flops["once"])


def test_fields_of_every_cell_count_for_all_that_is_said_of_it(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of seed 1 is not finished for a grid of seed 2; a larger model costs more; what a run may change as it goes on asks for no other run."""
    stored = configs.load("configs/tiny.py")
    configs.override(stored, {"total": "1ep", "seed": "1", "microbatches": "1"})
    (tmp_path / "a").mkdir()
    for name, text in (("summary.json", '{"steps": 98}'), ("recipe_card.json", '{"steps": 98}'), ("config.json", configs.to_json(stored))):
        (tmp_path / "a" / name).write_text(text)
    def cell(**overrides: str) -> grid.Cell:
        found, = grid.cells(small(a=(400, "1ep")), root=str(tmp_path), overrides={k.replace("__", "."): v for k, v in overrides.items()})
        return found
    assert cell(seed="1").finished and not cell(seed="2").finished and not cell(total="2ep").finished
    assert cell(seed="1", microbatches="2", name="other").finished
    assert cell(seed="2").words[-1] == "--config.seed=2" and cell(total="2ep").words[3:] == ("--config.total=2ep", "--config.data.index=a b.parquet")
    assert cell(total="2ep").cost == pytest.approx(2 * cell().cost) and cell(objective__encoder__depth="12").cost > cell().cost
    with pytest.raises(UserError, match="sead"):
        cell(sead="2")
    (tmp_path / "g.py").write_text("from configs import base\ndef get_config():\n    config = base.get_config().unlock()\n    config.grid = {'a': {\n"
                                   "        'config': 'configs/tiny.py', 'videos': 400, 'overrides': (('total', '1ep'),)}}\n    return config\n")
    assert command.main([f"--grid={tmp_path}/g.py", f"--root={tmp_path}", "--config.seed=2"]) == 0
    assert "# 1 of 1 cells" in (said := capsys.readouterr().out) and said.splitlines()[-1].endswith("--config.seed=2")


def test_a_run_of_an_earlier_version_stays_finished(tmp_path: pathlib.Path) -> None:
    """Its stored config lacks a parameter that has been added since; an override of that is compared with the default."""
    stored = json.loads(configs.to_json(configs.load("configs/tiny.py")))
    del stored["objective"]["encoder"]["eps"]
    for name, text in (("summary.json", '{"steps": 98}'), ("recipe_card.json", '{"steps": 98}'), ("config.json", json.dumps(stored))):
        (tmp_path / name).write_text(text)
    assert grid.finished(tmp_path, {}) and grid.finished(tmp_path, {"objective.encoder.eps": "1e-6"})
    assert not grid.finished(tmp_path, {"objective.encoder.eps": "1e-5"})


def test_a_cell_without_a_total_is_as_long_as_its_config() -> None:
    """A grid over seeds."""
    config = ml_collections.ConfigDict({"name": "g", "grid": {
        f"{seed}{total}": {"config": "configs/tiny.py", "videos": 400, "overrides": (("seed", str(seed)), *((("total", total),) if total else ()))}
        for seed, total in ((1, ""), (2, ""), (3, str(configs.load("configs/tiny.py").total)))}})
    found = grid.cells(config, root="r")
    assert found[0].cost == found[1].cost == found[2].cost > 0
    assert found[1].words == ("train", "--config=configs/tiny.py", "--workdir=r/2", "--config.seed=2")


@pytest.mark.parametrize(("fields", "message"), [
    ({"config": None}, "has no config; needed is the path of a config"), ({"videos": None}, "has no videos; needed is a whole number of 1 and more"),
    ({"overrides": None}, "has no overrides; needed is pairs of a field and its value"), ({"config": 5}, "has config = 5; allowed is the path"),
    ({"videos": 0}, "has videos = 0; allowed is a whole number"), ({"videos": "many"}, "has videos = 'many'; allowed"), ({"videos": True}, "has videos = True; allowed"),
    ({"overrides": "seed"}, "has overrides = 'seed'; allowed is pairs"), ({"overrides": ("seed", "12")}, "has overrides = .'seed', '12'.; allowed is pairs"),
    ({"overrides": (("seed", 1),)}, "has overrides = ..'seed', 1.,.; allowed is pairs")])
def test_mistakes_in_a_cell(fields: dict[str, Any], message: str) -> None:
    """One line that names the cell and what it lacks, whichever of them it is."""
    config = small(a=(400, "1ep"), bad=(400, "1ep"))
    with config.unlocked(), config.ignore_type():
        cell = {"config": "configs/tiny.py", "videos": 400, "overrides": ()} | fields
        config.grid.bad = {name: value for name, value in cell.items() if value is not None}
    with pytest.raises(UserError, match=f"^cell 'bad' of config.grid {message}"):
        grid.cells(config, root="r")


def test_mistakes() -> None:
    """A config without cells; a config beside a grid; neither."""
    with pytest.raises(UserError, match="no cells in config.grid"):
        grid.cells(configs.load("configs/tiny.py"), root="r")
    with pytest.raises(UserError, match="no cells in config.grid"):
        grid.cells(ml_collections.ConfigDict({"name": "g", "grid": 5}), root="r")
    with pytest.raises(UserError, match="--topology=local belongs to a plan of one run; allowed with --grid is a name of hardware"):
        command.main(["--grid=configs/scaling/v2.py", "--topology=local"])
    for word in ("--memory=20", "--videos=5", "--measure=m.json", "--then=x.py"):
        with pytest.raises(UserError, match=f"{word.partition('=')[0]} belongs to a plan of one run; allowed with --grid are --root, --topology and --trust"):
            command.main(["--grid=configs/scaling/v2.py", word])
    with pytest.raises(UserError, match="--grid brings its own configs"):
        command.main(["--grid=configs/scaling/v2.py", "--config=configs/tiny.py"])
    with pytest.raises(UserError, match="plan needs --config=FILE and --topology=NAME, or --grid=FILE"):
        command.main(["--config=configs/tiny.py"])


def test_the_grid_of_v2() -> None:
    """Four sizes x three corpora x three lengths, and two sizes beyond; every override exists in its config."""
    cells = configs.load("configs/scaling/v2.py").grid
    assert len(cells) == 4 * 3 * 3 + 2 and {"b-ssv2-75ep", "g-hybrid-300ep", "22b-hybrid-300ep"} <= set(cells)
    for cell in {c.config: c for c in cells.values()}.values():
        configs.override(configs.load(cell.config), dict(cell.overrides))
    assert json.loads(configs.to_json(cells["g-k400-150ep"]))["videos"] == 240_000


def test_what_is_submitted_is_what_was_priced() -> None:
    """The largest model runs in no other form; what a cell sets itself is not chosen."""
    config = configs.load("configs/scaling/v2.py")
    with config.unlocked():
        config.grid = {"22b": config.grid["22b-hybrid-300ep"]}
    cell, = grid.cells(config, root="r", topology="h100x512")
    assert {"--config.mesh.data=64", "--config.mesh.fsdp=8", "--config.microbatches=1", "--config.objective.encoder.remat=dots"} <= set(cell.words)
    made = configs.load("configs/scaling/vit_22b.py")
    configs.override(made, dict(word.removeprefix("--config.").split("=", 1) for word in cell.words if word.startswith("--config.")))
    assert made.mesh.fsdp == 8 and made.microbatches == 1 and made.objective.decoder.remat == "dots"
    own = small(a=(400, "1ep"))
    own.grid.a.overrides += (("microbatches", "2"), ("objective.encoder.remat", "dots"), ("mesh.fsdp", "2"))
    words = next(iter(grid.cells(own, root="r", topology="h100x4"))).words
    assert words[-5:] == (
        "--config.microbatches=2", "--config.objective.encoder.remat=dots", "--config.mesh.fsdp=2", "--config.mesh.data=2", "--config.mesh.tensor=1")


def test_hosts_that_cannot_keep_up_are_paid_for() -> None:
    """By a cell as by a plan of one run: ViT-S on 512 GPUs waits for its clips."""
    config = ml_collections.ConfigDict({"name": "g", "grid": {"s": {"config": "configs/pretrain/vit_s.py", "videos": 240_000, "overrides": (("total", "100"),)}}})
    cell, = grid.cells(config, root="r", topology="h100x512")
    where, made = topologies.find("h100x512"), forecast.without_index(configs.load("configs/pretrain/vit_s.py"), videos=240_000)
    planner = plan.Planner(made, where, fixed=frozenset(), trust=())
    seconds = min(e.seconds for e in map(planner.of, planner.choices()) if e.bytes <= planner.limit)
    slowdown = plan.fed(planner.run, where, seconds, plan.Input())["input_slowdown"]
    assert slowdown > 1 and cell.cost == pytest.approx(100 * seconds * slowdown * 512 / 3600)


class Twofold(MAE):
    """Two phases, each on a batch of its own."""

    def phases(self) -> tuple[Phase, ...]:
        return (Phase("first", self.loss, data="fresh"), Phase("train", self.loss))


def test_an_epoch_is_as_many_steps_as_a_run_makes_of_it() -> None:
    """Two batches a step: half as many, each twice as dear."""
    config = small(one=(400, "1ep"), two=(400, "1ep"))
    config.grid.two.overrides += (("objective.__symbol__", f"{__name__}.Twofold"),)
    for topology in ("", "h100x1"):
        one, two = grid.cells(config, root="r", topology=topology, trust=(__name__,))
        assert two.cost == pytest.approx(one.cost, rel=1e-6 if not topology else 0.05)


def test_the_toy_grid() -> None:
    """Four sizes x three budgets; the largest has most parameters and steps, every size costs two to four times the one before."""
    cells = configs.load("configs/scaling/toy.py").grid
    assert len(cells) == 4 * 3
    sizes = {}
    for name, cell in cells.items():
        config = configs.load(cell.config)
        configs.override(config, dict(cell.overrides))
        objective = configs.build(config.objective)
        assert objective.encoder.hidden == 4 * objective.encoder.width == 8 * objective.decoder.width and config.total == name.split("-")[1]
        sizes[name.split("-")[0]] = objective.cost().macs
    grown = sorted(sizes.values())
    assert len(grown) == 4 and all(2 < b / a < 4 for a, b in zip(grown, grown[1:], strict=False))
    costs = {c.name: c.cost for c in grid.cells(configs.load("configs/scaling/toy.py"), root="r")}
    assert costs["l-2000"] / costs["xs-2000"] == pytest.approx(grown[-1] / grown[0], rel=0.05) and costs["s-4000"] == pytest.approx(4 * costs["s-1000"])
