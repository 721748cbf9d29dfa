"""Masked-video-autoencoder pretraining in JAX: VideoMAE V2 and its relatives under one sharded trainer.

`videomae_jax.load(PATH)` opens a run directory or weights of others for use in Python (`api.Model`).
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first asked for, so that the command line answers without jax."""
    if name == "load":
        from videomae_jax.api import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
