"""KServe v2, the Open Inference Protocol, under /v2: programs of a site score slices without DICOM or a queue.

A request is scored by itself, in batches of ``scoring.batch_size``, one request at a time beside the engine's own work;
what waits beyond ``MAX_WAITING`` is told to come back. A site that moves to Triton keeps its clients.
"""

import asyncio
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastich import __version__
from fastich.artifact import INPUT, INTENDED_USE, outputs_of
from fastich.labels import LABELS
from fastich.score import Asked, run_series
from fastich.serve.receive.bodies import BodyRefused, read_body
from fastich.serve.session import Session
from fastich.serve.web import health
from fastich.serve.web.api import Refusal
from fastich.serve.web.guards import INFER_BODY_BYTES, MIB
from fastich.serve.web.parts import parts_of
from fastich.serve.web.tensors import HEADER_LENGTH, BadRequest, read_request, write_response
from fastich.types import HuArray

MODEL = "ich"
VERSION = "1"
MAX_WAITING = 8
"""Requests that wait or run; each holds at most 64 MiB of pixels."""
JSON_BYTES = 16 * MIB
"""Of a request's JSON: its numbers take eight times as much once they are read. More pixels come as a binary tensor."""


TOO_MUCH_JSON = f"body: expected at most {JSON_BYTES // MIB} MiB of JSON; send larger inputs as binary tensors"


class Turns:
    """One request at a time, a few that wait."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


def server(request: Request) -> Response:
    """GET /v2."""
    del request
    return JSONResponse({"name": "fastich", "version": __version__, "extensions": ["binary_tensor_data"]})


def server_live(request: Request) -> Response:
    """GET /v2/health/live."""
    del request
    return JSONResponse({"live": True})


def server_ready(request: Request) -> Response:
    """GET /v2/health/ready: as /health/ready."""
    fine, _ = health.is_ready(request)
    return JSONResponse({"ready": fine}, status_code=200 if fine else 503)


def model(request: Request) -> Response:
    """GET /v2/models/ich: inputs and outputs; ``input_order`` series wants one series in slice order a request."""
    _check(request)
    session = parts_of(request).session
    specs = outputs_of(session.artifact.embedding_size)
    body: dict[str, Any] = {
        "name": MODEL,
        "versions": [VERSION],
        "platform": f"{session.backend}_onnx",
        "inputs": [{"name": INPUT.name, "datatype": "INT16", "shape": [-1, -1, -1]}],
        "outputs": [
            {"name": spec.name, "datatype": "FP32", "shape": [n if isinstance(n, int) else -1 for n in spec.shape]}
            for spec in specs
        ],
        "parameters": {
            "unit": "HU",
            "input_order": session.artifact.input_order,
            "labels": ",".join(LABELS),
            "sha256": session.sha256,
            "intended_use": INTENDED_USE,
        },
    }
    return JSONResponse(body)


def model_ready(request: Request) -> Response:
    """GET /v2/models/ich/ready."""
    _check(request)
    fine, _ = health.is_ready(request)
    return JSONResponse({"name": MODEL, "ready": fine}, status_code=200 if fine else 503)


def _check(request: Request) -> None:
    if request.path_params["model"] != MODEL or request.path_params.get("version", VERSION) != VERSION:
        raise Refusal(404, f"expected the model {MODEL}, version {VERSION}, found another name")


async def infer(request: Request) -> Response:
    """POST /v2/models/ich/infer."""
    _check(request)
    if "content-encoding" in request.headers:
        raise Refusal(415, "Content-Encoding: expected none")
    turns: Turns = request.app.state.turns
    if turns.waiting >= MAX_WAITING:
        raise Refusal(503, f"{MAX_WAITING} requests are waiting already; come back later")
    turns.waiting += 1
    try:
        body = await _body(request)
        async with turns.lock:
            return await run_in_threadpool(_answer, request, body)
    except BadRequest as error:
        raise Refusal(400, str(error)) from error
    except BodyRefused as error:
        raise Refusal(error.status, error.detail) from error
    except ClientDisconnect:
        return Response(status_code=400)
    finally:
        turns.waiting -= 1


async def _body(request: Request) -> bytes:
    """The body, read as uploads are: who is too slow (408) or says too much in JSON (413) is refused.

    Raises:
        BodyRefused: that.
        Refusal: the same, by what the headers say.
    """
    said = request.headers.get(HEADER_LENGTH, "")
    if said.isascii() and said.isdecimal() and int(said) > JSON_BYTES:
        raise Refusal(413, TOO_MUCH_JSON)
    cap, pieces, num_bytes = (INFER_BODY_BYTES if said else JSON_BYTES), [b""], 0
    if int(request.headers.get("content-length", "0")) > cap:
        raise Refusal(413, TOO_MUCH_JSON)

    def write(piece: bytes) -> None:
        nonlocal num_bytes
        num_bytes += len(piece)
        if num_bytes > cap:
            raise BodyRefused(413, TOO_MUCH_JSON)
        pieces.append(piece)

    await read_body(request, parts_of(request).config.http, write)
    return b"".join(pieces)


def _answer(request: Request, body: bytes) -> Response:
    parts = parts_of(request)
    ask = read_request(body, request.headers.get(HEADER_LENGTH))
    found = score(parts.session, ask.hu, parts.config.scoring.batch_size)
    parts.audit.record("infer", who=request.state.user, outcome="success", detail=f"{len(ask.hu)} slices over KServe")
    head: dict[str, Any] = {"model_name": MODEL, "model_version": VERSION}
    if ask.id:
        head["id"] = ask.id
    content, header_length = write_response(head, [(name, binary, found[name]) for name, binary in ask.outputs])
    if header_length is None:
        return Response(content, media_type="application/json")
    headers = {HEADER_LENGTH: str(header_length)}
    return Response(content, media_type="application/octet-stream", headers=headers)


def score(session: Session, hu: HuArray, batch_size: int) -> dict[str, NDArray[np.float32]]:
    """What the model says of ``hu`` [N, H, W], each output whole."""
    if session.artifact.input_order == "series":
        ask = Asked(session=session, batch_size=batch_size, keep_embedding=True, keep_cam=True)
        answers = run_series(hu, ask)
        names = ("probability", "logit", "embedding", "cam")
        return {name: np.stack([getattr(answer, name) for answer in answers]) for name in names}
    found = [session.run(hu[start : start + batch_size]) for start in range(0, len(hu), batch_size)]
    return {
        "probability": np.concatenate([one.probability for one in found]),
        "logit": np.concatenate([one.logit for one in found]),
        "embedding": np.concatenate([one.embedding for one in found]),
        "cam": np.concatenate([one.cam for one in found]),
    }


ROUTES = [
    Route("/v2", server),
    Route("/v2/health/live", server_live),
    Route("/v2/health/ready", server_ready),
    Route("/v2/models/{model}", model),
    Route("/v2/models/{model}/ready", model_ready),
    Route("/v2/models/{model}/infer", infer, methods=["POST"]),
    Route("/v2/models/{model}/versions/{version}", model),
    Route("/v2/models/{model}/versions/{version}/ready", model_ready),
    Route("/v2/models/{model}/versions/{version}/infer", infer, methods=["POST"]),
]
