"""The smoke run of launch/local.sh on one GPU or TPU: VideoMAE V2 ViT-B at full size on the embedded world of moving shapes.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax train --config=configs/smoke_accelerator.py --workdir=runs/smoke_accelerator

The model, the masks and the target are those of configs/pretrain/vit_b.py (16 frames of 224 x 224, bfloat16); batch, length
and learning rate are this project's own and small. It shows that the machine trains, not what ViT-B can do.
"""

import ml_collections

from videomae_jax import optim
from videomae_jax.config import spec
from videomae_jax.data import clips
from videomae_jax.evals import pictures, probe, reconstruction

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """ViT-B for 600 steps of 64 clips."""
    config = base.videomae_v2("B", videos=16, lr=1e-3, warmup=1, epochs=1, clip=0.0, remat="none")
    config.name = "smoke_accelerator"
    config.total = "600"
    config.data.index = "data/shapes/index.parquet"
    config.data.sampling = spec(clips.DenseRandom, stride=1)
    config.eval_data.sampling = spec(clips.DenseCentre, stride=1)
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=6e-4, minimum=1e-5, warmup="5%", unit=0))
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="", batch_size=32, clips=128)
    config.evaluators.pictures = spec(pictures.Pictures, every="", clips=4)
    config.evaluators.motion = spec(probe.Probe, label="motion", every="", batch_size=32, train=1000, test=400, seeds=3)
    config.evaluators.appearance = spec(probe.Probe, label="appearance", every="", batch_size=32, train=1000, test=400, seeds=3, primary=True)
    config.workers = 8
    config.threads = 1
    config.checkpoint.every = "50%"
    return config
