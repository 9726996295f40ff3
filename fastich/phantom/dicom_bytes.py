r"""One CT slice as a DICOM file, byte by byte: the 22-element header of the RSNA 2019 files and nothing else.

Written by hand, not with pydicom, for three reasons: the quirks (ids that are no legal UIDs, ``00036\00036``, implicit
VR without group length) are the point; the bytes depend on no library's version; and readers are tested against an
independent writer. Source: PS3.5 section 7, PS3.10 section 7.1, headers of the RSNA 2019 data set.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IMPLICIT_VR, EXPLICIT_VR = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
IMPLEMENTATION_UID = "2.25.117431980162411560118311214911834715137"
LONG_VRS = ("OB", "OW", "UN")


@dataclass(frozen=True, kw_only=True)
class SliceFile:
    """What one file says. Lengths in mm; ``pixels`` int16 (16 bits, signed) or uint16 (12 bits) [H, W]."""

    sop_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    position_mm: Sequence[float]
    orientation: Sequence[float]
    pixel_mm: float
    intercept: int
    window: tuple[str, str]
    pixels: NDArray[np.uint16] | NDArray[np.int16]
    implicit_vr: bool


def legal_uid(text: str) -> str:
    """A legal UID made from any text: 2.25 and 120 bits of its SHA-256 (PS3.5 B.2 form)."""
    return "2.25." + str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:15], "big"))


def encode(file: SliceFile) -> bytes:
    """The bytes of the file: preamble, meta (without its group length if implicit), 22 elements."""
    syntax = IMPLICIT_VR if file.implicit_vr else EXPLICIT_VR
    meta = b"".join(
        (
            _explicit(0x0002, 0x0001, "OB", b"\x00\x01"),
            _explicit(0x0002, 0x0002, "UI", _uid(CT_IMAGE_STORAGE)),
            _explicit(0x0002, 0x0003, "UI", _uid(legal_uid(file.sop_uid))),
            _explicit(0x0002, 0x0010, "UI", _uid(syntax)),
            _explicit(0x0002, 0x0012, "UI", _uid(IMPLEMENTATION_UID)),
        )
    )
    if not file.implicit_vr:
        meta = _explicit(0x0002, 0x0000, "UL", struct.pack("<I", len(meta))) + meta
    element = _implicit if file.implicit_vr else _explicit
    body = b"".join(element(*each) for each in _elements(file))
    return b"\0" * 128 + b"DICM" + meta + body


def _elements(file: SliceFile) -> list[tuple[int, int, str, bytes]]:
    signed = file.pixels.dtype == np.int16
    bits = 16 if signed else 12
    rows, columns = file.pixels.shape
    return [
        (0x0008, 0x0018, "UI", _uid(file.sop_uid)),
        (0x0008, 0x0060, "CS", _text("CT")),
        (0x0010, 0x0020, "LO", _text(file.patient_id)),
        (0x0020, 0x000D, "UI", _uid(file.study_uid)),
        (0x0020, 0x000E, "UI", _uid(file.series_uid)),
        (0x0020, 0x0010, "SH", b""),
        (0x0020, 0x0032, "DS", _numbers(file.position_mm)),
        (0x0020, 0x0037, "DS", _numbers(file.orientation)),
        (0x0028, 0x0002, "US", _short(1)),
        (0x0028, 0x0004, "CS", _text("MONOCHROME2")),
        (0x0028, 0x0010, "US", _short(rows)),
        (0x0028, 0x0011, "US", _short(columns)),
        (0x0028, 0x0030, "DS", _numbers((file.pixel_mm, file.pixel_mm))),
        (0x0028, 0x0100, "US", _short(16)),
        (0x0028, 0x0101, "US", _short(bits)),
        (0x0028, 0x0102, "US", _short(bits - 1)),
        (0x0028, 0x0103, "US", _short(int(signed))),
        (0x0028, 0x1050, "DS", _text(file.window[0])),
        (0x0028, 0x1051, "DS", _text(file.window[1])),
        (0x0028, 0x1052, "DS", _text(f"{file.intercept:.6f}" if signed else str(file.intercept))),
        (0x0028, 0x1053, "DS", _text("1")),
        (0x7FE0, 0x0010, "OW", np.ascontiguousarray(file.pixels, file.pixels.dtype.newbyteorder("<")).tobytes()),
    ]


def _explicit(group: int, number: int, vr: str, value: bytes) -> bytes:
    if vr in LONG_VRS:
        return struct.pack("<HH2sHI", group, number, vr.encode(), 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr.encode(), len(value)) + value


def _implicit(group: int, number: int, vr: str, value: bytes) -> bytes:
    del vr
    return struct.pack("<HHI", group, number, len(value)) + value


def _text(value: str) -> bytes:
    return value.encode("ascii") + b" " * (len(value) % 2)


def _uid(value: str) -> bytes:
    return value.encode("ascii") + b"\0" * (len(value) % 2)


def _short(value: int) -> bytes:
    return struct.pack("<H", value)


def _numbers(values: Sequence[float]) -> bytes:
    """Decimal strings of at most 16 characters each (PS3.5 section 6.2, DS)."""
    return _text("\\".join(f"{value:.6f}"[:16] for value in values))
