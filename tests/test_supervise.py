"""The loop that starts a command again: which exit codes it goes on after, how long it waits, when it gives up."""

import os
import pathlib
import signal
import subprocess
import time

import pytest

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "launch" / "supervise.sh"
# Each start appends a line to `starts` and ends with the next of the codes; the last one stays.
STUB = 'echo x >>starts; n=$(wc -l <starts); set -- $CODES; [ $n -le $# ] && shift $((n - 1)) || shift $(($# - 1)); [ $1 -lt 128 ] && exit $1; kill -$(($1 - 128)) $$'


def supervise(folder: pathlib.Path, codes: str, *, stub: str = STUB, **settings: object) -> "subprocess.Popen[str]":
    """The script over a stub."""
    env = os.environ | {"PAUSE": "0.05", "PAUSE_MOST": "0.1", "CODES": codes} | {k: str(v) for k, v in settings.items()}
    return subprocess.Popen(["bash", str(SCRIPT), "bash", "-c", stub], cwd=folder, env=env, stderr=subprocess.PIPE, text=True)


def starts(folder: pathlib.Path) -> int:
    """How often the stub ran."""
    return len((folder / "starts").read_text().splitlines())


@pytest.mark.parametrize(("codes", "count", "code"), [
    ("0", 1, 0), ("2 0", 1, 2), ("126 0", 1, 126), ("127 0", 1, 127), ("130 0", 1, 130), ("75 75 75 0", 4, 0), ("42 0", 2, 0), ("74 0", 2, 0), ("1 137 134 0", 4, 0), ("1 1 1 1 1 1", 5, 1),
    ("1 1 1 75 1 1 1 75 0", 9, 0)])
def test_codes_that_are_started_again(tmp_path: pathlib.Path, codes: str, count: int, code: int) -> None:
    """After 75, 42, 74, crashes and signals; not after 0, 2, 126, 127, 130; five crashes in a row are the end, a saved stop begins the row anew."""
    process = supervise(tmp_path, codes, CRASHES=5)
    _, said = process.communicate(timeout=60)
    assert (starts(tmp_path), process.returncode) == (count, code), said
    assert ("giving up" in said) == (count == 5)


def test_pauses_grow_and_a_steady_run_begins_anew(tmp_path: pathlib.Path) -> None:
    """The pause doubles up to its limit; with STEADY=0 every start counts as steady."""
    _, said = supervise(tmp_path, "1", CRASHES=4).communicate(timeout=60)
    assert [line.split()[-2] for line in said.splitlines() if "next start" in line] == ["0.05", "0.1", "0.1"]
    (tmp_path / "starts").unlink()
    _, said = supervise(tmp_path, "1 1 1 1 1 1 0", CRASHES=2, STEADY=0).communicate(timeout=60)
    assert starts(tmp_path) == 7 and {line.split()[-2] for line in said.splitlines()} == {"0.05"}


def test_a_signal_goes_to_the_command_and_ends_the_loop(tmp_path: pathlib.Path) -> None:
    """It reaches the child, whose code is handed on, but not that of a crash, which would be a last one; within a pause nothing is started any more."""
    for ends, code in ((75, 75), (2, 2), (74, 143)):
        stub = f"trap 'exit {ends}' TERM; echo x >>starts; while :; do sleep 0.05; done"
        process = supervise(tmp_path, "", stub=stub)
        wait_for(tmp_path)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code and starts(tmp_path) == 1
        assert said == ("supervise: exit code 74 after SIGTERM\n" if ends == 74 else "")
        (tmp_path / "starts").unlink()
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = supervise(tmp_path, "1", PAUSE=600, PAUSE_MOST=600)
        assert "next start in 600 s" in process.stderr.readline()
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code and starts(tmp_path) == 1
        (tmp_path / "starts").unlink()


@pytest.mark.parametrize("code", [0, 2, 75])
def test_a_command_that_ends_right_after_the_signal_keeps_its_code(tmp_path: pathlib.Path, code: int) -> None:
    """The trap ends `wait`, and the command has ended before the script looks: a look that comes late, as on a busy machine."""
    late = {"BASH_FUNC_kill%%": '() { [ "$1" != -0 ] || command sleep 1; builtin kill "$@"; }'}
    process = supervise(tmp_path, "", stub=f"trap 'exit {code}' TERM; echo x >>starts; while :; do sleep 0.05; done", **late)
    wait_for(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60) == (None, "") and process.returncode == code


def test_whoever_started_it_may_go_away(tmp_path: pathlib.Path) -> None:
    """A connection that broke is a pipe that nobody reads: the run is started again all the same."""
    process = supervise(tmp_path, "1 1 0")
    process.stderr.close()
    assert process.wait(timeout=60) == 0 and starts(tmp_path) == 3


def wait_for(folder: pathlib.Path) -> None:
    """Until the stub has begun."""
    deadline = time.monotonic() + 60
    while not (folder / "starts").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_without_a_command_it_says_how_it_is_called(tmp_path: pathlib.Path) -> None:
    """One line of usage, code 2."""
    done = subprocess.run(["bash", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "bash launch/supervise.sh python" in done.stderr
