"""VideoMAE V2 ViT-L: 1536 videos x 4 crops, peak LR 6e-3, 300 epochs (1200 effective) [script].

    python -m videomae_jax train --config=configs/pretrain/vit_l.py --workdir=runs/vit_l --config.data.index=index.parquet
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-L: 1536 videos x 4 crops, peak LR 6e-3, 300 epochs (1200 effective) [script]."""
    return base.videomae_v2("L", videos=1536, lr=1e-3, warmup=30, epochs=300, clip=0.0, remat="none")
