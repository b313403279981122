"""Prefect's server for this machine's own programs and pages.

Prefect answers any web page, and who may create a deployment may run commands: a page that is open in a browser here
could. So a request must name this machine as Host (a page may point a name of its own at 127.0.0.1) and come from no
page but the server's own.
"""

from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def create_app() -> ASGIApp:
    """The ASGI application that uvicorn serves: Prefect's, or 403 (a closed websocket) to foreign Host and Origin."""
    from prefect.server.api.server import create_app

    app = create_app()

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = app
        if scope["type"] in ("http", "websocket"):
            headers = Headers(scope=scope)
            if not is_own(headers.get("host", ""), headers.get("origin")):
                refusal = PlainTextResponse("only pages of this server may use it\n", 403)
                answer = refusal if scope["type"] == "http" else WebSocketClose(1008)
        await answer(scope, receive, send)

    return checked


def is_own(host: str, origin: str | None) -> bool:
    """Whether the Host header names this machine and the Origin header, where there is one, the same port of it."""
    try:
        here, page = urlsplit(f"//{host}"), urlsplit(origin or f"http://{host}")
        return here.hostname in LOOPBACK and page.hostname in LOOPBACK and (here.port or 80) == (page.port or 80)
    except ValueError:
        return False
