"""Maps of classes and whom they fit: names on both sides, or numbers on both."""

import contextlib
import json
import pathlib
import re
import types

import pytest
from test_merge import CLIP, written

from videomae_jax import head_rows, supervision
from videomae_jax.commands import train
from videomae_jax.data import merge, sources
from videomae_jax.errors import UserError
from videomae_jax.objectives.base import External

NAMED = {"source": ["abseiling", "knitting", "zumba"], "target": ["knitting", "zumba"], "rows": [1, 2]}


def check(folder: pathlib.Path, content: object, /, *, data: tuple[str, ...], run: tuple[str, ...] = (), path: str = "run") -> None:
    """`head_rows.check` of a map for data with these classes and the weights of a run that tells those of its head."""
    (folder / "map.json").write_text(json.dumps(content))
    (folder / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "run" / "classes.json").unlink(missing_ok=True)
    if run:
        (folder / "run" / "classes.json").write_text(json.dumps(run))
    external = External("params", str(folder / path), rows=(("head/.*", str(folder / "map.json")),))
    head_rows.check([External("params/encoder", "absent"), external], source=types.SimpleNamespace(classes=data))


@pytest.mark.parametrize("path", ["run", "run/checkpoints"])
def test_maps_that_fit(tmp_path: pathlib.Path, path: str) -> None:
    """Names may be spelt differently; a list goes with numbers, or where nobody has names."""
    run = ("abseiling", "knitting", "zumba")
    check(tmp_path, NAMED, data=("knitting", "zumba"), run=run, path=path)
    check(tmp_path, NAMED, data=("Knitting", "zumba"), run=run, path=path)
    check(tmp_path, NAMED, data=(), run=run, path=path)
    check(tmp_path, [2, 0], data=("0", "1"), path=path)
    check(tmp_path, [2, 0], data=("0", "1"), run=("0", "1", "2"), path=path)
    check(tmp_path, [2, 0], data=(), path=path)
    check(tmp_path, NAMED | {"target": ["0", "1"]}, data=("0", "1"), run=run, path=path)
    head_rows.check([External("params", "absent")], source=None)


@pytest.mark.parametrize(("content", "data", "run", "message"), [
    ([2, 0], ("knitting", "zumba"), (), r"is a list without names, and the classes of the data have names \(knitting, zumba, ...\)"),
    ([2, 0], ("0", "1"), ("abseiling", "knitting", "zumba"), "is a list without names, and the classes of .*run have names"),
    ([2, 0], ("1", "2"), (), "is a list without names"),
    (NAMED, ("zumba", "knitting"), (), "has 'knitting' as class 0 of 2, and the data 'zumba' of 2"),
    (NAMED, ("knitting",), (), "has 'zumba' as class 1 of 2, and the data None of 1"),
    (NAMED, ("0", "1"), (), "has 'knitting' as class 0 of 2, and the data '0' of 2"),
    (NAMED, ("knitting", "zumba"), ("abseiling", "zumba", "knitting"), "has 'knitting' as class 1 of 3, and .*run 'zumba' of 3"),
    (NAMED, ("knitting", "zumba"), (), "names the classes of its source, and .*run does not tell its own; allowed are runs with a file classes.json"),
    (NAMED | {"source": "abc"}, (), (), "has a 'source' that is no list of class names")])
def test_maps_that_do_not_fit(tmp_path: pathlib.Path, content: object, data: tuple[str, ...], run: tuple[str, ...], message: str) -> None:
    """Rows of a head would be those of other classes: one line with the first class that differs."""
    with pytest.raises(UserError, match=message) as error:
        check(tmp_path, content, data=data, run=run)
    assert "map.json" in str(error.value) and "\n" not in str(error.value)


def whole(folder: pathlib.Path, /, *, run: tuple[str, ...], data: tuple[str, ...], into: str = "params") -> None:
    """`head_rows.check` of a head that is taken without a map from a run that tells these classes."""
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "classes.json").write_text(json.dumps(run))
    head_rows.check([supervision.initial(str(folder / "run"), into=into, start="model")], source=types.SimpleNamespace(classes=data))


def test_whole_heads_that_fit(tmp_path: pathlib.Path) -> None:
    """Names may be spelt differently; numbers are no names; other data than those of the head have none of its labels; other starts take no head."""
    for run, data in ((("a b", "c"), ("A_b", "C")), (("b", "a"), ("0", "1")), (("0", "1"), ("a", "b")), (("b", "a"), ()),
                      (("a", "b", "c"), ("even", "odd"))):
        whole(tmp_path, run=run, data=data)
    (tmp_path / "run" / "classes.json").write_text('["b", "a"]')
    for start in ("encoder", "features"):
        head_rows.check([supervision.initial(str(tmp_path / "run"), start=start)], source=types.SimpleNamespace(classes=("a", "b")))
    head_rows.check([supervision.initial(str(tmp_path / "absent.npz"), start="model")], source=types.SimpleNamespace(classes=("a", "b")))


@pytest.mark.parametrize(("into", "mapped"), [("params", True), ("frozen/teacher", False)])
def test_whole_heads_that_do_not_fit(tmp_path: pathlib.Path, into: str, mapped: bool) -> None:
    """One line with the first class that differs; a map helps where the recipe takes one."""
    for data in (("a", "b", "c"), ("0", "2", "10")):  # labels with gaps are not the numbers of the head's classes
        with pytest.raises(UserError, match=f"run has 'b' as class 0 of 3, and the data '{data[0]}': it would answer with wrong names") as error:
            whole(tmp_path, run=("b", "a", "c"), data=data, into=into)
        assert ("objective.classes" in str(error.value)) == mapped and "\n" not in str(error.value)


def test_classes_of_a_run(tmp_path: pathlib.Path) -> None:
    """() where it tells none; a damaged file is a mistake in one line."""
    assert head_rows.stored(str(tmp_path / "absent.npz")) == ()
    for text, message in (("[", "cannot be read"), ('{"a": 1}', "is no list of class names"), ("[1]", "is no list of class names")):
        (tmp_path / "classes.json").write_text(text)
        with pytest.raises(UserError, match=message):
            head_rows.stored(str(tmp_path))


def test_what_merging_writes_fits(tmp_path: pathlib.Path) -> None:
    """The data of every part, named or numbered, and a run on the merged index; not the same part under another numbering."""
    parts = [written(tmp_path, "k4", [(CLIP.format(f"a{i}"), str(i), "train") for i in range(3)]),
             written(tmp_path, "k6", [(CLIP.format(f"b{i}"), label, "train") for i, label in enumerate(("zumba", "marching"))])]
    (tmp_path / "names.txt").write_text("zumba\nabseiling\nknitting\n")
    merge.merged(",".join(map(str, parts)), out=tmp_path / "k.parquet", names=[f"k4={tmp_path / 'names.txt'}"])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "classes.json").write_text(json.dumps(sources.VideoClips(index=str(tmp_path / "k.parquet")).classes))

    def fits(part: str, index: pathlib.Path) -> None:
        external = External("params", str(tmp_path / "run"), rows=(("head/.*", str(tmp_path / f"k_to_{part}.json")),))
        head_rows.check([external], source=sources.VideoClips(index=str(index)))
    for path in parts:
        fits(path.stem, path)
    named = written(tmp_path, "other", [(CLIP.format(f"a{i}"), label, "train") for i, label in enumerate(("zumba", "abseiling", "knitting"))])
    with pytest.raises(UserError, match="has '0' as class 0 of 3, and the data 'abseiling' of 3"):
        fits("k4", named)


@pytest.mark.parametrize(("own", "data", "said"), [
    (["-10", "-5", "0", "10", "5"], ("-10", "-5", "0", "5", "10"), "has '10' as class 3 of 5, the order of the run's head, and the data '5'"),
    (["jump", "run"], ("run", "jump"), "has 'jump' as class 0 of 2"), (["Jump", "run"], ("jump", "run"), ""), (["0", "1"], ("run", "jump"), ""), (["a"], ("b", "c"), "")])
def test_the_data_count_classes_as_the_head_does(own: list[str], data: tuple[str, ...], said: str, tmp_path: pathlib.Path) -> None:
    """Names in another order would be scored wrongly without a word; numbers are no names, and another count is told elsewhere."""
    (tmp_path / head_rows.CLASSES).write_text(json.dumps(own))
    with pytest.raises(UserError, match=re.escape(said)) if said else contextlib.nullcontext():
        head_rows.check_own(tmp_path, data)
    head_rows.check_own(tmp_path / "inner", data)  # which tells no classes; those of the folder around it are another run's


@pytest.mark.parametrize("name", ["k710_to_k400.json", "k400_to_k710.json", "label_710to400.json"])
def test_a_map_that_is_not_there_ends_a_dry_run(tmp_path: pathlib.Path, name: str) -> None:
    """Before a step is compiled, naming the command that writes maps called so; the weights, of a stage that is still to come, are not asked for."""
    compiled = types.SimpleNamespace(memory_analysis=lambda: None)
    path, told = tmp_path / name, []
    external = External("params", str(tmp_path / "runs" / "none"), rows=(("head/.*", str(path)),))
    run = types.SimpleNamespace(objective=types.SimpleNamespace(externals=lambda: (external,)), compile=lambda: compiled)
    made = "; index --merge writes such maps beside the merged index OUT.parquet, as OUT_to_PART.json and PART_to_OUT.json" if "_to_" in name else ""
    with pytest.raises(UserError, match=f"^{re.escape(f'class map {str(path)!r} is not there{made}')}$"):
        train.dry_run(run, told.append)
    path.write_text("[0, 1]")
    assert train.dry_run(run, told.append) == 0 and told == ["dry run: the step compiles; nothing was trained and nothing was written"]
