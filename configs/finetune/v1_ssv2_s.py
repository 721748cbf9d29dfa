"""VideoMAE V1 ViT-S on Something-Something V2 [V1 scripts/finetune].

    python -m videomae_jax train --config=configs/finetune/v1_ssv2_s.py --workdir=runs/finetune_v1_ssv2_s --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V1 ViT-S on Something-Something V2 [V1 scripts/finetune]."""
    config = base.videomae("ssv2", "S", gpus=32, each=12, lr=1e-3, warmup=5, epochs=40, layer_decay=0.7, drop_path=0.1,
                           pretrained="runs/videomae_ssv2_s")
    config.name = "finetune_v1_ssv2_s"
    return config
