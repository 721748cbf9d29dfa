"""Runs a program that `python -m videomae_jax export` wrote; needs jax and numpy alone.

    python run.py clip.npy [--out=result.npz]

clip.npy is u8 [B T H W C] or one clip [T H W C]. In Python: `run = Program(folder); run(video) -> {name: array}`.
"""

import json
import pathlib
import sys
import zipfile
import zlib

import jax
import jax.export
import numpy as np

PROGRAM, WEIGHTS, ABOUT = "program.bin", "weights.npz", "about.json"


class Program:
    """The program of a folder with its weights; `about` says what goes in and comes out. Raises OSError and ValueError."""

    def __init__(self, folder: str | pathlib.Path, /) -> None:
        folder = pathlib.Path(folder)
        try:
            self.about = json.loads((folder / ABOUT).read_text())
            self.about["input"]["video"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"{folder / ABOUT} is damaged ({error!r})") from error
        data = (folder / PROGRAM).read_bytes()
        try:
            self._call = jax.jit(jax.export.deserialize(data).call)
        except Exception as error:  # what a damaged program raises is not specified
            raise ValueError(f"{folder / PROGRAM} is damaged ({type(error).__name__}: {error})") from error
        try:
            with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
                found = [arrays[name] for name in sorted(arrays.files)]
            kinds = self.about.get("dtypes") or [str(x.dtype) for x in found]
            self._weights = [jax.device_put(x.view(jax.numpy.dtype(kind))) for x, kind in zip(found, kinds, strict=True)]
        except (zipfile.BadZipFile, zlib.error, EOFError, TypeError, ValueError) as error:
            raise ValueError(f"{folder / WEIGHTS} is damaged ({error})") from error

    def __call__(self, video: np.ndarray, /) -> dict[str, np.ndarray]:
        """u8 [B T H W C], any B -> arrays by name."""
        wanted = tuple(self.about["input"]["video"][1:])
        if video.dtype != np.uint8 or video.shape[1:] != wanted:
            raise ValueError(f"video {video.dtype} {video.shape}; allowed is uint8 of shape (B, {', '.join(map(str, wanted))})")
        return {name: np.asarray(value) for name, value in self._call(self._weights, video).items()}


def answered(path: pathlib.Path, /) -> dict[str, np.ndarray]:
    """What the program beside this file says of a .npy file. Raises OSError and ValueError with one line that names the file."""
    try:
        video = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no .npy file of an array ({error})") from error
    if not isinstance(video, np.ndarray):
        raise ValueError(f"{path} holds several arrays; allowed is a .npy file of one")
    run = Program(pathlib.Path(__file__).parent)
    return run(video[None] if video.ndim == 4 else video)


def main(argv: list[str]) -> int:
    """Runs the program beside this file on a .npy file: 0, or 2 with one line on what is wrong."""
    paths = [word for word in argv if not word.startswith("--")]
    out = next((word.removeprefix("--out=") for word in argv if word.startswith("--out=")), "")
    if len(paths) != 1 or len(argv) != 1 + bool(out):
        sys.stderr.write("usage: python run.py clip.npy [--out=result.npz]\n")
        return 2
    try:
        result = answered(pathlib.Path(paths[0]))
        if out:
            np.savez(out, **result)
    except (OSError, ValueError, EOFError) as error:
        sys.stderr.write(f"error: {str(error).splitlines()[0]}\n")
        return 2
    for name, value in result.items():
        sys.stdout.write(f"{name} {value.dtype} {value.shape}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
