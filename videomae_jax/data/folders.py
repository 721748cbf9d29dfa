"""Folders of users, as every command that looks for videos or pictures goes through them."""

import os
import pathlib
from collections.abc import Iterator

from videomae_jax.errors import UserError

RECOVERED = "lost+found"  # pieces of files, at the root of many disks; only root may read it


def walk(directory: pathlib.Path, /) -> Iterator[tuple[pathlib.Path, list[str], list[str]]]:
    """(folder, names of folders in it, names of files in it) of a folder and all below; hidden names and RECOVERED are passed over.

    Links are followed, but no place is visited twice: one may lead back up. Names that the caller takes out of the list of folders are
    not gone into. Raises UserError for a folder that cannot be read: what lies in it would be missing without a word.
    """
    seen = set()
    for folder, folders, files in os.walk(directory, followlinks=True, onerror=_refuse):
        place = os.path.realpath(folder)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        folders[:] = [name for name in folders if not name.startswith(".") and name != RECOVERED]
        yield pathlib.Path(folder), folders, [name for name in files if not name.startswith(".")]


def _refuse(error: OSError, /) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); allowed is a folder without it: let it be read, move it away or give its name a leading dot") from error
