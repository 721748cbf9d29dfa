"""The cells of configs/scaling/v2.py: what each corpus is read at, and which of them a law is fitted to."""

import fnmatch
import pathlib
import re
from typing import Any

from videomae_jax import config as configs
from videomae_jax import scaling

FILE = pathlib.Path(__file__).resolve().parents[1] / "configs" / "scaling" / "v2.py"


def cells() -> dict[str, Any]:
    """The config of every cell."""
    found = {name: (configs.load(cell.config), cell) for name, cell in configs.load(str(FILE)).grid.items()}
    for config, cell in found.values():
        configs.override(config, dict(cell.overrides))
    return {name: config for name, (config, _) in found.items()}


def test_something_something_is_read_at_stride_2() -> None:
    """In training and evaluation of every cell, as V2 reads its frames; the other corpora at 4."""
    strides: dict[str, set[int]] = {}
    for name, config in cells().items():
        strides.setdefault(name.split("-")[1], set()).update((config.data.sampling.stride, config.eval_data.sampling.stride))
    assert strides == {"ssv2": {2}, "k400": {4}, "hybrid": {4}}


def test_each_report_that_the_file_tells_is_of_one_law() -> None:
    """One corpus and one patch size, runs enough beside the largest; no two reports are of the same."""
    made, laws = cells(), []
    for line in re.findall(r"report --scaling (.*?)\s*(?:#.*)?\n", FILE.read_text()):
        patterns = line.replace("{4b,22b}", "4b").split() + (["runs/scaling/22b-hybrid-*"] if "{4b,22b}" in line else [])
        runs = [name for name in made for pattern in patterns if fnmatch.fnmatch(f"runs/scaling/{name}", pattern)]
        measured = [scaling.measured(made[name]) for name in runs]
        assert all(other == measured[0] for other in measured), line
        assert len(runs) >= 5 and len({name.split("-")[0] for name in runs}) >= 3, line
        laws.append(measured[0])
    assert len(laws) == 4 and all(laws.count(law) == 1 for law in laws)
