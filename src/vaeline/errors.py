"""The one exception that is the user's to mend."""


class UserError(Exception):
    """A mistake in params, data, environment or command line.

    The message is one line: it names the file or key path, what was found and what is allowed.
    Entry points print it without a traceback and exit with code 1.
    """
