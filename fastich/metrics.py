"""Numbers that say how good the scores are: ROC AUC, average precision, the challenge's log loss, reports, decisions.

scikit-learn does what it has a function for. Slices of one patient are not independent, so intervals come from
resampling whole patients (``fastich/resampling.py``). What is undefined (one class only) is ``None``, never NaN.
Shapes: N slices, R resamples; the six labels in the order of ``labels.LABELS``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from fastich.intervals import UNDEFINED, Basis, Floats, Interval, interval, weakest
from fastich.labels import CHALLENGE_WEIGHTS, LABELS, NUM_LABELS
from fastich.resampling import Resampling

LabelValues = dict[str, float | None]
"""One value a label, and ``macro``, the mean of the defined ones."""

CHALLENGE_CLIP = 1e-15
NO_POSITIVES, NO_NEGATIVES = f"{UNDEFINED}: no positives", f"{UNDEFINED}: no negatives"
DEFAULT_THRESHOLD = 0.5


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


def why_undefined(truth: ArrayLike) -> str:
    """The words for a figure of ``truth`` [N] of 0 and 1, or of a mean over labels [N, 6], that has no value."""
    return NO_POSITIVES if not np.asarray(truth).any() else NO_NEGATIVES


def bootstrap_intervals(
    labels: ArrayLike, probability: ArrayLike, resampling: Resampling, thresholds: ArrayLike = DEFAULT_THRESHOLD
) -> dict[str, dict[str, Interval]]:
    """What may be claimed of each figure of ``labels`` and ``probability`` [N, 6], from resampling whole patients.

    Returns ``{"auc", "average_precision", "sensitivity", "specificity", "log_loss": {label: Interval}}``, the last also
    for ``all`` (the challenge's), the first two for ``macro``. Sensitivity and specificity are at ``thresholds``.
    Seconds for 5,000 slices and 1,000 resamples; equal seeds give equal intervals.
    """
    truth, _ = checked(labels, probability)
    drawn, basis = resampled_metrics(labels, probability, resampling, thresholds), bases(truth, resampling)
    out = {
        name: {label: interval(of, basis[name][label]) for label, of in found.items()} for name, found in drawn.items()
    }
    defined = [label for i, label in enumerate(LABELS) if truth[:, i].any() and not truth[:, i].all()]
    for name in ("auc", "average_precision") if defined else ():
        mean = np.mean([drawn[name][label] for label in defined], axis=0)
        out[name]["macro"] = interval(mean, weakest({label: basis[name][label] for label in defined}))
    return out


def bases(truth: NDArray[np.bool_], resampling: Resampling) -> dict[str, dict[str, Basis]]:
    """What each figure of ``resampled_metrics`` rests on: ``{metric: {label: Basis}}``; ``truth`` [N, 6]."""
    columns = dict(zip(LABELS, truth.T, strict=True))
    areas = {label: resampling.area_basis(real) for label, real in columns.items()}
    return {
        "log_loss": dict.fromkeys(("all", *LABELS), resampling.basis),
        "auc": areas,
        "average_precision": {label: replace(basis, trials=None) for label, basis in areas.items()},
        "sensitivity": {label: resampling.rate_basis(real) for label, real in columns.items()},
        "specificity": {label: resampling.rate_basis(~real) for label, real in columns.items()},
    }


def resampled_metrics(
    labels: ArrayLike, probability: ArrayLike, resampling: Resampling, thresholds: ArrayLike = DEFAULT_THRESHOLD
) -> dict[str, dict[str, Floats]]:
    """Every metric in every resample: ``{metric: {label: float64 [R]}}``, NaN where undefined.

    Two models that are given the same ``resampling`` are compared resample by resample (``fastich/statistics.py``).
    """
    truth, scores = checked(labels, probability)
    said = decide(scores, thresholds)
    loss, one = label_log_loss(truth, scores), np.ones(len(truth))
    out: dict[str, dict[str, Floats]] = {"log_loss": {"all": resampling.ratio(slice_log_loss(truth, scores), one)}}
    for i, label in enumerate(LABELS):
        real = truth[:, i]
        auc, precision = resampling.auc_and_ap(real, scores[:, i])
        samples = {
            "log_loss": resampling.ratio(loss[:, i], one),
            "auc": auc,
            "average_precision": precision,
            "sensitivity": resampling.ratio(real & said[:, i], real),
            "specificity": resampling.ratio(~real & ~said[:, i], ~real),
        }
        for name, values in samples.items():
            out.setdefault(name, {})[label] = values
    return out
