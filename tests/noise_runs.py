"""Runs and batches of noise that tests of distillation and of probes share: clips of 4 frames of 16 pixels."""

import pathlib
from typing import Any

import jax
import numpy as np

from videomae_jax import config as configs
from videomae_jax.assembly import Assembly, assemble
from videomae_jax.data import sources
from videomae_jax.evals.base import Context

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLIP = {"patch": (2, 8, 8), "frames": 4, "size": 16}


def run_of(objective: Any, /, *, optimizer: Any, mesh: tuple[int, int, int] = (1, 1, 1)) -> Assembly:
    """A run of four steps of four clips on a mesh (data, fsdp, tensor) of the first devices."""
    config = configs.load(str(ROOT / "configs" / "tiny.py"))
    config.unlock()
    config.objective = configs.plain(objective)
    config.data = configs.spec(sources.NoiseClips, frames=4, size=16, length=16)
    config.batch_size, config.total = 4, "4"
    config.mesh = dict(zip(("data", "fsdp", "tensor"), mesh, strict=True)) | {"replicated": 1.0}
    config.optimizers.main = optimizer
    return assemble(config, devices=jax.devices()[:int(np.prod(mesh))])


def batch(labels: tuple[int, ...], /, *, valid: tuple[bool, ...] = ()) -> dict[str, np.ndarray]:
    """Random clips with these labels, -1 = none; all of them `valid` unless told."""
    rows = len(labels)
    video = np.random.default_rng(1).integers(0, 256, (rows, 4, 16, 16, 3), np.uint8)
    return {"video": video, "label": np.asarray(labels, np.int32), "key": np.stack([np.arange(rows), np.zeros(rows)], -1).astype(np.uint32),
            "valid": np.asarray(valid or [True] * rows), "row": np.arange(rows, dtype=np.int32), "fault": np.zeros(rows, np.int32)}


class Noise(Context):
    """A context whose splits are six clips, labelled by turns 0 and 1."""

    def source(self, split: str, /) -> Any:
        """They."""
        return sources.NoiseClips(frames=4, size=16, length=6)


def clips_of(source: Any, /) -> np.ndarray:
    """All clips of a source without draws, u8 [N T S S 3]."""
    return np.stack([source.read(row, rng=np.random.default_rng(0))["video"][0] for row in range(len(source))])
