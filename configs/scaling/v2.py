"""The grid of scaling experiments: model size x corpus x epochs of V2's recipe, and two sizes beyond it on the largest corpus.

    python -m videomae_jax plan --grid=configs/scaling/v2.py --root=runs/scaling --topology=v5p-512      # the cells and their chip-hours
    bash launch/slurm.sh --nodes=64 --grid=configs/scaling/v2.py --root=runs/scaling --topology=h100x512   # a job for each unfinished one
    python -m videomae_jax report --scaling runs/scaling/[blh]-ssv2-*                                   # a law and its prediction, for each corpus
    python -m videomae_jax report --scaling runs/scaling/[blh]-k400-*
    python -m videomae_jax report --scaling runs/scaling/[blh]-hybrid-*                                 # patches of 16 pixels
    python -m videomae_jax report --scaling runs/scaling/g-hybrid-* runs/scaling/{4b,22b}-hybrid-*      # patches of 14 pixels

Losses of other held-out clips or other patches follow no common law, and `report` refuses them together. ViT-g alone, on SSv2 and K400, has three
runs, too few for a law.

A cell is the command line of `train`; each has the published batch and learning rate of its size, and its own schedule,
so that a short run is a finished one. Videos: SSv2 169 k, K400 240 k, UnlabeledHybrid 1,348 k (V2, table of data sets). SSv2, whose
frames V2 extracts at 12 a second, is read at stride 2, the others at 4; in the hybrid corpus, whose index is that of V2's list
with some held-out videos (`index --list=hybrid.csv --format=v2 --list=val.csv --format=v1`), every row has its own.
"""

import ml_collections

from configs.pretrain import vit_b

VIDEOS = {"ssv2": 169_000, "k400": 240_000, "hybrid": 1_348_000}
READING = {"ssv2": {f"{data}.sampling.stride": "2" for data in ("data", "eval_data")},
           "hybrid": {"data.__symbol__": "videomae_jax.data.frame_folders.FrameClips"}}  # it reads folders and files, each at its stride
EPOCHS = (75, 150, 300)  # over decoded clips; four crops of each make 300, 600 and 1200
SIZES = ("b", "l", "h", "g")


def cell(config: str, corpus: str, epochs: int) -> ml_collections.ConfigDict:
    """One run: its config, what differs from it, and how many videos it sees an epoch."""
    overrides = {"total": f"{epochs}ep", "data.index": f"{corpus}.parquet", "optimizers.main.schedule.warmup": "10%"} | READING.get(corpus, {})
    return ml_collections.ConfigDict({"config": config, "videos": VIDEOS[corpus], "overrides": tuple(overrides.items())})


def get_config() -> ml_collections.ConfigDict:
    """The smallest cell, with all cells by name in `grid`."""
    config = vit_b.get_config()
    config.grid = ml_collections.ConfigDict({
        f"{size}-{corpus}-{epochs}ep": cell(f"configs/pretrain/vit_{size}.py", corpus, epochs) for size in SIZES for corpus in VIDEOS for epochs in EPOCHS})
    for size in ("4b", "22b"):
        config.grid[f"{size}-hybrid-300ep"] = cell(f"configs/scaling/vit_{size}.py", "hybrid", 300)
    return config
