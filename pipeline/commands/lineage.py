"""`vaeline` trace, reproduce: what made a model, and whether it comes out again."""

import typer

app = typer.Typer()
