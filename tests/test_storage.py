"""A storage that fails, is full or is slow costs a checkpoint and an alarm, never a step; and what fuzzing finds."""

import errno
import json
import os
import pathlib
import random
import time
from typing import Any

import corruption
import orbax.checkpoint as ocp
import pytest
import test_train as loops
from PIL import Image
from runs import shared_programs  # noqa: F401 (a fixture)

from videomae_jax import checkpoint, manifest, metrics, run_directory, upkeep
from videomae_jax import config as configs
from videomae_jax.assembly import assemble
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.errors import StorageError
from videomae_jax.evals.pictures import Pictures
from videomae_jax.metrics import Writer

pytestmark = [pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"), pytest.mark.usefixtures("collected")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[pathlib.Path, Any]:
    """Eight steps on a storage that works, saved at every second."""
    directory = tmp_path_factory.mktemp("straight")
    return directory, loops.go(build(), directory)


def build() -> Any:
    """Its run."""
    return loops.build(total=8, checkpoint__every=2, evaluators__recorder__every="")


def lines(directory: pathlib.Path) -> list[dict[str, float]]:
    """metrics.jsonl without timings and alarms."""
    return [{k: v for k, v in line.items() if k not in metrics.TIMING} for line in metrics.read(directory)]


def faulty(monkeypatch: pytest.MonkeyPatch, where: str, fault: Any) -> None:
    """Calls `fault` before the storage layer writes: within `save`, or in the background before the `commit`."""
    owner, name = (checkpoint._Manager, "save") if where == "save" else (ocp.JsonCheckpointHandler, "finalize")
    plain = getattr(owner, name)

    def call(self: Any, *args: Any, **kw: Any) -> Any:
        fault()
        return plain(self, *args, **kw)

    monkeypatch.setattr(owner, name, call)


@pytest.mark.parametrize("where", ["save", "commit"])
def test_transient_faults_cost_no_step(straight: tuple[pathlib.Path, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The first and the third save fail: tried again at the next step, the same bits, an alarm in the log and in the metrics."""
    failures, said = iter([True, False, True, False]), []

    def fault() -> None:
        if next(failures, False):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "RETRY", (0.0, 0.0))
    faulty(monkeypatch, where, fault)
    result = loops.go(build(), tmp_path, say=said.append)
    assert result.finished
    loops.equal((result.state.params, result.state.opt), (straight[1].state.params, straight[1].state.opt))
    assert lines(tmp_path) == lines(straight[0])
    assert sum("cannot be written" in line and "No space left" in line for line in said) == 2
    assert max(line.get("save_failures", 0) for line in metrics.read(tmp_path)) >= 1
    saver = Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert saver.steps()[-1] == 8
    saver.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_fifth_of_all_operations_fail(straight: tuple[pathlib.Path, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """At random, at the start of saves, at their commit and at their manifest: no step is lost, each failure is told, what is kept is good."""
    rng, failed, said = random.Random(seed), [], []

    def fault() -> None:
        if rng.random() < 0.2:
            failed.append(1)
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoint, "RETRY", (0.0, 0.0))
    monkeypatch.setattr(upkeep, "LAST", (0.1,) * 20)
    faulty(monkeypatch, "save", fault)
    faulty(monkeypatch, "commit", fault)
    write = checkpoint.manifest.write
    monkeypatch.setattr(checkpoint.manifest, "write", lambda *a, **k: (fault(), write(*a, **k))[1])
    run = loops.build(total=8, checkpoint__every=1, evaluators__recorder__every="")
    result = loops.go(run, tmp_path, say=said.append)
    assert result.finished and len(failed) >= 3
    loops.equal((result.state.params, result.state.opt), (straight[1].state.params, straight[1].state.opt))
    assert lines(tmp_path) == lines(straight[0])
    assert sum("cannot be written" in line for line in said) == len(failed)
    saver = Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert saver.steps()[-1] == 8
    loops.equal(saver.restore(8, run.abstract, rng=run.rng()).state.params, straight[1].state.params)
    saver.close()


def test_last_save_is_repeated_at_once(straight: tuple[pathlib.Path, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that comes back within the grace of a preempted job loses nothing of the run."""
    failures = iter([False, True, True])

    def fault() -> None:
        if next(failures, False):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(upkeep, "LAST", (0.1, 0.1, 0.1))
    faulty(monkeypatch, "commit", fault)
    run = loops.build(total=8, checkpoint__every=4, evaluators__recorder__every="")
    assert loops.go(run, tmp_path).finished
    saver = Checkpointer(tmp_path / "checkpoints", read_only=True)
    loops.equal(saver.restore(8, run.abstract, rng=run.rng()).state.params, straight[1].state.params)
    saver.close()


def test_slow_storage_puts_a_save_off(straight: tuple[pathlib.Path, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save that finds the one before under way waits for PATIENCE, not until it is over; the last one waits."""
    said: list[str] = []
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.05)
    monkeypatch.setattr(checkpoint, "RETRY", (0.0, 0.0))
    faulty(monkeypatch, "commit", lambda: time.sleep(1.5))
    result = loops.go(build(), tmp_path, say=said.append)
    loops.equal(result.state.params, straight[1].state.params)
    assert lines(tmp_path) == lines(straight[0])
    assert any("put off" in line and "the storage is slow" in line for line in said)
    blocked = [line["save_blocked_s"] for line in metrics.read(tmp_path) if "save_blocked_s" in line]
    assert blocked
    saver = Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert saver.steps()[-1] == 8
    saver.close()


def test_new_tries_become_rarer(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During an outage the pause doubles up to its limit; a save that succeeds sets it back."""
    saver = Checkpointer(tmp_path, warn=lambda line: None)
    now = [1000.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    pauses = []
    for _ in range(7):
        saver._failed(OSError("away"))
        assert not saver.due()
        pauses.append(saver._again - now[0])
        now[0] = saver._again
        assert saver.due()
    assert pauses == [10, 20, 40, 80, 160, 300, 300] and saver.failures == 7
    saver._failure = ""
    saver.check()
    saver._failed(OSError("away"))
    assert saver._again - now[0] == 10
    saver.close()


def test_metrics_on_a_full_disk_end_nothing(tmp_path: pathlib.Path, capsys: Any) -> None:
    """Lines and events are lost and said so, however many there are; the end of the run is the same."""
    writer = Writer(tmp_path, step=-1, lead=True)
    writer._file.close()
    writer._events.close()
    writer._file = open("/dev/full", "w")  # noqa: SIM115 (closed by the writer)
    writer._events._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    for step in range(2000):
        writer.write(step, {"loss": 1.0})
    writer.close()
    said = capsys.readouterr().err
    for what in ("the metrics of step 3", "the TensorBoard events of step 3", "the last metrics"):
        assert f"{what} cannot be written (No space left on device)" in said


def test_files_of_the_last_evaluation_cost_no_checkpoint(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A disk that fills while they are written costs these alone: the values are there, and what is saved after them."""
    config = loops.config_of(total=2)
    config.evaluators = {"pictures": configs.spec(Pictures, clips=1)}
    plain = Image.Image.save

    def save(picture: Image.Image, path: pathlib.Path, **options: Any) -> None:
        plain(picture, path, **options)
        if "_0.gif" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    assert loops.go(assemble(config, trust=(loops.ME,), devices=loops.jax.devices()[:1]), tmp_path).finished
    said = [line for line in capsys.readouterr().err.splitlines() if "cannot be written" in line]
    assert said == [f"{tmp_path}/reconstructions/step0000000{step}_0 cannot be written (No space left on device)" for step in (0, 2)]
    left = {path.name for path in (tmp_path / "reconstructions").iterdir()}
    assert left == {f"step0000000{step}_1.{kind}" for step in (0, 2) for kind in ("png", "gif")}, "the second of two copies, whole; nothing half of the first"
    assert [line["step"] for line in metrics.read(tmp_path) if "pictures/psnr_hidden" in line] == [0, 2]
    saver = Checkpointer(tmp_path / "checkpoints", read_only=True)
    assert saver.steps()[-1] == 2
    saver.close()
    monkeypatch.setattr(run_directory, "open_run", lambda directory: config)
    with pytest.raises(OSError, match="No space left"):  # whoever looks at the run asks for these files
        Pictures(clips=1).run(run_directory.context(tmp_path, trust=(loops.ME,)))


def test_a_start_on_a_full_disk(straight: tuple[pathlib.Path, Any], tmp_path: pathlib.Path) -> None:
    """It is told as a fault of the storage where lines have to be cut, and goes on where none has; so is the summary."""
    assert not loops.go(build(), tmp_path, stop=6).finished
    full = tmp_path / f".metrics.jsonl.{os.getpid()}"

    def fill() -> None:
        full.unlink(missing_ok=True)
        full.symlink_to("/dev/full")

    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n')
    before = (tmp_path / "metrics.jsonl").read_text()
    fill()
    with pytest.raises(StorageError) as caught:
        loops.go(build(), tmp_path)
    assert str(caught.value) == f"cannot write to --workdir={tmp_path}: No space left on device" and (tmp_path / "metrics.jsonl").read_text() == before
    (tmp_path / "metrics.jsonl").write_text(before[: before.rindex("{")])
    fill()
    assert loops.go(build(), tmp_path).finished and lines(tmp_path) == lines(straight[0])
    (tmp_path / f".summary.json.{os.getpid()}").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="cannot write to --workdir=.*: No space left on device$"):
        run_directory.summarise(tmp_path, build(), seconds=1.0, trust=(loops.ME,))


def test_fuzzed_checkpoints_are_detected(tmp_path: pathlib.Path) -> None:
    """Every kind of damage twice; `tests/corruption.py` does a thousand."""
    cases = 2 * len(corruption.KINDS)
    said: list[str] = []
    found = corruption.run(cases, seed=1, folder=tmp_path, say=said.append)
    assert found == {"cases": cases, "detected": cases, "restored_good": cases}, "\n".join(said)


def test_large_files_are_compared_while_they_are_read(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large: the same damage is detected, now beside the storage layer that meets it too; a file that is cut is found before."""
    monkeypatch.setattr(checkpoint, "BULK", 0)
    cases = len(corruption.KINDS)
    assert corruption.run(cases, seed=2, folder=tmp_path, say=lambda line: None) == {"cases": cases, "detected": cases, "restored_good": cases}
    largest = max(manifest.listed(tmp_path / "saved" / "00000001").values(), key=lambda p: p.stat().st_size)
    raw = largest.read_bytes()
    largest.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert manifest.problem(tmp_path / "saved" / "00000001", step=1, sizes=(0, len(raw))) == ""
    assert "do not match their checksum" in manifest.problem(tmp_path / "saved" / "00000001", step=1, sizes=(len(raw), float("inf")))
    largest.write_bytes(raw[:-1])
    assert "do not have their length" in manifest.problem(tmp_path / "saved" / "00000001", step=1, sizes=(0, 0))


def test_without_checksums_of_files_damage_passes(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cases above do need them."""
    monkeypatch.setattr(manifest, "problem", lambda *a, **k: "")
    cases = len(corruption.KINDS)
    assert corruption.run(cases, seed=1, folder=tmp_path, say=lambda line: None)["detected"] < cases


def test_manifest_is_read_in_shares_and_never_raises(tmp_path: pathlib.Path) -> None:
    """Each reader checks its part, all see missing and strange files; random bytes in its place are a problem, not an exception."""
    for number in range(6):
        (tmp_path / f"f{number}").write_bytes(bytes([number]) * 1000)
    manifest.write(tmp_path, step=4)
    assert all(manifest.problem(tmp_path, step=4, part=i, parts=3) == "" for i in range(3))
    assert "its files are of step 4" in manifest.problem(tmp_path, step=5)
    (tmp_path / "f4").write_bytes(bytes(1000))
    assert [bool(manifest.problem(tmp_path, step=4, part=i, parts=3)) for i in range(3)] == [False, True, False]
    (tmp_path / "f4").unlink()
    assert all("1 files are missing" in manifest.problem(tmp_path, step=4, part=i, parts=3) for i in range(3))
    raw, rng = (tmp_path / manifest.NAME).read_bytes(), random.Random(0)
    hostile = [b"", b"[]", b"null", b'{"files": 3}', b"\xff\xfe", raw[:-9]]
    hostile += [bytes(b ^ (1 << rng.randrange(8)) if rng.random() < 0.01 else b for b in raw) for _ in range(50)]
    for text in hostile:
        (tmp_path / manifest.NAME).write_bytes(text)
        assert manifest.problem(tmp_path, step=4)
    for files in ([], {"../../etc/passwd": [1, 2]}, {"f0": None}, None, {"f0": [[1]]}):
        (tmp_path / manifest.NAME).write_text(json.dumps(manifest.seal({"step": 4, "files": files})))
        assert manifest.problem(tmp_path, step=4)
