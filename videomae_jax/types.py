"""The dimension legend and the few types that every module shares.

Dimension legend: `B` batch, `T H W C` video, `t h w` token grid, `N = t*h*w` tokens, `V` visible tokens, `M` target
tokens, `P` values per patch, `D` width, `K` views, `L` text length, `S` clip sequence, `E` embedding. Axis order of
tokens is always (t, h, w).

A batch is a flat dict of arrays. The usual keys are `video` u8 [B T H W C], `label` i32 [B], `key` u32 [B 2] (position
in the global stream, copy of the decode), `row` i32 [B] (row of the source), `valid` bool [B] (False for padding only)
and `fault` i32 [B] (0, or the stage at which decoding failed and a substitute was taken). A key has one shape and one
dtype in the whole code base. Where crops are cut on the device, a batch comes as planes and windows (`data.planes`), of which
the first stage of the step makes `video` (`ingest`).
"""

from collections.abc import Mapping
from typing import Any

import jax

Array = jax.Array
Batch = Mapping[str, Array]
Params = Any  # nested dicts of arrays
Extra = Any  # nested dicts of arrays that are not trained: teacher, queue, running moments
Key = jax.Array  # a typed PRNG key, or an array of them


def row_keys(rng: Key, key: Array, /) -> Key:
    """Per-example PRNG keys [B] from `rng` and the stream key u32 [B 2].

    A draw made with them depends on the run's seed, the step and the example's place in the global stream, never on
    its row, its host or its micro-batch.
    """
    return jax.vmap(lambda pair: jax.random.fold_in(jax.random.fold_in(rng, pair[0]), pair[1]))(key)
