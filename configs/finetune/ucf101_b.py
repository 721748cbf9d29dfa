"""VideoMAE V1 ViT-B on UCF101, pretrained there as well [V1 scripts/finetune].

    python -m videomae_jax train --config=configs/finetune/ucf101_b.py --workdir=runs/finetune_ucf101_b --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V1 ViT-B on UCF101, pretrained there as well [V1 scripts/finetune]."""
    return base.videomae("ucf101", "B", gpus=8, each=16, lr=5e-4, warmup=5, epochs=100, layer_decay=0.7, drop_path=0.2, dropout=0.5,
                         minimum=1e-5, remat="full", pretrained="runs/videomae_ucf101_b")
