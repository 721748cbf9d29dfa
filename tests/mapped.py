"""Noise with part maps, as a batch and as a source, for tests of recipes that read them; parameters and terms to test with."""

import dataclasses
from typing import Any

import jax
import numpy as np

from videomae_jax import losses, parallel
from videomae_jax.data import sources


def batch(maps: np.ndarray, /, *, seed: int = 0, valid: Any = None) -> dict[str, Any]:
    """A host batch of noise for maps u8 [B T H W] with the bookkeeping of every batch."""
    rows = len(maps)
    return {"video": np.random.default_rng(seed).integers(0, 256, (*maps.shape, 3), np.uint8), "parts": maps,
            "key": np.stack([np.arange(rows), np.zeros(rows)], 1).astype(np.uint32), "valid": np.ones(rows, bool) if valid is None else np.asarray(valid),
            "label": np.zeros(rows, np.int32), "row": np.arange(rows, dtype=np.int32), "fault": np.zeros(rows, np.int32)}


@dataclasses.dataclass(frozen=True)
class Mapped(sources.NoiseClips):
    """Noise with the part maps u8 [1 T H W] that a test gives each row."""

    @property
    def fields(self) -> dict[str, sources.Field]:
        return super().fields | {"parts": sources.Field((self.frames, self.size, self.size), "uint8", "labels")}

    def parts(self, row: int, /) -> np.ndarray:
        """The maps of a row."""
        raise NotImplementedError

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return super().read(row, rng=rng) | {"parts": self.parts(row)}


def parameters(objective: Any, example: Any, /) -> Any:
    """Initial parameters, each moved by a tenth of a standard normal: none at 0 or 1."""
    params = jax.jit(lambda: parallel.unbox(objective.init(jax.random.key(5), example)))()
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    return jax.tree.unflatten(tree, [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves])


def value(out: Any, term: str, /) -> Any:
    """One term of a loss, as the trainer adds it."""
    return losses.value({term: out.terms[term]}, denominators=losses.denominators({term: out.terms[term]}))
