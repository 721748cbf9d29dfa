"""A 4-billion-parameter encoder under V2's recipe: beyond the paper, for plans and scaling experiments.

    python -m videomae_jax plan --config=configs/scaling/vit_4b.py --topology=v5p-512

1792 wide, 56 deep, MLP 15360: the shape of ViT-e (arXiv 2209.06794). Everything else is ViT-g's: patch 14, decoder, schedule.
"""

import ml_collections

from videomae_jax.config import spec
from videomae_jax.models import vit

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """V2's ViT-g recipe with ViT-e's encoder."""
    config = base.videomae_v2("g", videos=2048, lr=6e-4, warmup=30, epochs=300, clip=0.02, remat="full")
    config.name = "videomae_v2_4B"
    config.objective.encoder = spec(vit.Encoder, width=1792, depth=56, heads=16, hidden=15360, patch=(2, 14, 14), dtype="bfloat16", remat="full", unroll=0, attention="auto")
    return config
