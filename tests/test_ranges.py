"""Fields of configs that are numbers: what lies outside their range is one line that names field, value and what is allowed."""

import math
from typing import Any

import pytest

from videomae_jax import optim
from videomae_jax.data import augment, clips, collisions, faces, shapes, spectrogram, transforms
from videomae_jax.errors import UserError

SCHEDULE = optim.Schedule(base=1e-3)


@pytest.mark.parametrize(("kind", "fields", "message"), [
    (optim.Schedule, {"base": -1e-3}, "base is -0.001; allowed are 0 and more"),
    (optim.Schedule, {"base": math.nan}, "base is nan; allowed are 0 and more"),
    (optim.Schedule, {"base": math.inf}, "base is inf; allowed are 0 and more"),
    (optim.Schedule, {"base": 1e-3, "minimum": -1.0}, "minimum is -1.0"),
    (optim.Schedule, {"base": 1e-3, "unit": -256}, "unit is -256"),
    (optim.AdamW, {"schedule": SCHEDULE, "b2": 1.5}, "b2 is 1.5; allowed are 0 to 1"),
    (optim.AdamW, {"schedule": SCHEDULE, "weight_decay": -0.05}, "weight_decay is -0.05"),
    (optim.AdamW, {"schedule": SCHEDULE, "clip": -1.0}, "clip is -1.0"),
    (optim.AdamW, {"schedule": SCHEDULE, "layer_decay": 1.2}, "layer_decay is 1.2; allowed are 0 to 1"),
    (optim.Grid, {"schedule": SCHEDULE, "rates": (0.1, -0.1)}, r"rates is \(0.1, -0.1\)"),
    (transforms.MultiScaleCrop, {"scales": (1.0, 1.5)}, r"scales is \(1.0, 1.5\); allowed are 0.01 to 1"),
    (transforms.MultiScaleCrop, {"scales": ()}, "scales are none"), (transforms.MultiScaleCrop, {"scales": ("a",)}, r"scales is \('a',\); allowed are 0.01 to 1"),
    (optim.Schedule, {"base": "x"}, "base is 'x'; allowed are 0 and more"),
    (transforms.RandomResizedCrop, {"flip": 2.0}, "flip is 2.0; allowed are 0 to 1"),
    (augment.AugmentedCrop, {"flip": 2.0}, "flip is 2.0; allowed are 0 to 1"),
    (augment.AugmentedCrop, {"flip": math.nan}, "flip is nan; allowed are 0 to 1"),
    (clips.PerSecond, {"rate": math.inf}, "rate is inf; allowed are 0.01 to 1000"),
    (clips.PerSecond, {"rate": 1e-4}, "rate is 0.0001; allowed are 0.01 to 1000"),
    (spectrogram.LogMel, {"spread": 0.0}, "LogMel: spread is 0.0; allowed are numbers above 0"),
    (spectrogram.LogMel, {"spread": math.inf}, "LogMel: spread is inf"),
    (spectrogram.LogMel, {"floor": 0.0}, "LogMel: floor is 0.0; allowed are numbers above 0"),
    (spectrogram.LogMel, {"floor": math.nan}, "LogMel: floor is nan"),
    (shapes.Shapes, {"sprites": 0}, "sprites is 0; allowed are 1 to 100"),
    (shapes.Shapes, {"fps": 0}, "fps is 0"),
    (shapes.Shapes, {"speed": (0.03, 0.01)}, r"speed is \(0.03, 0.01\); allowed are numbers that rise"),
    (faces.Faces, {"forged": 1.5}, "forged is 1.5; allowed are 0 to 1"),
    (faces.Faces, {"jitter": -1}, "jitter is -1"),
    (collisions.Collisions, {"frames": 0}, "frames is 0"),
    (collisions.Collisions, {"audio_rate": 100}, "audio_rate is 100; allowed are 8000 to 96000")])
def test_what_lies_outside_is_named(kind: Any, fields: dict[str, Any], message: str) -> None:
    """Whatever such a value would do later, in a worker, in a compiled step or in silence, it never gets there."""
    with pytest.raises(UserError, match=message):
        kind(**fields)


@pytest.mark.parametrize(("kind", "fields"), [
    (optim.Schedule, {"base": 0.0, "minimum": 0.0, "unit": 0}), (optim.AdamW, {"schedule": SCHEDULE, "b1": 0.0, "layer_decay": 1.0}),
    (clips.PerSecond, {"rate": 0.01}), (clips.PerSecond, {"rate": 1000.0}), (augment.AugmentedCrop, {"flip": 1.0}),
    (transforms.MultiScaleCrop, {"scales": (1.0,), "distort": 0}), (shapes.Shapes, {"speed": (0.0, 0.0)})])
def test_the_ends_are_allowed(kind: Any, fields: dict[str, Any]) -> None:
    """Each of them is of use: a rate of 0 freezes, and what stands still is a world too."""
    assert all(getattr(kind(**fields), name) == value for name, value in fields.items())
