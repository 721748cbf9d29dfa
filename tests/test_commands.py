"""The commands as a user types them: what they print and write, and one clear line for every mistake."""

import errno
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from typing import Any

import jax
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from runs import shared_programs  # noqa: F401 (a fixture)

from videomae_jax import config as configs
from videomae_jax import api, assembly, metrics, records, run_directory, stopping
from videomae_jax.__main__ import COMMANDS, main
from videomae_jax.assembly import assemble
from videomae_jax.commands import arguments
from videomae_jax.data import sources
from videomae_jax.errors import STORAGE, StorageError, UserError
from videomae_jax.evals import pictures, reconstruction
from videomae_jax.models import attention


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small data set of video files."""
    return runs.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def trained(index: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A finished run on eight devices."""
    directory = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", *runs.arguments(index), f"--workdir={directory}"]) == 0
    return directory


def listing(directory: pathlib.Path) -> dict[str, bytes | None]:
    """Every path below a directory with its content, but for the lock, which every start holds."""
    return {p.relative_to(directory).as_posix(): p.read_bytes() if p.is_file() else None for p in sorted(directory.rglob("*")) if p.name != ".lock"}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line with which a command refuses: exit code 2, no traceback, nothing on standard output."""
    capsys.readouterr()
    assert main([str(w) for w in words]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.rstrip().endswith(lines[0]) and "Traceback" not in err and out == "", err
    return lines[0].removeprefix("error: ")


def test_a_run_leaves_its_files(trained: pathlib.Path, index: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """config.json, card, metrics, summary, pictures, two checkpoints; no temporary files; a second call does nothing and says so."""
    names = {p.name for p in trained.iterdir()}
    assert names == {"config.json", "recipe_card.json", "recipe_card.txt", "metrics.jsonl", "ledger.jsonl", "ledger.alive", "starts.jsonl", "data.json", ".lock", "summary.json", "tensorboard", "reconstructions", "checkpoints"}
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["00000006", "00000009"]
    summary = json.loads((trained / "summary.json").read_text())
    results = summary["results"]
    last = {k: v for line in metrics.read(trained) if line["step"] == runs.TOTAL for k, v in line.items() if k != "step"}
    assert summary["steps"] == runs.TOTAL and summary["seconds"] > 0
    assert {k: results[k] for k in last} == last and {"loss", "reconstruction/loss", "pictures/psnr_hidden", "lr"} <= last.keys()
    before = listing(trained)
    assert main(["train", *runs.arguments(index), f"--workdir={trained}"]) == 0
    assert "nothing to do" in capsys.readouterr().err
    after = listing(trained)
    own = ("ledger.", "starts.")  # the second call accounts for its own time and says what ran it
    assert {k: v for k, v in after.items() if not k.startswith(own)} == {k: v for k, v in before.items() if not k.startswith(own)}


def test_a_summary_on_a_full_disk(trained: pathlib.Path, index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fault of the storage, in one line, which the same command mends once there is room."""
    directory = tmp_path / "run"
    shutil.copytree(trained, directory)
    (directory / "summary.json").unlink()
    (directory / f".summary.json.{os.getpid()}").symlink_to("/dev/full")
    for code in (STORAGE, 0):  # the first takes the link away with what it wrote
        assert main(["train", *runs.arguments(index), f"--workdir={directory}"]) == code
        assert capsys.readouterr().err.endswith(f"error: cannot write to --workdir={directory}: No space left on device\n") is (code == STORAGE)
        assert (directory / "summary.json").exists() is (code == 0)


def test_evaluate_repeats_the_last_results(trained: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON line on standard output, equal to what training logged; --only, --step and overrides choose."""
    capsys.readouterr()
    assert main(["evaluate", str(trained)]) == 0
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    found = json.loads(out)
    summary = json.loads((trained / "summary.json").read_text())["results"]
    assert found["step"] == runs.TOTAL and len(found) == 7
    for name in found.keys() - {"step"}:
        assert found[name] == pytest.approx(summary[name], rel=1e-6), name  # the same programs on the same devices
    assert main(["evaluate", str(trained), "--step=6", "--only=reconstruction", "--config.evaluators.reconstruction.clips=4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 6 and all(k == "step" or k.startswith("reconstruction/") for k in found)


def test_visualize_names_the_files_it_wrote(trained: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three clips: three png sheets and three gifs of the newest step. Training clips lie beside them, and are not reported as held-out ones."""
    copied = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(copied / "reconstructions")
    capsys.readouterr()
    assert main(["visualize", str(copied), "--clips=3"]) == 0
    paths = capsys.readouterr().out.split()
    assert sorted(pathlib.Path(p).name for p in paths) == [f"step00000009_{i}.{end}" for i in range(3) for end in ("gif", "png")]
    assert all(pathlib.Path(p).stat().st_size > 1000 for p in paths)
    before = listing(copied / "reconstructions")
    assert main(["visualize", str(copied), "--clips=1", "--split=train"]) == 0
    assert sorted(pathlib.Path(p).name for p in capsys.readouterr().out.split()) == ["train_step00000009_0.gif", "train_step00000009_0.png"]
    after = listing(copied / "reconstructions")
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    assert [path.name for paths in records.load(copied).pictures.values() for path in paths] == [f"step00000009_{i}.png" for i in range(3)]


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_runs_of_a_gpu_or_tpu_are_drawn_and_evaluated_elsewhere(kernel: str, trained: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Their kernels become attention in blocks, with the same results."""
    copied = pathlib.Path(shutil.copytree(trained, tmp_path / "run"))
    text = (copied / "config.json").read_text()
    (copied / "config.json").write_text(re.sub('"attention": "[a-z]+"', f'"attention": "{kernel}"', text))
    monkeypatch.setitem(attention.IMPLEMENTATIONS, kernel, None)
    assert main(["visualize", str(copied), "--clips=1"]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(copied), "--only=reconstruction"]) == 0
    found, summary = json.loads(capsys.readouterr().out), json.loads((trained / "summary.json").read_text())["results"]
    assert all(found[name] == pytest.approx(summary[name], rel=1e-4) for name in found.keys() - {"step"})


def test_config_prints_every_field_as_it_is_set(index: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The card, then one --config.field=value a line; --json rebuilds the config."""
    capsys.readouterr()
    assert main(["config", *runs.arguments(index)]) == 0
    out = capsys.readouterr().out
    assert "recipe card: tiny" in out and "--config.objective.encoder.width=32" in out and "--config.total='9'" in out
    assert main(["config", *runs.arguments(index), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["objective"]["encoder"]["width"] == 32


def test_config_needs_no_data(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has indexed nothing yet gets the fields, and a card of an assumed number of videos; what cannot run gets the fields."""
    monkeypatch.chdir(tmp_path)
    assert main(["config", "--config=configs/pretrain/vit_b.py"]) == 0
    out, err = capsys.readouterr()
    assert "1,350,000 videos are assumed in their place: no index index.parquet; make one with: " in err
    assert "videos in source                           1,350,000\n" in out and "--config.batch_size=1024\n" in out and "--config.data.index='index.parquet'\n" in out
    assert main(["config", "--config=configs/pretrain/vit_b.py", "--config.batch_size=0"]) == 2
    out, err = capsys.readouterr()
    assert err.endswith("error: batch_size is 0; allowed are 1 and more\n") and out.startswith("--config.") and "--config.batch_size=0\n" in out
    assert not list(tmp_path.iterdir())


HOME = [
    ("train --config=configs/tiny.py --workdir=~/file/run --config.data.index={index}", "cannot write to --workdir={home}/file/run"),
    ("train --config=configs/tiny.py --workdir={home}/new --config.data.index={index} --durable=~/file/b", "{home}/file/b"),
    ("train --config=configs/tiny.py --workdir={home}/new --config.data.index=~/i.parquet", "no index {home}/i.parquet; make one"),
    ("evaluate ~/none", "{home}/none holds no config.json"), ("visualize ~/none", "{home}/none holds no config.json"), ("report ~/none", "{home}/none"),
    ("index ~/ --out=~/i.txt", "--out={home}/i.txt; allowed is"), ("index --merge={home}/a.parquet,~/b.parquet --out=~/m.txt", "{home}/m.txt"),
    ("index --merge=~/a.parquet,~/b.parquet --out=~/m.parquet", "no index {home}/a.parquet"), ("pack ~/i.parquet --out=~/packed", "{home}/i.parquet"),
    ("bench step --config=~/c.py", "no config file '{home}/c.py'"), ("bench input --index=~/i.parquet", "{home}/i.parquet"),
    ("extract ~/none ~/a.mp4 --out=~/f", "no video in {home}/a.mp4"), ("predict ~/none ~/a.mp4 --out=~/p.csv", "no video in {home}/a.mp4"),
    ("predict ~/none ~/a.mp4 --out=~/p.txt", "--out={home}/p.txt"),
    ("predict ~/none ~/a.mp4 --sheet=~/p.csv", "--sheet={home}/p.csv; allowed is"), ("export ~/none --out=~/e", "{home}/none"), ("convert --from=hf ~/w --out=~/file", "{home}/file"),
    ("plan --config=configs/tiny.py --topology=h100x1 --measure=~/m.json", "--measure={home}/m.json"), ("config --config=~/c.py", "no config file '{home}/c.py'"),
    ("plan --config=configs/tiny.py --topology=h100x1 --then=~/c.py,5", "no config file '{home}/c.py'"), ("synthesize ~/file --train=1 --val=0 --test=0", "{home}/file")]


@pytest.mark.parametrize(("line", "message"), HOME)
def test_a_tilde_is_the_users_folder(line: str, message: str, index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """In every command, also where shells leave it as it is: no folder called `~` is made."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    (home / "file").write_text("mine")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    assert message.format(home=home) in refused(capsys, *(word.format(home=home, index=index) for word in line.split()))
    assert not list(here.iterdir()) and {words.split()[0] for words, _ in HOME} == COMMANDS.keys()


def test_a_tilde_elsewhere_is_a_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only at the beginning of a path, which begins a word or stands behind `=` or a comma; the folders of others stay with the shell."""
    monkeypatch.setenv("HOME", "/home/me")
    words = {"~": "/home/me", "--a=~/b": "--a=/home/me/b", "~/a,~/b": "/home/me/a,/home/me/b", "k=~/f": "k=/home/me/f", "a~/b": "a~/b", "--a=b/~/c": "--a=b/~/c",
             "~other/a": "~other/a", "a~": "a~"}
    assert {w: arguments.at_home(w) for w in words} == words


def test_dry_run_writes_nothing(index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It compiles the step, tells its memory and leaves no trace."""
    assert main(["train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}", "--dry-run"]) == 0
    err = capsys.readouterr().err
    assert "bytes of a step" in err and "nothing was written" in err and "recipe card: tiny" in err
    assert not (tmp_path / "run").exists()


CONFIG_MISTAKES = {
    "--config.total=0": "total '0' is 0 steps; allowed are 1 and more",
    "--config.batch_size=3": "batch of 6 clips (decoded clips x repeats) is not divisible by 8 batch devices x 1 micro-batches",
    "--config.batch_size=0": "batch_size is 0; allowed are 1 and more",
    "--config.microbatches=0": "microbatches is 0; allowed are 1 and more",
    "--config.microbatches=-1": "microbatches is -1; allowed are 1 and more",
    "--config.prefetch=0": "prefetch is 0; allowed are 1 and more",
    "--config.ema=2.0": "ema is 2.0; allowed are 0 (none) and decays below 1",
    "--config.total=1e400": "duration '1e400' is beyond all numbers",
    "--config.objective.encoder.patch=8": "patch (8,); allowed are three whole numbers",
    "--config.objective.encoder.patch=(2,8)": "patch (2, 8); allowed are three whole numbers",
    "--config.objective.encoder.dtype=bf16": "dtype 'bf16'; allowed are float32, bfloat16",
    "--config.objective.encoder.heads=0": "heads 0; allowed are whole numbers from 1 on",
    "--config.objective.encoder.depth=0": "depth 0; allowed are whole numbers from 1 on",
    "--config.objective.decoder.width=0": "width 0; allowed are whole numbers from 1 on",
    "--config.mesh.fsdp=3": "mesh data=-1 fsdp=3 tensor=1 does not fit 8 devices",
    "--config.objective.encoder.wdith=8": "unknown config key 'objective.encoder.wdith': 'wdith' is not among ",
    "--config.objective.encoder.mean=0.5,0.5": "mean (0.5, 0.5); allowed are as many numbers as channels, 3",
    "--config.objective.encoder.std=(1,0,1)": "std (1, 0, 1); allowed are as many numbers as channels, 3, none of them 0",
    "--config.data.canvas=256": "canvas (256,); allowed are two even numbers, height and width, or (0, 0)",
    "--config.data.canvas=256,256,256": "canvas (256, 256, 256); allowed are two even numbers",
    "--config.data.canvas=(256,x)": "--config.data.canvas=(256,x) holds '(256,x)'; allowed are numbers, such as (0, 0)",
    "--config.data.crop.scales=a": "--config.data.crop.scales=a holds 'a'; allowed are numbers, such as (1.0, ",
    "--config.nothing=8": "unknown config key 'nothing': 'nothing' is not among ",
    "--config.batch_size=many": "--config.batch_size=many is of type str; allowed is type int, such as 4",
    "--config.total=9x": "duration '9x' is not understood",
    "--config.data.index=missing.parquet": "no index missing.parquet; make one with: python -m videomae_jax index DIR --out=missing.parquet",
    "--config.data.split=nowhere": "index {index} has no readable video in split 'nowhere'; it has train (16), val (8)",
    "--unknown": "unrecognized arguments: --unknown (see python -m videomae_jax train --help)",
    "--processes=2": "--processes=2 needs --coordinator=HOST:PORT, the address of process 0",
    "--config.seed": "--config.seed needs a value: --config.seed=value",
}


@pytest.mark.parametrize("word", CONFIG_MISTAKES)
def test_mistakes_in_a_config_are_one_line(index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    """Each names the offending value and what is allowed; no run directory appears."""
    said = refused(capsys, "train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}", word)
    assert said.startswith(CONFIG_MISTAKES[word].format(index=index)), said
    assert not (tmp_path / "run").exists()


def test_mistakes_in_a_config_file_name_its_line(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing file, a syntax error, an exception, a misspelt key of a symbol, no get_config."""
    def said(text: str) -> str:
        (tmp_path / "mine.py").write_text(text)
        return refused(capsys, "config", f"--config={tmp_path / 'mine.py'}")

    assert refused(capsys, "config", "--config=configs/none.py").startswith("no config file 'configs/none.py'; known are configs/")
    assert "mine.py, line 2: SyntaxError" in said("x = 1\nx = = 2\n")
    assert "mine.py, line 3: ZeroDivisionError: division by zero" in said("def get_config():\n    x = 0\n    return 1 / x\n")
    assert "has no parameter 'wdith'; it has width" in said(
        "from videomae_jax.config import spec\nfrom videomae_jax.models import vit\ndef get_config():\n    return spec(vit.Encoder, wdith=8)\n")
    assert "defines no get_config()" in said("x = 1\n")


OWN = "import ml_collections\nfrom videomae_jax import masking\nfrom videomae_jax.evals.reconstruction import Reconstruction\n" \
    "from configs import base, tiny\n\n\ndef get_config():\n    config = tiny.get_config()\n"
LACKS = "the config lacks name, total, ema, seed, batch_size, microbatches, workers, "


@pytest.mark.parametrize(("lines", "message"), [
    (["config.seed = 1"], "config file {}: get_config() returns 'None'; allowed is the config that it fills, begun by get_config() of configs/base.py"),
    (["return {'total': '1'}"], "config file {}: get_config() returns \"{{'total': '1'}}\"; allowed is the config that it fills"),
    (["return ml_collections.ConfigDict()"], f"config file {{}}: {LACKS}"),
    (["return ml_collections.ConfigDict({k: v for k, v in config.items() if k not in ('batch_size', 'data')})"],
     "config file {}: the config lacks batch_size, data; allowed is one begun by get_config() of configs/base.py"),
    (["config.evaluators.reconstruction = Reconstruction()", "return config"],
     "config file {}: config.evaluators.reconstruction is of type Reconstruction; write spec(Reconstruction, ...)"),
    (["config.objective.encoder_mask = masking.Random", "return config"],
     "config file {}: config.objective.encoder_mask is the class Random; write spec(Random, ...)"),
    (["config.evidence = {'arms': ((1, {2}),)}", "return config"],
     "config file {}: config.evidence.arms[0][1] is of type set; allowed are numbers and strings of Python, None, and tuples and groups of them"),
    (["config.batch_size = '64'", "return config"], "config file {}: batch_size is '64', of type str; allowed is type int"),
    (["config.data = 'index.parquet'", "return config"], "config file {}: data is 'index.parquet', of type str; allowed is type ConfigDict"),
    (["return base.get_config()"], "config.objective names no class; allowed is spec(...) of one, such as config.objective = spec(mae.MAE, ...)"),
    (["config.objective = config.objective.encoder_mask", "return config"],
     "config.objective is a Random; allowed is a class that begins from objectives.base.Objective"),
    (["config.data = {}", "return config"], "config.data names no class; allowed is spec(...) of one"),
    (["config.optimizers.main = {'base': 1e-3}", "return config"], "config.optimizers.main names no class"),
    (["config.evaluators.probe = {'every': '5%'}", "return config"], "config.evaluators.probe names no class")])
def test_mistakes_in_what_a_config_file_returns(lines: list[str], message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one line for whoever looks at the config and for whoever trains it, which no supervisor starts again; no run directory appears."""
    file = tmp_path / "own.py"
    file.write_text(OWN + "".join(f"    {line}\n" for line in lines))
    for words in (["config"], ["train", f"--workdir={tmp_path / 'run'}"]):
        assert main([*words, f"--config={file}"]) == 2
        err = capsys.readouterr().err.splitlines()
        assert err[-1].startswith("error: " + message.format(file)) and [line for line in err if line.startswith("error: ")] == err[-1:], err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ["bench step --config={}", "plan --config=configs/tiny.py --topology=h100x1 --then={},5,5", "plan --grid={}",
                                   "train --config={} --workdir=none", "evaluate --suite=evidence --config={} --workdir=none"])
def test_every_command_names_the_line_of_a_config_that_fails(words: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the file is not that of --config."""
    (tmp_path / "own.py").write_text("def get_config():\n    return 1 / 0\n")
    said = refused(capsys, *words.format(tmp_path / "own.py").split())
    assert said == f"config file {tmp_path / 'own.py'}, line 2: ZeroDivisionError: division by zero"


@pytest.mark.parametrize("words", [
    "index v --out={}.parquet", "index --merge=a.parquet,b.parquet --out={}.parquet", "index --merge=a.parquet,{}.parquet --out=c.parquet",
    "synthesize {} --train=1 --val=1 --test=1", "pack i.parquet --out={}", "train --config=configs/tiny.py --workdir={}", "evaluate --suite=evidence --config=configs/evidence.py --workdir={}",
    "extract run v.mp4 --out={}", "predict run v.mp4 --out={}.csv", "predict run v.mp4 --sheet={}.png", "export run --out={}", "convert --from=hf w --out={}",
    "convert --to=videomae run --out={}", "report run --curve={}.json", "report --compare run run --out={}", "report --scaling run run --out={}",
    "bench step --config=configs/tiny.py --profile={}", "plan --grid=configs/scaling/toy.py --root={}", "evaluate {}",
    "visualize {}", "report {}", "predict {} v.mp4"])
def test_an_address_is_no_place_to_write(words: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line before anything is read, and no folder that is called like the address."""
    monkeypatch.chdir(tmp_path)
    assert re.search(r"gs://b/x\S* is (an address|no folder); allowed ", refused(capsys, *words.format("gs://b/x").split()))
    assert not list(tmp_path.iterdir())


def test_unknown_commands_and_missing_options(capsys: pytest.CaptureFixture[str]) -> None:
    """The allowed ones are listed."""
    assert refused(capsys, "trian").startswith("unknown command 'trian'; allowed are train, ")
    assert refused(capsys, "train", "--config=configs/tiny.py").startswith("the following arguments are required: --workdir")
    assert refused(capsys, "evaluate").startswith("the following arguments are required: DIR")


def test_workdir_that_cannot_be_one(index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a name below a file, a folder with other things, one that may not be written, a config.json that is none."""
    words = ["train", *runs.arguments(index)]
    (tmp_path / "file").write_text("mine")
    assert refused(capsys, *words, f"--workdir={tmp_path / 'file'}") == f"--workdir={tmp_path / 'file'} is a file; needed is a folder, or a name that is still free"
    assert refused(capsys, *words, f"--workdir={tmp_path / 'file' / 'run'}").startswith(f"cannot write to --workdir={tmp_path / 'file' / 'run'}: Not a directory")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    assert "is not empty and holds no config.json, so it is not a run directory" in refused(capsys, *words, f"--workdir={tmp_path / 'other'}")
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "durable.json").write_text("{}")
    (tmp_path / "place" / "config.json").write_text("{}")
    assert "is not empty and holds no config.json" in refused(capsys, *words, f"--workdir={tmp_path / 'other'}", f"--durable={tmp_path / 'place'}")
    assert listing(tmp_path / "other") == {"thesis.tex": b"mine"}
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"seed": ')
    assert "config.json is not JSON" in refused(capsys, *words, f"--workdir={tmp_path / 'broken'}")

    def forbidden(self: pathlib.Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(run_directory.pathlib.Path, "mkdir", forbidden)
    assert refused(capsys, *words, f"--workdir={tmp_path / 'closed' / 'run'}").startswith(f"cannot write to --workdir={tmp_path / 'closed' / 'run'}: Permission denied")


@pytest.mark.parametrize("what", ["config", "index", "workdir"])
def test_a_folder_that_may_not_be_entered(what: str, index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and the exit code that no supervisor repeats; 74, which it does, where the disk fails. (Root may enter all: the refusal is made here.)"""
    closed, plain = tmp_path / "closed", os.stat
    words = {"config": [f"--config={closed / 'own.py'}", f"--workdir={tmp_path / 'run'}"],
             "index": [*runs.arguments(index), f"--config.data.index={closed / 'i.parquet'}", f"--workdir={tmp_path / 'run'}"],
             "workdir": [*runs.arguments(index), f"--workdir={closed / 'run'}"]}[what]
    number = errno.EACCES

    def stat(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if str(closed) in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return plain(path, *rest, **more)

    monkeypatch.setattr(os, "stat", stat)
    line = refused(capsys, "train", *words)
    assert "Permission denied" in line and str(closed) in line and not (tmp_path / "run").exists()
    number = errno.EIO
    assert main(["train", *words]) == 74 and capsys.readouterr().err.splitlines()[-1].startswith("error: ")


CLAIMS = {
    "free": (["--config.log.every=3", "--config.threads=1", "--config.evaluators.pictures.clips=1"], [], None),
    "extend": (["--config.total=12"], ["--extend"], "another config: total: '9' -> '12'; repeat with --extend"),
    "fork": (["--config.optimizers.main.schedule.base=0.5"], ["--fork"],
             "another config: optimizers.main.schedule.base: 0.001 -> 0.5; repeat with --fork"),
    "fork data": (["--config.batch_size=16", "--config.seed=3"], ["--fork"], "another config: batch_size: 8 -> 16; seed: 0 -> 3; repeat with --fork"),
    "never": (["--config.objective.encoder.width=64"], None, "these fields may never change: objective.encoder.width: 32 -> 64; use a new --workdir"),
    "shorter": (["--config.total=4", "--extend"], None, "the newest checkpoint in {run} is of step 9, beyond the total of 4; allowed are 9 and more"),
}


@pytest.mark.parametrize("kind", CLAIMS)
def test_run_directory_of_another_config(trained: pathlib.Path, index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What may change freely, with --extend, with --fork and never; a refusal changes no byte; an acceptance prints the difference."""
    from videomae_jax import train as loop

    changes, flags, complaint = CLAIMS[kind]
    copied = shutil.copytree(trained, tmp_path / "run")
    words = ["train", *runs.arguments(index), f"--workdir={copied}", *changes]
    if complaint:
        before = listing(copied)
        assert complaint.format(run=copied) in refused(capsys, *words)
        assert listing(copied) == before
    if flags is None:
        return
    monkeypatch.setattr(loop, "train", lambda run, *_, **__: loop.Result(state=None, first=0, step=run.total, finished=True))
    assert main([*words, *flags]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("changed since the run began: ")]
    assert len(said) == len([c for c in changes if c.startswith("--config")])
    assert main(words) == 0  # the new config is now the stored one


def test_other_clips_are_another_run(trained: pathlib.Path, index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that was written anew over more, fewer or renamed videos orders them anew: refused without --fork, and then the stored one.

    What could not be read is told by rows of the old one, and is no longer asked; epochs of other steps are refused.
    """
    from videomae_jax import train as loop

    copied, other = shutil.copytree(trained, tmp_path / "run"), tmp_path / "index.parquet"
    table = pq.read_table(index)
    train = [i for i, split in enumerate(table.column("split").to_pylist()) if split == "train"]
    words = ["train", *runs.arguments(index), f"--workdir={copied}"]
    monkeypatch.setattr(loop, "train", lambda run, *_, **__: loop.Result(state=None, first=0, step=run.total, finished=True))
    kept = [i for i in range(table.num_rows) if i not in train[:8]]
    text = index.read_bytes()
    try:
        pq.write_table(table.take(kept), index)
        said = refused(capsys, *words, "--extend")
        assert re.search(r"another config: data: 16 clips, \w{8} -> 8 clips, \w{8} \(of names and classes\); repeat with --fork", said), said
        lists = {f"{name}{part}.jsonl": '{"row": 3}\n' for name in ("faults", "quarantine") for part in ("", ".1")}
        for name, line in lists.items():
            (copied / name).write_text(line)
        assert main([*words, "--fork"]) == 0 and main(words) == 0
        assert {name: ((copied / name).read_text(), (copied / f"{name}.before_9").read_text()) for name in lists} == {name: ("", line) for name, line in lists.items()}
        for name in lists:
            (copied / name).write_text("again\n")
        pq.write_table(table.take(kept[:-1]), index)  # a second time before anything is saved
        assert main([*words, "--fork"]) == 0
        assert all((copied / f"{name}.before_9").read_text() == line and (copied / f"{name}.before_9.1").read_text() == "again\n" for name, line in lists.items())
        pq.write_table(table.take(kept), index)
        assert main([*words, "--fork"]) == 0
        (copied / "classes.json").write_text(json.dumps(sources.VideoClips(index=str(index)).classes[::-1]))
        assert re.search("classes.json has .* as class 0 of", refused(capsys, *words, "--fork"))  # the head would go on with labels in another order
        (copied / "classes.json").unlink()
        pq.write_table(table, index)
        assert "data: 8 clips" in refused(capsys, *words)
        assert main([*words, "--fork", "--config.optimizers.main.schedule.warmup=0.5ep"]) == 2
        config = configs.from_json((copied / "config.json").read_text())
        config.total = "9.0ep"
        (copied / "config.json").write_text(configs.to_json(config))
        before, epochs = listing(copied), ["train", *runs.arguments(index, total="9.0ep"), f"--workdir={copied}", "--fork"]
        assert re.match(r"data: 8 clips, \w{8} -> 16 clips, \w{8} \(of names and classes\), and total is '9.0ep': an epoch would have another number", refused(capsys, *epochs))
        assert listing(copied) == before
    finally:
        index.write_bytes(text)
    assert not other.exists()


def test_a_batch_that_changes_the_epochs_is_refused(trained: pathlib.Path, index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps that were made would be other epochs: a run would end early, or rewind its rate."""
    copied = shutil.copytree(trained, tmp_path / "run")
    config = configs.from_json((copied / "config.json").read_text())
    config.total = "4.5ep"
    (copied / "config.json").write_text(configs.to_json(config))
    before = listing(copied)
    said = refused(capsys, "train", *runs.arguments(index, total="4.5ep"), f"--workdir={copied}", "--config.batch_size=16", "--fork")
    assert said.startswith("batch_size: 8 -> 16, and total is '4.5ep'") and listing(copied) == before


def test_a_mistake_is_corrected_in_the_same_directory(index: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has saved nothing has nothing to lose, not even by another model; one with a durable place may have saved there."""
    from videomae_jax import train as loop

    monkeypatch.setattr(loop, "train", lambda run, *_, **__: loop.Result(state=None, first=run.total, step=run.total, finished=True))
    words = ["train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setattr(run_directory, "summarise", lambda *_, **__: None)
    assert main(words) == 0
    assert main([*words, "--config.objective.encoder.width=64"]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["objective"]["encoder"]["width"] == 64
    (tmp_path / "run" / "durable.json").write_text("{}")
    assert main(words) == 2


def test_what_a_killed_start_leaves_is_no_run(index: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file by which processes see that they share a directory."""
    from videomae_jax import train as loop

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".shared.abc").touch()
    monkeypatch.setattr(loop, "train", lambda run, *_, **__: loop.Result(state=None, first=run.total, step=run.total, finished=True))
    monkeypatch.setattr(run_directory, "summarise", lambda *_, **__: None)
    assert main(["train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}"]) == 0


def test_names_of_classes_lie_beside_the_weights(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Of a run with a head: whoever has its directory needs no index to name what it predicts."""
    config = configs.load("configs/finetune/shapes.py")
    configs.override(config, {"data.index": str(index)})
    names = configs.build(config.data).classes
    configs.override(config, {"objective.head.classes": str(len(names)), "objective.pretrained": ""})
    run_directory.claim(assemble(config), tmp_path / "run", extend=False, fork=False, say=print)
    assert json.loads((tmp_path / "run" / "classes.json").read_text()) == list(names)


def test_names_of_classes_outlast_a_fork_to_their_numbers(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Official lists have numbers alone: without the names nothing could say what the head answers, or refuse other names after that."""
    table, other = pq.read_table(index), tmp_path / "index.parquet"
    names = sources.classes(table)

    def claim(change: Any) -> None:
        """With the label of every video changed, in an index of its own."""
        labels = [change(label) for label in table.column("label").to_pylist()]
        pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels)), other)
        config = configs.load("configs/finetune/shapes.py")
        configs.override(config, {"data.index": str(other), "data.label": "", "objective.head.classes": str(len(names)), "objective.pretrained": ""})
        run_directory.claim(assemble(config), tmp_path / "run", extend=False, fork=True, say=lambda line: None)
        assert json.loads((tmp_path / "run" / "classes.json").read_text()) == list(names)

    claim(lambda label: label)
    (tmp_path / "run" / "summary.json").touch()  # it has saved something
    claim(lambda label: str(names.index(label)))
    with pytest.raises(UserError, match=f"has '{names[0]}' as class 0 of {len(names)}, the order of the run's head, and the data 'not "):
        claim(lambda label: f"not {label}")
    claim(lambda label: label)


def test_names_of_classes_come_with_a_head_that_is_taken_over(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Onto data of their numbers, with the whole head alone; where a run has begun, its own names count, not those of weights that may be others by now."""
    table, other = pq.read_table(index), tmp_path / "index.parquet"
    names = sources.classes(table)
    labels = [str(names.index(label)) for label in table.column("label").to_pylist()]
    pq.write_table(table.set_column(table.schema.get_field_index("label"), "label", pa.array(labels)), other)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "classes.json").write_text(json.dumps(names[::-1]))

    def told(start: str, **changes: str) -> list[str]:
        config = configs.load("configs/finetune/shapes.py")
        configs.override(config, {"data.index": str(other), "data.label": "", "objective.head.classes": str(len(names)), "objective.start": start,
                                  "objective.pretrained": str(tmp_path / "old")} | changes)
        run_directory.claim(assemble(config), tmp_path / start, extend=False, fork=True, say=lambda line: None)
        return json.loads((tmp_path / start / "classes.json").read_text())

    numbers = list(map(str, range(len(names))))
    assert told("model") == list(names[::-1]) and told("features") == numbers
    for start in ("model", "features"):
        (tmp_path / start / "summary.json").touch()  # it has saved something
    (tmp_path / "old" / "classes.json").write_text(json.dumps(names))
    assert told("model") == list(names[::-1]) and told("features") == numbers
    with pytest.raises(UserError, match=f"has '{names[-1]}' as class 0 of {len(names)}, the order of the run's head, and the data '{names[0]}'"):
        told("model", **{"data.index": str(index)})


def test_a_storage_fault_ends_the_process_at_once() -> None:
    """Threads of the storage layer wait for minutes for what never comes; a supervisor is to start the run again now."""
    code = ("import threading, time, videomae_jax.__main__ as m\nthreading.Thread(target=time.sleep, args=(300,)).start()\n"
            "m.main = lambda argv: m.STORAGE\nm.entry()")
    assert subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, timeout=60, check=False).returncode == 74


def test_what_is_not_installed_is_one_line(tmp_path: pathlib.Path) -> None:
    """A Python without the requirements, as a new user's own: which package, which Python, what to do."""
    code = ("import sys\nclass Absent:\n    def find_spec(self, name, *rest):\n        if name.split('.')[0] in ('pyarrow', 'jax'):\n"
            "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\nsys.meta_path.insert(0, Absent())\n"
            "from videomae_jax.__main__ import main\nsys.exit(main(['index', sys.argv[1], '--out=x.parquet']))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=runs.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: the package ") and "pip install -r requirements.txt" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("number", "text", "named", "said"), [
    (errno.EROFS, "Read-only file system", True, "{file} cannot be accessed: Read-only file system"),
    (errno.ENOSPC, "No space left on device", True, "{file} cannot be accessed: No space left on device"),
    (errno.ENOSPC, "No space left on device", False, "report cannot write: No space left on device"),
    (errno.EDQUOT, "Disk quota exceeded", False, "report cannot write: Disk quota exceeded"), (errno.EACCES, "Permission denied", False, None)])
def test_a_file_system_that_refuses_is_one_line(number: int, text: str, named: bool, said: str | None, trained: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    """A run directory on a read-only or full disk, which a write that fails does not name; what is refused without a name and room is no mistake of the user."""
    def refuse(path: pathlib.Path, content: str, /) -> None:
        raise OSError(number, text, *[str(path)] * named)
    monkeypatch.setattr(run_directory, "write", refuse)
    if said is None:
        with pytest.raises(OSError, match=text):
            main(["report", str(trained)])
    else:
        assert refused(capsys, "report", str(trained)) == said.format(file=trained / "report.html")


def test_an_address_is_no_run_directory(index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """pathlib would make a folder `gs:` of it."""
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, "train", "--config=configs/tiny.py", f"--config.data.index={index}", "--workdir=gs://bucket/run")
    assert message.startswith("--workdir=gs://bucket/run is no folder; allowed is one that all hosts share") and "--durable=gs://bucket/run" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["program", "state", "step", "evaluation"])
def test_memory_of_devices_that_is_too_small_is_one_line(where: str, index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a dry run compiles, where the state is made, at a step and in an evaluator: it says what makes the run smaller; other errors of the runtime keep their traceback."""
    said = ["RESOURCE_EXHAUSTED: Out of memory while trying to allocate 88888 bytes.\nBufferAssignment ...", "INTERNAL: broken"]

    def exhausted(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError(said[0])

    owner, name = {"program": (assembly.Assembly, "compile"), "state": (assembly.Assembly, "create"), "step": (assembly.Step, "__call__"), "evaluation": (reconstruction.Reconstruction, "run")}[where]
    monkeypatch.setattr(owner, name, exhausted)
    words = ["train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}", *["--dry-run"] * (where == "program")]
    line = refused(capsys, *words)
    assert line.startswith("the run does not fit into the memory of its devices (RESOURCE_EXHAUSTED: Out of memory while trying to allocate 88888 bytes.); ")
    assert all(word in line for word in ("--config.microbatches", ".remat=full", "--config.batch_size", "plan --config=FILE --topology=local"))
    said.pop(0)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        main(words)


@pytest.mark.parametrize(("words", "owner", "name", "helps"), [
    (("extract", "{run}", "{videos}", "--out={out}"), api.Model, "submit", "a smaller --batch"),
    (("evaluate", "{run}"), reconstruction.Reconstruction, "run", "a smaller --config.evaluators.NAME.batch_size, and of a suite more --config.microbatches"),
    (("visualize", "{run}"), pictures.Pictures, "draw", "fewer --clips"),
    (("export", "{run}", "--out={out}"), api.Model, "check_layer", "a device with more memory, or JAX_PLATFORMS=cpu")])
def test_exhausted_memory_names_the_option_of_each_command(words: tuple[str, ...], owner: Any, name: str, helps: str, trained: pathlib.Path, index: pathlib.Path,
                                                           tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line; of a memory within a TPU's core it says what attention does without; other errors of the runtime keep their traceback."""
    said = ["RESOURCE_EXHAUSTED: Out of memory", "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 2.00M of 1.00M vmem.", "INTERNAL: broken"]

    def exhausted(*_: Any, **__: Any) -> None:
        raise jax.errors.JaxRuntimeError(said[0])

    monkeypatch.setattr(owner, name, exhausted)
    given = [word.format(run=trained, videos=index, out=tmp_path / "out") for word in words]
    assert refused(capsys, *given).startswith(f"the run does not fit into the memory of its devices ({said.pop(0)}); what helps: {helps}")
    line, kernel = refused(capsys, *given), "attention without a kernel" if words[0] == "evaluate" else "a device with more memory, or JAX_PLATFORMS=cpu"
    assert line.startswith(f"a kernel does not fit into the vmem of its device ({said.pop(0)}); what helps: {kernel}")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        main(given)


@pytest.mark.parametrize(("said", "code", "told"), [("RESOURCE_EXHAUSTED: full", 2, "error: the run does not fit into the memory"), ("INTERNAL: x", 1, "jax.errors.JaxRuntimeError: INTERNAL: x")])
def test_memory_that_is_too_small_for_one_of_several_processes(said: str, code: int, told: str, capsys: pytest.CaptureFixture[str],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves with the same line and a code that no supervisor takes for a fault that passes."""
    monkeypatch.setattr(stopping.os, "_exit", sys.exit)
    monkeypatch.setattr(stopping.multiprocessing, "active_children", list)
    with pytest.raises(SystemExit) as left:
        stopping.leave(jax.errors.JaxRuntimeError(said), lead=False)
    assert left.value.code == code and capsys.readouterr().err.startswith(told)


def test_a_last_save_that_fails_is_tried_again_by_a_supervisor(index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """74, and one line: exit code 2 would end the supervision."""
    from videomae_jax import train as loop

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the last checkpoint, of step 9, is not written")

    monkeypatch.setattr(loop, "train", full)
    assert main(["train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}"]) == 74
    assert capsys.readouterr().err.splitlines()[-1] == "error: the last checkpoint, of step 9, is not written"


def test_checkpoint_of_another_model_or_optimiser(trained: pathlib.Path, index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checkpoints that were copied into another run, and a fork that would need other moments: refused before anything is written."""
    other = tmp_path / "other"
    words = ["train", *runs.arguments(index, objective__encoder__width=16), f"--workdir={other}"]
    shutil.copytree(trained / "checkpoints", other / "checkpoints")
    stored = json.loads((trained / "config.json").read_text())
    stored["objective"]["encoder"]["width"] = 16
    (other / "config.json").write_text(json.dumps(stored))
    before = listing(other)
    assert "is of another model: decoder/bridge/kernel is float32 (32, 32) there, float32 (16, 32) in this config" in refused(capsys, *words)
    assert listing(other) == before
    copied = shutil.copytree(trained, tmp_path / "run")
    before = listing(copied)
    said = refused(capsys, "train", *runs.arguments(index), f"--workdir={copied}", "--fork", "--config.optimizers.main.first_moment=bfloat16")
    assert "is of another model or optimiser" in said and "bfloat16" in said
    assert listing(copied) == before


def test_evaluate_and_visualize_of_what_is_no_run(trained: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder without a config, a run without a checkpoint, an unknown step or evaluator, a damaged checkpoint."""
    assert "holds no config.json" in refused(capsys, "evaluate", tmp_path)
    assert "holds no config.json" in refused(capsys, "visualize", tmp_path / "none")
    (tmp_path / "fresh").mkdir()
    shutil.copy(trained / "config.json", tmp_path / "fresh")
    assert "no checkpoint in" in refused(capsys, "evaluate", tmp_path / "fresh")
    assert refused(capsys, "evaluate", trained, "--step=5").endswith("its steps are [6, 9]")
    assert refused(capsys, "evaluate", trained, "--only=knn") == "unknown evaluator 'knn'; this run has pictures, reconstruction"
    copied = shutil.copytree(trained, tmp_path / "run")
    path = copied / "checkpoints" / "00000009" / "meta" / "metadata"
    path.write_bytes(path.read_bytes().replace(b'"samples": 72', b'"samples": 73'))
    assert "checkpoint 9" in (said := refused(capsys, "evaluate", copied)) and "damaged" in said


def test_unreadable_videos_are_replaced_and_listed(index: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two files that became empty or garbage since they were indexed: the run finishes and names them; if all did, it says so and stays resumable."""
    folder = shutil.copytree(index.parent, tmp_path / "world")
    (folder / "videos" / "train_000003.mp4").write_bytes(b"")
    (folder / "videos" / "train_000007.mp4").write_bytes(b"garbage" * 100)
    options = {"total": 4, "checkpoint__every": "", "evaluators__reconstruction__clips": 8, "data__max_bad_fraction": 0.5}
    assert main(["train", *runs.arguments(folder / "index.parquet", **options), f"--workdir={tmp_path / 'run'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "faults.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == ["videos/train_000003.mp4", "videos/train_000007.mp4"]
    assert " decoded clips of 2 unreadable videos were replaced by others (open " in capsys.readouterr().err
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if "bad_clips" in line][-1]
    assert last["bad_clips"] == last["bad_clips/open"] >= 2
    kept = {p: p.read_bytes() for p in (folder / "videos").glob("train_*.mp4")}
    for path in kept:
        path.write_bytes(b"")
    words = ["train", *runs.arguments(folder / "index.parquet", **options), f"--workdir={tmp_path / 'all'}"]
    said = refused(capsys, *words)
    assert said.startswith("a video and all of its 15 substitutes cannot be read: ") and "train_0000" in said
    for path, content in kept.items():
        path.write_bytes(content)
    assert main(words) == 0


def test_index_without_a_readable_video(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The index command refuses, and so does a run on what it wrote."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"")
    assert main(["index", str(tmp_path / "videos"), f"--out={tmp_path / 'index.parquet'}"]) == 2
    capsys.readouterr()
    said = refused(capsys, "train", *runs.arguments(tmp_path / "index.parquet"), f"--workdir={tmp_path / 'run'}")
    assert said.endswith("no readable video at all") and not (tmp_path / "run").exists()


def test_installed_package_finds_its_configs(tmp_path: pathlib.Path) -> None:
    """Built and installed without the network, used from another folder: every config of the checkout is there and loads."""
    pytest.importorskip("setuptools", minversion="68")
    source = tmp_path / "source"
    for name in ("videomae_jax", "configs"):
        shutil.copytree(runs.ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        if (runs.ROOT / name).exists():
            shutil.copy(runs.ROOT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check",
                    f"--target={tmp_path / 'site'}", str(source)], check=True, capture_output=True, text=True)
    wanted = {p.relative_to(runs.ROOT / name).as_posix() for name in ("videomae_jax", "configs") for p in (runs.ROOT / name).rglob("*")
              if p.suffix == ".py" or p.parent.name == "curves"}
    site = tmp_path / "site" / "videomae_jax"
    found = {p.relative_to(base).as_posix() for base in (site, site / "configs") for p in base.rglob("*") if p.suffix in (".py", ".json")}
    assert not wanted - found, f"pyproject.toml does not install {sorted(wanted - found)}"
    env = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "JAX_PLATFORMS": "cpu"}
    code = ("import sys\nfrom videomae_jax import config\nfor path in sys.argv[1:]:\n    config.load(path)\n"
            "from videomae_jax.__main__ import main\nsys.exit(main(['config', '--config=configs/tiny.py', '--json']))")
    paths = [f"configs/{p.relative_to(runs.ROOT / 'configs').as_posix()}" for p in (runs.ROOT / "configs").rglob("*.py") if p.name not in ("__init__.py", "base.py")]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "tiny"


def test_ctrl_c_before_training_is_no_traceback(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """While the program still starts there is nothing to save: exit code 130 and one word."""
    process = runs.command("train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}", point=("assemble:SIGINT", 1))
    _, err = runs.finish(process, code=128 + signal.SIGINT)
    assert err.endswith("interrupted\n") and "Traceback" not in err and not (tmp_path / "run").exists()
