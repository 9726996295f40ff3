"""One object to one DICOMweb server by STOW-RS.

Source: PS3.18 10.5 (Store transaction), PS3.18 8.6.1 (multipart/related), PS3.18 table 10.5.3-1 (status codes).
"""

import json
from typing import Any

from fastich.serve.config import Destination
from fastich.serve.outputs import http_client
from fastich.serve.outputs.dimse_client import DUPLICATE, MISMATCH, PERMANENT
from fastich.serve.outputs.send_error import SendError

FAILED, REASON = "00081198", "00081197"
"""Failed SOP Sequence, Failure Reason."""


def send(where: Destination, sop_uid: str, data: bytes, timeout_s: float) -> str:
    """Store the Part 10 file ``data`` at a server; "" or the server's warning in words.

    Raises:
        SendError: it was not stored, as far as is known.
        FastichError: the file of the token cannot be read.
    """
    name = f"{where.name} (STOW-RS)"
    boundary = f"fastich-{sop_uid}"  # a UID of ours: 44 characters of a SHA-256, not in the data by chance
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary="{boundary}"',
        "Accept": "application/dicom+json",
    }
    if where.token_file is not None:
        headers["Authorization"] = f"Bearer {http_client.read_secret(where.token_file, f'{where.name}: token_file')}"
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    body = head + data + f"\r\n--{boundary}--\r\n".encode()
    try:
        answer = http_client.post(name, where.url.rstrip("/") + "/studies", body, headers, where.tls, timeout_s)
    except http_client.RefusedError as error:
        reasons = _failures(error.body)
        if not reasons:
            raise
        return _judge(name, reasons[0])
    reasons = _failures(answer)  # 202: some were stored; of one, its failure says that it was not
    return _judge(name, reasons[0]) if reasons else ""


def _judge(name: str, reason: int) -> str:
    if reason == DUPLICATE:
        return "0x0111: it was there already"
    permanent = reason in PERMANENT or reason in MISMATCH
    raise SendError(f"{name}: not stored, reason 0x{reason:04X}", permanent=permanent)


def _failures(body: bytes) -> list[int]:
    """Failure reasons of an answer in DICOM JSON; [] where it has none or is something else."""
    try:
        found: Any = json.loads(body)
        items = found.get(FAILED, {}).get("Value", [])
        return [int(item[REASON]["Value"][0]) for item in items]
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
        return []
