"""Files that are replaced as a whole: a process that is killed, or a full disk, leaves the old one or the new one."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


def write(path: pathlib.Path, content: str | bytes, /) -> None:
    """Replaces `path`, whose folders are made where they are missing. Raises OSError, and leaves no part then."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: pathlib.Path, /) -> Iterator[pathlib.Path]:
    """A name in the folder of `path`, which is made where it is missing; what is written there replaces `path` at the end.

    Raises OSError; after any error that is raised within it no part is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except Exception:
        with contextlib.suppress(OSError):  # what went wrong is told
            temporary.unlink(missing_ok=True)
        raise


def renew(path: pathlib.Path, text: str, /) -> None:
    """`write` where the text differs: a full disk keeps no start away that changes nothing."""
    if not path.is_file() or path.read_bytes() != text.encode():
        write(path, text)
