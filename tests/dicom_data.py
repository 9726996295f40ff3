"""DICOM files for tests, built with pydicom: one CT slice as bytes, with any element changed or left out."""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence

IMPLICIT, EXPLICIT, DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
BIG_ENDIAN, RLE = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"
JPEG = "1.2.840.10008.1.2.4."
CT_IMAGE, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"


def slice_hu(rows: int = 40, columns: int = 48, seed: int = 0) -> NDArray[np.int16]:
    """HU [rows, columns] of a smooth blob with noise, -1000 to 1000 (JPEG 2000 encoders want 32 pixels a side)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    smooth = np.where(x**2 + y**2 < 0.8, 40 + 900 * np.exp(-8 * (x - 0.2) ** 2), -1000)
    return np.clip(smooth + rng.normal(0, 12, smooth.shape), -1000, 1000).astype(np.int16)


def ct_dataset(stored: NDArray[Any], **changes: Any) -> Dataset:
    """A CT data set that holds ``stored`` [H, W] or [N, H, W]; a change of None leaves the element out."""
    signed = stored.dtype.kind == "i"
    bits = 8 * stored.dtype.itemsize
    values: dict[str, Any] = {
        "SOPClassUID": CT_IMAGE,
        "SOPInstanceUID": "ID_0000aee4b",
        "StudyInstanceUID": "ID_study",
        "SeriesInstanceUID": "ID_series",
        "PatientID": "ID_patient",
        "PatientName": "SECRET^NAME",
        "Modality": "CT",
        "ImagePositionPatient": [-125.0, -110.5, 33.25],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [0.5, 0.25],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(signed),
        "WindowCenter": "40",
        "WindowWidth": "80",
        "RescaleIntercept": "-1024",
        "RescaleSlope": "1",
        "PixelData": stored.tobytes(),
    }
    if stored.ndim == 3:
        values["NumberOfFrames"] = stored.shape[0]
    values.update(changes)
    dataset = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for keyword, value in values.items():
            if value is not None:
                setattr(dataset, keyword, value)
        if "PixelData" in dataset:
            dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


def write(dataset: Dataset, syntax: str = EXPLICIT, frames: list[bytes] | None = None) -> bytes:
    """The bytes of ``dataset`` as a file; ``frames`` are encapsulated in place of its pixel data."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CT_IMAGE)
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    if frames is not None:
        dataset.PixelData = encapsulate(frames)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        little, implicit = syntax != BIG_ENDIAN, syntax == IMPLICIT
        dcmwrite(out, dataset, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return out.getvalue()


def ct_file(stored: NDArray[Any], syntax: str = EXPLICIT, frames: list[bytes] | None = None, **changes: Any) -> bytes:
    """The bytes of one CT file."""
    return write(ct_dataset(stored, **changes), syntax, frames)


def ct_hu_file(hu: NDArray[np.int16], **changes: Any) -> bytes:
    """The bytes of one CT file whose HU are ``hu`` [H, W]."""
    return ct_file((hu + 1024).astype(np.int16), **changes)


def enhanced_dataset(stored: NDArray[Any], z_mm: list[float], intercepts: list[int]) -> Dataset:
    """An enhanced CT data set of N frames with position and intercept of their own, the rest shared."""
    plain = dict.fromkeys(
        ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept", "RescaleSlope")
    )
    dataset = ct_dataset(stored, SOPClassUID=ENHANCED_CT, WindowCenter=None, WindowWidth=None, **plain)
    shared, orientation, measures = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 2.5
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = Sequence([orientation]), Sequence([measures])
    groups = []
    for z, intercept in zip(z_mm, intercepts, strict=True):
        group, position, transform = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, z]
        transform.RescaleIntercept, transform.RescaleSlope, transform.RescaleType = intercept, 1, "HU"
        group.PlanePositionSequence = Sequence([position])
        group.PixelValueTransformationSequence = Sequence([transform])
        groups.append(group)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return dataset
