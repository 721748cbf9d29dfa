"""Distillation on the embedded world of moving shapes, and the evidence that a teacher's logits are worth more than its labels.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/distill.py --workdir=runs/evidence_distill

Ten to twelve minutes on two CPU cores for each seed, no run above four. The runs are configs/smoke.py with 1,600 of its steps,
configs/finetune/shapes.py with 1,200 steps (the teacher) and configs/distill/shapes.py; every number is this project's own.
"""

import ml_collections

from videomae_jax.config import spec
from videomae_jax.evidence import Arm, Suite
from videomae_jax.verdicts import Claim, Requirement, Value

from configs.distill import shapes

PROTOCOL = """teacher: four blocks of width 128, pretrained without labels and fine-tuned for 1,200 steps on 200 labelled clips (appearance, chance 25 %).
The student is a network of two blocks of width 64, an eighth of the teacher's size, that starts from random weights. labels: the student
on the same 200 labels, smoothed. logits: the student on the same 200 clips, without their labels, by the KL to the teacher's logits.
distilled: the same on all 2000 training clips, as nobody has to label them. The three arms differ in nothing else: steps, optimiser,
crops, mixing, and a teacher that runs beside each. VideoMAE V2 finds that students of ViT-g beat the same sizes trained on labels
(there on the same clips: the arm logits). Measured on 400 held-out clips: top-1, and in how many of them student and teacher name the
same class. A claim about top-1 is testable if the teacher beats the student on labels by 2 points, for one has to know more in order
to teach. The margin of every claim is 0, fixed before the first run; the clips of labels and logits are seen 160 times each. A first
protocol gave the teacher 400 steps: it beat the student on labels by 0.4 points, and nothing about top-1 was testable."""
STUDENT = (("objective.weights", "{after}"),)
BETTER = Requirement(Value("teacher", "val/top1"), Value("labels", "val/top1"), 2.0)


def get_config() -> ml_collections.ConfigDict:
    """The distillation of configs/distill/shapes.py for 1,000 steps."""
    config = shapes.get_config()
    config.name = "toy_distill"
    config.total = "1000"
    labels = (*STUDENT, ("data.limit", 200), ("objective.matching", 0.0), ("objective.labels", 1.0))
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("reconstruction", "val", "agreement"),
        arms=(Arm("pretrained", (("total", "1600"),), config="configs/smoke.py"),
              Arm("teacher", (("objective.pretrained", "{after}"), ("total", "1200")), config="configs/finetune/shapes.py", after="pretrained"),
              Arm("labels", labels, after="teacher"),
              Arm("logits", (*STUDENT, ("data.limit", 200)), after="teacher"),
              Arm("distilled", STUDENT, after="teacher")),
        claims=(Claim("distilled", "the student of a teacher and unlabelled clips beats the one on labels (points)", Value("distilled", "val/top1"),
                      Value("labels", "val/top1"), requires=(BETTER,)),
                Claim("logits", "on the same clips, logits beat labels (points)", Value("logits", "val/top1"), Value("labels", "val/top1"),
                      requires=(BETTER,)),
                Claim("agreement", "the distilled student names the teacher's class more often (points)", Value("distilled", "agreement/agreement"),
                      Value("labels", "agreement/agreement"))))
    return config
