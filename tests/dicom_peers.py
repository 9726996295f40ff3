"""DICOM peers made of pynetdicom for tests: one that sends studies, one that receives results and remembers them."""

import io
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pydicom
from pynetdicom import AE, StoragePresentationContexts, evt
from pynetdicom.sop_class import CTImageStorage, Verification

SUCCESS = 0x0000


def send(port: int, files: Sequence[bytes], *, called: str = "FASTICH", calling: str = "CT1") -> list[int]:
    """C-STORE ``files`` over one association; the status of each, -1 where the peer was gone."""
    if not listens(port):  # pynetdicom leaves the socket of a refused connection to the garbage collector
        return [-1] * len(files)
    sender = AE(ae_title=calling)
    sender.add_requested_context(CTImageStorage)
    association = sender.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return [-1] * len(files)
    statuses = []
    for data in files:
        try:
            found = association.send_c_store(pydicom.dcmread(io.BytesIO(data)))
        except (RuntimeError, ValueError):  # the association ended meanwhile
            found = {}
        statuses.append(int(found.Status) if "Status" in found else -1)
    if association.is_established:
        association.release()
    return statuses


def listens(port: int) -> bool:
    """Whether somebody accepts connections on loopback."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def echo(port: int, *, called: str = "FASTICH") -> bool:
    """Whether C-ECHO is answered with success."""
    sender = AE(ae_title="ECHO")
    sender.add_requested_context(Verification)
    association = sender.associate("127.0.0.1", port, ae_title=called)
    if not association.is_established:
        return False
    status = association.send_c_echo()
    association.release()
    return bool(status and status.Status == SUCCESS)


class Archive:
    """A PACS that keeps what it is sent; ``stored`` counts how often each SOP instance came."""

    def __init__(self) -> None:
        self.stored: Counter[str] = Counter()
        self.objects: dict[str, pydicom.Dataset] = {}
        self.answer = SUCCESS
        self.port = 0
        self._lock = threading.Lock()

    def take(self, event: Any) -> int:
        """Answer one C-STORE."""
        with self._lock:
            if self.answer == SUCCESS:
                data = event.dataset
                data.file_meta = event.file_meta
                self.stored[str(data.SOPInstanceUID)] += 1
                self.objects[str(data.SOPInstanceUID)] = data
            return self.answer


@contextmanager
def archive(port: int = 0) -> Iterator[Archive]:
    """A running ``Archive`` on loopback."""
    made = Archive()
    receiver = AE(ae_title="PACS")
    for context in StoragePresentationContexts:
        receiver.add_supported_context(context.abstract_syntax or "")
    receiver.add_supported_context(Verification)
    server = receiver.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, made.take)])
    assert server is not None
    made.port = server.server_address[1]
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
