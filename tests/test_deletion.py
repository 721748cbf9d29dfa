"""What belongs to a recipe, and that nothing else goes with it; `python tests/deletion.py` runs what is left."""

import pathlib
import re
import subprocess
from collections.abc import Mapping

import deletion
import pytest

TREE = {
    "videomae_jax/core.py": "import os\n",
    "videomae_jax/shared.py": "from videomae_jax import core\n",
    "videomae_jax/deep.py": "",
    "videomae_jax/own.py": "from videomae_jax import core, deep\n",
    "videomae_jax/tested.py": "",
    "videomae_jax/objectives/mine.py": "import videomae_jax.own\nfrom videomae_jax.shared import x\n",
    "videomae_jax/objectives/other.py": "def late():\n    from videomae_jax import shared\n",
    "configs/base.py": "", "configs/mine/base.py": "from videomae_jax.objectives import mine\n", "configs/mine/big.py": "from configs.mine import base\n",
    "configs/toy/mine.py": "from videomae_jax.objectives import mine\n\n", "configs/toy/other.py": "from videomae_jax.objectives import other\n",
    "videomae_jax/table.py": 'START = "configs/mine/big.py"\n', "videomae_jax/twice.py": "",
    "tests/toy.py": "", "tests/recipes/test_mine.py": "import toy\nfrom videomae_jax import tested\n", "tests/test_rest.py": "",
    "tests/test_twice_mine.py": "from videomae_jax import twice\n", "tests/test_named.py": 'NAMES = ("mine/big", "other/big")\n',
    "tests/test_table.py": "from videomae_jax import table\n", "tests/test_spec.py": 'SPEC = "videomae_jax.own.Thing"\n',
    "tests/test_others.py": 'NAMES = ("configs/mine_too/big.py", "undermine/x", "videomae_jax.ownership")\n',
    "tests/golden/contract/mine/big.txt": "", "tests/golden/contract/toy/mine.txt": "", "tests/golden/contract/toy/other.txt": "",
    "pyproject.toml": 'packages = [\n  "videomae_jax.configs.mine", "videomae_jax.configs.mine_too",\n]\n'}


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    """A small checkout with a recipe `mine`."""
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def names(files: Mapping[str, list[pathlib.Path]], root: pathlib.Path) -> dict[str, list[str]]:
    """Paths from the root."""
    return {kind: [p.relative_to(root).as_posix() for p in paths] for kind, paths in files.items()}


def test_modules_that_nothing_else_imports_belong_to_a_recipe(tree: pathlib.Path) -> None:
    """Through others of its own as well, not what a late import of another file needs."""
    assert deletion.recipes(tree) == ["mine"]
    assert names(deletion.owned("mine", tree), tree) == {
        "config": ["configs/mine/base.py", "configs/mine/big.py", "configs/toy/mine.py"], "test": ["tests/recipes/test_mine.py", "tests/test_twice_mine.py"],
        "module": ["videomae_jax/deep.py", "videomae_jax/objectives/mine.py", "videomae_jax/own.py", "videomae_jax/tested.py", "videomae_jax/twice.py"]}
    assert deletion.lines(deletion.owned("mine", tree)["config"]) == 4


def test_removal_leaves_everything_else(tree: pathlib.Path) -> None:
    """Golden texts and the line of the package list go too."""
    deletion.remove("mine", tree)
    left = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    assert left == {"videomae_jax/core.py", "videomae_jax/shared.py", "videomae_jax/objectives/other.py", "configs/base.py", "configs/toy/other.py",
                    "videomae_jax/table.py", "tests/test_named.py", "tests/test_table.py", "tests/test_spec.py", "tests/test_others.py",
                    "tests/toy.py", "tests/test_rest.py", "tests/golden/contract/toy/other.txt", "pyproject.toml"}
    assert '"videomae_jax.configs.mine_too"' in (tree / "pyproject.toml").read_text()
    assert '"videomae_jax.configs.mine"' not in (tree / "pyproject.toml").read_text()


SINGLE = {
    "configs/single.py": "from videomae_jax.objectives import single\n\n\n", "videomae_jax/objectives/single.py": "\n",
    "tests/recipes/test_single.py": "\n\n", "tests/golden/contract/single.txt": ""}


def test_a_recipe_of_one_config(tree: pathlib.Path) -> None:
    """As README adds it: found, counted, and removed with its golden text; nothing else goes."""
    before = {p for p in tree.rglob("*") if p.is_file()}
    for name, text in SINGLE.items():
        (tree / name).write_text(text)
    assert deletion.recipes(tree) == ["mine", "single"]
    assert names(deletion.owned("single", tree), tree) == {
        "config": ["configs/single.py"], "test": ["tests/recipes/test_single.py"], "module": ["videomae_jax/objectives/single.py"]}
    assert deletion.rows(tree)["single"] == "| single | 1 | 3 | 2 |\n"
    (tree / "tests" / "test_late.py").write_text('def test():\n    load("configs/single.py")\n')
    assert [p.name for p in deletion.loading("single", tree)] == ["test_late.py"]
    assert [p.name for p in deletion.concerned("single", deletion.owned("single", tree), tree)] == ["test_late.py"]
    (tree / "tests" / "test_late.py").unlink()
    deletion.remove("single", tree)
    assert {p for p in tree.rglob("*") if p.is_file()} == before


def test_a_recipe_that_is_not_committed(tree: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The copy is of the last commit; a recipe that it lacks is one line."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], cwd=tree, check=True)
    for name, text in SINGLE.items():
        (tree / name).write_text(text)
    monkeypatch.setattr(deletion, "ROOT", tree)
    monkeypatch.setattr("sys.argv", ["deletion.py", "single"])
    with pytest.raises(SystemExit) as left:
        deletion.main()
    said = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and "error: single is not whole in the last commit" in said[-1]


@pytest.mark.parametrize(("text", "found"), [
    ('config = load("configs/mine/big.py")', True), ('config = load(ROOT / "configs" / "mine" / f"{name}.py")', True), ("from configs.toy import mine", True),
    ('NAMES = ("mine/big", "other/big")', True), ('config = load(f"mine/{name}.py")', True), ('"""Says configs/mine/big.py."""', False),
    ("x = 1  # configs/mine/big.py", False), ('NAMES = ("configs/mine_too/big.py", "undermine/big", "mine/labels.csv")', False)])
def test_tests_that_load_a_recipe(text: str, found: bool, tree: pathlib.Path) -> None:
    """By what their code names; its own tests are left out."""
    for path in [p for p in (tree / "tests").glob("test_*.py") if p.name != "test_twice_mine.py"]:
        path.unlink()
    for name in ("tests/test_rest.py", "tests/recipes/test_mine.py"):
        (tree / name).write_text(f"{text}\n")
    assert deletion.loading("mine", tree) == [tree / "tests" / "test_rest.py"] * found


def test_tests_that_name_a_recipe_are_run_without_it(tree: pathlib.Path) -> None:
    """By a config, by a module, or through a module that does; not those of names that only resemble it."""
    found = deletion.concerned("mine", deletion.owned("mine", tree), tree)
    assert [p.name for p in found] == ["test_named.py", "test_spec.py", "test_table.py"]


def test_what_is_left_has_to_work(tree: pathlib.Path) -> None:
    """A module that still needs the recipe fails the check, with its name in the error."""
    (tree / "videomae_jax" / "__init__.py").write_text("")
    (tree / "videomae_jax" / "config.py").write_text("def load(path):\n    pass\n")
    (tree / "videomae_jax" / "careless.py").write_text("import importlib\nimportlib.import_module('videomae_jax.objectives.mine')\n")
    result = deletion.check("mine", tree, every=False)
    assert result["ok"] is False and "videomae_jax.objectives.mine" in str(result["error"])
    assert result["modules"] == {"videomae_jax/deep.py": 0, "videomae_jax/objectives/mine.py": 2, "videomae_jax/own.py": 1, "videomae_jax/tested.py": 0,
                                 "videomae_jax/twice.py": 0}


@pytest.mark.parametrize("name", deletion.recipes(deletion.ROOT))
def test_no_test_loads_a_recipe_of_which_it_is_no_part(name: str) -> None:
    """It would fail without the recipe; what it checks belongs into the recipe's own test."""
    assert [p for p in deletion.loading(name, deletion.ROOT) if p != pathlib.Path(__file__).resolve()] == []


TABLE = re.compile(r"(?<=\| recipe \| module \| config \| test \|\n\|---\|---\|---\|---\|\n)(?:\|.*\n)+")


def test_the_table_of_lines(request: pytest.FixtureRequest) -> None:
    """Every row is as the files are now; without one of its recipes the others would own what it shared with them."""
    path, rows = deletion.ROOT / "tests" / "measured.md", deletion.rows(deletion.ROOT)
    text = path.read_text()
    if request.config.getoption("--update-golden"):
        path.write_text(text := TABLE.sub("".join(rows.values()), text))
    found = {line.split()[1]: line for line in TABLE.search(text)[0].splitlines(keepends=True)}
    if absent := set(found) - set(rows):
        pytest.skip(f"not here are {', '.join(sorted(absent))}")
    assert found == {name: rows[name] for name in found}, "if this is meant: pytest tests/test_deletion.py -k table --update-golden"


def test_recipes_of_this_tree() -> None:
    """Each has a config; what is a recipe's own goes with it, what it shares stays. A recipe that is not here is left out."""
    own = {"adamae": {"objectives/adamae.py", "models/sampler.py"}, "marlin": {"objectives/marlin.py", "models/critic.py"}}
    found = deletion.recipes(deletion.ROOT)
    assert found
    for name in found:
        files = deletion.owned(name, deletion.ROOT)
        modules = {p.relative_to(deletion.ROOT / "videomae_jax").as_posix() for p in files["module"]}
        assert files["config"], name
        assert own.get(name, set()) <= modules and not {"objectives/mae.py", "masking.py", "convert/importing.py"} & modules, name


def test_converters_of_a_family_belong_to_its_recipe() -> None:
    """Their test goes with it; the command, which names its config, is tested without it."""
    for name in {"marlin", "mae_st"} & set(deletion.recipes(deletion.ROOT)):
        files = deletion.owned(name, deletion.ROOT)
        assert deletion.ROOT / "tests" / f"test_convert_{name}.py" in files["test"]
        assert "test_convert.py" in {p.name for p in deletion.concerned(name, files, deletion.ROOT)}
