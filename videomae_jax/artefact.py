"""An encoder or classifier as a StableHLO program for serving: a folder that needs jax and numpy alone, none of this package.

`program.bin` is the serialised program for any batch, `weights.npz` its arguments, `about.json` what goes in and comes out, and
`run.py` (runner.py of this package) opens it:

    python run.py clip.npy --out=features.npz
"""

import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from videomae_jax import parallel, run_directory
from videomae_jax.api import Model
from videomae_jax.errors import UserError
from videomae_jax.objectives import base
from videomae_jax.runner import ABOUT, PROGRAM, WEIGHTS

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
WHAT = ("features", "classes")


def write(model: Model, out: pathlib.Path, /, *, what: str = "features", layer: int = -1, platforms: Sequence[str] = ("cpu",)) -> dict[str, Any]:
    """Writes the folder `out` (new or empty) and returns what stands in about.json.

    The program takes `video` u8 [B T H W C] for any B and gives `tokens` f32 [B N D] and `pooled` f32 [B D] ("features"), or
    `probabilities` f32 [B classes] ("classes"), whose `layer` is -1. Raises UserError where the model has no such output.
    """
    if what not in WHAT or not platforms or not set(platforms) <= set(PLATFORMS):
        raise UserError(f"{what!r} for {', '.join(platforms) or 'no platform'}; allowed are {', '.join(WHAT)} for {', '.join(PLATFORMS)}")
    if what == "classes" and not hasattr(model.objective, "head"):
        raise UserError(f"{type(model.objective).__name__} has no classes; allowed is 'features'")
    if what == "classes" and layer != -1:
        raise UserError(f"layer {layer} for 'classes', which come from the head whatever the layer; allowed is a layer for 'features'")
    model.check_layer(layer)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out={out} is there already and not an empty folder; use a new name")
    variables = (model.params, model.extra)
    leaves, structure = jax.tree.flatten(variables)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    serve = program(model, structure, what=what, layer=layer)
    (rows,) = jax.export.symbolic_shape("b")
    e = model.objective.encoder
    video = jax.ShapeDtypeStruct((rows, e.frames, e.size, e.size, e.channels), np.uint8)
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
    # Kernels of this machine's devices have no place in it; clips and heads one after the other serve a CPU alone.
    with parallel.aim(parallel.Target("cpu", 1) if tuple(platforms) == ("cpu",) else parallel.Target("export", 0)):
        exported = jax.export.export(jax.jit(serve), platforms=tuple(platforms))(shapes, video)
        answers = jax.eval_shape(serve, shapes, jax.ShapeDtypeStruct((1, *video.shape[1:]), np.uint8))
    arrays = [np.asarray(x) for x in leaves]
    about = {"what": what, "layer": layer, "step": model.step, "platforms": list(platforms), "jax": jax.__version__, "weights": names,
             "dtypes": [str(x.dtype) for x in arrays],
             "input": {"video": ["b", e.frames, e.size, e.size, e.channels], "dtype": "uint8", "range": [0, 255]},
             "output": {k: ["b", *(int(n) for n in v.shape[1:])] for k, v in answers.items()},
             "grid": [e.grid.t, e.grid.h, e.grid.w], "classes": list(model.classes) if what == "classes" else []}
    out.mkdir(parents=True, exist_ok=True)
    # numpy's format knows no bfloat16: its bits lie there as integers.
    np.savez(out / WEIGHTS, **{f"{i:06d}": x.view(f"u{x.itemsize}") if x.dtype.kind == "V" else x for i, x in enumerate(arrays)})
    (out / PROGRAM).write_bytes(exported.serialize())
    shutil.copyfile(pathlib.Path(__file__).with_name("runner.py"), out / "run.py")
    run_directory.write(out / ABOUT, json.dumps(about, indent=2))
    return about


def program(model: Model, structure: Any, /, *, what: str, layer: int) -> Any:
    """(list of weights, video u8 [B T H W C]) -> {name: f32 [B ...]}."""
    fields = base.dummy({k: f for k, f in model.fields.items() if k != "video"})

    def serve(weights: list[Any], video: Any) -> dict[str, Any]:
        params, extra = jax.tree.unflatten(structure, weights)
        batch = {k: jnp.broadcast_to(v, (video.shape[0], *v.shape[1:])) for k, v in fields.items()} | {"video": video}
        if what == "classes":
            return {"probabilities": model.objective.class_probabilities(model.objective.predict(params, extra, batch, jax.random.key(0)).logits)}
        found = model.objective.represent(params, extra, batch, inputs=("video",), layer=layer)["video"]
        return {"tokens": found.tokens, "pooled": found.pooled}
    return serve
