"""Files of a run directory are data: whatever stands in them, nothing else is read or run, and the error is one of the product."""

import json
import pathlib
import random
from typing import Any

import pytest

from videomae_jax import config as configs
from videomae_jax import manifest, run_directory
from videomae_jax.checkpoint import Checkpointer, DamagedError
from videomae_jax.errors import UserError

HOSTILE = (None, -1, 0, 1e99, "", "../../etc/passwd", [], {}, True, [[[]]], {configs.SYMBOL: 5}, {configs.SYMBOL: "os.system", "command": "touch pwned"},
           {configs.SYMBOL: "builtins.eval", "source": "open('pwned', 'w')"}, {configs.SYMBOL: "videomae_jax.config.importlib.import_module", "name": "antigravity"})


def mutated(values: Any, rng: random.Random) -> Any:
    """A config with fields that are gone, renamed or of another kind."""
    values = json.loads(json.dumps(values))
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[dict[str, Any], str]] = []

        def walk(node: Any) -> None:
            for key, value in node.items() if isinstance(node, dict) else ():
                places.append((node, key))
                walk(value)

        walk(values)
        node, key = rng.choice(places)
        if rng.random() < 0.3:
            node[f"{key}_" if rng.random() < 0.5 else key[:-1]] = node.pop(key)
        else:
            node[key] = rng.choice(HOSTILE)
        if not values:
            break
    return values


def test_any_config_json_is_a_config_or_an_error_of_one_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flipped bytes, cut files, wrong kinds: nothing else is raised by opening it, and nothing that it names is run."""
    monkeypatch.chdir(tmp_path)
    text, rng, path = configs.to_json(configs.load("configs/tiny.py")), random.Random(0), tmp_path / "config.json"
    opened = 0
    for case in range(400):
        if case % 2:
            path.write_text(json.dumps(mutated(json.loads(text), rng)))
        else:
            raw = bytearray(text.encode())
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(len(raw))] = rng.randrange(256)
            path.write_bytes(raw[: rng.randrange(len(raw))] if case % 4 else raw)
        try:
            config = run_directory.open_run(tmp_path)
        except UserError as error:
            assert "\n" not in str(error).split("(")[0]
            continue
        opened += 1
        for node in (config.objective, config.data, *config.optimizers.values()):
            try:
                configs.build(node)
            except (UserError, TypeError):  # a constructor that meets a value of another kind; `context` turns it into one line
                continue
    assert opened > 40
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    for text in ("[1, 2]", "3", "null", '"x"', "{}", "[" * 5000):
        path.write_text(text)
        with pytest.raises(UserError):
            run_directory.open_run(tmp_path)


@pytest.mark.parametrize("node", [
    {configs.SYMBOL: "videomae_jax.__main__.main", "argv": ["config", "--config=evil.py"]},
    {configs.SYMBOL: "videomae_jax.config.load", "path": "evil.py"},
    {configs.SYMBOL: "videomae_jax.run_directory.write", "path": "evil.txt", "text": "pwned"},
    {configs.SYMBOL: "videomae_jax.metrics.Writer", "directory": "evil", "step": 0, "lead": True},
    {configs.SYMBOL: "videomae_jax.checkpoint.Checkpointer", "directory": "evil"}])
def test_a_stored_config_calls_no_function(node: dict[str, Any], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own commands, functions and classes that write are no parts of a config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('pwned').touch()\n")
    with pytest.raises(UserError, match=r"refusing to build '.*', which is no dataclass; allowed are the classes that configs are made of"):
        configs.build(node)
    assert [p.name for p in tmp_path.iterdir()] == ["evil.py"]


def test_a_run_that_cannot_be_built_is_one_line(tmp_path: pathlib.Path) -> None:
    """A value of the wrong kind reaches a constructor: evaluators and exports print no traceback."""
    values = json.loads(configs.to_json(configs.load("configs/tiny.py")))
    values["objective"]["encoder_mask"]["ratio"] = [1]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="the config of .* cannot be built: TypeError"):
        run_directory.context(tmp_path)


@pytest.mark.parametrize("leaves", [None, [], 3, {"params": 3}, {"params": {"a": None}}, {"params": {"a": {"shape": 3, "dtype": "x", "checksum": 1}}},
                                    {"params": {"a": {"shape": [1], "dtype": "float32"}}}])
def test_sealed_metadata_that_describe_no_arrays_are_damage(tmp_path: pathlib.Path, leaves: Any) -> None:
    """A checksum protects against accidents alone; what carries a right one may still be anything."""
    (tmp_path / "00000001" / "meta").mkdir(parents=True)
    (tmp_path / "00000001" / "meta" / "metadata").write_text(json.dumps(manifest.seal({"leaves": leaves, "step": 1})))
    saver = Checkpointer(tmp_path)
    with pytest.raises(DamagedError, match="its metadata do not describe arrays"):
        saver.meta(1)
    saver.close()
