"""The storage SCP: C-ECHO and C-STORE of every storage SOP class, from the callers that may, answered once it is safe.

0x0000 is said after ``Ingest.accept`` returned, never before. What a stranger may do to the port is in ``guards``.
Source: PS3.4 annexes A (verification) and B (storage), PS3.8 table 9-21 (reasons of a rejection).
"""

import ipaddress
import threading
import time
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import evt
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import AllStoragePresentationContexts, PresentationContext, build_context

from fastich.decoder import CODECS
from fastich.dicom_parse import EXPLICIT_LITTLE, IMPLICIT_LITTLE
from fastich.dicom_pixels import RLE
from fastich.errors import FastichError
from fastich.serve.config import DicomConfig, Peer
from fastich.serve.entities import Origin
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive.connection import limits_of
from fastich.serve.receive.guards import configure
from fastich.serve.receive.listener import MAX_SOCKETS, Contexts, GuardedServer
from fastich.serve.receive.reasons import ANSWERS, PROCESSING_FAILURE, SUCCESS, Report
from fastich.serve.receive.tls import server_context

VERIFICATION = "1.2.840.10008.1.1"
TRANSFER_SYNTAXES = (EXPLICIT_LITTLE, IMPLICIT_LITTLE, *CODECS, RLE)
"""What ``fastich.dicom`` reads, in order of preference; deflated is not among them (1 MB may become 2 GB)."""
MAX_PDU_BYTES = 2**17
ACCEPTED = (0, 0, 0)
UNKNOWN_CALLER = (1, 1, 3)
UNKNOWN_CALLED = (1, 1, 7)
TOO_MANY = (2, 3, 2)
"""Result, source and reason of an A-ASSOCIATE-RJ: permanent, permanent, transient (local limit exceeded)."""
POLL_S = 0.02
LAST_WAIT_S = 2.0


class DicomServer:
    """One listening port.

    ``on_event`` is told what happens, by any thread: accepted, rejected, stored, refused, cut or error, with values.

    Raises:
        FastichError: the configuration names no valid address, AE title or TLS file, or the port cannot be had.
    """

    def __init__(self, ingest: Ingest, config: DicomConfig, *, on_event: Report) -> None:
        configure()
        self._ingest, self._config, self._report = ingest, config, on_event
        self._networks = [(peer, _network(peer)) for peer in config.peers]
        self._tls = server_context(config.tls, "dicom.tls")
        if not 0 < len(config.ae_title.strip()) <= 16 or "\\" in config.ae_title or not config.ae_title.isprintable():
            raise FastichError(f"dicom.ae_title: expected 1 to 16 characters, found {config.ae_title!r}")
        self._server: GuardedServer | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen."""
        config = self._config
        entity = ApplicationEntity(config.ae_title)
        entity.acse_timeout, entity.dimse_timeout = config.acse_timeout_s, config.dimse_timeout_s
        entity.network_timeout = None  # the watch on each connection knows when it waits for us
        entity.maximum_associations = MAX_SOCKETS  # its own count, of threads; ours is of what was accepted
        entity.maximum_pdu_size = MAX_PDU_BYTES
        try:
            self._server = GuardedServer(
                entity,
                (config.host, config.port),
                config.ae_title,
                supported_contexts(),
                ingest=self._ingest,
                limits=limits_of(config, self._ingest.max_object_bytes),
                max_associations=config.max_associations,
                max_sockets_per_address=config.max_sockets_per_address,
                tls=self._tls,
                report=self._report,
                handlers=[
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_ESTABLISHED, self._established),
                    (evt.EVT_RELEASED, _released),
                    (evt.EVT_C_STORE, self._store),
                ],
            )
        except OSError as error:
            where = f"dicom.host, dicom.port: {config.host} port {config.port}"
            raise FastichError(f"{where}: cannot listen ({error.strerror}); choose another") from error
        threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="dicom", daemon=True).start()

    def stop(self, drain_s: float = 10.0) -> None:
        """Stop listening, give objects that are on their way ``drain_s`` seconds, then end what is left."""
        server = self._server
        if server is None:
            return
        server.shutdown()
        deadline = time.monotonic() + drain_s
        while server.connections and time.monotonic() < deadline + LAST_WAIT_S:
            for connection in [*server.connections]:
                if not connection.is_working or time.monotonic() >= deadline:
                    connection.cut("the server stops")
            time.sleep(POLL_S)
        self._server = None

    def _requested(self, event: Any) -> None:
        """Decide on an A-ASSOCIATE-RQ, in the association's thread."""
        association, connection = event.assoc, event.assoc.dimse.connection
        request = association.requestor.primitive
        calling, reason, words = str(request.calling_ae_title).strip(), ACCEPTED, ""
        if str(request.called_ae_title).strip() != self._config.ae_title.strip():
            reason, words = UNKNOWN_CALLED, "another AE title was called"
        elif not self._may_call(calling, connection.address):
            reason, words = UNKNOWN_CALLER, "not among dicom.peers"
        elif not association._server.admit(connection):
            reason, words = TOO_MANY, f"{self._config.max_associations} associations are open"
        if reason == ACCEPTED:
            return
        association.acse.send_reject(*reason)
        self._report("rejected", {"address": connection.address, "calling": calling, "reason": words})
        association.kill()  # waits until it was sent

    def _may_call(self, calling: str, address: str) -> bool:
        if not self._networks:
            return True
        found = ipaddress.ip_address(address.partition("%")[0])
        plain = getattr(found, "ipv4_mapped", None) or found
        return any(
            peer.ae_title.strip() in ("", calling) and (network is None or plain in network)
            for peer, network in self._networks
        )

    def _established(self, event: Any) -> None:
        connection = event.assoc.dimse.connection
        connection.established = True
        connection.answered()
        self._report("accepted", {"address": connection.address, "calling": _calling(event)})

    def _store(self, event: Any) -> Dataset:
        """Answer one C-STORE; the status is the promise."""
        request, address = event.request, event.assoc.dimse.connection.address
        origin = Origin(way="dimse", sender=_calling(event), address=address)
        announced = (str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID))
        try:
            receipt = self._ingest.accept(request.incoming.finish(), origin, announced=announced)
        except IngestRefused as refusal:
            self._report("refused", {"address": address, "reason": refusal.reason.value, "detail": refusal.detail})
            return _status(ANSWERS[refusal.reason].dimse_status, refusal.reason.value)
        except Exception as error:
            self._report("error", {"address": address, "reason": type(error).__name__})
            return _status(PROCESSING_FAILURE, "an error of the server")
        finally:
            request.incoming.discard()
        self._report("stored", {"address": address, "study_uid": receipt.study_uid, "duplicate": receipt.duplicate})
        return _status(SUCCESS)


def supported_contexts() -> list[PresentationContext]:
    """Verification, and every storage SOP class that pynetdicom knows with every transfer syntax that is read."""
    classes = [str(known.abstract_syntax) for known in AllStoragePresentationContexts]
    stored = [build_context(uid, list(TRANSFER_SYNTAXES)) for uid in classes]
    return Contexts([build_context(VERIFICATION, [EXPLICIT_LITTLE, IMPLICIT_LITTLE]), *stored])


def _network(peer: Peer) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if not peer.address:
        return None
    try:
        return ipaddress.ip_network(peer.address)
    except ValueError as error:
        raise FastichError(
            f"dicom.peers: expected an IP address or network (192.0.2.0/24), found {peer.address!r}"
        ) from error


def _released(event: Any) -> None:
    event.assoc._server.dismiss(event.assoc.dimse.connection)


def _calling(event: Any) -> str:
    return str(event.assoc.requestor.ae_title).strip()


def _status(code: int, comment: str = "") -> Dataset:
    """A status with, where it is a failure, words in ErrorComment (0000,0902)."""
    status = Dataset()
    status.Status = code
    if comment:
        status.ErrorComment = comment
    return status
