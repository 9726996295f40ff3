"""What a received file says it is: its UIDs, what the worklist shows of it, and hashes that tell copies apart.

Only the first 8 MiB are parsed, whatever the size of the file, so memory does not follow the sender's wishes; UIDs
stand in the groups at the start. The rest is read once, to be hashed. Nothing is inflated or decoded.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from fastich.dicom_header import (
    BITS_STORED,
    COLUMNS,
    HIGH_BIT,
    INTERCEPT,
    MODALITY_LUT,
    ORIENTATION,
    PHOTOMETRIC,
    PIXEL_SPACING,
    POSITION,
    RESCALE_TYPE,
    ROWS,
    SIGNED,
    SLOPE,
    THICKNESS,
    TILT,
)
from fastich.dicom_parse import (
    DEFLATED,
    FRAME_GROUPS,
    MEDIA_DIRECTORY,
    SHARED_GROUPS,
    Elements,
    FileMeta,
    decode_text,
    decode_words,
    parse,
    read_meta,
)
from fastich.dicom_scan import CHARACTER_SET, PIXEL_DATA
from fastich.errors import DicomError
from fastich.serve.entities import Description, Refused
from fastich.serve.spool import IngestRefused

HEAD_BYTES = 8 * 2**20
"""An uncompressed slice is 0.5 MiB; of a larger object the hash of the pixel data is left out."""
CHUNK_BYTES = 2**20
MAX_WORDS = 256
"""Characters of a text that is shown; the longest of them, LO and PN components, have 64 (PS3.5 table 6.2-1)."""

SOP_CLASS, SOP_UID, STUDY_UID, SERIES_UID = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
NAMES = {
    SOP_CLASS: "SOPClassUID",
    SOP_UID: "SOPInstanceUID",
    STUDY_UID: "StudyInstanceUID",
    SERIES_UID: "SeriesInstanceUID",
}
WORDS = {
    "patient_id": 0x00100020,
    "patient_name": 0x00100010,
    "accession_number": 0x00080050,
    "study_date": 0x00080020,
    "study_time": 0x00080030,
    "study_description": 0x00081030,
}
NUMBERS = (ROWS, COLUMNS, BITS_STORED, HIGH_BIT, SIGNED)
MEANING = (PHOTOMETRIC, PIXEL_SPACING, INTERCEPT, SLOPE, RESCALE_TYPE, THICKNESS, TILT, POSITION, ORIENTATION)
"""What makes Hounsfield units of the pixel data, and says where they lie: another value makes it another image."""
NESTED_MEANING = (MODALITY_LUT, SHARED_GROUPS, FRAME_GROUPS)
"""Sequences that may say so instead; such an object is only known by its whole content."""
TAGS = frozenset({*NAMES, *WORDS.values(), CHARACTER_SET, PIXEL_DATA, *NUMBERS, *MEANING, *NESTED_MEANING})

UID = re.compile(r"(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*", re.ASCII)
"""PS3.5 section 9.1: components of digits without leading zeros."""
MAX_UID = 64
FORBIDDEN = frozenset({DEFLATED, "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
"""Deflated data sets, JPIP's among them: a megabyte of them inflates to gigabytes (PS3.5 A.5, A.7, A.9)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a file is. ``content_sha256`` is of the data set, ``pixel_sha256`` of the image: its pixel data and what
    makes Hounsfield units of them and says where they lie; "" where there is none, or where sequences say so.
    """

    sop_uid: str
    sop_class_uid: str
    study_uid: str
    series_uid: str
    description: Description
    size_bytes: int
    object_name: str
    content_sha256: str
    pixel_sha256: str


def identify(path: Path) -> Identity:
    """Read what the DICOM file at ``path`` is.

    Raises:
        IngestRefused: MALFORMED, FORBIDDEN_SYNTAX or INVALID_UID.
        OSError: it cannot be read.
    """
    with path.open("rb") as handle:
        head = handle.read(HEAD_BYTES)
    try:
        meta = read_meta(head)
        _check_kind(meta)
        elements = parse(head, meta.dataset_offset, meta.transfer_syntax, TAGS)
    except DicomError as error:
        raise IngestRefused(Refused.MALFORMED, error.detail) from error
    uids = {name: uid_of(elements, tag, _meta_value(meta, tag)) for tag, name in NAMES.items()}
    size_bytes, object_name, content_sha256 = _hashes(path, meta.dataset_offset)
    is_whole = size_bytes <= HEAD_BYTES
    return Identity(
        sop_uid=uids["SOPInstanceUID"],
        sop_class_uid=uids["SOPClassUID"],
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        description=describe(elements),
        size_bytes=size_bytes,
        object_name=object_name,
        content_sha256=content_sha256,
        pixel_sha256=_pixel_sha256(elements) if is_whole else "",
    )


def _check_kind(meta: FileMeta) -> None:
    if meta.transfer_syntax in FORBIDDEN:
        raise IngestRefused(Refused.FORBIDDEN_SYNTAX, f"deflated ({meta.transfer_syntax}); send it uncompressed")
    if meta.sop_class == MEDIA_DIRECTORY:
        raise IngestRefused(Refused.MALFORMED, "a DICOMDIR index is no object of a study")


def _meta_value(meta: FileMeta, tag: int) -> str:
    """What the file meta says where the data set leaves an element out (the RSNA files have no SOPClassUID)."""
    return {SOP_CLASS: meta.sop_class, SOP_UID: meta.sop_uid}.get(tag, "")


def uid_of(elements: Elements, tag: int, otherwise: str) -> str:
    """A UID that follows the rules.

    Raises:
        IngestRefused: INVALID_UID; the text itself is not repeated, for it may hold anything.
    """
    raw = elements.raw(tag)
    text = decode_text(bytes(raw)) if raw else otherwise
    if not is_uid(text):
        found = f"{len(text)} characters that break the rule" if text else "nothing"
        raise IngestRefused(
            Refused.INVALID_UID, f"{NAMES[tag]}: expected 1 to {MAX_UID} digits and dots, found {found}"
        )
    return text


def is_uid(text: str) -> bool:
    """Tell whether ``text`` is a UID by PS3.5 section 9.1."""
    return len(text) <= MAX_UID and UID.fullmatch(text) is not None


def describe(elements: Elements) -> Description:
    """What the worklist shows, in Unicode, without control characters."""
    character_sets = elements.texts(CHARACTER_SET)
    return Description(**{name: _words(elements.raw(tag), character_sets) for name, tag in WORDS.items()})


def _words(raw: bytes | memoryview | None, character_sets: tuple[str, ...]) -> str:
    text = decode_words(bytes(raw), character_sets) if raw else ""
    return "".join(letter for letter in text if letter.isprintable())[:MAX_WORDS]


def _pixel_sha256(elements: Elements) -> str:
    raw = elements.raw(PIXEL_DATA)
    if not raw or any(tag in elements for tag in NESTED_MEANING):
        return ""
    meaning = [elements.whole(tag) for tag in NUMBERS], [_values(elements, tag) for tag in MEANING]
    digest = hashlib.sha256(repr(meaning).encode())
    digest.update(raw)
    return digest.hexdigest()


def _values(elements: Elements, tag: int) -> list[float | str]:
    """Numbers as such, for 1 and 1.0 are the same; whatever else as it stands."""
    return [_value(text) for text in elements.texts(tag)]


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _hashes(path: Path, dataset_offset: int) -> tuple[int, str, str]:
    """Size of a file, its SHA-256, and the SHA-256 of what stands behind the file meta."""
    whole, content = hashlib.sha256(), hashlib.sha256()
    size_bytes = 0
    with path.open("rb") as handle:
        meta = handle.read(dataset_offset)
        whole.update(meta)
        size_bytes += len(meta)
        while chunk := handle.read(CHUNK_BYTES):
            whole.update(chunk)
            content.update(chunk)
            size_bytes += len(chunk)
    return size_bytes, whole.hexdigest(), content.hexdigest()
