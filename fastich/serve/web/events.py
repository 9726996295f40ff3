"""GET /events: what changed, as server-sent events. No patient data: a kind and a study UID.

Every stream asks one shared look at the store (at most four a second, however many listen) whether there is something
new, and reads it from there, so a stream that fell behind or was cut goes on at ``Last-Event-ID`` and misses nothing.
Source: WHATWG HTML, 9.2 server-sent events.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from fastich.serve.entities import Event
from fastich.serve.web.guards import error_answer
from fastich.serve.web.parts import Parts, parts_of

POLL_S = 0.25
HEARTBEAT_S = 15.0
"""Proxies cut what is silent for 60 s, and a closed laptop is found out by writing."""
MAX_STREAM_S = 600.0
"""After this a stream ends and the browser comes back, showing its cookie again."""
MAX_CLIENTS = 100
PAGE = 200
RETRY_MS = 2000


class Hub:
    """How many listen, and the newest event's number."""

    def __init__(self, parts: Parts) -> None:
        self._store, self._stopping = parts.store, parts.stopping
        self._looked_at, self._newest = float("-inf"), 0
        self._looking = asyncio.Lock()
        self.num_clients = 0

    async def newest(self) -> int:
        """The number of the newest event, at most ``POLL_S`` old."""
        async with self._looking:
            if time.monotonic() - self._looked_at >= POLL_S:
                self._newest = await run_in_threadpool(self._store.last_event_id)
                self._looked_at = time.monotonic()
        return self._newest

    async def stream(self, after: int) -> AsyncIterator[str]:
        """Events behind ``after`` as they come, and a comment line now and then."""
        began = spoke = time.monotonic()
        yield f"retry: {RETRY_MS}\n\n"
        while not self._stopping.is_set() and time.monotonic() - began < MAX_STREAM_S:
            if await self.newest() > after:
                for event in await run_in_threadpool(self._store.events_after, after, PAGE):
                    after, spoke = event.event_id, time.monotonic()
                    yield as_text(event)
            elif time.monotonic() - spoke >= HEARTBEAT_S:
                spoke = time.monotonic()
                yield ": still here\n\n"
            await asyncio.sleep(POLL_S)


def as_text(event: Event) -> str:
    """One event on the wire."""
    body = json.dumps({"study_uid": event.study_uid, "at": event.created_at, **event.values})
    return f"id: {event.event_id}\nevent: {event.kind}\ndata: {body}\n\n"


async def events(request: Request) -> Response:
    """The stream, from ``Last-Event-ID`` on, or else from the query's ``after``, or else from now on."""
    parts, hub = parts_of(request), request.app.state.hub
    if hub.num_clients >= MAX_CLIENTS:
        return error_answer(503, f"{MAX_CLIENTS} streams are open already; come back later", Retry_After="30")
    said = request.headers.get("last-event-id", request.query_params.get("after", ""))
    newest = await run_in_threadpool(parts.store.last_event_id)
    after = min(int(said), newest) if said.isascii() and said.isdecimal() else newest

    async def counted() -> AsyncIterator[str]:
        hub.num_clients += 1
        try:
            async for text in hub.stream(after):
                yield text
        finally:
            hub.num_clients -= 1

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(counted(), media_type="text/event-stream", headers=headers)


ROUTES = [Route("/events", events)]
