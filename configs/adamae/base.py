"""What the AdaMAE configs share; [script] marks numbers of its scripts, [code] defaults of its code (commit aa19850)."""

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import completion, reconstruction, sampling
from videomae_jax.models import sampler, vit
from videomae_jax.objectives import adamae

from configs import base

UNIFORM = masking.Random(ratio=0.95, layout="token", truncate="visible")  # 78 of 1568 tokens visible [script, code]


def adamae_of(data: str, *, stride: int) -> ml_collections.ConfigDict:
    """AdaMAE ViT-B on one data set, 16 frames of 224 x 224 at `stride`.

    Mask ratio .95, decoder 4 x 384 with 6 heads, 64 GPUs x 32 clips = 2048, 800 epochs, 40 of warm-up, AdamW (.9, .95)
    [script]; LR 1.5e-4 per 256 clips falling to 1e-5 per 256, weight decay .05 on matrices and on the sampler's positions,
    no clipping, crops of [1, .875, .75, .66] without mirror images, targets normalised by channel [code]. Sampler: one block,
    8 heads, MLP x 4, dropout .1, its loss times 1e-4 with log p [code]; the paper's formula has p: --config.objective.score=probability.

    Deviations: fp16 with loss scaling there, bfloat16 with float32 parameters, logits, loss and softmax here; the scripts run
    one epoch more than they name, which works around an index error of their schedule. AdamW's steps do not depend on the
    scale of a gradient well above its eps of 1e-8, so the coefficient sets how much the sampling loss moves the embedding,
    hardly how fast the sampler learns.
    """
    config = base.get_config()
    config.name = f"adamae_{data}_B"
    config.total = "800ep"
    config.batch_size = 2048
    encoder, decoder = vit.encoder("B", dtype="bfloat16"), vit.decoder("B", dtype="bfloat16")
    network = sampler.Sampler(heads=8, hidden=3072, dropout=0.1, dtype="bfloat16")
    config.objective = spec(adamae.AdaMAE, encoder=encoder, decoder=decoder, encoder_mask=UNIFORM, sampler=network, coefficient=1e-4, score="log")
    config.data = spec(sources.VideoClips, index="index.parquet", frames=16, size=224, repeats=1, sampling=clips.DenseRandom(stride=stride),
                       crop=transforms.MultiScaleCrop())
    config.eval_data.update({"sampling": spec(clips.DenseCentre, stride=stride), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1.5e-4, minimum=1e-5, warmup="40ep"), b1=0.9, b2=0.95,
                                  weight_decay=0.05)
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="5%", batch_size=64, clips=256)
    config.evaluators.uniform = spec(completion.Completion, every="5%", batch_size=64, clips=256, mask=UNIFORM)
    config.evaluators.sampling = spec(sampling.Sampling, every="5%", batch_size=64, clips=256, mask=UNIFORM)
    config.workers = 10
    return config
