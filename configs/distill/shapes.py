"""Distillation on the embedded world of moving shapes: a fine-tuned teacher of four blocks, a student of two from scratch.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax train --config=configs/smoke.py --workdir=runs/smoke
    python -m videomae_jax train --config=configs/finetune/shapes.py --workdir=runs/finetune_shapes
    python -m videomae_jax train --config=configs/distill/shapes.py --workdir=runs/distill_shapes

The student sees all 2000 clips and no label. The same student on 200 labels: configs/finetune/shapes.py with
--config.objective.pretrained="" --config.objective.encoder.width=64 --config.objective.encoder.depth=2
--config.objective.encoder.heads=2 --config.objective.encoder.hidden=256. Every number is this project's own.
"""

import ml_collections

from videomae_jax import mixing
from videomae_jax.config import spec
from videomae_jax.evals import agreement
from videomae_jax.models import heads, vit
from videomae_jax.objectives import distill

from configs.finetune import shapes


def get_config() -> ml_collections.ConfigDict:
    """A student of an eighth of the teacher's size."""
    config = shapes.get_config()
    config.name = "distill_shapes"
    clip = {"patch": (2, 8, 8), "frames": 8, "size": 32}
    config.objective = spec(
        distill.Distill, encoder=vit.Encoder(width=64, depth=2, heads=2, hidden=256, unroll=2, **clip), head=heads.Classifier(classes=4, init_scale=1.0),
        teacher=vit.Encoder(width=128, depth=4, heads=4, hidden=512, unroll=4, **clip), teacher_head=heads.Classifier(classes=4),
        weights="runs/finetune_shapes", mixing=mixing.Mixing(probability=0.5, partner="opposite"), start="model")
    config.data.limit = 0
    config.optimizers.main.layer_decay = 1.0
    config.evaluators.agreement = spec(agreement.Agreement, every="25%", batch_size=64)
    return config
