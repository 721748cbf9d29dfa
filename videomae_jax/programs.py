"""Jitted functions that their users define anew at every call, compiled once."""

import collections
from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np

KEPT = 64  # programs; the one not used for longest makes room
_PLAIN = (bool, int, float, complex, str, bytes, type(None))


class Programs:
    """Finds functions of the same code over the same objects again.

    An evaluator defines what it jits within its `run`, so every evaluation would trace and compile it anew. Plain values
    and tuples of them are compared by value, other objects that a function holds on to by identity; they are kept alive
    and must not change. A function that holds arrays, lists or dicts, which are large or change, is compiled anew.
    """

    def __init__(self) -> None:
        self._kept: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def jit(self, fn: Callable[..., Any], /, **options: Any) -> Any:
        """`jax.jit(fn, **options)`; `options` must follow from `fn`."""
        try:
            key = _signature(fn, ())
        except _PassingError:
            return jax.jit(fn, **options)
        self._kept[key] = self._kept.pop(key) if key in self._kept else jax.jit(fn, **options)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


class _PassingError(Exception):
    """A function holds on to what is not to be kept."""


class _Same:
    """Equal for the same object alone."""

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.held is other.held

    def __hash__(self) -> int:
        return id(self.held)


def _signature(value: Any, around: tuple[int, ...], /) -> Hashable:
    """What functions that compute the same have in common; `around` are the ids of the functions that hold this one."""
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, (list, dict, set, np.ndarray, jax.Array)):
        raise _PassingError
    if type(value) is tuple:
        return tuple(_signature(v, around) for v in value)
    if hasattr(value, "__func__"):
        return "method", _signature(value.__func__, around), _Same(value.__self__)
    if id(value) in around:
        return "itself", around.index(id(value))
    if not hasattr(value, "__code__"):
        return _Same(value)
    held = [*(cell.cell_contents for cell in value.__closure__ or ()), *(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items())]
    return value.__code__, *(_signature(v, (*around, id(value))) for v in held)
