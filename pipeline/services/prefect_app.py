"""Prefect's server for this machine's own programs and pages.

Prefect answers any web page, and who may create a deployment may run commands: a page that is open in a browser here
could. So a request must name this machine as Host (a page may point a name of its own at 127.0.0.1) and come from no
page but the server's own.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def create_app() -> App:
    """The ASGI application that uvicorn serves."""
    from prefect.server.api.server import create_app

    return own_pages_only(create_app())


def own_pages_only(app: App) -> App:
    """The application behind the check of Host and Origin: 403, or a refused websocket, to others."""

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", [])}
        if scope["type"] not in ("http", "websocket") or is_own(headers.get("host", ""), headers.get("origin")):
            await app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"only pages of this server may use it\n"})

    return checked


def is_own(host: str, origin: str | None) -> bool:
    """Whether the Host header names this machine and the Origin header, where there is one, the same port of it."""
    try:
        here, page = urlsplit(f"//{host}"), urlsplit(origin or f"http://{host}")
        return here.hostname in LOOPBACK and page.hostname in LOOPBACK and (here.port or 80) == (page.port or 80)
    except ValueError:
        return False
