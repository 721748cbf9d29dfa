"""VideoMAE V2 ViT-S distilled from ViT-g on Kinetics-710; published top-1, 5 x 3 views: 77.6 on K710, 83.7 on K400, 83.1 on K600 [V2 docs/MODEL_ZOO].

    python -m videomae_jax train --config=configs/distill/k710_s.py --workdir=runs/distill_k710_s --config.data.index=k710.parquet

Needs runs/finetune_k710_g (configs/finetune/k710_g.py) and runs/finetune_k710_s, which is configs/finetune/k400_s.py with
--config.objective.head.classes=710 --config.objective.pretrained=runs/vit_s.
"""

import ml_collections

from configs.distill import base


def get_config() -> ml_collections.ConfigDict:
    """ViT-S under ViT-g."""
    return base.giant("S", gpus=32, each=12, lr=5e-4, layer_decay=0.75)
