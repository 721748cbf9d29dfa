"""What became of every array of a conversion: an itemised account that refuses whatever was not allowed by name."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from videomae_jax.errors import UserError

CLASSES = {
    "missing": "leaves of the model without arrays, which keep the values of a fresh model",
    "unexpected": "arrays that no leaf of the model takes",
    "interpolated": "position tables resized to another grid",
    "zero": "arrays whose every value is 0: transformers 5.8 to 5.17 load the q and v biases so",
}
SHOWN = 8  # names a class lists on the screen; the JSON file has them all


@dataclasses.dataclass(frozen=True)
class Report:
    """Names by class. `loaded` arrays keep their layout, `reshaped` ones are transposed, split or joined without loss, `inert` ones
    change no output and are left aside. `missing` and `interpolated` hold paths of our tree, all others names of the source.
    """

    loaded: tuple[str, ...]
    reshaped: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    interpolated: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {k: list(v) for k, v in dataclasses.asdict(self).items()}

    def lines(self) -> list[str]:
        """For people: a line a class, with the first names of those that lost or made up anything."""
        found = [f"{name:<12} {len(names)}{f': {shown(names)}' if names and name not in ('loaded', 'reshaped') else ''}"
                 for name, names in self.as_dict().items() if name != "notes"]
        return found + [f"note         {note}" for note in self.notes]

    def check(self, allow: Mapping[str, Sequence[str]], /) -> None:
        """Raises UserError with every class that holds a name which `allow` {class: patterns} does not cover."""
        problems = []
        for kind, meaning in CLASSES.items():
            strays = [n for n in getattr(self, kind) if not any(re.fullmatch(p, n) for p in allow.get(kind, ()))]
            if strays:
                problems.append(f"{len(strays)} {kind} ({meaning}): {shown(strays)}; accept them with --allow={kind} or --allow={kind}:PATTERN")
        if problems:
            raise UserError(f"the weights do not fit: {' | '.join(problems)}")


def shown(names: Sequence[str], /) -> str:
    """The first names."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


def allowances(words: Sequence[str], /) -> dict[str, list[str]]:
    """{class: patterns} of "missing" and "missing:PATTERN" words. Raises UserError for another class or no pattern."""
    found: dict[str, list[str]] = {}
    for word in words:
        kind, _, pattern = word.partition(":")
        if kind not in CLASSES:
            raise UserError(f"--allow={word}: {kind!r} is no class of differences; allowed are {', '.join(CLASSES)}, each with :PATTERN or without")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(f"--allow={word}: {pattern!r} is no regular expression ({error})") from error
        found.setdefault(kind, []).append(pattern or ".*")
    return found
