"""VideoMAE V2 ViT-g on Something-Something V2 [V2 scripts/finetune, g_ssv2].

    python -m videomae_jax train --config=configs/finetune/ssv2_g.py --workdir=runs/finetune_ssv2_g --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-g on Something-Something V2 [V2 scripts/finetune, g_ssv2]."""
    return base.videomae("ssv2", "g", gpus=32, each=3, lr=3e-4, warmup=5, epochs=20, layer_decay=0.9, drop_path=0.25)
