"""VideoPrism's published video encoders (.npz) -> our parameter tree.

Source: names and shapes of its released code. Layers are stacked there as they are here. The text side and the pooler of
the video-text models have no leaf here. A norm's scale is stored as what is added to 1.
"""

import math
from typing import Any

import numpy as np

from videomae_jax.convert.videomae import SAME, Layout, Packing, Rule, State
from videomae_jax.errors import UserError

BLOCKS = "transformers_stack/x_layers"
SCALE = Packing(lambda x, heads: x + np.float32(1))
# [3 L ...] joined along the layers -> [L D 3 N H], and biases [L 3 N H]
QKV = Packing(lambda x, heads: x.reshape(3, -1, *x.shape[1:]).transpose(1, 2, 0, 3, 4))
QKV_BIAS = Packing(lambda x, heads: x.reshape(3, -1, *x.shape[1:]).transpose(1, 0, 2, 3))
# [L D N H] -> [L N H D]
POST = Packing(lambda x, heads: x.transpose(0, 2, 3, 1))


def norm(ours: str, theirs: str, /) -> tuple[Rule, ...]:
    """Rules of a LayerNorm."""
    return Rule(f"{ours}/scale", (f"{theirs}/scale",), (), SCALE), Rule(f"{ours}/bias", (f"{theirs}/bias",), ())


def dense(ours: str, theirs: str, /) -> tuple[Rule, ...]:
    """Rules of a linear layer."""
    return Rule(f"{ours}/kernel", (f"{theirs}/linear/kernel",), ()), Rule(f"{ours}/bias", (f"{theirs}/linear/bias",), ())


def tower(ours: str, theirs: str, /) -> tuple[Rule, ...]:
    """Rules of a stack of blocks."""
    attention = f"{theirs}/{BLOCKS}/self_attention"
    return (
        *norm(f"{ours}/block/norm1", f"{theirs}/{BLOCKS}/layer_norm"),
        Rule(f"{ours}/block/attn/qkv", tuple(f"{attention}/{n}/w" for n in ("query", "key", "value")), (), QKV),
        Rule(f"{ours}/block/attn/qkv_bias", tuple(f"{attention}/{n}/b" for n in ("query", "key", "value")), (), QKV_BIAS),
        Rule(f"{ours}/block/attn/out", (f"{attention}/post/w",), (), POST),
        Rule(f"{ours}/block/attn/out_bias", (f"{attention}/post/b",), ()),
        *norm(f"{ours}/block/norm2", f"{theirs}/{BLOCKS}/ff_layer/layer_norm"),
        *dense(f"{ours}/block/mlp/fc1", f"{theirs}/{BLOCKS}/ff_layer/ffn_layer1"),
        *dense(f"{ours}/block/mlp/fc2", f"{theirs}/{BLOCKS}/ff_layer/ffn_layer2"),
    )


ENCODER = Layout("VideoPrism encoder", (
    *dense("encoder/embed", "patch_projection"),
    Rule("encoder/space", ("spatial_pos_emb/emb_var",), (), SAME),
    Rule("encoder/time", ("temporal_pos_emb/emb_var",), (), SAME),
    *tower("encoder/spatial", "spatial_encoder"),
    *norm("encoder/spatial_norm", "spatial_ln"),
    *tower("encoder/temporal", "temporal_encoder"),
    *norm("encoder/temporal_norm", "temporal_ln"),
), {})


def renamed(state: State, /) -> dict[str, np.ndarray]:
    """Arrays without the names of the collections around them."""
    return {name.removeprefix("params/").removeprefix("vision_encoder/"): value for name, value in state.items()}


def sizes(state: State, /) -> dict[str, Any]:
    """Fields of models/videoprism.Encoder by the shapes of the arrays. Raises UserError where they do not tell."""
    names = {"query": f"spatial_encoder/{BLOCKS}/self_attention/query/w", "along": f"temporal_encoder/{BLOCKS}/self_attention/query/w",
             "hidden": f"spatial_encoder/{BLOCKS}/ff_layer/ffn_layer1/linear/kernel", "patch": "patch_projection/linear/kernel",
             "space": "spatial_pos_emb/emb_var", "time": "temporal_pos_emb/emb_var"}
    absent = [name for name in names.values() if name not in state]
    if absent:
        raise UserError(f"the weights have no {absent[0]}, so the size of the model is unknown; converted are VideoPrism's encoders with stacked layers")
    shapes = {key: state[name].shape for key, name in names.items()}
    side, rows = math.isqrt(shapes["patch"][0] // 3), math.isqrt(shapes["space"][0])
    if side * side * 3 != shapes["patch"][0] or rows * rows != shapes["space"][0]:
        raise UserError(f"patches of {shapes['patch'][0]} values, {shapes['space'][0]} places; converted are squares of 3 channels in a square")
    return {"width": shapes["query"][1], "spatial_depth": shapes["query"][0], "temporal_depth": shapes["along"][0], "heads": shapes["query"][2],
            "hidden": shapes["hidden"][2], "patch": (1, side, side), "frames": shapes["time"][0], "size": rows * side}
