"""What a site's outcomes say: Platt's constants, thresholds in the new probabilities, triage, and what it gains.

Pure functions behind the verb ``recalibrate``. Shapes: N rows, K = 6 labels in the order of ``labels.LABELS``.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from fastich import calibration as fitting
from fastich import conformal, operating_points
from fastich.artifact import Thresholds
from fastich.calibration import Calibration, LabelCalibration
from fastich.conformal import Triage
from fastich.errors import FastichError
from fastich.labels import ANY, LABELS, UNKNOWN
from fastich.outcomes import Joined, Outcomes

STORED, KEEP = "stored", "keep"
"""Rules of thresholds beside those of ``operating_points``: the model's own, and none: the same decisions."""
KEPT = ", kept when recalibrated"

ROUNDING = 1e-6
"""Of a probability: graphs compute in float32, and the case that a cut was put at must stay above it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What model.json says turns the raw logits of slices, or of studies, into probabilities and decisions.

    ``calibration`` is a document of ``calibration.py``, ``triage`` one of ``conformal.py``; None without.
    """

    calibration: Mapping[str, Any]
    thresholds: Thresholds
    triage: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Refit:
    """What the outcomes say: the calibration, why each label that kept its own did, and figures before and after."""

    calibration: Calibration
    kept: dict[str, str]
    quality: dict[str, dict[str, Any]]


def refit_labels(before: Calibration, joined: Joined, *, least: int, folds: int, seed: int, where: str) -> Refit:
    """Platt's constants of every label with enough of both classes, and cross-fitted figures of what that is worth.

    Args:
        before: the model's calibration.
        joined: outcomes and raw logits.
        least: positives, and negatives, that a label needs.
        folds: parts of the patients, fewer where there are fewer patients.
        seed: of the folds.
        where: names the outcomes in messages.

    Raises:
        FastichError: no label can be fitted anew, or all outcomes are of one patient.
    """
    new, kept = merged(before, joined.logit, joined.labels, least)
    if len(kept) == len(LABELS):
        reasons = "; ".join(f"{label}: {why}" for label, why in kept.items())
        raise FastichError(f"{where}: expected a label that can be fitted anew, found none ({reasons})")
    num_patients = len(set(joined.patients.tolist()))
    if num_patients < 2:
        raise FastichError(f"{where}: expected outcomes of two patients or more, found {num_patients}")
    folds = min(folds, num_patients)
    fold_N = fitting.group_folds(joined.patients, joined.labels, folds, seed)
    after = np.empty_like(joined.logit)
    for fold in range(folds):
        held = fold_N == fold
        part, _ = merged(before, joined.logit[~held], joined.labels[~held], 1, set(LABELS) - set(kept))
        after[held] = part.probability(joined.logit[held])
    quality = fitting.before_and_after(joined.labels, before.probability(joined.logit), after)
    return Refit(calibration=new, kept=kept, quality=quality)


def merged(
    before: Calibration,
    logit_NK: NDArray[np.float64],
    labels_NK: NDArray[np.int64],
    least: int,
    only: set[str] | None = None,
) -> tuple[Calibration, dict[str, str]]:
    """``before`` with Platt's constants of each label that has ``least`` of both classes; and why others have none.

    With ``only`` no other label is looked at.
    """
    fresh = fitting.fit(logit_NK, labels_NK, "platt")
    of_label, kept = [], {}
    for label, old, new in zip(LABELS, before.of_label, fresh.of_label, strict=True):
        fewest = min(new.num_positive, new.num_negative)
        why = new.why_not
        if fewest < least:
            why = f"needs {least} positives and negatives, found {new.num_positive} and {new.num_negative}"
        if why or (only is not None and label not in only):
            kept[label] = why
        of_label.append(old if label in kept else new)
    return Calibration(method="platt", of_label=tuple(of_label)), kept


def choose_thresholds(
    old: Thresholds, before: Calibration, refit: Refit, joined: Joined, rule: str, outcomes: Outcomes
) -> Thresholds:
    """Thresholds in the new probabilities; a label that kept its calibration keeps its threshold too.

    The stored rule is what model.json says before `` on ``. Where that is none, and where none is asked for, the
    decisions stay (``carried``): a probability that was chosen in the old ones of ``before`` means nothing in the new.
    Only 0.5 that no rule has chosen means itself, and stays.
    """
    text = old.rule.partition(" on ")[0] if rule == STORED else rule
    try:
        name, target = operating_points.parse_rule(text)
    except ValueError:
        if rule == STORED and old.values == Thresholds().values:
            return dataclasses.replace(old, rule=old.rule.removesuffix(KEPT) + KEPT)
        return carried(old, before, refit.calibration, outcomes.unit)
    p_NK = refit.calibration.probability(joined.logit)
    values = list(old.values)
    for i, label in enumerate(LABELS):
        if label not in refit.kept:
            known = joined.labels[:, i] != UNKNOWN
            values[i] = operating_points.choose_one(
                joined.labels[known, i] == 1, p_NK[known, i], name, target, label=label
            )
    source = f"{text} on {outcomes.unit} outcomes {outcomes.sha256[:12]}"
    return Thresholds(values=tuple(values), rule=source + (f", not {', '.join(refit.kept)}" if refit.kept else ""))


def carried(old: Thresholds, before: Calibration, after: Calibration, unit: str) -> Thresholds:
    """The cuts of the ``unit`` that no rule chooses again, in the new probabilities: each at its old raw logit.

    What was found is found again; only of ``any`` a subtype may be what its probability comes from.
    """
    cuts = [
        value if was == now else _moved(value, was, now)
        for value, was, now in zip(old.values, before.of_label, after.of_label, strict=True)
    ]
    note = f", the same {unit} logits after recalibration"
    return Thresholds(values=tuple(cuts), rule=old.rule.removesuffix(note) + note)


def _moved(cut: float, was: LabelCalibration, now: LabelCalibration) -> float:
    """The new probability of the least logit whose old one reaches ``cut``, lowered by ``ROUNDING``.

    0 where every logit reaches it, 1 where none does: beyond the ends of isotonic knots the new map goes on.
    """
    least = least_logit(was, cut)
    if not np.isfinite(least):
        return 0.0 if least < 0 else 1.0
    return float(now.probability(np.array([least]))[0]) * (1 - ROUNDING)


def least_logit(calibration: LabelCalibration, probability: float) -> float:
    """The least raw logit that reaches ``probability``; -inf where each does, inf where none does."""
    if calibration.knots:
        x, y = np.array(calibration.knots, dtype=np.float64).T
        if not y[0] < probability <= y[-1]:
            return -np.inf if probability <= y[0] else np.inf
        after = int(np.searchsorted(y, probability))
        share = (probability - y[after - 1]) / (y[after] - y[after - 1])
        return float(x[after - 1] + share * (x[after] - x[after - 1]))
    return float((logit(probability) - calibration.bias) / calibration.scale)


def refit_triage(was: Mapping[str, Any] | None, joined: Joined, unit: str) -> tuple[Mapping[str, Any] | None, str]:
    """The triage's document, and a line that says what became of it.

    Triage looks at raw logits (``conformal.study_score``), which no recalibration changes: outcomes of slices, which
    say nothing of studies, leave it as it is; outcomes of studies choose it again, for the site, with the old alphas,
    where they are enough for them.

    Raises:
        ValueError: ``was`` holds no triage.
    """
    if was is None:
        return None, "the model has none"
    old = Triage.from_document(was)
    if unit != "study":
        return was, "kept: it looks at raw logits, which do not change"
    known = joined.labels[:, ANY] != UNKNOWN
    score, bleed = conformal.study_score(joined.logit[known]), joined.labels[known, ANY]
    patients = joined.patients[known]
    made = conformal.fit(score, bleed, patients, alpha_miss=old.alpha_miss, alpha_alarm=old.alpha_alarm)
    if made.outcomes:
        return was, "; ".join(["kept: the outcomes are too few to choose it again", *made.outcomes])
    return made.to_document() | {"score": conformal.SCORE}, "chosen again on the outcomes"


def document(refit: Refit, joined: Joined, outcomes: Outcomes, previous: Mapping[str, Any]) -> dict[str, Any]:
    """What model.json says of the calibration: how it was made, from what, and what was there before."""
    return refit.calibration.to_document() | {
        "source": "outcomes of a site",
        "unit": outcomes.unit,
        "outcomes_sha256": outcomes.sha256,
        "num_rows": len(joined.labels),
        "num_patients": len(set(joined.patients.tolist())),
        "kept": refit.kept,
        "quality": {
            label: {when: row[when] and {k: row[when][k] for k in ("ece", "brier")} for when in ("before", "after")}
            for label, row in refit.quality.items()
        },
        "previous": dict(previous),
    }


def outdated(metrics: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """``metrics`` of an evaluation, which say from now on that another calibration was measured; None without."""
    return None if metrics is None else {**metrics, "measured_with": "the calibration before this one"}
