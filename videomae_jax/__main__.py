"""python -m videomae_jax COMMAND: finds the command without importing jax, and turns a user's mistake into one line."""

import errno
import importlib
import os
import sys

from videomae_jax.errors import STORAGE, StorageError, UserError, explained

COMMANDS = {
    "train": "pretrain, fine-tune or probe: --config=FILE --workdir=DIR [--config.a.b=value ...]",
    "evaluate": "run the evaluators of a run directory on its newest checkpoint, or an evidence suite",
    "index": "list the videos of a folder for training: DIR --out=index.parquet",
    "pack": "re-encode the videos of an index as shards of clips that decode faster: INDEX --out=DIR",
    "synthesize": "write the embedded data set as mp4 files with labels",
    "visualize": "draw reconstructions of a run: png and gif",
    "bench": "measure a training step or the input pipeline, one JSON line",
    "extract": "features of whole videos by sliding windows: RUN VIDEO... --out=DIR",
    "predict": "classes of videos from a fine-tuned run: RUN VIDEO... --out=FILE.csv",
    "export": "an encoder or classifier as a StableHLO program for serving: RUN --out=DIR",
    "convert": "weights of other codebases -> a run directory, or back: --from=hf PATH --out=DIR",
    "plan": "predict memory, time and cost of a config on hardware that is not there",
    "report": "write report.html of a run directory",
    "config": "print the resolved config and its recipe card",
}


REQUIRED = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "clu", "ml_collections", "numpy", "scipy", "pyarrow", "av", "PIL", "fsspec", "matplotlib", "absl")
FULL = (errno.ENOSPC, errno.EDQUOT)  # what a write meets, which knows no name of its file
REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, *FULL)  # of a file system


def usage() -> str:
    """The list of commands."""
    lines = "\n".join(f"  {name:<12} {what}" for name, what in COMMANDS.items())
    return f"usage: python -m videomae_jax COMMAND [options]\n\ncommands:\n{lines}\n\n'COMMAND --help' lists the options of a command.\n"


def main(argv: list[str]) -> int:
    """Runs a command; 0 is success, 2 a mistake of the user, 130 an interruption, 75 a run that SIGTERM stopped and that can go on."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"error: unknown command {argv[0]!r}; allowed are {', '.join(COMMANDS)}\n")
        return 2
    try:
        return importlib.import_module(f"videomae_jax.commands.{argv[0]}").main(argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except StorageError as error:
        sys.stderr.write(f"error: {error}\n")
        return STORAGE
    except RuntimeError as error:
        if (told := explained(error, command=argv[0])) is error:
            raise
        sys.stderr.write(f"error: {told}\n")
        return 2
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in REQUIRED:
            raise
        sys.stderr.write(f"error: the package {error.name} is not installed for {sys.executable}; use the Python of .venv (launch/local.sh makes it), or "
                         "pip install -r requirements.txt\n")
        return 2
    except OSError as error:
        # Of a run that goes on for days it is as likely a fault of the storage, which passes.
        if argv[0] == "train" or error.errno not in (REFUSALS if error.filename else FULL):
            raise
        what = f"{error.filename} cannot be accessed" if error.filename else f"{argv[0]} cannot write"
        sys.stderr.write(f"error: {what}: {error.strerror}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130


def entry() -> int:
    """Console script."""
    code = main(sys.argv[1:])
    if code == STORAGE:  # threads of the storage layer would wait for minutes for what never comes, and nobody could start the run again
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(entry())
