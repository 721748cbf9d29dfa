"""What a sweep shows instead of a clip that cannot be read, and behind the last clip: no result may depend on it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from videomae_jax.evals.base import Context


def fill(name: str, value: np.ndarray, number: int, /) -> np.ndarray:
    """Something else of the same shape, another thing for every number: labels and answers are the number itself, the rest is drawn."""
    if value.dtype.kind == "i":
        return np.full_like(value, number)
    rng = np.random.default_rng(number)
    return rng.normal(size=value.shape).astype(value.dtype) if value.dtype.kind == "f" else rng.integers(0, 2 if value.dtype == bool else 256, value.shape, value.dtype)


def outcomes(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any], /, *, row: int = 2) -> list[Any]:
    """What `run` gives twice: each time a row of the source that it sweeps is marked as a substitute, and holds other things, as does the padding."""
    plain, found = Context.sweep, []
    for number in (0, 1):
        def sweep(self: Context, source: Any, /, *, batch_size: int, number: int = number) -> Any:
            for batch in plain(self, source, batch_size=batch_size):
                rows = {k: np.asarray(v) for k, v in batch.items()}
                bad = rows["valid"] & (rows["row"] == row)
                other = bad | ~rows["valid"]
                for name in rows.keys() - {"row", "key", "valid", "fault"}:
                    rows[name] = np.where(other.reshape(-1, *[1] * (rows[name].ndim - 1)), fill(name, rows[name], number), rows[name])
                rows["fault"] = np.where(bad, 2, rows["fault"]).astype(rows["fault"].dtype)
                yield {k: jax.device_put(v, batch[k].sharding) for k, v in rows.items()}

        with monkeypatch.context() as patch:
            patch.setattr(Context, "sweep", sweep)
            found.append(run())
    return found
