"""MAE-ST ViT-B on Kinetics-400: LR 1e-4 per 64 videos, 200 epochs x 4 clips, 60 of warm-up [SlowFast]; fine-tuned 81.3 top-1 [paper].

    python -m videomae_jax train --config=configs/mae_st/vit_b.py --workdir=runs/mae_st_vit_b --config.data.index=index.parquet

SlowFast's rate ends at 1e-6 per 64 videos, a hundredth of the peak, and its warm-up starts there; here the warm-up starts at 0.
"""

import ml_collections

from videomae_jax import optim

from configs.mae_st import base


def get_config() -> ml_collections.ConfigDict:
    """MAE-ST ViT-B on Kinetics-400: the row named above."""
    return base.mae_st_of("B", schedule=optim.Schedule(base=1e-4, minimum=1e-6, warmup="60ep", unit=64), epochs=200)
