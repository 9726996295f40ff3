"""A made-up site: raw logits and labels of its slices, what score would print of them, and tables of outcomes."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from fastich.labels import LABELS

NUM_STUDIES, SLICES = 60, 10


def site(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw logits and labels of the site's slices; epidural is rare, any is the OR of the subtypes."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(-1.5, 1.2, (NUM_STUDIES * SLICES, 6))
    labels = (rng.random(honest.shape) < 1 / (1 + np.exp(-honest))).astype(int)
    labels[:, 0] = np.arange(len(labels)) < 7
    labels[:, 5] = labels[:, :5].max(axis=1)
    honest[:, 5] = honest[:, :5].max(axis=1)
    return 3 * honest + 1, labels


def study_of(index: int) -> str:
    return f"1.2.{index // SLICES}"


def score_document(study_logit: np.ndarray | None = None, **model: Any) -> dict[str, Any]:
    """What score prints, as far as it is read; with ``study_logit`` [NUM_STUDIES, 6] each study states its own."""
    logit, _ = site()
    slices = [{"sop_uid": f"1.9.{i}", "logit": by_label(row)} for i, row in enumerate(logit)]
    studies = [
        {
            "study_uid": study_of(start),
            "patient_id": f"P{start // SLICES}",
            "series": [{"slices": slices[start : start + SLICES]}],
        }
        | ({} if study_logit is None else {"logit": by_label(study_logit[start // SLICES])})
        for start in range(0, len(slices), SLICES)
    ]
    return {"model": {"weights_sha256": "ab" * 32, "precision": "float32", **model}, "studies": studies}


def by_label(values: np.ndarray) -> dict[str, float]:
    return dict(zip(LABELS, map(float, values), strict=True))


def slice_outcomes(path: Path) -> Path:
    """Outcomes by slice, of any, epidural and subdural alone."""
    _, labels = site()
    rows: list[list[object]] = [[f"1.9.{i}", row[5], row[0], row[4]] for i, row in enumerate(labels)]
    return write_table(path, ["sop_uid", "any", "epidural", "subdural"], rows)


def study_outcomes(path: Path) -> Path:
    """Outcomes by study, of any alone."""
    largest = site()[0].reshape(NUM_STUDIES, SLICES, 6).max(axis=1)[:, 5]
    bleeds = largest + np.random.default_rng(0).normal(0, 2, NUM_STUDIES) > np.median(largest)
    return write_table(path, ["study_uid", "any"], [[study_of(i * SLICES), int(one)] for i, one in enumerate(bleeds)])


def study_truth(path: Path) -> np.ndarray:
    """Labels [NUM_STUDIES, 6] that ``study_outcomes`` wrote; -1 where unknown."""
    truth = np.full((NUM_STUDIES, 6), -1)
    with path.open() as opened:
        truth[:, 5] = [int(row["any"]) for row in csv.DictReader(opened)]
    return truth


def write_table(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="") as opened:
        csv.writer(opened).writerows([header, *rows])
    return path
