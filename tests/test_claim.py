"""What a start writes before it trains: nothing of two starts is mixed, and one that ends anywhere leaves what the next one takes."""

import dataclasses
import errno
import os
import pathlib
from typing import Any, ClassVar

import jax
import pytest
import test_train as loops
from runs import shared_programs  # noqa: F401 (a fixture)

from videomae_jax import config as configs
from videomae_jax import occupancy, run_directory, whole
from videomae_jax import train as loop
from videomae_jax.assembly import assemble
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.durable import Durable, Place
from videomae_jax.errors import StorageError, UserError
from videomae_jax.evals.base import Context
from videomae_jax.ownership import OWNER
from videomae_jax.upkeep import Safety


class Killed(BaseException):
    """The end of a process, which nothing catches."""


def claim(directory: pathlib.Path, /, place: Durable | None = None, **fields: Any) -> Any:
    """Claims the directory for a small run, which it returns."""
    run = loops.build(**fields)
    run_directory.claim(run, directory, extend=False, fork=False, say=lambda line: None, place=place)
    return run


def beside(directory: pathlib.Path, /) -> Durable:
    """A place for the run in `directory`."""
    return Durable(Place(str(directory) + "_place"), directory)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException, /, *, number: int) -> None:
    """The files of FIRST are written up to this number, whose temporary file stays without a name of its own."""
    plain, calls = os.replace, []

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == number:
            raise error
        plain(source, target)

    monkeypatch.setattr(os, "replace", replace)


def test_another_config_between_claim_and_training(tmp_path: pathlib.Path) -> None:
    """A run that has saved nothing may get another config; the start that does not have it trains nothing."""
    first = claim(tmp_path)
    second = claim(tmp_path, seed=3)
    with pytest.raises(UserError, match=f"another start has claimed {tmp_path} with another config: seed: 3 -> 0; use a --workdir for each"):
        loops.go(first, tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists() and not (tmp_path / "checkpoints").exists()
    assert loops.go(second, tmp_path).finished


def test_a_new_directory_is_held_while_it_is_claimed(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts at once would find it empty, and the later one would write its config over that of a run that trains."""
    monkeypatch.setattr(occupancy, "PATIENCE", 0.3)
    with occupancy.alone(tmp_path, say=lambda line: None), pytest.raises((UserError, StorageError), match="in use by"):
        claim(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [occupancy.FILE]


@pytest.mark.parametrize("durable", [False, True])
def test_a_directory_that_links_to_itself(durable: bool, tmp_path: pathlib.Path) -> None:
    """Nothing can be read or written there, with a durable place as without, which is a mistake in one line."""
    (tmp_path / "run").symlink_to("run")
    with pytest.raises(UserError, match=f"{tmp_path}/run.*cannot be read|cannot write to --workdir={tmp_path}/run: "):
        claim(tmp_path / "run", place=beside(tmp_path / "run") if durable else None)


def test_a_run_is_taken_up_by_one_start(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a durable place would else be written over those of a start that took it up first and trains."""
    monkeypatch.setattr(occupancy, "PATIENCE", 0.3)
    place = tmp_path / "run_place"
    place.mkdir()
    for name in (OWNER, "config.json", "metrics.jsonl"):
        (place / name).write_text("{}")
    with occupancy.alone(tmp_path / "run", say=lambda line: None), pytest.raises((UserError, StorageError), match="in use by"):
        claim(tmp_path / "run", place=beside(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [occupancy.FILE]


def test_a_place_that_holds_nothing_forbids_no_correction(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that ended before its first save may get another model, with a durable place as without."""
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    run, safety = claim(tmp_path / "run", place=beside(tmp_path / "run")), Safety(second=Place(f"{tmp_path}/run_place"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpointer, "save", killed)
        loop.train(run, tmp_path / "run", stop=loops.Asked(), say=lambda line: None, trust=(loops.ME,), safety=safety)
    assert not (tmp_path / "run_place" / OWNER).exists() and not list((tmp_path / "run").glob("checkpoints/0*"))
    second = claim(tmp_path / "run", place=beside(tmp_path / "run"), objective__decoder__depth=2)
    assert loop.train(second, tmp_path / "run", stop=loops.Asked(), say=lambda line: None, trust=(loops.ME,), safety=safety).finished
    assert (tmp_path / "run_place" / OWNER).is_file()


@pytest.mark.parametrize("number", range(1, 5))
def test_a_start_that_ends_while_it_writes_is_repeated(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Killed, or on a full disk, at each of the first files: the same command goes, and nothing half stays."""
    for error in (OSError(errno.ENOSPC, "No space left on device", "file"), Killed()):
        directory = tmp_path / type(error).__name__
        with monkeypatch.context() as patch:
            failing(patch, error, number=number)
            with pytest.raises((StorageError, Killed), match="No space left on device" if isinstance(error, OSError) else None):
                claim(directory)
        assert not (directory / "config.json").exists()
        half = [path for path in directory.iterdir() if path.name.startswith(".") and path.name != occupancy.FILE]
        assert len(half) == isinstance(error, Killed)
        for path in half:  # of a process with another number
            path.rename(f"{path}0")
        claim(directory)
        assert {path.name for path in directory.iterdir()} == {"config.json", "recipe_card.json", "recipe_card.txt", "data.json", occupancy.FILE}
    (tmp_path / "OSError" / "config.json").unlink()
    (tmp_path / "OSError" / ".config.json.mine").write_text("mine")
    with pytest.raises(UserError, match="is not empty and holds no config.json"):
        claim(tmp_path / "OSError")


def test_a_full_disk_is_no_mistake(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A begun run goes on where nothing of these files changes; else a supervisor starts it again. What no start can mend is a mistake."""
    run = claim(tmp_path)
    assert loops.go(run, tmp_path, stop=2).step < 6
    for number, kind in ((errno.ENOSPC, StorageError), (errno.EIO, StorageError), (errno.EROFS, UserError), (errno.EACCES, UserError)):
        def refuse(path: pathlib.Path, text: str, /, number: int = number) -> None:
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(whole, "write", refuse)
        claim(tmp_path)
        with pytest.raises(kind, match=f"cannot write to --workdir={tmp_path}: {os.strerror(number)}"):
            claim(tmp_path, log__every=3)
    assert loop.train(run, tmp_path, stop=loops.Asked(), say=lambda line: None, trust=(loops.ME,)).finished


@dataclasses.dataclass(frozen=True)
class Second:
    """An evaluator that tries to take the run directory, as another start would."""

    every: str = ""
    told: ClassVar[list[str]] = []

    def run(self, context: Context, /) -> dict[str, float]:
        """Nothing."""
        with pytest.raises(UserError) as found, occupancy.alone(context.directory, say=lambda line: None, patience=0):
            pass
        self.told.append(str(found.value))
        return {}


def test_a_run_that_trains_holds_its_directory(tmp_path: pathlib.Path) -> None:
    """From before the first step to after the last, not only while it claims it."""
    config = loops.config_of(total=1)
    config.evaluators = {"second": configs.spec(Second)}
    Second.told.clear()
    trust = (loops.ME, pathlib.Path(__file__).stem)
    run = assemble(config, trust=trust, devices=jax.devices()[:1])
    assert loop.train(run, tmp_path, stop=loops.Asked(), say=lambda line: None, trust=trust).finished
    assert len(Second.told) == 2 and all(f"{tmp_path} is in use by process {os.getpid()}" in line for line in Second.told)
