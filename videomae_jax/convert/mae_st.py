"""MAE-ST's pre-training checkpoints -> our parameter tree. Fine-tuned ones, and those without separable positions, are not covered.

Source: names and shapes of its released code (models_mae, util/video_vit). Its key biases have no leaf here: softmax does
not change when every key of a query gets the same logit on top.
"""

from videomae_jax.convert.videomae import BIAS, CONVOLUTION, MATRIX, OUT, QKV, Layout, Packing, Rule, linear, norm

# [1 n D] -> [n D]
ROWS = Packing(lambda x, heads: x.reshape(-1, x.shape[-1]), lambda x, patch: x[None])

BLOCK = (
    *norm("norm1", "norm1", ""),
    Rule("attn/qkv", ("attn.q.weight", "attn.k.weight", "attn.v.weight"), (), QKV),
    Rule("attn/q_bias", ("attn.q.bias",), (), BIAS),
    Rule("attn/v_bias", ("attn.v.bias",), (), BIAS),
    Rule("attn/out", ("attn.proj.weight",), (), OUT),
    Rule("attn/out_bias", ("attn.proj.bias",), ()),
    *norm("norm2", "norm2", ""),
    *linear("mlp/fc1", "mlp.fc1", ""),
    *linear("mlp/fc2", "mlp.fc2", ""),
)


def sequence(ours: str, theirs: str, /) -> tuple[Rule, ...]:
    """Rules of the learned positions and the class token of an encoder or decoder."""
    names = {"space": f"{theirs}pos_embed_spatial", "time": f"{theirs}pos_embed_temporal", "class": f"{theirs}cls_token",
             "class_position": f"{theirs}pos_embed_class"}
    return tuple(Rule(f"{ours}/sequence/{name}", (array,), (), ROWS) for name, array in names.items())


PRETRAINED = Layout("MAE-ST encoder and decoder", (
    Rule("encoder/embed/kernel", ("patch_embed.proj.weight",), (), CONVOLUTION),
    Rule("encoder/embed/bias", ("patch_embed.proj.bias",), ()),
    *sequence("encoder", ""),
    *norm("encoder/norm", "norm", ""),
    Rule("decoder/bridge/kernel", ("decoder_embed.weight",), (), MATRIX),
    Rule("decoder/bridge/bias", ("decoder_embed.bias",), ()),
    Rule("decoder/mask", ("mask_token",), (), ROWS),
    *sequence("decoder", "decoder_"),
    *norm("decoder/norm", "decoder_norm", ""),
    *linear("decoder/head", "decoder_pred", ""),
), {"encoder/stack/block/": ("blocks.", ""), "decoder/stack/block/": ("decoder_blocks.", "")}, BLOCK, (r"(decoder_)?blocks\.\d+\.attn\.k\.bias",))
