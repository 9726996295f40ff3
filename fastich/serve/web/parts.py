"""What the web side is built from; ``app.build_app`` takes it whole, so that tests can give parts of their own."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from starlette.requests import Request
from starlette.routing import BaseRoute

from fastich.serve.config import ServeConfig
from fastich.serve.session import Session
from fastich.serve.spool import Spool
from fastich.serve.store import Store
from fastich.serve.study_session import StudySession
from fastich.serve.web.tokens import Tokens


class AuditTrail(Protocol):
    """Where it is written down who did what (``fastich.serve.audit``)."""

    def record(self, event: str, *, who: str, outcome: str, study_uid: str = "", detail: str = "") -> None:
        """Write one line."""


def _nothing() -> None:
    pass


def _ready() -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything behind the pages.

    Attributes:
        tokens: who may come in; of no use with ``http.auth`` proxy.
        extra_routes: receivers over HTTP (STOW-RS, uploads); they read ``request.state.user``.
        clock: seconds since the epoch.
        engine_trouble: why the scoring engine is not at work, in one line; empty where it is.
        threads_trouble: which of the other threads are not there, in one line; empty where all are.
        wake_sender: called after a delivery was put back into the queue.
        stopping: set when the server stops; endless answers end then.
    """

    store: Store
    spool: Spool
    session: Session
    study_session: StudySession | None
    config: ServeConfig
    tokens: Tokens
    audit: AuditTrail
    extra_routes: Sequence[BaseRoute] = ()
    clock: Callable[[], float] = time.time
    engine_trouble: Callable[[], str] = _ready
    threads_trouble: Callable[[], str] = _ready
    wake_sender: Callable[[], None] = _nothing
    stopping: threading.Event = field(default_factory=threading.Event)


def parts_of(request: Request) -> Parts:
    """The parts of the application that a request came to."""
    found: Parts = request.app.state.parts
    return found
