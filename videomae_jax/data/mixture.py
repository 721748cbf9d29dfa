"""Mixtures of sources under one stream: all rows once an epoch, or each source at a rate of its own."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from videomae_jax.data import decode, pipeline, sources
from videomae_jax.errors import UserError

CIRCLE = 2**64
TURN = 0x9E3779B97F4A7C15  # CIRCLE / golden ratio, odd: multiples of it spread over the circle more evenly than those of any other number


@dataclasses.dataclass(frozen=True)
class Part:
    """A source of a mixture, its weight in `Weighted`, and how many videos the recipe had of it (0 = not said), for the card."""

    source: Any
    weight: float = 1.0
    videos: int = 0

    def __post_init__(self) -> None:
        if not self.weight > 0 or self.videos < 0:
            raise UserError(f"weight is {self.weight}, videos {self.videos}; allowed are weights above 0 and 0 or more videos")


@dataclasses.dataclass(frozen=True)
class Concat:
    """The rows of all parts one after another, in the order of their names: the stream draws each of them once an epoch, as in V2.

    Strides, templates, crops and canvases are those of the parts; their fields and copies must agree. Classes are those of
    all parts. A part in `missing` (names, or several in one text with commas) is left out and stands on the recipe card as
    such; one that cannot be opened and is not declared there is an error. `split` replaces that of every part ("" = each its own); `limit` takes that many rows at equal
    distances over all parts.
    """

    parts: Mapping[str, Part]
    missing: tuple[str, ...] = ()
    split: str = ""
    limit: int = 0
    max_bad_fraction: float = 0.01

    def __post_init__(self) -> None:
        unknown = self._absent - set(self.parts)
        if unknown or not self._present:
            raise UserError(f"missing is {self.missing}; allowed are some of {', '.join(sorted(self.parts)) or '(no parts)'}, but not all")
        if self.limit < 0 or not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"limit is {self.limit}, max_bad_fraction {self.max_bad_fraction}; allowed are 0 and more, and shares from 0 to 1")
        first, *others = self._present
        for name in others:
            for what in ("repeats", "fields", "attributes"):
                here, there = (getattr(self.parts[n].source, what, ()) for n in (name, first))
                if here != there:
                    raise UserError(f"{what} of source {name!r} are {here}, those of {first!r} {there}; allowed is that they agree")

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # what is opened stays behind

    @property
    def present(self) -> dict[str, Part]:
        """The parts that are not declared missing, in the order of their names."""
        return {name: self.parts[name] for name in self._present}

    @property
    def _absent(self) -> set[str]:
        return {name.strip() for text in self.missing for name in text.split(",")}

    @property
    def _present(self) -> list[str]:
        return sorted(set(self.parts) - self._absent)

    @functools.cached_property
    def _sources(self) -> list[Any]:
        found = [self.parts[name].source for name in self._present]
        return [dataclasses.replace(s, split=self.split) for s in found] if self.split else found

    @functools.cached_property
    def _rows(self) -> list[np.ndarray]:
        """Rows taken of every source."""
        lengths = []
        for name, source in zip(self._present, self._sources, strict=True):
            try:
                lengths.append(len(source))
            except UserError as error:
                raise UserError(f"source {name!r} of the mixture: {error}; a source that you do not have is declared with "
                                f"--config.data.missing={','.join(sorted({*self._absent, name}))}") from error
        chosen, ends = sources.spread(np.arange(sum(lengths)), limit=self.limit), np.cumsum(lengths)
        return [chosen[(chosen >= end - n) & (chosen < end)] - (end - n) for n, end in zip(lengths, ends, strict=True)]

    @functools.cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(rows) for rows in self._rows])

    @property
    def repeats(self) -> int:
        """Copies of a decode, the same in all parts."""
        return self.parts[self._present[0]].source.repeats

    @property
    def timeout(self) -> float:
        """Seconds that the slowest part allows for a read."""
        return max(getattr(s, "timeout", decode.TIMEOUT) for s in self._sources)

    @property
    def fields(self) -> Mapping[str, sources.Field]:
        """Keys of an example."""
        return self.parts[self._present[0]].source.fields

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Class names of all parts; a name that two parts have is one class."""
        return sources.numbered({name for source in self._sources for name in source.classes})

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the yes-or-no labels, the same in all parts; () where they have none."""
        return sources.names(self.parts[self._present[0]].source, "attributes")

    @functools.cached_property
    def _numbers(self) -> list[np.ndarray]:
        """Class numbers here for those of every source, with that of -1 at the end."""
        places = {name: number for number, name in enumerate(self.classes)}
        return [np.asarray([*(places[c] for c in source.classes), -1], np.int32) for source in self._sources]

    def check_sampling(self) -> None:
        """Raises UserError where a part does not hold the frames of its sampling."""
        for source in self._sources:
            sources.check_drawn(source)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def place(self, row: int, /) -> tuple[int, int]:
        """(part in the order of names, row of its source) of a row."""
        part = int(np.searchsorted(self._ends, row, "right"))
        return part, int(self._rows[part][row - (self._ends[part] - len(self._rows[part]))])

    def name(self, row: int, /) -> str:
        """The part's name, a slash and the example's name."""
        part, own = self.place(row)
        return f"{self._present[part]}/{self._sources[part].name(own)}"

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The example of a part, its label by the classes of all."""
        part, own = self.place(row)
        example = dict(self._sources[part].read(own, rng=rng))
        if "label" in example:
            example["label"] = self._numbers[part][example["label"]]
        return example

    def shares(self) -> dict[str, float]:
        """Share of the draws that every present part gets."""
        return {name: len(rows) / len(self) for name, rows in zip(self._present, self._rows, strict=True)}

    def card(self, draws: int, /) -> dict[str, Any]:
        """What `draws` decoded clips amount to for every part: videos, share, passes over it; and what is missing."""
        shares, lengths = self.shares(), dict(zip(self._present, map(len, self._rows), strict=True))
        found: dict[str, Any] = {}
        for name, part in sorted(self.parts.items()):
            said = {"videos_in_recipe": part.videos} if part.videos else {}
            present = {"videos": lengths[name], "share": shares[name], "epochs": draws * shares[name] / lengths[name]} if name in lengths else {"missing": "declared"}
            found[name] = said | present
        return found


def labelled(source: Any, label: str, /) -> Any:
    """`source`, or every part of a mixture, with the labels that `label` names there ("" = the usual ones). Raises UserError for a name where
    a source has no choice of labels.
    """
    if isinstance(source, Concat):
        return dataclasses.replace(source, parts={name: dataclasses.replace(part, source=labelled(part.source, label)) for name, part in source.parts.items()})
    if any(field.name == "label" for field in dataclasses.fields(source)):
        return dataclasses.replace(source, label=label)
    if label:
        raise UserError(f"label {label!r} is asked of {type(source).__name__}, which has no choice of labels; allowed is '', its own ones")
    return source


@dataclasses.dataclass(frozen=True)
class Weighted(Concat):
    """Parts drawn in proportion to their weights: each in its own shuffled order, every row of it once before any a second time.

    The part of a position is a pure function of (seed, position); among any n consecutive positions the counts are those of
    the weights up to a few draws. An epoch is as many draws as there are rows in all parts. Evaluation sweeps see every row once.
    """

    def shares(self) -> dict[str, float]:
        """Share of the draws that every present part gets."""
        total = sum(self.parts[name].weight for name in self._present)
        return {name: self.parts[name].weight / total for name in self._present}

    def order(self, *, seed: int) -> "Order":
        """Row of every position of the stream."""
        empty = [name for name, rows in zip(self._present, self._rows, strict=True) if not len(rows)]
        if empty:
            raise UserError(f"a limit of {self.limit} leaves nothing of source {empty[0]!r}; allowed are larger limits, and 0")
        shares = [Fraction(self.parts[name].weight) for name in self._present]
        edges = [int(CIRCLE * sum(shares[:i]) / sum(shares)) for i in range(len(shares) + 1)]
        names = [int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "little") for name in self._present]
        shift = int.from_bytes(hashlib.sha256(f"{seed}".encode()).digest()[:8], "little")
        return Order(tuple(edges), tuple(pipeline.Shuffled(len(rows), own) for rows, own in zip(self._rows, names, strict=True)), shift)


@dataclasses.dataclass(frozen=True)
class Order:
    """Rows of a weighted mixture by position: position p lies at shift + p * TURN on a circle that `edges` divides among the parts."""

    edges: tuple[int, ...]
    parts: tuple[pipeline.Shuffled, ...]
    shift: int

    def __getitem__(self, position: int) -> int:
        position = int(position)
        point = (self.shift + position * TURN) % CIRCLE
        part = next(i for i, edge in enumerate(self.edges[1:]) if point < edge)
        drawn = self.before(position, self.edges[part + 1]) - self.before(position, self.edges[part])
        return sum(p.length for p in self.parts[:part]) + self.parts[part][drawn]

    def before(self, position: int, edge: int, /) -> int:
        """Positions below `position` whose points lie below `edge`: floor(y / m) - floor((y - edge) / m) is 1 for them, else 0."""
        return floor_sum(position, CIRCLE, TURN, self.shift) - floor_sum(position, CIRCLE, TURN, self.shift - edge)


def floor_sum(n: int, m: int, a: int, b: int, /) -> int:
    """Sum of floor((a * i + b) / m) over 0 <= i < n, in O(log m) steps (the Euclidean algorithm on a lattice under a line)."""
    total = 0
    while n > 0:
        total += (n - 1) * n // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        top = a * n + b
        n, b, m, a = top // m, top % m, a, m
    return total
