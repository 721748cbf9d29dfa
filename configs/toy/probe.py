"""The probe suite on the embedded world of moving shapes, and the evidence that every probe reads what pretraining left.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax evaluate --suite=evidence --config=configs/toy/probe.py --workdir=runs/evidence_probe

About ten minutes on two CPU cores for each seed, no run above four. The runs are configs/smoke.py with 1,600 of its steps and
the probes of configs/probe/shapes.py, four attentive heads in one pass; every number is this project's own. One probe of a run that is there:
train --config=configs/probe/shapes.py --config.objective.weights=RUN --config.objective.head.blocks=4.
"""

import ml_collections

from videomae_jax import optim
from videomae_jax.config import spec
from videomae_jax.evidence import Arm, Suite
from videomae_jax.verdicts import Claim, Value

from configs.probe import shapes

PROTOCOL = """Heads of one block (cross-attention of one query) and of four (three blocks of self-attention before it) on the frozen tokens of a
pretrained encoder, and the same on those of the encoder at initialisation: 400 steps of 8 clips of the 2000 training clips with their
label of appearance (chance 25 %), four heads in one pass (2 rates x 2 decays). Measured on 400 held-out clips: top-1 of the head that is
chosen on the other half of them (`selected`); the best head, a choice on the answers, stands beside it. The other probes of the suite
take the mean token of the same two encoders, with 1000 training clips: linear heads of four rates at every layer (the rate chosen on a
fifth of the training clips), 10 nearest neighbours, and a ridge probe on 1, 5, 10, 50 and 100 % of the labels (three draws of the
clips a share). Margins, fixed before the first run: pretraining adds 5 points to every probe, on a tenth of the labels too; four
blocks do better than one at all."""
FOUR = ("objective.head.blocks", 4)
PROBES = (("one", "a probe of one block", "one", "val/selected"), ("four", "a probe of four blocks", "four", "val/selected"),
          ("linear", "the linear probe of the last layer", "one", "linear/layer-1_selected"), ("neighbours", "the vote of 10 neighbours", "one", "neighbours/k10"),
          ("low_shot", "a probe of a tenth of the labels", "one", "low_shot/10%"))
READ, NOISE = ("objective.weights", "{after}"), ("objective.weights", "")


def reads(name: str, probe: str, arm: str, measurement: str) -> Claim:
    """That `probe` reads 5 points more from a pretrained encoder."""
    return Claim(name, f"{probe} reads more after pretraining (points)", Value(arm, measurement), Value(f"{arm}_untrained", measurement), margin=5.0)


def get_config() -> ml_collections.ConfigDict:
    """Four attentive heads of one block."""
    config = shapes.get_config()
    config.name = "toy_probe"
    config.batch_size = 8
    config.objective.head.count = 4
    config.optimizers.main = spec(optim.Grid, schedule=optim.Schedule(base=1.0, minimum=0.0, warmup="0", unit=0), rates=(3e-3, 1e-3), decays=(0.01, 0.4))
    config.evidence = spec(
        Suite, protocol=PROTOCOL, seeds=3, report=("reconstruction", "val", "linear", "neighbours", "low_shot"),
        arms=(Arm("pretrained", (("total", "1600"),), config="configs/smoke.py"),
              Arm("one", (READ,), after="pretrained"), Arm("four", (READ, FOUR), after="pretrained"),
              Arm("one_untrained", (NOISE,)), Arm("four_untrained", (NOISE, FOUR))),
        claims=(*(reads(*claim) for claim in PROBES),
                Claim("depth", "four blocks read more than one (points)", Value("four", "val/selected"), Value("one", "val/selected"))))
    return config
