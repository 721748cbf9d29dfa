"""Checksums of arrays, computed where the arrays are: the same on every mesh and in every process."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videomae_jax import parallel
from videomae_jax.types import Array


def named(tree: Any, /) -> dict[str, Any]:
    """{"a/b/c": leaf} of any tree; fields of named tuples count, so that both moments of Adam have names of their own."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def checksum(x: Array, /) -> Array:
    """u32 []: the sum modulo 2^32 of the words of `x`, each times an odd number that its place determines.

    A sum does not depend on how the array is cut over devices. An odd factor is invertible, so that a change within one
    word always shows, and any other but for one in 2^32.
    """
    words = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    words = jax.lax.bitcast_convert_type(words, {1: jnp.uint8, 2: jnp.uint16}.get(words.dtype.itemsize, jnp.uint32)).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, length in enumerate(words.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    place = (place ^ (place >> 16)) * jnp.uint32(0x85EBCA6B)
    place = (place ^ (place >> 13)) * jnp.uint32(0xC2B2AE35)
    return jnp.sum(words * ((place ^ (place >> 16)) | 1), dtype=jnp.uint32)


_checksums = jax.jit(lambda arrays: jnp.stack([checksum(x) for x in arrays]))


def started(tree: Any, /) -> Callable[[], dict[str, dict[str, Any]]]:
    """What gives the `fingerprints` of a tree as it is now, whatever becomes of its arrays. Every process calls this; any may ask for the answer."""
    found = named(tree)
    if not found:
        return dict
    facts = {k: {"shape": list(x.shape), "dtype": str(x.dtype)} for k, x in found.items()}
    sums, first = _checksums(list(found.values())), next(iter(found.values()))
    if jax.process_count() > 1:
        sums = parallel.spread(sums, mesh=first.sharding.mesh)

    def answer() -> dict[str, dict[str, Any]]:
        return {k: v | {"checksum": int(s)} for (k, v), s in zip(facts.items(), np.asarray(sums.addressable_data(0)), strict=True)}
    return answer


def fingerprints(tree: Any, /) -> dict[str, dict[str, Any]]:
    """{"a/b/c": {"shape", "dtype", "checksum"}} of the arrays of a tree, the same on every mesh and in every process."""
    return started(tree)()


def different(tree: Any, saved: dict[str, Any], /) -> list[str]:
    """Names of the leaves of `tree` that differ from saved fingerprints."""
    found = fingerprints(tree)
    return [key for key in found if found[key] != saved.get(key)]


def unlike(tree: Any, saved: dict[str, Any], /) -> str:
    """The first leaf that differs from saved fingerprints in name, shape or dtype, and how; "" for none."""
    have = {k: tuple(v["shape"]) + (v["dtype"],) for k, v in saved.items()}
    want = {k: (*v.shape, str(v.dtype)) for k, v in named(tree).items()}
    for key in sorted(have.keys() | want.keys()):
        if have.get(key) != want.get(key):
            return f"{key} is {_shown(have.get(key))} there, {_shown(want.get(key))} in this config"
    return ""


def _shown(leaf: tuple[Any, ...] | None, /) -> str:
    return f"{leaf[-1]} {leaf[:-1]}" if leaf else "absent"
