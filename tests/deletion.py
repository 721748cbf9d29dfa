"""Shows that a recipe can be removed: without its modules, configs and tests, the rest is whole. By command only.

    python tests/deletion.py [RECIPE ...] [--every]

For each recipe (all configs and folders of configs/ with a test in tests/recipes of the same name) the last commit is copied to a
temporary folder, the recipe is deleted there, and in what is left all modules are imported, all tests are collected, and these pass: the
tests of the architecture, the contract's check of shapes (of one config a folder, with --every of all), and every test file that
names the recipe's configs or modules, or imports a module that does. Minutes a recipe.

A recipe is configs/NAME.py or configs/NAME/, configs/toy/NAME.py, tests/recipes/test_NAME.py and every tests/test_*_NAME.py, their
golden texts, their line in pyproject.toml, and the modules that nothing else imports. Prints a JSON line for each recipe with the lines
it added, and ends with 1 if one failed.
"""

import argparse
import ast
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable

import test_architecture

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("videomae_jax", "configs", "tests")
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
IMPORT_ALL = """
import importlib, pathlib, videomae_jax
assert pathlib.Path(videomae_jax.__file__).parents[1] == pathlib.Path.cwd(), videomae_jax.__file__
from videomae_jax import config
for path in sorted(pathlib.Path("videomae_jax").rglob("*.py")):
    if path.name != "__main__.py":
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
for path in sorted(pathlib.Path("configs").rglob("*.py")):
    config.load(str(path)) if path.name != "base.py" else None
"""


def recipes(root: pathlib.Path, /) -> list[str]:
    """Names of all recipes of a tree."""
    names = {p.stem for p in (root / "configs").iterdir() if p.is_dir() or p.suffix == ".py"}
    return sorted(name for name in names if (root / "tests" / "recipes" / f"test_{name}.py").is_file())


@functools.cache
def _imports(path: pathlib.Path, changed: int, /) -> set[str]:
    """Dotted names that a file imports, looked for once as long as it does not change: every recipe asks for those of all files."""
    return test_architecture.imports(path)


def imported(path: pathlib.Path, root: pathlib.Path, /) -> set[pathlib.Path]:
    """Files of the tree that a file imports, anywhere in it; tests find each other by their bare names."""
    names = _imports(path, path.stat().st_mtime_ns)
    found = {root.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    found |= {root / "tests" / f"{name}.py" for name in names if "." not in name}
    return {p for p in found if p.is_file() and p != path}


def owned(name: str, root: pathlib.Path, /) -> dict[str, list[pathlib.Path]]:
    """{"config", "test", "module"}: files of a recipe. Its modules are imported by its own files and by nothing else."""
    single = [root / "configs" / f"{name}.py", root / "configs" / "toy" / f"{name}.py"]
    config = [*sorted((root / "configs" / name).rglob("*.py")), *(p for p in single if p.exists())]
    test = [root / "tests" / "recipes" / f"test_{name}.py", *sorted((root / "tests").glob(f"test_*_{name}.py"))]
    files = [p for package in PACKAGES for p in sorted((root / package).rglob("*.py"))]
    users: dict[pathlib.Path, set[pathlib.Path]] = {}
    for path in files:
        for other in imported(path, root):
            users.setdefault(other, set()).add(path)
    mine, grown = set(config + test), True
    while grown:
        more = {p for p, by in users.items() if p not in mine and p.is_relative_to(root / "videomae_jax") and by <= mine}
        mine, grown = mine | more, bool(more)
    return {"config": config, "test": test, "module": sorted(mine - set(config + test))}


def remove(name: str, root: pathlib.Path, /) -> None:
    """Deletes a recipe from a tree."""
    for paths in owned(name, root).values():
        for path in paths:
            path.unlink()
    golden = root / "tests" / "golden" / "contract"
    for folder in (root / "configs" / name, golden / name):
        shutil.rmtree(folder, ignore_errors=True)
    for text in (golden / f"{name}.txt", golden / "toy" / f"{name}.txt"):
        text.unlink(missing_ok=True)
    project = root / "pyproject.toml"
    project.write_text(re.sub(rf'\s*"videomae_jax\.configs\.{name}",', "", project.read_text()))


def code(path: pathlib.Path, /) -> str:
    """A file without comments and docstrings, the pieces of a path that `/` joins as one literal."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    return re.sub(r"' / f?'", "/", ast.unparse(tree))


def loading(name: str, root: pathlib.Path, /) -> list[pathlib.Path]:
    """Test files that import a config of a recipe or name one in their code, and are not its own: without the recipe they fail."""
    files = owned(name, root)
    stems = "|".join(re.escape(p.stem) for p in files["config"] if p.parent.name == name)
    named = rf"\bconfigs/(toy/)?{name}\b|'{name}/({stems or '(?!)'}|{{)"
    others = [p for p in sorted((root / "tests").rglob("test_*.py")) if p not in files["test"] and name in p.read_text()]
    return [p for p in others if re.search(named, code(p)) or imported(p, root) & set(files["config"])]


def rows(root: pathlib.Path, /) -> dict[str, str]:
    """Rows of the table of recipes in measured.md: the lines of each."""
    counts = {name: {kind: lines(paths) for kind, paths in owned(name, root).items()} for name in recipes(root)}
    return {name: f"| {name} | {n['module'] or 'none of its own'} | {n['config']} | {n['test']} |\n" for name, n in counts.items()}


def concerned(name: str, files: dict[str, list[pathlib.Path]], root: pathlib.Path, /) -> list[pathlib.Path]:
    """Test files left in a tree that name configs or modules, `files`, of a recipe, or import a module of the package that does."""
    modules = [re.escape(p.relative_to(root).with_suffix("").as_posix()).replace("/", "[/.]") for p in files["module"]]
    # Configs are named by their path, from configs/ on or whole, by that of their module, or as NAME/FILE.
    named = [rf"configs[/.](toy[/.])?{name}\b", rf"[\"']{name}/", *(rf"\b{module}\b" for module in modules)]
    removed = {p for paths in files.values() for p in paths}
    left = [p for package in ("videomae_jax", "tests") for p in sorted((root / package).rglob("*.py")) if p not in removed]
    telling = {p for p in left if re.search("|".join(named), p.read_text())}
    inside = {p for p in telling if p.is_relative_to(root / "videomae_jax")}
    return [p for p in left if p.name.startswith("test_") and (p in telling or imported(p, root) & inside)]


def lines(paths: Iterable[pathlib.Path], /) -> int:
    """Lines of files."""
    return sum(p.read_text().count("\n") for p in paths)


def run(words: list[str], root: pathlib.Path, /) -> str:
    """Output of a command in a tree. Raises RuntimeError with the end of it where the command fails."""
    environment = os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)[:80]} ends with {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def chosen(root: pathlib.Path, /, *, every: bool) -> str:
    """The pytest expression of the tests to run: the architecture, golden texts, shapes of all configs or of the first one of each folder."""
    always = "test_architecture or test_golden_texts_belong"
    if every:
        return f"{always} or test_1_shapes"
    folders: dict[str, str] = {}
    for path in sorted((root / "configs").rglob("*.py")):
        if path.name != "base.py":
            folders.setdefault(path.parent.name, path.relative_to(root / "configs").with_suffix("").as_posix())
    return f"{always} or (test_1_shapes and ({' or '.join(f'{name}]' for name in folders.values())}))"


def check(name: str, root: pathlib.Path, /, *, every: bool) -> dict[str, object]:
    """The result for one recipe in its own copy of the tree."""
    files, start = owned(name, root), time.monotonic()
    affected = concerned(name, files, root)
    result: dict[str, object] = {"recipe": name, "modules": {p.relative_to(root).as_posix(): lines([p]) for p in files["module"]}}
    result |= {f"{kind}_lines": lines(paths) for kind, paths in files.items()}
    remove(name, root)
    try:
        run(["-c", IMPORT_ALL], root)
        # All tests are collected, so a file that cannot be imported ends it; the expression takes those to run.
        tested = run([*PYTEST, "tests", "-k", chosen(root, every=every)], root)
        more = run([*PYTEST, *(p.relative_to(root).as_posix() for p in affected)], root) if affected else "none"
    except RuntimeError as error:
        return result | {"ok": False, "error": str(error)}
    ends = [text.strip().splitlines()[-1] for text in (tested, more)]
    named = {"files": [p.stem for p in affected], "tests": ends[1]}
    return result | {"ok": True, "tests": ends[0], "concerned": named, "seconds": round(time.monotonic() - start)}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="RECIPE", help=f"of {', '.join(recipes(ROOT))}; all without")
    parser.add_argument("--every", action="store_true", help="check the shapes of every config that is left")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(recipes(ROOT)))
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; recipes are {', '.join(recipes(ROOT))}")
    good = True
    for name in options.names or recipes(ROOT):
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            copied = pathlib.Path(folder).resolve()
            if name not in recipes(copied):
                parser.error(f"{name} is not whole in the last commit, of which the copy is made; commit its config and its test first")
            result = check(name, copied, every=options.every)
        print(json.dumps(result), flush=True)
        good &= bool(result["ok"])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
