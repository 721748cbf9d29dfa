"""launch/progressive.sh: how stages are chained, passed over and resumed, with a stand-in for Python; and once with the real one."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from videomae_jax import config as configs

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAND_IN = """#!/bin/bash
# Writes down its words; with --dry-run nothing else happens. CODE_<stage> is an exit code, without which the stage is finished.
printf '%s\\n' "$(printf '%q ' "$@")" >>"$LOG"
for word in "$@"; do [ "$word" = --dry-run ] && exit 0; done
for word in "$@"; do case "$word" in --workdir=*) run=${word#--workdir=} ;; esac; done
[ -n "${run:-}" ] || exit 0  # no training
name=CODE_$(basename "$run")
[ -z "${!name:-}" ] || exit "${!name}"
mkdir -p "$run" && for file in summary recipe_card; do printf '{\n  "steps": 1,\n  "seconds": 2\n}' >"$run/$file.json"; done
"""
WORDS = {"PRETRAIN": "--config=p.py --config.total=1", "INTERMEDIATE": "--config=i.py", "TARGET": "--config=t.py --config.objective.start=model",
         "DIRECT": "--config=d.py"}


def script(*words: str, env: dict[str, str], timeout: int = 60, root: pathlib.Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The script in a shell."""
    flags = {"CHIP": "cpu", "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": ""} if "--dry-run" in words else {}  # which it prints, those of the tests as well
    return subprocess.run(["bash", "launch/progressive.sh", *words], cwd=root, env=os.environ | flags | env, text=True, capture_output=True, timeout=timeout, check=False)


@pytest.fixture
def stand_in(tmp_path: pathlib.Path) -> dict[str, str]:
    """An environment in which the script calls the stand-in."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    return WORDS | {"VIDEOMAE_PYTHON": str(python), "LOG": str(tmp_path / "log")}


def called(env: dict[str, str]) -> list[list[str]]:
    """The words of every call since the last time."""
    log = pathlib.Path(env["LOG"])
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [shlex.split(line) for line in lines]


def expected(runs: pathlib.Path, stage: str, *extra: str) -> list[str]:
    """The words of a stage."""
    words, before = {"pretrain": ("PRETRAIN", ""), "intermediate": ("INTERMEDIATE", "pretrain"), "target": ("TARGET", "intermediate"),
                     "direct": ("DIRECT", "pretrain")}[stage]
    start = [f"--config.objective.pretrained={runs}/{before}"] if before else []
    return ["-m", "videomae_jax", "train", *WORDS[words].split(), f"--workdir={runs}/{stage}", *start, *extra]


def test_stages_are_chained_through_their_directories(stand_in: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Each starts from the run before; words behind -- go to all, blanks in them survive."""
    runs = tmp_path / "a b"
    done = script("--direct", str(runs), "--", "--config.name=it is", env=stand_in)
    assert done.returncode == 0, done.stderr
    assert called(stand_in) == [expected(runs, stage, "--config.name=it is") for stage in ("pretrain", "intermediate", "target", "direct")]


@pytest.mark.parametrize("stopped", ["pretrain", "intermediate", "target"])
def test_it_goes_on_at_every_boundary(stopped: str, stand_in: dict[str, str], tmp_path: pathlib.Path) -> None:
    """A stage that ends with 75 ends the script with 75; the same command passes over what is finished and goes on with that stage."""
    stages, runs = ["pretrain", "intermediate", "target"], tmp_path / "runs"
    place = stages.index(stopped)
    done = script(str(runs), env=stand_in | {f"CODE_{stopped}": "75"})
    assert done.returncode == 75 and f"{stopped} ended with 75" in done.stderr
    assert called(stand_in) == [expected(runs, stage) for stage in stages[:place + 1]]
    done = script(str(runs), env=stand_in)
    assert done.returncode == 0 and called(stand_in) == [expected(runs, stage) for stage in stages[place:]]
    assert done.stderr.count("finished before") == place
    assert script(str(runs), env=stand_in).returncode == 0 and called(stand_in) == []


def test_a_stage_that_was_made_longer_is_not_finished(stand_in: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Its summary is of the earlier length until it ends again; words with --extend or --fork reach stages that are finished, too."""
    runs = tmp_path / "runs"
    assert script(str(runs), env=stand_in).returncode == 0 and len(called(stand_in)) == 3
    (runs / "intermediate" / "recipe_card.json").write_text('{\n  "steps": 12\n}')
    done = script(str(runs), env=stand_in)
    assert done.returncode == 0 and called(stand_in) == [expected(runs, "intermediate")] and "pretrain: finished before at step 1, in " in done.stderr
    (runs / "target" / "recipe_card.json").unlink()
    assert script(str(runs), env=stand_in).returncode == 0 and called(stand_in) == [expected(runs, "target")]
    for longer in (("--config.total=9", "--extend"), ("--fork", "--config.total=9")):
        assert script(str(runs), "--", *longer, env=stand_in).returncode == 0
        assert called(stand_in) == [expected(runs, stage, *longer) for stage in ("pretrain", "intermediate", "target")]


def test_a_stage_of_another_length_is_not_finished(stand_in: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Where the words ask for other steps than the run has made, the command is told, which refuses them or needs --extend."""
    runs = tmp_path / "runs"
    assert script(str(runs), env=stand_in).returncode == 0 and len(called(stand_in)) == 3
    assert script(str(runs), env=stand_in | {"PRETRAIN": "--config=p.py --config.total=2 --config.total=1"}).returncode == 0 and called(stand_in) == []
    assert script(str(runs), env=stand_in | {"TARGET": f"{WORDS['TARGET']} --config.total=5"}).returncode == 0
    assert called(stand_in) == [[*expected(runs, "target")[:5], "--config.total=5", *expected(runs, "target")[5:]]]
    assert script(str(runs), env=stand_in | {"TARGET": f"{WORDS['TARGET']} --config.total=5ep"}).returncode == 0 and called(stand_in) == []


def test_dry_run(stand_in: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Prints what would run, lets every stage compile a step, writes nothing; LAUNCH stands before every command."""
    runs = tmp_path / "runs"
    done = script("--dry-run", str(runs), env=stand_in | {"LAUNCH": "env A=1"})
    assert done.returncode == 0 and not runs.exists()
    wanted = [expected(runs, stage) for stage in ("pretrain", "intermediate", "target")]
    assert [shlex.split(line) for line in done.stdout.splitlines()] == [["env", "A=1", stand_in["VIDEOMAE_PYTHON"], *words] for words in wanted]
    assert called(stand_in) == [[*words, "--dry-run"] for words in wanted]


def test_the_embedded_world_is_written_first(stand_in: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Where it is not there; a dry run only says so, and compiles nothing that needs it."""
    home = tmp_path / "copy"
    (home / "launch").mkdir(parents=True)
    for name in ("progressive.sh", "options.sh", "xla_flags.sh"):
        shutil.copyfile(ROOT / "launch" / name, home / "launch" / name)
    (home / "videomae_jax").mkdir()
    shutil.copyfile(ROOT / "videomae_jax" / "compiler_flags.txt", home / "videomae_jax" / "compiler_flags.txt")
    env = {k: v for k, v in stand_in.items() if k not in WORDS}
    done = script("--dry-run", "runs", env=env, root=home)
    assert done.returncode == 0 and "data/shapes is not there yet" in done.stderr and called(env) == []
    lines = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    assert lines[0] == ["-m", "videomae_jax", "synthesize", "data/shapes"] and [line[2] for line in lines[1:]] == ["train"] * 3
    assert script("runs", env=env, root=home).returncode == 0
    assert called(env) == lines


@pytest.mark.parametrize(("words", "message"), [((), "the folder of runs is missing"), (("a", "b"), "b comes after a"), (("--fast", "a"), "unknown option --fast")])
def test_mistakes(words: tuple[str, ...], message: str, stand_in: dict[str, str]) -> None:
    """Exit code 2 and one line; nothing is called."""
    done = script(*words, env=stand_in)
    assert done.returncode == 2 and message in done.stderr and called(stand_in) == []


def test_the_direct_way_has_words_of_its_own(stand_in: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Those of a target that takes over a head would fail after all other stages; a default is there where the target is the default, too."""
    done = script("--direct", str(tmp_path / "runs"), env=stand_in | {"DIRECT": ""})
    assert done.returncode == 2 and "--direct with TARGET but without DIRECT" in done.stderr and done.stderr.count("\n") == 1
    assert called(stand_in) == []
    assert script(str(tmp_path / "runs"), env=stand_in | {"DIRECT": ""}).returncode == 0 and len(called(stand_in)) == 3
    assert script("--direct", str(tmp_path / "more"), env=stand_in | {"DIRECT": "", "TARGET": ""}).returncode == 0
    last = called(stand_in)[-1]
    assert "--config=configs/finetune/shapes.py" in last and not any("start" in word for word in last)


def test_both_ways_have_as_many_labelled_steps(stand_in: dict[str, str], tmp_path: pathlib.Path) -> None:
    """By default: those of the stage between and the target together are those of the direct way, as in configs/toy/progressive.py."""
    assert script("--direct", str(tmp_path / "runs"), env=stand_in | dict.fromkeys(WORDS, "--config=p.py") | dict.fromkeys(("INTERMEDIATE", "TARGET", "DIRECT"), "")).returncode == 0
    steps = []
    for words in called(stand_in)[1:]:
        config = configs.load(str(ROOT / next(word for word in words if word.startswith("--config=")).removeprefix("--config=")))
        given = [word.removeprefix("--config.total=") for word in words if word.startswith("--config.total=")]
        steps.append(int((given or [config.total])[-1]))
    between, target, direct = steps
    suite = configs.load(str(ROOT / "configs/toy/progressive.py"))
    assert between + target == direct == int(suite.total) and (between, target) == (400, 200)


IN = {"INTERMEDIATE": "--config.data.limit=0", "TARGET": "--config.objective.start=model"}
OUT = {"INTERMEDIATE": "--config.data.limit=0 --config.data.label=motion --config.objective.head.classes=8", "TARGET": ""}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("more", [IN, OUT], ids=["in", "out"])
def test_the_toy_world_from_end_to_end(more: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Three real stages and the direct way, a few steps each, in and out of the target's domain: heads and encoders come from the stage before, results are there."""
    # One device, not those of this suite; stages of one shape share their programs.
    python = {"VIDEOMAE_PYTHON": sys.executable, "XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    made = subprocess.run([sys.executable, "-m", "videomae_jax", "synthesize", str(tmp_path / "world"), "--train=64", "--val=16", "--test=0"], cwd=ROOT, check=False)
    assert made.returncode == 0
    index = f"--config.data.index={tmp_path / 'world' / 'index.parquet'}"
    # The probes of the smoke run take longer to compile than everything else together.
    (tmp_path / "bare.py").write_text("from configs import smoke\n\n\ndef get_config():\n    config = smoke.get_config()\n    config.evaluators = {}\n    return config\n")
    tuned = f"--config=configs/finetune/shapes.py --config.evaluators.val.every= {index}"
    few = f"{tuned} --config.data.limit=32"
    env = python | {"PRETRAIN": f"--config={tmp_path / 'bare.py'} {index}", "INTERMEDIATE": f"{tuned} {more['INTERMEDIATE']}",
                    "TARGET": f"{few} {more['TARGET']}", "DIRECT": few}
    done = script("--direct", str(tmp_path / "runs"), "--", "--config.total=4", "--step-limit=0", env=env, timeout=1800)
    assert done.returncode == 0, done.stderr
    results = {stage: json.loads((tmp_path / "runs" / stage / "summary.json").read_text())["results"] for stage in ("pretrain", "intermediate", "target", "direct")}
    assert all(results[stage]["val/videos"] == 16 for stage in ("intermediate", "target", "direct")) and results["pretrain"]["loss"] > 0
    chance = {stage: round(100 / results[stage]["val/chance"]) for stage in ("intermediate", "target", "direct")}
    assert chance == {"intermediate": 8 if more is OUT else 4, "target": 4, "direct": 4}
    again = script("--direct", str(tmp_path / "runs"), "--", "--config.total=4", "--step-limit=0", env=env)
    assert again.returncode == 0 and again.stderr.count("finished before") == 4
