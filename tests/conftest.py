"""Eight forced CPU devices and a quick compiler for the whole suite, set before jax is imported. Options: --slow, --all, --update-golden."""

import gc
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator

import pytest
from runs import QUICK, THREADS, cache

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join([
    os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8",
    # Eight devices share two cores here: the default limit would abort a slow collective.
    "--xla_cpu_collective_call_terminate_timeout_seconds=600", QUICK])
os.environ.update(THREADS)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # commands that tests start inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what runs in its background, and every process of a test would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
SETTINGS = ("jax_disable_most_optimizations", "jax_enable_x64", "jax_default_matmul_precision", "jax_compilation_cache_dir",
            "jax_cpu_collectives_implementation")
FIRST = ("test_contract", "test_resume", "test_processes", "test_av_mae")  # files of minutes: none of them starts when all others are done


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of this suite."""
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--all", action="store_true", help="run the costly contract checks for every config, not once per kind of objective")
    parser.addoption("--update-golden", action="store_true", help="rewrite golden texts instead of comparing with them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The longest files first; skips what takes minutes unless asked for."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))


def pytest_sessionfinish() -> None:
    """Compiled programs go with the session: a process of xdist may be ended before it does what is left for its exit."""
    if cache.cache_info().currsize:
        shutil.rmtree(cache(), ignore_errors=True)


@pytest.fixture(scope="session")
def real_videos() -> pathlib.Path:
    """Real clips beside the checkout; tests that need them are skipped where they are absent."""
    folder = pathlib.Path(__file__).resolve().parents[2] / "shared" / "videos"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/videos beside the checkout")
    return folder


@pytest.fixture(scope="module")
def optimised() -> Iterator[None]:
    """For modules about compiled programs: they are compiled as a run's."""
    import jax

    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def ordinary_scheduling() -> Iterator[None]:
    """No test leaves this thread with another scheduling policy: real-time threads starve what comes after it."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0)
    yield
    after = os.sched_getscheduler(0)
    if after != before:
        os.sched_setscheduler(0, before, os.sched_param(0))
    assert after == before, f"the test left the scheduling policy {after}, before it was {before}"


@pytest.fixture(autouse=True)
def ordinary_settings() -> Iterator[None]:
    """No test leaves JAX with other settings: what comes after it would be compiled otherwise, slowly, or not at all."""
    import jax

    before = {name: jax.config.values[name] for name in SETTINGS}
    yield
    changed = {name: value for name, value in before.items() if jax.config.values[name] != value}
    for name, value in changed.items():
        jax.config.update(name, value)
    assert not changed, f"the test left other settings than {changed}"


@pytest.fixture
def collected() -> Iterator[None]:
    """Reads of damaged arrays that orbax gave up raise when they are collected: by this fixture in their own test, where it is ignored, not in one to come."""
    yield
    gc.collect()
