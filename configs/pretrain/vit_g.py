"""VideoMAE V2 ViT-g: 2048 videos x 4 crops, peak LR 4.8e-3, 300 epochs (1200 effective), clipping 0.02, remat [script].

    python -m videomae_jax train --config=configs/pretrain/vit_g.py --workdir=runs/vit_g --config.data.index=index.parquet
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-g: 2048 videos x 4 crops, peak LR 4.8e-3, 300 epochs (1200 effective), clipping 0.02, remat [script]."""
    return base.videomae_v2("g", videos=2048, lr=6e-4, warmup=30, epochs=300, clip=0.02, remat="full")
