"""The entry point `vaeline`: in a workspace its whole command line, with the code that lies there; elsewhere verify,
score and export.
"""

import os
import sys
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import typer

from vaeline.command import consume
from vaeline.command.program import run_program

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.add_typer(consume.app)


@app.callback()
def _vaeline() -> None:
    """Use trained variational autoencoders. In a clone of the project's repository there are more commands."""


def main() -> NoReturn:
    """Run the command line: 0 done, 1 error, one line on stderr, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM."""
    root = find_workspace()
    if root is None:
        run_program(app)
    use_code_of(root)
    import_module("pipeline.cli").main()
    raise AssertionError("pipeline.cli.main does not return")


def find_workspace() -> Path | None:
    """The nearest folder upwards with dvc.yaml and the pipeline's code; None where there is none."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was deleted
        return None
    return next(
        (f for f in (here, *here.parents) if (f / "dvc.yaml").is_file() and (f / "pipeline/cli.py").is_file()), None
    )


def use_code_of(root: Path) -> None:
    """Import `pipeline` and `vaeline` from this workspace from now on, here and in the processes started here."""
    own = [str(root / "src"), str(root)]
    sys.path[:] = [*own, *(path for path in sys.path if path not in own)]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in own]
    os.environ["PYTHONPATH"] = os.pathsep.join([*own, *inherited])
    if not Path(__file__).resolve().is_relative_to(root.resolve()):  # installed from elsewhere
        for name in [name for name in sys.modules if name.partition(".")[0] == "vaeline"]:
            del sys.modules[name]
