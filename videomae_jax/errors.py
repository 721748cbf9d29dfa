"""Errors that the command line prints as one line, without a traceback."""

import errno
import math
import numbers
import pathlib
import pickle
import re
import tokenize
import zipfile
import zlib

STORAGE = 74  # exit code of a StorageError: EX_IOERR of sysexits.h, the same command goes on from the newest checkpoint that is whole

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)  # of a file system, for ever
# What numpy raises for an .npz that is none, is cut or has other bits: its zip, its headers, its pickles.
DAMAGED = (ValueError, OSError, EOFError, RuntimeError, SyntaxError, pickle.UnpicklingError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
ATTENTION = "attention without a kernel, --config.objective.encoder.attention=xla (and decoder.attention, where there is one)"
TRAINING = ("more --config.microbatches, --config.objective.encoder.remat=full (and decoder.remat, where there is one), a smaller --config.batch_size, "
            "which the learning rate follows, and of evaluators --config.evaluators.NAME.batch_size; what fits, says: "
            "python -m videomae_jax plan --config=FILE --topology=local")
# What makes a command need less memory of its devices; those that are not listed have no such option.
HELPS = {"train": TRAINING, "plan": TRAINING, "bench": "a smaller --batch", "extract": "a smaller --batch", "visualize": "fewer --clips",
         "evaluate": "a smaller --config.evaluators.NAME.batch_size, and of a suite more --config.microbatches or a smaller --config.batch_size"}
CONFIGURED = ("train", "plan", "bench", "evaluate")  # commands whose options say which attention computes
ELSEWHERE = "a device with more memory, or JAX_PLATFORMS=cpu, with which the host computes in its own"


class UserError(ValueError):
    """A mistake in a command, a config or an input file; the message names the offending value and what is allowed."""


class StorageError(RuntimeError):
    """A checkpoint cannot be written, be read by one of several processes, or be brought back, or a disk fails at the start or
    the end: the same command has to be started again.
    """


def is_number(value: object, /) -> bool:
    """Whether a value of a config is a number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def allow(owner: object, /, *, rising: tuple[str, ...] = (), **ranges: tuple[float, float]) -> None:
    """Checks fields of a dataclass: finite numbers, or tuples of them, from low to high, ends included; those `rising` do not fall.

    Raises UserError for the first that is none of what is allowed.
    """
    for field, (low, high) in ranges.items():
        value = getattr(owner, field)
        values = value if isinstance(value, tuple) else (value,)
        if not all(is_number(v) and math.isfinite(v) and low <= v <= high for v in values):
            raise UserError(f"{field} is {value!r}; allowed are {low:g} {'and more' if high == math.inf else f'to {high:g}'}")
        if field in rising and sorted(values) != list(values):
            raise UserError(f"{field} is {value}; allowed are numbers that rise")


def is_exhausted(error: BaseException, /) -> bool:
    """Whether an error means that the memory of a device is too small; those of storage have the same word for a quota."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        return False  # without jax, which not every command needs
    from jax.errors import JaxRuntimeError

    return isinstance(error, JaxRuntimeError)


def explained(error: Exception, /, *, command: str = "train") -> Exception:
    """An error of a command as it is told: the same, or where the memory of a device is too small a line on what makes the command need less.

    The memories within a TPU's cores ("vmem", "smem") are another matter than "hbm": a kernel of attention overflows them at any batch.
    """
    if not is_exhausted(error):
        return error
    said, space = str(error).splitlines()[0], re.search(r"in memory space (\w+)", str(error))
    if space and space[1] != "hbm":
        helps = ATTENTION if command in CONFIGURED else ELSEWHERE
        return UserError(f"a kernel does not fit into the {space[1]} of its device ({said}); what helps: {helps}")
    return UserError(f"the run does not fit into the memory of its devices ({said}); what helps: {HELPS.get(command, ELSEWHERE)}")


def unreadable(what: str, error: OSError, /) -> Exception:
    """What a failure to read `what` means: a mistake of the user, or a fault of the storage that may pass."""
    return (UserError if error.errno in REFUSED else StorageError)(f"{what} cannot be read ({error.strerror})")


def unwritable(directory: pathlib.Path, error: OSError, /) -> Exception:
    """What a failure to write to a run directory means: a mistake of the user, or a fault of the storage that may pass, such as a full disk."""
    kind = UserError if error.errno in REFUSED else StorageError
    return kind(f"cannot write to --workdir={directory}: {error.strerror}{f' ({error.filename})' if error.filename else ''}")  # a write that fails names no file
