"""What the rows of a recipe promise about files of any frame rate."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from videomae_jax import config as configs
from videomae_jax.data import clips


def last_as_long(config: Any, *, seconds: float) -> None:
    """16 frames span the seconds in files of 25, 30 and 60 frames a second; evaluation takes the middle of the video."""
    assert config.data.frames == 16
    for fps in (25, 30, 60):
        for node in (config.data.sampling, config.eval_data.sampling):
            ids = clips.at(configs.build(node), fps=Fraction(fps)).ids(20 * fps, clip=16, rng=np.random.default_rng(0))
            assert (ids[-1] - ids[0]) / fps == pytest.approx(seconds, abs=1 / fps), (fps, node)
        assert (ids[0] + ids[-1]) / 2 / fps == pytest.approx(10, abs=2 / fps)
