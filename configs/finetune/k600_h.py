"""VideoMAE V2 ViT-H on Kinetics-600 [V2 scripts/finetune, h_k600]: its GPUS=1 is a leftover, so as h_k400 on 32.

    python -m videomae_jax train --config=configs/finetune/k600_h.py --workdir=runs/finetune_k600_h --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-H on Kinetics-600 [V2 scripts/finetune, h_k600]: its GPUS=1 is a leftover, so as h_k400 on 32."""
    return base.videomae("k600", "H", gpus=32, each=4, lr=1e-3, warmup=5, epochs=40, layer_decay=0.8, drop_path=0.2, dropout=0.5)
