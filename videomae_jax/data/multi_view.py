"""Every view of every clip of a source as one list of examples, for tests over many views."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from videomae_jax.data import decode, sources


@dataclasses.dataclass(frozen=True)
class Uncropped:
    """Frames as they are decoded."""

    def __call__(self, video: np.ndarray, /, *, size: int, rng: np.random.Generator) -> np.ndarray:
        """u8 [T H W 3], the same; `size` and `rng` are not used."""
        return video


@dataclasses.dataclass(frozen=True)
class MultiView:
    """Row t * len(source) + i is clip i of `source` in the temporal view t of `sampling`; its copies are the spatial views of `crop`.

    One pass over it starts its workers once, and decodes and resizes a temporal view once however many crops it has.
    `sampling` has fields `views` and `view`; `crop` has `views` and gives all of them by `every`.
    """

    source: Any
    sampling: Any
    crop: Any

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # what is opened stays behind

    @functools.cached_property
    def _views(self) -> tuple[Any, ...]:
        return tuple(dataclasses.replace(self.source, sampling=dataclasses.replace(self.sampling, view=t), crop=Uncropped(), repeats=1)
                     for t in range(self.sampling.views))

    @property
    def repeats(self) -> int:
        """Spatial views."""
        return self.crop.views

    @property
    def timeout(self) -> float:
        """Seconds that a read may take."""
        return getattr(self.source, "timeout", decode.TIMEOUT)

    @property
    def fields(self) -> Mapping[str, sources.Field]:
        return self.source.fields

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    def __len__(self) -> int:
        return self.sampling.views * len(self.source)

    def name(self, row: int, /) -> str:
        return self.source.name(row % len(self.source))

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        view, clip = divmod(row, len(self.source))
        example = self._views[view].read(clip, rng=rng)
        crops = self.crop.every(example.pop("video")[0], size=self.source.size)
        return {"video": crops} | {k: v if self.fields[k].shared else np.repeat(v, self.repeats, 0) for k, v in example.items()}
