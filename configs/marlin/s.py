"""MARLIN ViT-S on YouTube Faces: decoder 4 x 192 with 3 heads, critic 1536-768-1; batch 64, peak LR 3.75e-5, 2000 epochs [code].

    python -m videomae_jax train --config=configs/marlin/s.py --workdir=runs/marlin_s --config.data.index=index.parquet

The encoder has 21.9 million parameters; the published 22.5M count the fixed table of positions, too.
"""

import ml_collections

from configs.marlin import base


def get_config() -> ml_collections.ConfigDict:
    """MARLIN ViT-S: the released config of this size."""
    return base.marlin_of("S")
