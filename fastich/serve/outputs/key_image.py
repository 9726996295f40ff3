"""The key slice as a picture that every PACS viewer shows: plain and with the class map over it, side by side.

One Secondary Capture image, single frame, RGB. Not multi-frame: two panels in one picture are seen together without
paging, old viewers open it, and no viewer can show the coloured half without the plain one. The original stays
untouched. BurnedInAnnotation is NO: the attribute asks whether the picture shows who the patient is and when the image
was made (PS3.3 C.7.6.1.1), and what stands below it is our verdict only.
The text is Pillow's built-in bitmap font, so equal results are equal pixels on every machine. 60 ms a picture.
Source: PS3.3 A.8.1 (Secondary Capture Image IOD), C.8.6.1, C.8.6.2. Shapes: H rows, W columns of the slice.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage

import fastich
from fastich.labels import LABELS
from fastich.serve import render
from fastich.serve.outputs import codes, source, sr, uids
from fastich.serve.outputs.result import PRELIMINARY, KeySlice, Result
from fastich.serve.render import Rgb
from fastich.types import HuArray
from fastich.windowing import WINDOWS

ClassMap = NDArray[np.floating]

KIND = "sc"
WINDOW = WINDOWS["brain"]
LEAST_SIDE = 384
"""Smaller slices are enlarged by repeating pixels, or the text would not fit below them."""
TEXT_SCALE, LINE_PIXELS, MARGIN = 2, 28, 8
PAPER, WORDS, WARNING = (14, 18, 23), (232, 237, 243), (255, 196, 0)
SERIES_NUMBER = 9302
SERIES_DESCRIPTION = "ICH key image: preliminary, not for diagnosis"
SOP_CLASS = str(SecondaryCaptureImageStorage)


def build(
    result: Result,
    header: Dataset,
    sop_classes: Mapping[str, str],
    hu: HuArray,
    cam_hw: ClassMap,
) -> Dataset:
    """The key image.

    Args:
        result: what was found; its key slice of ``any`` is shown.
        header: of the key slice's file (``source.read_header``).
        sop_classes: SOP class UID of each scored instance by its UID.
        hu: the key slice, int16 [H, W].
        cam_hw: its class map of ``any`` [h, w].
    """
    sop_uid = result.uid(KIND)
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = SOP_CLASS, sop_uid
    made.StudyInstanceUID, made.SeriesInstanceUID = uids.legal(result.study_uid), uids.of_parts(sop_uid, "series")
    _describe(made, result, source.stamp(result.created_at, header))
    made.SourceImageSequence = [_source(result.key_slices["any"], sop_classes)]
    _put_pixels(made, picture(result, hu, cam_hw))
    source.inherit(made, header)
    source.inherit_lossy(made, header)
    return made


def _describe(made: Dataset, result: Result, at: source.Stamp) -> None:
    """Series, equipment and image modules."""
    made.Modality, made.SeriesNumber, made.InstanceNumber = "OT", SERIES_NUMBER, 1
    made.SeriesDescription = SERIES_DESCRIPTION
    made.ConversionType = "WSD"
    made.Manufacturer = made.SecondaryCaptureDeviceManufacturer = sr.MAKER
    made.ManufacturerModelName = made.SecondaryCaptureDeviceManufacturerModelName = sr.PRODUCT
    made.SoftwareVersions = made.SecondaryCaptureDeviceSoftwareVersions = fastich.__version__
    made.DeviceSerialNumber = str(result.model["sha256"])
    made.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    made.BodyPartExamined, made.BurnedInAnnotation = "HEAD", "NO"
    made.PatientOrientation = None
    made.ImageComments = PRELIMINARY
    made.DerivationDescription = "Key slice in the brain window, plain and with the class map of any bleed in colour"
    source.put_dates(made, at)


def _source(key: KeySlice, sop_classes: Mapping[str, str]) -> Dataset:
    """The image that the picture is of."""
    purpose, found = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = codes.SOURCE_IMAGE.code, codes.SOURCE_IMAGE.scheme
    purpose.CodeMeaning = codes.SOURCE_IMAGE.meaning
    found.ReferencedSOPClassUID, found.ReferencedSOPInstanceUID = sop_classes[key.sop_uid], uids.legal(key.sop_uid)
    if sr.is_multi_frame(sop_classes[key.sop_uid]):
        found.ReferencedFrameNumber = key.frame + 1
    found.PurposeOfReferenceCodeSequence = [purpose]
    return found


def _put_pixels(made: Dataset, image: Rgb) -> None:
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.Rows, made.Columns = image.shape[:2]
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    raw = image.tobytes()
    made.PixelData = raw + b"\0" * (len(raw) % 2)
    made["PixelData"].VR = "OB"


def picture(result: Result, hu: HuArray, cam_hw: ClassMap) -> Rgb:
    """Plain slice, coloured slice, and the words below them: uint8 [rows, columns, 3]."""
    plain = np.repeat(render.grey(hu, WINDOW)[..., None], 3, axis=-1)
    panels = np.concatenate([plain, render.overlay(hu, cam_hw, WINDOW)], axis=1)
    scale = -(-LEAST_SIDE // max(hu.shape))
    panels = panels.repeat(scale, axis=0).repeat(scale, axis=1)
    return np.concatenate([panels, caption(list(lines(result)), panels.shape[1])])


def lines(result: Result) -> list[str]:
    """What stands below the picture; the first line is the warning."""
    key = result.key_slices["any"]
    subtypes = [f"{label} {result.probability[label]:.2f}" for label in result.found if label in LABELS[:-1]]
    place = f"slice {key.number} of {key.num_slices}" + ("" if key.z_mm is None else f", z {key.z_mm:.1f} mm")
    return [
        PRELIMINARY,
        f"Any bleed {result.probability['any']:.2f} (threshold {result.thresholds['any']:.2f}): {result.triage}",
        "Subtypes at threshold: " + (", ".join(subtypes) or "none"),
        f"{place}: any {key.probability:.2f}. Brain window {WINDOW.center_hu:g}/{WINDOW.width_hu:g}",
        "Colour: where the network looked, no outline of a bleed",
        f"{sr.PRODUCT} {fastich.__version__}, model {str(result.model['sha256'])[:16]}",
    ]


def caption(words: list[str], width: int) -> Rgb:
    """Lines of text, wrapped to ``width`` columns: uint8 [rows, width, 3]."""
    font = ImageFont.load_default_imagefont()
    room = (width - 2 * MARGIN) // TEXT_SCALE
    wrapped = [(part, number == 0) for number, line in enumerate(words) for part in _wrap(line, font, room)]
    height = len(wrapped) * LINE_PIXELS + 2 * MARGIN
    small = Image.new("RGB", (width // TEXT_SCALE, height // TEXT_SCALE), PAPER)
    pen = ImageDraw.Draw(small)
    for number, (part, warns) in enumerate(wrapped):
        at = (MARGIN // TEXT_SCALE, (MARGIN + number * LINE_PIXELS) // TEXT_SCALE)
        pen.text(at, part, fill=WARNING if warns else WORDS, font=font)
    whole = np.asarray(small.resize((width, height), Image.Resampling.NEAREST), dtype=np.uint8)
    return np.ascontiguousarray(whole)


def _wrap(line: str, font: ImageFont.ImageFont, room: int) -> list[str]:
    """The line in parts that fit into ``room`` pixels, broken between words."""
    parts = [""]
    for word in source.ascii_text(line).split():
        longer = f"{parts[-1]} {word}".strip()
        if parts[-1] and font.getlength(longer) > room:
            parts.append(word)
        else:
            parts[-1] = longer
    return parts
