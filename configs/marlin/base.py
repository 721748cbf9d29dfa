"""What the MARLIN configs share; [code] marks numbers of its released code and configs (commit c9d5698), [ours] this project's."""

import ml_collections

from videomae_jax import masking, optim, part_masks
from videomae_jax.config import spec
from videomae_jax.data import clips, parts, transforms
from videomae_jax.data.attributes import AttributeClips
from videomae_jax.evals import attributes as attribute_evals
from videomae_jax.evals import parts as part_evals
from videomae_jax.models import critic, heads, vit
from videomae_jax.objectives import attributes, marlin
from videomae_jax.objectives.base import External

from configs import base

EPS = 1e-5  # of every LayerNorm [code]
NEUTRAL = masking.Random(ratio=0.9, layout="token", truncate="visible")  # for evaluation [this project's]


def marlin_of(size: str, *, depth: int = 4) -> ml_collections.ConfigDict:
    """MARLIN of one size on YouTube Faces, with a decoder of `depth` blocks.

    16 frames of 224 x 224 at stride 2, pixels in [0, 1] that nothing normalises, ratio .9 over the whole clip (156 of 1568
    tokens visible), decoders 192, 384 and 512 wide, critic P -> 4 x decoder width -> 1, coefficient .01, no penalty, one update of
    each player a step, 4 GPUs x 16 clips, AdamW (.9, .95) without decay for both, 1.5e-4 per 256 clips falling to 1e-5 per 256,
    40 epochs of warm-up, 2000 epochs, float32, initial weights of VideoMAE [code].

    `index.parquet` lists videos of face crops; its column `parts` names an .npy u8 [frames h w] of LaPa classes for each, as
    a face parser gives them. The weights are those of a run or a converted checkpoint of configs/videomae of this size:
    --config.objective.initial.path=....

    Deviations: products of float32 are the device's own, of factors that TPUs round to bfloat16 and GPUs to TF32; they are exact, and on a TPU
    of six each, with JAX_DEFAULT_MATMUL_PRECISION=highest. The schedule steps once a step, there once an epoch; videos and stacked maps
    are read, there a jpg and an .npy for every frame; which VideoMAE weights is not said, taken are Kinetics-400's with the decoder, and
    augmentation is taken to be none.
    """
    config = base.get_config()
    config.name = f"marlin_{size}"
    config.total = "2000ep"
    config.batch_size = 64
    encoder = vit.encoder(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), eps=EPS)
    decoder = vit.decoder(size, depth=depth, eps=EPS)
    config.objective = spec(marlin.MARLIN, encoder=encoder, decoder=decoder, encoder_mask=part_masks.Guided(ratio=0.9),
                            critic=critic.Critic(hidden=4 * decoder.width), coefficient=0.01, penalty=0.0, critic_steps=1,
                            initial=External(into="params", path=f"runs/videomae_k400_{size.lower()}", fresh=("critic/.*",)))
    config.data = spec(parts.PartClips, index="index.parquet", frames=16, size=224, repeats=1, sampling=clips.DenseRandom(stride=2),
                       crop=transforms.WholeFrame(), parts="parts")
    config.eval_data.update({"sampling": spec(clips.DenseCentre, stride=2)})
    for name in ("main", "critic"):
        config.optimizers[name] = spec(optim.AdamW, schedule=optim.Schedule(base=1.5e-4, minimum=1e-5, warmup="40ep"), b1=0.9, b2=0.95, weight_decay=0.0)
    config.evaluators.parts = spec(part_evals.PartReconstruction, every="5%", batch_size=64, clips=256, mask=NEUTRAL)
    config.evaluators.guided = spec(part_evals.PartReconstruction, every="5%", batch_size=64, clips=256, mask=part_masks.Guided(ratio=0.9))
    config.workers = 10
    return config


def finetuned(task: str, size: str, *, names: tuple[str, ...]) -> ml_collections.ConfigDict:
    """Fine-tuning of MARLIN of one size on yes-or-no labels, the columns `names` of the index.

    Encoder, mean of the tokens, its last norm and a linear layer; binary cross-entropy, 32 clips a step, Adam (.5, .9) at 1e-4, which no
    batch scales, without decay; 16 frames at stride 2 of face crops in [0, 1], as in pretraining [code]; 50 epochs, one
    central clip for the test [ours]. Linear probe: --config.objective.trains=linear, which leaves the encoder's last norm as it is, as there.

    Deviations: the code halves the rate when the training loss has not fallen for 7 epochs, ends below 1e-6 and takes the weights
    with the best area under the curve of the validation split; here the rate stays, a run goes on at half of it with --fork
    --config.optimizers.main.schedule.base=5e-5, and the last weights count. The probe of the code averages the features of
    many windows of a video before it fits; here each window is an example. The linear layer starts as PyTorch's do there, weights and
    biases U(+-1 / sqrt(width)), here as N(0, .02) and 0. The reader of CelebV-HQ lowers the stride to 1 for videos of 17 to 31 frames;
    here stride 2 goes on to the end, and the last frame repeats.
    """
    config = base.get_config()
    config.name = f"marlin_{task}_{size}"
    config.total = "50ep"
    config.batch_size = 32
    config.objective = spec(attributes.Attributes, encoder=vit.encoder(size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), eps=EPS),
                            head=heads.Classifier(classes=len(names), init_scale=1.0, eps=EPS), pretrained=f"runs/marlin_{size.lower()}")
    config.data = spec(AttributeClips, index="index.parquet", attributes=names, frames=16, size=224, repeats=1, sampling=clips.DenseRandom(stride=2),
                       crop=transforms.WholeFrame())
    config.eval_data.update({"sampling": spec(clips.DenseCentre, stride=2)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1e-4, minimum=0.0, warmup="0", unit=0, shape="constant"), b1=0.5, b2=0.9,
                                  weight_decay=0.0)
    config.evaluators.val = spec(attribute_evals.AttributeAccuracy, every="5%", batch_size=64)
    config.workers = 10
    return config
