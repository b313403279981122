"""Exceptions that a user can act upon, and text without credentials."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

TRY_AGAIN = 75  # EX_TEMPFAIL of <sysexits.h>: exit code of a stage that may succeed if run again later
# of an address: up to the last @, for a password may hold one, or what is no port where the host was forgotten
CREDENTIALS = re.compile(r"(?<=://)(?:[^\s:/]*(?::\S*)?@|[^\s:/\[]+:(?!\d*(?:\W|$))\S*)")
ADDRESS, QUERY = re.compile(r"://\S*"), re.compile(r"\?|#(?!/)")
HEADER = re.compile(r"\b((?:Bearer|Basic)\s+|(?i:password|passwd|pwd|secret|token) ?[=:] ?)\S+")
SECRET = re.compile(r"(TOKEN|PASSWORD|SECRET(_ACCESS_KEY)?|AUTH_STRING|API_KEY)$")  # names of variables
LOCATION = re.compile(r"(UR[IL]|STORAGE|PROXY)$", re.IGNORECASE)
PASSWORD = re.compile(r"[^\s:/@]*:(?!/)(.*)@", re.DOTALL)  # in such a variable, however its address begins


def redact(text: str) -> str:
    """The text without credentials: those of addresses and headers, and values of the environment's secrets."""
    for name, value in os.environ.items():
        secrets = [value.strip()] if SECRET.search(name) else []
        if LOCATION.search(name) or "://" in value:  # a library may quote the password alone
            found = [match[1] for part in (value, QUERY.split(value)[0]) if (match := PASSWORD.search(part))]
            secrets += [value, *found] if len(set(found)) > 1 else found  # its end is not clear: all of it
        for secret in secrets:
            if len(secret) > 5:
                text = text.replace(secret, "***").replace(unquote(secret), "***")
    return HEADER.sub(r"\1***", ADDRESS.sub(_without_credentials, text))


def _without_credentials(address: re.Match[str]) -> str:
    before, *after = QUERY.split(address[0], maxsplit=1)
    if "@" in "".join(after) and "@" not in before:
        return "://***"  # the query, or a password with a question mark
    return CREDENTIALS.sub("", before) + (f"{address[0][len(before)]}***" if after else "")


class UserError(Exception):
    """A mistake in params, data, environment or command line.

    The message is one line without credentials: it names the file or key path, what was found and what is allowed.
    Entry points print it without a traceback and exit with code 1.
    """

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


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
