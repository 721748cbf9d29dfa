"""Any config as a model of seconds: what `test_contract.py` trains. `tiny(config)` shrinks by rules on field names.

A rule says what a field called so becomes, wherever it lies below `objective` or `data` (RULES, below). The data are
replaced by random examples with the fields that the config's own source declares, shrunk by the same rules, so that a new
modality needs nothing here. The optimiser is plain gradient descent at a constant rate, without clipping: Adam would
hide a gradient of the wrong scale, and the first rate of a warm-up is 0.

What the author of a recipe does:

1. Nothing, where the recipe names things as the others do: `width depth heads hidden patch frames size ratio ...`, and
   its source tells `fields` without opening files.
2. Where no rule fits, the objective (a class attribute, no field) says it: `tiny = {"queue": 16, "decoder.layers": 1}`,
   paths below `objective`. A kind of field that further recipes will have becomes a rule.
3. `inert` on the objective names the leaves that never get a gradient, each with its reason; `batch_coupled` says that
   rows of a batch depend on each other.
4. float32 islands are written `jnp.float32` where they are, not left to a default argument, and whatever sets the
   accuracy of a gradient comes from parameters and inputs: the float64 runs widen exactly these.
5. `python -m pytest tests/test_contract.py --update-golden`, read the diff of tests/golden/contract, commit it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from videomae_jax import config as configs
from videomae_jax import optim
from videomae_jax.config import spec
from videomae_jax.data.sources import Field

TRUST = ("tiny",)
BATCH, REPEATS, LENGTH = 8, 2, 16


@dataclasses.dataclass(frozen=True)
class Declared:
    """Random examples with declared fields (name, shape, dtype, kind): uint8 pixels, standard normal floats, small integers.

    A bool field marks a prefix of random length, at least half. Labels are below `classes`, other integers below 4.
    Rows differ; copies of a row are identical.
    """

    declared: tuple[tuple[str, tuple[int, ...], str, str], ...]
    length: int = LENGTH
    repeats: int = 1
    number: int = 2

    @property
    def fields(self) -> dict[str, Field]:
        """The declared fields."""
        return {name: Field(tuple(shape), dtype, kind) for name, shape, dtype, kind in self.declared}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return tuple(map(str, range(self.number)))

    def __len__(self) -> int:
        return self.length

    def name(self, row: int, /) -> str:
        """The example's name."""
        return f"random {row}"

    def read(self, row: int, /, *, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Every key [K ...]."""
        drawn = np.random.default_rng(row)
        return {k: np.repeat(self._draw(drawn, k, f)[None], self.repeats, 0) for k, f in self.fields.items()}

    def _draw(self, rng: np.random.Generator, key: str, field: Field, /) -> np.ndarray:
        kind = np.dtype(field.dtype).kind
        if kind == "f":
            return rng.standard_normal(field.shape).astype(field.dtype)
        if kind == "b":
            return np.broadcast_to(np.arange(field.shape[-1]) < rng.integers(field.shape[-1] // 2, field.shape[-1] + 1), field.shape)
        limit = self.number if key == "label" else 256 if field.dtype == "uint8" and field.kind == "image" else 4
        return rng.integers(0, limit, field.shape).astype(field.dtype)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """Plain gradient descent whose state is the last gradient, for tests to look at."""

    schedule: optim.Schedule

    def transform(self) -> optax.GradientTransformation:
        """The gradient itself, also kept."""
        return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, state, params=None: (grads, grads))


def _patch(value: Any, /) -> Any:
    """4 pixels a side; the extent in time, the first of three, at most 2."""
    return 4 if isinstance(value, int) else (min(value[0], 2), 4, 4) if len(value) == 3 else (4,) * len(value)


def _least(limit: int, /) -> Callable[[Any], Any]:
    def shrunk(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(shrunk, value))
        return min(value, limit) if isinstance(value, (int, float)) else value
    return shrunk


RULES: Mapping[str, Callable[[Any], Any]] = {
    "depth": _least(2), "layers": _least(2), "fused": _least(1), "heads": _least(2), "hidden": _least(32), "patch": _patch,
    "frames": _least(4), "size": _least(16), "repeats": _least(REPEATS), "classes": _least(4),
    "spectrogram": _least(16), "mels": _least(8), "length": _least(8), "vocabulary": _least(16), "queue": _least(16),
    "attributes": lambda names: names[:4],
    "remat": lambda _: "none", "unroll": lambda _: 1, "attention": lambda _: "xla",
    "drop_path": lambda rate: max(rate, 0.25),  # so that its draws, keyed by row, are checked for every recipe that can drop
}
WIDTHS = (16, 24, 32, 48)  # equal widths stay equal, different ones different


def nodes(node: Any, prefix: str = "", /) -> Iterator[tuple[str, Any]]:
    """(path, node) of a config node and all nodes below it, through tuples as well."""
    if isinstance(node, ml_collections.ConfigDict):
        yield prefix, node
        for name in node:
            yield from nodes(node[name], f"{prefix}.{name}" if prefix else name)
    elif isinstance(node, (tuple, list)):
        for i, value in enumerate(node):
            yield from nodes(value, f"{prefix}.{i}")


def shrink(root: Any, /, *, dtype: str) -> None:
    """Applies the rules in place to all nodes below `root`."""
    found = [(node, name) for _, node in nodes(root) for name in node]
    widths = sorted({node[name] for node, name in found if name == "width" and isinstance(node[name], int)})
    for node, name in found:
        if name == "width" and isinstance(node[name], int):
            node[name] = WIDTHS[widths.index(node[name])]
        elif name == "dtype" and isinstance(node[name], str):
            node[name] = dtype
        elif name in RULES and isinstance(node[name], (int, float, str, tuple)) and not isinstance(node[name], bool):
            node[name] = RULES[name](node[name])


def declared(config: ml_collections.ConfigDict, /, *, length: int) -> ml_collections.ConfigDict:
    """A node for random data with the fields of the config's source."""
    source = configs.build(config.data)
    fields = tuple((k, tuple(f.shape), f.dtype, f.kind) for k, f in source.fields.items())
    return spec(Declared, declared=fields, repeats=source.repeats, length=length)


def tiny(config: ml_collections.ConfigDict, /, *, dtype: str = "float32", length: int = LENGTH, optimizer: Any = None) -> ml_collections.ConfigDict:
    """A copy of `config` that trains in seconds on random data; every `optimizer` is Recorded unless another node is given."""
    small = config.copy_and_resolve_references()
    small.unlock()
    objective = configs.symbol(small.objective[configs.SYMBOL])
    for node in (small.objective, small.data):
        shrink(node, dtype=dtype)
    for path, value in objective.tiny.items():
        *parents, name = path.split(".")
        node = small.objective
        for parent in parents:
            node = node[int(parent)] if isinstance(node, tuple) else node[parent]
        node[name] = value
    small.data = declared(small, length=length)
    plain = spec(Recorded, schedule=optim.Schedule(base=0.1, warmup="0", unit=0, shape="constant"))
    for name in small.optimizers:
        small.optimizers[name] = plain if optimizer is None else optimizer
    small.update({"total": "8", "batch_size": BATCH, "microbatches": 1, "ema": 0.5, "workers": 0, "threads": 1, "seed": 0})
    small.evaluators = ml_collections.ConfigDict()
    return small


def kind(config: ml_collections.ConfigDict, /) -> tuple[Any, ...]:
    """What the costly checks tell apart: objective, model families, phases."""
    objective = configs.build(config.objective)
    models = sorted({node[configs.SYMBOL] for _, node in nodes(config.objective) if configs.SYMBOL in node and ".models." in node[configs.SYMBOL]})
    phases = tuple((p.name, p.trains, p.optimizer, p.repeats, p.data) for p in objective.phases())
    return config.objective[configs.SYMBOL], tuple(models), phases


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Everything in float64: islands written `jnp.float32` become float64 while this is active."""
    narrow = jnp.float32
    jnp.float32 = jnp.float64
    try:
        with jax.enable_x64(True):
            yield
    finally:
        jnp.float32 = narrow
