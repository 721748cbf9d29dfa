"""VideoMAE V1 ViT-H on Kinetics-400 [V1 scripts/finetune].

    python -m videomae_jax train --config=configs/finetune/v1_k400_h.py --workdir=runs/finetune_v1_k400_h --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V1 ViT-H on Kinetics-400 [V1 scripts/finetune]."""
    config = base.videomae("k400", "H", gpus=64, each=8, lr=1e-3, warmup=5, epochs=50, layer_decay=0.75, drop_path=0.2, dropout=0.5,
                           minimum=1e-5, remat="full",
                           pretrained="runs/videomae_k400_h")
    config.name = "finetune_v1_k400_h"
    return config
