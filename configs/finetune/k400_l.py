"""VideoMAE V2 ViT-L on Kinetics-400 [V2 scripts/finetune, l_k400].

    python -m videomae_jax train --config=configs/finetune/k400_l.py --workdir=runs/finetune_k400_l --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-L on Kinetics-400 [V2 scripts/finetune, l_k400]."""
    return base.videomae("k400", "L", gpus=32, each=6, lr=2e-3, warmup=5, epochs=35, layer_decay=0.75, drop_path=0.2)
