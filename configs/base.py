"""Fields that every config has; the only level of inheritance. Others cannot be added: a misspelt field fails on its own line."""

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import reconstruction
from videomae_jax.models import vit
from videomae_jax.objectives import mae


def get_config() -> ml_collections.ConfigDict:
    """Defaults of the trainer; a recipe fills objective, data, eval_data, batch_size, total and the schedule."""
    config = ml_collections.ConfigDict(type_safe=False)
    config.name = ""
    config.seed = 0
    config.total = "100ep"  # "40ep" epochs over decoded clips, "5%" of the total, "1000" steps
    config.batch_size = 64  # decoded clips of one global batch; the device sees batch_size x data.repeats clips
    config.microbatches = 1
    config.ema = 0.0  # decay of averaged weights, 0 = none
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.workers = 0  # decoding processes per host; 0 = threads of the training process
    config.threads = 2  # decoding threads of each process
    config.prefetch = 2  # batches in flight to the device
    config.optimizers = ml_collections.ConfigDict({"main": spec(optim.AdamW, schedule=spec(optim.Schedule, base=1.5e-4))}, type_safe=False)
    config.objective = ml_collections.ConfigDict(type_safe=False)
    config.data = ml_collections.ConfigDict(type_safe=False)
    config.eval_data = ml_collections.ConfigDict(type_safe=False)  # fields of `data` that change for evaluation
    config.evaluators = ml_collections.ConfigDict(type_safe=False)
    config.evidence = ml_collections.ConfigDict(type_safe=False)  # the suite of `evaluate --suite=evidence`, if there is one
    config.grid = ml_collections.ConfigDict(type_safe=False)  # the cells of `plan --grid`, if there are some
    config.checkpoint = ml_collections.ConfigDict({"every": "5%", "keep_last": 2, "keep_every": ""}, type_safe=False)
    config.log = ml_collections.ConfigDict({"every": "10"}, type_safe=False)
    config.lock()
    for named_by_recipes in (config.optimizers, config.objective, config.data, config.eval_data, config.evaluators):
        named_by_recipes.unlock()
    return config


def videomae_v2(size: str, *, videos: int, lr: float, warmup: int, epochs: int, clip: float, remat: str) -> ml_collections.ConfigDict:
    """VideoMAE V2 pretraining of one size: `videos` decoded a step, base `lr`, `warmup` and `epochs` over decoded clips.

    Source: scripts/pretrain of the official repository (commit 29eab1e). Precision differs: the official run is fp16
    with loss scaling, this one bfloat16 with float32 parameters, loss and softmax. On GPUs and TPUs crops are cut on the
    device: of videos that are larger than its canvas they differ (`planes.PlaneClips`; data.crops=host is exact).
    """
    config = get_config()
    config.name = f"videomae_v2_{size}"
    config.total = f"{epochs}ep"
    config.batch_size = videos
    encoder = vit.encoder(size, dtype="bfloat16", remat=remat)
    decoder = vit.decoder(size, dtype="bfloat16", remat=remat)
    config.objective = spec(mae.MAE, encoder=encoder, decoder=decoder, encoder_mask=masking.Random(ratio=0.9, layout="tube"),
                            decoder_mask=masking.RunningCell(ratio=0.5))
    config.data = spec(sources.VideoClips, index="index.parquet", frames=16, size=224, repeats=4,
                       sampling=clips.DenseRandom(stride=4), crop=transforms.MultiScaleCrop())
    config.eval_data.update({"repeats": 1, "sampling": spec(clips.DenseCentre, stride=4), "crop": spec(transforms.CentreCrop)})
    # The learning rate counts decoded clips only; minimum 1e-5 and peak scale alike (run_mae_pretraining).
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=lr, minimum=1e-5, warmup=f"{warmup}ep"), b1=0.9, b2=0.95,
                                  weight_decay=0.05, clip=clip)
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="5%", batch_size=64, clips=256)
    config.workers = 10
    return config
