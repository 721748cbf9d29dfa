"""VideoMAE V2 ViT-S: no official script exists; the ViT-B recipe with the S model.

    python -m videomae_jax train --config=configs/pretrain/vit_s.py --workdir=runs/vit_s --config.data.index=index.parquet
"""

import ml_collections

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-S: no official script exists; the ViT-B recipe with the S model."""
    return base.videomae_v2("S", videos=1024, lr=1e-3, warmup=20, epochs=200, clip=0.0, remat="none")
