"""VideoMAE V2 ViT-B distilled from ViT-g on Kinetics-710; published top-1, 5 x 3 views: 81.5 on K710, 86.6 on K400, 85.9 on K600 [V2 docs/MODEL_ZOO].

    python -m videomae_jax train --config=configs/distill/k710_b.py --workdir=runs/distill_k710_b --config.data.index=k710.parquet

Needs runs/finetune_k710_g (configs/finetune/k710_g.py) and runs/finetune_k710_b.
"""

import ml_collections

from configs.distill import base


def get_config() -> ml_collections.ConfigDict:
    """ViT-B under ViT-g."""
    return base.giant("B", gpus=32, each=16, lr=7e-4, layer_decay=0.75)
