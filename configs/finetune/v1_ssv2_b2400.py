"""VideoMAE V1 ViT-B on Something-Something V2 after 2400 epochs of pretraining [V1 scripts/finetune].

    python -m videomae_jax train --config=configs/finetune/v1_ssv2_b2400.py --workdir=runs/finetune_v1_ssv2_b2400 --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V1 ViT-B on Something-Something V2 after 2400 epochs of pretraining [V1 scripts/finetune]."""
    config = base.videomae("ssv2", "B", gpus=64, each=6, lr=5e-4, warmup=5, epochs=30, layer_decay=0.75, drop_path=0.1,
                           pretrained="runs/videomae_ssv2_b")
    config.name = "finetune_v1_ssv2_b2400"
    return config
