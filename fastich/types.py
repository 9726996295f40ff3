"""The nouns that cross module borders: a slice, its header, and the named reasons why a file is left out.

Ground floor: numpy and the standard library only.
"""

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HuArray = NDArray[np.int16]
"""Hounsfield units, int16, [H, W] or [N, H, W]."""


class RejectReason(enum.Enum):
    """Why a file, or one frame of it, is not used. The value is what reports, CSV files and JSON show."""

    EMPTY_FILE = "empty file"
    UNREADABLE = "unreadable file"
    NOT_DICOM = "not DICOM"
    DAMAGED_HEADER = "damaged header"
    TOO_LARGE = "too large"
    DICOMDIR = "DICOMDIR index"
    NO_PIXELS = "no pixel data"
    NOT_CT = "not CT"
    LOCALIZER = "localizer"
    DERIVED = "derived or secondary image"
    COLOUR = "colour image"
    UNSUPPORTED_PIXELS = "unsupported pixel format"
    UNSUPPORTED_SYNTAX = "unsupported transfer syntax"
    DAMAGED_PIXELS = "damaged pixels"
    DECODER_FAILED = "decoder failed"
    BAD_RESCALE = "bad rescale"
    NOT_HOUNSFIELD = "not Hounsfield units"
    DUPLICATE = "duplicate instance"
    CONFLICTING_DUPLICATE = "same UID, other pixels"
    UNLABELLED = "no label"
    NOT_SAMPLED = "not sampled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reject:
    """One input left out: its path as found below the input folder, the named reason, and one line of detail."""

    path: str
    reason: RejectReason
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceHeader:
    """Everything about one CT slice but its pixels; small enough to hold for a whole data set.

    Units and frames: millimetres in the patient coordinate system (PS3.3 C.7.6.2.1.1). ``None`` where the header
    does not say. ``path`` is relative to the folder that was read; ``frame`` counts from 0 in a multi-frame file.
    """

    path: str
    frame: int
    sop_uid: str
    study_uid: str
    series_uid: str
    patient_id: str
    rows: int
    columns: int
    pixel_spacing_mm: tuple[float, float] | None
    position_mm: tuple[float, float, float] | None
    orientation: tuple[float, float, float, float, float, float] | None
    thickness_mm: float | None
    header_tilt_deg: float | None
    instance_number: int | None
    transfer_syntax: str
    bits_stored: int
    signed: bool
    encoding: str
    window: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """One decoded slice: its header and its Hounsfield units, int16 [H, W]."""

    header: SliceHeader
    hu: HuArray
