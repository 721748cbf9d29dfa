"""Exact gradient accumulation: micro-batches of a batch, and the gradient of the whole from theirs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from videomae_jax import losses, parallel
from videomae_jax.objectives.base import Output
from videomae_jax.types import Array, Batch, Params


def cut(batch: Batch, index: Array | int, /, *, microbatches: int) -> Batch:
    """[B ...] -> [B/m ...], the rows index, index + m, ...: every device keeps its own, and no second copy of the batch is made.

    Where copies share rows (`shared` of a source's fields), neighbours with one decode stay together: those of decode index, index + m, ...
    """
    n = decodes_of(batch)

    def rows(x: Array) -> Array:
        parts = x.reshape(n // microbatches, microbatches, x.shape[0] // n, *x.shape[1:])
        y = jax.lax.dynamic_index_in_dim(parts, index, axis=1, keepdims=False).reshape(-1, *x.shape[1:])
        return parallel.shard(y, "batch", *(None,) * (y.ndim - 1))
    return jax.tree.map(rows, batch)


def join(tree: Any, /, *, copies: int = 1) -> Any:
    """[m B/m ...] of `cut` -> [B ...], for leaves that have all B rows, `copies` of a decode."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, copies, *x.shape[2:]).swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


def rows_of(batch: Batch, /) -> int:
    """Clips of a batch, some of whose leaves may have a row for several of them."""
    return max(x.shape[0] for x in jax.tree.leaves(batch))


def decodes_of(batch: Batch, /) -> int:
    """Rows of the leaves that clips share, or clips where they share none."""
    return min(x.shape[0] for x in jax.tree.leaves(batch))


def check_aux(aux: Any, batch: Batch, /) -> None:
    """Raises ValueError when a leaf of `aux` does not begin with the rows of `batch`, so that `join` could not order it."""
    rows = rows_of(batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(aux):
        if leaf.shape[:1] != (rows,):
            raise ValueError(f"aux{jax.tree_util.keystr(path)} is {leaf.shape}; without batch_coupled it must begin with the {rows} rows of the batch")


def gradients(loss: Callable[[Params, Batch], Output], params: Params, batch: Batch, /, *, microbatches: int,
              constrain: Callable[[Params], Params]) -> tuple[Params, Output]:
    """Gradient of the loss and the reduced output, exactly as of the whole batch; `constrain` places a gradient.

    Denominators do not depend on parameters, so a first pass over the micro-batches collects them (the compiler drops
    the network from it) and the second divides each numerator by the global sum. The running sum is placed at every
    micro-batch: a carry without a placement may be kept whole on every device.
    """
    def scalar(params: Params, rows: Batch, denominators: Mapping[str, Array] | None) -> tuple[Array, Output]:
        out = loss(params, rows)
        total = losses.value(out.terms, denominators=losses.denominators(out.terms) if denominators is None else denominators)
        return total, out

    grad = jax.grad(scalar, has_aux=True)
    if microbatches == 1:
        grads, out = grad(params, batch, None)
        return constrain(grads), reduce_output(out)
    numbers = jnp.arange(microbatches)
    weights = jax.lax.map(lambda i: losses.denominators(loss(params, cut(batch, i, microbatches=microbatches)).terms), numbers)
    denominators = jax.tree.map(lambda x: x.sum(0), weights)

    def body(total: Params, index: Array) -> tuple[Params, Output]:
        rows = cut(batch, index, microbatches=microbatches)
        grads, out = grad(params, rows, denominators)
        check_aux(out.aux, rows)
        return constrain(jax.tree.map(jnp.add, total, grads)), reduce_output(out)

    grads, outs = jax.lax.scan(body, constrain(jax.tree.map(jnp.zeros_like, params)), numbers)
    summed = jax.tree.map(lambda x: x.sum(0), (outs.terms, outs.metrics))
    # Coefficients are constants of the step, so their mean over micro-batches is the value itself.
    terms = {k: t.replace(coefficient=t.coefficient / microbatches) for k, t in summed[0].items()}
    return grads, Output(terms=terms, metrics=summed[1], aux=join(outs.aux, copies=rows_of(batch) // decodes_of(batch)))


def reduce_output(out: Output, /) -> Output:
    """Sums totals and weights to scalars; `aux` stays."""
    terms = {k: losses.Term(jnp.sum(t.total), jnp.sum(t.weight), jnp.asarray(t.coefficient, t.total.dtype)) for k, t in out.terms.items()}
    return Output(terms=terms, metrics={k: m.reduce() for k, m in out.metrics.items()}, aux=out.aux)
