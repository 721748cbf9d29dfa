"""What probe configs share: the data of fine-tuning, a frozen encoder, many heads in one pass."""

import ml_collections

from videomae_jax import optim
from videomae_jax.config import spec
from videomae_jax.data import clips, three_crop, transforms
from videomae_jax.erasing import Erasing
from videomae_jax.evals import attentive, classification, knn, low_shot
from videomae_jax.evals.linear_probe import LinearProbe
from videomae_jax.models import probing, vit
from videomae_jax.objectives import probe

from configs.finetune import base

RATES, DECAYS = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4), (0.01, 0.1, 0.4, 0.8)  # V-JEPA 2


def attentive_probe(data: str, size: str, *, blocks: int, views: int, weights: str = "") -> ml_collections.ConfigDict:
    """V-JEPA 2's attentive probe: 20 poolers of 16 heads on frozen tokens, 5 rates x 4 decays, batch 256 (4 x 64), 20 epochs.

    AdamW, a cosine to 0 without warm-up, RandAugment, crops of 8 to 100 % without mirror images, erasing with chance .25, tests of
    `views` x 3 [V-JEPA 2 code].

    Deviations: 224 x 224 instead of 256 x 256 (this encoder's size); heads in float32 instead of half precision; one clip of a video
    in a step instead of one of each of its segments; SSv2 by one frame of each of 16 segments (TSN) instead of two segments at stride
    4; decay spares biases, scales of norms and the query, there all parameters decay. Of the start of the blocks, and of how devices
    multiply in them: models/probing.
    """
    config = base.videomae(data, size, gpus=64, each=4, lr=1.0, warmup=0, epochs=20, layer_decay=1.0, drop_path=0.0, copies=1)
    config.name = f"attentive{blocks}_{data}_{size}"
    config.objective = spec(
        probe.Probe, encoder=vit.encoder(size, dtype="bfloat16"), weights=weights or f"runs/vit_{size.lower()}", storage="bfloat16",
        head=probing.Attentive(classes=base.CLASSES[data], count=20, blocks=blocks, heads=16), erasing=Erasing(probability=0.25))
    config.data.crop.flip = 0.0
    config.optimizers.main = spec(optim.Grid, schedule=optim.Schedule(base=1.0, minimum=0.0, warmup="0", unit=0), rates=RATES, decays=DECAYS)
    del config.evaluators.test
    many = clips.SparseView(views=views) if data == "ssv2" else clips.DenseView(stride=4, views=views)
    config.evaluators.val = spec(attentive.Heads, every="10%", batch_size=64)
    config.evaluators.heads = spec(attentive.Heads, batch_size=64, every="", first=1,
                                   views=classification.Views(sampling=many, crop=three_crop.ThreeCrop(views=3)))
    return config


def linear_probe(data: str, size: str, *, weights: str = "") -> ml_collections.ConfigDict:
    """MAE's linear probe for video: BatchNorm without affine, LARS at .1 per 256 clips and around it, batch 4096, 90 epochs, 10 of them warm-up.

    Crops of 8 to 100 % and mirror images (except for SSv2), no decay [MAE, fork for video]; 5 x 3 views.

    After the last step, and with `evaluate RUN --only=NAME`, come the probes of cached features, of the centre clip of every video: a `layers` sweep
    of linear heads (of 50,000 training videos, for the features of all blocks are in memory at once), `neighbours`, and the `low_shot` curve, each
    with a pass over the training videos. Their settings are this project's own.
    """
    config = base.videomae(data, size, gpus=8, each=512, lr=1.0, warmup=10, epochs=90, layer_decay=1.0, drop_path=0.0, copies=1)
    config.name = f"linear_{data}_{size}"
    rates = tuple(factor * 0.1 * config.batch_size / 256 for factor in (0.1, 0.3, 1.0, 3.0, 10.0))
    config.objective = spec(
        probe.Probe, encoder=vit.encoder(size, dtype="bfloat16"), weights=weights or f"runs/vit_{size.lower()}", storage="bfloat16",
        head=probing.Linear(classes=base.CLASSES[data], count=len(rates)))
    config.optimizers.main = spec(optim.Grid, schedule=optim.Schedule(base=1.0, minimum=0.0, warmup="10ep", unit=0), rates=rates, method="lars")
    config.data.crop = spec(transforms.RandomResizedCrop, flip=0.0 if data == "ssv2" else 0.5)
    test = config.evaluators.test.views
    del config.evaluators.test
    config.evaluators.val = spec(attentive.Heads, every="10%", batch_size=64)
    config.evaluators.heads = spec(attentive.Heads, batch_size=64, every="", first=1, views=test)
    config.evaluators.layers = spec(LinearProbe, first=1, train=50_000, layers=(*range(config.objective.encoder.depth), -1))
    config.evaluators.neighbours = spec(knn.Neighbours, first=1)
    config.evaluators.low_shot = spec(low_shot.LowShot, first=1)
    return config
