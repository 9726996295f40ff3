"""What every request passes before anything looks at it: its host, its path, its size; and what every answer carries.

One ASGI layer, outermost: nothing behind it can answer with a traceback or without the security headers. An error is
one line of JSON. Costs some microseconds a request.
"""

import logging
import re
import secrets
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fastich.serve.config import HttpConfig

LOG = logging.getLogger(__name__)
MIB = 2**20
SMALL_BODY_BYTES = 64 * 1024
"""Logins, comments, acknowledgements."""
INFER_BODY_BYTES = 65 * MIB
"""``tensors.MAX_PIXELS`` int16 pixels are 64 MiB in binary; JSON numbers, ``kserve.JSON_BYTES`` at most."""

HOST_AND_PORT = re.compile(r"(\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[^:\[\]]+))(:[0-9]{1,5})?")

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
"""``no-referrer`` would make browsers send ``Origin: null`` with our own forms; others are told nothing either way."""
TLS_HEADER = ("Strict-Transport-Security", "max-age=31536000")
NO_STORE = "no-store"
"""Of everything that does not say otherwise: a browser's cache is no place for patient data."""


class BodyTooLarge(Exception):
    """A request said or sent more than its cap."""


class Guard:
    """The layer.

    Args:
        app: what is behind it.
        config: allowed hosts, largest body, TLS.
        answered: called with method, status code of every answer, for the metrics.
    """

    def __init__(self, app: ASGIApp, config: HttpConfig, answered: Callable[[str, int], None]) -> None:
        self._app, self._config, self._answered = app, config, answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return None
        request_id = secrets.token_hex(8)
        has_begun = False

        async def answer(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                self._dress(MutableHeaders(scope=message), request_id)
                self._answered(scope["method"], message["status"])
            await send(message)

        refusal = self._refusal(scope)
        try:
            if refusal is not None:
                return await refusal(scope, receive, answer)
            await self._app(scope, _capped(receive, body_cap(scope["method"], scope["path"], self._config)), answer)
        except BodyTooLarge as error:
            if not has_begun:
                await error_answer(413, str(error))(scope, receive, answer)
        except Exception as error:  # whatever it is, the caller gets one line, and the log no value of any variable
            LOG.error("request %s: %s at %s", request_id, type(error).__name__, _where(error))
            if has_begun:
                raise ConnectionAbortedError("an answer broke off") from None
            message = f"internal error; the server's log has it under request {request_id}"
            await error_answer(500, message)(scope, receive, answer)
        return None

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """The answer to a request that nobody should look at; None for the others."""
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or host_name(hosts[0]) not in self._config.allowed_hosts:
            return error_answer(400, "Host: not a name of this server; add it to http.allowed_hosts")
        if is_trick(scope.get("raw_path") or scope["path"].encode(), scope["path"]):
            return error_answer(404, "no such page")
        cap = body_cap(scope["method"], scope["path"], self._config)
        said = Headers(scope=scope).get("content-length", "0")
        if not (said.isascii() and said.isdecimal()):
            return error_answer(400, "Content-Length: expected a number")
        if int(said) > cap:
            return error_answer(413, _too_large(cap))
        return None

    def _dress(self, headers: MutableHeaders, request_id: str) -> None:
        for name, value in SECURITY_HEADERS.items():
            headers[name] = value
        if self._config.tls.certificate is not None:
            headers[TLS_HEADER[0]] = TLS_HEADER[1]
        headers.setdefault("Cache-Control", NO_STORE)
        headers["X-Request-Id"] = request_id


def error_answer(status: int, message: str, **headers: str) -> JSONResponse:
    """An error as one line of JSON; ``headers`` with ``_`` for ``-``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return JSONResponse({"error": message}, status_code=status, headers=named)


def host_name(host: str) -> str:
    """The Host header without its port, in lower case, and without the brackets of an IPv6 address; else as it is."""
    text = host.strip().lower()
    found = HOST_AND_PORT.fullmatch(text)
    return (found["six"] or found["name"]) if found else text


def is_trick(raw_path: bytes, path: str) -> bool:
    """Tell whether a path tries to be another one: dot segments, encoded slashes, backslashes, controls, ``//``."""
    raw = raw_path.split(b"?")[0].lower()
    twice = unquote_to_bytes(unquote_to_bytes(raw))
    segments = twice.split(b"/")
    return (
        any(segment in (b".", b"..") for segment in segments)
        or b"//" in twice
        or b"\\" in twice
        or b"%2f" in raw
        or any(byte < 32 or byte == 127 for byte in twice)
        or not path.startswith("/")
    )


def body_cap(method: str, path: str, config: HttpConfig) -> int:
    """The most bytes that the body of a request may have."""
    if method == "POST" and (path == "/studies" or path.startswith("/dicom-web/")):
        return config.max_body_mib * MIB
    if method == "POST" and path.startswith("/v2/"):
        return min(INFER_BODY_BYTES, config.max_body_mib * MIB)
    return SMALL_BODY_BYTES


def _capped(receive: Receive, cap: int) -> Receive:
    """``receive`` that raises once more than ``cap`` bytes came, whatever Content-Length said."""
    count = 0

    async def counted() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > cap:
            raise BodyTooLarge(_too_large(cap))
        return message

    return counted


def _too_large(cap: int) -> str:
    return f"body: expected at most {cap} bytes, found more"


def _where(error: BaseException) -> str:
    """File and line of each frame, innermost last, without any value."""
    frames: list[Any] = traceback.extract_tb(error.__traceback__)[-4:]
    return " > ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames)
