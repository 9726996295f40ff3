"""Studies as JSON, and what people say about them: acknowledge, comment, expect, send again.

A form of the page (no script) gets back to the page; a program gets JSON. Work with the store runs in threads.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from fastich.serve.entities import Study
from fastich.serve.store.seen import UnseenError
from fastich.serve.web import view
from fastich.serve.web.guards import error_answer
from fastich.serve.web.listing import LIMIT
from fastich.serve.web.parts import Parts, parts_of
from fastich.serve.web.paths import STUDY

COMMENT_CHARACTERS = 2000
MAX_EXPECTED = 100_000
MOST_DIGITS = 18
"""Of a number that a database of 64 bits holds."""


class Refusal(Exception):
    """A request that cannot be done: HTTP status and one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def refused(request: Request, error: Exception) -> Response:
    """A ``Refusal`` as an answer."""
    del request
    assert isinstance(error, Refusal)
    headers = {"Retry_After": "5"} if error.status == 503 else {}
    return error_answer(error.status, error.message, **headers)


def find_study(parts: Parts, study_uid: str) -> Study:
    """The study of a path.

    Raises:
        Refusal: there is none (404).
    """
    found = parts.store.study(study_uid)
    if found is None:
        raise Refusal(404, "no such study")
    return found


def studies(request: Request) -> Response:
    """GET /studies: the worklist in its order."""
    parts = parts_of(request)
    rows = [view.study_view(study) for study in parts.store.worklist(LIMIT)]
    return JSONResponse({"now": parts.clock(), "studies": rows})


def whole_study(parts: Parts, found: Study) -> dict[str, Any]:
    """All that the study page shows."""
    store, uid = parts.store, found.study_uid
    return view.study_view(found) | {
        "strip": view.strip(found.document),
        "history": [view.score_view(score) for score in store.scores_of(uid)],
        "deliveries": [view.delivery_view(one) for one in store.deliveries_of(uid)],
        "comments": [view.comment_view(one) for one in store.comments_of(uid)],
        "not_scored": view.instance_views(store.instances_of(uid)),
        "model": (found.document or {}).get("model"),
    }


def note_viewed(request: Request, study_uid: str) -> None:
    """Write into the audit trail who looked at a study."""
    parts_of(request).audit.record("view", who=request.state.user, outcome="success", study_uid=study_uid)


async def acknowledge(request: Request) -> Response:
    """POST {"score_id": N or null}, or the same as a form: somebody has seen that result. DELETE: take that back."""
    if request.method == "DELETE":
        taken_back = await _on_study(request, "unacknowledge", lambda parts, *who: parts.store.unacknowledge(*who))
        return await _after(request, {"changed": taken_back})
    score_id = _seen(await _fields(request))

    def act(parts: Parts, study_uid: str, user: str) -> bool:
        try:
            return parts.store.acknowledge(study_uid, user, score_id=score_id)
        except UnseenError as error:
            raise Refusal(409, str(error)) from error

    return await _after(request, {"changed": await _on_study(request, "acknowledge", act)})


def _seen(fields: Mapping[str, Any]) -> int | None:
    """The result that was shown when somebody acknowledged; None: the page showed none."""
    told = fields.get("score_id", "nothing")
    text = "" if told is None else str(told)
    if text and not (text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS):
        raise Refusal(400, "score_id: expected the number of the result that was shown, or null, found another value")
    return int(text) if text else None


async def comment(request: Request) -> Response:
    """POST {"text": ...}, or the same as a form."""
    text = str((await _fields(request)).get("text", "")).strip()
    if not 0 < len(text) <= COMMENT_CHARACTERS:
        raise Refusal(400, f"text: expected 1 to {COMMENT_CHARACTERS} characters, found {len(text)}")

    def act(parts: Parts, study_uid: str, user: str) -> dict[str, Any]:
        return view.comment_view(parts.store.add_comment(study_uid, user, text))

    return await _after(request, {"comment": await _on_study(request, "comment", act)}, status=201)


async def expect(request: Request) -> Response:
    """POST {"count": N}: how many instances make the study whole."""
    text = str((await _fields(request)).get("count", ""))
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= MAX_EXPECTED):
        raise Refusal(400, f"count: expected 1 to {MAX_EXPECTED}, found another value")
    uid, parts = request.path_params["uid"], parts_of(request)
    await run_in_threadpool(parts.store.expect, uid, int(text))
    parts.audit.record("expect", who=request.state.user, outcome="success", study_uid=uid)
    return JSONResponse({"study_uid": uid, "expected_instances": int(text)})


def dead_letters(request: Request) -> Response:
    """GET: what could not be delivered."""
    found = parts_of(request).store.dead_letters()
    return JSONResponse({"dead_letters": [view.delivery_view(one) for one in found]})


def requeue(request: Request) -> Response:
    """POST: try a dead letter again."""
    parts, delivery_id = parts_of(request), request.path_params["id"]
    if not parts.store.requeue(delivery_id):
        raise Refusal(404, "no such dead letter")
    parts.audit.record("requeue", who=request.state.user, outcome="success", detail=f"delivery {delivery_id}")
    parts.wake_sender()
    return JSONResponse({"delivery_id": delivery_id, "state": "pending"})


async def _on_study(request: Request, what: str, act: Callable[[Parts, str, str], Any]) -> Any:
    """Run ``act`` on the study of the path in a thread and write down who did it."""
    parts, uid, user = parts_of(request), request.path_params["uid"], request.state.user

    def both() -> Any:
        find_study(parts, uid)
        done = act(parts, uid, user)
        detail = "" if done else "nothing to change"
        parts.audit.record(what, who=user, outcome="success", study_uid=uid, detail=detail)
        return done

    return await run_in_threadpool(both)


async def _fields(request: Request) -> dict[str, Any]:
    """The body: a JSON object, or a form."""
    body = await request.body()
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return {
            name: values[0]
            for name, values in parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True).items()
        }
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Refusal(400, "body: expected a JSON object")
    return found


async def _after(request: Request, result: dict[str, Any], status: int = 200) -> Response:
    """JSON, or for a form without script the way back to the study."""
    if "text/html" in request.headers.get("accept", ""):
        return RedirectResponse(f"/studies/{request.path_params['uid']}", status_code=303)
    return JSONResponse(result, status_code=status)


ROUTES = [
    Route("/studies", studies),
    Route(STUDY + "/acknowledge", acknowledge, methods=["POST", "DELETE"]),
    Route(STUDY + "/comments", comment, methods=["POST"]),
    Route(STUDY + "/expect", expect, methods=["POST"]),
    Route("/dead-letters", dead_letters),
    Route("/deliveries/{id:int}/requeue", requeue, methods=["POST"]),
]
