"""AdaMAE ViT-B on Kinetics-400: batch 2048, stride 4, peak LR 1.2e-3, 800 epochs [script]; fine-tuned 81.7 top-1 [paper].

    python -m videomae_jax train --config=configs/adamae/k400_b.py --workdir=runs/adamae_k400_b --config.data.index=index.parquet
"""

import ml_collections

from configs.adamae import base


def get_config() -> ml_collections.ConfigDict:
    """AdaMAE ViT-B on Kinetics-400: the row of the script named above."""
    return base.adamae_of("k400", stride=4)
