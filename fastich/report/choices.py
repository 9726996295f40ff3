"""What validation decides, once, before the judged split is looked at: calibration, thresholds, triage.

From tables of validation slices and studies (columns of predictions.parquet and studies.parquet, ``logit_<label>``
among them) come the maps from logit to probability, the thresholds in those probabilities, and the two thresholds of
the three-way triage. Seconds for 100,000 slices.

The triage looks at the network's own score (``triage_score``), not at calibrated probabilities: its guarantee wants a
score that was not fitted on the studies that it is calibrated with.
Shapes: N slices, S studies, K labels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import calibration, conformal, operating_points
from fastich.calibration import Calibration
from fastich.conformal import Triage
from fastich.labels import LABELS
from fastich.report.results import LOGIT_COLUMNS, PROBABILITY_COLUMNS, by_label

Floats = NDArray[np.float64]
LARGEST, HEAD = "largest slice", "study head"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How validation decides.

    Attributes:
        calibration: of ``calibration.METHODS``.
        threshold_rule: as ``operating_points`` reads it: ``max-f1``, ``youden``, ``sensitivity:0.95`` ...
        alpha_miss: bound of the share of studies with a bleed that triage clears, each patient counting once.
        alpha_alarm: bound of the share of studies without one that triage flags, likewise.
    """

    calibration: str = "platt"
    threshold_rule: str = "max-f1"
    alpha_miss: float = 0.1
    alpha_alarm: float = 0.2


@dataclass(frozen=True, kw_only=True)
class Tables:
    """One split as a model saw it: a table of slices and one of studies, with logits.

    ``decision`` says where a study's logits come from: ``HEAD`` or ``LARGEST``.
    """

    slices: pd.DataFrame
    studies: pd.DataFrame
    decision: str


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What was decided. ``thresholds`` and ``study_thresholds`` are what thresholds.json holds of each."""

    slices: Calibration
    studies: Calibration
    thresholds: dict[str, Any]
    study_thresholds: dict[str, Any]
    triage: Triage


def choose(seen: Tables, rules: Rules, split: str = "val") -> Choices:
    """Decide on the validation tables ``seen``, as ``rules`` say.

    A study that is its largest slice has that slice's probability, so it takes the slices' calibration.

    Raises:
        ValueError: a rule, method or alpha makes no sense.
    """
    slices, studies = seen.slices, seen.studies
    of_slices = calibration.fit(logits(slices), truth(slices), rules.calibration)
    of_studies = (
        of_slices if seen.decision == LARGEST else calibration.fit(logits(studies), truth(studies), rules.calibration)
    )
    return Choices(
        slices=of_slices,
        studies=of_studies,
        thresholds=_thresholds(calibrated(slices, of_slices), rules.threshold_rule, split),
        study_thresholds=_thresholds(calibrated(studies, of_studies), rules.threshold_rule, split),
        triage=conformal.fit(
            triage_score(studies),
            studies[LABELS[-1]],
            studies["patient_id"],
            alpha_miss=rules.alpha_miss,
            alpha_alarm=rules.alpha_alarm,
        ),
    )


def _thresholds(table: pd.DataFrame, rule: str, split: str) -> dict[str, Any]:
    """Rule, where it was applied, six thresholds, and the labels that fell back to 0.5."""
    name, target = operating_points.parse_rule(rule)
    found = operating_points.choose(truth(table), table[PROBABILITY_COLUMNS].to_numpy(np.float64), name, target)
    fallback = list(operating_points.fallback_labels(truth(table), name))
    return {"rule": rule, "split": split, "thresholds": by_label(found), "fallback_labels": fallback}


def calibrated(table: pd.DataFrame, of: Calibration) -> pd.DataFrame:
    """``table`` with the probabilities that ``of`` makes of its logits (a copy)."""
    probability = of.probability(logits(table))
    return table.assign(**dict(zip(PROBABILITY_COLUMNS, probability.T, strict=True)))


def logits(table: pd.DataFrame) -> Floats:
    """Raw logits float64 [N, 6] of a table."""
    return table[LOGIT_COLUMNS].to_numpy(np.float64)


def truth(table: pd.DataFrame) -> NDArray[np.int8]:
    """Labels int8 [N, 6] of a table."""
    return table[list(LABELS)].to_numpy(np.int8)


def triage_score(studies: pd.DataFrame) -> Floats:
    """The network's own p(any) of each study, float64 [S]: ``conformal.study_score`` of its logits."""
    return conformal.study_score(logits(studies))
