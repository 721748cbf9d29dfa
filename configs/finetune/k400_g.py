"""VideoMAE V2 ViT-g on Kinetics-400 [V2 scripts/finetune, g_k400].

    python -m videomae_jax train --config=configs/finetune/k400_g.py --workdir=runs/finetune_k400_g --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-g on Kinetics-400 [V2 scripts/finetune, g_k400]."""
    return base.videomae("k400", "g", gpus=64, each=3, lr=1e-3, warmup=5, epochs=30, layer_decay=0.9, drop_path=0.2, weight_decay=0.1)
