"""Phantom slices as a scanner would send them: legal UIDs, a made-up patient, dates, descriptions, protocol.

The phantom's own files are written as the RSNA 2019 files are, whose UIDs are not legal (FACTS of that data set); no
DICOM peer takes those. Names are invented; the patient's name says that it is a phantom.
"""

import datetime
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from fastich.phantom.dicom_bytes import legal_uid

GIVEN_NAMES = ("Ada", "Bao", "Chidi", "Dora", "Emre", "Fatou", "Goro", "Hana", "Ines", "Jun", "Kofi", "Lena")
SEXES = ("F", "M")


def as_sent(source: bytes, *, number: int | None = None, taken_at: datetime.datetime | None = None) -> bytes:
    """One phantom file (Part 10) as a scanner would send it; equal inputs give equal bytes.

    Args:
        source: what ``fastich.phantom`` wrote.
        number: of the slice in its series; absent if None.
        taken_at: time of the study; a fixed day of 2026 if None.
    """
    with pydicom.config.disable_value_validation():
        data = pydicom.dcmread(io.BytesIO(source))
        ids = {name: str(data.get(name)) for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")}
        sop = str(data.SOPInstanceUID)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID(legal_uid(sop))
    data.StudyInstanceUID, data.SeriesInstanceUID = map(legal_uid, (ids["StudyInstanceUID"], ids["SeriesInstanceUID"]))
    _describe(data, ids["PatientID"], ids["StudyInstanceUID"], taken_at or datetime.datetime(2026, 1, 5, 3, 0))
    data.InstanceNumber = number
    target = io.BytesIO()
    data.save_as(target, enforce_file_format=True)
    return target.getvalue()


def _describe(data: Dataset, patient: str, study: str, taken_at: datetime.datetime) -> None:
    """A patient and a protocol that hang on the ids alone."""
    number = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16)
    data.PatientID = f"PHANTOM-{number % 1_000_000:06d}"
    data.PatientName = f"Phantom^{GIVEN_NAMES[number % len(GIVEN_NAMES)]}"
    data.PatientSex = SEXES[number % len(SEXES)]
    data.PatientBirthDate = f"{1935 + number % 60}0101"
    data.PatientAge = f"{2026 - 1935 - number % 60:03d}Y"
    data.AccessionNumber = f"A{int(hashlib.sha256(study.encode()).hexdigest()[:8], 16) % 10**8:08d}"
    data.StudyID = data.AccessionNumber[-6:]
    data.StudyDate = data.SeriesDate = taken_at.strftime("%Y%m%d")
    data.StudyTime = data.SeriesTime = taken_at.strftime("%H%M%S")
    data.StudyDescription, data.SeriesDescription = "CT HEAD W/O CONTRAST", "HEAD 5MM AXIAL"
    data.BodyPartExamined, data.PatientPosition, data.ConvolutionKernel = "HEAD", "HFS", "H30s"
    data.Manufacturer, data.ManufacturerModelName = "fastich", "phantom"
    data.KVP, data.SeriesNumber, data.ReferringPhysicianName = "120", "2", ""
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.FrameOfReferenceUID = legal_uid(f"frame {study}")
    for empty in ("PositionReferenceIndicator", "SliceThickness", "AcquisitionNumber"):  # type 2: there, and empty
        setattr(data, empty, None)


def studies_as_sent(folder: Path, *, taken_at: datetime.datetime | None = None) -> Iterator[list[bytes]]:
    """The studies of a phantom's slice folder, one after the other, slices from below upwards."""
    studies: dict[str, list[tuple[float, Path]]] = {}
    for path in sorted(folder.glob("*.dcm")):
        with pydicom.config.disable_value_validation():
            header = pydicom.dcmread(path, specific_tags=["StudyInstanceUID", "ImagePositionPatient"])
            study = str(header.StudyInstanceUID)
        studies.setdefault(study, []).append((float(header.ImagePositionPatient[2]), path))
    for slices in studies.values():
        ordered = enumerate(sorted(slices), start=1)
        yield [as_sent(path.read_bytes(), number=number, taken_at=taken_at) for number, (_, path) in ordered]
