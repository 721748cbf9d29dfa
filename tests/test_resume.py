"""A run that is killed, interrupted or stopped goes on to the same bits, with the same lines in metrics.jsonl."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import chaos
import pytest
import runs

from videomae_jax import metrics


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A small data set of video files."""
    return runs.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def undisturbed(index: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run that nothing happens to."""
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    runs.finish(runs.command("train", *runs.arguments(index), f"--workdir={directory}"), code=0)
    return directory


def lines(directory: pathlib.Path) -> list[dict[str, float]]:
    """metrics.jsonl without timings."""
    return [{k: v for k, v in line.items() if k not in metrics.TIMING} for line in metrics.read(directory)]


def same(directory: pathlib.Path, undisturbed: pathlib.Path) -> None:
    """Parameters, optimiser state, metrics and the list of checkpoints are those of the undisturbed run."""
    assert runs.digest(directory) == runs.digest(undisturbed)
    assert lines(directory) == lines(undisturbed)
    assert sorted(p.name for p in (directory / "checkpoints").iterdir()) == sorted(p.name for p in (undisturbed / "checkpoints").iterdir())


def test_every_step_is_logged_once(undisturbed: pathlib.Path) -> None:
    """The reference itself: each step once, evaluations before the first, at every third and after the last step."""
    found = lines(undisturbed)
    assert [line["step"] for line in found if "loss" in line] == list(range(1, runs.TOTAL + 1))
    assert [line["step"] for line in found if "reconstruction/loss" in line] == [0, 3, 6, 9]
    assert [line["step"] for line in found if "pictures/psnr_hidden" in line] == [0, 9]
    assert len({line["loss"] for line in found if "loss" in line}) == runs.TOTAL


@pytest.mark.parametrize(("point", "number"), [("step", 8), ("save", 2)])
def test_killed_run_goes_on_to_the_same_bits(index: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path, point: str, number: int) -> None:
    """SIGKILL within a step, and while all bytes of a checkpoint are written and its directory is not committed."""
    words = ["train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}"]
    runs.finish(runs.command(*words, point=(point, number)), code=-signal.SIGKILL)
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    whole = [name for name in left if "tmp" not in name]
    # The save of step 6 waits for that of step 3; in step 8 it may be under way itself.
    assert whole in ([["00000003"]] if point == "save" else [["00000003"], ["00000003", "00000006"]])
    assert point == "step" or left == ["00000003", "00000006.orbax-checkpoint-tmp"]
    (tmp_path / "run" / "metrics.jsonl").open("a").write('{"step": 7, "lo')  # what a kill within a write leaves
    _, err = runs.finish(runs.command(*words), code=0)
    assert f"resuming from step {int(whole[-1])} " in err
    same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_stopped_run_saves_and_goes_on_to_the_same_bits(index: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path, name: str, code: int) -> None:
    """The step under way is the last one; the printed command resumes, with worker processes and other threads too."""
    words = ["train", *runs.arguments(index), f"--workdir={tmp_path / 'a run'}"]
    _, err = runs.finish(runs.command(*words, point=(f"step:{name}", 5)), code=code)
    assert "stopped at step 5 of 9" in err
    printed = err[err.index("python -m videomae_jax train"):].splitlines()[0].removeprefix("python ")
    assert str(tmp_path / "a run") in printed
    assert [line["step"] for line in lines(tmp_path / "a run") if "loss" in line] == [1, 2, 3, 4, 5]
    resume = f"'{sys.executable}' {printed} --config.workers=2 --config.threads=1 --config.prefetch=3" if name == "SIGINT" else f"'{sys.executable}' {printed}"
    runs.finish(runs.command(shell=resume), code=0)
    assert runs.digest(tmp_path / "a run") == runs.digest(undisturbed)
    assert lines(tmp_path / "a run") == lines(undisturbed)


def test_evaluation_that_was_stopped_is_repeated(index: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """SIGTERM within the evaluation of step 3 ends it, the state of step 3 is saved, and the resumed run evaluates it first."""
    words = ["train", *runs.arguments(index), f"--workdir={tmp_path / 'run'}"]
    _, err = runs.finish(runs.command(*words, point=("evaluation:SIGTERM", 4)), code=75)  # three batches are drawn before step 1
    assert "stopped at step 3 of 9" in err
    assert not [line for line in lines(tmp_path / "run") if line["step"] == 3 and "reconstruction/loss" in line]
    runs.finish(runs.command(*words), code=0)
    same(tmp_path / "run", undisturbed)


def test_ctrl_c_in_a_terminal_reaches_workers_too(index: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A terminal signals the whole process group; the run still ends in order, and no process stays behind."""
    words = ["train", *runs.arguments(index, total=100000, workers=1, checkpoint__every=100000, evaluators__reconstruction__every=""), f"--workdir={tmp_path / 'run'}"]
    process = runs.command(*words, start_new_session=True)
    runs.read_until(process, "step 1/")
    os.killpg(process.pid, signal.SIGINT)
    _, err = runs.finish(process, code=130)
    assert "stopped at step" in err
    assert (tmp_path / "run" / "checkpoints").exists()
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    deadline = time.monotonic() + 60
    while alive(process.pid):
        assert time.monotonic() < deadline, "processes of the run are left"
        time.sleep(0.1)


def alive(group: int) -> bool:
    """Whether a process group has members."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_ctrl_c_ends_at_once_what_was_asked_to_stop() -> None:
    """SIGTERM asks, again and again: schedulers send it to all processes, and scripts pass theirs on. SIGINT then ends the process, whatever it does."""
    code = ("import time\nfrom videomae_jax.stopping import Stop\nwith Stop() as stop:\n    print('ready', flush=True)\n"
            "    while not stop.requested():\n        time.sleep(.01)\n    print('asked', flush=True)\n    time.sleep(600)\n")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "asked\n"
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert time.monotonic() - begin < 30  # not the 600 s it would sleep
    assert err.count("stopping:") == 1


def test_random_disturbances_end_in_the_same_bits(index: pathlib.Path, undisturbed: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A seeded schedule of `tests/chaos.py`: stopped in a step, which leaves a checkpoint, killed in its restore, and a worker killed."""
    words, said = ["train", *runs.arguments(index)], []
    plans = (("step", "SIGTERM"), ("restore", "SIGKILL"), ("worker", "SIGKILL"))
    found = chaos.campaign(words, undisturbed, tmp_path, kills=len(plans), seed=0, processes=1, total=runs.TOTAL, plans=plans, seconds=300, say=said.append)
    assert found["mismatches"] == 0 and found["counts"] == {"SIGTERM in step": 1, "SIGKILL in restore": 1, "SIGKILL in worker": 1}, said
