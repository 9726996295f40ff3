"""What is said of what arrives: a line of the log, and the audit trail. Studies by UID, senders by AE title or user.

A study is one line of the audit trail for each sender, not one for each of its hundreds of instances. What fails is one
line a minute for an address and kind, with how many it stands for: each line is an fsync.
"""

import logging
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from fastich.serve.audit import FAILURE, SUCCESS, Audit, Seldom, times
from fastich.serve.entities import Origin, Receipt
from fastich.serve.ingest import Ingest
from fastich.serve.spool import IngestRefused

log = logging.getLogger(__name__)
REMEMBERED = 1000
"""Studies and senders whose line was written; beyond that a study that is still arriving gets a second line."""


class Reception:
    """Hears of every object and every caller, from any thread."""

    def __init__(self, audit: Audit) -> None:
        self._audit, self._seldom = audit, Seldom()
        self._known: OrderedDict[tuple[str, ...], None] = OrderedDict()
        self._lock = threading.Lock()

    def stored(self, receipt: Receipt, origin: Origin) -> None:
        """An object was taken in."""
        who = origin.sender or origin.way
        if receipt.conflict:
            log.warning("study %s: other content under a known UID, from %s: kept aside", receipt.study_uid, who)
        if self._is_new(receipt.study_uid, who, origin.address):
            log.info("study %s: arriving from %s (%s)", receipt.study_uid, who, origin.way)
            detail = f"{origin.way} {origin.address}".strip()
            self._audit.record("receive", who=who, outcome=SUCCESS, study_uid=receipt.study_uid, detail=detail)

    def refused(self, refusal: IngestRefused, origin: Origin) -> None:
        """An object was not taken in."""
        who, reason = origin.sender or origin.way, refusal.reason.value
        if number := self._seldom.count(origin.address or origin.way, reason):
            log.warning("an object from %s (%s) was refused: %s%s", who, origin.way, refusal, times(number))
            self._audit.record("refused", who=who, outcome=FAILURE, detail=reason + times(number))

    def closed(self, refusal: IngestRefused) -> None:
        """Nothing can be taken in; whoever asked was told to come back."""
        if number := self._seldom.count("closed", refusal.reason.value):
            log.warning("nothing is taken in, senders are told to come back: %s%s", refusal, times(number))

    def heard(self, event: str, values: dict[str, Any]) -> None:
        """Something happened to a connection or the watched folder (``receive.reasons.Report``)."""
        who = str(values.get("calling") or values.get("address") or values.get("way", ""))
        reason = str(values.get("reason", ""))
        is_told = "detail" in values  # ``accept`` refused it, and said so
        if event in ("rejected", "cut", "error") or (event == "refused" and not is_told):
            if number := self._seldom.count(str(values.get("address", who)), event):
                log.warning("%s: connection %s: %s%s", who, event, reason, times(number))
                self._audit.record("refused", who=who, outcome=FAILURE, detail=f"{event}: {reason}{times(number)}")
        elif event == "waiting":
            log.warning("watched folder: files wait: %s", reason)

    def _is_new(self, *key: str) -> bool:
        with self._lock:
            is_new = key not in self._known
            self._known[key] = None
            self._known.move_to_end(key)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return is_new


class HeardIngest(Ingest):
    """The door of the spool, with somebody who listens at it."""

    reception: Reception

    def check_capacity(self) -> None:
        """As ``Ingest.check_capacity``."""
        try:
            super().check_capacity()
        except IngestRefused as refusal:
            self.reception.closed(refusal)
            raise

    def accept(self, temporary: Path, origin: Origin, *, announced: tuple[str, str] | None = None) -> Receipt:
        """As ``Ingest.accept``."""
        try:
            receipt = super().accept(temporary, origin, announced=announced)
        except IngestRefused as refusal:
            self.reception.refused(refusal, origin)
            raise
        self.reception.stored(receipt, origin)
        return receipt
