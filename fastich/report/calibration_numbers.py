"""How far probabilities are from frequencies, before and after calibration, with intervals by patient.

The expected calibration error of finite data is never 0: at 1,000 slices a perfect forecast has one of about 0.01. The
intervals resample patients within bins that stay as they are, so they carry the same upward noise: they do not prove
that an error is 0, they bound how large it may be.
Shapes: N slices, P patients, R resamples, M bins.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import calibration
from fastich.calibration import BINS, Calibration
from fastich.intervals import Basis, Floats, estimate, interval
from fastich.labels import LABELS
from fastich.metrics import NO_POSITIVES
from fastich.report.choices import logits, truth
from fastich.resampling import Resampling

FEWEST_FOLDS = 2


def calibration_numbers(
    validation: pd.DataFrame, judged: pd.DataFrame, of: Calibration, *, num_resamples: int, seed: int
) -> dict[str, Any]:
    """JSON values about the calibration ``of``, which was fitted on the table ``validation``.

    ``judged``: ECE and Brier score of each label on the judged split, ``raw`` and ``calibrated``. ``cross_fitted``: ECE
    on validation where each patient is calibrated by the others, or None with one patient; ``unfitted`` there names the
    labels that some folds could not calibrate, and why. ``macro`` is the mean over labels that have a positive.
    """
    patients = judged["patient_id"].to_numpy(str)
    raw, after = calibration.NONE.probability(logits(judged)), of.probability(logits(judged))
    return {
        "method": of.method,
        "uncalibrated": of.uncalibrated,
        "num_fitted": len(validation),
        "judged": {
            name: quality(truth(judged), p, patients, num_resamples=num_resamples, seed=seed)
            for name, p in (("raw", raw), ("calibrated", after))
        },
        "cross_fitted": _cross_fitted(validation, of.method, num_resamples, seed),
    }


def _cross_fitted(validation: pd.DataFrame, method: str, num_resamples: int, seed: int) -> dict[str, Any] | None:
    """The figures with the number of ``folds``, and the labels that some of them could not calibrate (``unfitted``)."""
    patients = validation["patient_id"].to_numpy(str)
    folds = min(calibration.FOLDS, len(np.unique(patients)))
    if folds < FEWEST_FOLDS:
        return None
    made = calibration.cross_fitted(logits(validation), truth(validation), patients, method, folds, seed)
    figures = quality(truth(validation), made.probability, patients, num_resamples=num_resamples, seed=seed)
    return {"folds": folds, "unfitted": made.unfitted, **figures}


def quality(
    labels: NDArray[np.int8], probability: Floats, patients: NDArray[np.str_], *, num_resamples: int, seed: int
) -> dict[str, dict[str, Any]]:
    """``{"ece": {label or "macro": estimate}, "brier": the same}`` of ``probability`` [N, 6]."""
    resampling = Resampling.of(patients, num_resamples=num_resamples, seed=seed)
    ece_RK, brier_RK = [], []
    for column, p in zip(labels.T == 1, probability.T, strict=True):
        ece_RK.append(resampled_ece(column, p, resampling.of_row, resampling.counts_RP))
        brier_RK.append(resampling.ratio((p - column) ** 2, np.ones(len(p))))
    ece = [calibration.expected_calibration_error(*pair) for pair in zip(labels.T, probability.T, strict=True)]
    brier = [calibration.brier(*pair) for pair in zip(labels.T, probability.T, strict=True)]
    present = (labels == 1).any(axis=0)
    return {
        "ece": _by_label(ece, np.stack(ece_RK, axis=1), present, resampling.basis),
        "brier": _by_label(brier, np.stack(brier_RK, axis=1), present, resampling.basis),
    }


def _by_label(values: list[float], samples_RK: Floats, present: NDArray[np.bool_], basis: Basis) -> dict[str, Any]:
    """An estimate for each label and for the mean of the labels that are ``present``."""
    found = {label: estimate(values[i], interval(samples_RK[:, i], basis)) for i, label in enumerate(LABELS)}
    if not present.any():
        return found | {"macro": estimate(None, undefined=NO_POSITIVES)}
    mean = float(np.mean(np.array(values)[present]))
    return found | {"macro": estimate(mean, interval(samples_RK[:, present].mean(axis=1), basis))}


def resampled_ece(
    truth_N: NDArray[np.bool_], p_N: Floats, of_slice: NDArray[np.intp], counts_RP: Floats, bins: int = BINS
) -> Floats:
    """Expected calibration error of every resample, float64 [R], in the equal-mass bins of the whole sample."""
    bin_N = np.searchsorted(np.sort(p_N), p_N, side="left") * bins // len(p_N)
    num_patients = counts_RP.shape[1]
    place = of_slice * bins + bin_N
    excess_PM, size_PM = (
        np.bincount(place, weights=weights, minlength=num_patients * bins).reshape(num_patients, bins)
        for weights in (truth_N - p_N, np.ones(len(p_N)))
    )
    return np.asarray(np.abs(counts_RP @ excess_PM).sum(axis=1) / (counts_RP @ size_PM).sum(axis=1), dtype=np.float64)
