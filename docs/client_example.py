"""
A web app behind a plugin: ``python docs/client_example.py ATTACH_SOCKET TENANT [PLUGIN]``.

Sends one request through the middleware, as a server would, and prints what the client gets. In production the last
line of `filtered` is all there is, and an ASGI server runs what it returns.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from sandboxd.client import SandboxMiddleware


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Say what the app sees of a request."""
    await receive()
    lines = [f"{name.decode()}: {value.decode()}" for name, value in scope["headers"]]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": "\n".join(lines).encode()})


def filtered(socket_path: str, tenant: str, plugin: str) -> SandboxMiddleware:
    """Return the app behind its plugin."""
    return SandboxMiddleware(app, socket_path=socket_path, tenant=tenant, plugin=plugin, failure="closed")


async def main(socket_path: str, tenant: str, plugin: str = "") -> None:
    """Play the server for one request."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"host", b"example.org"), (b"authorization", b"secret")],
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            print(message["status"], dict(message["headers"]))
        else:
            print(message["body"].decode())

    middleware = filtered(socket_path, tenant, plugin)
    try:
        await middleware(scope, receive, send)
    finally:
        await middleware.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
