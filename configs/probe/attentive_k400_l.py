"""Attentive probe of VideoMAE V2 ViT-L on Kinetics-400: four blocks, 20 heads in one pass [V-JEPA 2].

    python -m videomae_jax train --config=configs/probe/attentive_k400_l.py --workdir=runs/probe_attentive_k400_l --config.data.index=index.parquet

Another run's encoder: --config.objective.weights=DIR, of a fine-tuned one with --config.objective.norm=none.
"""

import ml_collections

from configs.probe import base


def get_config() -> ml_collections.ConfigDict:
    """Attentive probe of VideoMAE V2 ViT-L on Kinetics-400: four blocks, 20 heads in one pass [V-JEPA 2]."""
    return base.attentive_probe("k400", "L", blocks=4, views=8)
