"""AdaMAE on the embedded world of moving shapes, and the evidence that it learns where to look.

    python -m videomae_jax synthesize data/sprites --truth --world.radius="(0.15, 0.2)"
    python -m videomae_jax train --config=configs/toy/adamae.py --workdir=runs/toy_adamae
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/adamae.py --workdir=runs/evidence_adamae

Every number is this project's own but for the ratio .95, the coefficient 1e-4 and the sampler's form: 8 frames of 32 x 32 in
tubelets of 2 x 4 x 4 give 4 x 8 x 8 tokens, of which 12 are visible. Sprites are two to three tokens across and cover about
a tenth of the frame; the truth of the world tells which tokens lie on them. The ground is plain, so its targets are 0 and easy.
"""

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, parts, transforms
from videomae_jax.evals import completion, sampling
from videomae_jax.evidence import Arm, Suite
from videomae_jax.models import sampler, vit
from videomae_jax.objectives import adamae, mae
from videomae_jax.verdicts import Claim, Requirement, Value

from configs.toy import base

UNIFORM = masking.Random(ratio=0.95, layout="token", truncate="visible")
PROTOCOL = """adaptive: AdaMAE. unlearned: the same with a sampling loss of weight 0, so that p stays that of the untrained sampler but for
weight decay. random: no sampler, a uniform draw of as many tokens. All arms: the same clips, 1500 steps, encoder and decoder, 12 visible of
256 tokens. The paper finds that the sampler sends tokens where the reconstruction is bad and the content moves, and that this trains
a better encoder. Measured on held-out clips: p on sprites over p on the ground, from the truth of the world (ratio, margin .1);
Spearman's correlation over tokens of p with the error map under uniform masks (margin .1); the loss of the adaptive and the random
arm under the same uniform masks, of which the random arm was trained with (at most .02 more); a ridge probe for the shape that
moves on the mean token of the frozen encoder (points, margin 0; models of this size do not learn the direction of motion), testable
if it beats the untrained encoder by 5 points in the random arm. All margins were fixed before the first run, but for those of favours,
the same ratio against 1, margin 0, which came after it."""
LEARNT = Requirement(Value("random", "appearance/trained"), Value("random", "appearance/untrained"), 5.0)


def models() -> tuple[vit.Encoder, vit.Decoder]:
    """The encoder of the toy configs on smaller patches, and its decoder."""
    encoder = vit.Encoder(width=base.WIDTH, depth=base.DEPTH, heads=base.HEADS, hidden=4 * base.WIDTH, patch=(2, 4, 4), frames=8, size=base.SIZE,
                          unroll=base.DEPTH)
    return encoder, vit.Decoder(width=64, depth=2, heads=2, hidden=256, unroll=2)


def get_config() -> ml_collections.ConfigDict:
    """Four encoder blocks of width 128, a sampler of one block of the same width."""
    config = base.world("toy_adamae", frames=8, stride=2)
    config.total = "1500"
    encoder, decoder = models()
    config.objective = spec(adamae.AdaMAE, encoder=encoder, decoder=decoder, encoder_mask=UNIFORM,
                            sampler=sampler.Sampler(heads=4, hidden=4 * base.WIDTH))
    config.data = spec(parts.PartClips, index="data/sprites/index.parquet", frames=8, size=base.SIZE, repeats=4, sampling=clips.DenseRandom(stride=2),
                       crop=transforms.MultiScaleCrop(), array="objects")
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, minimum=1e-5, warmup="5%", unit=0), clip=1.0)
    config.evaluators.uniform = spec(completion.Completion, every="50%", clips=400, mask=UNIFORM)
    config.evaluators.sampling = spec(sampling.Sampling, every="25%", clips=400, mask=UNIFORM)
    random = mae.MAE(encoder=encoder, decoder=decoder, encoder_mask=UNIFORM, decoder_mask=masking.Hidden())
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("reconstruction", "uniform"),
        arms=(Arm("adaptive"), Arm("unlearned", (("objective.coefficient", 0.0),)), Arm("random", (("objective", random),))),
        claims=(Claim("objects", "learning sends p to the sprites (ratio)", Value("adaptive", "sampling/object_ratio"),
                      Value("unlearned", "sampling/object_ratio"), margin=0.1),
                Claim("favours", "p is higher on the sprites than on the ground (ratio above 1)", Value("adaptive", "sampling/object_ratio"), 1.0),
                Claim("errors", "learning makes p follow the error (rank correlation)", Value("adaptive", "sampling/rank_correlation"),
                      Value("unlearned", "sampling/rank_correlation"), margin=0.1),
                Claim("shared_loss", "under uniform masks the adaptive loss is no higher than the random one", Value("random", "uniform/loss"),
                      Value("adaptive", "uniform/loss"), kind="noninferior", margin=0.02),
                Claim("features", "adaptive masks train a better encoder than uniform ones (points)", Value("adaptive", "appearance/trained"),
                      Value("random", "appearance/trained"), requires=(LEARNT,))))
    return config
