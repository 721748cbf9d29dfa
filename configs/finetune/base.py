"""What fine-tuning configs share; the sources of the numbers stand in the files that call it."""

import ml_collections

from videomae_jax import erasing, mixing, optim
from videomae_jax.config import plain, spec
from videomae_jax.data import augment, clips, sources, three_crop, transforms
from videomae_jax.evals import classification
from videomae_jax.models import heads, vit
from videomae_jax.objectives import classify

from configs import base

CLASSES = {"k400": 400, "k600": 600, "k700": 700, "k710": 710, "ssv2": 174, "ucf101": 101, "hmdb51": 51}  # V2 dataset/build.py


def videomae(data: str, size: str, *, gpus: int, each: int, lr: float, warmup: int, epochs: int, layer_decay: float, drop_path: float,
             dropout: float = 0.0, weight_decay: float = 0.05, clip: float = 0.0, minimum: float = 1e-6, copies: int = 2, stride: int = 4,
             remat: str = "none", pretrained: str = "", start: str = "encoder", classes: str = "") -> ml_collections.ConfigDict:
    """Fine-tuning of a published size: `gpus` x `each` decoded clips a step, `copies` crops of each, base `lr` per 256 of them.

    `lr`, `minimum`, `warmup` and `epochs` are in the units of the scripts. Common to all of them: 16 frames of 224 x 224,
    AdamW (.9, .999), RandAugment m7 n4 with deviation .5, crops of 8 to 100 % of the area, mirror images except for SSv2,
    random erasing with chance .25, mixup .8, CutMix 1 with chance .5, smoothing .1, tests of 5 x 3 views (SSv2: 2 x 3). A draw
    of mixup serves the clips of one GPU there, hence groups of each x copies rows here. `pretrained` "" means the run
    directory runs/vit_SIZE of configs/pretrain/vit_SIZE.py; of a fine-tuned run `start` and `classes` say what its head gives.

    Precision differs: fp16 with loss scaling there, bfloat16 with float32 parameters, head and loss here. SSv2 is read
    from video files, with the sampling that V2 uses for its folders of frames. On GPUs RandAugment and crops run on the device, of videos that
    are larger than its canvas after they became smaller (`planes.PlaneClips`; data.crops=host is exact). Where V2's pairs would mix a video with itself
    (copies of an odd number of videos, as in its ViT-g scripts) rows half a group apart are mixed. The test uses the last
    weights, as V2's does; --config.evaluators.test.weights=best takes those that `val` keeps.
    """
    sparse = data == "ssv2"
    partner = "opposite" if each % 2 and copies > 1 else "reversed"
    config = base.get_config()
    config.name = f"finetune_{data}_{size}"
    config.total = f"{epochs}ep"
    config.batch_size = gpus * each
    config.objective = spec(
        classify.Classify, encoder=vit.encoder(size, dtype="bfloat16", drop_path=drop_path, remat=remat),
        head=heads.Classifier(classes=CLASSES[data], dropout=dropout, init_scale=0.001),
        mixing=mixing.Mixing(mixup=0.8, cutmix=1.0, probability=1.0, switch=0.5, rows=each * copies, partner=partner),
        erasing=erasing.Erasing(probability=0.25), smoothing=0.1, pretrained=pretrained or f"runs/vit_{size.lower()}", start=start, classes=classes)
    train = clips.SparseFinetune(position="random") if sparse else clips.DenseFinetune(stride=stride, position="random")
    centre = clips.SparseFinetune(position="centre") if sparse else clips.DenseFinetune(stride=stride, position="centre")
    views = clips.SparseView(views=2) if sparse else clips.DenseView(stride=stride, views=5)
    crop = augment.AugmentedCrop(flip=0.0 if sparse else 0.5)
    config.data = spec(sources.VideoClips, index="index.parquet", frames=16, size=224, repeats=copies, sampling=train, crop=crop)
    config.eval_data.update({"repeats": 1, "sampling": plain(centre), "crop": spec(transforms.CentreCrop, antialias=False)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=lr, minimum=minimum, warmup=f"{warmup}ep"), b1=0.9, b2=0.999,
                                  weight_decay=weight_decay, clip=clip, layer_decay=layer_decay)
    config.evaluators.val = spec(classification.Classification, every="5%", batch_size=64, best="top1")
    config.evaluators.test = spec(classification.Classification, every="", batch_size=64, first=1, save="test",
                                  views=classification.Views(sampling=views, crop=three_crop.ThreeCrop(views=3, antialias=False)))
    config.workers = 10
    return config
