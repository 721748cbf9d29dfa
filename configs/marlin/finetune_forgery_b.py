"""MARLIN ViT-B fine-tuned to tell forged faces from real ones; the published gain is 1.86 % [paper], its table is not known.

    python -m videomae_jax train --config=configs/marlin/finetune_forgery_b.py --workdir=runs/marlin_forgery_b --config.data.index=index.parquet

The column forged of the index holds 0 and 1.
"""

import ml_collections

from configs.marlin import base


def get_config() -> ml_collections.ConfigDict:
    """One answer: forged or real."""
    return base.finetuned("forgery", "B", names=("forged",))
