"""`vaeline` verify, score, export: for those who use a model."""

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def verify(
    uri: Annotated[str, typer.Argument(help="models:/NAME@champion, models:/NAME/3, runs:/..., a folder")],
) -> None:
    """Check all of a stored model: files, digests, signature, registry entry. Exit code 1 where anything is off."""
    from vaeline.tracking import consumer

    for line in consumer.verify(uri):
        typer.echo(line)
