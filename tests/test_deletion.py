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
    "tests/toy.py": "", "tests/recipes/test_mine.py": "import toy\nfrom videomae_jax import tested\n", "tests/test_rest.py": "",
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
        "config": ["configs/mine/base.py", "configs/mine/big.py", "configs/toy/mine.py"], "test": ["tests/recipes/test_mine.py"],
        "module": ["videomae_jax/deep.py", "videomae_jax/objectives/mine.py", "videomae_jax/own.py", "videomae_jax/tested.py"]}
    assert deletion.lines(deletion.owned("mine", tree)["config"]) == 4


def test_removal_leaves_everything_else(tree: pathlib.Path) -> None:
    """Golden texts and the line of the package list go too."""
    deletion.remove("mine", tree)
    left = {p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()}
    assert left == {"videomae_jax/core.py", "videomae_jax/shared.py", "videomae_jax/objectives/other.py", "configs/base.py", "configs/toy/other.py",
                    "tests/toy.py", "tests/test_rest.py", "tests/golden/contract/toy/other.txt", "pyproject.toml"}
    assert '"videomae_jax.configs.mine_too"' in (tree / "pyproject.toml").read_text()
    assert '"videomae_jax.configs.mine"' not in (tree / "pyproject.toml").read_text()


def test_what_is_left_has_to_work(tree: pathlib.Path) -> None:
    """A module that still needs the recipe fails the check, with its name in the error."""
    (tree / "videomae_jax" / "__init__.py").write_text("")
    (tree / "videomae_jax" / "config.py").write_text("def load(path):\n    pass\n")
    (tree / "videomae_jax" / "careless.py").write_text("import importlib\nimportlib.import_module('videomae_jax.objectives.mine')\n")
    result = deletion.check("mine", tree, every=False)
    assert result["ok"] is False and "videomae_jax.objectives.mine" in str(result["error"])
    assert result["modules"] == {"videomae_jax/deep.py": 0, "videomae_jax/objectives/mine.py": 2, "videomae_jax/own.py": 1, "videomae_jax/tested.py": 0}


def test_recipes_of_this_tree() -> None:
    """Each has a config, and its objective is its own where it has one."""
    found = deletion.recipes(deletion.ROOT)
    assert {"adamae", "av_mae", "hvm1", "mae_st", "marlin", "videomae"} <= set(found)
    own = names(deletion.owned("adamae", deletion.ROOT), deletion.ROOT)["module"]
    assert {"videomae_jax/objectives/adamae.py", "videomae_jax/models/sampler.py"} <= set(own)
    assert not {"videomae_jax/objectives/mae.py", "videomae_jax/masking.py"} & set(own)
    for name in found:
        assert deletion.owned(name, deletion.ROOT)["config"], name
