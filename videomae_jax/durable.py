"""A second place for checkpoints: durable where the run directory is fast. Copies are made in the background and read back."""

import concurrent.futures
import dataclasses
import json
import pathlib
import posixpath
import re
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import fsspec
import numpy as np

from videomae_jax import agreement, manifest, parallel
from videomae_jax.errors import UserError

RETRY = (10.0, 300.0)  # seconds to the first new try after a failed copy, doubled each time up to the second
TRIES, PAUSE = 5, 0.1  # of one request, and seconds after the first that failed, doubled each time
ROW = 4  # failures in a row after which the end of a run waits no longer
EXIT = 600.0  # seconds that the end of a run waits for a copy
THREADS = 4
MOST = 64  # steps there that are looked at
OWNER = "durable.json"  # which run the place belongs to: the same number here and there
RUN = (OWNER, "config.json", "data.json", "classes.json", "*.jsonl")  # what a run goes on from beside its state: metrics, replaced clips, events, books
BEST = "best"  # folder of a run directory with the weights of its best evaluation (evals/best.py), a checkpoint too


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder or an address such as gs://bucket/run ("" = none), and which steps stay there: the newest, and multiples of `keep_every`."""

    path: str = ""
    keep_last: int = 2
    keep_every: int = 0
    grace: float = 15.0  # seconds that a run which was told to stop waits for its copy; many schedulers kill after 30

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_every < 0:
            raise UserError(f"the durable place keeps the last {self.keep_last} and every {self.keep_every} steps; allowed are 1 and more, and 0 and more")


def patiently(call: Callable[[], Any], /) -> Any:
    """The result of a call that is repeated where it fails, TRIES times in all: a copy of many files would never end where one request in five fails."""
    for number in range(TRIES - 1):
        try:
            return call()
        except FileNotFoundError:  # an answer
            raise
        except Exception:  # every client raises errors of its own
            time.sleep(PAUSE * 2**number)
    return call()


class _Patient:
    """A file system whose single operations are tried `patiently`; `plain` is the one itself."""

    def __init__(self, plain: Any, /) -> None:
        self.plain = plain

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kw: patiently(lambda: getattr(self.plain, name)(*args, **kw))


class Durable:
    """Copies the checkpoints of the run in `directory` to a place, from a thread of its own, and brings them back.

    A step there is complete once its manifest is: that is written last, when every file was read back and found to be what
    the manifest says. Trouble with the place never raises: `warn` is told, `failures` counts it, and it is tried again.
    Where saves are faster than copies, only the newest waits, beside those that are kept for ever. Of several processes the
    first does all of this, and the others get its answers; they see the same run directory.
    """

    def __init__(self, place: Place, directory: pathlib.Path, /, *, warn: Callable[[str], None] = warnings.warn) -> None:
        try:
            fs, root = fsspec.core.url_to_fs(place.path)
        except (ImportError, ValueError) as error:
            raise UserError(f"{place.path} cannot be reached: {str(error).splitlines()[0]}") from error
        self._fs = _Patient(fs)
        self._root, self._place, self._directory, self._warn = root.rstrip("/"), place, directory, warn
        self._waiting: set[int] = set()
        self._cut: int | None = None  # steps beyond it are to be removed
        self._closed, self._hurry, self._row = False, False, 0
        self.failures, self.reason = 0, ""
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="durable")

    def offer(self, step: int, /) -> None:
        """A checkpoint that is committed, to be copied when its turn comes; one that is there already costs a look."""
        if not parallel.is_lead():
            return
        with self._change:
            every = self._place.keep_every
            self._waiting = {s for s in self._waiting if every and s % every == 0} | {step}
            self._start()

    def forget(self, step: int, /) -> None:
        """Steps beyond this one are removed, and not copied: the run goes on from it or from before."""
        if not parallel.is_lead():
            return
        with self._change:
            self._waiting = {s for s in self._waiting if s <= step}
            self._cut = step if self._cut is None else min(step, self._cut)
            self._start()

    def _start(self) -> None:
        if not self._thread.is_alive() and not self._closed:
            self._thread.start()
        self._change.notify_all()

    def wait(self, *, seconds: float = EXIT) -> bool:
        """Until everything is copied, and whether it is: a place that fails ROW times in a row, or takes longer, is waited for no more."""
        with self._change:
            self._hurry, self._row = True, 0
            self._change.notify_all()
            self._change.wait_for(lambda: not self._waiting or self._row >= ROW, timeout=seconds)
            self._hurry, left = False, sorted(self._waiting)
        if left:
            self._warn(f"checkpoint {left[-1]} is not in {self._place.path} ({self.reason or 'the copy is under way'})")
        return not left

    def close(self) -> None:
        """No copy begins any more; one under way is left behind when the process ends, and is none without its manifest."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._waiting or self._cut is not None)
                if self._closed:
                    return
                cut = self._cut
                step = max(self._waiting) if cut is None else None
            try:
                if cut is not None:
                    self._remove([s for s in self._steps(self._root) if s > cut])
                else:
                    self._copy(step)
                    self._copy_best()
            except Exception as error:  # every client raises errors of its own
                self._failed(step, error)
                continue
            with self._change:
                self._row = 0
                if cut is None:
                    self._waiting.discard(step)
                elif self._cut == cut:
                    self._cut = None
                self._change.notify_all()

    def _failed(self, step: int | None, error: Exception, /) -> None:
        """Says what went wrong, drops a step that is no longer there, and waits for the next try."""
        self.reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
        with self._change:
            self.failures, self._row = self.failures + 1, self._row + 1
            pause = min(RETRY[0] * 2 ** (self._row - 1), RETRY[1])
            gone = step is not None and not self._source(step).exists()
            if gone:
                self._waiting.discard(step)
        what = "steps beyond a rollback cannot be removed from" if step is None else f"checkpoint {step} cannot be copied to"
        self._warn(f"checkpoint {step} was removed before its copy in {self._place.path} was complete; copies are slower than saves" if gone else
                   f"{what} {self._place.path} ({self.reason}); training goes on, it is tried again")
        with self._change:
            self._change.notify_all()
            if not gone:
                self._change.wait_for(lambda: self._closed or self._hurry, timeout=pause)
                if self._hurry:
                    self._change.wait_for(lambda: self._closed, timeout=min(pause, 0.5 * self._row))

    def _source(self, step: int, /) -> pathlib.Path:
        return self._directory / "checkpoints" / f"{step:08d}"

    def _copy(self, step: int, /) -> None:
        """Copies a step and the books of the run, then removes what is no longer kept. Raises OSError where a file reads back otherwise."""
        self.own()
        self._fs.makedirs(self._root, exist_ok=True)
        for pattern in RUN:
            for path in sorted(self._directory.glob(pattern)):
                self._fs.pipe_file(f"{self._root}/{path.name}", path.read_bytes())
        self._put(self._source(step), f"{self._root}/{step:08d}")
        steps, every = self._steps(self._root), self._place.keep_every
        self._remove([s for s in steps if s not in steps[-self._place.keep_last:] and not (every and s % every == 0)])

    def _copy_best(self) -> None:
        """Copies the best weights and removes those there. What keeps them from it is told and holds up no checkpoint: they come with the next one."""
        for source in sorted((self._directory / BEST).glob("[0-9]" * 8))[-1:]:
            try:
                self._put(source, f"{self._root}/{BEST}/{source.name}")
                for other in self._steps(f"{self._root}/{BEST}"):
                    if other != int(source.name):
                        self._drop(f"{self._root}/{BEST}/{other:08d}")
            except Exception as error:  # every client raises errors of its own
                if source.exists():  # else better ones have taken their place
                    self.failures += 1
                    self._warn(f"the best weights of step {int(source.name)} cannot be copied to {self._place.path} ({type(error).__name__}: {str(error)[:120]}); "
                               "training goes on, it is tried again with the next checkpoint")

    def _put(self, source: pathlib.Path, target: str, /) -> None:
        """Copies the folder of a step, unless it is there."""
        text = (source / manifest.NAME).read_bytes()
        if self._has(target, text):
            return
        found, files = json.loads(text), manifest.listed(source, late=manifest.LATE)
        if manifest.seal(found) != found:
            raise OSError(f"{source / manifest.NAME} does not match its own checksum")
        sums = found["files"]
        if self._fs.exists(target):  # of a try that came to nothing, or of an abandoned part of the run
            self._drop(target)
        with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda name: self._send(files[name], f"{target}/{name}", sums.get(name)), files))
        self._fs.pipe_file(f"{target}/{manifest.NAME}", text)
        if not self._has(target, text):
            raise OSError(f"{target}/{manifest.NAME} reads back other than it was written")

    def _has(self, target: str, text: bytes, /) -> bool:
        return bool(self._fs.exists(f"{target}/{manifest.NAME}")) and self._fs.cat_file(f"{target}/{manifest.NAME}") == text

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

    def _remove(self, steps: list[int], /) -> None:
        for step in steps:
            self._drop(f"{self._root}/{step:08d}")

    def _drop(self, target: str, /) -> None:
        if self._fs.exists(f"{target}/{manifest.NAME}"):  # first, for the rest is no checkpoint without it
            self._fs.rm_file(f"{target}/{manifest.NAME}")
        self._fs.rm(target, recursive=True)

    def _steps(self, folder: str, /) -> list[int]:
        self._fs.invalidate_cache()
        try:
            names = [posixpath.basename(name.rstrip("/")) for name in self._fs.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        return sorted(int(n) for n in names if re.fullmatch(r"\d{8}", n) and self._fs.exists(f"{folder}/{n}/{manifest.NAME}"))

    def steps(self, *, needed: bool) -> list[int]:
        """The newest complete steps there, oldest first. Where they cannot be listed this raises UserError if they are `needed`, else it warns."""
        found: list[int] = []
        try:
            found = [s for s in self._steps(self._root) if self._cut is None or s <= self._cut][-MOST:] if parallel.is_lead() else []
        except Exception as error:  # every client raises errors of its own
            text = f"{self._place.path} cannot be listed ({type(error).__name__}: {str(error)[:100]})"
            if needed:
                raise UserError(f"{text}; without checkpoints in {self._directory} the run would begin anew: try again, or leave the durable place out") from error
            self.failures += 1
            self._warn(f"{text}; the run goes on with the checkpoints in {self._directory}")
        told = agreement.from_lead(np.pad(np.asarray(found, np.int32), (0, MOST - len(found)), constant_values=-1))
        return [step for step in told.tolist() if step >= 0]

    def fetch(self, step: int, /, *, into: pathlib.Path) -> bool:
        """Whether `into` now holds the step, every file of which matches the manifest."""
        wrong = self._bring(f"{self._root}/{step:08d}", step, into) if parallel.is_lead() else ""
        if wrong:
            self.failures += 1
            self._warn(f"the copy of checkpoint {step} in {self._place.path} cannot be used: {wrong}")
        return bool(agreement.from_lead(np.asarray(not wrong)))

    def _bring(self, target: str, step: int, into: pathlib.Path, /) -> str:
        """Copies a step into a new folder; what is wrong with it, "" for nothing."""
        try:
            if into.exists():
                shutil.rmtree(into)
            names = [name[len(target):].lstrip("/") for name in self._fs.find(target)]
            if any(".." in pathlib.PurePosixPath(name).parts for name in names):
                return "its files lie outside of it"
            for name in names:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
            with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(lambda name: self._fs.get_file(f"{target}/{name}", str(into / name)), names))
            return manifest.problem(into, step=step)
        except Exception as error:  # every client raises errors of its own
            return f"{type(error).__name__}: {error}".splitlines()[0][:160]

    def recall(self) -> None:
        """Brings back config, metrics, the best weights and the like into a run directory that is new or gone.

        Raises UserError where the place belongs to another run, or cannot be read or made and this run has not used it before.
        """
        if not parallel.is_lead():
            return
        try:
            self._fs.invalidate_cache()
            owned = self._fs.exists(f"{self._root}/{OWNER}")
            if not owned:
                self._fs.makedirs(self._root, exist_ok=True)  # a file in the way is told now, not by every copy
            names = [name for pattern in RUN for name in self._fs.glob(f"{self._root}/{pattern}")] if owned else []
            texts = {posixpath.basename(name): self._fs.cat_file(name) for name in names}
            best = self._steps(f"{self._root}/{BEST}")[-1:] if owned else []
        except Exception as error:  # every client raises errors of its own
            text = f"{self._place.path} cannot be used ({type(error).__name__}: {str(error)[:100]})"
            if self._own().get("place") == self._place.path:
                self.failures += 1
                self._warn(f"{text}; the run goes on with what is in {self._directory}")
                return
            raise UserError(text) from error
        if (self._directory / "config.json").exists():
            own = self._directory / OWNER
            if owned and not (own.exists() and own.read_bytes() == texts[OWNER]):
                raise UserError(f"{self._place.path} holds checkpoints of another run than {self._directory}; allowed is a place of its own for every run")
            return
        for step in best:
            into = self._directory / BEST / f"{step:08d}"
            if wrong := self._bring(f"{self._root}/{BEST}/{step:08d}", step, into):
                shutil.rmtree(into, ignore_errors=True)
                self._warn(f"the best weights in {self._place.path}, of step {step}, cannot be used: {wrong}; the run goes on without them")
        for name in sorted(texts, key="config.json".__eq__):  # last: what makes it a run directory
            self._directory.mkdir(parents=True, exist_ok=True)
            (self._directory / name).write_bytes(texts[name])
        if texts:
            self._warn(f"the run directory {self._directory} is taken up again from {self._place.path}")

    def own(self) -> None:
        """Marks the run directory, which holds a run by now, so that no other run takes the place for its own."""
        if parallel.is_lead() and not (self._directory / OWNER).exists():
            (self._directory / OWNER).write_text(json.dumps({"run": secrets.token_hex(16), "place": self._place.path}))

    def _own(self) -> dict[str, Any]:
        """What the run directory says of the place that it uses; {} where it says nothing."""
        try:
            found = json.loads((self._directory / OWNER).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def of(place: Place, directory: pathlib.Path, /, **kw: Any) -> Durable | None:
    """The place of a run; None where none is named."""
    return Durable(place, directory, **kw) if place.path else None
