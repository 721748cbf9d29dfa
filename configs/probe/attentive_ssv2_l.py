"""Attentive probe of VideoMAE V2 ViT-L on Something-Something V2: four blocks, 20 heads in one pass [V-JEPA 2].

    python -m videomae_jax train --config=configs/probe/attentive_ssv2_l.py --workdir=runs/probe_attentive_ssv2_l --config.data.index=index.parquet

Another run's encoder: --config.objective.weights=DIR, of a fine-tuned one with --config.objective.norm=none.
"""

import ml_collections

from configs.probe import base


def get_config() -> ml_collections.ConfigDict:
    """Attentive probe of VideoMAE V2 ViT-L on Something-Something V2: four blocks, 20 heads in one pass [V-JEPA 2]."""
    return base.attentive_probe("ssv2", "L", blocks=4, views=2)
