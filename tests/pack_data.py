"""A small folder of DICOM studies with every kind of trouble that pack must survive, and its label table."""

import csv
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from fastich.labels import LABELS
from fastich.pack import PackConfig

SIDE = 32
SPACING_MM = 0.5
STEP_MM = 5.0


def write_slice(
    path: Path, *, sop: str, study: str, patient: str, z_mm: float, pixels: np.ndarray, modality: str = "CT"
) -> None:
    """Write one CT slice, HU = stored - 1024, axial at ``z_mm``."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = sop
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = Dataset()
    one.file_meta = meta
    one.SOPClassUID, one.SOPInstanceUID, one.Modality, one.PatientID = CTImageStorage, sop, modality, patient
    one.StudyInstanceUID, one.SeriesInstanceUID = study, study + ".1"
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = pixels.shape
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.RescaleIntercept, one.RescaleSlope = -1024, 1
    one.PixelSpacing, one.ImageOrientationPatient = [SPACING_MM, SPACING_MM], [1, 0, 0, 0, 1, 0]
    one.ImagePositionPatient = [0, 0, z_mm]
    one.PixelData = pixels.astype("<i2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)


def head(rng: np.random.Generator) -> np.ndarray:
    """Stored values of a noisy disc in air [SIDE, SIDE], with padding of -976 (-2000 HU) in a corner."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    values = np.where(rows**2 + columns**2 < 150, 1060, 10) + rng.integers(-9, 10, (SIDE, SIDE))
    values[0, 0] = -976
    return values


def sop_uid(number: int) -> str:
    return f"1.2.3.4.{number}"


def make_folder(root: Path, *, num_patients: int = 14, slices: int = 5) -> dict[str, tuple[int, ...]]:
    """Write ``num_patients`` studies in scrambled file order under ``root``; the labels of every slice by SOP UID."""
    rng = np.random.default_rng(0)
    labels: dict[str, tuple[int, ...]] = {}
    for patient in range(num_patients):
        bleeds = tuple(int(bleed) for bleed in rng.random(5) < 0.5)
        for k in range(slices):
            number = patient * slices + k
            found = bleeds if k == 2 else (0, 0, 0, 0, 0)
            labels[sop_uid(number)] = (*found, max(found))
            write_slice(
                root / f"p{patient % 3}" / f"{(number * 7919) % 1000:03d}.dcm",
                sop=sop_uid(number),
                study=f"1.2.3.{patient}",
                patient=f"ID_{patient:02d}",
                z_mm=STEP_MM * k,
                pixels=head(rng),
            )
    return labels


def write_labels(path: Path, labels: Mapping[str, tuple[int, ...]]) -> Path:
    """Write the long form of the label table."""
    lines = [f"{sop}_{name},{value}" for sop, row in labels.items() for name, value in zip(LABELS, row, strict=True)]
    path.write_text("\n".join(["Id,Label", *lines]) + "\n")
    return path


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a folder and what it holds."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def config(data, out, **changes):
    return PackConfig(**{"dicom": data[0], "labels": data[1], "out": out, "workers": 1, **changes})


def rejects_of(out):
    with (out / "rejects.csv").open(newline="") as handle:
        return {row["path"]: (row["reason"], row["detail"]) for row in csv.DictReader(handle)}


def command(data, out, *more):
    words = ["--dicom", data[0], "--labels", data[1], "--out", out, *more]
    return [sys.executable, "-m", "fastich.pack", *map(str, words)]


def clean_input(root: Path) -> tuple[Path, Path, dict[str, tuple[int, ...]]]:
    """A folder without trouble below ``root``: folder, label table and labels by SOP UID."""
    labels = make_folder(root / "dicom")
    return root / "dicom", write_labels(root / "labels.csv", labels), labels
