"""VideoMAE V2 ViT-B on Kinetics-710 [V2 scripts/finetune, b_k710].

    python -m videomae_jax train --config=configs/finetune/k710_b.py --workdir=runs/finetune_k710_b --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-B on Kinetics-710 [V2 scripts/finetune, b_k710]."""
    return base.videomae("k710", "B", gpus=32, each=16, lr=7e-4, warmup=5, epochs=90, layer_decay=0.75, drop_path=0.1)
