"""A seconds-long run on any index: for trying out a data set or a launcher, not for learning anything.

    python -m videomae_jax train --config=configs/tiny.py --workdir=runs/tiny --config.data.index=index.parquet
"""

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import pictures, reconstruction
from videomae_jax.models import vit
from videomae_jax.objectives import mae

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 with a 2-block encoder on 8 frames of 64 x 64."""
    config = base.get_config()
    config.name = "tiny"
    config.total = "20"
    config.batch_size = 4
    encoder = vit.Encoder(width=64, depth=2, heads=2, hidden=256, patch=(2, 8, 8), frames=8, size=64)
    decoder = vit.Decoder(width=48, depth=1, heads=2, hidden=192)
    config.objective = spec(mae.MAE, encoder=encoder, decoder=decoder, encoder_mask=masking.Random(ratio=0.9, layout="tube"),
                            decoder_mask=masking.RunningCell(ratio=0.5))
    config.data = spec(sources.VideoClips, index="index.parquet", frames=8, size=64, repeats=2, sampling=clips.DenseRandom(stride=4),
                       crop=transforms.MultiScaleCrop())
    config.eval_data.update({"repeats": 1, "sampling": spec(clips.DenseCentre, stride=4), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, minimum=0.0, warmup="10%", unit=0))
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="", batch_size=8, clips=16)
    config.evaluators.pictures = spec(pictures.Pictures, every="", clips=2)
    config.checkpoint.every = "10"
    config.log.every = "5"
    return config
