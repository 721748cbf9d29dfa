"""A 22-billion-parameter encoder under V2's recipe: beyond the paper, for plans and scaling experiments.

    python -m videomae_jax plan --config=configs/scaling/vit_22b.py --topology=v5p-512

6144 wide, 48 deep, 48 heads, MLP 24576: the shape of ViT-22B (arXiv 2302.05442), without its parallel blocks and QK norm.
The decoder is twice as wide as ViT-g's; everything else is ViT-g's.
"""

import ml_collections

from videomae_jax.config import spec
from videomae_jax.models import vit

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """V2's ViT-g recipe with ViT-22B's encoder."""
    config = base.videomae_v2("g", videos=2048, lr=6e-4, warmup=30, epochs=300, clip=0.02, remat="full")
    config.name = "videomae_v2_22B"
    config.objective.encoder = spec(vit.Encoder, width=6144, depth=48, heads=48, hidden=24576, patch=(2, 14, 14), dtype="bfloat16", remat="full", unroll=0, attention="auto")
    config.objective.decoder = spec(vit.Decoder, width=1024, depth=4, heads=16, hidden=4096, dtype="bfloat16", remat="full", unroll=0, attention="auto")
    return config
