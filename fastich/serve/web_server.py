"""The HTTP listener: uvicorn in a thread of its own, on a socket that was bound before anything else started.

uvicorn accepts every connection and waits for a request for ever. Here one address gets a part of the places only, what
is beyond them is closed as it is accepted (before TLS), and a request's head comes in time or not at all.
"""

import asyncio
import ipaddress
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from fastich.errors import FastichError
from fastich.serve.config import HttpConfig
from fastich.serve.receive.tls import server_context

START_LIMIT_S = 30.0
GOODBYE_S = 3
"""Open streams of events end after this when the server stops."""
THREAD_LIMIT_S = 5
"""On top of that, for the thread to end."""
MAX_CONNECTIONS = 256
"""Beyond these requests are answered 503."""
MAX_SOCKETS = 320
"""Beyond these connections are closed without an answer; each takes a descriptor."""
HEAD_LIMIT_S = 10.0
"""From the connection, or the first byte of a further request, to the end of the request's head."""
KEEP_ALIVE_S = 15
MAX_HEADER_BYTES = 32 * 1024


class CountedSocket(socket.socket):
    """An accepted connection that says when it is closed."""

    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        """Close, and say so once."""
        told, self.on_close = self.on_close, None
        super().close()
        if told is not None:
            told()


class CappedListener(socket.socket):
    """A listening socket that closes what is too much; asyncio calls ``accept`` and ``close`` in one thread."""

    def cap(self, config: HttpConfig) -> None:
        """Set the caps; before ``accept``."""
        self._open: Counter[str] = Counter()
        self._max_per_address = config.max_connections_per_address
        proxies = config.proxy_addresses if config.auth == "proxy" else ()
        self._free = [ipaddress.ip_network(network, strict=False) for network in proxies]

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that is not too much."""
        while True:
            handle, address = self._accept()  # type: ignore[attr-defined]  # as socket.accept does
            made = CountedSocket(self.family, self.type, self.proto, fileno=handle)
            if self._may_stay(address[0]):
                self._open[address[0]] += 1
                made.on_close = partial(self._forget, address[0])
                return made, address
            made.close()

    def _may_stay(self, address: str) -> bool:
        if self._open.total() >= MAX_SOCKETS:
            return False
        found = ipaddress.ip_address(address.partition("%")[0])
        plain = getattr(found, "ipv4_mapped", None) or found
        return self._open[address] < self._max_per_address or any(plain in network for network in self._free)

    def _forget(self, address: str) -> None:
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


class TimedProtocol(H11Protocol):
    """HTTP/1.1 whose request heads come in ``HEAD_LIMIT_S``; bodies are timed by who reads them."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock runs from here."""
        super().connection_made(transport)
        self._limit = self.loop.call_later(HEAD_LIMIT_S, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Stop the clock where a request is under way; else what came is a part of a head, and it runs."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_clock()
        elif self._limit is None:
            self._limit = self.loop.call_later(HEAD_LIMIT_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """The clock stops."""
        self._stop_clock()
        super().connection_lost(exc)

    def _stop_clock(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None


class WebServer:
    """Serves one ASGI application between ``start`` and ``stop``.

    Attributes:
        port: where it listens.
        url: of the page, as a person types it.
    """

    def __init__(self, app: Any, config: HttpConfig) -> None:
        """Bind the socket.

        Raises:
            FastichError: the address is taken or not ours, or a file of TLS is missing or damaged.
        """
        self._server = uvicorn.Server(_settings(app, config))
        self._socket = CappedListener(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
        self._socket.cap(config)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((config.host, config.port))
        except OSError as error:
            self._socket.close()
            where = f"{config.host}:{config.port}"
            raise FastichError(f"[http] {where}: cannot listen ({error.strerror}); choose another port") from error
        self.port = int(self._socket.getsockname()[1])
        secure = config.tls.certificate is not None
        shown = "localhost" if config.host in ("0.0.0.0", "::") else config.host
        self.url = f"{'https' if secure else 'http'}://{shown}:{self.port}/"
        self._thread = threading.Thread(target=self._serve, name="http", daemon=True)

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])

    def start(self) -> None:
        """Return once it answers.

        Raises:
            FastichError: it does not.
        """
        self._thread.start()
        deadline = time.monotonic() + START_LIMIT_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise FastichError(f"{self.url}: the HTTP server did not start; see the log")
            time.sleep(0.01)

    def stop(self) -> None:
        """Let requests end, then close."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(GOODBYE_S + THREAD_LIMIT_S)
        self._socket.close()


def _settings(app: Any, config: HttpConfig) -> uvicorn.Config:
    context = server_context(config.tls, "http.tls")
    return uvicorn.Config(
        app,
        http=TimedProtocol,
        loop="asyncio",  # the caps are in the methods of the socket, which uvloop does not call
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        timeout_graceful_shutdown=GOODBYE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ssl_context_factory=None if context is None else lambda *_: context,
    )
