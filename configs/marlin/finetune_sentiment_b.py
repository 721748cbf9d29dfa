"""MARLIN ViT-B fine-tuned on the sentiment of CMU-MOSEI: published accuracy 73.70 % (S 72.69, L 74.83) [secondary].

    python -m videomae_jax train --config=configs/marlin/finetune_sentiment_b.py --workdir=runs/marlin_sentiment_b --config.data.index=index.parquet

The column positive of the index holds 0 and 1 [two classes: assumed]. Sizes S and L: base.finetuned.
"""

import ml_collections

from configs.marlin import base


def get_config() -> ml_collections.ConfigDict:
    """One answer: positive or negative."""
    return base.finetuned("sentiment", "B", names=("positive",))
