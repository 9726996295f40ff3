"""The classification report: precision, recall and F1 of each label and their averages, with intervals by patient.

scikit-learn's report, but for what is undefined: a label without a positive has no figures and no part in the macro
average, and where no label has one there are no averages; scikit-learn would count zeros. Seconds for 5,000 slices and
1,000 resamples.
Shapes: N slices, P patients, R resamples, K labels in the order of ``labels.LABELS``.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from fastich.intervals import NO_INTERVAL, Basis, Floats, Interval, interval, weakest
from fastich.labels import LABELS
from fastich.metrics import DEFAULT_THRESHOLD, NO_POSITIVES, checked, decide, mean_of_defined
from fastich.resampling import Resampling

RATES = ("precision", "recall", "f1-score")
"""Of a classification report."""
AVERAGES = ("micro avg", "macro avg", "weighted avg")
NOTHING_CALLED = f"{NO_INTERVAL}: nothing is called"


def classification_report(
    labels: ArrayLike, probability: ArrayLike, thresholds: ArrayLike = DEFAULT_THRESHOLD
) -> dict[str, dict[str, float | None]]:
    """scikit-learn's report: a row per label, then ``micro avg``, ``macro avg``, ``weighted avg``, ``samples avg``.

    Each row is ``{"precision", "recall", "f1-score", "support"}``. A label without a positive has ``None`` and is left
    out of the macro average (scikit-learn would count zeros); without any positive the averages are ``None`` too. Where
    nothing is called, precision is 0.
    """
    truth, scores = checked(labels, probability)
    report: dict[str, dict[str, Any]] = sk.classification_report(
        truth.astype(np.int8),
        decide(scores, thresholds).astype(np.int8),
        target_names=LABELS,
        output_dict=True,
        zero_division=0,
    )
    made: dict[str, dict[str, float | None]] = {
        row: {name: float(value) for name, value in values.items()} for row, values in report.items()
    }
    present = [label for label in LABELS if made[label]["support"]]
    for name in RATES:
        made["macro avg"][name] = mean_of_defined([made[label][name] for label in present])
        for row in set(made) - set(present) if not present else set(LABELS) - set(present):
            made[row][name] = None
    return made


def report_intervals(
    labels: ArrayLike, probability: ArrayLike, resampling: Resampling, thresholds: ArrayLike = DEFAULT_THRESHOLD
) -> dict[str, dict[str, Interval]]:
    """What may be claimed of ``classification_report``'s precision, recall and F1, from resampling patients.

    Returns the rows of the six labels, ``micro avg``, ``macro avg`` and ``weighted avg``, each ``{"precision",
    "recall", "f1-score": Interval}``. A label without a positive has none, and is left out of the macro average; a
    resample without one is left out of that label's recall and F1, and of the macro average.
    """
    truth, scores = checked(labels, probability)
    said = decide(scores, thresholds)
    hits_RK, said_RK, real_RK = (
        resampling.counts_RP @ _sums_by_patient(values, resampling) for values in (truth & said, said, truth)
    )
    absent = dict.fromkeys(RATES, Interval(note=NO_POSITIVES))
    if not truth.any():
        return dict.fromkeys((*LABELS, *AVERAGES), absent)
    drawn = _rates(hits_RK, said_RK, real_RK)
    bases = {label: _bases(truth[:, i], said[:, i], resampling) for i, label in enumerate(LABELS) if truth[:, i].any()}
    rows = {
        label: _row({name: of[:, i] for name, of in drawn.items()}, bases[label]) if label in bases else absent
        for i, label in enumerate(LABELS)
    }
    pooled = _bases(truth, said, resampling)
    rows["micro avg"] = _row(_rates(*(part.sum(axis=1) for part in (hits_RK, said_RK, real_RK))), pooled)
    reported = drawn | {"precision": np.nan_to_num(drawn["precision"])}  # 0 where nothing is called, as in the report
    present = truth.any(axis=0)
    rows["macro avg"] = {
        name: _claim(of[:, present].mean(axis=1), weakest({label: basis[name] for label, basis in bases.items()}))
        for name, of in reported.items()
    }
    share_RK = real_RK / np.maximum(real_RK.sum(axis=1, keepdims=True), 1.0)
    rows["weighted avg"] = {
        name: _claim((np.nan_to_num(of) * share_RK).sum(axis=1), replace(pooled[name], trials=None))
        for name, of in reported.items()
    }
    rows["weighted avg"]["recall"] = rows["micro avg"]["recall"]  # the same figure
    return rows


def _sums_by_patient(values: NDArray[np.bool_], resampling: Resampling) -> Floats:
    """Sums [P, 6] of ``values`` [N, 6] over the slices of each patient."""
    num_patients = resampling.counts_RP.shape[1]
    columns = [np.bincount(resampling.of_row, weights=column, minlength=num_patients) for column in values.T]
    return np.stack(columns, axis=1).astype(np.float64)


def _rates(hits: Floats, said: Floats, real: Floats) -> dict[str, Floats]:
    """Precision, recall and F1 from counts of any one shape; NaN where nothing is there to be called or found."""
    return {
        "precision": np.where(said > 0, hits / np.maximum(said, 1.0), np.nan),
        "recall": np.where(real > 0, hits / np.maximum(real, 1.0), np.nan),
        "f1-score": np.where(real > 0, 2 * hits / np.maximum(said + real, 1.0), np.nan),
    }


def _bases(truth: NDArray[np.bool_], said: NDArray[np.bool_], resampling: Resampling) -> dict[str, Basis]:
    """What each rate of one label [N], or of all pooled [N, 6], rests on.

    F1 has a trial in each patient with a call or a positive, and is no better known than the recall in it.
    """
    real, called = (values.reshape(len(values), -1).any(axis=1) for values in (truth, said))
    recall, either = resampling.rate_basis(real), resampling.rate_basis(real | called)
    return {
        "precision": resampling.rate_basis(called),
        "recall": recall,
        "f1-score": replace(either, fewest=recall.fewest),
    }


def _row(drawn: dict[str, Floats], basis: dict[str, Basis]) -> dict[str, Interval]:
    found = {name: _claim(of, basis[name]) for name, of in drawn.items()}
    return found | {"f1-score": _f1(found["f1-score"])}


def _claim(drawn: Floats, basis: Basis) -> Interval:
    """``interval``, but that a precision is 0 and rests on nobody where nothing is called."""
    found = interval(drawn, basis)
    return found if basis.fewest else replace(found, note=basis.about(NOTHING_CALLED))


def _f1(found: Interval) -> Interval:
    """F1 is no rate, but 2 J / (1 + J) of the rate J of hits among slices called or positive: so are exact ends."""
    if not found.exact or found.low is None or found.high is None:
        return found
    return replace(found, low=2 * found.low / (1 + found.low), high=2 * found.high / (1 + found.high))
