"""A scanner made of pynetdicom for tests: sends studies, and asks whether somebody is there."""

import io
import socket
from collections.abc import Sequence

import pydicom
from pynetdicom import AE
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
    line = association.dul.socket.socket  # pynetdicom forgets to close it where the peer was killed
    statuses = []
    for data in files:
        try:
            found = association.send_c_store(pydicom.dcmread(io.BytesIO(data)))
        except (RuntimeError, ValueError):  # the association ended meanwhile
            found = {}
        statuses.append(int(found.Status) if "Status" in found else -1)
    if association.is_established:
        association.release()
    line.close()
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
