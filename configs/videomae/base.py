"""What the pretraining configs of VideoMAE (V1) share; [script] marks numbers of V1's scripts (commit 14ef8d8)."""

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import reconstruction
from videomae_jax.models import vit
from videomae_jax.objectives import mae

from configs import base

# Fields of V2's decoders that V1's differ in: L and H are 12 blocks deep, H is 640 wide with 8 heads of 80 [script].
DECODERS = {"S": {}, "B": {}, "L": {"depth": 12}, "H": {"depth": 12, "width": 640, "hidden": 2560}}


def videomae(data: str, size: str, *, batch: int, epochs: int, lr: float = 1.5e-4, ratio: float = 0.9, stride: int = 4,
             remat: str = "none") -> ml_collections.ConfigDict:
    """VideoMAE of one size on one data set: `batch` clips a step, base `lr` per 256 clips, `epochs`, tube mask of `ratio`.

    Common to all [script]: 16 frames of 224 x 224, AdamW (.9, .95), weight decay .05, minimum 1e-5 per 256 clips, 40 epochs
    of warm-up, MultiScaleCrop, no mirror images, no repeated augmentation, no clipping; every hidden token is decoded.
    Deviations: fp16 with loss scaling there, bfloat16 with float32 parameters, loss and softmax here; the scripts run one
    epoch more than they name, which works around an index error of their schedule. Crops of large videos on a device: as in configs/base.py.
    """
    config = base.get_config()
    config.name = f"videomae_{data}_{size}"
    config.total = f"{epochs}ep"
    config.batch_size = batch
    encoder = vit.encoder(size, dtype="bfloat16", remat=remat)
    decoder = vit.decoder(size, dtype="bfloat16", remat=remat, **DECODERS[size])
    config.objective = spec(mae.MAE, encoder=encoder, decoder=decoder, encoder_mask=masking.Random(ratio=ratio, layout="tube"),
                            decoder_mask=masking.Hidden())
    config.data = spec(sources.VideoClips, index="index.parquet", frames=16, size=224, repeats=1,
                       sampling=clips.DenseRandom(stride=stride), crop=transforms.MultiScaleCrop())
    config.eval_data.update({"sampling": spec(clips.DenseCentre, stride=stride), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=lr, minimum=1e-5, warmup="40ep"), b1=0.9, b2=0.95,
                                  weight_decay=0.05)
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="5%", batch_size=64, clips=256)
    config.workers = 10
    return config
