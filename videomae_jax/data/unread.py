"""A source without its files: for plans of runs whose data lie elsewhere."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from videomae_jax.data import sources


@dataclasses.dataclass(frozen=True)
class Unread:
    """The shapes of a source whose files are not here, and the number of videos it would have."""

    source: Any
    length: int
    classes = ()  # of labels and attributes no file tells the names
    attributes = ()

    @property
    def fields(self) -> Mapping[str, sources.Field]:
        """As the source declares them, without opening anything."""
        return self.source.fields

    @property
    def repeats(self) -> int:
        """Clips of a decode."""
        return self.source.repeats

    def __len__(self) -> int:
        return self.length
