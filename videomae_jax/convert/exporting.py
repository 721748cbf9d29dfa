"""Converted weights as a run directory of ours, and runs of ours as checkpoints of Hugging Face or the official code."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import config as configs
from videomae_jax import externals, head_rows, run_directory
from videomae_jax.checkpoint import Checkpointer
from videomae_jax.convert import answers, files, videomae
from videomae_jax.convert.importing import Imported
from videomae_jax.errors import UserError
from videomae_jax.evals import best as kept
from videomae_jax.models import layers, resized, vit
from videomae_jax.objectives.base import External
from videomae_jax.step import TrainState

TARGETS = ("hf", "videomae")


def claim(out: pathlib.Path, /) -> None:
    """Raises UserError where `out` is taken."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"--out={out} is there already and not an empty folder; use a new name")


def write_run(found: Imported, out: pathlib.Path, /) -> None:
    """A run directory at step 0 in the new or empty folder `out`: config.json, a checksummed checkpoint, conversion.json with
    the account and the digests of the files, and classes.json where the classes have names.
    """
    claim(out)
    account = {"family": found.family, "files": {p.name: externals.digest(p) for p in found.files}, **found.report.as_dict()}
    params = jax.tree.map(jnp.asarray, found.params)
    state = TrainState(step=jnp.zeros((), jnp.int32), rng=jax.random.key(0), params=params, opt={}, extra={}, ema={})
    saver = Checkpointer(out / "checkpoints")
    saver.save(0, state, meta={"converted": {"family": found.family, "files": account["files"]}})
    saver.wait()
    saver.close()
    run_directory.write(out / "conversion.json", json.dumps(account, indent=2))
    if found.classes:
        run_directory.write(out / head_rows.CLASSES, json.dumps(list(found.classes), indent=2))
    run_directory.write(out / "config.json", configs.to_json(found.config))  # last: what makes it a run directory


def export(run: pathlib.Path, /, *, to: str, out: pathlib.Path, item: str = "params", best: bool = False,
           biases: videomae.Biases = videomae.Biases.HUB) -> dict[str, np.ndarray]:
    """Writes the newest checkpoint of a run for others, or its `best` weights, and returns the arrays under their names.

    "hf": a folder with config.json, model.safetensors and preprocessor_config.json. "videomae": a .pth file with the tensors
    under "model", whose code has an eps of 1e-6, and under "args" what they do not tell. Raises UserError for a model that the other side does not have.
    """
    if to not in TARGETS:
        raise UserError(f"--to={to}; allowed are {', '.join(TARGETS)}")
    claim(out)
    run, best = kept.named(run, best=best)
    config = run_directory.open_run(run)
    objective = configs.build(config.objective)
    encoder, decoder = getattr(objective, "encoder", None), getattr(objective, "decoder", None)
    for model in (encoder, *([] if decoder is None else [decoder])):
        check(model)
        if to == "videomae" and model.eps != layers.LN_EPS:
            raise UserError(f"LayerNorms with eps {model.eps:g}, and the official code has {layers.LN_EPS:g}; allowed is --to=hf, whose config says which")
    settings = (hf_settings if to == "hf" else official_settings)(objective, classes=head_rows.of_run(run, objective))
    params = externals.read(External("params", str(kept.checkpoints(run, best=best)), item=item))
    pretrained = decoder is not None
    if to == "videomae":
        convert = videomae.to_official if pretrained else videomae.classifier_to_official
        state = convert(params, patch=encoder.patch)
        write_official(state, out, settings=settings)
        return state
    convert = videomae.to_hf if pretrained else videomae.classifier_to_hf
    state = convert(params, patch=encoder.patch, biases=biases)
    write_hf(state, out, settings=settings, objective=objective)
    return state


def check(model: Any, /) -> None:
    """Raises UserError for an encoder or decoder that has no counterpart in VideoMAE's code."""
    plain = type(model) in (vit.Encoder, vit.Decoder)
    if not plain and not (isinstance(model, resized.Encoder) and model.trained == (model.grid.t, model.grid.h, model.grid.w)):
        name = f"{type(model).__module__}.{type(model).__qualname__}"
        raise UserError(f"{name} has no counterpart there: they compute the position table of their own grid and have VideoMAE's blocks alone")


def hf_settings(objective: Any, /, *, classes: Sequence[str]) -> dict[str, Any]:
    """config.json of Hugging Face. Its modules fix eps 1e-5 in decoder.norm and fc_norm, whatever ours is; one eps serves all others."""
    e, d = objective.encoder, getattr(objective, "decoder", None)
    if e.patch[1] != e.patch[2]:
        raise UserError(f"patches of {e.patch[1]} x {e.patch[2]} pixels; Hugging Face's are square")
    if d is not None and d.eps != e.eps:
        raise UserError(f"LayerNorms with eps {e.eps:g} in the encoder and {d.eps:g} in the decoder; Hugging Face has one for both")
    found = {"model_type": "videomae", "image_size": e.size, "patch_size": e.patch[1], "num_channels": e.channels, "num_frames": e.frames,
             "tubelet_size": e.patch[0], "hidden_size": e.width, "num_hidden_layers": e.depth, "num_attention_heads": e.heads,
             "intermediate_size": e.hidden, "hidden_act": "gelu", "layer_norm_eps": e.eps, "qkv_bias": True, "use_mean_pooling": d is None}
    if d is not None:
        return found | {"architectures": ["VideoMAEForPreTraining"], "decoder_num_attention_heads": d.heads, "decoder_hidden_size": d.width,
                        "decoder_num_hidden_layers": d.depth, "decoder_intermediate_size": d.hidden,
                        "norm_pix_loss": objective.target.normalise == "channel"}
    names = classes or [f"LABEL_{i}" for i in range(objective.head.classes)]
    found |= {answers.PROBLEM: answers.SEVERAL} if objective.head_kind == "attributes" else {}  # which its pipelines choose a sigmoid by
    return found | {"architectures": ["VideoMAEForVideoClassification"], "id2label": {str(i): n for i, n in enumerate(names)},
                    "label2id": {n: i for i, n in enumerate(names)}}


def official_settings(objective: Any, /, *, classes: Sequence[str]) -> dict[str, Any]:
    """What `convert` does not read in the tensors of a .pth file: under the names of the official options where there are such, else Hugging Face's."""
    e, d = objective.encoder, getattr(objective, "decoder", None)
    found = {"num_frames": e.frames, "input_size": e.size, "num_heads": e.heads} | dict(zip(files.STATISTICS, (list(e.mean), list(e.std)), strict=True))
    if d is not None:
        return found | {"decoder_num_attention_heads": d.heads, "normlize_target": objective.target.normalise == "channel"}
    found |= {answers.PROBLEM: answers.SEVERAL} if objective.head_kind == "attributes" else {}
    return found | ({"id2label": {str(i): name for i, name in enumerate(classes)}} if classes else {})


def write_hf(state: dict[str, np.ndarray], out: pathlib.Path, /, *, settings: dict[str, Any], objective: Any) -> None:
    """The folder that `from_pretrained` of transformers opens."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise UserError(f"--to=hf needs the package safetensors ({error}); install it with: pip install safetensors") from error
    e = objective.encoder
    processor = {"image_processor_type": "VideoMAEImageProcessor", "do_resize": True, "size": {"shortest_edge": e.size}, "do_center_crop": True,
                 "crop_size": {"height": e.size, "width": e.size}, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
                 "image_mean": list(e.mean), "image_std": list(e.std)}
    out.mkdir(parents=True, exist_ok=True)
    try:
        safetensors.numpy.save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    except safetensors.SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    run_directory.write(out / "preprocessor_config.json", json.dumps(processor, indent=2))
    run_directory.write(out / "config.json", json.dumps(settings, indent=2))


def write_official(state: dict[str, np.ndarray], out: pathlib.Path, /, *, settings: dict[str, Any]) -> None:
    """A file that the official loaders open: tensors under "model", the settings, which they pass over, under "args", where they keep their own."""
    if out.suffix not in (".pth", ".pt"):
        raise UserError(f"--out={out} with --to=videomae; allowed is the name of a file that ends in .pth or .pt")
    try:
        import torch
    except ImportError as error:
        raise UserError(f"--to=videomae needs PyTorch ({error})") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("wb") as file:  # PyTorch's own open fails with a RuntimeError that names a line of C++
        torch.save({"model": {k: torch.from_numpy(v.copy()) for k, v in state.items()}, "args": settings}, file)
