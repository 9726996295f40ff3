"""Logits to probabilities that mean what they say: temperature, Platt, isotonic, fitted label by label on validation.

A network that ranks well may still be far too sure of itself. Each label gets its own rising map from logit to
probability, so no ranking changes, and p(any) >= max p(subtype) is enforced behind it. Constants are rounded to
float32, the precision of the exported graph, so that the document, numpy and the graph compute with the same numbers.
A label that cannot be fitted keeps the sigmoid, and the document says why. Fitting 100,000 slices takes under a second.

Slices or studies: any logits [N, 6]. Shapes: N rows, K = 6 labels in the order of ``labels.LABELS``, M knots.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from fastich.calibration_fit import isotonic_knots, sigmoid_constants
from fastich.labels import LABELS, NUM_LABELS, UNKNOWN, enforce_any
from fastich.metrics import NO_NEGATIVES, NO_POSITIVES
from fastich.resampling import patient_numbers
from fastich.splits import stratify

Floats = NDArray[np.float64]

METHODS = ("none", "temperature", "platt", "isotonic")
FOLDS = 5
BINS = 15
"""Source: Guo et al. 2017, table 1."""
FOLD_STREAM = 11
"""Second word of the seed of ``cross_fitted``'s folds."""

SCALE, BIAS = "calibration_scale", "calibration_bias"
KNOTS, VALUES, PIECEWISE = "calibration_knots", "calibration_values", "calibration_piecewise"
"""Names of the constants in an exported graph, whatever the exporter calls the rest."""
BEYOND = np.float32(3e38)
"""Where a label's table of knots is filled up: no logit reaches it, and float32 holds it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelCalibration:
    """One label: ``sigmoid(scale * logit + bias)``, or the line through ``knots`` (logit, probability), flat beyond.

    ``why_not`` is the reason where a fit was asked for and ``method`` is ``none``; the counts are those of the fit.
    """

    method: str = "none"
    scale: float = 1.0
    bias: float = 0.0
    knots: tuple[tuple[float, float], ...] = ()
    num_positive: int = 0
    num_negative: int = 0
    why_not: str = ""

    def __post_init__(self) -> None:
        """Refuse what would not be a rising map into [0, 1]."""
        if self.method not in METHODS:
            raise ValueError(f"calibration: expected a method of {', '.join(METHODS)}, found {self.method!r}")
        if not (0 < self.scale < np.inf and abs(self.bias) < np.inf):
            raise ValueError(f"calibration: expected scale > 0 and a finite bias, found {self.scale}, {self.bias}")
        if (self.method == "isotonic") != bool(self.knots):
            raise ValueError(f"calibration: expected knots of isotonic only, found {len(self.knots)} of {self.method}")
        x, y = np.array(self.knots, dtype=np.float64).reshape(-1, 2).T
        if not (np.isfinite(x).all() and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()):
            raise ValueError("calibration: expected finite knots, rising in logit and never falling in probability")
        if not ((y >= 0) & (y <= 1)).all():
            raise ValueError(f"calibration: expected probabilities of knots from 0 to 1, found {y.min()} to {y.max()}")

    def probability(self, logit_N: Floats) -> Floats:
        """Probability float64 [N] of ``logit_N``."""
        if self.knots:
            x, y = np.array(self.knots, dtype=np.float64).T
            return np.asarray(np.interp(logit_N, x, y), dtype=np.float64)
        return np.asarray(expit(self.scale * logit_N + self.bias), dtype=np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Six maps in label order, and the ``method`` that was asked for (a label may have fallen back to ``none``)."""

    method: str = "none"
    of_label: tuple[LabelCalibration, ...] = (LabelCalibration(),) * NUM_LABELS

    def __post_init__(self) -> None:
        """Refuse an unknown method and any but six labels."""
        if self.method not in METHODS:
            raise ValueError(f"calibration: expected a method of {', '.join(METHODS)}, found {self.method!r}")
        if len(self.of_label) != NUM_LABELS:
            raise ValueError(f"calibration: expected {NUM_LABELS} labels, found {len(self.of_label)}")

    def probability(self, logit_NK: ArrayLike) -> Floats:
        """Probabilities float64 [N, 6] of raw logits [N, 6], with p(any) >= max p(subtype).

        Raises:
            ValueError: ``logit_NK`` has another shape.
        """
        logit = np.asarray(logit_NK, dtype=np.float64)
        if logit.ndim != 2 or logit.shape[1] != NUM_LABELS:
            raise ValueError(f"logit: expected [N, {NUM_LABELS}], found {list(logit.shape)}")
        each = [one.probability(logit[:, i]) for i, one in enumerate(self.of_label)]
        return np.asarray(enforce_any(np.stack(each, axis=1)), dtype=np.float64)

    @property
    def uncalibrated(self) -> dict[str, str]:
        """The labels that keep the sigmoid although a method was asked for, and why."""
        return {label: one.why_not for label, one in zip(LABELS, self.of_label, strict=True) if one.why_not}

    def to_document(self) -> dict[str, Any]:
        """JSON values that ``from_document`` takes back exactly; ``{"method": "none"}`` where nothing was fitted."""
        if self == NONE:
            return {"method": "none"}
        of_label = dict(zip(LABELS, map(_label_document, self.of_label), strict=True))
        return {"method": self.method, "labels": of_label, "uncalibrated": self.uncalibrated}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Calibration":
        """The calibration that ``to_document`` wrote; keys that it did not write are left alone.

        Raises:
            ValueError: the document holds no calibration.
        """
        try:
            if document["method"] == "none" and "labels" not in document:
                return NONE
            of_label = tuple(_label_from(document["labels"][label]) for label in LABELS)
            return cls(method=document["method"], of_label=of_label)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"{type(error).__name__} {error}"
            raise ValueError(f"calibration: expected a document of a method and six labels, found {what}") from error


NONE = Calibration()
"""The network's own sigmoid."""


def _label_document(one: LabelCalibration) -> dict[str, Any]:
    shape: dict[str, Any] = {"scale": one.scale, "bias": one.bias}
    if one.knots:
        shape = {"knots": [list(knot) for knot in one.knots]}
    counts = {"num_positive": one.num_positive, "num_negative": one.num_negative}
    return {"method": one.method, **shape, **counts} | ({"why_not": one.why_not} if one.why_not else {})


def _label_from(document: Mapping[str, Any]) -> LabelCalibration:
    return LabelCalibration(
        method=document["method"],
        scale=float(document.get("scale", 1.0)),
        bias=float(document.get("bias", 0.0)),
        knots=tuple((float(x), float(y)) for x, y in document.get("knots", ())),
        num_positive=int(document["num_positive"]),
        num_negative=int(document["num_negative"]),
        why_not=str(document.get("why_not", "")),
    )


def constants(calibration: Calibration) -> dict[str, NDArray[Any]]:
    """What a graph needs, by name: float32 scale [K] and bias [K]; with knots also their tables [M, K], and bool [K].

    Each label's table ends in at least one knot at ``BEYOND`` with the last value, so every logit has a next knot.
    """
    each = calibration.of_label
    found: dict[str, NDArray[Any]] = {
        SCALE: np.array([one.scale for one in each], dtype=np.float32),
        BIAS: np.array([one.bias for one in each], dtype=np.float32),
    }
    if not any(one.knots for one in each):
        return found
    tables = [np.array(one.knots or ((0.0, 0.0),), dtype=np.float32) for one in each]
    rows = max(map(len, tables)) + 1
    x = [np.append(table[:, 0], np.full(rows - len(table), BEYOND)) for table in tables]
    y = [np.append(table[:, 1], np.full(rows - len(table), table[-1, 1])) for table in tables]
    found[KNOTS], found[VALUES] = np.stack(x, axis=1), np.stack(y, axis=1)
    found[PIECEWISE] = np.array([bool(one.knots) for one in each])
    return found


def fit(logit_NK: ArrayLike, labels_NK: ArrayLike, method: str) -> Calibration:
    """Fit ``method`` on raw logits [N, 6] and labels [N, 6] of 1, 0 and -1 (unknown: left out for that label).

    A label without a positive or a negative, or whose fit would not rise, keeps the sigmoid and says so in ``why_not``.

    Raises:
        ValueError: the method is unknown, or the input has another shape or other values.

    Source: Guo et al., "On calibration of modern neural networks", ICML 2017 (temperature, here one a label); Platt,
    "Probabilistic outputs for support vector machines", 1999; Zadrozny and Elkan, KDD 2002 (isotonic).
    """
    if method not in METHODS:
        raise ValueError(f"calibration: expected a method of {', '.join(METHODS)}, found {method!r}")
    logit, labels = checked(logit_NK, labels_NK)
    if method == "none":
        return NONE
    known = labels != UNKNOWN
    of_label = (fit_label(logit[known[:, i], i], labels[known[:, i], i] == 1, method) for i in range(NUM_LABELS))
    return Calibration(method=method, of_label=tuple(of_label))


def checked(logit_NK: ArrayLike, labels_NK: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    """Both as arrays [N, 6]; anything that has no meaning is a ``ValueError``."""
    logit, labels = np.asarray(logit_NK, dtype=np.float64), np.asarray(labels_NK)
    if logit.ndim != 2 or logit.shape[1] != NUM_LABELS or logit.shape != labels.shape or not len(logit):
        raise ValueError(f"logit and labels: expected two [N, 6] with N > 0, found {logit.shape}, {labels.shape}")
    if not np.isfinite(logit).all():
        raise ValueError("logit: found values that are not finite")
    if not np.isin(labels, (0, 1, UNKNOWN)).all():
        raise ValueError("labels: expected 0, 1 or -1 (unknown), found other values")
    return logit, labels.astype(np.int64)


def fit_label(logit_N: Floats, truth_N: NDArray[np.bool_], method: str) -> LabelCalibration:
    """Fit one label by ``method`` (not ``none``); see ``fit``."""
    positive = int(truth_N.sum())
    negative = len(truth_N) - positive
    found = functools.partial(LabelCalibration, num_positive=positive, num_negative=negative)
    if not positive or not negative:
        return found(why_not=NO_NEGATIVES if positive else NO_POSITIVES)
    if method == "isotonic":
        knots = isotonic_knots(logit_N, truth_N)
        if knots[0][1] == knots[-1][1]:
            return found(why_not="refused: the isotonic fit does not rise with the logit")
        return found(method=method, knots=knots)
    scale, bias = sigmoid_constants(logit_N, truth_N, with_bias=method == "platt")
    if not 0 < scale < np.inf:
        return found(why_not=f"refused: expected a slope above 0, found {scale:.3g}")
    return found(method=method, scale=scale, bias=bias)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossFitted:
    """Probabilities float64 [N, 6], each row's by a calibration that never saw its group.

    ``unfitted`` names the labels that can be calibrated on all groups, but not on some folds' other groups: how many
    folds, and why. There a row keeps the sigmoid, so what calibration is worth is not measured on it.
    """

    probability: Floats
    unfitted: dict[str, str]


def cross_fitted(
    logit_NK: ArrayLike, labels_NK: ArrayLike, groups_N: ArrayLike, method: str, folds: int = FOLDS, seed: int = 0
) -> CrossFitted:
    """What calibration is worth: each group is calibrated by the others.

    Args:
        logit_NK: raw logits [N, 6].
        labels_NK: 1, 0 or -1 (unknown) [N, 6].
        groups_N: the patient of each row [N].
        method: one of ``METHODS``.
        folds: parts of the groups, stratified by label, rarest first.
        seed: equal seeds give equal folds.

    Raises:
        ValueError: there are fewer groups than folds, or the input cannot be fitted.
    """
    logit, labels = checked(logit_NK, labels_NK)
    fold_N = group_folds(groups_N, labels, folds, seed)
    whole, parts = fit(logit, labels, method), []
    out = np.empty_like(logit)
    for fold in range(folds):
        held = fold_N == fold
        parts.append(fit(logit[~held], labels[~held], method))
        out[held] = parts[-1].probability(logit[held])
    return CrossFitted(probability=out, unfitted=_unfitted(whole, parts))


def _unfitted(whole: Calibration, parts: Sequence[Calibration]) -> dict[str, str]:
    """The labels that ``whole`` calibrates and some of ``parts`` do not, in words."""
    found = {}
    for label in LABELS:
        reasons = [part.uncalibrated[label] for part in parts if label in part.uncalibrated]
        if reasons and label not in whole.uncalibrated:
            why = "; ".join(dict.fromkeys(reasons))
            found[label] = f"not calibrated in {len(reasons)} of {len(parts)} folds, {why}"
    return found


def group_folds(groups_N: ArrayLike, labels_NK: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each row [N]: whole groups, each label's positives spread over the folds, none of them empty.

    Raises:
        ValueError: there are fewer than 2 folds, or fewer groups than folds.
    """
    group_N, num_groups = patient_numbers(groups_N)
    if not 2 <= folds <= num_groups:
        raise ValueError(
            f"cross-fitting: expected 2 or more folds and a patient for each, found {folds} folds and {num_groups} "
            "patients; give outcomes, or validation studies, of more patients"
        )
    positive = [np.bincount(group_N[column == 1], minlength=num_groups) > 0 for column in labels_NK.T]
    weights = np.stack([*positive, np.bincount(group_N)], axis=1).astype(np.int64)
    rng = np.random.default_rng([seed, FOLD_STREAM])
    dealt = stratify(weights, np.full(folds, 1 / folds), None, rng)  # no order of folds: they are all alike
    return np.asarray(dealt[group_N], dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReliabilityBin:
    """Rows of like probability: how many, what they say on average, and what fraction is positive."""

    count: int
    mean_probability: float
    observed: float


def reliability(truth_N: ArrayLike, p_N: ArrayLike, bins: int = BINS) -> list[ReliabilityBin]:
    """At most ``bins`` bins of nearly equal count, rising in probability; equal probabilities share a bin.

    Raises:
        ValueError: there is no row, or the two differ in length.
    """
    truth, p = np.asarray(truth_N) == 1, np.asarray(p_N, dtype=np.float64)
    if not len(p) or truth.shape != p.shape or p.ndim != 1:
        raise ValueError(f"reliability: expected two [N] with N > 0, found {truth.shape}, {p.shape}")
    bin_N = np.searchsorted(np.sort(p), p, side="left") * bins // len(p)
    rows = [bin_N == one for one in np.unique(bin_N)]
    return [
        ReliabilityBin(count=int(r.sum()), mean_probability=float(p[r].mean()), observed=float(truth[r].mean()))
        for r in rows
    ]


def expected_calibration_error(truth_N: ArrayLike, p_N: ArrayLike, bins: int = BINS) -> float:
    """Mean distance between what a bin says and what is observed, weighted by count; bins of equal mass.

    Equal mass, because most slices of a rare label lie in the lowest bin of equal width, which would hide the rest.
    It is never quite 0 on finite data: the fraction observed in a bin has noise of its own.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", AAAI 2015 (sorted and
    partitioned); Guo et al., ICML 2017, equation 3; Nixon et al., "Measuring calibration in deep learning", 2019.
    """
    found = reliability(truth_N, p_N, bins)
    rows = sum(one.count for one in found)
    return sum(one.count * abs(one.mean_probability - one.observed) for one in found) / rows


def brier(truth_N: ArrayLike, p_N: ArrayLike) -> float:
    """Mean squared difference between probability and truth. Source: Brier, Monthly Weather Review 78, 1950."""
    return float(np.mean((np.asarray(p_N, dtype=np.float64) - (np.asarray(truth_N) == 1)) ** 2))


def before_and_after(
    labels_NK: NDArray[np.integer], before_NK: Floats, after_NK: Floats, bins: int = BINS
) -> dict[str, dict[str, Any]]:
    """Per label ``num_positive``, ``num_negative`` and, each of ``before`` and ``after``, ``ece``, ``brier``, bins.

    JSON values; rows of unknown label (-1) are left out, and a label without any known row has ``None``.
    """
    found: dict[str, dict[str, Any]] = {}
    for i, label in enumerate(LABELS):
        known = labels_NK[:, i] != UNKNOWN
        truth = labels_NK[known, i] == 1
        row: dict[str, Any] = {"num_positive": int(truth.sum()), "num_negative": int((~truth).sum())}
        for name, p_NK in (("before", before_NK), ("after", after_NK)):
            row[name] = _quality(truth, p_NK[known, i], bins) if known.any() else None
        found[label] = row
    return found


def _quality(truth_N: NDArray[np.bool_], p_N: Floats, bins: int) -> dict[str, Any]:
    return {
        "ece": expected_calibration_error(truth_N, p_N, bins),
        "brier": brier(truth_N, p_N),
        "bins": [asdict(one) for one in reliability(truth_N, p_N, bins)],
    }
