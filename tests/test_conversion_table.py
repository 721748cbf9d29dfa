"""The table of conversions: every figure in it within 1e-5, every array the same."""

import pathlib

import pytest

SINCE = "5.18"  # before, transformers loads q and v biases as zero


@pytest.mark.slow
def test_every_direction_agrees(tmp_path: pathlib.Path) -> None:
    """All families that are here in, two out; a line each, with arrays or figures."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion=SINCE)
    from parity import table

    rows = table.rows(tmp_path)
    assert {word for row in rows for word in row.direction.replace(",", "").removeprefix("--from=").removeprefix("--to=").split()} == {
        "hf", "videomae", "videomae_v2", "videoprism", *(name for name, kind in table.OPTIONAL.items() if kind in table.kinds())}
    for row in rows:
        assert row.arrays or row.figures, row.line
        assert row.arrays is None or row.arrays[0] == row.arrays[1] > 10, row.line
        assert all(0 < figure <= 1e-5 for figure in row.figures.values()), row.line
