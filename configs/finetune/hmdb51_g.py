"""VideoMAE V2 ViT-g on HMDB51, from the run fine-tuned on Kinetics-710 [V2 scripts/finetune, g_hmdb51]; stride 2.

    python -m videomae_jax train --config=configs/finetune/hmdb51_g.py --workdir=runs/finetune_hmdb51_g --config.data.index=index.parquet
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-g on HMDB51, from the run fine-tuned on Kinetics-710 [V2 scripts/finetune, g_hmdb51]; stride 2."""
    return base.videomae("hmdb51", "g", gpus=8, each=3, lr=5e-4, warmup=5, epochs=15, layer_decay=0.9, drop_path=0.35, dropout=0.5, stride=2,
                         pretrained="runs/finetune_k710_g", start="features")
