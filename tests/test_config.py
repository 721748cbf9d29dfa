"""Configs: binding, overriding, building, storing and comparing, and every mistake a user can make."""

import dataclasses
import functools
import json
import pathlib

import ml_collections
import pytest

from videomae_jax import config as configs
from videomae_jax import masking, optim, targets
from videomae_jax.config import spec
from videomae_jax.errors import UserError
from videomae_jax.models import vit
from videomae_jax.objectives.mae import MAE

from configs import base


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A symbol of another package; `name` is a field like any other here."""

    name: str
    parts: tuple = (masking.Random(0.5),)
    options: dict = dataclasses.field(default_factory=lambda: {"a": 1})


def example() -> ml_collections.ConfigDict:
    """A config with a value of every kind."""
    config = ml_collections.ConfigDict(type_safe=False)
    config.name, config.seed, config.ema, config.flag, config.total, config.nothing = "x", 0, 0.0, True, "40ep", None
    config.objective = spec(MAE, encoder=vit.encoder("B"), decoder=vit.decoder("B"), target=targets.Pixels())
    config.optimizers = ml_collections.ConfigDict({"main": spec(optim.AdamW, schedule=optim.Schedule(base=1e-3))}, type_safe=False)
    config.mesh = ml_collections.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})
    config.data = ml_collections.ConfigDict({"size": 224})
    config.lock()
    return config


def overridden(**assignments: str) -> ml_collections.ConfigDict:
    """The example with fields set as on the command line; "__" stands for a dot."""
    config = example()
    configs.override(config, {k.replace("__", "."): v for k, v in assignments.items()})
    return config


def test_spec_writes_all_defaults_out() -> None:
    """Every constructor parameter, nested dataclasses as nodes, Linen's own fields left out."""
    node = spec(vit.Encoder, width=8, depth=1, heads=2, hidden=16)
    assert node[configs.SYMBOL] == "videomae_jax.models.vit.Encoder"
    fields = {f.name for f in dataclasses.fields(vit.Encoder)} - {"parent", "name"}
    assert set(node) == fields | {configs.SYMBOL} and node.drop_path == 0.0 and node.patch == (2, 16, 16)
    nested = spec(MAE, encoder=vit.encoder("B"), decoder=vit.decoder("B"))
    assert nested.decoder_mask[configs.SYMBOL] == "videomae_jax.masking.RunningCell" and nested.encoder.width == 768


def test_spec_of_other_dataclasses() -> None:
    """A field called name is no field of Linen; containers of dataclasses and default factories are written out."""
    node = spec(Foreign, name="n")
    assert node.name == "n" and node.parts[0].ratio == 0.5 and dict(node.options) == {"a": 1}
    path = node[configs.SYMBOL]
    package = path.split(".")[0]
    again = configs.build(configs.from_json(configs.to_json(node)), trust=(package,))
    assert dataclasses.asdict(again) == dataclasses.asdict(Foreign("n")) and isinstance(again.parts[0], masking.Random)


def test_build_gives_the_object_back() -> None:
    """build(spec(object)) equals the object, through JSON too."""
    objective = MAE(encoder=vit.encoder("g", dtype="bfloat16"), decoder=vit.decoder("g"), encoder_mask=masking.Random(0.8))
    node = configs.plain(objective)
    assert configs.build(node) == objective
    assert configs.build(configs.from_json(configs.to_json(node))) == objective


def test_json_round_trip() -> None:
    """The stored config has the same leaves, tuples included, and no difference to the original."""
    config = example()
    again = configs.from_json(configs.to_json(config))
    assert configs.flat(again) == configs.flat(config)
    assert not any(configs.compare(config, again).values())
    assert configs.to_json(again) == configs.to_json(config)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: spec(masking.Random, ratoi=0.9), r"videomae_jax.masking.Random has no parameter 'ratoi'; it has ratio, layout"),
    (lambda: spec(vit.Encoder, width=8, depth=1, heads=2, hidden=16, name="x"), "has no parameter 'name'"),
    (lambda: spec(optim.AdamW), "videomae_jax.optim.AdamW needs a value for 'schedule'"),
    (lambda: configs.build({configs.SYMBOL: "videomae_jax.masking.Random", "ratoi": 1}), "has no parameter 'ratoi'; it has ratio"),
    (lambda: configs.build({configs.SYMBOL: "videomae_jax.optim.Schedule"}), "videomae_jax.optim.Schedule needs a value for 'base'")])
def test_parameters_that_do_not_exist_or_are_missing(make: object, message: str) -> None:
    """Whether a file, a command line or an older run misspelt them."""
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("path", [
    "os.system", "subprocess.run", "builtins.eval", "videomae_jaxx.masking.Random",
    "videomae_jax.config.ml_collections", "videomae_jax.config.Any", "videomae_jax.metrics.TextIO"])
def test_foreign_symbols_are_refused(path: str) -> None:
    """Other packages, and names that an own module merely imports from them."""
    with pytest.raises(UserError, match="refusing to import .*: allowed packages are videomae_jax, configs; add one with --trust=PACKAGE"):
        configs.build({configs.SYMBOL: path})


def test_trusted_packages_are_built() -> None:
    """--trust names them one by one."""
    node = {configs.SYMBOL: "fractions.Fraction", "numerator": 3, "denominator": 4}
    with pytest.raises(UserError, match="refusing"):
        configs.build(node)
    assert configs.build(node, trust=("fractions",)) == 0.75


@pytest.mark.parametrize("path", ["videomae_jax.masking.Rondom", "videomae_jax.mosking.Random", "videomae_jax"])
def test_symbols_that_do_not_exist(path: str) -> None:
    """A config of another version of the code."""
    with pytest.raises(UserError, match=f"config names '{path}', which cannot be imported"):
        configs.build({configs.SYMBOL: path})


@pytest.mark.parametrize("value", [7, None, ["videomae_jax.masking.Random"], {}])
def test_symbols_that_are_no_paths(value: object) -> None:
    """A stored config that was edited by hand."""
    with pytest.raises(UserError, match="__symbol__ is .*; allowed is an import path"):
        configs.build({configs.SYMBOL: value})


@pytest.mark.parametrize(("group", "field"), [("", "totl"), ("mesh", "fdsp"), ("checkpoint", "evry"), ("log", "evry")])
def test_a_misspelt_field_of_a_recipe_fails(group: str, field: str) -> None:
    """While the recipe fills the common fields, not after a run of defaults; what recipes name themselves stays open."""
    config = base.get_config()
    with pytest.raises(AttributeError, match=field):
        setattr(config[group] if group else config, field, "1")
    config.optimizers.critic, config.evaluators.probe, config.eval_data.size = {}, {}, 32


def test_overrides() -> None:
    """Values keep the type of the field; strings are taken as typed, so 'none' and '10' stay strings."""
    config = overridden(seed="3", ema="1", flag="False", total="100", name="None", nothing="0.5", objective__encoder__remat="none",
                        objective__target__normalise="none", objective__encoder__patch="[4, 8, 8]", objective__encoder_mask__ratio="0.75",
                        optimizers__main__schedule__base="2e-3")
    assert config.seed == 3 and config.flag is False and config.total == "100" and config.name == "None" and config.nothing == 0.5
    assert type(config.ema) is float and config.ema == 1.0
    objective = configs.build(config.objective)
    assert objective.encoder.remat == "none" and objective.target.normalise == "none" and objective.encoder.patch == (4, 8, 8)
    assert objective.encoder_mask.ratio == 0.75 and configs.build(config.optimizers)["main"].schedule.base == 2e-3
    assert overridden(name="'quoted'").name == "quoted" and overridden(flag="true").flag is True


@pytest.mark.parametrize(("assignments", "message"), [
    ({"sede": "1"}, "unknown config key 'sede': 'sede' is not among data, ema, flag"),
    ({"objective__encoder__widht": "1"}, "unknown config key 'objective.encoder.widht': 'widht' is not among .*width"),
    ({"objective__encodr__width": "1"}, "'encodr' is not among"),
    ({"seed__x": "1"}, "'x' is not among no fields"),
    ({"objective__encoder": "1"}, "--config.objective.encoder is a group with the fields .*; set one of them"),
    ({"seed": "x"}, "--config.seed=x is of type str; allowed is type int, such as 0"),
    ({"seed": "1.5"}, "is of type float; allowed is type int"), ({"seed": "none"}, "is of type NoneType; allowed is type int"),
    ({"seed": "true"}, "is of type bool; allowed is type int"), ({"flag": "1"}, "is of type int; allowed is type bool"),
    ({"ema": "high"}, "is of type str; allowed is type float"), ({"seed": "{[]:1}"}, "is of type str; allowed is type int"),
    ({"seed": "-" * 20000 + "1"}, "is of type str; allowed is type int"),
    ({"objective__encoder__mean": "a,b,c"}, r"mean=a,b,c holds 'a,b,c'; allowed are numbers, such as \(0.485, "),
    ({"objective__encoder__std": "(1,'x',1)"}, "holds 'x'; allowed are numbers"), ({"objective__encoder__patch": "(2,True,16)"}, "holds True; allowed are numbers")])
def test_override_mistakes(assignments: dict, message: str) -> None:
    """Misspelt keys name the fields there are; values of another type name the present one."""
    with pytest.raises(UserError, match=message):
        overridden(**assignments)


@pytest.mark.parametrize(("text", "steps"), [
    ("40ep", 400), ("0.5ep", 5), (" 2 ep ", 20), ("5%", 50), ("0.1%", 1), ("1000", 1000), (1000, 1000), ("1e3", 1000), ("2.5e2", 250), ("0", 0), (".5ep", 5)])
def test_durations(text: object, steps: int) -> None:
    """10 steps an epoch, 1000 in all."""
    assert configs.duration(text, total=1000, steps_per_epoch=10) == steps


@pytest.mark.parametrize("text", ["", "ep", "%", "5 percent", "-5", "40e", "40epochs", "1.2.3", "5%ep", "nan", "1e", "1e-3", "0x10"])
def test_durations_that_are_not(text: str) -> None:
    """Each is quoted back."""
    with pytest.raises(UserError, match="is not understood; allowed are '40ep', '5%' and '1000'"):
        configs.duration(text, total=1000, steps_per_epoch=10)


def test_total_cannot_be_relative_to_itself() -> None:
    """A percentage needs a total."""
    with pytest.raises(UserError, match="'5%' is relative to the total, which must itself be in epochs or steps"):
        configs.duration("5%", total=None, steps_per_epoch=10)


@pytest.mark.parametrize(("key", "value", "kind"), [
    ("name", "'y'", "free"), ("mesh.fsdp", "2", "free"), ("objective.encoder.remat", "full", "free"), ("objective.decoder.unroll", "4", "free"),
    ("objective.encoder.attention", "cudnn", "free"), ("total", "50ep", "extend"), ("seed", "1", "fork"), ("ema", "0.99", "fork"),
    ("data.size", "112", "fork"), ("optimizers.main.schedule.base", "0.1", "fork"), ("optimizers.main.schedule.warmup", "1ep", "fork"),
    ("optimizers.main.clip", "0.02", "fork"), ("optimizers.main.weight_decay", "0.1", "fork"),
    ("optimizers.main.__symbol__", "videomae_jax.optim.SGD", "never"), ("objective.encoder.width", "384", "never"),
    ("objective.encoder_mask.ratio", "0.75", "never"), ("objective.target.normalise", "none", "never"),
    ("objective.__symbol__", "videomae_jax.objectives.mae.Other", "never"), ("flag", "false", "never")])
def test_what_a_resumed_run_may_change(key: str, value: str, kind: str) -> None:
    """Every field belongs to one group, and the line names the old and the new value."""
    new = example()
    old = configs.flat(new)[key]
    if key.endswith(configs.SYMBOL):  # alone, without the fields that go with it
        node = functools.reduce(lambda at, name: at[name], key.split(".")[:-1], new)
        node[configs.SYMBOL] = value
    else:
        configs.override(new, {key: value})
    result = configs.compare(example(), new)
    assert {k: len(v) for k, v in result.items()} == {"free": 0, "extend": 0, "fork": 0, "never": 0} | {kind: 1}
    assert result[kind] == [f"{key}: {old!r} -> {configs.flat(new)[key]!r}"]


@pytest.mark.parametrize("key", ["log.every", "checkpoint.keep_last", "evaluators.probe.every", "eval_data.size", "microbatches", "workers", "threads", "prefetch"])
def test_free_fields_may_also_appear(key: str) -> None:
    """Logging, saving, evaluation and loading are never part of what a run is."""
    before, after = ml_collections.ConfigDict(type_safe=False), ml_collections.ConfigDict(type_safe=False)
    *groups, name = key.split(".")
    node = after
    for group in groups:
        node[group] = ml_collections.ConfigDict(type_safe=False)
        node = node[group]
    node[name] = 1
    assert configs.compare(before, after)["free"] == [f"{key}: '<absent>' -> 1"]


@pytest.mark.parametrize(("now", "never"), [("1e-6", []), ("1e-5", ["objective.encoder.eps: 1e-06 -> 1e-05"])])
def test_parameters_that_are_new_had_their_defaults(now: str, never: list[str]) -> None:
    """A run that began before the encoder had an `eps` goes on, unless it has another now."""
    new, before = example(), json.loads(configs.to_json(example()))
    configs.override(new, {"objective.encoder.eps": now})
    del before["objective"]["encoder"]["eps"]
    assert configs.compare(before, new) == {"free": [], "extend": [], "fork": [], "never": never}
    before["objective"]["__symbol__"] = "elsewhere.MAE"  # not imported
    assert len(configs.compare(before, new)["never"]) == 1 + len(never)


def test_either_side_may_be_of_an_earlier_version() -> None:
    """A stored config is no other than itself, nor than the one that its run has now; what differs otherwise is still told."""
    before = json.loads(configs.to_json(example()))
    del before["objective"]["encoder"]["eps"]
    for old, new in ((before, before), (example(), before), (before, example())):
        assert not any(configs.compare(old, new).values())
    assert configs.compare(overridden(objective__encoder__eps="1e-5"), before)["never"] == ["objective.encoder.eps: 1e-05 -> 1e-06"]
    assert configs.compare(before, {**before, "seed": 1}) == {"free": [], "extend": [], "fork": ["seed: 0 -> 1"], "never": []}


def test_lists_and_tuples_are_the_same_once_stored() -> None:
    """JSON has no tuples."""
    assert not any(configs.compare({"a": [1, 2]}, {"a": (1, 2)}).values())


CONFIG = '''"""A config."""
from configs import base
def get_config():
    config = base.get_config()
    config.seed = 1
    return config
'''


def test_load(tmp_path: pathlib.Path) -> None:
    """The file's get_config(), locked against new fields."""
    file = tmp_path / "mine.py"
    file.write_text(CONFIG)
    config = configs.load(str(file))
    assert config.seed == 1 and config.is_locked and set(config) == set(configs.FIELDS)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("empty.py", "x = 1\n", r"defines no get_config\(\)"), ("config.json", "{}", "is not a Python file; allowed are files that end in .py"),
    ("absent.py", None, r"no config file .*absent.py'; known are .*configs/pretrain/vit_b.py")])
def test_files_that_are_no_config(name: str, content: str | None, message: str, tmp_path: pathlib.Path) -> None:
    """The name is quoted, and the known configs listed where there is none."""
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        configs.load(str(tmp_path / name))


@pytest.mark.parametrize(("text", "said"), [
    ("import json\n\ndef get_config():\n    return json.loads('{\\n')\n", "line 4: JSONDecodeError: "),
    ("import re\nre.compile('\\n\\n(')\n", "line 2: (error|PatternError): "),
    ("import sys\n\nimport broken_beside\n", r"line 3: SyntaxError: .*\(broken_beside.py, line 1\)"),
    ("def get_config():\n    return eval('1 +')\n", "line 2: SyntaxError: "),
    ("x = 1\ny = 2\nz = (\n", r"line 3: SyntaxError: '\(' was never closed")])
def test_the_line_is_one_of_the_config_file(text: str, said: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors about text that it reads, and about a module that it imports, have lines of their own; a syntax error of the file itself is the file's."""
    (tmp_path / "broken_beside.py").write_text("x = (\n\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=rf"^config file {tmp_path}/own.py, {said}"):
        configs.load(f"{tmp_path}/own.py")


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h", "vit_g"])
def test_published_configs_load_and_build(name: str) -> None:
    """By their name relative to the project; the objective and the optimiser exist."""
    config = configs.load(f"configs/pretrain/{name}.py")
    assert configs.build(config.objective).encoder.dtype == "bfloat16"
    assert configs.build(config.optimizers)["main"].b2 == 0.95
