"""Runs a program that `python -m videomae_jax export` wrote; needs jax and numpy alone.

    python run.py clip.npy [--out=result.npz]

clip.npy is u8 [B T H W C] or one clip [T H W C]. In Python: `run = Program(folder); run(video) -> {name: array}`.
"""

import json
import pathlib
import sys

import jax
import jax.export
import numpy as np

PROGRAM, WEIGHTS, ABOUT = "program.bin", "weights.npz", "about.json"


class Program:
    """The program of a folder with its weights; `about` says what goes in and comes out."""

    def __init__(self, folder: str | pathlib.Path, /) -> None:
        folder = pathlib.Path(folder)
        self.about = json.loads((folder / ABOUT).read_text())
        self._call = jax.jit(jax.export.deserialize((folder / PROGRAM).read_bytes()).call)
        with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
            self._weights = [jax.device_put(arrays[name]) for name in sorted(arrays.files)]

    def __call__(self, video: np.ndarray, /) -> dict[str, np.ndarray]:
        """u8 [B T H W C], any B -> arrays by name."""
        wanted = tuple(self.about["input"]["video"][1:])
        if video.dtype != np.uint8 or video.shape[1:] != wanted:
            raise ValueError(f"video {video.dtype} {video.shape}; allowed is uint8 of shape (B, {', '.join(map(str, wanted))})")
        return {name: np.asarray(value) for name, value in self._call(self._weights, video).items()}


def main(argv: list[str]) -> int:
    """Runs the program beside this file on a .npy file."""
    paths = [word for word in argv if not word.startswith("--")]
    out = next((word.removeprefix("--out=") for word in argv if word.startswith("--out=")), "")
    if len(paths) != 1 or len(argv) != 1 + bool(out):
        sys.stderr.write("usage: python run.py clip.npy [--out=result.npz]\n")
        return 2
    video = np.load(paths[0], allow_pickle=False)
    run = Program(pathlib.Path(__file__).parent)
    result = run(video[None] if video.ndim == 4 else video)
    if out:
        np.savez(out, **result)
    for name, value in result.items():
        sys.stdout.write(f"{name} {value.dtype} {value.shape}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
