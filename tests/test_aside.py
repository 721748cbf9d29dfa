"""Names of what is set aside."""

import pathlib

from videomae_jax import aside


def test_nothing_is_written_over_and_no_other_step_counts(tmp_path: pathlib.Path) -> None:
    """The first free number, also where an earlier one was removed; step 100 is none of step 10."""
    names = []
    for number in range(4):
        (tmp_path / f"faults.jsonl.before_100{'.1' * (number > 1)}").touch()
        names.append(aside.free(tmp_path / "faults.jsonl.before_10"))
        names[-1].touch()
    assert [path.name for path in names] == [f"faults.jsonl.before_10{end}" for end in ("", ".1", ".2", ".3")]
    names[1].unlink()
    assert aside.free(names[0]) == names[1]
