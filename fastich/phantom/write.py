"""The files of a phantom data set: DICOM slices, label table, masks, and ``truth.csv`` last: it means complete."""

import csv
import io
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.files import atomic_path, write_text
from fastich.labels import ANY, LABELS
from fastich.phantom import dicom_bytes, scanner
from fastich.phantom.cohort import make_id
from fastich.phantom.study import Study

SLICES_FOLDER, MASKS_FOLDER, LABELS_FILE, TRUTH_FILE = "stage_2_train", "masks", "stage_2_train.csv", "truth.csv"
SOP, STUDY, SERIES, PATIENT = range(4)
SLICES_PER_STUDY = 64
WINDOWS_12 = (("00036\\00036", "00080\\00080"), ("00040\\00040", "00080\\00080"))
WINDOWS_16 = (("30", "80"), ("40", "100"), ("35", "135"), ("50", "100"))
"""WindowCenter and WindowWidth as they stand in RSNA 2019 headers."""


def sop_uids(seed: int, study_number: int, count: int) -> list[str]:
    """Ids of a study's slices, from below upwards."""
    return [make_id(seed, SOP, study_number * SLICES_PER_STUDY + i, 9) for i in range(count)]


def study_ids(seed: int, study: Study) -> tuple[str, str, str]:
    """Ids of patient, study and series."""
    number = study.plan.number
    return (
        make_id(seed, PATIENT, study.plan.patient, 9),
        make_id(seed, STUDY, number, 9),
        make_id(seed, SERIES, number, 9),
    )


def write_study(out: Path, seed: int, study: Study) -> dict[str, Any]:
    """Write one study's slices and masks; return its row of ``truth.csv`` and its ``labels`` [(sop, six labels)]."""
    size = study.hu.shape[1]
    scan = study.scan
    uids = sop_uids(seed, study.plan.number, len(study.hu))
    patient_id, study_uid, series_uid = study_ids(seed, study)
    windows = WINDOWS_16 if scan.encoding == scanner.ENCODING_16 else WINDOWS_12
    for number, uid in enumerate(uids):
        data = dicom_bytes.encode(
            dicom_bytes.SliceFile(
                sop_uid=uid,
                study_uid=study_uid,
                series_uid=series_uid,
                patient_id=patient_id,
                position_mm=scanner.position(scan, number, size),
                orientation=scanner.orientation(scan),
                pixel_mm=scan.pixel_mm,
                intercept=scan.intercept,
                window=windows[study.plan.number % len(windows)],
                pixels=scanner.stored_values(study.hu[number], scan),
                implicit_vr=scan.implicit_vr,
            )
        )
        (out / SLICES_FOLDER / f"{uid}.dcm").write_bytes(data)
    mask_arrays = {"masks": study.masks, "sop_uids": np.asarray(uids), "thickness_mm": scan.thickness_mm}
    mask_arrays["pixel_mm"] = np.asarray(scan.pixel_mm)
    write_npz(out / MASKS_FOLDER / f"{study_uid}.npz", mask_arrays)
    return {
        "labels": list(zip(uids, study.labels.tolist(), strict=True)),
        "truth": _truth(study, patient_id, study_uid),
    }


def _truth(study: Study, patient_id: str, study_uid: str) -> dict[str, str]:
    """One row of ``truth.csv``; two slice spacings in one study stand as ``2.5/5``, distractors apart by ``; ``."""
    scan = study.scan
    return {
        "patient_id": patient_id,
        "study_uid": study_uid,
        "num_slices": str(len(study.hu)),
        "num_any": str(int(study.labels[:, ANY].sum())),
        **{f"{name}_ml": f"{volume:.4f}" for name, volume in study.volumes_ml.items()},
        "tilt_deg": f"{scan.tilt_deg:g}",
        "spacing_mm": _distinct(scan.thickness_mm),
        "table_step_mm": _distinct(scan.table_step_mm),
        "pixel_mm": f"{scan.pixel_mm:.6f}",
        "encoding": scan.encoding,
        "implicit_vr": str(int(scan.implicit_vr)),
        "noise_hu": f"{scan.noise_hu:.2f}",
        "distractors": "; ".join(study.distractors),
    }


def _distinct(values: Iterable[float]) -> str:
    return "/".join(f"{value:g}" for value in sorted({round(float(value), 3) for value in values}))


def write_npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """An ``.npz`` whose bytes depend on its arrays alone (``numpy.savez`` stamps the time into it)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED, 1)


def write_labels(path: Path, labels: Sequence[tuple[str, Sequence[int]]], seed: int) -> None:
    """The challenge's long table, ``Id,Label``, six rows a slice, in shuffled order."""
    rows = [f"{uid}_{name},{value}\n" for uid, values in labels for name, value in zip(LABELS, values, strict=True)]
    order = np.random.default_rng([seed, 4]).permutation(len(rows))
    write_text(path, "Id,Label\n" + "".join(rows[i] for i in order))


def write_truth(path: Path, rows: Sequence[dict[str, str]]) -> None:
    """``truth.csv``: one row a study."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
