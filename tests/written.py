"""Run directories with random weights, written without training: what commands that open a run are tested with."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import config as configs
from videomae_jax import frame_targets, parallel
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.convert import exporting, importing, report
from videomae_jax.data import clips, sources, three_crop, transforms
from videomae_jax.evals import classification
from videomae_jax.models import heads, mae_st, vit
from videomae_jax.objectives import classify, mae
from videomae_jax.step import TrainState

ENCODER = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "patch": (2, 8, 8), "frames": 4, "size": 16}
DECODER = {"width": 8, "depth": 1, "heads": 2, "hidden": 16}
CLASSES = ("wave", "jump", "sit")


def tree(objective: Any, /, *, seed: int = 0) -> Any:
    """Parameters whose every value is drawn."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: parallel.unbox(objective.init(jax.random.key(0), {})))
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32) * 0.3, shapes)


def config(objective: Any, /, *, source: Any = sources.VideoClips, **data: Any) -> Any:
    """A whole config around an objective, with data that cut clips of its size from files, by a `source` that may have more fields."""
    found = configs.load("configs/base.py")
    e = objective.encoder
    with found.unlocked(), found.ignore_type():
        found.objective = configs.plain(objective)
        found.data = configs.spec(source, **({"index": "absent.parquet", "frames": e.frames, "size": e.size, "sampling": clips.DenseCentre(stride=2),
                                                         "crop": transforms.CentreCrop()} | data))
    return found


def write(out: pathlib.Path, objective: Any, /, *, classes: tuple[str, ...] = (), source: Any = sources.VideoClips, **data: Any) -> pathlib.Path:
    """The run directory `out`."""
    settings = config(objective, source=source, **data)
    if hasattr(objective, "head"):
        views = classification.Views(sampling=clips.DenseView(stride=2, views=2), crop=three_crop.ThreeCrop(views=3))
        with settings.unlocked():
            settings.evaluators.test = configs.spec(classification.Classification, views=views)
    params = tree(objective)
    names = report.Report(loaded=(), reshaped=())
    exporting.write_run(importing.Imported(settings, params, names, classes, "test", ()), out)
    return out


def keep_best(run: pathlib.Path, objective: Any, /, *, step: int, seed: int) -> None:
    """Weights of a better evaluation at `step`, as `evals.best` leaves them beside the checkpoints of the run directory `run`."""
    saver = Checkpointer(run / "best")
    state = TrainState(step=jnp.asarray(step), rng=jax.random.key(0), params=tree(objective, seed=seed), opt={}, extra={}, ema={})
    saver.save(step, state, meta={"step": step, "metric": "top1", "value": 50.0})
    saver.wait()
    saver.close()


def pretraining(**encoder: Any) -> mae.MAE:
    """A tiny V2."""
    return mae.MAE(vit.Encoder(**(ENCODER | {"size": 32} | encoder)), vit.Decoder(**DECODER))


def classifier(**encoder: Any) -> classify.Classify:
    """A tiny classifier of three classes."""
    return classify.Classify(vit.Encoder(**(ENCODER | encoder)), heads.Classifier(classes=len(CLASSES)))


def with_learned_positions() -> mae.MAE:
    """A tiny MAE-ST."""
    return mae.MAE(mae_st.Encoder(**ENCODER), mae_st.Decoder(**DECODER, every=2), target=frame_targets.LoaderPixels(normalise="joint", every=2))
