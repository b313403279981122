"""`vaeline` up, down: servers and a worker on this machine."""

import typer

app = typer.Typer()
