"""MARLIN ViT-B on YouTube Faces: decoder 4 x 384 with 6 heads, critic 1536-1536-1; batch 64, peak LR 3.75e-5, 2000 epochs [code].

    python -m videomae_jax train --config=configs/marlin/b.py --workdir=runs/marlin_b --config.data.index=index.parquet

The encoder has 86.2 million parameters; the published 87.4M count the fixed table of positions, too.
"""

import ml_collections

from configs.marlin import base


def get_config() -> ml_collections.ConfigDict:
    """MARLIN ViT-B: the released config of this size."""
    return base.marlin_of("B")
