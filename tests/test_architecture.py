"""Who may import what, how long things may be, and which words the trainer may not know."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "videomae_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
LIMITS = {"train.py": 150, "step.py": 200}
ALLOWED = {
    "flax.linen": ("models/", "parallel.py"),
    "jax.sharding": ("parallel.py",),
    "orbax": ("checkpoint.py",),
    "grain": ("data/",),
    "av": ("data/",),
    "tensorflow_datasets": ("data/",),
    "ml_collections": ("config.py", "assembly.py", "evals/base.py", "commands/"),
    "clu": ("metrics.py",),
    "torch": ("convert/", "torch_reference.py"),
    "safetensors": ("convert/",),
    "transformers": ("convert/", "torch_reference.py"),
    "tensorflow": (),
}


def imports(path: pathlib.Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def under(name: str, library: str) -> bool:
    """Whether a dotted name is the library or lies in it."""
    return name == library or name.startswith(f"{library}.")


@pytest.mark.parametrize("library", ALLOWED)
def test_library_is_imported_only_where_the_map_allows(library: str) -> None:
    """Each outside library has its few modules."""
    users = [p.relative_to(PACKAGE).as_posix() for p in FILES if any(under(n, library) for n in imports(p))]
    strays = [u for u in users if not u.startswith(ALLOWED[library])] if ALLOWED[library] else users
    assert not strays, f"{library} is imported by {strays}; allowed are {ALLOWED[library]}"


def test_data_never_imports_jax() -> None:
    """A decoding worker must not start a backend."""
    strays = [p.name for p in (PACKAGE / "data").rglob("*.py") if any(under(n, "jax") or under(n, "flax") for n in imports(p))]
    assert not strays


def test_recipes_are_named_only_by_configs_and_tests() -> None:
    """The trainer, the step and the data pipeline know the protocol, never a recipe."""
    recipes = {p.stem for p in (PACKAGE / "objectives").glob("*.py")} - {"__init__", "base"}
    for path in FILES:
        if path.parent.name == "objectives":
            continue
        named = [n for n in imports(path) if n.startswith("videomae_jax.objectives.") and n.split(".")[2] in recipes]
        assert not named, f"{path.relative_to(ROOT)} imports {named}"


def test_recipes_import_no_other_recipe_but_the_two_stems() -> None:
    """mae is the stem of pretraining, classify that of training on labels; other shared mathematics goes down into masking, targets and losses."""
    for path in (PACKAGE / "objectives").glob("*.py"):
        named = {n.split(".")[2] for n in imports(path) if n.startswith("videomae_jax.objectives.") and len(n.split(".")) > 2}
        assert named <= {"base", "mae", "classify"}, f"{path.name} imports {named}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_files_and_functions_are_short(path: pathlib.Path) -> None:
    """Files up to 400 lines (the loop 150, the step 200), functions up to 60."""
    text = path.read_text()
    limit = LIMITS.get(path.name, 400) if path.parent == PACKAGE else 400
    assert text.count("\n") <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name} is {node.end_lineno - node.lineno + 1} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_public_names_have_docstrings(path: pathlib.Path) -> None:
    """Modules, public classes and public functions say what they are for."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node in tree.body:
            assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_help_does_not_import_jax() -> None:
    """`python -m videomae_jax --help` answers at once and on a machine without a working accelerator stack."""
    code = "import sys, videomae_jax.__main__ as m; m.main(['--help']); sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("train", "evaluate", "index", "visualize", "bench", "report", "config"):
        assert command in done.stdout


def test_every_listed_command_exists() -> None:
    """The list of commands and the modules agree."""
    from videomae_jax.__main__ import COMMANDS

    modules = {p.stem for p in (PACKAGE / "commands").glob("*.py")} - {"__init__", "arguments"}
    assert set(COMMANDS) == modules


def test_no_module_is_a_drawer() -> None:
    """Modules are named by their concept."""
    assert not [p for p in FILES if p.stem in ("utils", "helpers", "misc", "manager", "common")]


def test_every_folder_is_installed() -> None:
    """pyproject lists each folder with modules or curves, configs below the package; a forgotten one would be missing after pip install."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT) for top in ("videomae_jax", "configs") for path in (ROOT / top).rglob("*")
               if path.suffix == ".py" or path.match("configs/curves/*.json")}
    names = {".".join(folder.parts) for folder in folders}
    assert set(listed) == {f"videomae_jax.{name}" if name.split(".")[0] == "configs" else name for name in names}


def test_every_file_that_is_read_is_installed() -> None:
    """pyproject lists what lies in the package beside modules."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["videomae_jax"]
    others = [p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")]
    assert sorted(listed) == sorted(others)
