"""For tests of the receivers: objects with legal UIDs, a spool with its ingest, a DICOM port, a raw peer."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from dicom_data import CT_IMAGE, EXPLICIT, ct_dataset, write
from pydicom.dataset import Dataset
from pynetdicom.ae import ApplicationEntity
from pynetdicom.presentation import build_context

from fastich.dicom_parse import read_meta
from fastich.serve.config import DicomConfig, SpoolConfig
from fastich.serve.ingest import Ingest
from fastich.serve.receive.dimse import DicomServer
from fastich.serve.spool import Spool
from fastich.serve.store import open_store

ROOT = "1.2.826.0.1.3680043.9.9999"
VERIFICATION = "1.2.840.10008.1.1"


def ct(number: int = 1, *, study: int = 1, side: int = 32, value: int = 0, **changes: Any) -> Dataset:
    """A CT slice of ``side`` x ``side`` equal pixels with UIDs made from ``study`` and ``number``."""
    uids = {
        "SOPInstanceUID": f"{ROOT}.{study}.1.{number}",
        "StudyInstanceUID": f"{ROOT}.{study}",
        "SeriesInstanceUID": f"{ROOT}.{study}.1",
    }
    return ct_dataset(np.full((side, side), value, np.int16), **{**uids, **changes})


def ct_bytes(number: int = 1, *, syntax: str = EXPLICIT, **changes: Any) -> bytes:
    """The file of ``ct``."""
    return write(ct(number, **changes), syntax)


def open_ingest(folder: Path, **spool: Any) -> Ingest:
    """An ingest over a fresh spool that takes objects of up to 1 MiB while 1 MiB is free."""
    config = SpoolConfig(**{"folder": folder, "min_free_mib": 1, "max_object_mib": 1, **spool})
    place = Spool(folder, config)
    return Ingest(open_store(folder / "fastich.db"), place, config, notify=lambda: None)


def stored_files(ingest: Ingest) -> list[Path]:
    """The objects in the spool."""
    return [path for path in (ingest.spool.folder / "objects").rglob("*") if path.is_file()]


def incoming_files(ingest: Ingest) -> list[Path]:
    """What lies in the folder of temporary files."""
    return [*(ingest.spool.folder / "incoming").iterdir()]


class Port:
    """A running DICOM server and what it said happened."""

    def __init__(self, ingest: Ingest, config: DicomConfig) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ingest = ingest
        self.server = DicomServer(ingest, config, on_event=lambda kind, values: self.events.append((kind, values)))
        self.server.start()
        self.number = self.server.port

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [values for found, values in self.events if found == kind]

    def wait_for(self, kind: str, timeout_s: float = 6.0) -> dict[str, Any]:
        """The first event of a kind."""
        wait_until(lambda: bool(self.of(kind)), timeout_s)
        return self.of(kind)[0]


@contextlib.contextmanager
def dicom_port(folder: Path, *, ingest: Ingest | None = None, **changes: Any) -> Iterator[Port]:
    """A DICOM port on loopback with short timeouts."""
    quick = {"port": 0, "acse_timeout_s": 1.0, "dimse_timeout_s": 5.0, "min_bytes_per_s": 1024}
    port = Port(ingest or open_ingest(folder), DicomConfig(**{**quick, **changes}))
    try:
        yield port
    finally:
        port.server.stop(0)


@contextlib.contextmanager
def scu(port: int, *, called: str = "FASTICH", classes: tuple[str, ...] = (CT_IMAGE,), **more: Any) -> Iterator[Any]:
    """pynetdicom's own association with the port; established or not."""
    entity = ApplicationEntity(more.pop("calling", "TESTER"))
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
    contexts = [build_context(uid, more.get("syntaxes", [EXPLICIT])) for uid in (*classes, VERIFICATION)]
    association = entity.associate("127.0.0.1", port, contexts=contexts, ae_title=called, tls_args=more.get("tls_args"))
    try:
        yield association
    finally:
        if association.is_established:
            association.release()
        if association.ident is not None:
            association.join(5)


def wait_until(condition: Callable[[], bool], timeout_s: float = 6.0) -> float:
    """Wait, and give the seconds that it took; fail after ``timeout_s``."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout_s, "waited in vain"
        time.sleep(0.01)
    return time.monotonic() - start


def is_closed_within(peer: socket.socket, timeout_s: float) -> bool:
    """Whether the other side closes the connection in time; what it says before is read and dropped."""
    deadline = time.monotonic() + timeout_s
    try:
        while (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not peer.recv(4096):
                return True
    except TimeoutError:
        return False
    except OSError:
        return True
    return False


def associate_rq(called: str = "FASTICH", calling: str = "RAW", uid: str = CT_IMAGE) -> bytes:
    """An A-ASSOCIATE-RQ PDU with one context, id 1, explicit little endian (PS3.8 section 9.3.2)."""
    syntax = _item(0x40, EXPLICIT.encode())
    context = _item(0x20, bytes([1, 0, 0, 0]) + _item(0x30, uid.encode()) + syntax)
    user = _item(0x50, _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.3"))
    fixed = struct.pack(">HH16s16s32s", 1, 0, called.ljust(16).encode(), calling.ljust(16).encode(), b"")
    return pdu(1, fixed + _item(0x10, b"1.2.840.10008.3.1.1.1") + context + user)


def pdu(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBL", kind, 0, len(body)) + body


def fragment(data: bytes, control: int, context_id: int = 1) -> bytes:
    """One item of a P-DATA-TF: control bit 0 command, bit 1 last."""
    return struct.pack(">LBB", len(data) + 2, context_id, control) + data


def store_rq(sop_uid: str, *, sop_class: str = CT_IMAGE, field: int = 1, has_data: bool = True) -> bytes:
    """The command set of a C-STORE-RQ, implicit little endian (PS3.7 section 9.3.1.1)."""
    elements = [
        (0x0002, _even(sop_class)),
        (0x0100, struct.pack("<H", field)),
        (0x0110, struct.pack("<H", 1)),
        (0x0700, struct.pack("<H", 0)),
        (0x0800, struct.pack("<H", 0 if has_data else 0x0101)),
        (0x1000, _even(sop_uid)),
    ]
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def raw_association(port: int) -> socket.socket:
    """A socket with an accepted association."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=5)
    peer.sendall(associate_rq())
    header = peer.recv(6, socket.MSG_WAITALL)
    assert header[0] == 2, f"expected A-ASSOCIATE-AC, found PDU type {header[0]}"
    peer.recv(struct.unpack(">L", header[2:])[0], socket.MSG_WAITALL)
    return peer


def raw_store(number: int = 1) -> bytes:
    """One C-STORE of ``ct(number)`` as PDUs."""
    data = ct_bytes(number)
    data_set = data[read_meta(data).dataset_offset :]
    return pdu(4, fragment(store_rq(f"{ROOT}.1.1.{number}"), 3)) + pdu(4, fragment(data_set, 2))


def status_of(peer: socket.socket) -> int:
    """The status (0000,0900) of the next response on a raw association."""
    header = peer.recv(6, socket.MSG_WAITALL)
    assert header[:1] == b"\x04", f"expected P-DATA, found {header!r}"
    body = peer.recv(struct.unpack(">L", header[2:])[0], socket.MSG_WAITALL)
    at = body.index(b"\0\0\0\x09\x02\0\0\0")
    return int.from_bytes(body[at + 8 : at + 10], "little")


def threads_of_dicom() -> int:
    """Threads that belong to connections."""
    return sum("AcceptorThread" in thread.name or "process_request" in thread.name for thread in threading.enumerate())


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BBH", kind, 0, len(body)) + body


def _even(text: str) -> bytes:
    raw = text.encode("latin-1")
    return raw + b"\0" * (len(raw) % 2)
