"""VideoMAE V1 ViT-B on Kinetics-400 after 1600 epochs of pretraining [V1 scripts/finetune].

    python -m videomae_jax train --config=configs/finetune/v1_k400_b1600.py --workdir=runs/finetune_v1_k400_b1600 --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V1 ViT-B on Kinetics-400 after 1600 epochs of pretraining [V1 scripts/finetune]."""
    config = base.videomae("k400", "B", gpus=64, each=6, lr=5e-4, warmup=5, epochs=75, layer_decay=0.75, drop_path=0.1,
                           pretrained="runs/videomae_k400_b")
    config.name = "finetune_v1_k400_b1600"
    return config
