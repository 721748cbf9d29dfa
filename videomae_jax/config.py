"""Configs name real symbols; this module binds, overrides, builds, compares and stores them.

`spec(Symbol, **kw)` makes a `ConfigDict` that holds the symbol's import path and *every* field with its default, so a
misspelt key fails on its own line and every field can be overridden on the command line. `build` turns it into the
object. Durations are strings in the unit of the paper: "40ep", "5%", "1000".
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import math
import pathlib
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

import ml_collections

from videomae_jax.errors import UserError, is_number, unreadable

SYMBOL = "__symbol__"
COUNTS = ("seed", "batch_size", "microbatches", "workers", "threads", "prefetch")
GROUPS = ("mesh", "optimizers", "objective", "data", "eval_data", "evaluators", "evidence", "grid", "checkpoint", "log")
FIELDS: dict[str, tuple[type, ...]] = {  # of configs/base.py, and what they hold
    "name": (str,), "total": (str, int), "ema": (float, int), **dict.fromkeys(COUNTS, (int,)), **dict.fromkeys(GROUPS, (ml_collections.ConfigDict,))}
PLAIN = (str, int, float, type(None))  # what JSON stores as it is; True and False are whole numbers to Python
_LINEN_FIELDS = ("parent", "name")


def _parameters(symbol: Any, /) -> dict[str, inspect.Parameter]:
    """Constructor parameters of `symbol` that a config may set."""
    parameters = inspect.signature(symbol).parameters
    linen = dataclasses.is_dataclass(symbol) and all(k in parameters for k in _LINEN_FIELDS)
    return {k: p for k, p in parameters.items() if not (linen and k in _LINEN_FIELDS)}


def _defaults(symbol: Any, /) -> dict[str, Any]:
    """Values of the parameters that have one, as config data."""
    fields = dataclasses.fields(symbol) if dataclasses.is_dataclass(symbol) else ()
    made = {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
    known = {k: p.default for k, p in _parameters(symbol).items() if p.default is not inspect.Parameter.empty}
    return {k: plain(made.get(k, v)) for k, v in known.items()}


def spec(symbol: Any, /, **kw: Any) -> ml_collections.ConfigDict:
    """A config node for `symbol(**kw)` with all defaults written out.

    Raises UserError for a parameter that the symbol does not have, or a required one that is missing.
    """
    path = f"{symbol.__module__}.{symbol.__qualname__}"
    parameters, defaults = _parameters(symbol), _defaults(symbol)
    for name in kw:
        if name not in parameters:
            raise UserError(f"{path} has no parameter {name!r}; it has {', '.join(parameters)}")
    for name in parameters:
        if name not in kw and name not in defaults:
            raise UserError(f"{path} needs a value for {name!r}")
    return _dict({SYMBOL: path} | {name: plain(kw[name]) if name in kw else defaults[name] for name in parameters})


def plain(value: Any, /) -> Any:
    """`value` as config data: dataclass instances become nodes, sequences tuples, everything else stays."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = _parameters(type(value))
        return spec(type(value), **{f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name in known})
    if isinstance(value, (list, tuple)):
        return tuple(plain(v) for v in value)
    return value


def _dict(values: dict[str, Any], /) -> ml_collections.ConfigDict:
    """A ConfigDict in which any field may later hold None or another number type."""
    return ml_collections.ConfigDict(values, type_safe=False)


def symbol(path: str, /, *, trust: tuple[str, ...] = ()) -> Any:
    """The class at import path `path`, which must be *defined* in this package, in `configs` or in a trusted one.

    A name that an allowed module merely imports from elsewhere is refused as well, and so is what is no dataclass, functions
    above all: a config of somebody else's could call a command that runs a file. A trusted package may offer anything.
    """
    allowed = ("videomae_jax", "configs", *trust)
    refusal = UserError(f"refusing to import {path!r}: allowed packages are {', '.join(allowed)}; add one with --trust=PACKAGE")
    if not isinstance(path, str):
        raise UserError(f"{SYMBOL} is {path!r}; allowed is an import path, such as 'videomae_jax.masking.Random'")
    if path.split(".")[0] not in allowed:
        raise refusal
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:  # ValueError: a path without a dot
        raise UserError(f"config names {path!r}, which cannot be imported: {error}") from error
    if str(getattr(found, "__module__", "")).split(".")[0] not in allowed:
        raise refusal
    if path.split(".")[0] not in trust and not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise UserError(f"refusing to build {path!r}, which is no dataclass; allowed are the classes that configs are made of, such as "
                        "'videomae_jax.masking.Random', and what --trust=PACKAGE names")
    return found


def build(node: Any, /, *, trust: tuple[str, ...] = ()) -> Any:
    """The object a config node describes; plain values and containers are returned with their nodes built."""
    if isinstance(node, (ml_collections.ConfigDict, dict)):
        values = {k: build(node[k], trust=trust) for k in node if k != SYMBOL}
        if SYMBOL not in node:
            return values
        target = symbol(node[SYMBOL], trust=trust)
        unknown = sorted(set(values) - set(_parameters(target)))
        if unknown:
            raise UserError(f"{node[SYMBOL]} has no parameter {unknown[0]!r}; it has {', '.join(_parameters(target))}")
        missing = [k for k, p in _parameters(target).items() if p.default is inspect.Parameter.empty and values.get(k) is None]
        if missing:
            raise UserError(f"{node[SYMBOL]} needs a value for {missing[0]!r}")
        return target(**values)
    if isinstance(node, (list, tuple)):
        return tuple(build(v, trust=trust) for v in node)
    return node


def load(path: str, /) -> ml_collections.ConfigDict:
    """`get_config()` of a config file, looked up as given and then among the configs that the package installs.

    Raises UserError that names file and line when the file itself fails, and the field where what it returns is no config.
    """
    found = find(path)
    if found.suffix != ".py":
        raise UserError(f"config file {path!r} is not a Python file; allowed are files that end in .py")
    # `from configs import base` works in a file of one's own too: `configs` has no __init__ and so joins all these places.
    file = found.resolve()
    home = next((p for p in file.parents if p.name == "configs"), file)
    shipped = pathlib.Path(__file__).parent
    roots = [str(home.parent), *(str(p) for p in (shipped.parent, shipped) if (p / "configs" / "base.py").is_file())]
    sys.path[:0] = roots
    try:
        module_spec = importlib.util.spec_from_file_location(f"_config_{found.stem}", found)
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        if not hasattr(module, "get_config"):
            raise UserError(f"config file {path!r} defines no get_config()")
        config = module.get_config()
        _check(config, path=path)
        config.lock()
    except UserError:
        raise
    except Exception as error:  # a config file is the user's program
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if pathlib.Path(frame.filename).resolve() == file]
        if isinstance(error, SyntaxError) and pathlib.Path(error.filename or "").resolve() == file:  # of the file itself, which then never ran
            lines.append(error.lineno or "?")
        raise UserError(f"config file {path}, line {(lines or ['?'])[-1]}: {type(error).__name__}: {error}") from error
    finally:
        for root in roots:
            sys.path.remove(root)
    return config


def _check(config: Any, /, *, path: str) -> None:
    """Raises UserError unless `config` has the fields of configs/base.py and holds nothing but plain data, so that it can be stored."""
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"config file {path}: get_config() returns {str(config)[:40]!r}; allowed is the config that it fills, begun by "
                        "get_config() of configs/base.py")
    for place, value in _leaves(config, "config"):
        if not isinstance(value, PLAIN):
            made = value if isinstance(value, type) else type(value)
            told = f"write spec({made.__name__}, ...)" if dataclasses.is_dataclass(made) else \
                "allowed are numbers and strings of Python, None, and tuples and groups of them"
            raise UserError(f"config file {path}: {place} is {'the class' if value is made else 'of type'} {made.__name__}; {told}")
    if missing := [name for name in FIELDS if name not in config]:
        raise UserError(f"config file {path}: the config lacks {', '.join(missing)}; allowed is one begun by get_config() of configs/base.py")
    for name, kinds in FIELDS.items():
        if not isinstance(config[name], kinds) or isinstance(config[name], bool):
            raise UserError(f"config file {path}: {name} is {str(config[name])[:40]!r}, of type {type(config[name]).__name__}; "
                            f"allowed is type {' or '.join(kind.__name__ for kind in kinds)}")


def _leaves(node: Any, place: str, /) -> Iterator[tuple[str, Any]]:
    """(place, value) of everything in a config that is no group, list or tuple."""
    if isinstance(node, (ml_collections.ConfigDict, dict)):
        for name in node:
            yield from _leaves(node[name], f"{place}.{name}")
    elif isinstance(node, (list, tuple)):
        for i, value in enumerate(node):
            yield from _leaves(value, f"{place}[{i}]")
    else:
        yield place, node


def find(path: str, /) -> pathlib.Path:
    """The file of a config: `path` itself, or the same name among the installed configs. Raises UserError where there is none, or no access to it."""
    given = pathlib.Path(path)
    installed = pathlib.Path(__file__).parent
    for candidate in (given, installed.parent / given, installed / given):
        try:
            if candidate.is_file():
                return candidate
        except OSError as error:  # a folder that may not be entered
            raise unreadable(f"config file {path!r}", error) from error
    known = sorted({str(p.relative_to(r)) for r in (installed.parent, installed) for p in (r / "configs").rglob("*.py")
                    if p.name not in ("__init__.py", "base.py")})
    raise UserError(f"no config file {path!r}; known are {', '.join(known)}")


def literal(text: str, /) -> Any:
    """A command-line value: Python literal, true/false/none, else the string itself."""
    named = {"true": True, "false": False, "none": None}
    if text.lower() in named:
        return named[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # TypeError: {[]: 1}; the last two: thousands of brackets
        return text


def cut_to(node: Any, /, *, frames: int, size: int) -> None:
    """Sets `frames` and `size` of a source's config in place, or of those that it is made of."""
    if "frames" in node and "size" in node:
        node.frames, node.size = frames, size
        return
    for child in node.values():
        if hasattr(child, "items"):
            cut_to(child, frames=frames, size=size)


def override(config: ml_collections.ConfigDict, assignments: dict[str, str], /) -> None:
    """Sets `a.b.c` fields in place.

    A field that holds a string takes the text as it is ("none" and "10" too). Raises UserError for a field that does not
    exist or a value whose type differs from the present one, that of numbers in a tuple too; only a field that holds None takes any type. A new
    `__symbol__` gives its node the fields of the new class: those that both have keep their values, the others begin at their defaults.
    """
    symbols = sorted((path for path in assignments if path.endswith(f".{SYMBOL}")), key=lambda path: path.count("."))
    for path in (*symbols, *(path for path in assignments if path not in symbols)):  # the outer symbols first: they bring the fields
        text = assignments[path]
        node, *_, name = config, *path.split(".")
        for part in path.split(".")[:-1]:
            node = _child(node, part, path=path)
        _child(node, name, path=path)
        value, old = literal(text), node[name]
        if isinstance(old, ml_collections.ConfigDict):
            raise UserError(f"--config.{path} is a group with the fields {', '.join(old)}; set one of them")
        if isinstance(old, str) and not isinstance(value, str):
            value = text
        if isinstance(old, tuple) and not isinstance(value, tuple):
            value = tuple(value) if isinstance(value, list) else (value,)
        if isinstance(old, float) and type(value) is int:
            value = float(value)
        if old is not None and type(value) is not type(old):
            raise UserError(f"--config.{path}={text} is of type {type(value).__name__}; allowed is type {type(old).__name__}, such as {old!r}")
        if isinstance(old, tuple) and old and all(map(is_number, old)) and not all(map(is_number, value)):
            raise UserError(f"--config.{path}={text} holds {next(v for v in value if not is_number(v))!r}; allowed are numbers, such as {old!r}")
        with node.ignore_type():
            node[name] = value
        if name == SYMBOL:
            _become(node)
        if path == f"data.{SYMBOL}":  # what evaluation changes of the data, it can change of fields that are left
            for field in [f for f in config.get("eval_data", {}) if f not in node]:
                with config.eval_data.unlocked():
                    del config.eval_data[field]


def _become(node: ml_collections.ConfigDict, /) -> None:
    """Gives a node the fields of its symbol; one without a default is None until it is set. What cannot be imported without trust stays as it is."""
    try:
        target = symbol(node[SYMBOL])
    except UserError:  # `build` says so, which knows what is trusted
        return
    known = dict.fromkeys(_parameters(target)) | _defaults(target)
    with node.unlocked(), node.ignore_type():
        for name in [n for n in node if n != SYMBOL and n not in known]:
            del node[name]
        for name in [n for n in known if n not in node]:
            node[name] = known[name]


def _child(node: Any, name: str, /, *, path: str) -> Any:
    if not isinstance(node, ml_collections.ConfigDict) or name not in node:
        fields = ", ".join(node) if isinstance(node, ml_collections.ConfigDict) else "no fields"
        raise UserError(f"unknown config key {path!r}: {name!r} is not among {fields}")
    return node[name]


def to_json(config: ml_collections.ConfigDict, /) -> str:
    """The resolved config as JSON; `from_json` rebuilds it."""
    def data(value: Any) -> Any:
        if isinstance(value, (ml_collections.ConfigDict, dict)):
            return {k: data(value[k]) for k in value}
        return [data(v) for v in value] if isinstance(value, (list, tuple)) else value
    return json.dumps(data(config), indent=2, sort_keys=True)


def from_json(text: str, /) -> ml_collections.ConfigDict:
    """The config that `to_json` wrote."""
    def tuples(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(tuples(v) for v in value)
        return {k: tuples(v) for k, v in value.items()} if isinstance(value, dict) else value
    return _dict(tuples(json.loads(text)))


def flat(config: Any, /, *, prefix: str = "") -> dict[str, Any]:
    """{"a.b.c": leaf} of a config."""
    if isinstance(config, (ml_collections.ConfigDict, dict)):
        return {k: v for name in config for k, v in flat(config[name], prefix=f"{prefix}.{name}" if prefix else name).items()}
    return {prefix: config}


def duration(text: str | int, /, *, total: int | None, steps_per_epoch: float) -> int:
    """Steps in a duration: "40ep" epochs, "5%" of `total`, "1000" steps.

    An epoch is one pass over the decoded clips; copies of a decode do not count (VideoMAE V2 reports
    epochs x copies as effective epochs).
    """
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:[eE]\+?\d+)?|\.\d+)\s*(ep|%|)\s*", str(text))
    if not match:
        raise UserError(f"duration {text!r} is not understood; allowed are '40ep', '5%' and '1000'")
    value, unit = float(match[1]), match[2]
    if not math.isfinite(value):
        raise UserError(f"duration {text!r} is beyond all numbers; allowed are '40ep', '5%' and '1000'")
    if unit == "%" and total is None:
        raise UserError(f"duration {text!r} is relative to the total, which must itself be in epochs or steps")
    steps = {"ep": value * steps_per_epoch, "%": value / 100 * (total or 0), "": value}[unit]
    return int(round(steps))


# What a resumed run may change: freely, with --extend, with --fork, never (everything else).
FREE = (r"name", r"mesh\..*", r"log\..*", r"checkpoint\..*", r"evaluators\..*", r"eval_data\..*", r"microbatches", r"workers",
        r"threads", r"prefetch", r"evidence\..*", r"data\.(.*\.)?(timeout|max_bad_fraction|stage)", r".*\.remat", r".*\.unroll", r".*\.attention")
EXTEND = (r"total",)
FORK = (r"batch_size", r"seed", r"data\..*", r"optimizers\.\w+\.(?!__symbol__).*", r"ema")  # another optimiser has another state


def completed(config: Any, /) -> ml_collections.ConfigDict:
    """`config` as stored (a list equals a tuple), with the parameters that its symbols have gained since, at their defaults.

    That is what was meant when there were none.
    """
    return from_json(to_json(_completed(config)))


def _completed(node: Any, /) -> Any:
    if isinstance(node, (list, tuple)):
        return tuple(_completed(v) for v in node)
    if not isinstance(node, (ml_collections.ConfigDict, dict)):
        return node
    values = {k: _completed(node[k]) for k in node}
    if SYMBOL not in values:
        return values
    try:
        return _defaults(symbol(values[SYMBOL])) | values
    except UserError:  # of a package that only the run's own command trusts, or gone
        return values


def compare(old: Any, new: Any, /) -> dict[str, list[str]]:
    """Differences of two configs by what a resumed run needs to accept them: {"free" | "extend" | "fork" | "never": lines}."""
    before, after = flat(completed(old)), flat(completed(new))  # both, for either may be of an earlier version
    result: dict[str, list[str]] = {"free": [], "extend": [], "fork": [], "never": []}
    for key in sorted(before.keys() | after.keys()):
        left, right = before.get(key, "<absent>"), after.get(key, "<absent>")
        if left == right:
            continue
        groups = (("free", FREE), ("extend", EXTEND), ("fork", FORK))
        kind = next((name for name, patterns in groups if any(re.fullmatch(p, key) for p in patterns)), "never")
        result[kind].append(f"{key}: {left!r} -> {right!r}")
    return result
