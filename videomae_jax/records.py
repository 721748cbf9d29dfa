"""What a run directory holds, read for pages about runs."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from videomae_jax import journal, metrics, run_directory, starts
from videomae_jax.errors import UserError

DIGESTS = ("values", "sha256")  # of weights in starts.jsonl: of their values alone, which older starts and files lack, and of all of a file or checkpoint


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run directory holds: resolved config, recipe card, lines of metrics.jsonl, faults, pictures by step, what ran it, what its training clips are."""

    directory: pathlib.Path
    config: Any
    card: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any]
    faults: Sequence[Mapping[str, Any]]
    pictures: Mapping[int, Sequence[pathlib.Path]]
    starts: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def step(self) -> int:
        """The last step that left a line."""
        return max((int(line["step"]) for line in self.lines), default=0)

    @property
    def finished(self) -> bool:
        """Whether the run reached its total and left its summary."""
        return 0 < self.total == self.summary.get("steps")

    @property
    def total(self) -> int:
        """Steps of the whole run; 0 where no recipe card says it."""
        return int(self.card.get("steps", 0))

    @property
    def weights(self) -> dict[str, dict[str, str]]:
        """{into: DIGESTS} of the weights of others that the run began with, by the last of its starts at step 0 that made the parameters: those before it
        came to nothing, and may have had another config. One that goes on from checkpoint 0 reads frozen weights alone, which then count. {} for none,
        and where it does not tell."""
        found: dict[str, Any] = {}
        for start in (start for start in self.starts if start["step"] == 0):
            found = (found if start.get("saved", -1) >= 0 else {}) | start.get("externals", {})
        return {into: {name: about[name] for name in DIGESTS if name in about} for into, about in found.items() if into.split("/")[0] != "data"}

    def series(self, name: str, /) -> list[tuple[float, float]]:
        """(step, value) of a metric."""
        return [(line["step"], float(line[name])) for line in self.lines if name in line]

    def last(self, name: str, /) -> float | None:
        """The newest value of a metric."""
        found = self.series(name)
        return found[-1][1] if found else None

    @property
    def evaluators(self) -> dict[str, list[str]]:
        """Names of the values of every evaluator that has left some."""
        found: dict[str, dict[str, None]] = {}
        for line in self.lines:
            for key in line:
                group, _, name = key.partition("/")
                if name and group in self.config.evaluators:
                    found.setdefault(group, {})[name] = None
        return {group: list(names) for group, names in found.items()}


def load(directory: pathlib.Path, /) -> Record:
    """Reads a run directory, finished or not. Raises UserError when it is none or a file of it is damaged."""
    config = run_directory.open_run(directory)
    pictures: dict[int, list[pathlib.Path]] = {}
    for path in sorted((directory / "reconstructions").glob("step*_*.png"), key=lambda p: (len(p.name), p.name)):
        pictures.setdefault(int(path.name.removeprefix("step").partition("_")[0]), []).append(path)
    faults = [fault for path in sorted(directory.glob("faults*.jsonl")) for fault in journal.read(path)]
    return Record(directory=directory, config=config, card=parsed(directory / "recipe_card.json", json.loads, missing={}),
                  lines=metrics.read(directory), summary=parsed(directory / "summary.json", json.loads, missing={}), faults=faults,
                  pictures=dict(sorted(pictures.items())), starts=journal.read(directory / starts.FILE),
                  data=parsed(directory / run_directory.DATA, json.loads, missing={}))


def other_weights(one: Mapping[str, Mapping[str, str]], other: Mapping[str, Mapping[str, str]], /) -> bool:
    """Whether two runs whose `weights` are known began from other ones: by the first of DIGESTS that both have, as the second differs where the same
    training was done twice."""
    def differ(into: str) -> bool:
        return next((one[into][name] != other[into][name] for name in DIGESTS if name in one[into] and name in other[into]), False)

    return bool(one and other) and (one.keys() != other.keys() or any(map(differ, one)))


def parsed(path: pathlib.Path, read: Callable[[str], Any], /, *, missing: Any) -> Any:
    """`read(text of path)`, or `missing` where there is no file. Raises UserError when it is damaged."""
    if not path.is_file():
        return missing
    try:
        return read(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error
