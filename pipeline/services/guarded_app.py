"""Prefect's or MLflow's server, guarded: it answers local programs and its own pages, and no other web page.

Both answer pages of other origins (MLflow those of any port here), and who may create a flow run may run commands. A
browser sends a page's requests wherever the page says, so each request must name this machine as Host (a page's own
name may point here) and come from no page but the server's own. Imports nothing of this project: images use it alone.
"""

import asyncio
import fcntl
import os
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose
from uvicorn.importer import import_from_string

APP = "VAELINE_GUARDED_APP"  # what to guard: MODULE:NAME of an application, or of its factory `create_app`
HOSTS = "VAELINE_ALLOWED_HOSTS"  # names beside this machine's own, separated by commas
REFUSAL = f"only pages of this server may use it, and programs by a name of this machine or one in {HOSTS}\n"
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
SQLITE = "sqlite+aiosqlite:///"


def create_app() -> ASGIApp:
    """The ASGI application for uvicorn: the guarded one, or 403 (a closed websocket) to what is foreign."""
    names = {urlsplit(f"//{name.strip()}").hostname or "" for name in os.environ.get(HOSTS, "").split(",")} - {""}
    if os.environ[APP].startswith("mlflow."):
        _prepare_mlflow(bool(names))
    app = import_from_string(os.environ[APP])
    return guard(app() if os.environ[APP].endswith(":create_app") else app, LOOPBACK | names)


def guard(app: ASGIApp, allowed: set[str]) -> ASGIApp:
    """The application behind the guard; `allowed`: names as which a request may address this machine."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _start_alone(app, scope, receive, send)
            return
        answer = app
        if not is_own(Headers(scope=scope), allowed, scope.get("method", "GET") in ("GET", "HEAD")):
            refusal = PlainTextResponse(REFUSAL, 403)
            answer = refusal if scope["type"] == "http" else WebSocketClose(1008)
        await answer(scope, receive, send)

    return guarded


def is_own(headers: Headers, allowed: set[str], reads: bool = True) -> bool:
    """Whether a request names an allowed host, and the page that sent it, if one did, is of the same server.

    An Origin names the page. Without one a browser's Sec-Fetch-Site does, but for addresses that a user opens.
    """
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        here, page = urlsplit(f"//{host}"), urlsplit(origin or f"http://{host}")
        if here.hostname not in allowed:
            return False
        if origin is None:
            opened = reads and headers.get("sec-fetch-dest") == "document"
            return opened or headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        local = {here.hostname, page.hostname} <= LOOPBACK  # two names of one server
        return (local or here.hostname == page.hostname) and here.port == page.port
    except ValueError:
        return False


def _prepare_mlflow(named: bool) -> None:
    """Set what the command `mlflow server` passes to its server, by names of its own, from what that command reads.

    Its own guard lets in this machine's names alone: where there are others, this one does all.
    """
    own = {"MLFLOW_SERVER_ALLOWED_HOSTS": "*", "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "*"} if named else {}
    os.environ |= own | {
        "_MLFLOW_SERVER_FILE_STORE": os.environ["MLFLOW_BACKEND_STORE_URI"],
        "_MLFLOW_SERVER_ARTIFACT_ROOT": os.environ.get("MLFLOW_DEFAULT_ARTIFACT_ROOT", "mlflow-artifacts:/"),
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": os.environ["MLFLOW_ARTIFACTS_DESTINATION"],
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "_MLFLOW_SGI_NAME": "uvicorn",
    }
    reach = import_from_string("mlflow.server.handlers:initialize_backend_stores")  # or there is no server
    reach(os.environ["MLFLOW_BACKEND_STORE_URI"], None, os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"])


async def _start_alone(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Hold a kernel lock beside Prefect's database while it starts: two that migrate a new one at once both fail."""
    _, sqlite, path = os.environ.get("PREFECT_SERVER_DATABASE_CONNECTION_URL", "").partition(SQLITE)
    if not sqlite or not Path(path).parent.is_dir():
        await app(scope, receive, send)
        return
    with Path(f"{path}.lock").open("w") as lock:
        while not _is_free(lock.fileno()):
            await asyncio.sleep(0.1)

        async def unlock(message: Message) -> None:
            fcntl.flock(lock, fcntl.LOCK_UN)
            await send(message)

        await app(scope, receive, unlock)


def _is_free(lock: int) -> bool:
    """Whether no other process had the lock, which this one then has."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
