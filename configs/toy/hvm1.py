"""HVM-1 on the embedded world of moving shapes, and the evidence that it completes the middle of a clip.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax train --config=configs/toy/hvm1.py --workdir=runs/toy_hvm1
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/hvm1.py --workdir=runs/evidence_hvm1

Every number is this project's own: 8 x 4 x 4 tokens, of which 32 are visible in training (.75, not .9: a quarter of 16 places
leaves a visible patch within reach) and both ends, 64 tokens, in the completion. Windows are cut at random from clips of 24
frames, not from one long stream; for that write `synthesize data/stream --world.frames=2400 --train=16 --val=16 --test=0`,
whose files are of one motion each. Clipping is 1, not .1, the constant LR 1e-3, not 1e-4.
"""

import ml_collections

from videomae_jax import frame_targets, masking, optim
from videomae_jax.config import spec
from videomae_jax.evals import completion
from videomae_jax.evidence import Arm, Suite
from videomae_jax.models import mae_st
from videomae_jax.objectives import mae
from videomae_jax.verdicts import Claim, Value

from configs.toy import base

PROTOCOL = """One arm, 1800 steps. 16 frames, of which the middle 8 are hidden; predicted from both ends by the model and by predictors without
training: linear interpolation in time of every pixel, and the nearest visible frame. Measured: PSNR over all hidden pixels of 256
held-out clips, model minus predictor under the same mask. In training the mask is random, so this mask is new to the model. The
margin is 0 dB, fixed before the first run. The completion of the second half from the first is in the table."""


def get_config() -> ml_collections.ConfigDict:
    """MAE-ST's model on raw pixels of all frames, constant LR without warm-up."""
    config = base.world("toy_hvm1", frames=16, stride=1)
    encoder = mae_st.Encoder(width=base.WIDTH, depth=base.DEPTH, heads=base.HEADS, hidden=4 * base.WIDTH, patch=base.PATCH, frames=16, size=base.SIZE,
                             unroll=base.DEPTH)
    decoder = mae_st.Decoder(width=64, depth=2, heads=2, hidden=256, unroll=2)
    config.objective = spec(mae.MAE, encoder=encoder, decoder=decoder, encoder_mask=masking.Random(ratio=0.75, layout="token", truncate="visible"),
                            decoder_mask=masking.Hidden(), target=frame_targets.LoaderPixels(normalise="none"))
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, minimum=0.0, warmup="0", unit=0, shape="constant"), clip=1.0)
    config.total = "1800"
    config.evaluators.centre = spec(completion.Completion, every="50%", mask=masking.Centre(ratio=0.5))
    config.evaluators.future = spec(completion.Completion, every="", mask=masking.Future(ratio=0.5))
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("reconstruction", "future"), arms=(Arm("hvm1"),),
        claims=(Claim("linear", "completion beats linear interpolation in time (dB)", Value("hvm1", "centre/psnr"), Value("hvm1", "centre/psnr_linear")),
                Claim("copy", "completion beats the nearest visible frame (dB)", Value("hvm1", "centre/psnr"), Value("hvm1", "centre/psnr_copy"))))
    return config
