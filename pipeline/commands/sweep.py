"""`vaeline` sweep: many experiments, several at once."""

import typer

app = typer.Typer()
