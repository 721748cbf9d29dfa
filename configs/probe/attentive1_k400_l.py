"""Attentive probe of VideoMAE V2 ViT-L on Kinetics-400: one block of cross-attention [V-JEPA, unverified; the rest V-JEPA 2].

    python -m videomae_jax train --config=configs/probe/attentive1_k400_l.py --workdir=runs/probe_attentive1_k400_l --config.data.index=index.parquet

Another run's encoder: --config.objective.weights=DIR, of a fine-tuned one with --config.objective.norm=none.
"""

import ml_collections

from configs.probe import base


def get_config() -> ml_collections.ConfigDict:
    """Attentive probe of VideoMAE V2 ViT-L on Kinetics-400: one block of cross-attention [V-JEPA, unverified; the rest V-JEPA 2]."""
    return base.attentive_probe("k400", "L", blocks=1, views=8)
