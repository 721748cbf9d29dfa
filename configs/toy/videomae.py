"""VideoMAE (V1) on the embedded world of moving shapes, and the evidence that its pretraining helps at toy size.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax train --config=configs/toy/videomae.py --workdir=runs/toy_videomae
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/videomae.py --workdir=runs/evidence_videomae

Every number is this project's own: 4 x 4 x 4 tokens, 16 seen by the encoder, 48 decoded.
"""

import ml_collections

from videomae_jax import masking
from videomae_jax.config import spec
from videomae_jax.evals import completion
from videomae_jax.evidence import Arm, Suite
from videomae_jax.verdicts import Claim, Value

from configs.toy import base

PROTOCOL = """tube, random, frame: the same model, clips, 1500 steps and 16 visible of 64 tokens; only the layout of the encoder's mask
differs. The paper claims that tube masks remove the shortcut through time: random masks must reach a lower loss without better
features. Measured: a ridge probe for the shape that moves on the mean token of the frozen encoder (1000 training and 400 held-out
clips), because models of this size do not learn the direction of motion; the reconstruction loss of every arm under its own mask, for
the shortcut, and under one common tube mask, in the table. Margins fixed before the first run: 0 for a loss, 5 points for what
pretraining adds to a probe and for not worse (about a fifth of what it adds in the smoke run). Whether fine-tuning gains is the
evidence of configs/evidence.py."""


def get_config() -> ml_collections.ConfigDict:
    """Tube mask .75, all hidden tokens decoded."""
    config = base.shapes("toy_videomae", decoder_mask=masking.Hidden())
    config.evaluators.tube = spec(completion.Completion, every="", mask=masking.Random(ratio=0.75, layout="tube"))
    config.total = "1500"
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("reconstruction", "tube"),
        arms=(Arm("tube"), Arm("random", (("objective.encoder_mask.layout", "token"),)), Arm("frame", (("objective.encoder_mask.layout", "frame"),))),
        claims=(Claim("features", "frozen features beat the untrained encoder's by 5 (points)", Value("tube", "appearance/trained"),
                      Value("tube", "appearance/untrained"), "superior", 5.0),
                Claim("shortcut", "random masks reach a lower loss than tubes (loss)", Value("tube", "reconstruction/loss"), Value("random", "reconstruction/loss")),
                Claim("tube", "tubes probe no worse than random masks (points)", Value("tube", "appearance/trained"), Value("random", "appearance/trained"),
                      "noninferior", 5.0)))
    return config
