"""What the Audiovisual MAE configs share; [code] marks numbers of the released configs (scenic av_mae), [ours] this project's."""

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, spectrogram, transforms
from videomae_jax.data.audiovisual import AudioVideoClips
from videomae_jax.evals import modalities
from videomae_jax.models import fusion
from videomae_jax.objectives import audiovisual

from configs import base

# width, depth, heads, hidden of the encoder; width, heads, hidden of its decoder of 4 blocks [code].
SIZES = {"B": ((768, 12, 12, 3072), (384, 6, 1536)), "L": ((1024, 24, 16, 4096), (512, 8, 2048))}


def av_mae(data: str, size: str, *, layout: str, seconds: int, audio_ratio: float, epochs: int, lr: float) -> ml_collections.ConfigDict:
    """Audiovisual MAE of one size on one data set: encoder `layout`, `seconds` of sound, its mask ratio, epochs, lr per 256 clips.

    Common to all [code]: 16 frames at stride 4 of 224 x 224 in [-1, 1], tubelets 2 x 16 x 16; 128 mel bins and 100 frames a
    second in patches of 16 x 16; random masks, .9 of the video; in the "mid" layout 2 fusion blocks; one decoder of 4 blocks
    with shared weights, run on each modality by itself; raw targets; terms of equal share .5; no inpainting; batch 512, Adam
    (.9, .95), decoupled weight decay .05 on kernels, 4 epochs of warm-up, cosine to 0, no dropout.

    Deviations: the peak is reached one step before the end of the warm-up; the crop of 224 out of a short side of 256 lies at one of 13
    places and there are no mirror images, while the code crops anywhere and mirrors; the code takes spectrograms as stored,
    whose logarithm and filters are not known, here they are data.spectrogram.AV_MAE [ours]; float32 there, bfloat16 with
    float32 parameters, loss and softmax here; remat is [ours].
    """
    config = base.get_config()
    config.name = f"av_mae_{data}_{size}"
    config.total = f"{epochs}ep"
    config.batch_size = 512
    (width, depth, heads, hidden), (narrow, few, inner) = SIZES[size]
    sound = fusion.Sound(spectrogram=100 * seconds, mels=128, patch=(16, 16))
    encoder = fusion.Encoder(width=width, depth=depth, heads=heads, hidden=hidden, layout=layout, fused=2, audio=sound, dtype="bfloat16", remat="full",
                             attention="auto", unroll=0)
    decoder = fusion.Decoder(width=narrow, depth=4, heads=few, hidden=inner, layout="shared", dtype="bfloat16", remat="full", attention="auto", unroll=0)
    config.objective = spec(audiovisual.AudiovisualMAE, encoder=encoder, decoder=decoder,
                            video_mask=masking.Random(ratio=0.9, layout="token"), audio_mask=masking.Random(ratio=audio_ratio, layout="token"))
    config.data = spec(AudioVideoClips, index="index.parquet", frames=16, size=224, repeats=1, sampling=clips.DenseRandom(stride=4),
                       crop=transforms.MultiScaleCrop(scales=(0.875,), distort=0), mel=spectrogram.AV_MAE, spectrogram=100 * seconds,
                       span="proportional")
    config.eval_data.update({"sampling": spec(clips.DenseCentre, stride=4), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=lr, minimum=0.0, warmup="4ep"), b1=0.9, b2=0.95, weight_decay=0.05)
    config.evaluators.cross = spec(modalities.CrossModal, every="5%", batch_size=64, clips=256)
    config.workers = 10
    return config
