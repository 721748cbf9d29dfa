"""VideoMAE ViT-B on Kinetics-400: batch 64 x 32 = 2048, peak LR 1.2e-3, 1600 epochs [script]; fine-tuned 81.5 top-1 [model zoo].

    python -m videomae_jax train --config=configs/videomae/k400_b.py --workdir=runs/videomae_k400_b --config.data.index=index.parquet

The 800 epochs of the first release (80.0 top-1): --config.total=800ep.
"""

import ml_collections

from configs.videomae import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE ViT-B on Kinetics-400: the row of the scripts named above."""
    return base.videomae("k400", "B", batch=2048, epochs=1600)
