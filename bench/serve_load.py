"""An open-loop sender: studies leave at their times, whether or not earlier ones were taken in.

Each study has a thread and an association (or STOW-RS request) of its own. What is refused for now (0xA7xx, a rejected
association, 503) is tried again like a PACS does it, and counted; what was acknowledged is written down, for it must be
there afterwards. A sender that falls behind its own times would measure itself: how late it was is part of the result.
"""

import http.client
import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pynetdicom import AE, _config
from pynetdicom.sop_class import CTImageStorage
from serve_studies import OutgoingStudy, Template

_config.STORE_SEND_CHUNKED_DATASET = True  # files go out as they are: parsing them again would be the sender's cost
RETRY_S = 1.0
OUT_OF_RESOURCES = 0xA700
"""To 0xA7FF (PS3.4 B.2.3): come back later."""
BUSY = (429, 503, 507)
REFERENCED, FAILED = "00081199", "00081198"
"""Sequences of a STOW-RS answer (PS3.18 I.2)."""
EXPLICIT = "1.2.840.10008.1.2.1"
BOUNDARY = "fastich-bench-boundary"


@dataclass
class Sent:
    """What became of one study at the sender: slices acknowledged, when the last one was, how often it was refused."""

    study: OutgoingStudy
    due_at: float
    started_at: float = 0.0
    acknowledged: int = 0
    last_ack_at: float | None = None
    refusals: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every slice was acknowledged."""
        return self.acknowledged == len(self.study.sop_uids)


Sender = Callable[[Sent, Sequence[int]], list[int]]
"""Sends slices of a study once; returns those that were not acknowledged, having written down the rest."""


def due_times(rate_per_min: float, hold_s: float, arrivals: str, seed: int) -> list[float]:
    """Seconds from the start at which studies leave: ``uniform``, or ``poisson`` at the same rate.

    At least one study leaves.
    """
    count = max(1, round(rate_per_min * hold_s / 60))
    if arrivals == "uniform":
        return [number * 60 / rate_per_min for number in range(count)]
    rng = np.random.default_rng(seed)
    drawn = max(1, int(rng.poisson(count)))
    found: list[float] = np.sort(rng.uniform(0, hold_s, drawn)).tolist()
    return found


def send_all(
    templates: Sequence[Template], due_s: Sequence[float], send: Sender, *, name: str, give_up_s: float
) -> list[Sent]:
    """Send a study at each of ``due_s`` from now on; returns when each was taken, or given up after ``give_up_s``."""
    start = time.time()
    sent = [
        Sent(study=templates[number % len(templates)].study(name, number), due_at=start + due)
        for number, due in enumerate(due_s)
    ]
    threads = [threading.Thread(target=_send, args=(one, send, one.due_at + give_up_s)) for one in sent]
    for one, thread in zip(sent, threads, strict=True):
        time.sleep(max(0.0, one.due_at - time.time()))
        thread.start()
    for thread in threads:
        thread.join()
    return sent


def _send(one: Sent, send: Sender, deadline: float) -> None:
    one.started_at = time.time()
    left: Sequence[int] = range(len(one.study.sop_uids))
    while left and time.time() < deadline:
        left = send(one, left)
        if left:
            time.sleep(RETRY_S)


def by_dimse(host: str, port: int, called: str) -> Sender:
    """C-STORE over one association."""

    def send(one: Sent, left: Sequence[int]) -> list[int]:
        sender = AE(ae_title="BENCH")
        sender.add_requested_context(CTImageStorage, EXPLICIT)
        association = sender.associate(host, port, ae_title=called, max_pdu=0)
        if not association.is_established:
            one.refusals += 1
            return list(left)
        remaining = list(left)
        with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
            for number in left:
                Path(file.name).write_bytes(one.study.file(number))
                status = _store(association, file.name)
                if status != 0:
                    _refused(one, status)
                    break
                remaining.remove(number)
                one.acknowledged, one.last_ack_at = one.acknowledged + 1, time.time()
        if association.is_established:
            association.release()
        return remaining

    return send


def _store(association: Any, path: str) -> int | None:
    """The status of one C-STORE; None where the peer is gone."""
    try:
        answer = association.send_c_store(path)
    except RuntimeError:  # not established any more
        return None
    return int(answer.Status) if "Status" in answer else None


def _refused(one: Sent, status: int | None) -> None:
    if status is not None and status & 0xFF00 == OUT_OF_RESOURCES:
        one.refusals += 1
    else:
        one.faults.append("no answer" if status is None else f"status 0x{status:04X}")


def by_stow(host: str, port: int, token: str) -> Sender:
    """STOW-RS, the study in one request."""

    def send(one: Sent, left: Sequence[int]) -> list[int]:
        body = b"".join(_part(one.study.file(number)) for number in left) + f"--{BOUNDARY}--\r\n".encode()
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}',
            "Accept": "application/dicom+json",
        }
        connection = http.client.HTTPConnection(host, port, timeout=120)
        try:
            connection.request("POST", f"/dicom-web/studies/{one.study.study_uid}", body, headers)
            answer = connection.getresponse()
            return _heard(one, left, answer.status, answer.read())
        except OSError as error:
            one.faults.append(type(error).__name__)
            return list(left)
        finally:
            connection.close()

    return send


def _part(file: bytes) -> bytes:
    return f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode() + file + b"\r\n"


def _heard(one: Sent, left: Sequence[int], status: int, body: bytes) -> list[int]:
    """Write down what a STOW-RS answer acknowledges; returns the rest."""
    if status in BUSY:
        one.refusals += 1
        return list(left)
    if status not in (200, 202):
        one.faults.append(f"HTTP {status}")
        return list(left)
    stored = {item["00081155"]["Value"][0] for item in json.loads(body).get(REFERENCED, {}).get("Value", [])}
    taken = [number for number in left if one.study.sop_uids[number] in stored]
    if taken:
        one.acknowledged, one.last_ack_at = one.acknowledged + len(taken), time.time()
    if len(taken) < len(left):
        one.refusals += 1
    return [number for number in left if number not in taken]
