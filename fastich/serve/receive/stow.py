"""STOW-RS: POST /dicom-web/studies and /dicom-web/studies/{study}, instance by instance, answered one by one.

An instance that is in the answer's ReferencedSOPSequence is on the disk and in the tables; this holds for requests that
end badly too: whoever repeats one sends copies, which are stored once.

Source: PS3.18 section 10.5 (store transaction), I.2 (its response), F.2 (JSON model).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fastich.dicom_parse import read_meta
from fastich.errors import DicomError
from fastich.serve.config import HttpConfig
from fastich.serve.entities import Origin, Receipt, Refused
from fastich.serve.identity import identify, is_uid
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive.bodies import BodyRefused, Gate, check_head, origin_of, read_body
from fastich.serve.receive.incoming import Incoming
from fastich.serve.receive.multipart import MultipartReader, boundary_of, options
from fastich.serve.receive.reasons import ANSWERS, http_headers, http_status
from fastich.serve.spool import storage_errors

DICOM, DICOM_JSON = "application/dicom", "application/dicom+json"
ACCEPTABLE = frozenset({DICOM_JSON, "application/json", "application/*", "*/*"})
HEAD_BYTES = 4096
"""Enough for a file meta; it is read for the UIDs of an instance that is refused."""
PREFIX = "/dicom-web/studies"


def routes(ingest: Ingest, config: HttpConfig, gate: Gate) -> list[Route]:
    """The two routes; what mounts them has set ``request.state.user``. ``gate`` is that of every body."""

    async def store(request: Request) -> Response:
        return await _store(request, ingest, config, gate)

    return [Route(PREFIX, store, methods=["POST"]), Route(PREFIX + "/{study}", store, methods=["POST"])]


async def _store(request: Request, ingest: Ingest, config: HttpConfig, gate: Gate) -> Response:
    study_uid = request.path_params.get("study", "")
    transaction = _Transaction(ingest, origin_of(request, "stow"), study_uid)
    try:
        _check_accept(request.headers.get("accept", "*/*"))
        if study_uid and not is_uid(study_uid):
            raise BodyRefused(400, "the study's UID in the URL breaks PS3.5 9.1")
        reader = MultipartReader(_boundary(request), config.max_parts, transaction.open_part)
        with gate.entered():
            await check_head(request, ingest, config)
            await read_body(request, config, reader.feed)
        reader.close()
    except BodyRefused as refused:
        return transaction.response(refused.status) if transaction.receipts else refused.response()
    except ClientDisconnect:
        return Response(status_code=400)
    finally:
        await run_in_threadpool(transaction.discard)
    return transaction.response(http_status(len(transaction.receipts), [one.reason for one in transaction.failures]))


def _boundary(request: Request) -> bytes:
    """The boundary of a multipart/related body of DICOM files.

    Raises:
        BodyRefused: 415, it is another kind of body, or 400.
    """
    kind, parameters = options(request.headers.get("content-type", ""))
    if kind != "multipart/related" or parameters.get("type", "").lower() != DICOM:
        raise BodyRefused(415, f'Content-Type: expected multipart/related; type="{DICOM}", found another')
    return boundary_of(parameters)


def _check_accept(header: str) -> None:
    """Refuse who takes no JSON.

    Raises:
        BodyRefused: 406.
    """
    for one in header.split(","):
        kind, parameters = options(one)
        if kind in ACCEPTABLE and parameters.get("q", "1").strip() not in ("0", "0.0", "0.00", "0.000"):
            return
    raise BodyRefused(406, f"Accept: expected {DICOM_JSON}, found none that is offered")


@dataclass(frozen=True, slots=True)
class _Failure:
    reason: Refused
    sop_class_uid: str
    sop_uid: str


class _Transaction:
    """One request: what of it was stored, what was not."""

    def __init__(self, ingest: Ingest, origin: Origin, study_uid: str) -> None:
        self._ingest, self._origin, self._study_uid = ingest, origin, study_uid
        self.receipts: list[Receipt] = []
        self.failures: list[_Failure] = []
        self._part: _Part | None = None

    def open_part(self, headers: Mapping[str, str]) -> "_Part":
        incoming = Incoming(self._ingest.spool, self._ingest.max_object_bytes)
        kind, _ = options(headers.get("content-type", DICOM))
        if kind != DICOM:
            incoming.refuse(IngestRefused(Refused.MALFORMED, f"a part of another type than {DICOM}"))
        try:
            self._ingest.check_capacity()
        except IngestRefused as refusal:
            incoming.refuse(refusal)
        self._part = _Part(self, incoming)
        return self._part

    def take(self, incoming: Incoming, head: bytes) -> None:
        """One whole part, that begins with ``head``."""
        try:
            path = incoming.finish()
            self._check_study(path)
            self.receipts.append(self._ingest.accept(path, self._origin))
        except IngestRefused as refusal:
            self.failures.append(_Failure(refusal.reason, *_uids(head)))
        finally:
            incoming.discard()

    def discard(self) -> None:
        """Remove the part that was cut off."""
        if self._part is not None:
            self._part.incoming.discard()

    def response(self, status: int) -> Response:
        """The store instances response module as JSON (PS3.18 table I.2-1)."""
        stored = [{**_reference(one.sop_class_uid, one.sop_uid), "00081190": {"vr": "UR"}} for one in self.receipts]
        named = [one for one in self.failures if one.sop_uid]
        nameless = [_reason(one) for one in self.failures if not one.sop_uid]
        failed = [{**_reference(one.sop_class_uid, one.sop_uid), **_reason(one)} for one in named]
        sequences = {"00081199": stored, "00081198": failed, "0008119A": nameless}
        body: dict[str, Any] = {"00081190": {"vr": "UR"}}
        body.update({tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items() if items})
        return JSONResponse(body, status, headers=http_headers(status), media_type=DICOM_JSON)

    def _check_study(self, path: Path) -> None:
        if not self._study_uid:
            return
        with storage_errors():
            found = identify(path)
        if found.study_uid != self._study_uid:
            raise IngestRefused(Refused.MISMATCH, "it is of another study than the URL")


class _Part:
    """One instance on its way."""

    def __init__(self, transaction: _Transaction, incoming: Incoming) -> None:
        self._transaction, self.incoming = transaction, incoming
        self._head = bytearray()

    def write(self, data: memoryview) -> None:
        self._head += data[: HEAD_BYTES - len(self._head)]
        self.incoming.write(data)

    def end(self) -> None:
        self._transaction.take(self.incoming, bytes(self._head))


def _uids(head: bytes) -> tuple[str, str]:
    """SOP class and instance UID of the file meta, both "" where it has no legal ones."""
    try:
        meta = read_meta(head)
    except DicomError:
        return "", ""
    return (meta.sop_class, meta.sop_uid) if is_uid(meta.sop_class) and is_uid(meta.sop_uid) else ("", "")


def _reference(sop_class_uid: str, sop_uid: str) -> dict[str, Any]:
    return {"00081150": {"vr": "UI", "Value": [sop_class_uid]}, "00081155": {"vr": "UI", "Value": [sop_uid]}}


def _reason(failure: _Failure) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [ANSWERS[failure.reason].failure_reason]}}
