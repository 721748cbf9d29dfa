"""VideoMAE V1 ViT-B on Something-Something V2 after 800 epochs of pretraining, one copy of a clip [V1 scripts/finetune].

    python -m videomae_jax train --config=configs/finetune/v1_ssv2_b800.py --workdir=runs/finetune_v1_ssv2_b800 --config.data.index=index.parquet

Pretrained by: python -m videomae_jax train --config=configs/videomae/ssv2_b.py --workdir=runs/videomae_ssv2_b800 --config.total=800ep
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V1 ViT-B on Something-Something V2 after 800 epochs of pretraining, one copy of a clip [V1 scripts/finetune]."""
    config = base.videomae("ssv2", "B", gpus=64, each=8, lr=5e-4, warmup=5, epochs=50, layer_decay=0.75, drop_path=0.1, copies=1,
                           pretrained="runs/videomae_ssv2_b800")
    config.name = "finetune_v1_ssv2_b800"
    return config
