"""Names of what is set aside and never written over."""

import itertools
import pathlib


def free(path: pathlib.Path, /) -> pathlib.Path:
    """`path`, or where something lies there the first of path.1, path.2, .. that is free."""
    names = itertools.chain([path], (path.with_name(f"{path.name}.{number}") for number in itertools.count(1)))
    return next(name for name in names if not name.exists())
