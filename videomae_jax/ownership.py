"""Whose a second place of checkpoints is, and how the directory of a run, new or gone, is taken up again from there."""

import json
import pathlib
import re
import secrets
import shutil
from collections.abc import Callable
from typing import Any

from videomae_jax.copies import Copies
from videomae_jax.errors import StorageError, UserError, unwritable
from videomae_jax.whole import write

OWNER = "durable.json"  # which run the place belongs to: the same number here and there
# What a run goes on from beside its state: metrics, replaced clips, events, books.
RUN = (OWNER, "config.json", "data.json", "classes.json", "*.jsonl")
BEST = "best"  # folder of a run directory with the weights of its best evaluation (evals/best.py), a checkpoint too


def recall(copies: Copies, place: str, directory: pathlib.Path, /, *, warn: Callable[[str], None]) -> bool:
    """Brings the run in `copies`, whose address is `place`, back into a `directory` that is new or gone; whether the place could be asked.

    Raises UserError where the place belongs to another run, holds what no copies began, or cannot be read or made and this run has
    not used it before, StorageError where it holds a run that does not arrive, and what `unwritable` says where the directory cannot be written.
    """
    names: list[str] = []
    try:
        names = copies.names()
        texts = copies.matching(RUN)
        owned = {OWNER, "config.json"} <= texts.keys()  # a mark alone is of a first copy that was cut off: nothing of that run is there
        if not owned:
            copies.make()  # a file in the way is told now, not by every copy
            texts = {}
        best = copies.steps(BEST)[-1:] if owned else []
    except Exception as error:  # every client raises errors of its own
        text = f"{place} cannot be used ({type(error).__name__}: {str(error)[:100]})"
        if _uses(directory, place):
            warn(f"{text}; the run goes on with what is in {directory}")
            return False
        if OWNER in names:  # the place is the right one, and answered a moment ago
            raise StorageError(f"{text}; start the same command again") from error
        raise UserError(text) from error
    _check_names(names, place, before=owned or _uses(directory, place))
    if (directory / "config.json").exists():
        own = _own(directory) or b""
        if owned and own != texts[OWNER] and _read(own).get("run") != _read(texts[OWNER]).get("run", ""):
            raise UserError(f"{place} holds checkpoints of another run than {directory}; allowed is a place of its own for every run")
        return True
    for step in best:
        into = directory / BEST / f"{step:08d}"
        wrong, damaged = copies.bring(f"{BEST}/{step:08d}", step=step, into=into)
        if wrong:
            shutil.rmtree(into, ignore_errors=True)
            if not damaged:  # without them the next evaluation would be the best
                raise StorageError(f"the best weights in {place}, of step {step}, cannot be brought back ({wrong}); start the same command again")
            warn(f"the best weights in {place}, of step {step}, cannot be used: {wrong}; the run goes on without them")
    try:
        for name in sorted(texts, key="config.json".__eq__):  # last: what makes it a run directory
            write(directory / name, texts[name])
    except OSError as error:
        raise unwritable(directory, error) from error
    if texts:
        warn(f"the run directory {directory} is taken up again from {place}")
    return True


def _check_names(names: list[str], place: str, /, *, before: bool) -> None:
    """Raises UserError where a place holds what copies would remove or write over and are not: the directory of another run, or folders of days.

    Copies are never below `checkpoints`, and come after the mark of their run; `before` is whether the place has it, or this run used the place.
    """
    strange = [name for name in names if name == "checkpoints" or (not before and (name in ("config.json", BEST) or re.fullmatch(r"\d{8}", name)))]
    if strange:
        raise UserError(f"{place} holds {min(strange)!r}, which no run's copies began: it would be removed or written over; allowed is a new folder")


def mark(directory: pathlib.Path, place: str, /) -> None:
    """Marks a run directory, which holds a run by now, so that no other run takes the place for its own; the run stays the same in another place."""
    own = _own(directory)
    found = {"run": secrets.token_hex(16)} if own is None else _read(own)
    if found and not _uses(directory, place):
        write(directory / OWNER, json.dumps(found | {"place": place}))


def _uses(directory: pathlib.Path, place: str, /) -> bool:
    """Whether the run in a directory copies to the place, or did last."""
    return str(_read(_own(directory) or b"").get("place", "")).rstrip("/") == place.rstrip("/")


def _own(directory: pathlib.Path, /) -> bytes | None:
    """The mark of a run directory; None where there is none."""
    try:
        return (directory / OWNER).read_bytes()
    except (FileNotFoundError, NotADirectoryError):  # the latter is told where the run directory is claimed
        return None


def _read(raw: bytes, /) -> dict[str, Any]:
    """What a mark says: the number of the run and the place that it uses; {} for one that was cut off."""
    try:
        found = json.loads(raw)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
