"""The cells of configs/scaling/v2.py: what each corpus is read at."""

from videomae_jax import config as configs


def test_something_something_is_read_at_stride_2() -> None:
    """In training and evaluation of every cell, as V2 reads its frames; the other corpora at 4."""
    cells = configs.load("configs/scaling/v2.py").grid
    strides: dict[str, set[int]] = {}
    for name, cell in cells.items():
        config = configs.load(cell.config)
        configs.override(config, dict(cell.overrides))
        strides.setdefault(name.split("-")[1], set()).update((config.data.sampling.stride, config.eval_data.sampling.stride))
    assert strides == {"ssv2": {2}, "k400": {4}, "hybrid": {4}}
