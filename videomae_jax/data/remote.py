"""Files at addresses such as gs://bucket/a.mp4, read whole through fsspec.

Videos and pictures may lie there: a clip is short, and its bytes decode like a file. An index and packed shards are mapped
into memory and therefore local, or on a mounted file system (`local`).
"""

import contextlib
import functools
import hashlib
import io
import os
import pathlib
import shutil
import tempfile
import time
import warnings
from typing import Any

import fsspec
from fsspec.implementations.cached import CachingFileSystem, WholeFileCacheFileSystem

from videomae_jax.data.decode import DecodeError
from videomae_jax.data.patience import Patience
from videomae_jax.errors import UserError

LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
PART = 2**23  # bytes of a file that are asked for at once where its reader has a patience
SPARE = 0.05  # of a disk that copies leave free
_warned: set[tuple[str, str]] = set()  # folders and kinds of trouble that were told


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


def read(address: str, /, *, patience: Patience | None = None) -> bytes:
    """The bytes of a file. How long it may take is the caller's to limit; with a `patience` it comes in parts, each of which renews that, but for
    HTTP and what lies behind a cache of whole files (simplecache::..., filecache::...).

    Raises DecodeError, of the stage "open" where the file is not there or not allowed to be read, "timeout" where the patience ends, and
    "io" for all else, which may pass.
    """
    system = files(address)
    source = _behind_caches(system)
    try:
        try:
            return _fetch(system, address, patience)
        except FileNotFoundError:
            # A cache asks first whether the file is there, which most file systems deny on any error: the one behind it says itself why it gives none.
            if source is system:
                raise
            return _fetch(source, system._strip_protocol(address), patience)
    except DecodeError:
        raise
    except Exception as error:  # every client raises errors of its own
        stage = "open" if isinstance(error, LASTING) or _refused(error) else "io"
        raise DecodeError(address, stage, f"{type(error).__name__}: {error}".splitlines()[0]) from error


def _behind_caches(system: Any, /) -> Any:
    """The file system that the caches of a chain such as simplecache::sftp://... stand for, which has the same paths."""
    while isinstance(system, CachingFileSystem):
        system = system.fs
    return system


def _fetch(system: Any, address: str, patience: Patience | None, /) -> bytes:
    """The bytes of a file, in parts where there is a patience and parts are what is fetched."""
    return system.cat_file(address) if patience is None or _whole(system) else _in_parts(system, address, patience)


def _whole(system: Any, /) -> bool:
    """Whether a file system or one that it wraps fetches all of a file for its first part, or is HTTP, whose servers need not know of parts, and of
    which fsspec calls every error of asking one for the size a file that is not there.
    """
    while not isinstance(system, WholeFileCacheFileSystem) and isinstance(inner := getattr(system, "fs", None), fsspec.AbstractFileSystem):
        system = inner
    return isinstance(system, WholeFileCacheFileSystem) or "http" in system.protocol


def _in_parts(system: Any, address: str, patience: Patience, /) -> bytes:
    """The bytes of a file, PART after PART, and most files are one; at once where the file system does not know how many bytes there are."""
    path = system._strip_protocol(address)
    try:
        first = system.cat_file(address, start=0, end=PART)
    except LASTING:
        raise
    except Exception:  # of a file without a byte, or a file system without parts
        if system.size(path):
            raise
        return system.cat_file(address)
    patience.renew()
    if len(first) != PART:
        return first
    if (size := system.size(path) or 0) < PART:  # not known, or an older file's
        return system.cat_file(address)
    whole = io.BytesIO()
    whole.write(first)
    for start in range(PART, size, PART):
        if patience.over:
            raise DecodeError(address, "timeout", patience.why())
        # The last one has no end, for a size from a listing may be that of an hour ago.
        whole.write(system.cat_file(address, start=start, end=start + PART if start + PART < size else None))
        patience.renew()
    return whole.getvalue()


def _refused(error: Exception, /) -> bool:
    """Whether an answer of HTTP says that the request is at fault; 408 and 429 ask for another try."""
    found = getattr(error, "status", getattr(error, "code", None))
    return isinstance(found, int) and 400 <= found < 500 and found not in (408, 429)


def staged(address: str, folder: str, /, *, size: int | None) -> bytes:
    """The bytes of a file of `size` bytes, from a copy in `folder` where there is one; else they are read, and kept there.

    A copy has its name only when it is whole, so that threads, processes and runs may share a folder. What has another size is returned
    and not kept, nor is a file whose size is not known (None). Where less than SPARE of the disk would stay free nothing more is kept.
    Raises DecodeError as `read` does; trouble with the folder is a warning, once a process.
    """
    if size is None:
        return read(address)
    name = hashlib.sha256(address.encode()).hexdigest()
    path = pathlib.Path(folder, name[:2], name)
    try:
        data = path.read_bytes()
        if len(data) == size:
            return data
    except FileNotFoundError:
        pass
    except OSError as error:
        _warn(folder, "cannot be read", error.strerror)
    data = read(address)
    if len(data) != size:
        return data
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        disk = shutil.disk_usage(folder)
        if disk.free - len(data) < SPARE * disk.total:
            _warn(folder, "keeps no more files", f"{disk.free / 1e9:.1f} of {disk.total / 1e9:.1f} GB are free")
            return data
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
            try:
                file.write(data)
                file.close()
                os.chmod(file.name, 0o644)  # other users of the host may read it
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        _warn(folder, "cannot be written", error.strerror)
    return data


def _warn(folder: str, what: str, why: str | None, /) -> None:
    if (folder, what) not in _warned:
        _warned.add((folder, what))
        warnings.warn(f"the stage {folder} {what} ({why}); videos are fetched from their addresses", stacklevel=3)


@functools.cache
def _sweep(folder: pathlib.Path, /) -> None:
    """Removes what killed processes left half-written, an hour ago and earlier."""
    for path in folder.glob(".*"):
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            if time.time() - path.stat().st_mtime > 3600:
                path.unlink()


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
