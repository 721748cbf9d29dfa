"""Evidence for the smoke run, longer: three pretrainings, fine-tuning with a tenth of the labels, the same from random weights.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax evaluate --suite=evidence --config=configs/evidence.py --workdir=runs/evidence

About a quarter of an hour on two CPU cores for each pretraining and for each training from scratch of equal time. The pretraining is
configs/smoke.py with 2.5 times its steps (with its own 2,600, the loss lay 22.7, 21.0 and 16.6 % below the zero line: not shown), the
fine-tuning configs/finetune/shapes.py with the label appearance.
"""

import ml_collections

from videomae_jax.config import spec
from videomae_jax.evidence import Arm, Suite
from videomae_jax.verdicts import Claim, Value

from configs import smoke

PROTOCOL = """Three seeds of the pretraining; each encoder is probed (ridge on its mean token, 1000 training and 400 held-out clips,
penalty chosen on a fifth of the training clips) beside the same encoder at initialisation and raw pixels, and fine-tuned on 200
labelled clips. From scratch means the same fine-tuning config from random weights on the same 200 clips: `scratch` for as many steps
as fit into the time of pretraining and fine-tuning together, `control` for as many as fine-tuning has. All losses are held-out,
under the same masks. Margins, fixed before the first run: the held-out loss lies a fifth of 0.85, the predict-zero line of these
clips, below that line; the probe gains 10 points; fine-tuning beats training from scratch at all."""
LABELS = (("data.label", "appearance"), ("objective.head.classes", 4))


def get_config() -> ml_collections.ConfigDict:
    """The smoke config with its suite."""
    config = smoke.get_config()
    config.name = "evidence"
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("motion",),
        arms=(Arm("pretrained", (("total", "6500"),)),
              Arm("finetuned", (*LABELS, ("objective.pretrained", "{after}")), config="configs/finetune/shapes.py", after="pretrained"),
              Arm("control", (*LABELS, ("objective.pretrained", "")), config="configs/finetune/shapes.py"),
              Arm("scratch", (*LABELS, ("objective.pretrained", "")), config="configs/finetune/shapes.py", as_long_as=("pretrained", "finetuned"))),
        claims=(Claim("loss", "predict-zero line above the held-out loss", Value("pretrained", "reconstruction/loss_zero"),
                      Value("pretrained", "reconstruction/loss"), "superior", 0.17),
                Claim("trivial", "best trivial predictor above the held-out loss", Value("pretrained", "reconstruction/loss_trivial"),
                      Value("pretrained", "reconstruction/loss"), "superior", 0.12),
                Claim("probe", "appearance probe over the untrained encoder (points)", Value("pretrained", "appearance/trained"),
                      Value("pretrained", "appearance/untrained"), "superior", 10.0),
                Claim("pixels", "appearance probe over raw pixels (points)", Value("pretrained", "appearance/trained"),
                      Value("pretrained", "appearance/pixels"), "superior", 10.0),
                Claim("steps", "fine-tuned over from scratch of equal steps, 10 % labels (points)", Value("finetuned", "val/top1"),
                      Value("control", "val/top1")),
                Claim("finetune", "fine-tuned over from scratch of equal time, 10 % labels (points)", Value("finetuned", "val/top1"),
                      Value("scratch", "val/top1"))))
    return config
