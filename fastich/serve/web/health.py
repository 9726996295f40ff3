"""Is it alive, and is it ready to score? Each check with its reason; no patient data, so nobody need be known to ask.

``/health/live`` says that the process answers. ``/health/ready`` answers 503 unless every check holds: the provider is
the one that was asked for, the model that was loaded is the one that runs, it still says of one fixed synthetic slice
what it said at start, the scoring engine works, the threads that receive, send and tidy are there, the disk has room
and the database answers. The slice is scored at most once in ``GOLDEN_S``, for it costs a run of the network.
"""

import shutil
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastich.errors import FastichError
from fastich.hu import AIR_HU
from fastich.serve.session import PROVIDERS, Session
from fastich.serve.web.parts import Parts, parts_of
from fastich.types import HuArray

GOLDEN_S = 60.0
GOLDEN_SIDE = 128
TOLERANCE = 1e-4
"""Of a probability. Two runs of one session agree to 1e-6 in float32; reduced precisions are as repeatable."""
MIB = 2**20


def golden_slice(side: int = GOLDEN_SIDE) -> HuArray:
    """A head that nobody has: skull, brain, and one dense lens below the skull; int16 [1, side, side]."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    radius = np.hypot(x / 0.72, y / 0.88)
    hu = np.full((side, side), AIR_HU, dtype=np.int16)
    hu[radius < 1] = 900
    hu[radius < 0.9] = 32
    hu[(radius < 0.9) & (np.hypot((x - 0.62) / 0.28, y / 0.5) < 1)] = 68
    return hu[None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One question: its name, the answer, and why."""

    name: str
    is_ok: bool
    detail: str


class Golden:
    """What the model said of the golden slice at start, and whether it still says so.

    Raises:
        ArtifactError: the model fails.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self.expected = session.run(golden_slice()).probability
        self._checked_at = time.monotonic()
        self._trouble = ""

    def trouble(self) -> str:
        """Why the model is no longer itself, in one line; empty where it is."""
        with self._lock:
            if time.monotonic() - self._checked_at >= GOLDEN_S:
                self._trouble, self._checked_at = self._compare(), time.monotonic()
            return self._trouble

    def _compare(self) -> str:
        try:
            found = self._session.run(golden_slice()).probability
        except FastichError as error:
            return f"the model failed on the golden slice ({type(error).__name__})"
        difference = float(np.abs(found - self.expected).max())
        return "" if difference <= TOLERANCE else f"a probability of the golden slice moved by {difference:.2g}"


def checks(parts: Parts, golden: Golden) -> list[Check]:
    """Every question, asked now."""
    return [
        _provider(parts),
        Check(name="model", is_ok=True, detail=f"sha256 {parts.session.sha256}"),
        _said("self-test", golden.trouble(), "the golden slice scores as it did at start"),
        _said("scoring", parts.engine_trouble(), "at work"),
        _said("threads", parts.threads_trouble(), "receiving, sending and housekeeping are at work"),
        _disk(parts),
        _said("database", _database(parts), "answers"),
    ]


def _said(name: str, trouble: str, otherwise: str) -> Check:
    return Check(name=name, is_ok=not trouble, detail=trouble or otherwise)


def _provider(parts: Parts) -> Check:
    session, device = parts.session, parts.config.model.device
    fits = session.backend != "onnxruntime" or session.provider == PROVIDERS[device]
    detail = f"{session.backend} {session.provider} {session.precision}, asked for {device}"
    return Check(name="provider", is_ok=fits, detail=detail)


def free_bytes(parts: Parts) -> int:
    """Free bytes of the spool's disk; 0 where it cannot be asked."""
    folder = parts.config.spool.folder
    assert folder is not None, "a server has a spool"
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _disk(parts: Parts) -> Check:
    free, least = free_bytes(parts) // MIB, parts.config.spool.min_free_mib
    return Check(
        name="disk", is_ok=free >= least, detail=f"{free} MiB free, at least {least} are needed to take studies"
    )


def _database(parts: Parts) -> str:
    try:
        parts.store.ping()
    except FastichError as error:
        return f"does not answer ({type(error).__name__})"
    return ""


def live(request: Request) -> Response:
    """GET /health/live."""
    del request
    return JSONResponse({"live": True})


def is_ready(request: Request) -> tuple[bool, list[Check]]:
    """Whether everything holds, and each check."""
    found = checks(parts_of(request), request.app.state.golden)
    return all(check.is_ok for check in found), found


def ready(request: Request) -> Response:
    """GET /health/ready."""
    fine, found = is_ready(request)
    body: dict[str, Any] = {
        "ready": fine,
        "checks": {check.name: {"ok": check.is_ok, "detail": check.detail} for check in found},
    }
    return JSONResponse(body, status_code=200 if fine else 503)


ROUTES = [Route("/health/live", live), Route("/health/ready", ready)]
