"""The table of conversions: every figure in it within 1e-5, every array the same."""

import pathlib

import pytest

SINCE = "5.18"  # before, transformers loads q and v biases as zero


@pytest.mark.slow
def test_every_direction_agrees(tmp_path: pathlib.Path) -> None:
    """All families that are here in, two out; a line each, with arrays or figures, and figures of every network."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers", minversion=SINCE)
    from parity import table

    rows = table.rows(tmp_path, table.kinds())
    every = {"hf", "videomae", "videomae_v2", "videoprism", *(name for name, kind in table.OPTIONAL.items() if kind in table.kinds())}

    def families(*chosen: table.Row) -> set[str]:
        return {word for row in chosen for word in row.direction.replace(",", "").removeprefix("--from=").removeprefix("--to=").split()}

    assert families(*rows) == every
    assert families(*(row for row in rows if row.figures)) == every - {"videomae"}  # bit for bit the runs that hf's figures are of
    for row in rows:
        assert row.arrays or row.figures, row.line
        assert row.arrays is None or row.arrays[0] == row.arrays[1] > 10, row.line
        assert all(0 < figure <= 1e-5 for figure in row.figures.values()), row.line
