"""VideoMAE ViT-B on UCF101 alone: batch 8 x 24 = 192, mask .75, base LR 3e-4, 3200 epochs [script]; fine-tuned 91.3 top-1 [model zoo].

    python -m videomae_jax train --config=configs/videomae/ucf101_b.py --workdir=runs/videomae_ucf101_b --config.data.index=index.parquet
"""

import ml_collections

from configs.videomae import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE ViT-B on UCF101 alone: the row of the scripts named above."""
    return base.videomae("ucf101", "B", batch=192, epochs=3200, lr=3e-4, ratio=0.75)
