"""`vaeline` models, history, promote, rollback: what is live, why, and how to change it."""

import typer

app = typer.Typer()
