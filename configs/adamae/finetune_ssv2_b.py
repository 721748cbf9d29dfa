"""Fine-tuning of AdaMAE ViT-B on Something-Something V2: 64 x 8 clips, LR 5e-4 per 256, 50 epochs, 2 x 3 views [script]; 70.04 top-1 [paper].

    python -m videomae_jax train --config=configs/adamae/finetune_ssv2_b.py --workdir=runs/finetune_adamae_ssv2_b --config.data.index=index.parquet

The script lies in the folder of Kinetics-400, and the other way round. Layer decay .75, drop path .1, 5 epochs of warm-up,
minimum 1e-6 [code]; one crop of a clip [script].
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """Fine-tuning of AdaMAE ViT-B on Something-Something V2: the row of the script named above."""
    config = base.videomae("ssv2", "B", gpus=64, each=8, lr=5e-4, warmup=5, epochs=50, layer_decay=0.75, drop_path=0.1, copies=1,
                           pretrained="runs/adamae_ssv2_b")
    config.name = "finetune_adamae_ssv2_B"
    return config
