"""What starts note: the code that they run, where that is no checkout, and the weights of others."""

import pathlib
import shutil
import subprocess
import sys

import pytest

from videomae_jax import journal, records, starts

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_an_unpacked_archive_knows_its_commit(tmp_path: pathlib.Path) -> None:
    """Which `git archive` writes into the file: the launchers of machines that copy the source send such a one."""
    checkout, unpacked = tmp_path / "checkout", tmp_path / "unpacked"
    shutil.copytree(ROOT / "videomae_jax", checkout / "videomae_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".gitattributes", checkout)
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True,
                              text=True).stdout.strip()
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "one")
    git("archive", "--format=tar", f"--output={tmp_path}/source.tar", "HEAD")
    shutil.unpack_archive(tmp_path / "source.tar", unpacked)
    asked = "from videomae_jax import starts; print(starts.revision())"
    said = subprocess.run([sys.executable, "-c", asked], cwd=unpacked, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == git("rev-parse", "--short=12", "HEAD")


def test_an_image_is_told_its_commit(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By VIDEOMAE_REVISION, a build argument of launch/Dockerfile; one that was left out is none, and a checkout knows better."""
    monkeypatch.setattr(starts, "ARCHIVED", "$Format$")
    monkeypatch.setenv("VIDEOMAE_REVISION", "abc-dirty")
    assert starts.revision() != "abc-dirty"
    monkeypatch.setattr(starts, "__file__", str(tmp_path / "videomae_jax" / "starts.py"))
    assert starts.revision() == "abc-dirty"
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(starts, "GIT", ("no-such-git",))  # an image that was sent the whole checkout, and has no git
    assert starts.revision() == "abc-dirty"
    monkeypatch.setenv("VIDEOMAE_REVISION", "")
    assert starts.revision() is None
    said = (ROOT / "launch" / "Dockerfile").read_text()
    assert "ARG REVISION" in said and "ENV VIDEOMAE_REVISION=${REVISION}" in said
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().split()
    assert {"**/.git", "**/.venv", "**/.env", "data", "runs"} <= set(ignored)


def test_a_line_that_was_cut_takes_no_other_with_it(tmp_path: pathlib.Path) -> None:
    """By a full disk; the next start is one of its own, and what it says of frozen weights counts."""
    for number, digest in enumerate("ab"):
        starts.note(tmp_path, {"externals": {"frozen/encoder": {"sha256": digest}}}, step=4 * number, say=pytest.fail)
        with (tmp_path / starts.FILE).open("a") as file:
            file.write('{"time": "2026')
    assert starts.frozen(tmp_path)["frozen/encoder"]["sha256"] == "b" and len((tmp_path / starts.FILE).read_text().splitlines()) == 4
    assert [line["step"] for line in journal.read(tmp_path / starts.FILE)] == [0, 4]


def test_a_start_that_came_to_nothing_says_nothing_of_the_run() -> None:
    """Its config may have named other weights than the one that was corrected afterwards."""
    told = [{"step": 0, "externals": {"params": {"sha256": "a"}}}, {"step": 0, "externals": {"data": {"sha256": "c"}, "frozen/teacher": {"sha256": "b"}}}, {"step": 2}]
    record = records.Record(pathlib.Path(), None, {}, (), {}, (), {}, starts=told)
    assert record.weights == {"frozen/teacher": {"sha256": "b"}}


def test_a_start_from_checkpoint_0_keeps_the_weights_that_the_run_began_with() -> None:
    """It reads none of the parameters anew, but frozen ones, which a fork may have changed before the first step."""
    told = [{"step": 0, "saved": -1, "externals": {"params": {"sha256": "a"}, "frozen/teacher": {"sha256": "b"}}},
            {"step": 0, "saved": 0, "externals": {"frozen/teacher": {"sha256": "c"}}}, {"step": 2, "saved": 2, "externals": {"frozen/teacher": {"sha256": "d"}}}]
    record = records.Record(pathlib.Path(), None, {}, (), {}, (), {}, starts=told)
    assert record.weights == {"params": {"sha256": "a"}, "frozen/teacher": {"sha256": "c"}}
