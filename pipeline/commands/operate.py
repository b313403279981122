"""`vaeline` up, down, deploy, worker: servers and workers that run deployments."""

import logging
import os
from typing import Annotated

import typer

from pipeline.services.environment import enter_workspace, prepare_environment
from vaeline.errors import UserError
from vaeline.io.workspace import Workspace

app = typer.Typer()


@app.command()
def up(host: Annotated[str, typer.Option(help="Other than loopback: passwords are required.")] = "127.0.0.1") -> None:
    """Start MLflow's server, Prefect's and a worker, with the deployments of prefect.yaml, and return."""
    workspace = enter_workspace()
    prepare_environment()
    from pipeline.services.up import up

    up(workspace, typer.echo, host)


@app.command()
def down() -> None:
    """Stop what `vaeline up` started; a training that it stops goes on after the next `vaeline up`."""
    workspace = enter_workspace()
    from pipeline.services.up import down

    down(workspace, typer.echo)


@app.command()
def deploy() -> None:
    """Register the deployments of prefect.yaml with the server at PREFECT_API_URL, or that of `vaeline up`."""
    _use_prefect_server()
    from pipeline.services.worker import deploy

    deploy()


@app.command()
def worker() -> None:
    """Run deployments in this clone, going on with what a killed worker left."""
    workspace = _use_prefect_server()
    from pipeline.services.worker import work

    work(workspace)


def _use_prefect_server() -> Workspace:
    """Set PREFECT_API_URL, which Prefect reads when it is imported."""
    workspace = enter_workspace()
    prepare_environment()
    from pipeline.services.servers import known_prefect

    api = known_prefect(workspace)
    if api is None:
        raise UserError("PREFECT_API_URL: not set; name a Prefect server, or use `vaeline up`, which starts one")
    os.environ["PREFECT_API_URL"] = api
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return workspace
