"""starts.jsonl of a run directory: what ran it, one line a start: versions, revision, devices, mesh, processes."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Callable, Mapping
from typing import Any

import jax

import videomae_jax
from videomae_jax import journal

FILE = "starts.jsonl"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "av")
GIT = ("git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
ARCHIVED = "$Format:%H$"  # the commit, where `git archive` wrote this file (.gitattributes)


def revision() -> str | None:
    """The commit of the checkout that this package lies in, "-dirty" where files differ.

    Outside a checkout that of the archive which it was unpacked from. Where that is none, or git cannot say, what VIDEOMAE_REVISION says
    (launch/Dockerfile), else None.
    """
    told = os.environ.get("VIDEOMAE_REVISION") or None
    if not (pathlib.Path(__file__).parents[1] / ".git").exists():
        return told if ARCHIVED.startswith("$") else ARCHIVED[:12]
    try:
        return subprocess.run(GIT, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, a checkout of another user, a slow disk: the rest is worth a line
        return told


def describe(mesh: jax.sharding.Mesh, /) -> dict[str, Any]:
    """This process's versions and the run's devices, as plain data."""
    device = mesh.devices.flat[0]
    return {"videomae_jax": videomae_jax.__version__, "revision": revision(), "python": platform.python_version(),
            "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES}, "device": device.device_kind, "devices": mesh.devices.size,
            "processes": jax.process_count(), "mesh": {name: int(size) for name, size in mesh.shape.items()}}


def note(directory: pathlib.Path, found: dict[str, Any], /, *, step: int, say: Callable[[str], None]) -> None:
    """Appends the line of a start that begins at `step`. A full disk costs the line, not the run."""
    line = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "step": step, **found}
    try:
        journal.append(directory / FILE, line)
    except OSError as error:
        say(f"{directory / FILE} cannot be written ({error.strerror})")


def frozen(directory: pathlib.Path, /, *, step: int | None = None) -> dict[str, dict[str, Any]]:
    """{into: {"path", "sha256", ...}} of the frozen weights of others with which a run was trained before it saved `step` (None = last); {} where it
    does not tell. The last start before that step counts: only one that saved nothing, or a fork, may have had others than the starts after it.
    """
    found: dict[str, dict[str, Any]] = {}
    for start in journal.read(directory / FILE):
        if step is None or start["step"] < max(1, step):
            found |= {into: about for into, about in start.get("externals", {}).items() if into.split("/")[0] == "frozen"}
    return found


def text(line: Mapping[str, Any], /) -> str:
    """A line in words: day, devices, versions."""
    return f"{line['time'][:10]}, {line['devices']} x {line['device']}, Python {line['python']}, jax {line['libraries']['jax']}"
