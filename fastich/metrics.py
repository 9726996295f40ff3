"""Numbers that say how good the scores are: ROC AUC, average precision, the challenge's log loss, reports, decisions.

Slices of one patient are not independent, so intervals come from resampling whole patients. scikit-learn does what it
has a function for; only the bootstrap is our own, because a thousand calls of scikit-learn on 5,000 slices cost minutes
and one weighted pass over sorted scores costs seconds. What is undefined (one class only) is ``None``, never NaN.
Shapes: N slices, P patients, R resamples, K distinct scores; the six labels in the order of ``labels.LABELS``.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from fastich.labels import CHALLENGE_WEIGHTS, LABELS, NUM_LABELS

Floats = NDArray[np.float64]
LabelValues = dict[str, float | None]
"""One value a label, and ``macro``, the mean of the defined ones."""

CHALLENGE_CLIP = 1e-15
NO_POSITIVES, NO_NEGATIVES = "undefined: no positives", "undefined: no negatives"
DEFAULT_THRESHOLD = 0.5
LEVEL = 0.95
"""Of the intervals: 95 %."""
_CHUNK_ELEMENTS = 2_000_000
"""Elements of the [resamples, slices] blocks of the bootstrap: 16 MB each in float64, which stays near the caches."""


def checked(labels: ArrayLike, probability: ArrayLike) -> tuple[NDArray[np.bool_], Floats]:
    """``labels`` as bool [N, 6] and ``probability`` as float64 [N, 6]; anything else is a ``ValueError``."""
    truth, scores = np.asarray(labels), np.asarray(probability, dtype=np.float64)
    if truth.ndim != 2 or truth.shape[1] != NUM_LABELS or truth.shape != scores.shape or not len(truth):
        raise ValueError(f"labels and probability: expected two [N, 6] with N > 0, found {truth.shape}, {scores.shape}")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels: expected 0 or 1, found other values; leave unlabelled slices out before scoring")
    if not np.isfinite(scores).all():
        raise ValueError("probability: found values that are not finite")
    return truth.astype(bool), scores


def _per_label(
    function: Callable[[NDArray[np.bool_], Floats], float | None], truth: NDArray[np.bool_], scores: Floats
) -> LabelValues:
    values: LabelValues = {label: function(truth[:, i], scores[:, i]) for i, label in enumerate(LABELS)}
    return values | {"macro": mean_of_defined(list(values.values()))}


def mean_of_defined(values: list[float | None]) -> float | None:
    """Mean of the values that are not ``None``; ``None`` when there is none."""
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def binary_auc(truth: NDArray[np.bool_], score: Floats) -> float | None:
    """ROC AUC of one label, ``truth`` and ``score`` [N]; ``None`` when only one class is present."""
    return None if truth.all() or not truth.any() else float(sk.roc_auc_score(truth, score))


def binary_average_precision(truth: NDArray[np.bool_], score: Floats) -> float | None:
    """Average precision of one label, ``truth`` and ``score`` [N]; ``None`` when only one class is present."""
    return None if truth.all() or not truth.any() else float(sk.average_precision_score(truth, score))


def roc_auc(labels: ArrayLike, probability: ArrayLike) -> LabelValues:
    """ROC AUC per label and ``macro``; ``None`` where only one class is present. Both [N, 6]."""
    return _per_label(binary_auc, *checked(labels, probability))


def average_precision(labels: ArrayLike, probability: ArrayLike) -> LabelValues:
    """Average precision per label and ``macro``; ``None`` where only one class is present. Both [N, 6]."""
    return _per_label(binary_average_precision, *checked(labels, probability))


def prevalence(labels: ArrayLike) -> dict[str, float]:
    """Fraction of slices that carry each label; ``labels`` [N, 6] of 0 and 1."""
    return dict(zip(LABELS, np.asarray(labels, dtype=np.float64).mean(axis=0).tolist(), strict=True))


def label_log_loss(labels: ArrayLike, probability: ArrayLike) -> Floats:
    """Log loss of each label of each slice, float64 [N, 6], probabilities clipped as the challenge does."""
    truth, scores = checked(labels, probability)
    clipped = np.clip(scores, CHALLENGE_CLIP, 1 - CHALLENGE_CLIP)
    return np.asarray(-np.where(truth, np.log(clipped), np.log1p(-clipped)), dtype=np.float64)


def slice_log_loss(labels: ArrayLike, probability: ArrayLike) -> Floats:
    """The challenge's weighted log loss of each slice, float64 [N]: ``any`` counts twice, the sum is divided by 7."""
    loss = label_log_loss(labels, probability)
    return np.asarray(np.average(loss, axis=1, weights=CHALLENGE_WEIGHTS), dtype=np.float64)


def log_loss_weighted(labels: ArrayLike, probability: ArrayLike) -> float:
    """The RSNA 2019 challenge's metric: mean weighted log loss, probabilities clipped at 1e-15.

    Source: https://www.kaggle.com/competitions/rsna-intracranial-hemorrhage-detection/overview/evaluation
    """
    return float(slice_log_loss(labels, probability).mean())


def decide(probability: ArrayLike, thresholds: ArrayLike) -> NDArray[np.bool_]:
    """Decisions bool [N, 6]: ``probability >= thresholds``; ``thresholds`` is one number or six."""
    return np.asarray(np.asarray(probability, dtype=np.float64) >= np.asarray(thresholds, dtype=np.float64))


def operating_points(labels: ArrayLike, probability: ArrayLike, thresholds: ArrayLike) -> dict[str, dict[str, Any]]:
    """Per label ``tp, fp, fn, tn`` and ``sensitivity, specificity, ppv, npv`` (``None`` where undefined)."""
    truth, scores = checked(labels, probability)
    said = decide(scores, thresholds)
    points: dict[str, dict[str, Any]] = {}
    for i, label in enumerate(LABELS):
        tp, fp = int((truth[:, i] & said[:, i]).sum()), int((~truth[:, i] & said[:, i]).sum())
        fn, tn = int((truth[:, i] & ~said[:, i]).sum()), int((~truth[:, i] & ~said[:, i]).sum())
        points[label] = {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
        points[label] |= {"sensitivity": _ratio(tp, tp + fn), "specificity": _ratio(tn, tn + fp)}
        points[label] |= {"ppv": _ratio(tp, tp + fp), "npv": _ratio(tn, tn + fn)}
    return points


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def slice_summary(labels: ArrayLike, probability: ArrayLike, threshold: float = DEFAULT_THRESHOLD) -> dict[str, Any]:
    """What an epoch logs: ``{"log_loss": float, "precision", "recall", "auc": {label or "macro": float | None}}``.

    Both inputs [N, 6]. Precision is 0 where nothing is predicted; all are ``None`` for a label without a positive.
    About a second for 600,000 slices.
    """
    truth, scores = checked(labels, probability)
    said = decide(scores, threshold)
    hits, real, alarms = (truth & said).sum(axis=0), truth.sum(axis=0), said.sum(axis=0)
    precision: LabelValues = {
        label: float(hits[i] / max(alarms[i], 1)) if real[i] else None for i, label in enumerate(LABELS)
    }
    recall: LabelValues = {label: float(hits[i] / real[i]) if real[i] else None for i, label in enumerate(LABELS)}
    return {
        "log_loss": float(slice_log_loss(truth, scores).mean()),
        "precision": precision | {"macro": mean_of_defined(list(precision.values()))},
        "recall": recall | {"macro": mean_of_defined(list(recall.values()))},
        "auc": _per_label(binary_auc, truth, scores),
    }


def roc_points(labels: ArrayLike, probability: ArrayLike) -> dict[str, tuple[Floats, Floats, Floats]]:
    """Per label with both classes ``(threshold, fpr, tpr)``, scikit-learn's curve without collinear points.

    The first threshold is infinite: nothing is called positive.
    """
    truth, scores = checked(labels, probability)
    curves = {}
    for i, label in enumerate(LABELS):
        if truth[:, i].any() and not truth[:, i].all():
            fpr, tpr, threshold = sk.roc_curve(truth[:, i], scores[:, i])
            curves[label] = (threshold, fpr, tpr)
    return curves


def pr_points(labels: ArrayLike, probability: ArrayLike) -> dict[str, tuple[Floats, Floats]]:
    """Per label with both classes ``(recall, precision)``, scikit-learn's curve from recall 1 down to 0."""
    truth, scores = checked(labels, probability)
    curves = {}
    for i, label in enumerate(LABELS):
        if truth[:, i].any() and not truth[:, i].all():
            precision, recall, _ = sk.precision_recall_curve(truth[:, i], scores[:, i])
            curves[label] = (recall, precision)
    return curves


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A percentile interval; ``num_undefined`` resamples held one class only and were skipped."""

    low: float
    high: float
    num_undefined: int


def why_undefined(truth: ArrayLike) -> str:
    """The words for a figure of one label, ``truth`` [N] of 0 and 1, that has no value."""
    return NO_POSITIVES if not np.asarray(truth).any() else NO_NEGATIVES


def estimate(value: float | None, interval: Interval | None = None) -> dict[str, Any]:
    """``{"value", "low", "high", "num_undefined"}``; ``None`` for what is not defined or has no interval."""
    span = dict.fromkeys(("low", "high", "num_undefined")) if interval is None else asdict(interval)
    return {"value": value, **span}


def bootstrap_intervals(
    labels: ArrayLike,
    probability: ArrayLike,
    patients: ArrayLike,
    *,
    thresholds: ArrayLike = DEFAULT_THRESHOLD,
    num_resamples: int = 1000,
    level: float = LEVEL,
    seed: int = 0,
) -> dict[str, dict[str, Interval | None]]:
    """Percentile intervals from resampling the patients ``patients`` [N] with replacement.

    Returns ``{"auc", "average_precision", "sensitivity", "specificity", "log_loss": {label: Interval | None}}``, the
    last also for ``all`` (the challenge's); ``None`` where no resample is defined. Sensitivity and specificity are at
    ``thresholds``, and exact where all or none are found (``all_or_none``).
    Seconds for 5,000 slices and 1,000 resamples; equal seeds give equal intervals.
    """
    of_slice, num_patients = patient_numbers(patients)
    counts_RP = resample_counts(num_patients, num_resamples, seed)
    values = resampled_metrics(labels, probability, of_slice, counts_RP, thresholds)
    out = {
        name: {label: percentile_interval(drawn, level) for label, drawn in by_label.items()}
        for name, by_label in values.items()
    }
    truth = np.asarray(labels) == 1
    for name, real_NK in (("sensitivity", truth), ("specificity", ~truth)):
        for i, label in enumerate(LABELS):
            out[name][label] = all_or_none(out[name][label], of_slice[real_NK[:, i]], level)
    return out


def patient_numbers(patients: ArrayLike) -> tuple[NDArray[np.intp], int]:
    """The number of each slice's patient [N], counted from 0, and how many patients there are."""
    names, of_slice = np.unique(np.asarray(patients).astype(str), return_inverse=True)
    return of_slice, len(names)


def resampled_metrics(
    labels: ArrayLike,
    probability: ArrayLike,
    of_slice: NDArray[np.intp],
    counts_RP: Floats,
    thresholds: ArrayLike = DEFAULT_THRESHOLD,
) -> dict[str, dict[str, Floats]]:
    """Every metric in every resample: ``{metric: {label: float64 [R]}}``, NaN where undefined.

    Two models that are given the same ``counts_RP`` are compared resample by resample (``fastich/statistics.py``).
    """
    truth, scores = checked(labels, probability)
    said = decide(scores, thresholds)
    loss, one = label_log_loss(truth, scores), np.ones(len(truth))
    weighted = counts_ratio(slice_log_loss(truth, scores), one, of_slice, counts_RP)
    out: dict[str, dict[str, Floats]] = {"log_loss": {"all": weighted}}
    for i, label in enumerate(LABELS):
        real = truth[:, i]
        auc, precision = resampled_auc_and_ap(real, scores[:, i], of_slice, counts_RP)
        samples = {
            "log_loss": counts_ratio(loss[:, i], one, of_slice, counts_RP),
            "auc": auc,
            "average_precision": precision,
            "sensitivity": counts_ratio(real & said[:, i], real, of_slice, counts_RP),
            "specificity": counts_ratio(~real & ~said[:, i], ~real, of_slice, counts_RP),
        }
        for name, values in samples.items():
            out.setdefault(name, {})[label] = values
    return out


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


def all_or_none(span: Interval | None, patients_judged: NDArray[np.intp], level: float = LEVEL) -> Interval | None:
    """``span`` of a rate, or where it is 1 to 1 (or 0 to 0) the exact binomial one over the patients judged.

    Where nothing was missed no resample misses anything, and the bootstrap would claim certainty. ``patients_judged``
    holds the patient of each slice in the rate's denominator; each is one trial, for their slices are not independent.

    Source: Clopper and Pearson, Biometrika 26 (1934) 404-413.
    """
    if span is None or span.low != span.high or span.low not in (0.0, 1.0):
        return span
    edge = float(((1 - level) / 2) ** (1 / len(np.unique(patients_judged))))
    low, high = (edge, 1.0) if span.low else (0.0, 1 - edge)
    return Interval(low=low, high=high, num_undefined=span.num_undefined)


def _half_ties(called_RK: Floats, tp_RK: Floats, gain_RK: Floats) -> Floats:
    """Half the pairs of a positive and a negative with equal scores: they count one half in the AUC."""
    false_gain_RK = np.diff(called_RK - tp_RK, axis=1, prepend=0.0)
    return np.asarray((false_gain_RK * gain_RK).sum(axis=1) / 2, dtype=np.float64)


def percentile_interval(values: Floats, level: float = LEVEL) -> Interval | None:
    """The central ``level`` of the defined ``values`` [R]; ``None`` when none is defined."""
    defined = values[np.isfinite(values)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high), num_undefined=int(len(values) - len(defined)))
