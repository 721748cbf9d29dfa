"""Errors that the command line prints as one line, without a traceback."""

STORAGE = 74  # exit code of a StorageError: EX_IOERR of sysexits.h, the same command goes on from the newest checkpoint that is whole


class UserError(ValueError):
    """A mistake in a command, a config or an input file; the message names the offending value and what is allowed."""


class StorageError(RuntimeError):
    """A checkpoint cannot be written, or be read by one of several processes: the same command has to be started again."""
