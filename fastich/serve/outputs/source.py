"""What an output takes over from the images that it is about: who the patient is, and which study it belongs to.

Values are carried over as the bytes that they are, with the character set that they are in, so that a name in Kanji or
Cyrillic is the same name in the PACS afterwards. Everything that we add is ASCII, which every character set of DICOM
holds (PS3.3 C.12.1.1.2). Times are written as the site's clock shows them, as in the images.
"""

import io
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple

from pydicom import config, dcmread
from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import validate_value

import fastich
from fastich.errors import FastichError
from fastich.serve.outputs import uids

IMPLEMENTATION_UID = uids.of_parts("fastich", "implementation")
IMPLEMENTATION_NAME = f"FASTICH_{fastich.__version__}"[:16]
IDENTITY = ("PatientName", "PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID", "ReferringPhysicianName")
"""Taken over whatever they hold: a PACS matches studies by them."""
DESCRIPTION = (
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDate",
    "StudyTime",
    "StudyDescription",
    "TimezoneOffsetFromUTC",
)
"""Taken over where they are legal, else left empty or out: an illegal date would make our object illegal."""
REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyTime",
)
"""Type 2: there, if only empty (PS3.3 C.7.1.1, C.7.2.1)."""
SEXES = ("M", "F", "O")
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
"""Said of a picture made from a picture that was compressed with loss, too (PS3.3 C.7.6.1.1.5)."""
CHARACTER_SET = "SpecificCharacterSet"
READ = (*IDENTITY, *DESCRIPTION, *LOSSY)


class Stamp(NamedTuple):
    """A moment as DICOM writes it: DA and TM."""

    date: str
    time: str


def read_header(path: Path) -> Dataset:
    """The elements of ``READ`` in a file, their values still raw.

    Raises:
        FastichError: the file is gone or cannot be read. Its name is a hash; no patient's data is in the message.
    """
    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=[CHARACTER_SET, *READ])
    except FileNotFoundError:
        raise FastichError(
            f"{path.name}: expected in the spool, found nothing; retention may have deleted it"
        ) from None
    except Exception as error:  # pydicom raises whatever it stumbles over
        raise FastichError(f"{path.name}: cannot be read ({type(error).__name__})") from error


def inherit(made: Dataset, header: Dataset) -> None:
    """Give ``made`` patient, study and character set of ``header``; its other texts are ASCII."""
    for keyword in REQUIRED:
        setattr(made, keyword, None)
    for keyword, raw in _raw(header, (*IDENTITY, *DESCRIPTION)):
        if keyword in IDENTITY or _is_legal(keyword, raw):
            made[raw.tag] = raw
    if CHARACTER_SET in header:
        made[CHARACTER_SET] = header[CHARACTER_SET]


def inherit_lossy(made: Dataset, header: Dataset) -> None:
    """Give a picture what its source says of compression with loss."""
    for keyword, raw in _raw(header, LOSSY):
        if _is_legal(keyword, raw):
            made[raw.tag] = raw


def _raw(header: Dataset, keywords: tuple[str, ...]) -> Iterator[tuple[str, RawDataElement]]:
    """Elements as raw bytes, with a VR: implicit VR has none."""
    for keyword in keywords:
        tag = Tag(keyword)
        element = header.get_item(tag) if tag in header else None
        if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
            yield keyword, element._replace(VR=dictionary_VR(tag), is_implicit_VR=False, is_little_endian=True)


def _is_legal(keyword: str, raw: RawDataElement) -> bool:
    """Tell whether a value may stand in an object of ours, by its VR, and of a sex by its three values."""
    text = (raw.value or b"").decode("latin-1").strip(" \0")
    if keyword == "PatientSex":
        return not text or text in SEXES
    try:
        for part in text.split("\\"):
            validate_value(raw.VR or "UN", part, config.RAISE)
    except ValueError:
        return False
    return True


def stamp(created_at: float, header: Dataset) -> Stamp:
    """A moment on the clock of the site: the offset that the images state, else this machine's time zone."""
    offset = str(header.get("TimezoneOffsetFromUTC") or "")
    zone = None
    if len(offset) == 5 and offset[0] in "+-" and offset[1:].isdigit():
        minutes = int(offset[1:3]) * 60 + int(offset[3:])
        zone = timezone((-1 if offset[0] == "-" else 1) * timedelta(minutes=minutes))
    at = datetime.fromtimestamp(created_at, zone)
    return Stamp(at.strftime("%Y%m%d"), at.strftime("%H%M%S.%f"))


def put_dates(made: Dataset, at: Stamp) -> None:
    """Say of series, content and instance that they are of one moment."""
    for what in ("Series", "Content", "InstanceCreation"):
        setattr(made, f"{what}Date", at.date)
        setattr(made, f"{what}Time", at.time)


def to_bytes(made: Dataset) -> bytes:
    """A Part 10 file in explicit VR little endian, which every receiver must take (PS3.5 10.1)."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = made.SOPClassUID, made.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = UID(IMPLEMENTATION_UID), IMPLEMENTATION_NAME
    plain = Dataset({tag: made.get_item(tag) for tag in made.keys()})  # noqa: SIM118 - raw elements stay raw
    charset = made.get(CHARACTER_SET)
    plain.set_original_encoding(False, True, convert_encodings(charset) if charset else default_encoding)
    plain.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, plain, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return buffer.getvalue()


def ascii_text(text: Any) -> str:
    """``text`` in printable ASCII, on one line: what we add must be legal, and the same, in any character set.

    Backslash separates values, and with the tilde it is another letter in ISO_IR 13 (PS3.3 table C.12-2).
    """
    plain = str(text).replace("\\", "/").replace("~", "-")
    return "".join(char if " " <= char <= "~" else "?" for char in plain)
