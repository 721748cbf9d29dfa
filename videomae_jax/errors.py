"""Errors a user can cause and mend; the command line prints them as one line, without a traceback."""


class UserError(ValueError):
    """A mistake in a command, a config or an input file; the message names the offending value and what is allowed."""
