"""Several yes-or-no labels of one clip."""

import dataclasses

import numpy as np

from videomae_jax.data import sources
from videomae_jax.errors import UserError

ANSWERS = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "0": 0, "0.0": 0, "false": 0, "no": 0, "": -1, "none": -1}


@dataclasses.dataclass(frozen=True)
class AttributeClips(sources.VideoClips):
    """Clips with attributes: `video` and `label` of VideoClips, bit for bit, and `attributes` i32 [K A].

    `attributes` names A columns of the index that say 1, true or yes, 0, false or no, or nothing, in any case of letters;
    they become 1, 0 and -1 (unknown).
    """

    attributes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.attributes or len(set(self.attributes)) != len(self.attributes):
            raise UserError(f"attributes {', '.join(self.attributes) or '(none)'}; allowed are one column of the index and more, each once")

    @property
    def fields(self) -> dict[str, sources.Field]:
        return super().fields | {"attributes": sources.Field((len(self.attributes),), "int32", "static")}

    def beside(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """`attributes` of a row. Raises UserError for a column that is missing or says something else."""
        record, found = self.record(row), []
        for name in self.attributes:
            if name not in record:
                raise UserError(f"index {self.index} has no column {name!r} of an attribute; it has {', '.join(record)}")
            answer = "" if record[name] is None else str(record[name]).strip().lower()
            if answer not in ANSWERS:
                raise UserError(f"column {name!r} of index {self.index} says {record[name]!r} of {self.name(row)}; allowed are {', '.join(ANSWERS)}")
            found.append(ANSWERS[answer])
        return {"attributes": np.tile(np.asarray(found, np.int32), (self.repeats, 1))}
