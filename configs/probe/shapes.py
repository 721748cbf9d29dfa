"""The whole probe suite on the embedded world of moving shapes: attentive heads, linear heads by layer, neighbours, low-shot curve.

    python -m videomae_jax synthesize data/shapes
    python -m videomae_jax train --config=configs/smoke.py --workdir=runs/smoke
    python -m videomae_jax train --config=configs/probe/shapes.py --workdir=runs/probe_shapes

The untrained encoder for comparison: --config.objective.weights="". Every number is this project's own.
"""

import ml_collections

from videomae_jax import optim
from videomae_jax.config import spec
from videomae_jax.evals import attentive, knn, linear_probe, low_shot
from videomae_jax.models import probing, vit
from videomae_jax.objectives import probe

from configs.finetune import shapes


def get_config() -> ml_collections.ConfigDict:
    """Eight attentive heads on the frozen encoder of configs/smoke.py."""
    config = shapes.get_config()
    config.name = "probe_shapes"
    config.objective = spec(
        probe.Probe, encoder=vit.Encoder(width=128, depth=4, heads=4, hidden=512, patch=(2, 8, 8), frames=8, size=32, unroll=4),
        head=probing.Attentive(classes=4, count=8, blocks=1, heads=4), weights="runs/smoke")
    config.data.limit, config.data.repeats = 0, 1
    config.optimizers.main = spec(optim.Grid, schedule=optim.Schedule(base=1.0, minimum=0.0, warmup="0", unit=0), rates=(1e-2, 3e-3, 1e-3, 3e-4),
                                  decays=(0.01, 0.4))
    label = {"label": "appearance", "every": "", "train": 1000, "test": 400}
    config.evaluators.val = spec(attentive.Heads, every="50%", batch_size=64)
    config.evaluators.linear = spec(linear_probe.LinearProbe, layers=(0, 1, 2, 3, -1), rates=(0.1, 1.0, 10.0, 100.0), epochs=40, rows=128, **label)
    config.evaluators.neighbours = spec(knn.Neighbours, k=(10, 20, 100), **label)
    config.evaluators.low_shot = spec(low_shot.LowShot, shares=(0.01, 0.05, 0.1, 0.5, 1.0), **label)
    return config
