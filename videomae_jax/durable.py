"""A second place for checkpoints: durable where the run directory is fast. Copies are made in the background and read back."""

import collections
import dataclasses
import datetime
import json
import os
import pathlib
import re
import secrets
import socket
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from videomae_jax import agreement, ownership, parallel
from videomae_jax.copies import Copies
from videomae_jax.errors import StorageError, UserError
from videomae_jax.ownership import BEST, RUN
from videomae_jax.whole import write

RETRY = (10.0, 300.0)  # seconds to the first new try after a failed copy, doubled each time up to the second
ROW = 4  # failures in a row after which the end of a run waits no longer
EXIT = 600.0  # seconds that the end of a run waits for a copy
MOST = 64  # steps there that are looked at
HOLDER = "holder.txt"  # there: which start of that run took the place last, the only one that writes
CUT = "durable_cut.json"  # here: which steps there belong to an abandoned part of the run and are not removed yet, and which start says so


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder or an address such as gs://bucket/run ("" = none), and which steps stay there: the newest, and multiples of `keep_every`."""

    path: str = ""
    keep_last: int = 2
    keep_every: int = 0
    grace: float = 15.0  # seconds that a run which was told to stop waits for its copy; many schedulers kill after 30

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_every < 0:
            raise UserError(f"the durable place keeps the last {self.keep_last} and every {self.keep_every} steps; "
                            "allowed are 1 and more, and 0 and more")


class TakenError(Exception):
    """A later start has taken the place."""


class Durable:
    """Copies the checkpoints of the run in `directory` to a place, from a thread of its own, and brings them back.

    A step there is complete once its manifest is: that is written last, when every file was read back and found to be what
    the manifest says. Trouble with copying never raises: `warn` is told, `failures` counts it, and it is tried again.
    Where saves are faster than copies, only the newest waits, beside those that are kept for ever. Of several processes the
    first does all of this, and the others get its answers; they see the same run directory. Of several starts on one place,
    each with a run directory of its own, the last writes there, and the others are told. Raises UserError for a folder that is
    the run's own, lies in it or holds it: what is removed there may be what lies here.
    """

    def __init__(self, place: Place, directory: pathlib.Path, /, *, warn: Callable[[str], None] = warnings.warn) -> None:
        self._copies = Copies(place.path)
        there, here = self._copies.folder, pathlib.Path(os.path.realpath(directory))  # pathlib's raises RuntimeError for a link to itself
        if there and (there.is_relative_to(here) or here.is_relative_to(there)):
            raise UserError(f"the durable place {place.path} and the run directory {directory} are one folder or lie in one another; "
                            "allowed is a folder apart from it, or an address")
        self._place, self._directory, self._warn = place, directory, warn
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="microseconds")
        self._token = f"{here} on {socket.gethostname()}, start {secrets.token_hex(8)} at {now}"
        self._holder: str | None = None  # what HOLDER is while no later start has the place: what this one found at its beginning, then its token
        self._came, self._lost = False, False
        self._waiting: set[int] = set()
        # How often the best weights and a removal were asked for since they were seen to.
        self._asked: collections.Counter[str] = collections.Counter()
        # Steps beyond `_cut` are to be removed, but for `_new` ones, as long as the place is that of the start that said so:
        # of `_earlier`, or of this one.
        self._cut, self._new, self._earlier = self._noted() if parallel.is_lead() else (None, set(), None)
        self._damaged: set[int] = set()  # steps whose copy was found to be wrong and was not made anew yet
        self._ways = 0  # back, so far
        self._closed, self._hurry, self._row = False, False, 0
        self.failures, self.reason = 0, ""
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True, name="durable")

    def take(self) -> None:
        """Makes the place this start's: one that took it before and still runs copies and removes nothing more.

        After trouble the first copy takes it.
        """
        if not parallel.is_lead() or self._came:
            return
        self._came = True
        try:
            self._hold(first=True)
        except Exception as error:  # every client raises errors of its own
            self.failures += 1
            self._warn(f"{self._place.path} cannot be written to ({type(error).__name__}: {str(error)[:100]}); training goes on, it is tried again")

    def _hold(self, *, first: bool = False) -> None:
        """Raises TakenError where a later start has taken the place; who has it at the `first` look came before, whatever its clock says."""
        found = self._held()
        if not first and not _keeps(found, self._holder, self._token):
            raise TakenError(found[:200])
        if found == self._token:
            return
        with self._change:  # before the place has a new token: a start that ends in between is to find this cut its own
            self._holder, self._earlier = found, None
            self._note()
        self._copies.make()  # also where somebody has emptied the place
        self._copies.write(HOLDER, self._token.encode())
        self._holder = self._token

    def _held(self) -> str:
        """The token there, "" for none.

        What an earlier start cut off is forgotten where another has taken the place since: the steps there are not of that part.
        """
        found = (self._copies.read(HOLDER) or b"").decode(errors="replace")
        with self._change:
            if self._earlier and not _keeps(found, *self._earlier):
                self._cut, self._new, self._earlier = None, set(), None
                self._note()
        return found

    def offer(self, step: int, /) -> None:
        """A checkpoint that is committed, to be copied when its turn comes; one that is there already costs a look."""
        if not parallel.is_lead():
            return
        with self._change:
            every = self._place.keep_every
            self._waiting = {s for s in self._waiting if every and s % every == 0} | {step}
            self._start()

    def forget(self, step: int, /) -> None:
        """Steps beyond this one are removed, and not copied: the run goes on from it or from before. The next start knows of those that are left."""
        if not parallel.is_lead() or self._lost:
            return
        with self._change:
            self._waiting = {s for s in self._waiting if s <= step}
            self._cut, self._new = step if self._cut is None else min(step, self._cut), {s for s in self._new if s <= step}
            self._ways += 1
            self._asked["removal"] += 1
            self._note()
            self._start()

    def _start(self) -> None:
        if not self._thread.is_alive() and not self._closed:
            self._thread.start()
        self._change.notify_all()

    def wait(self, *, seconds: float = EXIT) -> bool:
        """Until everything is copied, the best weights too, and whether it is.

        A place that fails ROW times in a row, or takes longer, is waited for no more.
        """
        with self._change:
            self._hurry, self._row = True, 0
            if self._thread.is_alive() and self._best():  # an evaluation of a step that was saved before may have found better ones
                self._asked["best"] += 1
            self._change.notify_all()
            self._change.wait_for(lambda: self._closed or self._row >= ROW or not (self._waiting or self._asked.total()), timeout=seconds)
            self._hurry = False
            left = [f"checkpoint {step} is" for step in sorted(self._waiting)[-1:]] + ["the best weights are"] * bool(self._asked["best"])
        for what in left:
            self._warn(f"{what} not in {self._place.path} ({self.reason or 'the copy is under way'})")
        return not left

    def close(self) -> None:
        """No copy begins any more; one under way is left behind when the process ends, and is none without its manifest."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._closed or self._waiting or self._asked.total())
                if self._closed:
                    return
                step, asked = max(self._waiting, default=None), self._asked.copy()
            copied = step is None or self._tried(f"checkpoint {step} cannot be copied to", lambda step=step: self._copy(step))
            jobs = (("best", "the best weights cannot be copied to", self._copy_best),
                    ("removal", "what is no longer kept cannot be removed from", self._tidy))
            rest = [self._tried(what, job) for name, what, job in jobs if asked[name]]
            with self._change:
                self._row = 0 if copied and (step is not None or all(rest)) else self._row + 1
                self._change.notify_all()
                if not copied or not all(rest):
                    self._pause(copied)

    def _tried(self, what: str, job: Callable[[], None], /) -> bool:
        """Whether a job came to its end; says why where it did not. Where the place is another's nothing begins any more."""
        if self._lost:
            return False
        try:
            job()
            return True
        except TakenError as error:
            self.reason, self._lost = "another start has taken the place", True
            self._warn(f"another start has taken {self._place.path} ({error}); training goes on, and nothing is copied there any more")
            self.close()
        except Exception as error:  # every client raises errors of its own
            self.failures, self.reason = self.failures + 1, f"{type(error).__name__}: {error}".splitlines()[0][:160]
            self._warn(f"{what} {self._place.path} ({self.reason}); training goes on, it is tried again")
        return False

    def _pause(self, copied: bool, /) -> None:
        """Until the next try; a checkpoint does not wait for what else went wrong."""
        def over() -> bool:
            return self._closed or bool(copied and self._waiting)

        pause = min(RETRY[0] * 2 ** max(self._row - 1, 0), RETRY[1])
        self._change.wait_for(lambda: self._hurry or over(), timeout=pause)
        if self._hurry:
            self._change.wait_for(over, timeout=min(pause, 0.5 * self._row))

    def _copy(self, step: int, /) -> None:
        """Copies a step and the books of the run; one that is no longer here is given up, loudly."""
        ways, source = self._ways, self._directory / "checkpoints" / f"{step:08d}"
        self._hold()
        self.own()
        for path in (path for pattern in RUN for path in sorted(self._directory.glob(pattern))):
            self._copies.renew(path.name, path.read_bytes())
        try:
            self._copies.put(source, source.name, sure=self._hold, anew=step in self._damaged)
            self._damaged.discard(step)
        except Exception as error:  # every client raises errors of its own
            if isinstance(error, TakenError) or source.exists():
                raise
            self.failures += 1
            self._warn(f"checkpoint {step} was removed before its copy in {self._place.path} was complete; copies are slower than saves")
        with self._change:
            if ways == self._ways:  # else it may have been of the abandoned part, and a new one may wait
                self._waiting.discard(step)
                if self._cut is not None and step > self._cut:
                    self._new.add(step)
                    self._note()
            self._asked.update(("best", "removal"))

    def _best(self) -> list[pathlib.Path]:
        """The best weights, if there are any."""
        return sorted((self._directory / BEST).glob("[0-9]" * 8))[-1:]

    def _copy_best(self) -> None:
        """Copies the best weights and removes those there. They hold up no checkpoint."""
        asked = self._asked["best"]
        for source in self._best():
            try:
                self._hold()
                self._copies.put(source, f"{BEST}/{source.name}", sure=self._hold)
                for other in self._copies.begun(BEST):
                    if other != int(source.name):
                        self._copies.drop(f"{BEST}/{other:08d}")
            except Exception as error:  # every client raises errors of its own
                if isinstance(error, TakenError) or source.exists():  # else better ones have taken their place
                    raise
        with self._change:
            self._asked["best"] -= asked

    def _tidy(self) -> None:
        """Removes what a rollback cut off, what is no longer kept, and copies that came to nothing. A damaged copy takes the place of no good one.

        What was cut off stays until a good one is there: a run whose directory is lost goes on from it sooner than from nothing.
        """
        ways, asked, every = self._ways, self._asked["removal"], self._place.keep_every
        begun, complete = self._copies.begun(), self._copies.steps()
        self._hold()
        with self._change:
            steps = self._valid(complete)
            good = [step for step in steps if step not in self._damaged]
        first = (good[-self._place.keep_last:] or [0])[0]  # of those that stay; damaged ones among them may be good at another look
        stay = steps if good else complete
        for step in begun:
            if step not in stay or (step < first and not (every and step % every == 0)):
                self._copies.drop(f"{step:08d}")
        with self._change:
            self._asked["removal"] -= asked
            if self._cut is not None and ways == self._ways and stay == steps:
                self._cut, self._new = None, set()
                self._note()

    def _valid(self, steps: list[int], /) -> list[int]:
        """Those that no rollback cut off."""
        return [step for step in steps if self._cut is None or step <= self._cut or step in self._new]

    def _note(self) -> None:
        """Keeps for the next start which steps are cut off. A full disk costs that alone."""
        path = self._directory / CUT
        try:
            if self._cut is None:
                path.unlink(missing_ok=True)
            else:
                holder, start = self._earlier or (self._holder, self._token)
                write(path, json.dumps({"beyond": self._cut, "but": sorted(self._new), "holder": holder, "start": start}))
        except OSError as error:
            self.failures += 1
            self._warn(f"{path} cannot be written ({error.strerror}): a new start does not know which steps in {self._place.path} a rollback cut off")

    def _noted(self) -> tuple[int | None, set[int], tuple[str | None, str] | None]:
        """What `_note` kept: the cut, steps beyond it that stay, and the holder and the token of the start that noted them."""
        path = self._directory / CUT
        try:
            found = json.loads(path.read_text())
            return int(found["beyond"]), set(map(int, found["but"])), (found["holder"], str(found["start"]))
        except (FileNotFoundError, NotADirectoryError):  # which is told where the run directory is claimed
            return None, set(), None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({type(error).__name__}); it lists the steps in {self._place.path} that a rollback cut off: "
                            "remove those, then it") from error

    def steps(self, *, needed: bool) -> list[int]:
        """The newest complete steps there, oldest first. Where they cannot be listed this raises StorageError if they are `needed`, else it warns."""
        found: list[int] = []
        try:
            if self._earlier:
                self._held()
            found = self._valid(self._copies.steps())[-MOST:] if parallel.is_lead() and not self._lost else []
        except Exception as error:  # every client raises errors of its own
            text = f"{self._place.path} cannot be listed ({type(error).__name__}: {str(error)[:100]})"
            if needed:
                raise StorageError(f"{text}; without checkpoints in {self._directory} the run would begin anew: "
                                   "start the same command again") from error
            self.failures += 1
            self._warn(f"{text}; the run goes on with the checkpoints in {self._directory}")
        told = agreement.from_lead(np.pad(np.asarray(found, np.int32), (0, MOST - len(found)), constant_values=-1))
        return [step for step in told.tolist() if step >= 0]

    def fetch(self, step: int, /, *, into: pathlib.Path) -> bool:
        """Whether `into` now holds the step, every file of which matches the manifest; never one that `steps` leaves out.

        Raises StorageError, in every process, where it does not arrive: nobody knows whether it is good.
        """
        with self._change:
            wrong = "another start has taken the place" if self._lost else "" if self._valid([step]) else "it is of an abandoned part of the run"
        missed = False
        if not wrong and parallel.is_lead():
            wrong, damaged = self._copies.bring(f"{step:08d}", step=step, into=into)
            missed = bool(wrong) and not damaged
            with self._change:
                self._damaged |= {step} if damaged and wrong else set()
        good, missed = agreement.from_lead(np.asarray([not wrong, missed])).tolist()
        if missed:
            raise StorageError(f"checkpoint {step} cannot be brought back from {self._place.path}{wrong and f' ({wrong})'}; "
                               f"start the same command again, and where that repeats itself move {step:08d} away from there")
        if wrong:
            self.failures += 1
            self._warn(f"the copy of checkpoint {step} in {self._place.path} cannot be used: {wrong}")
        return good

    def recall(self) -> None:
        """Brings back config, metrics, the best weights and the like into a run directory that is new or gone.

        Raises what `ownership.recall` does.
        """
        if parallel.is_lead() and not ownership.recall(self._copies, self._place.path, self._directory, warn=self._warn):
            self.failures += 1

    def own(self) -> None:
        """Marks the run directory, which holds a run by now, so that no other run takes the place for its own."""
        if parallel.is_lead():
            ownership.mark(self._directory, self._place.path)


def _keeps(found: str, holder: str | None, start: str, /) -> bool:
    """Whether no later start than `start` has taken the place, where `found` is the token there, "" for none.

    `holder` is the token that was there before, None where the start could not look; then the times of the starts decide.
    """
    times = [match[1] if (match := re.search(r" at (\S+)$", token)) else "" for token in (found, start)]
    return found in ("", start, holder) or (holder is None and times[0] <= times[1])


def of(place: Place, directory: pathlib.Path, /, **kw: Any) -> Durable | None:
    """The place of a run; None where none is named."""
    return Durable(place, directory, **kw) if place.path else None
