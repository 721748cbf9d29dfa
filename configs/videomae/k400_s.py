"""VideoMAE ViT-S on Kinetics-400: batch 32 x 32 = 1024, peak LR 6e-4, 1600 epochs [script]; fine-tuned 79.0 top-1 [model zoo].

    python -m videomae_jax train --config=configs/videomae/k400_s.py --workdir=runs/videomae_k400_s --config.data.index=index.parquet
"""

import ml_collections

from configs.videomae import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE ViT-S on Kinetics-400: the row of the scripts named above."""
    return base.videomae("k400", "S", batch=1024, epochs=1600)
