"""Linear probe of VideoMAE V2 ViT-B on Kinetics-400: five rates in one pass.

    python -m videomae_jax train --config=configs/probe/linear_k400_b.py --workdir=runs/probe_linear_k400_b --config.data.index=index.parquet

Another run's encoder: --config.objective.weights=DIR, of a fine-tuned one with --config.objective.norm=none.
"""

import ml_collections

from configs.probe import base


def get_config() -> ml_collections.ConfigDict:
    """Linear probe of VideoMAE V2 ViT-B on Kinetics-400: five rates in one pass."""
    return base.linear_probe("k400", "B")
