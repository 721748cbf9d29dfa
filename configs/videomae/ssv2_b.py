"""VideoMAE ViT-B on Something-Something V2: batch 2048, stride 2, peak LR 1.2e-3, 2400 epochs [script]; fine-tuned 70.8 top-1 [model zoo].

    python -m videomae_jax train --config=configs/videomae/ssv2_b.py --workdir=runs/videomae_ssv2_b --config.data.index=index.parquet

The 800 epochs of the first release (69.6 top-1): --config.total=800ep.
"""

import ml_collections

from configs.videomae import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE ViT-B on Something-Something V2: the row of the scripts named above."""
    return base.videomae("ssv2", "B", batch=2048, epochs=2400, stride=2)
