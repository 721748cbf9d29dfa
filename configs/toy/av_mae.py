"""Audiovisual MAE on the embedded world of colliding shapes, and the evidence that it relates what it sees and hears.

    python -m videomae_jax synthesize data/collisions --family=collisions
    python -m videomae_jax train --config=configs/toy/av_mae.py --workdir=runs/toy_av_mae
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/av_mae.py --workdir=runs/evidence_av_mae

Every number is this project's own: 16 frames of 48 x 48 over 2 s in tubelets of 2 x 12 x 12 give 8 x 4 x 4 tokens, 32 visible;
192 x 32 mel in patches of 16 x 8 (.16 s, about the length of a tone) give 12 x 4 tokens, 15 visible. A clip has 5.6 meetings
on average. The ratio of the video is .75 and not .9, so that most meetings can be seen.
"""

import ml_collections

from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, transforms
from videomae_jax.data.audiovisual import AudioVideoClips
from videomae_jax.data.spectrogram import LogMel
from videomae_jax.evals import modalities, pictures
from videomae_jax.evidence import Arm, Suite
from videomae_jax.models import fusion
from videomae_jax.objectives import audiovisual
from videomae_jax.verdicts import Claim, Requirement, Value

from configs import base

# 16 kHz, 25 ms every 10 ms. The floor lies above the world's noise, so that what is left to predict are the tones.
MEL = LogMel(taper="hamming", preemphasis=0.0, mels=32, floor=0.02, mean=-3.58, spread=1.38)
PROTOCOL = """mid, early, separate, shared: one model but for the layout of its encoder, all with the shared decoder; the same clips, 1200
steps and masks. Under separate and shared (one stack for both, one after the other) no token of a modality attends to the other, so
their gain is 0 by construction: they are the controls. inpainting is separate that predicts each modality from the tokens of the
other alone. Measured on 400 held-out clips: the masked loss of the sound beside its own video and beside another clip's, under the same masks
(gain in %); a ridge probe for the shapes present, from each modality alone and from both (1000 training and 400 held-out clips).
Margins fixed before the first run: 1 % for a gain, 0 for a loss, 5 points for what pretraining adds to a probe. The claim that
both beat the sound alone needs features that learnt: 5 points over the untrained encoder."""
LEARNT = Requirement(Value("mid", "present/both"), Value("mid", "present/both_untrained"), 5.0)


def get_config() -> ml_collections.ConfigDict:
    """Four blocks of width 128, two of them fused; two decoder blocks of width 64."""
    config = base.get_config()
    config.name = "toy_av_mae"
    config.total = "1200"
    config.batch_size = 4  # x 4 copies: reading a clip and its sound takes longer than training on it
    encoder = fusion.Encoder(width=128, depth=4, heads=4, hidden=512, layout="mid", fused=2, video=fusion.Video(frames=16, size=48, patch=(2, 12, 12)),
                             audio=fusion.Sound(spectrogram=192, mels=32, patch=(16, 8)), unroll=2)
    decoder = fusion.Decoder(width=64, depth=2, heads=2, hidden=256, unroll=2)
    config.objective = spec(audiovisual.AudiovisualMAE, encoder=encoder, decoder=decoder, video_mask=masking.Random(ratio=0.75, layout="token"),
                            audio_mask=masking.Random(ratio=0.7, layout="token"))
    config.data = spec(AudioVideoClips, index="data/collisions/index.parquet", frames=16, size=48, repeats=4, sampling=clips.DenseRandom(stride=2),
                       crop=transforms.MultiScaleCrop(scales=(1.0, 0.875), distort=0), mel=MEL, spectrogram=192, span="proportional")
    config.eval_data.update({"repeats": 1, "sampling": spec(clips.DenseCentre, stride=2), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, minimum=0.0, warmup="5%", unit=0), clip=1.0)
    config.evaluators.cross = spec(modalities.CrossModal, every="50%", batch_size=64, clips=400)
    config.evaluators.pictures = spec(pictures.Pictures, every="", clips=4)
    # Fixed before any run: ridge on mean tokens, penalty chosen on a fifth of the training clips, three bootstrap draws.
    config.evaluators.present = spec(modalities.ModalityProbe, label="appearance", every="", train=1000, test=400, seeds=3)
    config.evaluators.tempo = spec(modalities.ModalityProbe, label="tempo", every="", train=1000, test=400, seeds=3)
    config.checkpoint.every = "25%"
    config.log.every = "50"
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("cross", "present"),
        arms=(Arm("mid"), Arm("early", (("objective.encoder.layout", "early"),)), Arm("separate", (("objective.encoder.layout", "separate"),)),
              Arm("shared", (("objective.encoder.layout", "shared"),)),
              Arm("inpainting", (("objective.encoder.layout", "separate"), ("objective.inpainting", "all")))),
        claims=(Claim("mid_listens", "the sound is predicted better beside its own video, mid-fusion (%)", Value("mid", "cross/gain_audio"),
                      Value("separate", "cross/gain_audio"), "superior", 1.0),
                Claim("early_listens", "the same for early fusion (%)", Value("early", "cross/gain_audio"), Value("separate", "cross/gain_audio"), "superior", 1.0),
                Claim("inpainting", "all sound from its own video beats all sound from another clip's (%)", Value("inpainting", "cross/gain_audio"),
                      Value("separate", "cross/gain_audio"), "superior", 1.0),
                Claim("fusion", "mid-fusion predicts hidden sound better than separate encoders (loss)", Value("separate", "cross/loss_audio"),
                      Value("mid", "cross/loss_audio")),
                Claim("over_shared", "the same against one encoder for both (loss)", Value("shared", "cross/loss_audio"), Value("mid", "cross/loss_audio")),
                Claim("over_early", "the same against early fusion (loss)", Value("early", "cross/loss_audio"), Value("mid", "cross/loss_audio")),
                Claim("pretraining", "features of both beat the untrained encoder's by 5 (points)", Value("mid", "present/both"),
                      Value("mid", "present/both_untrained"), "superior", 5.0),
                Claim("both", "features of both beat those of the sound alone (points)", Value("mid", "present/both"), Value("mid", "present/audio"),
                      requires=(LEARNT,))))
    return config
