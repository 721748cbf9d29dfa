"""VideoMAE V2 ViT-B: 1024 videos x 4 crops, peak LR 4e-3, 200 epochs (800 effective) [script].

    python -m videomae_jax train --config=configs/pretrain/vit_b.py --workdir=runs/vit_b --config.data.index=index.parquet
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-B: 1024 videos x 4 crops, peak LR 4e-3, 200 epochs (800 effective) [script]."""
    return base.videomae_v2("B", videos=1024, lr=1e-3, warmup=20, epochs=200, clip=0.0, remat="none")
