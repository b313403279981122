"""`vaeline` called in this process, which saves the seconds of starting one."""

import os
from unittest.mock import patch

from typer.testing import CliRunner

from pipeline.cli import app


def vaeline(*arguments: str, code: int = 0, width: int = 80, **env: str) -> str:
    """What a command that ends with this exit code prints; raises what it raises, such as UserError."""
    with patch.dict(os.environ, {"COLUMNS": str(width), **env}):
        done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.output
