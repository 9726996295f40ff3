"""For tests of what comes in over HTTP: a real server in a thread, its routes behind a user, bodies made by hand."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

BOUNDARY = "a-boundary"
STOW_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


class _Authenticated:
    """In place of the real authentication: everybody is ``alice``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["user"] = "alice"
        await self._app(scope, receive, send)


@contextlib.contextmanager
def http_server(routes: Sequence[BaseRoute]) -> Iterator[int]:
    """The port of a server on loopback."""
    config = uvicorn.Config(_Authenticated(Starlette(routes=routes)), log_config=None, lifespan="off", http="h11")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(10)
        listening.close()
        assert not thread.is_alive()


def multipart(parts: Sequence[bytes], *, kind: str = "application/dicom", end: bool = True) -> bytes:
    """A multipart/related body."""
    body = b"".join(
        b"--%s\r\nContent-Type: %s\r\n\r\n%s\r\n" % (BOUNDARY.encode(), kind.encode(), part) for part in parts
    )
    return body + (b"--%s--\r\n" % BOUNDARY.encode() if end else b"")


class Answer:
    """A response, read to its end."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}

    def json(self) -> Any:
        return json.loads(self.body)


def post(port: int, path: str, head: dict[str, str], body: bytes = b"", *, timeout_s: float = 10) -> Answer:
    """One request over a raw socket, with exactly these headers."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as peer:
        headers = {"Host": "127.0.0.1", "Connection": "close", "Content-Length": str(len(body)), **head}
        text = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        peer.sendall(text.encode("latin-1") + b"\r\n")
        with contextlib.suppress(ConnectionError):  # it may answer before it has read all
            peer.sendall(body)
        return Answer(_read_all(peer))


def _read_all(peer: socket.socket) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := peer.recv(65536):
            data += piece
    return bytes(data)
