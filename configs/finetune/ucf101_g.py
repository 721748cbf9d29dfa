"""VideoMAE V2 ViT-g on UCF101, from the run fine-tuned on Kinetics-710 [V2 scripts/finetune, g_ucf101].

    python -m videomae_jax train --config=configs/finetune/ucf101_g.py --workdir=runs/finetune_ucf101_g --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-g on UCF101, from the run fine-tuned on Kinetics-710 [V2 scripts/finetune, g_ucf101]."""
    return base.videomae("ucf101", "g", gpus=8, each=3, lr=1e-3, warmup=5, epochs=50, layer_decay=0.9, drop_path=0.35, dropout=0.5,
                         pretrained="runs/finetune_k710_g", start="features")
