"""Eight forced CPU devices for the whole suite; must be set before jax is imported."""

import os
import pathlib

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8",
    # Eight devices share two cores here: the default limit would abort a slow collective.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"])


@pytest.fixture(scope="session")
def real_videos() -> pathlib.Path:
    """Real clips beside the checkout; tests that need them are skipped where they are absent."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/videos beside the checkout")
    return folder
