"""Raw elements of one file to checked frame headers: is this a CT slice in Hounsfield units, and how is it stored?

Each question that a file can fail has one named reason. Costs about 0.1 ms a slice. Decisions that the standard leaves
to the reader, or that files force on it:

- Modality must be CT; where it is absent the file is refused even if the SOP class says CT (never a silent score).
- ImageType DERIVED is no reason by itself: reformatted and averaged CT slices keep Hounsfield units. Refused are
  secondary captures, localizers, burned-in annotation, screen and dose pages, projections and parameter maps.
- MONOCHROME1 changes how a value is shown, not what it means (PS3.3 C.7.6.3.1.2), so HU are the same.
- RescaleIntercept must be there; a lone missing RescaleSlope counts as 1. RescaleType must be HU or absent.
- BitsStored below BitsAllocated: higher bits are masked. HighBit must be BitsStored - 1 (PS3.5 8.1.1).
- The 12-bit wrap (``fastich.hu``) is undone for slope 1. On a genuine unwrapped file with intercept 0 this changes only
  values of 3096 HU and more (dense metal), which would then be read as -1000 to -1 HU.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fastich import hu
from fastich.dicom_parse import (
    DOUBLE_PIXEL_DATA,
    FLOAT_PIXEL_DATA,
    FRAME_GROUPS,
    MEDIA_DIRECTORY,
    SHARED_GROUPS,
    Elements,
    FileMeta,
)
from fastich.dicom_scan import PIXEL_DATA
from fastich.errors import DicomError
from fastich.types import RejectReason, SliceHeader

MAX_FRAME_PIXELS = 4096 * 4096
"""Reconstructions reach 1024 x 1024, and 2048 x 2048 on photon-counting scanners."""
MAX_FILE_PIXELS = 2**29
"""2048 frames of 512 x 512, 1 GiB of HU."""

CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = (CT_IMAGE + ".1", CT_IMAGE + ".2")
"""Enhanced and Legacy Converted Enhanced CT (PS3.6 table A-1)."""
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

IMAGE_TYPE, SOP_CLASS, SOP_UID, MODALITY = 0x00080008, 0x00080016, 0x00080018, 0x00080060
PATIENT_ID, STUDY_UID, SERIES_UID, INSTANCE_NUMBER = 0x00100020, 0x0020000D, 0x0020000E, 0x00200013
THICKNESS, TILT, POSITION, ORIENTATION = 0x00180050, 0x00181120, 0x00200032, 0x00200037
SAMPLES, PHOTOMETRIC, NUM_FRAMES, ROWS, COLUMNS = 0x00280002, 0x00280004, 0x00280008, 0x00280010, 0x00280011
PIXEL_SPACING, BITS_ALLOCATED, BITS_STORED = 0x00280030, 0x00280100, 0x00280101
HIGH_BIT, SIGNED = 0x00280102, 0x00280103
BURNED_IN, WINDOW_CENTER, WINDOW_WIDTH = 0x00280301, 0x00281050, 0x00281051
INTERCEPT, SLOPE, RESCALE_TYPE, MODALITY_LUT = 0x00281052, 0x00281053, 0x00281054, 0x00283000
IN_PLANE_POSITION, PLANE_ORIENTATION, PIXEL_MEASURES = 0x00209113, 0x00209116, 0x00289110
PIXEL_TRANSFORM, FRAME_WINDOW, FRAME_CONTENT, CT_FRAME_TYPE = 0x00289145, 0x00289132, 0x00209111, 0x00189329
FRAME_TYPE, IN_STACK_NUMBER = 0x00089007, 0x00209057

TAGS = frozenset(
    {IMAGE_TYPE, SOP_CLASS, SOP_UID, MODALITY, PATIENT_ID, STUDY_UID, SERIES_UID, INSTANCE_NUMBER, THICKNESS, TILT}
    | {POSITION, ORIENTATION, SAMPLES, PHOTOMETRIC, NUM_FRAMES, ROWS, COLUMNS, PIXEL_SPACING, BITS_ALLOCATED}
    | {BITS_STORED, HIGH_BIT, SIGNED, BURNED_IN, WINDOW_CENTER, WINDOW_WIDTH, INTERCEPT, SLOPE, RESCALE_TYPE}
    | {MODALITY_LUT, SHARED_GROUPS, FRAME_GROUPS, FLOAT_PIXEL_DATA, DOUBLE_PIXEL_DATA, PIXEL_DATA}
)
"""Everything that is read from a data set, top level."""

NOT_A_SLICE = frozenset(
    {"SCREEN SAVE", "SCREEN_SAVE", "SCREENSHOT", "DOSE", "DOSE_INFO", "DOSE INFO", "DOSE REPORT", "DOSE_REPORT"}
    | {"MAX_IP", "MIN_IP", "MIP", "MINIP", "VOLUME_RENDERED", "VRT", "PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX"}
)
"""Values of ImageType, from the third on, of pages, projections and maps (PS3.3 C.8.16.1.4 and vendors' own).

Siemens also ends the fourth value of its patient protocol page with " PROT".
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelLayout:
    """How the frames of a file are stored, checked and within the caps."""

    rows: int
    columns: int
    num_frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    transfer_syntax: str

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame."""
        return self.rows * self.columns * (self.bits_allocated // 8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescale:
    """How the stored values of a frame become HU; ``wrapped`` asks for the 12-bit unwrap first."""

    slope: float
    intercept: float
    wrapped: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameHeader:
    """A slice's header, and how its stored values become HU."""

    header: SliceHeader
    rescale: Rescale


def check_kind(elements: Elements, meta: FileMeta) -> None:
    """Refuse what is not a CT slice.

    Raises:
        DicomError: DICOMDIR, NO_PIXELS, NOT_CT, DERIVED, LOCALIZER, UNSUPPORTED_PIXELS.
    """
    sop_class = elements.text(SOP_CLASS) or meta.sop_class
    if MEDIA_DIRECTORY in (meta.sop_class, sop_class):
        raise DicomError(RejectReason.DICOMDIR, "a media directory: it lists files and holds no image")
    modality = elements.text(MODALITY)
    if modality not in ("", "CT"):
        raise DicomError(RejectReason.NOT_CT, f"Modality is {modality[:16]!r}, expected 'CT'")
    if PIXEL_DATA not in elements:
        if FLOAT_PIXEL_DATA in elements or DOUBLE_PIXEL_DATA in elements:
            raise DicomError(RejectReason.UNSUPPORTED_PIXELS, "floating point pixels, expected 8 or 16 bit integers")
        if elements.is_cut:
            raise DicomError(RejectReason.DAMAGED_PIXELS, "the file ends before its pixel data do")
        raise DicomError(RejectReason.NO_PIXELS, f"no PixelData; Modality is {modality or 'absent'}")
    if not modality:
        raise DicomError(RejectReason.NOT_CT, f"Modality is absent, expected 'CT'; SOP class {sop_class or 'absent'}")
    if sop_class.startswith(SECONDARY_CAPTURE):
        raise DicomError(RejectReason.DERIVED, "Secondary Capture, expected CT Image Storage")
    if sop_class not in ("", CT_IMAGE, *ENHANCED_CT):
        raise DicomError(RejectReason.NOT_CT, f"SOP class {sop_class[:64]}, expected CT Image Storage")
    check_image_type(elements.texts(IMAGE_TYPE))
    if elements.text(BURNED_IN) == "YES":
        raise DicomError(RejectReason.DERIVED, "BurnedInAnnotation is YES: text stands in the pixels")


def check_image_type(values: tuple[str, ...]) -> None:
    """Refuse localizers, screens, dose pages, projections and maps by the values of ImageType or FrameType."""
    upper = [value.upper() for value in values[2:]]
    if "LOCALIZER" in upper or "SCOUT" in upper:
        raise DicomError(RejectReason.LOCALIZER, "ImageType " + "/".join(values)[:80])
    if NOT_A_SLICE.intersection(upper) or any(value.endswith(" PROT") for value in upper):
        raise DicomError(RejectReason.DERIVED, "ImageType " + "/".join(values)[:80])


def _whole(elements: Elements, tag: int, name: str) -> int:
    value = elements.whole(tag)
    if value is None:
        raise DicomError(RejectReason.DAMAGED_HEADER, f"{name} is absent or malformed")
    return value


def read_layout(elements: Elements, transfer_syntax: str) -> PixelLayout:
    """Read and check how pixels are stored.

    Raises:
        DicomError: COLOUR, TOO_LARGE, UNSUPPORTED_PIXELS, DAMAGED_HEADER.
    """
    photometric, samples = elements.text(PHOTOMETRIC), elements.whole(SAMPLES)
    if samples not in (None, 1) or photometric not in ("", "MONOCHROME1", "MONOCHROME2"):
        raise DicomError(RejectReason.COLOUR, f"{samples} samples a pixel, {photometric[:16]}; expected 1, MONOCHROME2")
    rows, columns = _whole(elements, ROWS, "Rows"), _whole(elements, COLUMNS, "Columns")
    num_frames = int(number(elements, NUM_FRAMES) or 1)
    if not (rows and columns and num_frames > 0):
        raise DicomError(RejectReason.DAMAGED_HEADER, f"{rows} rows x {columns} columns x {num_frames} frames")
    if rows * columns > MAX_FRAME_PIXELS or rows * columns * num_frames > MAX_FILE_PIXELS:
        limit = f"at most {MAX_FRAME_PIXELS} pixels a frame, {MAX_FILE_PIXELS} a file"
        raise DicomError(RejectReason.TOO_LARGE, f"{rows} x {columns} x {num_frames} frames, {limit}")
    allocated, stored = _whole(elements, BITS_ALLOCATED, "BitsAllocated"), _whole(elements, BITS_STORED, "BitsStored")
    high, signed = elements.whole(HIGH_BIT), _whole(elements, SIGNED, "PixelRepresentation")
    high = stored - 1 if high is None else high
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1 or signed not in (0, 1):
        found = f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high}, PixelRepresentation {signed}"
        raise DicomError(RejectReason.UNSUPPORTED_PIXELS, f"{found}; expected 8 or 16 bit, HighBit one less")
    return PixelLayout(
        rows=rows,
        columns=columns,
        num_frames=num_frames,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=bool(signed),
        transfer_syntax=transfer_syntax,
    )


class _Frame:
    """Looks an attribute up in the frame's own group, then the shared one, then the top level (PS3.3 C.7.6.16)."""

    def __init__(self, top: Elements, shared: Elements | None, own: Elements | None) -> None:
        self._top, self._layers = top, [layer for layer in (own, shared) if layer is not None]

    def holder(self, group: int, tag: int) -> Elements:
        for layer in self._layers:
            for item in layer.items(group)[:1]:
                if tag in item:
                    return item
        return self._top


def frame_headers(elements: Elements, meta: FileMeta, layout: PixelLayout, path: str) -> Iterator[FrameHeader]:
    """Yield the header of each frame in file order.

    Raises:
        DicomError: DAMAGED_HEADER, LOCALIZER, DERIVED, BAD_RESCALE, NOT_HOUNSFIELD, UNSUPPORTED_PIXELS.
    """
    shared = next(iter(elements.items(SHARED_GROUPS)), None)
    own = elements.items(FRAME_GROUPS)
    if layout.num_frames > 1 and not own:
        raise DicomError(RejectReason.UNSUPPORTED_PIXELS, f"{layout.num_frames} frames that do not say where they lie")
    if own and len(own) != layout.num_frames:
        raise DicomError(RejectReason.DAMAGED_HEADER, f"{len(own)} frame groups for {layout.num_frames} frames")
    uids = _identity(elements, meta)
    for index in range(layout.num_frames):
        frame = _Frame(elements, shared, own[index] if own else None)
        check_image_type(frame.holder(CT_FRAME_TYPE, FRAME_TYPE).texts(FRAME_TYPE))
        yield _frame_header(frame, uids, layout, path, index)


def frame_rescales(elements: Elements, meta: FileMeta, layout: PixelLayout) -> Iterator[Rescale]:
    """Yield how each frame becomes HU, with all checks of ``frame_headers``, whose headers cost three times as much.

    A header without nested groups is only described by what is left out here: nothing of it can be refused.

    Raises:
        DicomError: as ``frame_headers``.
    """
    if layout.num_frames > 1 or SHARED_GROUPS in elements or FRAME_GROUPS in elements:
        yield from (frame.rescale for frame in frame_headers(elements, meta, layout, ""))
        return
    _identity(elements, meta)
    check_image_type(elements.texts(FRAME_TYPE))
    yield _frame_rescale(elements, layout)


def _identity(elements: Elements, meta: FileMeta) -> tuple[str, str, str, str]:
    """SOP, study and series UIDs and the patient id, as they stand: legal or not they are only names here."""
    sop = elements.text(SOP_UID) or meta.sop_uid
    study, series = elements.text(STUDY_UID), elements.text(SERIES_UID)
    for name, value in (("SOPInstanceUID", sop), ("StudyInstanceUID", study), ("SeriesInstanceUID", series)):
        if not value:
            raise DicomError(RejectReason.DAMAGED_HEADER, f"{name} is absent")
    return sop, study, series, elements.text(PATIENT_ID)


def _frame_header(
    frame: _Frame, uids: tuple[str, str, str, str], layout: PixelLayout, path: str, index: int
) -> FrameHeader:
    scale = _frame_rescale(frame.holder(PIXEL_TRANSFORM, INTERCEPT), layout)
    plain = f"{'signed' if layout.signed else 'unsigned'}{layout.bits_stored}"
    measures = frame.holder(PIXEL_MEASURES, PIXEL_SPACING)
    spacing = numbers(measures, PIXEL_SPACING, 2)
    position = numbers(frame.holder(IN_PLANE_POSITION, POSITION), POSITION, 3)
    orientation = numbers(frame.holder(PLANE_ORIENTATION, ORIENTATION), ORIENTATION, 6)
    stack_number = frame.holder(FRAME_CONTENT, IN_STACK_NUMBER).whole(IN_STACK_NUMBER)
    instance_number = number(frame.holder(0, INSTANCE_NUMBER), INSTANCE_NUMBER)
    thickness = number(frame.holder(PIXEL_MEASURES, THICKNESS), THICKNESS)
    header = SliceHeader(
        path=path,
        frame=index,
        sop_uid=uids[0] if index == 0 else f"{uids[0]}#{index}",
        study_uid=uids[1],
        series_uid=uids[2],
        patient_id=uids[3],
        rows=layout.rows,
        columns=layout.columns,
        pixel_spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        position_mm=(position[0], position[1], position[2]) if position else None,
        orientation=(*orientation[:5], orientation[5]) if orientation else None,  # type: ignore[arg-type]
        thickness_mm=thickness if thickness and thickness > 0 else None,
        header_tilt_deg=number(frame.holder(0, TILT), TILT),
        instance_number=stack_number or (None if instance_number is None else int(instance_number)),
        transfer_syntax=layout.transfer_syntax,
        bits_stored=layout.bits_stored,
        signed=layout.signed,
        encoding="wrapped12" if scale.wrapped else plain,
        window=window(frame.holder(FRAME_WINDOW, WINDOW_CENTER)),
    )
    return FrameHeader(header=header, rescale=scale)


def _frame_rescale(elements: Elements, layout: PixelLayout) -> Rescale:
    slope, intercept = rescale(elements)
    wrapped = slope == 1 and hu.is_wrapped_12_bit(layout.bits_stored, layout.signed, intercept)
    return Rescale(slope=slope, intercept=-1000.0 if wrapped else intercept, wrapped=wrapped)


def rescale(elements: Elements) -> tuple[float, float]:
    """Slope and intercept to HU (PS3.3 C.11.1.1.2).

    Raises:
        DicomError: BAD_RESCALE or NOT_HOUNSFIELD.
    """
    kind = elements.text(RESCALE_TYPE)
    if kind.upper() not in ("", "HU"):
        raise DicomError(RejectReason.NOT_HOUNSFIELD, f"RescaleType is {kind[:16]!r}, expected 'HU'")
    texts = {"RescaleSlope": elements.texts(SLOPE), "RescaleIntercept": elements.texts(INTERCEPT)}
    if not any(texts["RescaleIntercept"]):
        lut = "; a Modality LUT stands in its place" if MODALITY_LUT in elements else ""
        raise DicomError(RejectReason.BAD_RESCALE, f"RescaleIntercept is absent{lut}")
    texts["RescaleSlope"] = texts["RescaleSlope"] if any(texts["RescaleSlope"]) else ("1",)
    found = {name: {to_number(text) for text in values} for name, values in texts.items()}
    for name, values in found.items():
        value = next(iter(values))
        if len(values) != 1 or value is None or (name == "RescaleSlope" and value == 0):
            shown = "\\".join(texts[name])[:32]
            raise DicomError(RejectReason.BAD_RESCALE, f"{name} is {shown!r}, expected one finite number, slope not 0")
    slope, intercept = found["RescaleSlope"].pop(), found["RescaleIntercept"].pop()
    assert slope is not None
    assert intercept is not None
    return slope, intercept


def window(elements: Elements) -> tuple[float, float] | None:
    """The first display window (centre, width) in HU; None where absent, malformed or of no width."""
    center = to_number(elements.text(WINDOW_CENTER))
    width = to_number(elements.text(WINDOW_WIDTH))
    return (center, width) if center is not None and width is not None and width > 0 else None


def to_number(text: str) -> float | None:
    """A decimal string as a finite float, None for anything else (PS3.5 6.2: no underscores, no words)."""
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def number(elements: Elements, tag: int) -> float | None:
    """The first value of a decimal or integer string element."""
    return to_number(elements.text(tag))


def numbers(elements: Elements, tag: int, count: int) -> tuple[float, ...] | None:
    """Exactly ``count`` finite decimal strings, else None."""
    values = [value for value in map(to_number, elements.texts(tag)) if value is not None]
    return tuple(values) if len(values) == count == len(elements.texts(tag)) else None
