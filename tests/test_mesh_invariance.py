"""The command that compares losses over meshes: which meshes it takes, what it calls a difference, and, slowly, what it finds."""

import json
import math

import mesh_invariance
import pytest


@pytest.mark.parametrize(("processes", "devices", "count"), [(1, 1, 1), (1, 2, 3), (1, 4, 4), (1, 8, 4), (2, 2, 2), (2, 4, 4), (2, 8, 4), (4, 4, 2), (4, 8, 4)])
def test_meshes(processes: int, devices: int, count: int) -> None:
    """All devices under every mesh that there is; a tensor axis lies within a process."""
    found = mesh_invariance.meshes(processes, devices)
    assert len(set(found.values())) == len(found) == count
    for name, mesh in found.items():
        assert math.prod(mesh) == devices and mesh[2] <= devices // processes and f"{devices} device" in name
        assert (mesh[0] > 1, mesh[1] > 1, mesh[2] > 1) == (" dp" in name, "fsdp" in name, "tp" in name), name
    assert mesh_invariance.meshes(1, 8)["8 devices, fsdp x tp"] == (1, 4, 2)


def test_every_number_of_processes_shares_every_number_of_devices() -> None:
    """By default no cell is missing: one device in one process first, then two and four processes on as few devices as they can have and more."""
    assert mesh_invariance.groups((1, 2, 4), (2, 4, 8)) == [(1, (1, 2, 4, 8)), (2, (2,)), (2, (4,)), (2, (8,)), (4, (4,)), (4, (8,))]
    assert mesh_invariance.groups((2,), (2,)) == [(1, (1,)), (2, (2,))]
    assert mesh_invariance.groups((1, 2), (1, 2)) == [(1, (1, 2)), (2, (2,))]
    for words in (["--processes=4", "--devices=2"], ["--processes=1", "--devices=1"]):
        with pytest.raises(SystemExit):
            mesh_invariance.main(words)


def test_two_processes_of_one_device_agree_with_one(capfd: pytest.CaptureFixture[str]) -> None:
    """Few steps of the least that several processes can be."""
    assert mesh_invariance.main(["--steps=2", "--processes=2", "--devices=2"]) == 0
    result = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert result["within"] and set(result["runs"]) == {"2 processes, 2 devices, dp", "2 processes, 2 devices, fsdp"}


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
    assert result["within"] and len(result["runs"]) == 11 + 2 + 4 + 4 and result["steps"] == 3
