"""The command that compares losses over meshes: which meshes it takes, what it calls a difference, and, slowly, what it finds."""

import json
import math

import mesh_invariance
import pytest


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_meshes(processes: int) -> None:
    """Of one process every number of devices under every mesh; of several all devices, and a tensor axis within a process."""
    found = mesh_invariance.meshes(processes)
    assert len(set(found.values())) == len(found) == (12 if processes == 1 else 4)
    for name, mesh in found.items():
        assert math.prod(mesh) == (int(name.split()[0]) if processes == 1 else 8) and mesh[2] <= 8 // processes
        assert (mesh[0] > 1, mesh[1] > 1, mesh[2] > 1) == (" dp" in name, "fsdp" in name, "tp" in name), name
    assert mesh_invariance.meshes(1)["8 devices, fsdp x tp"] == (1, 4, 2)


def test_the_largest_difference_of_any_step_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Relative to the run of one device; a run that ended early is no run."""
    found = {"1 device": [2.0, 1.0, 0.5], "a": [2.0, 1.001, 0.5], "b": [2.0, 1.0, 0.5]}
    assert mesh_invariance.compared(dict(found)) == {"a": pytest.approx(1e-3), "b": 0.0}
    assert "1.0e-03" in capsys.readouterr().out
    with pytest.raises(ValueError, match="zip"):
        mesh_invariance.compared(found | {"b": [2.0]})


@pytest.mark.slow
def test_few_steps_agree_everywhere(capfd: pytest.CaptureFixture[str]) -> None:
    """One and two processes."""
    assert mesh_invariance.main(["--steps=3", "--processes=1,2"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert result["within"] and len(result["runs"]) == 11 + 4 and result["steps"] == 3
