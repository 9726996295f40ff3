"""The body of an HTTP request, bounded before and while it is read: size, rate, encoding, and how many at a time.

uvicorn reads what comes for as long as it comes, and inflates nothing; all of that is decided here. Writing happens in
threads, in pieces of 256 KiB, so that a slow disk stops one sender and not the page.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fastich.serve.config import HttpConfig
from fastich.serve.entities import Origin
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive.reasons import ANSWERS, http_headers

MIB = 2**20
PIECE_BYTES = 2**18
SIZE_TOO_LARGE = 413


class BodyRefused(Exception):
    """A request that is answered with an HTTP status and one line, whether its body was read or not."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status, self.detail = status, detail

    def response(self) -> Response:
        """The answer; the connection ends with it, for the rest of the body may be on its way."""
        headers = {"Connection": "close", **http_headers(self.status)}
        return JSONResponse({"detail": self.detail}, self.status, headers=headers)


class Gate:
    """Lets ``max_uploads`` bodies in at a time. Used by one event loop."""

    def __init__(self, max_uploads: int) -> None:
        self._max_uploads, self._num_inside = max_uploads, 0

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """One place.

        Raises:
            BodyRefused: 503, none is free.
        """
        if self._num_inside >= self._max_uploads:
            raise BodyRefused(503, f"{self._max_uploads} uploads are under way (http.max_uploads); send it again")
        self._num_inside += 1
        try:
            yield
        finally:
            self._num_inside -= 1


async def check_head(request: Request, ingest: Ingest, config: HttpConfig) -> None:
    """Refuse a request by its head, before a byte of its body is read.

    Raises:
        BodyRefused: 413, 415, or what the spool and the queue say.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise BodyRefused(415, "expected a body without Content-Encoding, found an encoded one; send it as it is")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise BodyRefused(400, "Content-Length: expected digits, found something else")
    size_bytes = int(length)
    if size_bytes > config.max_body_mib * MIB:
        raise BodyRefused(SIZE_TOO_LARGE, f"expected at most {config.max_body_mib} MiB (http.max_body_mib)")
    try:
        await run_in_threadpool(ingest.check_capacity)
        await run_in_threadpool(ingest.spool.check_space, size_bytes)
    except IngestRefused as refusal:
        raise BodyRefused(ANSWERS[refusal.reason].http_status, refusal.reason.value) from refusal


async def read_body(request: Request, config: HttpConfig, write: Callable[[bytes], None]) -> None:
    """Hand the body to ``write``, which runs in a thread, in order.

    Raises:
        BodyRefused: 408 or 413.
        starlette.requests.ClientDisconnect: the peer is gone.
    """
    pending, num_bytes = bytearray(), 0
    async for chunk in _paced(request, config):
        num_bytes += len(chunk)
        if num_bytes > config.max_body_mib * MIB:
            raise BodyRefused(SIZE_TOO_LARGE, f"expected at most {config.max_body_mib} MiB (http.max_body_mib)")
        pending += chunk
        if len(pending) >= PIECE_BYTES:
            await run_in_threadpool(write, bytes(pending))
            pending.clear()
    await run_in_threadpool(write, bytes(pending))


async def _paced(request: Request, config: HttpConfig) -> AsyncIterator[bytes]:
    """The chunks of a body whose sender is not too slow; time that we spend between them is not the sender's."""
    stream, waited_s, num_bytes = aiter(request.stream()), 0.0, 0
    while True:
        start = time.monotonic()
        try:
            async with asyncio.timeout(config.body_timeout_s):
                chunk = await anext(stream)
        except TimeoutError:
            raise BodyRefused(408, f"nothing came for {config.body_timeout_s:g} s (http.body_timeout_s)") from None
        except StopAsyncIteration:
            return
        waited_s, num_bytes = waited_s + time.monotonic() - start, num_bytes + len(chunk)
        if waited_s >= config.body_timeout_s:
            if num_bytes < waited_s * config.min_bytes_per_s:
                raise BodyRefused(408, f"slower than {config.min_bytes_per_s} bytes/s (http.min_bytes_per_s)")
            waited_s, num_bytes = 0.0, 0
        yield chunk


def origin_of(request: Request, way: str) -> Origin:
    """Who sends; authentication, in front of every route, has set ``request.state.user``."""
    return Origin(way=way, sender=request.state.user, address=request.client.host if request.client else "")
