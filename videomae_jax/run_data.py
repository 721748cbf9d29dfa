"""Which clips a run trains on, and what follows where they are others than when it began."""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from videomae_jax import config as configs
from videomae_jax.aside import free
from videomae_jax.assembly import Assembly
from videomae_jax.errors import UserError

DATA = "data.json"  # what the training clips are
PLACES = r"data\.(.*\.)?(index|folder)"  # fields of a config that say where clips lie, which another machine has elsewhere
PROBED = 1000  # their names in it


def contents(source: Any, /) -> dict[str, Any]:
    """How many clips a source has, and a digest of its classes and of the names of up to PROBED rows at equal distances, in their order."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(PROBED, len(source))).astype(int)) if len(source) else []
    text = json.dumps([list(map(str, getattr(source, "classes", ()))), [source.name(int(row)) for row in rows]])
    return {"clips": len(source), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def stored(directory: pathlib.Path, /) -> dict[str, Any]:
    """The `contents` of what a run trains on, {} where it does not tell: of before there was such a file, or cut by a full disk."""
    try:
        return json.loads((directory / DATA).read_text())
    except (OSError, ValueError):
        return {}


def other(source: Any, directory: pathlib.Path, /) -> list[str]:
    """A line where the source has other clips or classes than when the run began, in number or order: every later batch would be another."""
    found = contents(source)
    known = stored(directory) or found
    if known == found:
        return []
    before, after = (f"{one['clips']} clips, {one['sha256'][:8]}" for one in (known, found))
    return [f"data: {before} -> {after} (of names and classes)"]


def check_epochs(changed: list[str], run: Assembly, directory: pathlib.Path, /) -> None:
    """Raises UserError where the batch or the number of clips is among what `changed` and a duration counts in epochs.

    Its steps would no longer be those that the run has made.
    """
    clips = {"clips": len(run.source)}
    moved = ("batch_size:", "data:") if (stored(directory) or clips)["clips"] != clips["clips"] else ("batch_size:",)
    lines = [line for line in changed if line.startswith(moved)]
    for name, value in {"total": run.config.total, **configs.flat(run.config.optimizers, prefix="optimizers")}.items() if lines else ():
        if isinstance(value, str) and value.endswith("ep"):
            raise UserError(f"{'; '.join(lines)}, and {name} is {value!r}: an epoch would have another number of steps than the run has made so far; give it "
                            "in steps, or begin a new --workdir")


def set_rows_aside(changed: list[str], directory: pathlib.Path, /, *, step: int) -> None:
    """Renames the lists of clips that could not be read where data or seed are among what `changed`: rows and positions are others from `step` on.

    Empty ones stay in their places, and take those of the lists in a durable place too.
    """
    if not any(line.startswith(("data:", "data.", "seed:")) for line in changed):
        return
    for path in (*sorted(directory.glob("quarantine*.jsonl")), *sorted(directory.glob("faults*.jsonl"))):
        if path.stat().st_size:
            path.rename(free(path.with_name(f"{path.name}.before_{step}")))  # not of that name where a start set lists aside and saved nothing
            path.touch()
