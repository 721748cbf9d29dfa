"""Fine-tuning of AdaMAE ViT-B on Kinetics-400: 64 x 8 clips, LR 1e-3 per 256, 100 epochs, 5 x 3 views [script]; 81.7 top-1 [paper].

    python -m videomae_jax train --config=configs/adamae/finetune_k400_b.py --workdir=runs/finetune_adamae_k400_b --config.data.index=index.parquet

The script lies in the folder of Something-Something V2, and the other way round. Layer decay .75, drop path .1, 5 epochs of
warm-up, minimum 1e-6 [code]; one crop of a clip [script].
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """Fine-tuning of AdaMAE ViT-B on Kinetics-400: the row of the script named above."""
    config = base.videomae("k400", "B", gpus=64, each=8, lr=1e-3, warmup=5, epochs=100, layer_decay=0.75, drop_path=0.1, copies=1,
                           pretrained="runs/adamae_k400_b")
    config.name = "finetune_adamae_k400_B"
    return config
