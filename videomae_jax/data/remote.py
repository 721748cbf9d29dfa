"""Files at addresses such as gs://bucket/a.mp4, read whole through fsspec.

Videos and pictures may lie there: a clip is short, and its bytes decode like a file. An index and packed shards are mapped
into memory and therefore local, or on a mounted file system (`local`).
"""

import pathlib
from typing import Any

import fsspec

from videomae_jax.data.decode import DecodeError
from videomae_jax.errors import UserError


def is_remote(path: Any, /) -> bool:
    """Whether a path is an address with a protocol."""
    return "://" in str(path)


def local(path: str | pathlib.Path, /, *, what: str) -> pathlib.Path:
    """The path of something that must be on a file system. Raises UserError for an address."""
    if is_remote(path):
        raise UserError(f"{what} {path} is an address; allowed are paths, because it is mapped into memory: copy it, or mount the bucket (gcsfuse, mountpoint-s3)")
    return pathlib.Path(path)


def files(address: str, /) -> Any:
    """The file system of an address. Raises UserError where its protocol is unknown or needs a package that is not installed."""
    try:
        return fsspec.core.url_to_fs(address)[0]
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be reached: {str(error).splitlines()[0]}") from error


def read(address: str, /) -> bytes:
    """The bytes of a file. Raises DecodeError of the stage "open"; how long it may take is the caller's to limit."""
    system = files(address)
    try:
        return system.cat_file(address)
    except Exception as error:  # every client raises errors of its own
        raise DecodeError(address, "open", f"{type(error).__name__}: {error}".splitlines()[0]) from error


def find(address: str, /, *, suffixes: tuple[str, ...]) -> list[str]:
    """Files below an address with one of the suffixes, as paths relative to it, sorted; hidden ones are passed over."""
    system = files(address)
    root = system._strip_protocol(address).rstrip("/")
    try:
        found = [name[len(root):].lstrip("/") for name in system.find(root)]
    except Exception as error:  # every client raises errors of its own
        raise UserError(f"{address} cannot be listed: {type(error).__name__}: {error}".splitlines()[0]) from error
    shown = [name for name in found if not any(part.startswith(".") for part in name.split("/"))]
    return sorted(name for name in shown if pathlib.PurePosixPath(name).suffix.lower() in suffixes)
