"""VideoMAE V1 ViT-S on Kinetics-400 [V1 scripts/finetune]: V2 has no script for this size. Base rate 5e-4 at 384 clips.

    python -m videomae_jax train --config=configs/finetune/k400_s.py --workdir=runs/finetune_k400_s --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V1 ViT-S on Kinetics-400 [V1 scripts/finetune]: V2 has no script for this size. Base rate 5e-4 at 384 clips."""
    return base.videomae("k400", "S", gpus=32, each=12, lr=5e-4, warmup=5, epochs=150, layer_decay=0.75, drop_path=0.1,
                         pretrained="runs/videomae_k400_s")
