"""What a header says beside geometry and pixels: body part, contrast, tube voltage, kernel, age, scanner.

For the eligibility gate (``gate.py``) and the drift page. Read from the same bytes as the slice by the same bounded
parser, in a pass of its own so that packing does not pay for it: 0.1 ms a file. Nothing here can refuse a file:
what is absent or malformed is "" or None, and the gate's rules say what that means. No name of a person is read; of
the dates only an age is kept.

Source: PS3.3 C.7.2.2 (patient study), C.7.3.1 (general series), C.7.6.4 (contrast), C.8.2.1 (CT image), C.8.15.3 (the
functional groups of enhanced CT).
"""

import datetime
from dataclasses import dataclass

from fastich.dicom_header import SERIES_UID, SOP_UID, STUDY_UID, number, to_number
from fastich.dicom_parse import DEFLATED, SHARED_GROUPS, Elements, parse, read_meta
from fastich.errors import DicomError

STUDY_DATE, SERIES_DATE, ACQUISITION_DATE = 0x00080020, 0x00080021, 0x00080022
IMAGE_TYPE, MANUFACTURER, MODEL = 0x00080008, 0x00080070, 0x00081090
STUDY_DESCRIPTION, SERIES_DESCRIPTION = 0x00081030, 0x0008103E
BIRTH_DATE, AGE = 0x00100030, 0x00101010
CONTRAST_AGENT, CONTRAST_SEQUENCE, BODY_PART = 0x00180010, 0x00180012, 0x00180015
KVP, PROTOCOL, KERNEL = 0x00180060, 0x00181030, 0x00181210
RECONSTRUCTION, X_RAY_DETAILS = 0x00189314, 0x00189325
TAGS = frozenset(
    {STUDY_DATE, SERIES_DATE, ACQUISITION_DATE, IMAGE_TYPE, MANUFACTURER, MODEL, STUDY_DESCRIPTION, SERIES_DESCRIPTION}
    | {BIRTH_DATE, AGE, CONTRAST_AGENT, CONTRAST_SEQUENCE, BODY_PART, KVP, PROTOCOL, KERNEL, SHARED_GROUPS}
)
UID_TAGS = frozenset((STUDY_UID, SERIES_UID, SOP_UID))
DAYS_OF = {"D": 1.0, "W": 7.0, "M": 30.4375, "Y": 365.25}
"""Days of the units of an age string (PS3.5 6.2, AS)."""
MAX_TEXT = 200
"""Characters kept of a text; the longest VR that is read (LO) has 64, a malformed one could have 64 K."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateFields:
    """What one file says; "" and None where it does not. ``kernel``'s parts are joined by a backslash."""

    body_part: str = ""
    study_description: str = ""
    series_description: str = ""
    protocol_name: str = ""
    image_type: str = ""
    contrast_agent: str = ""
    kernel: str = ""
    manufacturer: str = ""
    model: str = ""
    kvp: float | None = None
    age_years: float | None = None


NOTHING = GateFields()


@dataclass(frozen=True, kw_only=True, slots=True)
class Uids:
    """Which study, series and instance a file says that it is of; "" where it does not."""

    study: str = ""
    series: str = ""
    sop: str = ""


def read_uids(data: bytes) -> Uids:
    """The UIDs of a file's bytes, of damaged files too as far as they go."""
    try:
        meta = read_meta(data)
        if meta.transfer_syntax == DEFLATED:
            return Uids(sop=meta.sop_uid)
        elements = parse(data, meta.dataset_offset, meta.transfer_syntax, UID_TAGS)
    except DicomError:
        return Uids()
    return Uids(
        study=elements.text(STUDY_UID), series=elements.text(SERIES_UID), sop=elements.text(SOP_UID) or meta.sop_uid
    )


def read_fields(data: bytes) -> GateFields:
    """The fields of a file's bytes; ``NOTHING`` of a file that is damaged or deflated, which other code refuses."""
    try:
        meta = read_meta(data)
        if meta.transfer_syntax == DEFLATED:
            return NOTHING
        return _fields(parse(data, meta.dataset_offset, meta.transfer_syntax, TAGS))
    except DicomError:
        return NOTHING


def _fields(elements: Elements) -> GateFields:
    shared = next(iter(elements.items(SHARED_GROUPS)), None)
    return GateFields(
        body_part=_text(elements, BODY_PART),
        study_description=_text(elements, STUDY_DESCRIPTION),
        series_description=_text(elements, SERIES_DESCRIPTION),
        protocol_name=_text(elements, PROTOCOL),
        image_type=_text(elements, IMAGE_TYPE),
        contrast_agent=_contrast(elements),
        kernel=_text(_holder(elements, shared, RECONSTRUCTION, KERNEL), KERNEL),
        manufacturer=_text(elements, MANUFACTURER),
        model=_text(elements, MODEL),
        kvp=_positive(number(_holder(elements, shared, X_RAY_DETAILS, KVP), KVP)),
        age_years=age_years(elements),
    )


def _text(elements: Elements, tag: int) -> str:
    return "\\".join(elements.texts(tag))[:MAX_TEXT]


def _holder(elements: Elements, shared: Elements | None, group: int, tag: int) -> Elements:
    """Who says ``tag``: the shared group of an enhanced file where it has one, else the top level."""
    items = shared.items(group)[:1] if shared is not None else []
    return next((item for item in items if tag in item), elements)


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def _contrast(elements: Elements) -> str:
    """The agent's name, or that a sequence of agents stands there (enhanced CT; its items are not needed)."""
    name = _text(elements, CONTRAST_AGENT)
    if name or CONTRAST_SEQUENCE not in elements:
        return name
    raw = elements.raw(CONTRAST_SEQUENCE)
    filled = bool(elements.items(CONTRAST_SEQUENCE)) if raw is None else bool(raw)
    return "a sequence of agents" if filled else ""


def age_years(elements: Elements) -> float | None:
    """Years by PatientAge, else from the birth date to the study's; None where neither says. An age of 0 says nothing:
    anonymisers write it.
    """
    text = elements.text(AGE)
    count = to_number(text[:-1]) if text[-1:] in DAYS_OF else None
    if count:
        return count * DAYS_OF[text[-1]] / DAYS_OF["Y"]
    born = _date(elements.text(BIRTH_DATE))
    seen = next(filter(None, (_date(elements.text(tag)) for tag in (STUDY_DATE, SERIES_DATE, ACQUISITION_DATE))), None)
    if born is None or seen is None or seen <= born:
        return None
    return (seen - born).days / DAYS_OF["Y"]


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.datetime.strptime(text, "%Y%m%d").date()
    except ValueError:
        return None
