"""A scaling experiment of an hour on two cores: four sizes x three budgets of VideoMAE V2 on moving shapes, to predict the largest run from the others.

    bash launch/sweep.sh --grid=configs/scaling/toy.py --root=runs/scaling_toy [--world=data/shapes]

Every number is this project's own. Encoder and decoder grow together, about three times the parameters a size; a budget has twice
the steps of the one before, and each run its own schedule, so that a short run is a finished one. Masks are of single tokens, and the
shortest budget has 1,000 steps: before that most runs have learnt the mean alone, whatever the size, and what comes after is no
continuation of it. `tests/measured.md` has the outcome, and that of two grids with shorter budgets, whose largest run lay outside its interval.
"""

import ml_collections

from videomae_jax import masking

from configs.toy import base

SIZES = {"xs": (32, 2), "s": (64, 2), "m": (96, 3), "l": (128, 5)}  # width and depth of the encoder; the decoder is half as wide, two blocks deep
STEPS = (1000, 2000, 4000)
VIDEOS = 2000  # of the world that `synthesize` writes


def cell(width: int, depth: int, steps: int) -> ml_collections.ConfigDict:
    """One run: what differs from this config."""
    overrides = {"total": str(steps)} | {f"objective.encoder.{k}": v for k, v in (("width", width), ("hidden", 4 * width), ("depth", depth), ("unroll", depth))}
    overrides |= {f"objective.decoder.{k}": v for k, v in (("width", width // 2), ("hidden", 2 * width))}
    return ml_collections.ConfigDict({"config": "configs/scaling/toy.py", "videos": VIDEOS, "overrides": tuple((k, str(v)) for k, v in overrides.items())})


def get_config() -> ml_collections.ConfigDict:
    """The smallest size, with all cells by name in `grid`."""
    config = base.shapes("scaling_toy", decoder_mask=masking.RunningCell(ratio=0.5))
    config.objective.encoder_mask.layout = "token"
    config.batch_size, config.data.repeats = 4, 8  # as many clips a step of half the decodes, which are nine tenths of the small sizes' time
    with config.ignore_type(), config.unlocked():
        for name in ("motion", "appearance"):
            del config.evaluators[name]  # the law is of the loss
        config.evaluators.reconstruction.every = ""
    config.checkpoint.every = "100%"
    config.grid = ml_collections.ConfigDict({f"{size}-{steps}": cell(*shape, steps) for size, shape in SIZES.items() for steps in STEPS})
    return config
