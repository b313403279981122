"""Exceptions that a user can act upon, and text without credentials."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

TRY_AGAIN = 75  # EX_TEMPFAIL of <sysexits.h>: exit code of a stage that may succeed if run again later
CREDENTIALS = re.compile(r"(?<=://)[^\s:/]*(:\S*)?@")  # of an address: up to the last @, for a password may hold one
ADDRESS, HEADER = re.compile(r"://\S*"), re.compile(r"\b((?:Bearer|Basic)\s+|password=)\S+")
SECRET = re.compile(r"(TOKEN|PASSWORD|SECRET(_ACCESS_KEY)?|AUTH_STRING|API_KEY)$")  # names of variables


def redact(text: str) -> str:
    """The text without credentials: those of addresses and headers, and values of the environment's secrets."""
    text = HEADER.sub(r"\1***", ADDRESS.sub(_without_credentials, text))
    for name, value in os.environ.items():
        found = CREDENTIALS.search(value.partition("?")[0])  # a library may quote the password alone
        secret = value.strip() if SECRET.search(name) else found[1][1:] if found and found[1] else ""
        if len(secret) > 5:
            text = text.replace(secret, "***").replace(unquote(secret), "***")
    return text


def _without_credentials(address: re.Match[str]) -> str:
    before, query, after = address[0].partition("?")
    if "@" in after and "@" not in before:
        return "://***"  # the query, or a password with a question mark
    return CREDENTIALS.sub("", before) + (f"{query}***" if query else "")


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
