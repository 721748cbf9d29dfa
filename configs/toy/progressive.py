"""Progressive training on the embedded world of moving shapes, and whether a labelled task in between helps, in and out of the domain.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/progressive.py --workdir=runs/evidence_progressive

Ten to twelve minutes on two CPU cores for each seed, no run above four. The runs are configs/smoke.py with 1,600 of its steps and
configs/finetune/shapes.py; launch/progressive.sh chains the same stages as separate runs. Every number is this project's own.
"""

import ml_collections

from videomae_jax.config import spec
from videomae_jax.evidence import Arm, Suite
from videomae_jax.verdicts import Claim, Value

from configs.finetune import shapes

PROTOCOL = """Target: 200 labelled clips of appearance (chance 25 %). direct: pretraining, then 600 steps on the target. inside: pretraining, 400
steps on the labels of appearance of all 2000 training clips, then 200 steps on the target from that encoder and its head, as the labels of
Kinetics-710 hold those of Kinetics-400. outside: pretraining, 400 steps on another label of all 2000 clips (motion, 8 classes), then 200
steps on the target from that encoder with a fresh head. All three have as many labelled steps, one pretraining and one test, and no
clip of the test is in any stage; inside sees more labels of the target, which is what the stage is for. VideoMAE V2 finds that the
stage helps Kinetics-400 and 600 and hurts Something-Something. Measured on 400 held-out clips, top-1 of
the last step. The margins were fixed before the first run: 0 for both claims, and either sign is reported; the top-1 of the
stages themselves stands beside them."""
FROM = (("objective.pretrained", "{after}"),)
STAGE = (*FROM, ("total", "400"), ("data.limit", 0))
TARGET = (*FROM, ("total", "200"))


def get_config() -> ml_collections.ConfigDict:
    """The fine-tuning of configs/finetune/shapes.py for 600 steps."""
    config = shapes.get_config()
    config.name = "toy_progressive"
    config.total = "600"
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("reconstruction", "val"),
        arms=(Arm("pretrained", (("total", "1600"),), config="configs/smoke.py"),
              Arm("direct", FROM, after="pretrained"),
              Arm("same_label", STAGE, after="pretrained"),
              Arm("other_label", (*STAGE, ("data.label", "motion"), ("objective.head.classes", 8)), after="pretrained"),
              Arm("inside", (*TARGET, ("objective.start", "model")), after="same_label"),
              Arm("outside", TARGET, after="other_label")),
        claims=(Claim("inside", "a stage on the same label beats direct fine-tuning of as many steps (points)", Value("inside", "val/top1"),
                      Value("direct", "val/top1")),
                Claim("outside", "a stage on another label beats direct fine-tuning of as many steps (points)", Value("outside", "val/top1"),
                      Value("direct", "val/top1"))))
    return config
