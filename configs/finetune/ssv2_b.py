"""VideoMAE V2 ViT-B on Something-Something V2 [V2 scripts/finetune, b_ssv2].

    python -m videomae_jax train --config=configs/finetune/ssv2_b.py --workdir=runs/finetune_ssv2_b --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-B on Something-Something V2 [V2 scripts/finetune, b_ssv2]."""
    return base.videomae("ssv2", "B", gpus=16, each=16, lr=2e-3, warmup=5, epochs=25, layer_decay=0.65, drop_path=0.1)
