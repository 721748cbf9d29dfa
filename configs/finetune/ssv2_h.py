"""VideoMAE V2 ViT-H on Something-Something V2 [V2 scripts/finetune, h_ssv2].

    python -m videomae_jax train --config=configs/finetune/ssv2_h.py --workdir=runs/finetune_ssv2_h --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-H on Something-Something V2 [V2 scripts/finetune, h_ssv2]."""
    return base.videomae("ssv2", "H", gpus=32, each=4, lr=5e-4, warmup=5, epochs=20, layer_decay=0.8, drop_path=0.2)
