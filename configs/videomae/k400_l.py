"""VideoMAE ViT-L on Kinetics-400: batch 64 x 8 = 512, peak LR 3e-4, 1600 epochs, decoder of 12 blocks [script]; fine-tuned 85.2 top-1 [model zoo].

    python -m videomae_jax train --config=configs/videomae/k400_l.py --workdir=runs/videomae_k400_l --config.data.index=index.parquet
"""

import ml_collections

from configs.videomae import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE ViT-L on Kinetics-400: the row of the scripts named above."""
    return base.videomae("k400", "L", batch=512, epochs=1600)
