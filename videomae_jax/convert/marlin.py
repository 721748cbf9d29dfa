"""MARLIN's checkpoints, the whole model or its encoder -> arrays under the names of VideoMAE.

Source: names and shapes of its released code. The networks are VideoMAE's under other names, with two
differences: the head's values come channel first, and all norms have eps 1e-5, which configs/marlin say. Position tables are
stored, but fixed ones like ours. The critic is in no published file: --allow=missing:critic/.* (of an encoder alone also decoder/.*).
"""

import dataclasses
import re

import numpy as np

from videomae_jax.convert import videomae
from videomae_jax.errors import UserError

NAMES = ((r"\.patch_embedding\.projection\.", ".patch_embed.proj."), (r"\.mlp\.layers\.0\.linear\.", ".mlp.fc1."), (r"\.mlp\.layers\.1\.linear\.", ".mlp.fc2."),
         (r"^enc_dec_proj\.", "encoder_to_decoder."), (r"^decoder\.mask_token$", "mask_token"))
FIXED = r"(encoder|decoder)\.pos_embedding\.emb"
PRETRAINED = dataclasses.replace(videomae.PRETRAINED, name="MARLIN encoder and decoder", inert=(FIXED,))
CHANNELS = 3


def renamed(state: dict[str, np.ndarray], /) -> dict[str, np.ndarray]:
    """The arrays under VideoMAE's names, the head in the order (frame, row, column, channel)."""
    found: dict[str, np.ndarray] = {}
    for name, value in state.items():
        if re.fullmatch(FIXED, name):
            check_positions(name, np.asarray(value))
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = channel_last(value) if name.startswith("decoder.head.") else value
    return found


def channel_last(x: np.ndarray, /) -> np.ndarray:
    """[C p0 p1 p2 ...] -> [p0 p1 p2 C ...], both flat in their first axis of C * p0 * p1 * p2 values."""
    return np.moveaxis(x.reshape(CHANNELS, -1, *x.shape[1:]), 0, 1).reshape(x.shape)


def check_positions(name: str, table: np.ndarray, /) -> None:
    """Raises UserError where a stored table [1 N D] is not VideoMAE's sine and cosine of the place, which is what ours computes."""
    place, channel = np.arange(table.shape[-2])[:, None], np.arange(table.shape[-1])
    angle = place / 10000 ** (2 * (channel // 2) / table.shape[-1])
    wanted = np.where(channel % 2, np.cos(angle), np.sin(angle))
    # Their angles, up to 1568, are float32: off by some 1e-4 of a radian.
    if not np.allclose(table.reshape(wanted.shape), wanted, atol=1e-3):
        raise UserError(f"{name} is not the fixed table of sines and cosines that models here compute; such weights are not converted")
