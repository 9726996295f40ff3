"""The bootstrap by patient: who is drawn how often, and figures of every resample at once.

A thousand calls of scikit-learn on 5,000 slices cost minutes; one weighted pass over scores that are sorted once costs
seconds. What may be claimed of the figures says ``fastich/intervals.py``.
Shapes: N rows (slices or studies), P patients, R resamples, K distinct scores.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastich.intervals import Basis, Floats, Interval, area_basis, interval, rate_basis

_CHUNK_ELEMENTS = 2_000_000
"""Elements of the [resamples, rows] blocks of the bootstrap: 16 MB each in float64, which stays near the caches."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampling:
    """Draws of whole patients: ``of_row`` [N] numbers each row's patient, ``counts_RP`` how often each is drawn."""

    of_row: NDArray[np.intp]
    counts_RP: Floats
    unit: str = "patient"

    @classmethod
    def of(
        cls, patients: ArrayLike, *, num_resamples: int = 1000, seed: int = 0, unit: str = "patient"
    ) -> "Resampling":
        """Draws of the ``patients`` [N] of N rows; equal seeds give equal draws."""
        of_row, num_patients = patient_numbers(patients)
        return cls(of_row=of_row, counts_RP=resample_counts(num_patients, num_resamples, seed), unit=unit)

    def ratio(self, part: ArrayLike, whole: ArrayLike) -> Floats:
        """``sum(part) / sum(whole)`` of each resample, float64 [R]; NaN where ``whole`` sums to 0."""
        return counts_ratio(part, whole, self.of_row, self.counts_RP)

    def auc_and_ap(self, truth: NDArray[np.bool_], score: Floats) -> tuple[Floats, Floats]:
        """ROC AUC and average precision of each resample; ``truth`` and ``score`` [N] (``resampled_auc_and_ap``)."""
        return resampled_auc_and_ap(truth, score, self.of_row, self.counts_RP)

    def rate(self, part: ArrayLike, whole: ArrayLike) -> Interval:
        """The interval of the rate ``sum(part) / sum(whole)``, each [N] and 0 to 1 a row."""
        return interval(self.ratio(part, whole), self.rate_basis(whole))

    def rate_basis(self, whole: ArrayLike) -> Basis:
        """What a rate rests on whose denominator are the rows ``whole`` [N]."""
        return rate_basis(self.of_row, np.asarray(whole, dtype=np.bool_), self.unit)

    def area_basis(self, truth: NDArray[np.bool_]) -> Basis:
        """What an AUC rests on; ``truth`` [N]."""
        return area_basis(self.of_row, truth, self.unit)

    @property
    def basis(self) -> Basis:
        """What a figure of all patients rests on that has no exact interval, such as a log loss."""
        count = self.counts_RP.shape[1]
        return Basis(fewest=count, every=count, unit=self.unit)


def patient_numbers(patients: ArrayLike) -> tuple[NDArray[np.intp], int]:
    """The number of each slice's patient [N], counted from 0, and how many patients there are."""
    names, of_slice = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    return of_slice, len(names)


def resample_counts(num_patients: int, num_resamples: int, seed: int) -> Floats:
    """How often each patient is drawn, float64 [R, P]; every row sums to P."""
    rng = np.random.default_rng([seed, num_patients])
    return rng.multinomial(num_patients, np.full(num_patients, 1 / num_patients), size=num_resamples).astype(np.float64)


def counts_ratio(part: ArrayLike, whole: ArrayLike, of_slice: NDArray[np.intp], counts_RP: Floats) -> Floats:
    """``sum(part) / sum(whole)`` over the slices of each resample, float64 [R]; NaN where ``whole`` sums to 0."""
    num_patients = counts_RP.shape[1]
    sums = [
        counts_RP @ np.bincount(of_slice, weights=np.asarray(values, dtype=np.float64), minlength=num_patients)
        for values in (part, whole)
    ]
    return np.where(sums[1] > 0, sums[0] / np.where(sums[1] > 0, sums[1], 1), np.nan)


def resampled_auc_and_ap(
    truth: NDArray[np.bool_], score: Floats, of_slice: NDArray[np.intp], counts_RP: Floats
) -> tuple[Floats, Floats]:
    """ROC AUC and average precision of every resample, float64 [R] each; NaN where one class is absent.

    Ties are treated as scikit-learn treats them.
    """
    auc, precision = np.full(len(counts_RP), np.nan), np.full(len(counts_RP), np.nan)
    for part, called_RK, tp_RK in resampled_curves(truth, score, of_slice, counts_RP):
        tp, fp = tp_RK[:, -1], called_RK[:, -1] - tp_RK[:, -1]
        defined = (tp > 0) & (fp > 0)
        gain_RK = np.diff(tp_RK, axis=1, prepend=0.0)
        area = ((called_RK - tp_RK) * gain_RK).sum(axis=1) - _half_ties(called_RK, tp_RK, gain_RK)
        hits = (gain_RK * tp_RK / np.maximum(called_RK, 1.0)).sum(axis=1)
        auc[part] = np.where(defined, 1 - area / np.maximum(tp * fp, 1.0), np.nan)
        precision[part] = np.where(defined, hits / np.maximum(tp, 1.0), np.nan)
    return auc, precision


def resampled_curves(
    truth: NDArray[np.bool_], score: Floats, of_slice: NDArray[np.intp], counts_RP: Floats
) -> Iterator[tuple[slice, Floats, Floats]]:
    """Block by block of the resamples: which, and how many are called and how many of them rightly, [rows, K] each.

    The scores are sorted once; a resample only changes the weights, so both are cumulated weights at the last slice of
    each distinct score, from the highest score down: calling everything comes last.
    """
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    positive, patient = truth[order], of_slice[order]
    rows = max(1, _CHUNK_ELEMENTS // len(order))
    for start in range(0, len(counts_RP), rows):
        weight = counts_RP[start : start + rows][:, patient]
        called_RK = np.cumsum(weight, axis=1)[:, last_of_tie]
        weight *= positive
        tp_RK = np.cumsum(weight, axis=1)[:, last_of_tie]
        yield slice(start, start + len(weight)), called_RK, tp_RK


def _half_ties(called_RK: Floats, tp_RK: Floats, gain_RK: Floats) -> Floats:
    """Half the pairs of a positive and a negative with equal scores: they count one half in the AUC."""
    false_gain_RK = np.diff(called_RK - tp_RK, axis=1, prepend=0.0)
    return np.asarray((false_gain_RK * gain_RK).sum(axis=1) / 2, dtype=np.float64)
