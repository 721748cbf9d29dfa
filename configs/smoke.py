"""The smoke run of launch/local.sh: VideoMAE V2 on the embedded world of moving shapes, minutes on two CPU cores.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax train --config=configs/smoke.py --workdir=runs/smoke

Every number is this project's own: 8 frames of 32 x 32 in tubelets of 2 x 8 x 8 give 4 x 4 x 4 tokens, of which 16 are
seen by the encoder and 32 decoded. The ratio .75 leaves a visible patch within reach of every hidden one.
"""

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals import pictures, probe, reconstruction
from videomae_jax.models import vit
from videomae_jax.objectives import mae

from configs import base


def get_config() -> ml_collections.ConfigDict:
    """Four encoder blocks of width 128, two decoder blocks of width 64."""
    config = base.get_config()
    config.name = "smoke"
    config.total = "2600"
    config.batch_size = 8
    encoder = vit.Encoder(width=128, depth=4, heads=4, hidden=512, patch=(2, 8, 8), frames=8, size=32, unroll=4)
    decoder = vit.Decoder(width=64, depth=2, heads=2, hidden=256, unroll=2)
    config.objective = spec(mae.MAE, encoder=encoder, decoder=decoder, encoder_mask=masking.Random(ratio=0.75, layout="tube"),
                            decoder_mask=masking.RunningCell(ratio=0.5))
    config.data = spec(sources.VideoClips, index="data/shapes/index.parquet", frames=8, size=32, repeats=4,
                       sampling=clips.DenseRandom(stride=2), crop=transforms.MultiScaleCrop())
    config.eval_data.update({"repeats": 1, "sampling": spec(clips.DenseCentre, stride=2), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=3e-3, minimum=1e-5, warmup="5%", unit=0), clip=1.0)
    config.evaluators.reconstruction = spec(reconstruction.Reconstruction, every="25%", batch_size=64, clips=256)
    config.evaluators.pictures = spec(pictures.Pictures, every="", clips=4)
    # Protocol: ridge on the mean token of the frozen encoder, 1000 training and 400 held-out clips, penalty chosen on a
    # fifth of the training clips, three seeds. Appearance is the label of the summary; motion is reported beside it.
    config.evaluators.appearance = spec(probe.Probe, label="appearance", every="", train=1000, test=400, seeds=3, primary=True)
    config.evaluators.motion = spec(probe.Probe, label="motion", every="", train=1000, test=400, seeds=3)
    config.checkpoint.every = "25%"
    config.log.every = "50"
    return config
