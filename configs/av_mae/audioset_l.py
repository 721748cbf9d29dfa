"""Audiovisual MAE, ViT-L on AudioSet-2M: 1,857,210 clips of 10 s [code], mid-fusion, 149 of 496 sound tokens and 157 of 1568 of the video visible.

    python -m videomae_jax train --config=configs/av_mae/audioset_l.py --workdir=runs/av_mae_audioset_l --config.data.index=index.parquet
"""

import ml_collections

from configs.av_mae import base


def get_config() -> ml_collections.ConfigDict:
    """ViT-L on AudioSet: the row named above."""
    return base.av_mae("audioset", "L", layout="mid", seconds=10, audio_ratio=0.7, epochs=120, lr=3e-4)
