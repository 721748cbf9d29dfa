"""MARLIN ViT-L on YouTube Faces: decoder 12 x 512 with 8 heads, critic 1536-2048-1; batch 64, peak LR 3.75e-5, 2000 epochs [code].

    python -m videomae_jax train --config=configs/marlin/l.py --workdir=runs/marlin_l --config.data.index=index.parquet

The encoder has 303.9 million parameters; the published 305M count the fixed table of positions, too.
"""

import ml_collections

from configs.marlin import base


def get_config() -> ml_collections.ConfigDict:
    """MARLIN ViT-L: the released config of this size."""
    return base.marlin_of("L", depth=12)
