"""VideoMAE V2 ViT-g on UnlabeledHybrid: 1.35 M clips of five sources, each with its stride and its way of storing frames.

    python -m videomae_jax index K710 --out=hybrid/k710.parquet
    python -m videomae_jax index --list=ssv2.csv --format=v2 --root=DATA --fps=12 --out=hybrid/ssv2.parquet      # path start total
    python -m videomae_jax index --list=ava.csv --format=v2 --root=DATA --template=image_{:06}.jpg --fps=30 --out=hybrid/ava.parquet
    python -m videomae_jax index WEBVID --out=hybrid/webvid.parquet
    python -m videomae_jax train --config=configs/data/unlabeled_hybrid.py --workdir=runs/hybrid

Hardware: 64 A100 80 GB in the paper. The fifth source, 250 k clips from Instagram, was never published: it is declared missing, and
so is any other that you do not have (`--config.data.missing=own,webvid`); the recipe card says what that leaves. Every clip is
drawn once an epoch, as in V2; `mixture.Weighted` instead of `Concat` keeps the shares of the parts when one of them is smaller.

Sources of numbers: the official list reader (commit 29eab1e) for strides and templates, its 168,913 and 658,340 lines; the other sizes and
the paths of AVA (windows of 300 frames of one video each) from arXiv 2303.16727 and the data set page of the repository.
"""

import ml_collections

from configs import base
from videomae_jax.config import spec
from videomae_jax.data import clips, frame_folders, mixture, sources, transforms

VIDEOS = {"k710": 658_340, "ssv2": 168_913, "ava": 21_000, "webvid": 250_000, "own": 250_000}
FRAMES = ("ssv2", "ava")  # stored as numbered pictures
STRIDES = {"ssv2": 2}  # its frames are extracted at 12 a second


def get_config() -> ml_collections.ConfigDict:
    """ViT-g, 64 x 32 decoded clips, 300 epochs, as scripts/pretrain/vit_g_hybrid_pt.sh, over the sources that are there."""
    config = base.videomae_v2("g", videos=2048, lr=6e-4, warmup=30, epochs=300, clip=0.02, remat="full")
    config.name = "videomae_v2_g_unlabeled_hybrid"
    config.data = spec(mixture.Concat, parts={name: part(name) for name in VIDEOS}, missing=("own",))
    held_out = {"repeats": 1, "sampling": clips.DenseCentre(stride=4), "crop": transforms.CentreCrop()}
    config.eval_data = ml_collections.ConfigDict({"parts": {"k710": part("k710", **held_out)}, "missing": ()}, type_safe=False)
    return config


def part(name: str, **changes: object) -> ml_collections.ConfigDict:
    """A source with the number of its videos in the paper; short sides may differ, for every source is cropped for itself."""
    kind = frame_folders.FrameClips if name in FRAMES else sources.VideoClips
    fields = {"index": f"hybrid/{name}.parquet", "frames": 16, "size": 224, "repeats": 4, "sampling": clips.DenseRandom(stride=STRIDES.get(name, 4)),
              "crop": transforms.MultiScaleCrop()}
    return spec(mixture.Part, source=spec(kind, **fields | changes), videos=VIDEOS[name])
