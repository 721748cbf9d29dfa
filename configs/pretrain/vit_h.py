"""VideoMAE V2 ViT-H: 2048 videos x 4 crops, peak LR 8e-3, 300 epochs (1200 effective), remat [script].

    python -m videomae_jax train --config=configs/pretrain/vit_h.py --workdir=runs/vit_h --config.data.index=index.parquet
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-H: 2048 videos x 4 crops, peak LR 8e-3, 300 epochs (1200 effective), remat [script]."""
    return base.videomae_v2("H", videos=2048, lr=1e-3, warmup=30, epochs=300, clip=0.0, remat="full")
