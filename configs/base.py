"""Fields that every config has; the only level of inheritance."""

import ml_collections

from videomae_jax import optim
from videomae_jax.config import spec


def get_config() -> ml_collections.ConfigDict:
    """Defaults of the trainer; a recipe fills objective, data, eval_data, batch_size, total and the schedule."""
    config = ml_collections.ConfigDict(type_safe=False)
    config.name = ""
    config.seed = 0
    config.total = "100ep"  # "40ep" epochs over decoded clips, "5%" of the total, "1000" steps
    config.batch_size = 64  # decoded clips of one global batch; the device sees batch_size x data.repeats clips
    config.microbatches = 1
    config.ema = 0.0  # decay of averaged weights, 0 = none
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.workers = 0  # decoding processes per host; 0 = threads of the training process
    config.threads = 2  # decoding threads of each process
    config.prefetch = 2  # batches in flight to the device
    config.optimizers = ml_collections.ConfigDict({"main": spec(optim.AdamW, schedule=spec(optim.Schedule, base=1.5e-4))}, type_safe=False)
    config.objective = ml_collections.ConfigDict(type_safe=False)
    config.data = ml_collections.ConfigDict(type_safe=False)
    config.eval_data = ml_collections.ConfigDict(type_safe=False)  # fields of `data` that change for evaluation
    config.evaluators = ml_collections.ConfigDict(type_safe=False)
    config.checkpoint = ml_collections.ConfigDict({"every": "5%", "keep_last": 2, "keep_every": ""}, type_safe=False)
    config.log = ml_collections.ConfigDict({"every": "10"}, type_safe=False)
    return config
