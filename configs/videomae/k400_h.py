"""VideoMAE ViT-H on Kinetics-400: batch 64 x 16 = 1024, peak LR 6e-4, 1600 epochs, decoder 12 x 640, remat [script]; fine-tuned 86.6 top-1 [model zoo].

    python -m videomae_jax train --config=configs/videomae/k400_h.py --workdir=runs/videomae_k400_h --config.data.index=index.parquet
"""

import ml_collections

from configs.videomae import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE ViT-H on Kinetics-400: the row of the scripts named above."""
    return base.videomae("k400", "H", batch=1024, epochs=1600, remat="full")
