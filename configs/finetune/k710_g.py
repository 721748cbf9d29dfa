"""VideoMAE V2 ViT-g on Kinetics-710 [V2 scripts/finetune, g_k710]: the only script that clips gradients.

    python -m videomae_jax train --config=configs/finetune/k710_g.py --workdir=runs/finetune_k710_g --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-g on Kinetics-710 [V2 scripts/finetune, g_k710]: the only script that clips gradients."""
    return base.videomae("k710", "g", gpus=32, each=3, lr=1e-3, warmup=5, epochs=35, layer_decay=0.9, drop_path=0.3, weight_decay=0.1, clip=5.0)
