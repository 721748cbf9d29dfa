"""Evidence for the smoke run: three pretrainings, fine-tuning with a tenth of the labels, training from scratch of equal time.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax evaluate --suite=evidence --config=configs/evidence.py --workdir=runs/evidence

About half an hour on two CPU cores. The pretraining is configs/smoke.py, the fine-tuning configs/finetune/shapes.py with the
label appearance.
"""

import ml_collections

from videomae_jax.config import spec
from videomae_jax.evidence import Arm, Suite
from videomae_jax.verdicts import Claim, Value

from configs import smoke

PROTOCOL = """Three seeds of the pretraining; each encoder is probed (ridge on its mean token, 1000 training and 400 held-out clips,
penalty chosen on a fifth of the training clips) beside the same encoder at initialisation and raw pixels, and fine-tuned on 200
labelled clips. From scratch means the same fine-tuning config from random weights, for as many steps as fit into the time of
pretraining and fine-tuning together, on the same 200 clips. All losses are held-out, under the same masks. Margins, fixed before
the first run: the held-out loss lies a fifth of 0.85, the predict-zero line of these clips, below that line; the probe gains 10
points; fine-tuning beats training from scratch at all."""
LABELS = (("data.label", "appearance"), ("objective.head.classes", 4))


def get_config() -> ml_collections.ConfigDict:
    """The smoke config with its suite."""
    config = smoke.get_config()
    config.name = "evidence"
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("motion",),
        arms=(Arm("pretrained"),
              Arm("finetuned", (*LABELS, ("objective.pretrained", "{after}")), config="configs/finetune/shapes.py", after="pretrained"),
              Arm("scratch", (*LABELS, ("objective.pretrained", "")), config="configs/finetune/shapes.py", as_long_as=("pretrained", "finetuned"))),
        claims=(Claim("loss", "predict-zero line above the held-out loss", Value("pretrained", "reconstruction/loss_zero"),
                      Value("pretrained", "reconstruction/loss"), "superior", 0.17),
                Claim("trivial", "best trivial predictor above the held-out loss", Value("pretrained", "reconstruction/loss_trivial"),
                      Value("pretrained", "reconstruction/loss"), "superior", 0.12),
                Claim("probe", "appearance probe over the untrained encoder (points)", Value("pretrained", "appearance/trained"),
                      Value("pretrained", "appearance/untrained"), "superior", 10.0),
                Claim("pixels", "appearance probe over raw pixels (points)", Value("pretrained", "appearance/trained"),
                      Value("pretrained", "appearance/pixels"), "superior", 10.0),
                Claim("finetune", "fine-tuned over from scratch of equal time, 10 % labels (points)", Value("finetuned", "val/top1"),
                      Value("scratch", "val/top1"))))
    return config
