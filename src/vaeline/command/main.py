"""The entry point `vaeline`: in a workspace the whole command line with its code, elsewhere verify, score, export."""

from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from vaeline.command.consume import command_line
from vaeline.command.program import run_program, use_code_of


class LightGroup(TyperGroup):
    """Commands that need no workspace; any other is answered with where it is found, exit code 2."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the arguments name."""
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            have = ", ".join(self.commands)
            typer.echo(
                f"error: {args[0]}: this installation has {have}; run other commands in a clone of the project's "
                "repository, after `make setup`",
                err=True,
            )
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)


app = command_line("Use trained variational autoencoders. A clone of the repository has more commands.", LightGroup)


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


if __name__ == "__main__":
    main()
