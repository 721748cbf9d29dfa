"""VideoMAE V2 ViT-g on Kinetics-600 after Kinetics-710 [V2 scripts/finetune, g_k710_k600]: three epochs, head rows by class.

    python -m videomae_jax train --config=configs/finetune/k600_g_after_k710.py --workdir=runs/finetune_k600_g_after_k710 --config.data.index=index.parquet

The map of classes, for training on k600.parquet after a run on k710.parquet, is written by

    python -m videomae_jax index --merge=k400.parquet,k600.parquet,k700.parquet --out=k710.parquet --aliases=k710_identical_label_merge.json

where labels are the class names of Kinetics: V2's table of merged names makes 710 of 724. Indexes of official lists, whose labels are
numbers, take V2's label maps instead, which are 710 names without the table:
--names=k400=label_map_k400.txt --names=k600=label_map_k600.txt --names=k700=label_map_k700.txt
"""

import ml_collections

from configs.finetune import base


def get_config() -> ml_collections.ConfigDict:
    """VideoMAE V2 ViT-g on Kinetics-600 after Kinetics-710 [V2 scripts/finetune, g_k710_k600]: three epochs, head rows by class."""
    config = base.videomae("k600", "g", gpus=32, each=3, lr=1e-5, warmup=1, epochs=3, layer_decay=0.9, drop_path=0.25, weight_decay=0.1,
                           pretrained="runs/finetune_k710_g", start="model", classes="k710_to_k600.json")
    config.name = "finetune_k600_g_after_k710"
    return config
