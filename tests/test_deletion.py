"""What belongs to a recipe, and that nothing else goes with it; `python tests/deletion.py` runs what is left."""

import pathlib
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
