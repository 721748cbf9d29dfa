"""Folders of checkpoints on any file system, each complete once its manifest is there: written, read back, listed, fetched, removed."""

import fnmatch
import json
import os
import pathlib
import posixpath
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import fsspec

from videomae_jax import manifest
from videomae_jax.errors import UserError

TRIES, PAUSE = 5, 0.1  # of one request, and seconds after the first that failed, doubled each time
THREADS = 4
PART = ".part"  # ends the name of a file of a folder that is not yet whole


def patiently(call: Callable[[], Any], /) -> Any:
    """The result of a call that is repeated where it fails, TRIES times in all.

    A copy of many files would never end where one request in five fails.
    """
    for number in range(TRIES - 1):
        try:
            return call()
        except FileNotFoundError:  # an answer
            raise
        except Exception:  # every client raises errors of its own
            time.sleep(PAUSE * 2**number)
    return call()


def _each(job: Callable[[str], None], names: Iterable[str], /) -> None:
    """Does a job for every name, THREADS at once; raises the first error, once none is under way.

    The threads of an executor would do all of it before the process could end, where a copy is to be left behind.
    """
    left: queue.SimpleQueue[str] = queue.SimpleQueue()
    errors: list[BaseException] = []
    for name in names:
        left.put(name)

    def work() -> None:
        try:
            while not errors:
                job(left.get_nowait())
        except queue.Empty:
            pass
        except BaseException as error:  # raised below
            errors.append(error)

    threads = [threading.Thread(target=work, daemon=True, name="copies") for _ in range(min(THREADS, left.qsize()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


class _Patient:
    """A file system whose single operations are tried `patiently`; `plain` is the one itself."""

    def __init__(self, plain: Any, /) -> None:
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kw: patiently(lambda: getattr(self.plain, name)(*args, **kw))


class Copies:
    """What lies at an address; names are relative to it. Raises UserError where no file system has such addresses, and later what that raises.

    `folder` is where it lies on this host, all links followed; None for an address elsewhere.
    """

    def __init__(self, address: str, /) -> None:
        try:
            fs, root = fsspec.core.url_to_fs(address)
        except (ImportError, ValueError) as error:
            raise UserError(f"{address} cannot be reached: {str(error).splitlines()[0]}") from error
        self._fs, self._root = _Patient(fs), root.rstrip("/")
        local = fsspec.core.split_protocol(address)[0] in (None, "file", "local")
        self.folder = pathlib.Path(os.path.realpath(root)) if local else None

    def make(self) -> None:
        """Makes the folder itself."""
        self._fs.makedirs(self._root, exist_ok=True)

    def write(self, name: str, raw: bytes, /) -> None:
        """Writes a small file of the folder, which is there. Of one that is cut off no part stays under the name, here as on object stores."""
        path = f"{self._root}/{name}"
        if self.folder is None:
            self._fs.pipe_file(path, raw)
        else:
            self._fs.pipe_file(path + PART, raw)
            self._fs.mv(path + PART, path)

    def renew(self, name: str, raw: bytes, /) -> None:
        """`write` where what is there differs."""
        if self.read(name) != raw:
            self.write(name, raw)

    def read(self, name: str, /) -> bytes | None:
        """A small file; None where there is none."""
        try:
            return self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return None

    def matching(self, patterns: tuple[str, ...], /) -> dict[str, bytes]:
        """{name: bytes} of the small files that match one of the patterns."""
        found = [name for name in self.names() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
        return {name: self._fs.cat_file(f"{self._root}/{name}") for name in found}

    def names(self, folder: str = "", /) -> list[str]:
        """What a folder holds; `glob` of fsspec would take an outage for an empty one."""
        self._fs.invalidate_cache()
        whole = posixpath.join(self._root, folder).rstrip("/")
        try:
            paths = [path.rstrip("/") for path in self._fs.ls(whole, detail=False)]
        except FileNotFoundError:
            return []
        return [posixpath.basename(path) for path in paths if path != whole]  # object stores may have an object for the folder itself

    def has(self, name: str, /) -> bool:
        """Whether there is a file or folder. An outage is an error here: `exists` of fsspec would take it for an answer."""
        try:
            self._fs.info(f"{self._root}/{name}")
        except FileNotFoundError:
            return False
        return True

    def put(self, source: pathlib.Path, name: str, /, *, sure: Callable[[], None], anew: bool = False) -> None:
        """Copies the folder of a step, unless it is there and not asked for `anew`; `sure` raises where that must not be completed.

        Raises OSError where a file is missing here or reads back otherwise.
        """
        text = (source / manifest.NAME).read_bytes()
        if not anew and self.read(f"{name}/{manifest.NAME}") == text:
            return
        found, files = json.loads(text), manifest.listed(source, late=manifest.LATE)
        if manifest.seal(found) != found:
            raise OSError(f"{source / manifest.NAME} does not match its own checksum")
        sums = found["files"]
        if missing := sorted(sums.keys() - files.keys()):
            raise FileNotFoundError(f"{source} lacks {len(missing)} of the {len(sums)} files of its manifest, first {missing[0]}")
        if self.has(name):  # of a try that came to nothing, or of an abandoned part of the run
            self.drop(name)
        _each(lambda file: self._send(files[file], f"{self._root}/{name}/{file}", sums.get(file)), files)
        sure()
        self.write(f"{name}/{manifest.NAME}", text)
        if self.read(f"{name}/{manifest.NAME}") != text:
            raise OSError(f"{self._root}/{name}/{manifest.NAME} reads back other than it was written")

    def _send(self, path: pathlib.Path, to: str, wanted: list[int] | None, /) -> None:
        """Writes a file and reads it back; without a checksum of the manifest it has to be what it is here."""
        self._fs.makedirs(posixpath.dirname(to), exist_ok=True)

        def write() -> None:
            with path.open("rb") as source, self._fs.plain.open(to, "wb") as out:
                shutil.copyfileobj(source, out, manifest.PART)

        def read() -> list[int]:
            with self._fs.plain.open(to, "rb") as file:
                return manifest.total(file)

        patiently(write)
        found = patiently(read)
        if found != (wanted or manifest.checksum(path)):
            raise OSError(f"{to} does not match its checksum")

    def drop(self, name: str, /) -> None:
        """Removes the folder of a step."""
        if self.has(f"{name}/{manifest.NAME}"):  # first, for the rest is no checkpoint without it
            self._fs.rm_file(f"{self._root}/{name}/{manifest.NAME}")
        self._fs.rm(f"{self._root}/{name}", recursive=True)

    def begun(self, folder: str = "", /) -> list[int]:
        """Steps of which anything is there, in the folder itself or one below it, oldest first."""
        return sorted(int(name) for name in self.names(folder) if re.fullmatch(r"\d{8}", name))

    def steps(self, folder: str = "", /) -> list[int]:
        """Those of which everything is there."""
        return [step for step in self.begun(folder) if self.has(posixpath.join(folder, f"{step:08d}", manifest.NAME))]

    def _files(self, folder: str, /) -> list[str]:
        """The paths of all files of a folder; `find` of fsspec would take an outage for an empty one."""
        found: list[str] = []
        for entry in self._fs.ls(folder, detail=True):
            path = entry["name"].rstrip("/")
            if entry["type"] != "directory":
                found.append(path)
            elif path != folder:  # object stores may have one of the same name
                found += self._files(path)
        return found

    def bring(self, name: str, /, *, step: int, into: pathlib.Path) -> tuple[str, bool]:
        """Copies a step into a new folder; what is wrong with it, "" for nothing, and whether that is the copy's fault: all of it arrived."""
        target = f"{self._root}/{name}"
        try:
            if not self.has(name):
                return "it is not there", True
            if into.exists():
                shutil.rmtree(into)
            names = [path[len(target):].lstrip("/") for path in self._files(target)]
            if any(".." in pathlib.PurePosixPath(name).parts for name in names):
                return "its files lie outside of it", True
            for name in names:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
            _each(lambda name: self._fs.get_file(f"{target}/{name}", str(into / name)), names)
            return manifest.problem(into, step=step), True
        except Exception as error:  # every client raises errors of its own
            return f"{type(error).__name__}: {error}".splitlines()[0][:160], False
