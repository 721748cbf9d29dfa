"""Files at addresses such as gs://bucket/a.mp4, read whole through fsspec.

Videos and pictures may lie there: a clip is short, and its bytes decode like a file. An index and packed shards are mapped
into memory and therefore local, or on a mounted file system (`local`).
"""

import functools
import hashlib
import os
import pathlib
import shutil
import tempfile
import warnings
from typing import Any

import fsspec

from videomae_jax.data.decode import DecodeError
from videomae_jax.errors import UserError

SPARE = 0.05  # of a disk that copies leave free


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


def staged(address: str, folder: str, /, *, size: int | None) -> bytes:
    """The bytes of a file of `size` bytes (None: not known), from a copy in `folder` where there is one; else they are read, and kept there.

    A copy has its name only when it is whole, so that threads, processes and runs may share a folder. Where less than SPARE of the
    disk would stay free nothing more is kept. Raises DecodeError as `read` does; trouble with the folder is a warning, once a process.
    """
    name = hashlib.sha256(address.encode()).hexdigest()
    path = pathlib.Path(folder, name[:2], name)
    try:
        data = path.read_bytes()
        if size in (None, len(data)):
            return data
    except FileNotFoundError:
        pass
    except OSError as error:
        _warn(folder, f"cannot be read ({error.strerror})")
    data = read(address)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(folder)
        if disk.free - len(data) < SPARE * disk.total:
            _warn(folder, f"keeps no more files: {disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB are free")
            return data
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                file.write(data)
                file.close()
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        _warn(folder, f"cannot be written ({error.strerror})")
    return data


@functools.cache
def _warn(folder: str, what: str, /) -> None:
    warnings.warn(f"the stage {folder} {what}; videos are fetched from their addresses", stacklevel=3)


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
