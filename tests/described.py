"""The blocks of a transformer in float64 numpy, as papers describe them: what converted weights are compared with, without anything of ours."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import erf


def norm(x: np.ndarray, w: Mapping[str, np.ndarray], name: str, /, *, eps: float) -> np.ndarray:
    """LayerNorm over the last axis by `name`.weight and `name`.bias [D]."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x: np.ndarray, w: Mapping[str, np.ndarray], name: str, /) -> np.ndarray:
    """[... in] -> [... out] by `name`.weight [out in], as PyTorch stores it, and `name`.bias [out] where there is one."""
    return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, /, *, heads: int) -> np.ndarray:
    """[B N D] of all three, of which each head takes D / heads neighbouring values -> [B N D]."""
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3) for x in (q, k, v))
    weight = q @ k.transpose(0, 1, 3, 2) / np.sqrt(q.shape[-1])
    weight = np.exp(weight - weight.max(-1, keepdims=True))
    x = weight / weight.sum(-1, keepdims=True) @ v
    return x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1)


def mlp(x: np.ndarray, w: Mapping[str, np.ndarray], names: Sequence[str], /) -> np.ndarray:
    """Two linear layers by their names, GELU by the error function between them."""
    x = linear(x, w, names[0])
    return linear(x * (1 + erf(x / np.sqrt(2))) / 2, w, names[1])


def tubelets(video: np.ndarray, kernel: np.ndarray, bias: np.ndarray, /) -> np.ndarray:
    """A convolution whose stride is its kernel [D C t h w], in loops: [B C T H W] -> [B N D], tokens in the order time, row, column."""
    t, h, w = kernel.shape[2:]
    cells = [video[:, :, a:a + t, b:b + h, c:c + w]
             for a in range(0, video.shape[2], t) for b in range(0, video.shape[3], h) for c in range(0, video.shape[4], w)]
    return np.stack([np.einsum("bcthw,dcthw->bd", cell, kernel) + bias for cell in cells], 1)
