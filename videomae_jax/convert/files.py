"""Weights of other codebases from disk, without running anything that a file contains.

safetensors and .npz hold arrays alone. PyTorch files are pickles: they are read by its restricted reader, which builds
tensors, plain containers and the few classes of ALLOWED, and refuses everything else. `pickle.load` is never used.
"""

import argparse
import dataclasses
import json
import pathlib
import pickle
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from videomae_jax.errors import DAMAGED, UserError

TORCH = (".pth", ".pt", ".bin", ".pyth", ".ckpt")
SUFFIXES = (".safetensors", ".npz", *TORCH)
ALLOWED = (argparse.Namespace,)  # what the official training scripts keep beside the weights, under "args"
KEYS = ("model", "module", "state_dict", "model_state")  # DDP, DeepSpeed, and other trainers' names of the weights
STATISTICS = ("image_mean", "image_std")  # of preprocessor_config.json
FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # of Hugging Face, in the order of preference


@dataclasses.dataclass(frozen=True)
class Weights:
    """`state` {name: float32 array}, the `settings` that came with it (config.json of Hugging Face, or the training script's
    options), the `files` it was read from, and {dtype: number of arrays} as stored.
    """

    state: Mapping[str, np.ndarray]
    settings: Mapping[str, Any]
    files: tuple[pathlib.Path, ...]
    dtypes: Mapping[str, int]


def read(path: pathlib.Path, /, *, key: str = "") -> Weights:
    """Weights of a file or of a folder of Hugging Face. `key` names the entry of a PyTorch file that holds them ("" = the
    first of KEYS that is there, else the file itself).

    Raises UserError for a file that cannot be read, or that asks for more than arrays and ALLOWED.
    """
    if not path.exists():
        raise UserError(f"no weights in {path}: there is no such file or folder")
    files = in_folder(path) if path.is_dir() else (path,)
    state, settings = {}, beside(path)
    for file in files:
        arrays, options = one(file, key=key)
        twice = sorted(state.keys() & arrays.keys())
        if twice:
            raise UserError(f"{twice[0]} is in {file} and in a file before it")
        state |= arrays
        settings = {**options, **settings}
    if not state:
        raise UserError(f"{path} holds no arrays")
    if stray := next((name for name, x in state.items() if not (x.dtype.kind in "iub" or jnp.issubdtype(x.dtype, jnp.floating))), None):
        raise UserError(f"{stray} in {path} is of {state[stray].dtype}; allowed are arrays of real numbers")
    kinds = [str(x.dtype) for x in state.values()]
    floats = {k: np.asarray(v, np.float32) for k, v in state.items()}
    if lost := next((name for name, x in floats.items() if not np.isfinite(x).all()), None):
        raise UserError(f"{lost} in {path} holds values that are not finite in float32: the run that wrote it had diverged")
    return Weights(floats, settings, files, {kind: kinds.count(kind) for kind in sorted(set(kinds))})


def in_folder(path: pathlib.Path, /) -> tuple[pathlib.Path, ...]:
    """The weight files of a folder of Hugging Face, the parts of an index in the order of their names."""
    found = next((path / name for name in FOLDER if (path / name).is_file()), None)
    if found is None:
        if (path / "checkpoints").is_dir():
            raise UserError(f"{path} is a run directory, which needs no conversion; --to=FAMILY writes its weights for others")
        raise UserError(f"{path} is no run directory, for it has no checkpoints, and it holds none of {', '.join(FOLDER)}")
    if found.suffix != ".json":
        return (found,)
    listed = parsed(found).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(part, str) for part in listed.values()):
        raise UserError(f"{found} has no weight_map that names the file of every array")
    parts = sorted(set(listed.values()))
    strays = [part for part in parts if pathlib.PurePath(part).name != part]
    if strays:
        raise UserError(f"{found} names {strays[0]!r}; allowed are files of the same folder")
    return tuple(path / part for part in parts)


def beside(path: pathlib.Path, /) -> dict[str, Any]:
    """config.json of the folder, or beside the file, where it is one of Hugging Face, with the statistics of its preprocessor; else {}."""
    folder = path if path.is_dir() else path.parent
    found, pixels = (parsed(folder / name) if (folder / name).is_file() else {} for name in ("config.json", "preprocessor_config.json"))
    if "model_type" not in found and "model_config" not in found:
        return {}
    return {k: pixels[k] for k in STATISTICS if k in pixels} | found


def parsed(path: pathlib.Path, /) -> dict[str, Any]:
    """A JSON object."""
    try:
        found = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}; needed is an object")
    return found


def one(path: pathlib.Path, /, *, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays as stored (bfloat16 as float32) and options of one file."""
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} ends in {path.suffix!r}; allowed are {', '.join(SUFFIXES)} and folders of Hugging Face")
    if not path.is_file():
        raise UserError(f"no file {path}")
    if path.suffix in TORCH:
        return of_torch(path, key=key)
    if key:
        raise UserError(f"--key={key} names an entry of a PyTorch file; {path} has none")
    return (of_numpy(path) if path.suffix == ".npz" else of_safetensors(path)), {}


def of_numpy(path: pathlib.Path, /) -> dict[str, np.ndarray]:
    """Arrays of an .npz, without pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except DAMAGED as error:
        raise UserError(f"{path} cannot be read as .npz of arrays ({error})") from error


def of_safetensors(path: pathlib.Path, /) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise UserError(f"{path} needs the package safetensors ({error}); install it with: pip install safetensors") from error
    try:
        return dict(safetensors.numpy.load_file(path))
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error})") from error


def of_torch(path: pathlib.Path, /, *, key: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and options of a PyTorch file, through its restricted reader."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{path} needs PyTorch ({error}); install it, or convert the file to safetensors where it is installed") from error
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        cause = next((line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), str(error).splitlines()[0])
        raise UserError(f"{path} is refused: it holds more than weights ({cause}). Nothing of it was run; allowed are tensors, plain "
                        f"containers and {', '.join(c.__name__ for c in ALLOWED)}") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path} cannot be read as a PyTorch file ({(str(error).splitlines() or [type(error).__name__])[0]})") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path} holds a {type(found).__name__}; needed is a dict of tensors")
    options = found.get("args")
    inner = key or next((k for k in KEYS if isinstance(found.get(k), Mapping)), "")
    if inner and not isinstance(found.get(inner), Mapping):
        raise UserError(f"{path} has no dict of tensors under {inner!r}; it has {', '.join(map(str, found))}")
    state = found[inner] if inner else found
    strays = [str(k) for k, v in state.items() if not isinstance(v, torch.Tensor)]
    if strays:
        raise UserError(f"{path}: {strays[0]} is no tensor; name the entry that holds the weights with --key, one of {', '.join(map(str, found))}")
    arrays = {str(k): array_of(v, name=f"{k} in {path}") for k, v in state.items()}
    return arrays, vars(options) if isinstance(options, argparse.Namespace) else dict(options) if isinstance(options, Mapping) else {}


def array_of(tensor: Any, /, *, name: str) -> np.ndarray:
    """A tensor of PyTorch; what numpy has no type for as float32. Raises UserError for a sparse, quantised or absent one."""
    if str(tensor.dtype).startswith(("torch.bfloat16", "torch.float8")):
        tensor = tensor.float()
    try:
        return tensor.detach().numpy()
    except (TypeError, RuntimeError, NotImplementedError) as error:
        kind = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
        raise UserError(f"{name} is a tensor of {kind}; allowed are dense ones of real numbers") from error
