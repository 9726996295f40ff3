"""Thresholds by a stated rule, from validation only; and what a positive or negative answer means where a site works.

Each rule picks a score; the threshold is moved half-way to the next lower one, which changes no decision on the slices
it was chosen on, is less tight for slices not yet seen, and stands clear of float32 rounding. Milliseconds a label.
Shapes: N slices (or studies), the six labels in the order of ``labels.LABELS``.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from fastich.errors import FastichError
from fastich.labels import LABELS
from fastich.metrics import DEFAULT_THRESHOLD, checked
from fastich.predictive_values import ppv_npv

Floats = NDArray[np.float64]
Truth = NDArray[np.bool_]

RULES = ("max-f1", "youden", "sensitivity", "specificity")
WITH_TARGET = ("sensitivity", "specificity")
PREVALENCES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
"""Of the table: from screening to a trauma ward; 14 % of the RSNA slices hold a bleed."""
ROUNDING = 1e-9
"""``target * count`` may exceed a whole number by float64's rounding."""


def parse_rule(text: str) -> tuple[str, float | None]:
    """Rule and target of ``max-f1``, ``youden``, ``sensitivity:0.95`` or ``specificity:0.9``.

    Raises:
        ValueError: the rule is unknown, or its target is missing, superfluous or not in (0, 1].
    """
    rule, colon, number = text.partition(":")
    if not colon:
        return check_rule(rule, None)
    try:
        return check_rule(rule, float(number))
    except ValueError as error:
        raise ValueError(f"threshold rule {text!r}: {error}") from error


def check_rule(rule: str, target: float | None) -> tuple[str, float | None]:
    """Rule and target as they are, once they go together; see ``parse_rule``."""
    if rule not in RULES:
        raise ValueError(f"threshold rule: expected {', '.join(RULES[:-1])} or {RULES[-1]}, found {rule!r}")
    if rule not in WITH_TARGET and target is not None:
        raise ValueError(f"threshold rule: expected no target for {rule}, found {target:g}")
    if rule in WITH_TARGET and (target is None or not 0 < target <= 1):
        found = "none" if target is None else f"{target:g}"
        raise ValueError(f"threshold rule: expected a target in (0, 1], as in {rule}:0.95, found {found}")
    return rule, target


def choose(labels: ArrayLike, probability: ArrayLike, rule: str = "max-f1", target: float | None = None) -> Floats:
    """Thresholds float64 [6] by ``rule``; 0.5 for ``fallback_labels``. For validation slices, never test ones.

    ``max-f1``: the score that maximises F1 (the highest on a tie). ``youden``: sensitivity + specificity (the highest
    on a tie). ``sensitivity``: the highest that reaches ``target``. ``specificity``: the lowest that reaches it.

    Args:
        labels: 0 or 1 [N, 6].
        probability: scores [N, 6], calibrated ones where thresholds are for those.
        rule: one of ``RULES``.
        target: of sensitivity or specificity, in (0, 1].

    Raises:
        ValueError: the rule and its target do not go together.
        FastichError: no threshold up to 1 reaches the target specificity.
    """
    check_rule(rule, target)
    truth, scores = checked(labels, probability)
    chosen = [choose_one(truth[:, i], scores[:, i], rule, target, label=label) for i, label in enumerate(LABELS)]
    return np.array(chosen)


def choose_one(truth_N: Truth, score_N: Floats, rule: str, target: float | None, *, label: str) -> float:
    """The threshold of one label, which only messages name; see ``choose``."""
    if not _is_defined(truth_N, rule):
        return DEFAULT_THRESHOLD
    return _between(_pick(rule, target)(truth_N, score_N), score_N, label)


def _is_defined(truth_N: Truth, rule: str) -> bool:
    """Whether there is a positive, and a negative where the rule counts those."""
    return bool(truth_N.any() and (rule in ("max-f1", "sensitivity") or not truth_N.all()))


def fallback_labels(labels: ArrayLike, rule: str = "max-f1") -> tuple[str, ...]:
    """The labels for which ``rule`` finds nothing to choose by in ``labels`` [N, 6].

    They have no positive, or no negative where the rule counts those.
    """
    truth = np.asarray(labels) == 1
    return tuple(label for label, column in zip(LABELS, truth.T, strict=True) if not _is_defined(column, rule))


def _pick(rule: str, target: float | None) -> Callable[[Truth, Floats], float]:
    """The function that picks a score of one label: called from there up."""
    if rule == "sensitivity":
        return lambda truth, score: _reaches_sensitivity(truth, score, target or 0.0)
    if rule == "specificity":
        return lambda truth, score: _reaches_specificity(truth, score, target or 0.0)
    return {"max-f1": _max_f1, "youden": _max_youden}[rule]


def _max_f1(truth: Truth, score: Floats) -> float:
    precision, recall, threshold = sk.precision_recall_curve(truth, score)
    f1 = 2 * precision[:-1] * recall[:-1] / np.maximum(precision[:-1] + recall[:-1], np.finfo(float).tiny)
    return float(threshold[len(f1) - 1 - int(np.argmax(f1[::-1]))])


def _max_youden(truth: Truth, score: Floats) -> float:
    """Source: Youden, "Index for rating diagnostic tests", Cancer 3, 1950."""
    fpr, tpr, threshold = sk.roc_curve(truth, score, drop_intermediate=False)
    return float(threshold[1:][int(np.argmax(tpr[1:] - fpr[1:]))])


def _reaches_sensitivity(truth: Truth, score: Floats, target: float) -> float:
    positive = np.sort(score[truth])[::-1]
    return float(positive[math.ceil(target * len(positive) - ROUNDING) - 1])


def _reaches_specificity(truth: Truth, score: Floats, target: float) -> float:
    """The lowest score above enough negatives; infinite where only a threshold above every score leaves enough out."""
    negative = np.sort(score[~truth])
    highest_left_out = negative[math.ceil(target * len(negative) - ROUNDING) - 1]
    above = score[score > highest_left_out]
    return float(above.min()) if len(above) else math.inf


def _between(chosen: float, score: Floats, label: str) -> float:
    """Half-way from the score ``chosen`` down to the next lower one (0 below the lowest); from above all, down from 1.

    ``chosen`` itself where float64 has no number between the two.
    """
    below = score[score < chosen]
    low = float(below.max()) if len(below) else 0.0
    if math.isinf(chosen):
        if low >= 1:
            raise FastichError(f"threshold rule: {label}: a negative scores 1, so no threshold leaves it out; lower it")
        return (1.0 + low) / 2
    middle = (chosen + low) / 2
    return middle if len(below) == 0 or middle > low else chosen


def predictive_values(
    points: Mapping[str, Mapping[str, float | None]], prevalences: Sequence[float] = PREVALENCES
) -> dict[str, list[dict[str, float | None]]]:
    """Per label of ``metrics.operating_points`` a table over prevalences: rows of ``prevalence, ppv, npv``."""
    return {
        label: [
            dict(zip(("prevalence", "ppv", "npv"), (at, *ppv_npv(p["sensitivity"], p["specificity"], at)), strict=True))
            for at in prevalences
        ]
        for label, p in points.items()
    }
