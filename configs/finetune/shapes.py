"""Fine-tuning on the embedded world of moving shapes with a tenth of its labels, minutes on two CPU cores.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax train --config=configs/smoke.py --workdir=runs/smoke
    python -m videomae_jax train --config=configs/finetune/shapes.py --workdir=runs/finetune_shapes

From scratch for comparison: --config.objective.pretrained="". The other label: --config.data.label=motion
--config.objective.head.classes=8. Another fraction of the labels: --config.data.limit=2000 for all (200 of the 2000 training
clips otherwise, spread over the index). Linear probe: --config.objective.trains=head
--config.optimizers.main.layer_decay=1.0. Every number is this project's own: half of the batches are mixed, and rates fall
slowly towards the first of four blocks, for a short run. There are no mirror images: they would change a motion.
"""

import ml_collections

from videomae_jax import mixing, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import classification
from videomae_jax.models import heads, vit
from videomae_jax.objectives import classify

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """The encoder of configs/smoke.py and a head for the four shapes."""
    config = base.get_config()
    config.name = "finetune_shapes"
    config.total = "400"
    config.batch_size = 16
    encoder = vit.Encoder(width=128, depth=4, heads=4, hidden=512, patch=(2, 8, 8), frames=8, size=32, unroll=4, drop_path=0.1)
    config.objective = spec(classify.Classify, encoder=encoder, head=heads.Classifier(classes=4),
                            mixing=mixing.Mixing(probability=0.5, partner="opposite"), smoothing=0.1, pretrained="runs/smoke")
    config.data = spec(sources.VideoClips, index="data/shapes/index.parquet", label="appearance", limit=200, frames=8, size=32, repeats=2,
                       sampling=clips.DenseRandom(stride=2), crop=transforms.MultiScaleCrop())
    config.eval_data.update({"repeats": 1, "limit": 0, "sampling": spec(clips.DenseCentre, stride=2), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, minimum=1e-6, warmup="10%", unit=0), b2=0.999,
                                  layer_decay=0.9)
    config.evaluators.val = spec(classification.Classification, every="25%", batch_size=64)
    config.checkpoint.every = "50%"
    config.log.every = "20"
    return config
