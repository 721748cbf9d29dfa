"""What the HVM-1 configs share; [log] marks numbers of the author's scripts and logs (eminorhan/mae_st)."""

import ml_collections

from videomae_jax import frame_targets, masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import completion, reconstruction
from videomae_jax.models import mae_st
from videomae_jax.objectives import mae

from configs import base


def hvm1(name: str, *, videos: int, repeats: int, epochs: int, size: int = 224, ratio: float = 0.9) -> ml_collections.ConfigDict:
    """HVM-1's ViT-H/14 of one data set and resolution: `videos` windows a step, `repeats` crops of each, `epochs`.

    MAE-ST (arXiv 2205.09113) but for [log]: all 16 frames predicted, raw pixels in the loader's units (so loss levels
    compare with the logs), 3.75 frames a second (stride 8 at 30; 4.3 s) whatever the file's rate, clipping .1, constant LR 1e-4 without warm-up. The
    logged runs end with a second one at 1e-5: --fork --config.optimizers.main.schedule.base=1e-5 and a longer total.

    Windows are cut at random from videos of any length, one from each video an epoch: an index of 4971 hours in few long
    files makes short epochs, so compare steps. Deviations: the crops of a window share its frames, there each has a start of its
    own; frames are a whole stride apart, there spread over the window with both ends (127 / 15 frames at 30 a second); frames are
    cut at the file's size, there after decoding at a short side of 256 (448 for clips of 448); bfloat16 with float32 parameters,
    loss and softmax (MAE-ST: float32 by default). Remat is this project's choice.
    """
    config = base.get_config()
    config.name = name
    config.total = f"{epochs}ep"
    config.batch_size = videos
    encoder = mae_st.encoder("H", patch=(2, 14, 14), size=size, dtype="bfloat16", remat="full")
    config.objective = spec(mae.MAE, encoder=encoder, decoder=mae_st.decoder(dtype="bfloat16", remat="full"),
                            encoder_mask=masking.Random(ratio=ratio, layout="token", truncate="visible"), decoder_mask=masking.Hidden(),
                            target=frame_targets.LoaderPixels(normalise="none"))
    config.data = spec(sources.VideoClips, index="index.parquet", frames=16, size=size, repeats=repeats, sampling=clips.PerSecond(rate=3.75),
                       crop=transforms.RandomResizedCrop(area=(0.5, 1.0), ratio=(0.75, 4 / 3), flip=0.5))
    config.eval_data.update({"repeats": 1, "sampling": spec(clips.PerSecond, rate=3.75, position="centre"), "crop": spec(transforms.CentreCrop)})
    schedule = optim.Schedule(base=1e-4, minimum=0.0, warmup="0", unit=0, shape="constant")
    config.optimizers.main = spec(optim.AdamW, schedule=schedule, b1=0.9, b2=0.95, weight_decay=0.05, clip=0.1)
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="5%", batch_size=64, clips=256)
    config.evaluators.centre = spec(completion.Completion, every="10%", mask=masking.Centre(ratio=0.5))
    config.evaluators.future = spec(completion.Completion, every="10%", mask=masking.Future(ratio=0.5))
    config.workers = 10
    return config
