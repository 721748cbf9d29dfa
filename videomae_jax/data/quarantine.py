"""Reads that are taken to fail, so that a resumed run repeats one in which they did: a stalled mount or a broken connection need not meet them again."""

import dataclasses
from collections.abc import Mapping

from videomae_jax.data.decode import PASSING, STAGES

SHIFT = 8  # bits of a `fault` that hold the stage; one for each substitute follows


@dataclasses.dataclass(frozen=True)
class Quarantine:
    """`rows` {row: position from which on it is not read} and `reads` {position mod 2^32: {attempt: stage at which it failed}}.

    Attempt 0 reads the row that a position asks for, attempt n its substitute n.
    """

    rows: dict[int, int] = dataclasses.field(default_factory=dict)
    reads: dict[int, dict[int, str]] = dataclasses.field(default_factory=dict)

    def failed(self, row: int, /, *, position: int, attempt: int) -> tuple[str, str] | None:
        """(stage, cause) of a read that is not made; None where it is."""
        if found := self.reads.get(position % 2**32, {}).get(attempt):
            return found, f"not read at position {position}, where it failed in an earlier call"
        if position >= self.rows.get(row, position + 1):
            return "timeout", f"not read from position {self.rows[row]} on, for it took too long"
        return None


def fault(stages: Mapping[int, str], /) -> int:
    """The `fault` of an example from the stages at which attempts 0, 1, ... failed: that of the first, and which substitutes failed at one of PASSING."""
    return 1 + STAGES.index(stages[0]) + sum(1 << SHIFT + attempt - 1 for attempt, stage in stages.items() if attempt and stage in PASSING) if stages else 0


def stage(fault: int, /) -> str:
    """The stage at which the row itself failed."""
    return STAGES[(fault & (1 << SHIFT) - 1) - 1]


def attempts(fault: int, /) -> list[int]:
    """The attempts that failed for a reason that need not repeat."""
    substitutes = fault >> SHIFT
    return [0] * (stage(fault) in PASSING) + [n + 1 for n in range(substitutes.bit_length()) if substitutes >> n & 1]
