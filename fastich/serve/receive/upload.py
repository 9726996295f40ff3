"""POST /studies: a zip of DICOM files, as a body or as the one file of a form, answered file by file."""

from collections.abc import Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastich.serve.config import HttpConfig
from fastich.serve.ingest import Ingest
from fastich.serve.receive.bodies import MIB, BodyRefused, Gate, check_head, origin_of, read_body
from fastich.serve.receive.incoming import Incoming
from fastich.serve.receive.multipart import MultipartReader, boundary_of, options
from fastich.serve.receive.reasons import ANSWERS, http_headers, http_status
from fastich.serve.receive.unzip import RefusedFile, TakenFile, take_zip

ZIP_TYPES = frozenset({"application/zip", "application/x-zip-compressed"})
FORM = "multipart/form-data"
MAX_FORM_PARTS = 10


def routes(ingest: Ingest, config: HttpConfig, gate: Gate) -> list[Route]:
    """The route; what mounts it has set ``request.state.user``. ``gate`` is that of every body."""

    async def upload(request: Request) -> Response:
        return await _upload(request, ingest, config, gate)

    return [Route("/studies", upload, methods=["POST"])]


async def _upload(request: Request, ingest: Ingest, config: HttpConfig, gate: Gate) -> Response:
    try:
        with gate.entered():
            await check_head(request, ingest, config)
            files = await _take(request, ingest, config)
    except BodyRefused as refused:
        return refused.response()
    except ClientDisconnect:
        return Response(status_code=400)
    reasons = [one.reason for one in files if isinstance(one, RefusedFile)]
    status = http_status(len(files) - len(reasons), reasons)
    studies = sorted({one.receipt.study_uid for one in files if isinstance(one, TakenFile)})
    answer = {"studies": studies, "files": [one.document() for one in files]}
    return JSONResponse(answer, status, headers=http_headers(status))


async def _take(request: Request, ingest: Ingest, config: HttpConfig) -> list[TakenFile | RefusedFile]:
    """The body into a temporary file, and what is in it into the spool."""
    body = Incoming(ingest.spool, config.max_body_mib * MIB)
    try:
        take, close = _writer(request, body)

        def write(data: bytes) -> None:
            take(data)
            if body.refused is not None:
                raise BodyRefused(ANSWERS[body.refused.reason].http_status, body.refused.reason.value)

        await read_body(request, config, write)
        close()
        return await run_in_threadpool(take_zip, body, ingest, origin_of(request, "upload"), config)
    finally:
        await run_in_threadpool(body.discard)


def _writer(request: Request, body: Incoming) -> tuple[Callable[[bytes], None], Callable[[], None]]:
    """What takes the request's body, and what is called at its end.

    Raises:
        BodyRefused: 415, it is another kind of body, or 400.
    """
    kind, parameters = options(request.headers.get("content-type", ""))
    if kind in ZIP_TYPES:
        return body.write, lambda: None
    if kind != FORM:
        raise BodyRefused(415, f"Content-Type: expected application/zip or {FORM}, found another")
    form = _Form(body)
    reader = MultipartReader(boundary_of(parameters), MAX_FORM_PARTS, form.open_part)

    def close() -> None:
        reader.close()
        if not form.has_file:
            raise BodyRefused(400, "expected one file in the form, found none")

    return reader.feed, close


class _Form:
    """A form of one file; its other fields fall on the floor."""

    def __init__(self, body: Incoming) -> None:
        self._body = body
        self.has_file = False

    def open_part(self, headers: Mapping[str, str]) -> "_Field":
        is_file = "filename" in options(headers.get("content-disposition", ""))[1]
        if is_file and self.has_file:
            raise BodyRefused(400, "expected one file in the form, found more")
        self.has_file = self.has_file or is_file
        return _Field(self._body if is_file else None)


class _Field:
    """One part of a form."""

    def __init__(self, body: Incoming | None) -> None:
        self._body = body

    def write(self, data: memoryview) -> None:
        if self._body is not None:
            self._body.write(data)

    def end(self) -> None:
        """Nothing to do: the file is finished when the request is."""
