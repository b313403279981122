"""Exceptions that a user can act upon."""

from collections.abc import Iterator
from contextlib import contextmanager

TRY_AGAIN = 75  # EX_TEMPFAIL of <sysexits.h>: exit code of a stage that may succeed if run again later


class UserError(Exception):
    """A mistake in params, data, environment or command line.

    The message is one line: it names the file or key path, what was found and what is allowed.
    Entry points print it without a traceback and exit with code 1.
    """


class TransientError(UserError):
    """Something outside cannot be reached: a server, a remote. A stage exits with TRY_AGAIN, and a flow retries it."""


@contextmanager
def optional_imports(extra: str) -> Iterator[None]:
    """Imports of libraries that only this extra of pyproject.toml brings. Raises UserError where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        raise UserError(f"{library}: is not installed; pip install 'vaeline[{extra}]'") from None
