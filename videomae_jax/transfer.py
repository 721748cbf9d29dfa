"""Strict transfer of parameters from one tree to another."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax

from videomae_jax import optim
from videomae_jax.errors import UserError


def leaves(tree: Any, /) -> dict[str, Any]:
    """{"a/b/c": leaf} of a nested dict."""
    pairs = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {optim.path_name(path): leaf for path, leaf in pairs}


def transfer(target: Any, source: Any, /, *, rename: Sequence[tuple[str, str]] = (), fresh: Sequence[str] = (),
             ignore: Sequence[str] = (), adapt: Callable[[str, Any, Any], Any] | None = None) -> Any:
    """`target` with its leaves taken from `source`, strict both ways.

    Source paths are rewritten by the (pattern, replacement) pairs of `rename`. Each target leaf is restored or matches
    `fresh`; each source leaf is used or matches `ignore`; `adapt(path, value, target_leaf)` may change a value whose
    shape differs. Raises UserError that lists every stray.
    """
    renamed = {}
    for path, leaf in leaves(source).items():
        for pattern, replacement in rename:
            path = re.sub(pattern, replacement, path)
        renamed[path] = leaf
    wanted, problems, result = leaves(target), [], {}
    for path, leaf in wanted.items():
        if any(re.fullmatch(p, path) for p in fresh):
            result[path] = leaf
        elif path not in renamed:
            problems.append(f"{path} is not in the source")
        else:
            value = renamed[path]
            if value.shape != leaf.shape and adapt is not None:
                value = adapt(path, value, leaf)
            if value.shape != leaf.shape:
                problems.append(f"{path} is {tuple(value.shape)} in the source, {tuple(leaf.shape)} in the target")
            result[path] = value
    unused = [p for p in renamed if p not in wanted or any(re.fullmatch(f, p) for f in fresh)]
    problems += [f"{p} of the source is not used" for p in unused if not any(re.fullmatch(i, p) for i in ignore)]
    if problems:
        raise UserError(f"{len(problems)} parameters do not transfer: {'; '.join(problems)}")
    flat, structure = jax.tree_util.tree_flatten_with_path(target)
    return jax.tree_util.tree_unflatten(structure, [result[optim.path_name(path)] for path, _ in flat])
