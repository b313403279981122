"""The one exception that is the user's to mend, and its kind that may mend itself."""

TRY_AGAIN = 75  # EX_TEMPFAIL of <sysexits.h>: how a stage says that the same may do later


class UserError(Exception):
    """A mistake in params, data, environment or command line.

    The message is one line: it names the file or key path, what was found and what is allowed.
    Entry points print it without a traceback and exit with code 1.
    """


class TransientError(UserError):
    """Something outside is away: a server, a remote. A stage ends with TRY_AGAIN, and a flow runs it again."""
