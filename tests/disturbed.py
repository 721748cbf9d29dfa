"""The run that `tests/chaos.py` disturbs: files, crops, masks, drop-path, copies, saves and evaluations, and little to trace or compile."""

import dataclasses

import jax
import ml_collections
import numpy as np

from configs import base
from videomae_jax import masking, optim
from videomae_jax.config import spec
from videomae_jax.data import clips, sources, transforms
from videomae_jax.evals.base import Context
from videomae_jax.models import vit
from videomae_jax.objectives import mae


@dataclasses.dataclass(frozen=True)
class Sums:
    """An evaluator without a program of its own: one pass over the validation clips, and a number that depends on every parameter."""

    every: str = "3"

    def run(self, context: Context, /) -> dict[str, float]:
        """{"clips": rows that count, "parameters": sum of magnitudes}."""
        rows = sum(int(np.sum(part.data)) for batch in context.sweep(context.source("val"), batch_size=4) for part in batch["valid"].addressable_shards)
        return {"clips": rows * jax.process_count(), "parameters": float(sum(np.abs(np.asarray(x, np.float64)).sum() for x in jax.tree.leaves(context.params)))}


def get_config() -> ml_collections.ConfigDict:
    """Nine steps, saved and evaluated at every third."""
    config = base.get_config()
    config.name, config.total, config.batch_size = "disturbed", "9", 8
    encoder = vit.Encoder(width=16, depth=2, heads=2, hidden=32, patch=(2, 8, 8), frames=4, size=16, drop_path=0.2)
    decoder = vit.Decoder(width=16, depth=1, heads=2, hidden=32)
    config.objective = spec(mae.MAE, encoder=encoder, decoder=decoder, encoder_mask=masking.Random(ratio=0.5), decoder_mask=masking.Hidden())
    config.data = spec(sources.VideoClips, index="index.parquet", frames=4, size=16, repeats=2, sampling=clips.DenseRandom(stride=4),
                       crop=transforms.MultiScaleCrop())
    config.eval_data.update({"repeats": 1, "sampling": spec(clips.DenseCentre, stride=4), "crop": spec(transforms.CentreCrop)})
    config.optimizers.main = spec(optim.AdamW, schedule=optim.Schedule(base=1e-3, minimum=0.0, warmup="10%", unit=0))
    import disturbed  # this file, under the name that a run can find again

    config.evaluators.sums = spec(disturbed.Sums)
    config.checkpoint.every, config.log.every = "3", "1"
    return config
