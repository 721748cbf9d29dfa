"""VideoMAE V1 ViT-L on Kinetics-400 [V1 scripts/finetune].

    python -m videomae_jax train --config=configs/finetune/v1_k400_l.py --workdir=runs/finetune_v1_k400_l --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V1 ViT-L on Kinetics-400 [V1 scripts/finetune]."""
    config = base.videomae("k400", "L", gpus=64, each=2, lr=2e-3, warmup=5, epochs=35, layer_decay=0.75, drop_path=0.1,
                           pretrained="runs/videomae_k400_l")
    config.name = "finetune_v1_k400_l"
    return config
