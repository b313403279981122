"""`vaeline` verify, score, export: for those who use a model."""

import typer

app = typer.Typer()
