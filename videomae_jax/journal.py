"""Files of JSON lines that are appended to over all starts of a run: a full disk, or a process that is killed, costs the line that it cuts and no other."""

import json
import os
import pathlib
from typing import Any


def append(path: pathlib.Path, line: Any, /) -> None:
    """Adds a line, the JSON of `line`, behind what is there. Raises OSError, and half of the line may be there then."""
    with path.open("ab+") as file:
        file.seek(-1 if file.tell() else 0, os.SEEK_END)
        broken = file.read(1) not in (b"", b"\n")  # a line that was cut must not take this one with it
        file.write(b"\n" * broken + json.dumps(line).encode() + b"\n")


def read(path: pathlib.Path, /) -> list[Any]:
    """The values of the lines of a file, without those that were cut; [] where there is no file."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
