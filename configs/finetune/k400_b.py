"""VideoMAE V2 ViT-B on Kinetics-400 [V2 scripts/finetune, b_k400].

    python -m videomae_jax train --config=configs/finetune/k400_b.py --workdir=runs/finetune_k400_b --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-B on Kinetics-400 [V2 scripts/finetune, b_k400]."""
    return base.videomae("k400", "B", gpus=32, each=16, lr=7e-4, warmup=5, epochs=90, layer_decay=0.75, drop_path=0.1)
