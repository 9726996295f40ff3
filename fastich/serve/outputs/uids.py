"""UIDs of what we write: the same result always has the same UID, so sending it again is sending the same object.

Source: PS3.5 section 9.1 (form of a UID) and B.2 (2.25 and a 128-bit integer).
"""

import hashlib
import re
from collections.abc import Iterable

ROOT = "2.25."
NUM_BYTES = 16
"""Of a SHA-256: 128 bits are at most 39 digits, 44 characters with the root."""
MAX_CHARACTERS = 64
LEGAL = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")


def of_result(kind: str, study_uid: str, model_sha256: str, scored_sop_uids: Iterable[str], said: str = "") -> str:
    """The UID of one ``kind`` of object about one result.

    Args:
        kind: sr, sc, or what else needs a UID of its own, such as a series.
        study_uid: of the study that was scored.
        model_sha256: of the model file that scored it.
        scored_sop_uids: of the instances that were scored, in any order.
        said: digest of what is said of them, for other thresholds or reasons on the same slices make another object.
    """
    return of_parts(kind, study_uid, model_sha256, said, *sorted(scored_sop_uids))


def of_parts(*parts: str) -> str:
    """A legal UID of texts, the same for the same texts."""
    plain = "\0".join(parts)  # no part can hold it, so (ab, c) and (a, bc) differ
    return ROOT + str(int.from_bytes(hashlib.sha256(plain.encode()).digest()[:NUM_BYTES], "big"))


def is_legal(uid: str) -> bool:
    """Tell whether a UID has the form that PS3.5 9.1 asks for."""
    return len(uid) <= MAX_CHARACTERS and LEGAL.fullmatch(uid) is not None


def legal(uid: str) -> str:
    """``uid`` where it is legal, else the legal one that stands for it.

    The data of the RSNA 2019 challenge call a study ``ID_5c8b5d701f``; what we write of it says 2.25.<its hash>, in
    every object the same. The server takes in no such object; this holds for whoever builds results from files.
    """
    return uid if is_legal(uid) else of_parts("legal", uid)
