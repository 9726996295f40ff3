"""Who did what, and what left: one JSON line each, and where a site has an audit record repository a syslog message.

The lines are on the disk before ``record`` returns. Whatever fails here is logged once and never stops care: a reader
must see a bleed though the audit disk is full. No patient names or ids, and so no patient among the objects of a
message (which PS3.15 wants for some): studies stand by their UID.

Source: PS3.15 A.5 (messages), A.6 (RFC 5424, and UDP by RFC 5426).
"""

import contextlib
import json
import logging
import os
import queue
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fastich.errors import FastichError
from fastich.serve.config import AuditConfig
from fastich.serve.log import one_line, timestamp

LOG = logging.getLogger("fastich.audit")

SOURCE = "fastich"
PRIORITY = 85
"""Facility 10 (security) times 8, and severity 5 (notice), as IHE ATNA has it."""
MESSAGE_ID = "DICOM+RFC3881"
MAX_DATAGRAM = 32_768
"""PS3.15 A.6.2: receivers shall take at least this much."""
RESOLVE_AGAIN_S = 60.0
SELDOM_S = 60.0
MAX_KINDS = 10_000
MAX_QUEUED = 1000
"""Messages that wait for the audit record repository; the lines of the file are whole whatever becomes of these."""
CLOSE_S = 2.0

SUCCESS, FAILURE = "success", "failure"
OUTCOMES = {SUCCESS: "0", FAILURE: "4"}
"""Outcome to EventOutcomeIndicator: 4 is a minor failure, an action that had to be tried again or was denied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """How PS3.15 calls an event: codes of scheme DCM (PS3.16 CID 400 and 401), and what was done to the study."""

    code: str
    meaning: str
    action: str
    type_code: str = ""
    type_meaning: str = ""


EVENTS: dict[str, Kind] = {
    "start": Kind(code="110100", meaning="Application Activity", action="E", type_code="110120",
                  type_meaning="Application Start"),
    "stop": Kind(code="110100", meaning="Application Activity", action="E", type_code="110121",
                 type_meaning="Application Stop"),
    "login": Kind(code="110114", meaning="User Authentication", action="E", type_code="110122", type_meaning="Login"),
    "refused": Kind(code="110113", meaning="Security Alert", action="E", type_code="110126",
                    type_meaning="Node Authentication"),
    "receive": Kind(code="110104", meaning="DICOM Instances Transferred", action="C"),
    "send": Kind(code="110104", meaning="DICOM Instances Transferred", action="R"),
    "view": Kind(code="110103", meaning="DICOM Instances Accessed", action="R"),
    "infer": Kind(code="110103", meaning="DICOM Instances Accessed", action="R"),
    "acknowledge": Kind(code="110103", meaning="DICOM Instances Accessed", action="U"),
    "unacknowledge": Kind(code="110103", meaning="DICOM Instances Accessed", action="U"),
    "comment": Kind(code="110103", meaning="DICOM Instances Accessed", action="U"),
    "requeue": Kind(code="110103", meaning="DICOM Instances Accessed", action="U"),
    "query": Kind(code="110112", meaning="Query", action="E"),
    "delete": Kind(code="110105", meaning="DICOM Study Deleted", action="D"),
}  # fmt: skip
OTHER = Kind(code="110100", meaning="Application Activity", action="E")
"""Any event without a code of its own; its name stands in the outcome's description."""


class Seldom:
    """Lets one of a kind through in ``SELDOM_S``, so that a peer's mistakes do not become our writes."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic, self._lock = monotonic, threading.Lock()
        self._found: OrderedDict[tuple[str, ...], tuple[float, int]] = OrderedDict()

    def count(self, *kind: str) -> int:
        """How many of a kind there were since the last that was let through, this one included; 0: not yet."""
        now = self._monotonic()
        with self._lock:
            since, number = self._found.pop(kind, (now - SELDOM_S, 0))
            is_due = now - since >= SELDOM_S
            self._found[kind] = (now, 0) if is_due else (since, number + 1)
            while len(self._found) > MAX_KINDS:
                self._found.popitem(last=False)
            return number + 1 if is_due else 0


def times(number: int) -> str:
    """What a line that stands for more than one adds."""
    return f" ({number} of them since the last line)" if number > 1 else ""


class Audit:
    """The audit trail; ``record`` may be called from any thread and never raises.

    Raises:
        FastichError: its file cannot be written.
    """

    def __init__(self, config: AuditConfig, spool_folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self._path = config.file or spool_folder / "audit.jsonl"
        self._clock = clock
        self._lock = threading.Lock()
        self._failing: set[str] = set()
        self._queue: queue.Queue[bytes | None] = queue.Queue(MAX_QUEUED)
        self._syslog = Syslog(config.syslog_host, config.syslog_port) if config.syslog_host else None
        self._thread = threading.Thread(target=self._send_queued, name="audit-syslog", daemon=True)
        try:
            self._append(b"")
        except OSError as error:
            raise FastichError(f"{self._path}: cannot write the audit trail ({error.strerror})") from error
        if self._syslog is not None:
            self._thread.start()

    def record(self, event: str, *, who: str, outcome: str, study_uid: str = "", detail: str = "") -> None:
        """Note that ``who`` did ``event`` with ``outcome`` (success or failure) to a study."""
        at = self._clock()
        values = {"at": timestamp(at), "event": event, "who": who, "outcome": outcome}
        values |= {name: text for name, text in (("study_uid", study_uid), ("detail", detail)) if text}
        line = json.dumps({name: one_line(text) for name, text in values.items()}, ensure_ascii=False) + "\n"
        with self._lock:
            self._try("file", lambda: self._append(line.encode("utf-8", "backslashreplace")))
            if self._syslog is not None:
                self._try("queue", lambda: self._queue.put_nowait(syslog_message(at, values)))

    def close(self) -> None:
        """Send what is queued, ``CLOSE_S`` at most, and let go of the socket."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)

    def _send_queued(self) -> None:
        """Names are looked up and datagrams sent here, where nobody waits for it."""
        syslog = self._syslog
        assert syslog is not None, "the thread is of a repository"
        while (message := self._queue.get()) is not None:
            self._try("syslog", partial(syslog.send, message))
        syslog.close()

    def _append(self, line: bytes) -> None:
        """Write a line at the end and fsync it; the file is opened anew so that logrotate may move it away."""
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)

    def _try(self, where: str, action: Callable[[], None]) -> None:
        """Run what may fail; the first failure of a row of them is logged, and so is the recovery."""
        try:
            action()
        except Exception as error:  # whatever it is, the caller's work goes on
            if where not in self._failing:
                self._failing.add(where)
                LOG.error("%s of the audit trail fails: %s", where, error)
        else:
            if where in self._failing:
                self._failing.discard(where)
                LOG.warning("%s of the audit trail works again; records in between are missing", where)


class Syslog:
    """Datagrams to one audit record repository; the name is looked up when first needed, and again after failures."""

    def __init__(self, host: str, port: int, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._host, self._port, self._monotonic = host, port, monotonic
        self._socket: socket.socket | None = None
        self._resolve_at = 0.0

    def send(self, message: bytes) -> None:
        """Send one message; nobody says whether it arrived.

        Raises:
            OSError: no address, or no way there.
        """
        if self._socket is None:
            if self._monotonic() < self._resolve_at:
                raise OSError(f"{self._host}: no address a moment ago")
            self._resolve_at = self._monotonic() + RESOLVE_AGAIN_S
            self._socket = _connected(self._host, self._port)
        try:
            self._socket.send(message[:MAX_DATAGRAM])
        except ConnectionRefusedError:  # the answer to an earlier datagram; the address is right all the same
            raise
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket; the next message opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connected(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


def syslog_message(at: float, values: dict[str, str]) -> bytes:
    """An RFC 5424 message whose text is the XML of PS3.15 A.5."""
    host = socket.gethostname() or "-"
    head = f"<{PRIORITY}>1 {timestamp(at)} {host} {SOURCE} {os.getpid()} {MESSAGE_ID} - "
    return head.encode("ascii", "replace") + b"\xef\xbb\xbf" + audit_xml(at, values)


def audit_xml(at: float, values: dict[str, str]) -> bytes:
    """The AuditMessage of one record, UTF-8."""
    kind = EVENTS.get(values["event"], OTHER)
    root = ElementTree.Element("AuditMessage")
    _event(root, at, values, kind)
    _participant(root, values["who"] or "unknown", is_requestor=True)
    _participant(root, SOURCE, is_requestor=False)
    source = ElementTree.SubElement(root, "AuditSourceIdentification", AuditSourceID=SOURCE)
    ElementTree.SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})  # application server process
    if values.get("study_uid"):
        _study(root, values["study_uid"])
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _event(root: ElementTree.Element, at: float, values: dict[str, str], kind: Kind) -> None:
    event = ElementTree.SubElement(
        root,
        "EventIdentification",
        EventActionCode=kind.action,
        EventDateTime=timestamp(at),
        EventOutcomeIndicator=OUTCOMES.get(values["outcome"], OUTCOMES[FAILURE]),
    )
    ElementTree.SubElement(event, "EventID", _code(kind.code, kind.meaning))
    if kind.type_code:
        ElementTree.SubElement(event, "EventTypeCode", _code(kind.type_code, kind.type_meaning))
    described = ": ".join(filter(None, (values["event"], values["outcome"], values.get("detail", ""))))
    ElementTree.SubElement(event, "EventOutcomeDescription").text = one_line(described)


def _participant(root: ElementTree.Element, who: str, *, is_requestor: bool) -> None:
    values = {"UserID": one_line(who), "UserIsRequestor": str(is_requestor).lower()}
    ElementTree.SubElement(root, "ActiveParticipant", values)


def _study(root: ElementTree.Element, study_uid: str) -> None:
    """The study by its UID: object of type 2 (system) in the role 3 (report)."""
    values: dict[str, Any] = {
        "ParticipantObjectID": one_line(study_uid),
        "ParticipantObjectTypeCode": "2",
        "ParticipantObjectTypeCodeRole": "3",
    }
    element = ElementTree.SubElement(root, "ParticipantObjectIdentification", values)
    ElementTree.SubElement(element, "ParticipantObjectIDTypeCode", _code("110180", "Study Instance UID"))
    ElementTree.SubElement(element, "ParticipantObjectName").text = "study"


def _code(code: str, meaning: str) -> dict[str, str]:
    return {"csd-code": code, "codeSystemName": "DCM", "originalText": meaning}
