"""VideoMAE V2 on the embedded world of moving shapes, and the evidence for dual masking at toy size.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax train --config=configs/toy/videomae_v2.py --workdir=runs/toy_v2
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/videomae_v2.py --workdir=runs/evidence_v2

Every number is this project's own: 8 frames of 32 x 32 in tubelets of 2 x 8 x 8 give 4 x 4 x 4 tokens, of which 16 are seen
by the encoder and 32 decoded. The ratio .75 leaves a visible patch within reach of every hidden one.
"""

import ml_collections

from videomae_jax import masking
from videomae_jax.config import spec
from videomae_jax.evidence import Arm, Suite
from videomae_jax.verdicts import Claim, Requirement, Value

from configs.toy import base

# Its words about the paper were corrected after the runs of 2026-11-26; nothing else of it was.
PROTOCOL = """Every arm trains the same encoder for 1500 steps on the same clips; only what is decoded and where the loss lies differs.
v1 (a ratio of 0) and dual (.5) have 5 seeds, the controls 3. Measured: accuracy in percent of a ridge probe for the shape that moves on
the mean token of the frozen encoder (1000 training and 400 held-out clips), because models of this size do not learn the direction of
motion, which is reported beside it. Recalled, not checked in the paper: V1 and dual masking at .5 equal within .13 points on SSv2, at
.25 within .06 and at .75 within .27; 3.4 points less when the loss includes tokens that the encoder saw, 5.3 less for random decoder
masks and .4 less for frames. The margin of equality is 5 points, about a fifth of the 24 that pretraining adds to this probe in the
smoke run: dual masking would then keep four fifths of it. Margins were fixed before the first run: 5 points for equality, 0 for better;
frame masks are reported without a claim, because .4 points are beyond this size. A claim about equality needs an encoder that learnt:
V1's probe must beat that of the untrained encoder by 5 points. Steps of v1, dual and dual_75 are timed side by side on a batch that
lies in memory, with the peak bytes of the compiled step, and their probes at every quarter of the training stand against that time."""
MARGIN = 5.0  # points
LEARNT = Requirement(Value("v1", "appearance/trained"), Value("v1", "appearance/untrained"), 5.0)


def probe(arm: str) -> Value:
    """The measurement of all claims."""
    return Value(arm, "appearance/trained")


def get_config() -> ml_collections.ConfigDict:
    """Running cell at .5; the arms differ in what is decoded and where the loss lies."""
    config = base.shapes("toy_videomae_v2", decoder_mask=masking.RunningCell(ratio=0.5))
    config.total = "1500"
    config.evaluators.appearance.every = "25%"  # for the curve
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("appearance", "reconstruction", "motion"), costs=("v1", "dual", "dual_75"), curve="appearance/trained",
        arms=(Arm("v1", (("objective.decoder_mask", masking.Hidden()),), seeds=5), Arm("dual", seeds=5),
              Arm("dual_25", (("objective.decoder_mask", masking.RunningCell(ratio=0.25)),)),
              Arm("dual_75", (("objective.decoder_mask", masking.RunningCell(ratio=0.75)),)),
              Arm("all_decoded", (("objective.loss_on", "decoded"),)),
              Arm("random", (("objective.decoder_mask", masking.RandomDecoded(ratio=0.5, layout="token")),)),
              Arm("frame", (("objective.decoder_mask", masking.RandomDecoded(ratio=0.5, layout="frame")),))),
        claims=(Claim("equal", "dual masking .5 probes like V1 (points)", probe("dual"), probe("v1"), "equivalent", MARGIN, (LEARNT,)),
                Claim("equal_25", "dual masking .25 probes like V1 (points)", probe("dual_25"), probe("v1"), "equivalent", MARGIN, (LEARNT,)),
                Claim("equal_75", "dual masking .75 probes like V1 (points)", probe("dual_75"), probe("v1"), "equivalent", MARGIN, (LEARNT,)),
                Claim("hidden", "loss on hidden tokens alone beats all decoded ones (points)", probe("dual"), probe("all_decoded")),
                Claim("cell", "running cell beats random decoder masks (points)", probe("dual"), probe("random"))))
    return config
