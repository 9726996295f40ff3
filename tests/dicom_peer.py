"""A PACS on loopback that answers as it is told and remembers what it was sent."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from fastich.serve.config import Destination
from fastich.serve.outputs import key_image, sr

SYNTAXES = ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2"]


@dataclass
class DicomPeer:
    """``statuses`` of C-STORE, the last one for good; ``stored`` the objects that were answered with 0 or a warning."""

    statuses: list[int] = field(default_factory=lambda: [0])
    stored: list[Dataset] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    port: int = 0

    def destination(self, **changes: Any) -> Destination:
        values: dict[str, Any] = {"name": "pacs", "host": "127.0.0.1", "port": self.port, "ae_title": "PACS"}
        return Destination(**values | changes)


@contextmanager
def dicom_peer(
    *statuses: int,
    classes: Sequence[str] = (sr.SOP_CLASS, key_image.SOP_CLASS),
    syntaxes: Sequence[str] = SYNTAXES,
    port: int = 0,
    required_title: str = "",
) -> Iterator[DicomPeer]:
    peer = DicomPeer(statuses=list(statuses) or [0])

    def on_store(event: evt.Event) -> int:
        peer.callers.append(event.assoc.requestor.ae_title)
        status = peer.statuses.pop(0) if len(peer.statuses) > 1 else peer.statuses[0]
        if status == 0 or 0xB000 <= status < 0xC000:
            peer.stored.append(dcmread(io.BytesIO(event.encoded_dataset())))
        return status

    entity = AE(ae_title="PACS")
    entity.require_called_aet = bool(required_title)
    if required_title:
        entity.ae_title = required_title
    for sop_class in classes:
        entity.add_supported_context(sop_class, list(syntaxes))
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, on_store)])
    peer.port = server.server_address[1]
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
