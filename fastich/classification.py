"""The classification report: precision, recall and F1 of each label and their averages, with intervals by patient.

scikit-learn's report, but for what is undefined: a label without a positive has no figures and no part in the macro
average, where scikit-learn would count zeros. Seconds for 5,000 slices and 1,000 resamples.
Shapes: N slices, P patients, R resamples, K labels in the order of ``labels.LABELS``.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from fastich.labels import LABELS
from fastich.metrics import (
    DEFAULT_THRESHOLD,
    LEVEL,
    Floats,
    Interval,
    checked,
    decide,
    mean_of_defined,
    patient_numbers,
    percentile_interval,
    resample_counts,
)

RATES = ("precision", "recall", "f1-score")
"""Of a classification report."""


def classification_report(
    labels: ArrayLike, probability: ArrayLike, thresholds: ArrayLike = DEFAULT_THRESHOLD
) -> dict[str, dict[str, float | None]]:
    """scikit-learn's report: a row per label, then ``micro avg``, ``macro avg``, ``weighted avg``, ``samples avg``.

    Each row is ``{"precision", "recall", "f1-score", "support"}``. A label without a positive has ``None`` and is left
    out of the macro average (scikit-learn would count zeros); where nothing is called, precision is 0.
    """
    truth, scores = checked(labels, probability)
    report: dict[str, dict[str, Any]] = sk.classification_report(
        truth.astype(np.int8),
        decide(scores, thresholds).astype(np.int8),
        target_names=LABELS,
        output_dict=True,
        zero_division=0,
    )
    rows = {row: {name: float(value) for name, value in values.items()} for row, values in report.items()}
    present = [label for label in LABELS if rows[label]["support"]]
    made: dict[str, dict[str, float | None]] = {row: dict(values) for row, values in rows.items()}
    for name in RATES:
        made["macro avg"][name] = mean_of_defined([rows[label][name] for label in present])
        for label in set(LABELS) - set(present):
            made[label][name] = None
    return made


def report_intervals(
    labels: ArrayLike,
    probability: ArrayLike,
    patients: ArrayLike,
    *,
    thresholds: ArrayLike = DEFAULT_THRESHOLD,
    num_resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, dict[str, Interval | None]]:
    """Percentile intervals of ``classification_report``'s precision, recall and F1, by resampling patients [N].

    Returns the rows of the six labels, ``micro avg``, ``macro avg`` and ``weighted avg``, each ``{"precision",
    "recall", "f1-score": Interval | None}``. A label without a positive has none, and is left out of the macro average;
    a resample without one is left out of that label's recall and F1, and of the macro average.
    """
    truth, scores = checked(labels, probability)
    of_slice, num_patients = patient_numbers(patients)
    counts_RP = resample_counts(num_patients, num_resamples, seed)
    said = decide(scores, thresholds)
    hits_RK, said_RK, real_RK = (
        counts_RP @ _sums_by_patient(values, of_slice, counts_RP.shape[1]) for values in (truth & said, said, truth)
    )
    rates = _rates(hits_RK, said_RK, real_RK)
    rows = {label: {name: values[:, i] for name, values in rates.items()} for i, label in enumerate(LABELS)}
    whole = _rates(*(part.sum(axis=1) for part in (hits_RK, said_RK, real_RK)))
    share_RK = real_RK / np.maximum(real_RK.sum(axis=1, keepdims=True), 1.0)
    rows["micro avg"] = whole
    present: NDArray[np.bool_] = np.asarray(truth.any(axis=0))
    if not present.any():
        return {row: dict.fromkeys(RATES) for row in (*LABELS, "micro avg", "macro avg", "weighted avg")}
    rows["macro avg"] = {name: values[:, present].mean(axis=1) for name, values in rates.items()}
    rows["weighted avg"] = {name: (np.nan_to_num(values) * share_RK).sum(axis=1) for name, values in rates.items()}
    found = {row: {name: percentile_interval(of, level) for name, of in values.items()} for row, values in rows.items()}
    return found | {label: dict.fromkeys(RATES) for i, label in enumerate(LABELS) if not present[i]}


def _sums_by_patient(values: NDArray[np.bool_], of_slice: NDArray[np.intp], num_patients: int) -> Floats:
    """Sums [P, 6] of ``values`` [N, 6] over the slices of each patient."""
    columns = [np.bincount(of_slice, weights=column, minlength=num_patients) for column in values.T.astype(np.float64)]
    return np.stack(columns, axis=1)


def _rates(hits: Floats, said: Floats, real: Floats) -> dict[str, Floats]:
    """Precision, recall and F1 from counts of any one shape; NaN where nothing is there to be found."""
    return {
        "precision": hits / np.maximum(said, 1.0),
        "recall": np.where(real > 0, hits / np.maximum(real, 1.0), np.nan),
        "f1-score": np.where(real > 0, 2 * hits / np.maximum(said + real, 1.0), np.nan),
    }
