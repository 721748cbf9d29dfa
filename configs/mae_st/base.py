"""What the MAE-ST configs share; [code] marks numbers of its released code or of SlowFast's configs, [unverified] a recollection."""

import ml_collections

from videomae_jax import frame_targets, masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import reconstruction
from videomae_jax.models import mae_st
from videomae_jax.objectives import mae

from configs import base


def mae_st_of(size: str, *, schedule: optim.Schedule, epochs: int, remat: str = "none") -> ml_collections.ConfigDict:
    """MAE-ST of size B, L or H on 16 frames, 7.5 of them a second: `epochs` over decoded videos, 4 clips of each.

    Common to all [code]: space-time random mask .9 with the visible count rounded down (156 of 1568), class tokens and
    separable learned positions, decoder 4 x 512 on all tokens, 8 of 16 frames predicted, target normalised over a patch,
    AdamW (.9, .95), weight decay .05, clipping .02, crops of area [.5, 1] and aspect [.75, 1.33] with mirror images,
    loader statistics .45 and .225, times of stride 4 at 30 frames a second whatever the file's rate (2.1 s). 128 decoded
    videos x 4 clips = 512 a step [unverified].

    Deviations: the 4 clips share the decoded frames and differ in crop and mask, both codes draw another start for each;
    frames are a whole stride apart, there spread over the window with both ends (63 / 15 frames at 30 a second); frames are
    cut at the file's size, there after decoding at a short side of 256; float32 by default there, bfloat16 with float32
    parameters, loss and softmax here; the guard against exploding losses is left to the trainer. Initialisers: see models/mae_st.
    The rows of SlowFast run mae_st's decoder: its own has 8 heads, one joint table of positions and the encoder's class token in
    place of a new one; kernels of blocks and heads start there by a truncated normal of .02, and biases of the encoder at .02.
    """
    config = base.get_config()
    config.name = f"mae_st_{size}"
    config.total = f"{epochs}ep"
    config.batch_size = 128
    encoder = mae_st.encoder(size, dtype="bfloat16", remat=remat)
    config.objective = spec(mae.MAE, encoder=encoder, decoder=mae_st.decoder(dtype="bfloat16", remat=remat, every=2),
                            encoder_mask=masking.Random(ratio=0.9, layout="token", truncate="visible"), decoder_mask=masking.Hidden(),
                            target=frame_targets.LoaderPixels(normalise="joint", every=2))
    config.data = spec(sources.VideoClips, index="index.parquet", frames=16, size=224, repeats=4, sampling=clips.PerSecond(rate=7.5),
                       crop=transforms.RandomResizedCrop(area=(0.5, 1.0), ratio=(0.75, 4 / 3), flip=0.5))
    config.eval_data.update({"repeats": 1, "sampling": spec(clips.PerSecond, rate=7.5, position="centre"), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=schedule, b1=0.9, b2=0.95, weight_decay=0.05, clip=0.02)
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="5%", batch_size=64, clips=256)
    config.workers = 10
    return config
