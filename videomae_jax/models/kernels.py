"""Attention kernels of GPUs and TPUs: cuDNN's fused attention, and JAX's Pallas splash attention with padding.

Neither keeps a matrix of all queries and keys. Both take bool [B N] of valid keys; a row without any gives finite values that mean
nothing. Splash gets scaled queries, cuDNN's kernel scales them.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import parallel
from videomae_jax.errors import UserError
from videomae_jax.types import Array

LANES = 128  # splash's blocks are multiples of it
BLOCK = 5  # most lanes of a block of logits: 640 x 640 in float32 are 1.6 MB, several of them within the 16 MB a TPU kernel may use
WHOLE = 16  # most lanes of keys that one block holds: 2048 keys and values of 128 channels in bfloat16 are 1 MB
HALF = (jnp.bfloat16, jnp.float16)


def runs_on_cudnn(*, size: int, dtype: Any, capability: str = "") -> bool:
    """Whether cuDNN's kernels take heads of `size` channels in `dtype` on a GPU of this compute capability, "" = any from Ampere on.

    128 channels are what GPUs before Hopper allow. AMD's, whose capability is a name ("gfx942"), have no cuDNN.
    """
    return jnp.dtype(dtype) in map(jnp.dtype, HALF) and size % 8 == 0 and size <= 128 and recent(capability)


def recent(capability: str, /) -> bool:
    """Whether a GPU of this compute capability has cuDNN's attention; "" counts as one that has."""
    return not capability or (re.fullmatch(r"\d+\.\d+", capability) is not None and float(capability) >= 8)


def portable(node: Any, /, *, device: Any) -> None:
    """Replaces a kernel that a run's config names by attention in blocks, the same function, where `device` does not run it; in place."""
    runs = {"cudnn": device.platform in ("gpu", "cuda") and recent(getattr(device, "compute_capability", "")), "splash": device.platform == "tpu"}
    for name in node if hasattr(node, "items") else ():
        if name == "attention" and not runs.get(node[name], True):
            node[name] = "chunked"
        portable(node[name], device=device)


def cudnn(q: Array, k: Array, v: Array, /, *, valid: Array | None, scale: float = 1.0) -> Array:
    """cuDNN's fused attention, [B N h d] x3 -> [B N h d] in bfloat16 or float16, of `scale` times the queries.

    Raises UserError for what it does not take. Valid keys are moved to the front, which changes no sum: cuDNN then needs their number
    alone, where a mask would be an array of all queries and keys. Odd lengths, which its backward pass refuses, get one token more.
    """
    here = parallel.target()
    if here.platform != "gpu":
        raise UserError(f"attention 'cudnn' is a kernel of GPUs, and this program is for {here.platform}; allowed here are 'xla', 'recomputed', 'chunked', 'splash' and 'auto'")
    if not runs_on_cudnn(size=q.shape[-1], dtype=q.dtype, capability=here.capability):
        raise UserError(f"attention 'cudnn' of {q.shape[-1]} channels a head in {q.dtype}{f' on compute capability {here.capability}' if here.capability else ''}; "
                        "allowed are bfloat16 and float16, multiples of 8 up to 128, and GPUs from 8.0 on")
    tokens, keys, lengths = q.shape[1], k.shape[1], None
    if valid is not None:
        order = jnp.argsort(~valid, axis=1, stable=True)[:, :, None, None]
        k, v = (jnp.take_along_axis(x, order, axis=1) for x in (k, v))
        # A row without valid keys, whose output no loss counts, attends to one: cuDNN gives NaN for none, and 0 * NaN is no 0.
        lengths = jnp.maximum(valid.sum(1, dtype=jnp.int32), 1)
    elif keys % 2:
        lengths = jnp.full(len(k), keys, jnp.int32)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, scale=scale, key_value_seq_lengths=lengths, implementation="cudnn")[:, :tokens]


def blocks(length: int, /) -> tuple[int, int]:
    """(padded length, block): the largest block, up to `BLOCK` lanes, whose padding adds at most a twelfth to that of one lane."""
    lanes = -(-length // LANES)
    size = next(n for n in range(min(BLOCK, lanes), 0, -1) if 12 * (-lanes % n) <= lanes)
    return -(-lanes // size) * size * LANES, size * LANES


def kernel(heads: int, queries: tuple[int, int], keys: tuple[int, int], interpret: bool, /) -> Any:
    """Splash attention over padded lengths in blocks (`blocks` of both), without a mask of its own: which keys count is said by segments.

    Where one block holds all keys, the backward pass is one kernel; otherwise it would add up a gradient of the queries for every
    block, in their own precision. It reads [h d N], tokens innermost: 64 or 88 channels there would fill half of a TPU's 128 lanes.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    (queries, rows), (keys, columns) = queries, keys
    whole = keys if keys <= WHOLE * LANES else columns
    back = {} if whole == keys else {"block_q_dq": rows, "block_kv_dq": columns}
    sizes = splash_attention_kernel.BlockSizes(
        block_q=rows, block_kv=whole, block_kv_compute=columns, block_q_dkv=rows, block_kv_dkv=whole, block_kv_dkv_compute=columns,
        use_fused_bwd_kernel=whole == keys, **back, **dict.fromkeys(("q_layout", "k_layout", "v_layout"), splash_attention_kernel.QKVLayout.SEQ_MINOR))
    mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((queries, keys))] * heads)
    return splash_attention_kernel.make_splash_mha_single_device(mask, block_sizes=sizes, interpret=interpret)


def splash(q: Array, k: Array, v: Array, /, *, valid: Array | None) -> Array:
    """Splash attention on TPUs, [B N h d] x3 -> [B N h d]; on CPUs the same kernel interpreted, which is for tests.

    Tokens are padded to blocks; padded keys belong to another segment than the queries, padded queries are cut off. Heads
    of fewer than 128 channels are padded by the kernel. Every device runs it on its own clips and heads.
    """
    platform = parallel.target().platform
    if platform not in ("tpu", "cpu"):
        raise UserError(f"attention 'splash' is a kernel of TPUs, and this program is for {platform}; allowed here are 'xla', 'recomputed', 'chunked', 'cudnn' and 'auto'")
    keys = jnp.ones(k.shape[:2], bool) if valid is None else valid

    def one_device(q: Array, k: Array, v: Array, keys: Array) -> Array:
        tokens, heads = q.shape[1:3]
        queries, others = blocks(tokens), blocks(k.shape[1])
        rows, columns = queries[0], others[0]
        q, k, v = (jnp.pad(x, ((0, 0), (0, n - x.shape[1]), (0, 0), (0, 0))).swapaxes(1, 2) for x, n in ((q, rows), (k, columns), (v, columns)))
        keys = jnp.pad(keys, ((0, 0), (0, columns - keys.shape[1]))).astype(jnp.int32)
        from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

        run = jax.vmap(kernel(heads, queries, others, platform == "cpu"))
        return run(q, k, v, SegmentIds(jnp.ones((q.shape[0], rows), jnp.int32), keys)).swapaxes(1, 2)[:, :tokens]

    wide = ("batch", None, "heads", None)
    return parallel.per_device(one_device, wide, wide, wide, ("batch", None))(q, k, v, keys)
