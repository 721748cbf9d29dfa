"""Audiovisual MAE, ViT-L on VGGSound: 172,427 clips [code], separate encoders, 8 s of sound, 200 of 400 sound tokens and 157 of 1568 of the video visible.

    python -m videomae_jax train --config=configs/av_mae/vggsound_l.py --workdir=runs/av_mae_vggsound_l --config.data.index=index.parquet
"""

import ml_collections

from configs.av_mae import base


def get_config() -> ml_collections.ConfigDict:
    """ViT-L on VGGSound: the row named above."""
    return base.av_mae("vggsound", "L", layout="separate", seconds=8, audio_ratio=0.5, epochs=400, lr=1.5e-4)
