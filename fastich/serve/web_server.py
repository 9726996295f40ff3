"""The HTTP listener: uvicorn in a thread of its own, on a socket that was bound before anything else started."""

import socket
import threading
import time
from typing import Any

import uvicorn

from fastich.errors import FastichError
from fastich.serve.config import HttpConfig
from fastich.serve.receive.tls import server_context

START_LIMIT_S = 30.0
GOODBYE_S = 3
"""Open streams of events end after this when the server stops."""
THREAD_LIMIT_S = 5
"""On top of that, for the thread to end."""
MAX_CONNECTIONS = 256
KEEP_ALIVE_S = 15
MAX_HEADER_BYTES = 32 * 1024


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
        self._socket = socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET)
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
