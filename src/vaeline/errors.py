"""Exceptions that a user can act upon."""

TRY_AGAIN = 75  # EX_TEMPFAIL of <sysexits.h>: exit code of a stage that may succeed if run again later


class UserError(Exception):
    """A mistake in params, data, environment or command line.

    The message is one line: it names the file or key path, what was found and what is allowed.
    Entry points print it without a traceback and exit with code 1.
    """


class TransientError(UserError):
    """Something outside cannot be reached: a server, a remote. A stage exits with TRY_AGAIN, and a flow retries it."""
