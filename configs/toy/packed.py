"""What packing costs: the same training on packed clips and on the files they were made of, at equal steps.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax pack data/shapes/index.parquet --out=data/shapes_packed --frames=8 --stride=2 --windows=4
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/packed.py --workdir=runs/evidence_packed

Every number is this project's own: VideoMAE V2 on the world of moving shapes for 1000 steps, four passes over 2000 videos. One arm
reads a random window of every file, the other one of its four packed ones (x264, crf 20, the defaults of `pack`). The protocol, fixed
before the first run, is wrong about one thing: the margin of equality of configs/toy/videomae_v2.py is 5 points, not the 3 used here.
"""

import ml_collections

from videomae_jax import masking
from videomae_jax.config import spec
from videomae_jax.evidence import Arm, Suite
from videomae_jax.verdicts import Claim, Requirement, Value

from configs.toy import base

PROTOCOL = """raw and packed train the same encoder and decoder for the same 1000 steps, in the same order of videos and under the same masks
by seed; what differs is where windows may lie (anywhere, or at four places of a video), the draws of crops, and that packed pixels were
encoded once more. Both are measured on the same raw held-out clips: the reconstruction loss, and a ridge probe for the shape that moves on the
mean token of the frozen encoder (1000 training and 400 held-out clips). Margins fixed before the first run: the losses are equal within
.01 (the predict-zero line of these clips is .85), the probes within 3 points, the margin of equality of configs/toy/videomae_v2.py. A claim
about equal probes needs an encoder that learnt: that of raw must beat the untrained one by 5 points."""
LEARNT = Requirement(Value("raw", "appearance/trained"), Value("raw", "appearance/untrained"), 5.0)


def get_config() -> ml_collections.ConfigDict:
    """Running cell at .5 on files; evaluation reads files in both arms."""
    config = base.shapes("toy_packed", decoder_mask=masking.RunningCell(ratio=0.5))
    config.total = "1000"
    config.eval_data.update({"__symbol__": "videomae_jax.data.sources.VideoClips", "index": "data/shapes/index.parquet"})
    packed = (("data.__symbol__", "videomae_jax.data.packed.PackedClips"), ("data.index", "data/shapes_packed/index.parquet"))
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, arms=(Arm("raw"), Arm("packed", packed)),
        claims=(Claim("loss", "packed reaches the held-out loss of raw (loss)", Value("packed", "reconstruction/loss"), Value("raw", "reconstruction/loss"),
                      "equivalent", 0.01),
                Claim("probe", "packed probes like raw (points)", Value("packed", "appearance/trained"), Value("raw", "appearance/trained"), "equivalent",
                      3.0, (LEARNT,))))
    return config
