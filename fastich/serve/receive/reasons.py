"""What a sender is told when an object is refused: one table of DIMSE status, STOW-RS failure reason and HTTP status.

A sender repeats what it believes to be temporary and gives up on the rest, so that the class of a code matters more
than its words: 0xA7xx, 503 and 507 mean "come back", everything else means "never again".

Source: PS3.4 table B.2-1 and PS3.7 annex C (C-STORE statuses), PS3.18 tables 10.5.3-1 and I.2-2 (STOW-RS), RFC 9110.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from fastich.serve.entities import Refused

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
"""PS3.7 C.5.9: an error of ours, which is logged here and not explained there."""
SOP_CLASS_NOT_SUPPORTED = 0x0122
"""PS3.7 C.5.6: the instance is of another class than the presentation context that it came in."""
RETRY_AFTER_S = 10

Report = Callable[[str, dict[str, Any]], None]
"""Told what happened, by any thread: a word and its values, none of which names a patient."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one reason is said in three protocols."""

    dimse_status: int
    failure_reason: int
    http_status: int
    is_temporary: bool = False


ANSWERS: dict[Refused, Answer] = {
    # Cxxx "cannot understand": the bytes are no data set. 400: "unable to store any instances due to bad syntax".
    Refused.MALFORMED: Answer(0xC000, 0xC000, 400),
    # 0117 "invalid SOP instance": the UID "implied a violation of the UID construction rules" (PS3.7 C.5.12).
    Refused.INVALID_UID: Answer(0x0117, 0xC001, 409),
    # A9xx "data set does not match SOP class" is the standard's only code for what contradicts its announcement.
    Refused.MISMATCH: Answer(0xA900, 0xA900, 409),
    # C122 "referenced transfer syntax not supported" is STOW-RS's; DIMSE negotiates, and never gets that far.
    Refused.FORBIDDEN_SYNTAX: Answer(0xC122, 0xC122, 415),
    # Not A7xx: the object will be as large the next time.
    Refused.TOO_LARGE: Answer(0xC002, 0xC002, 413),
    # A7xx "out of resources".
    Refused.STORAGE_FULL: Answer(0xA700, 0xA700, 507, is_temporary=True),
    Refused.BUSY: Answer(0xA700, 0xA700, 503, is_temporary=True),
    Refused.DATABASE: Answer(0xA700, 0xA700, 503, is_temporary=True),
}
CONFLICT = 409


def http_status(num_stored: int, reasons: Collection[Refused]) -> int:
    """The status of a request of many objects: 200 all stored, 202 some, else what its refusals have in common.

    Where nothing was stored for several reasons, one that passes by itself wins, so that the sender tries again;
    409 otherwise.
    """
    if not reasons:
        return 200
    if num_stored:
        return 202
    statuses = {ANSWERS[reason].http_status for reason in reasons}
    if len(statuses) == 1:
        return statuses.pop()
    temporary = [ANSWERS[reason].http_status for reason in reasons if ANSWERS[reason].is_temporary]
    return max(temporary, default=CONFLICT)


def http_headers(status: int) -> dict[str, str]:
    """When to come back, where that helps."""
    return {"Retry-After": str(RETRY_AFTER_S)} if status in (503, 507) else {}
