"""Which functions are the same program, and that no evaluation compiles what an earlier one has compiled."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from videomae_jax import config as configs
from videomae_jax import programs
from videomae_jax.assembly import assemble
from videomae_jax.data import sources
from videomae_jax.evals import probe
from videomae_jax.evals.base import Context
from videomae_jax.programs import Programs


@dataclasses.dataclass(frozen=True)
class Scale:
    """Something to hold on to."""

    factor: float = 2.0

    def times(self, x: jax.Array) -> jax.Array:
        """factor x."""
        return self.factor * x


def made(scale: Any, *, power: Any = 1) -> Callable[..., Any]:
    """A function that is defined anew."""
    def inner(x: jax.Array) -> jax.Array:
        return x ** power
    return lambda x, shift=1.0: scale.times(inner(x)) + shift


def test_the_same_code_over_the_same_objects_is_one_program() -> None:
    """Plain values by value, objects by identity; of methods too; results are those of the function."""
    kept, scale = Programs(), Scale()
    first = kept.jit(made(scale, power=(1, 2)[1]))
    assert kept.jit(made(scale, power=2)) is first and float(first(3.0)) == 19.0
    others = [made(scale, power=3), made(scale, power=2.0), made(Scale(), power=2), scale.times, Scale().times, lambda x: scale.times(x) + 1.0]
    assert len({id(kept.jit(fn)) for fn in others} - {id(first)}) == len(others)
    assert kept.jit(scale.times) is kept.jit(scale.times)


def test_functions_with_arrays_are_not_kept() -> None:
    """Yesterday's weights would stay in memory, and a list may change."""
    for held in (np.ones(2), jnp.ones(2), [1], {"a": 1}, (1, [2])):
        def fn(x: jax.Array, held: Any = held) -> Any:
            return x, held
        kept = Programs()
        assert kept.jit(fn) is not kept.jit(fn)
        assert not kept._kept


def test_a_function_may_call_itself() -> None:
    """Its own cell holds it."""
    def defined() -> Callable[..., Any]:
        def down(x: jax.Array, n: int = 3) -> jax.Array:
            return down(x + 1, n - 1) if n else x
        return down
    kept = Programs()
    assert kept.jit(defined()) is kept.jit(defined()) and float(kept.jit(defined())(0.0)) == 3.0


def test_what_is_not_used_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one not used for longest goes."""
    monkeypatch.setattr(programs, "KEPT", 2)
    kept = Programs()
    one, two = (kept.jit(made(None, power=n)) for n in (1, 2))
    assert kept.jit(made(None, power=1)) is one
    kept.jit(made(None, power=3))
    assert kept.jit(made(None, power=1)) is one and kept.jit(made(None, power=2)) is not two


class Noise(Context):
    """A context whose evaluation data is noise in memory."""

    def source(self, split: str, /) -> Any:
        """16 clips of two classes."""
        return sources.NoiseClips(frames=4, size=32, length=16, split=split)


def test_a_second_evaluation_compiles_nothing(tmp_path: pathlib.Path) -> None:
    """With other weights: reconstruction, pictures, a probe."""
    config = configs.load("configs/tiny.py")
    config.data = configs.spec(sources.NoiseClips, frames=4, size=32, length=16)
    config.objective.encoder.frames, config.objective.encoder.size, config.batch_size = 4, 32, 8
    run, counts = assemble(config, devices=jax.devices()[:1]), []
    evaluators = {name: configs.build(node) for name, node in config.evaluators.items()} | {"probe": probe.Probe(train=16, test=16, batch_size=8)}
    state = run.create()
    for number in range(2):
        params = jax.tree.map(lambda x, number=number: x * (1 + number), state.params)
        context = Noise(run, params, run.seen(state.extra), number, tmp_path)
        with runs.compilations() as compiled:
            for name, evaluator in evaluators.items():
                assert evaluator.run(context), name
        counts.append(len(compiled))
    assert counts[0] > 0 and counts[1] == 0, counts
