"""The registry commands of `vaeline`, called in this process."""

from typer.testing import CliRunner

from pipeline.commands.registry import app


def vaeline(*arguments: str, width: int = 80) -> str:
    """What a command prints; raises what it raises."""
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output
