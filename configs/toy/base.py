"""What the toy configs share: the world of moving shapes, one encoder, one budget; every number is this project's own."""

from typing import Any

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import probe, reconstruction
from videomae_jax.models import vit
from videomae_jax.objectives import mae

from configs import base

WIDTH, DEPTH, HEADS = 128, 4, 4  # encoder
PATCH, SIZE = (2, 8, 8), 32


def shapes(name: str, *, decoder_mask: Any) -> ml_collections.ConfigDict:
    """VideoMAE on 8 frames at stride 2: 2000 steps of 8 videos x 4 crops, tube mask .75 (16 of 64 tokens)."""
    config = world(name, frames=8, stride=2)
    encoder = vit.Encoder(width=WIDTH, depth=DEPTH, heads=HEADS, hidden=4 * WIDTH, patch=PATCH, frames=8, size=SIZE, unroll=DEPTH)
    decoder = vit.Decoder(width=64, depth=2, heads=2, hidden=256, unroll=2)
    config.objective = spec(mae.MAE, encoder=encoder, decoder=decoder, encoder_mask=masking.Random(ratio=0.75, layout="tube"),
                            decoder_mask=decoder_mask)
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=3e-3, minimum=1e-5, warmup="5%", unit=0), clip=1.0)
    return config


def world(name: str, *, frames: int, stride: int) -> ml_collections.ConfigDict:
    """Data, length and evaluators; the objective and the optimiser are left to the caller."""
    config = base.get_config()
    config.name = name
    config.total = "2000"
    config.batch_size = 8
    config.data = spec(sources.VideoClips, index="data/shapes/index.parquet", frames=frames, size=SIZE, repeats=4,
                       sampling=clips.DenseRandom(stride=stride), crop=transforms.MultiScaleCrop())
    config.eval_data.update({"repeats": 1, "sampling": spec(clips.DenseCentre, stride=stride), "crop": spec(transforms.CentreCrop)})
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="50%", batch_size=64, clips=256)
    # Fixed before any run: ridge on the mean token, penalty chosen on a fifth of the training clips, three bootstrap draws.
    config.evaluators.motion = spec(probe.Probe, label="motion", every="", train=1000, test=400, seeds=3)
    config.evaluators.appearance = spec(probe.Probe, label="appearance", every="", train=1000, test=400, seeds=3)
    config.checkpoint.every = "25%"
    config.log.every = "50"
    return config
