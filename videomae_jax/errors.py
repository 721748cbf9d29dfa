"""Errors that the command line prints as one line, without a traceback."""

import errno
import math
import numbers
import pathlib
import pickle
import tokenize
import zipfile
import zlib

STORAGE = 74  # exit code of a StorageError: EX_IOERR of sysexits.h, the same command goes on from the newest checkpoint that is whole

REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)  # of a file system, for ever
# What numpy raises for an .npz that is none, is cut or has other bits: its zip, its headers, its pickles.
DAMAGED = (ValueError, OSError, EOFError, RuntimeError, SyntaxError, pickle.UnpicklingError, tokenize.TokenError, zipfile.BadZipFile, zlib.error)


class UserError(ValueError):
    """A mistake in a command, a config or an input file; the message names the offending value and what is allowed."""


class StorageError(RuntimeError):
    """A checkpoint cannot be written, or be read by one of several processes: the same command has to be started again."""


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
    from jax.errors import JaxRuntimeError

    return isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)


def explained(error: Exception, /) -> Exception:
    """An error of training as it is told: the same, or where the memory of a device is too small a line on what makes a run smaller."""
    if not is_exhausted(error):
        return error
    return UserError(f"the run does not fit into the memory of its devices ({str(error).splitlines()[0]}); what helps: more --config.microbatches, "
                     "--config.objective.encoder.remat=full (and decoder.remat, where there is one), a smaller --config.batch_size, which the learning rate "
                     "follows, and of evaluators --config.evaluators.NAME.batch_size; what fits, says: python -m videomae_jax plan --config=FILE --topology=local")


def unwritable(directory: pathlib.Path, error: OSError, /) -> Exception:
    """What a failure to write to a run directory means: a mistake of the user, or a fault of the storage that may pass, such as a full disk."""
    kind = UserError if error.errno in REFUSED else StorageError
    return kind(f"cannot write to --workdir={directory}: {error.strerror} ({error.filename})")
