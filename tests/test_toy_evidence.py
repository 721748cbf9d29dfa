"""Every toy config states its evidence beforehand: arms that build, measurements that exist, a protocol in words."""

import pathlib

import pytest

from videomae_jax import config as configs
from videomae_jax import evidence

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = sorted(p.stem for p in (ROOT / "configs" / "toy").glob("*.py") if p.stem != "base")


@pytest.mark.parametrize("name", NAMES)
def test_protocol_is_stated(name: str) -> None:
    """All arms resolve to objectives with the evaluators that the claims name; margins and seeds stand in the text or the claims."""
    config = configs.load(str(ROOT / "configs" / "toy" / f"{name}.py"))
    suite = configs.build(config.evidence)
    assert suite.seeds >= 3 and "before" in suite.protocol and "argin" in suite.protocol
    resolved = {arm.name: arm.resolve(config) for arm in suite.arms}
    for arm in suite.arms:
        assert configs.build(resolved[arm.name].objective), arm.name
        assert suite.evaluators(arm, resolved[arm.name]), arm.name
    assert evidence.protocol(suite, resolved, seeds={"all": (0, 1, 2)})["protocol"] == suite.protocol


@pytest.mark.parametrize("name", NAMES)
def test_command_of_the_docstring_names_the_config(name: str) -> None:
    """The line to copy runs this file."""
    text = (ROOT / "configs" / "toy" / f"{name}.py").read_text()
    assert f"evaluate --suite=evidence --config=configs/toy/{name}.py " in text
