"""What the two distillations of VideoMAE V2 share.

Published are the teacher (ViT-g fine-tuned on Kinetics-710), the students' start (own size, pretrained and fine-tuned on
Kinetics-710) and the results. Chosen here, for want of a published number: temperature 1, no labels, 300 epochs, RandAugment,
crops and mixup as in fine-tuning but no erasing, and the optimiser of the size's own fine-tuning.
"""

import ml_collections

from videomae_jax import erasing, mixing
from videomae_jax.config import spec
from videomae_jax.evals import agreement
from videomae_jax.models import heads, vit
from videomae_jax.objectives import distill

from configs.finetune import base


def giant(size: str, *, gpus: int, each: int, lr: float, layer_decay: float) -> ml_collections.ConfigDict:
    """A student of `size` under the ViT-g of configs/finetune/k710_g.py; the test is that of fine-tuning, 5 x 3 views."""
    config = base.videomae("k710", size, gpus=gpus, each=each, lr=lr, warmup=5, epochs=300, layer_decay=layer_decay, drop_path=0.0)
    config.name = f"distill_k710_{size}"
    head = heads.Classifier(classes=base.CLASSES["k710"], init_scale=0.001)
    config.objective = spec(
        distill.Distill, encoder=vit.encoder(size, dtype="bfloat16"), head=head, teacher=vit.encoder("g", dtype="bfloat16"), teacher_head=head,
        weights="runs/finetune_k710_g", temperature=1.0, labels=0.0, mixing=mixing.Mixing(rows=each * 2, partner="reversed"),
        erasing=erasing.Erasing(probability=0.0), pretrained=f"runs/finetune_k710_{size.lower()}", start="model")
    config.evaluators.agreement = spec(agreement.Agreement, every="5%", batch_size=64)
    return config
