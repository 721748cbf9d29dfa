"""VideoMAE V2 ViT-L on Something-Something V2 [V2 scripts/finetune, l_ssv2].

    python -m videomae_jax train --config=configs/finetune/ssv2_l.py --workdir=runs/finetune_ssv2_l --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-L on Something-Something V2 [V2 scripts/finetune, l_ssv2]."""
    return base.videomae("ssv2", "L", gpus=32, each=6, lr=5e-4, warmup=5, epochs=20, layer_decay=0.75, drop_path=0.2)
