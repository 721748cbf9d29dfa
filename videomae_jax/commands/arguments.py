"""Options that several commands share; nothing here imports jax."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from videomae_jax.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, like every other mistake of a user, and that knows `~` in --out=~/a too."""

    def __init__(self, command: str, /, **kw: Any) -> None:
        super().__init__(prog=f"python -m videomae_jax {command}", allow_abbrev=False, **kw)

    def parse_args(self, args: Sequence[str], namespace: Any = None) -> Any:
        return super().parse_args([at_home(word) for word in args], namespace)

    def error(self, message: str) -> Any:
        raise UserError(f"{message} (see {self.prog} --help)")


def at_home(word: str, /) -> str:
    """A word with the folder of this user for every `~` that begins a path: shells leave it behind `=` and commas as it is."""
    return re.sub(r"(^|[=,])~(?=[/,]|$)", lambda found: found[1] + os.path.expanduser("~"), word)


def path(word: str, /) -> str:
    """The type of an option that names a place on a file system. Argparse says the option's name before the error of an address."""
    if "://" in word:
        raise argparse.ArgumentTypeError(f"{word} is an address; allowed is a path (a bucket that is mounted has one, too)")
    return word


def add_config(parser: argparse.ArgumentParser, /, *, required: bool = True) -> None:
    """--config, --config.a.b=value and --trust."""
    parser.add_argument("--config", required=required, metavar="FILE", help="config file, e.g. configs/smoke.py")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="also build symbols of this package")
    parser.epilog = "Any field of the config can be overridden: --config.a.b=value. Fields are listed by the `config` command."


def parse(parser: argparse.ArgumentParser, argv: list[str], /) -> tuple[argparse.Namespace, dict[str, str]]:
    """Options and the --config.a.b=value assignments."""
    plain, assignments, words = [], {}, iter(argv)
    for word in words:
        if word.startswith("--config."):
            name, equals, value = word.removeprefix("--config.").partition("=")
            if not equals:
                value = next(words, None)
                if value is None:
                    raise UserError(f"--config.{name} needs a value: --config.{name}=value")
            assignments[name] = at_home(value)
        else:
            plain.append(word)
    return parser.parse_args(plain), assignments


def resolve(options: argparse.Namespace, assignments: dict[str, str], /) -> Any:
    """The config file with its overrides."""
    from videomae_jax import config as configs

    config = configs.load(options.config)
    configs.override(config, assignments)
    return config


def add_processes(parser: argparse.ArgumentParser, /) -> None:
    """--coordinator, --processes and --process for a run over several processes."""
    parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="address of process 0, or 'auto' where jax detects the cluster")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="number of processes")
    parser.add_argument("--process", type=int, default=0, metavar="I", help="number of this process, from 0")
    parser.add_argument("--init-timeout", type=int, default=300, metavar="SECONDS", help="wait this long for the other processes to start (default 300)")
    parser.add_argument("--peer-limit", type=int, default=15, metavar="SECONDS", help="end when another process gives no sign of life for so long (default 15)")


def add_model(parser: argparse.ArgumentParser, /) -> None:
    """RUN, --step, --best, --allow and --trust of commands that use a trained model."""
    parser.add_argument("workdir", type=path, metavar="RUN", help="run directory, or weights of others as for convert --from=auto")
    parser.add_argument("--step", type=int, default=None, help="checkpoint to use (default: the newest)")
    parser.add_argument("--best", action="store_true", help="weights of the best evaluation, where the run keeps them (evaluators.NAME.best); so does RUN/best")
    parser.add_argument("--allow", action="append", default=[], metavar="CLASS[:PATTERN]", help="for weights of others: accepted differences, as for convert")
    parser.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="also build symbols of this package")


def model(options: argparse.Namespace, /, **kw: Any) -> Any:
    """The model that the options name; `kw` goes to `api.load`."""
    from videomae_jax import api
    from videomae_jax.convert import report

    conversion = {"allow": report.allowances(options.allow)} if options.allow else {}
    return api.load(options.workdir, step=options.step, best=options.best, trust=tuple(options.trust), **conversion, **kw)


@contextlib.contextmanager
def writing(out: str, /, *, option: str = "out") -> Iterator[None]:
    """Around what writes to the place of an option: a place that cannot be written is one line, like every other mistake of a user."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--{option}={out} cannot be written ({error})") from error


def start(options: argparse.Namespace, /) -> None:
    """Joins the other processes of the run, if there are any."""
    if not 0 <= options.process < options.processes:
        raise UserError(f"--process={options.process} with --processes={options.processes}; allowed are 0 to {options.processes - 1}")
    if options.processes > 1 and not options.coordinator:
        raise UserError(f"--processes={options.processes} needs --coordinator=HOST:PORT, the address of process 0")
    if options.peer_limit < 1:
        raise UserError(f"--peer-limit={options.peer_limit}; allowed are whole seconds from 1 on")
    from videomae_jax import cluster

    cluster.initialize(coordinator=options.coordinator, processes=options.processes, process=options.process, timeout=options.init_timeout,
                       peer_limit=options.peer_limit)
    if options.coordinator:
        say(cluster.place_of_process())


def say(line: str, /) -> None:
    """A line for people, on standard error, so that standard output stays machine-readable."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
