"""MARLIN ViT-B fine-tuned on the appearance of CelebV-HQ: published accuracy 93.90 %, area under the curve .9561 [secondary], of which size is not known.

    python -m videomae_jax train --config=configs/marlin/finetune_appearance_b.py --workdir=runs/marlin_appearance_b --config.data.index=index.parquet

The columns appearance_0 to appearance_39 of the index hold 0 and 1; other names and numbers: --config.data.attributes and
--config.objective.head.classes; their number is that of the code.
"""

import ml_collections

from configs.marlin import base


def get_config() -> ml_collections.ConfigDict:
    """Forty attributes."""
    return base.finetuned("appearance", "B", names=tuple(f"appearance_{i}" for i in range(40)))
