"""An evaluation's numbers, from tables with logits to metrics.json: calibrated, at thresholds, by study, in triage.

``choices`` decides on validation, ``results`` counts; here the two meet. Everything is JSON-ready, and whatever is
claimed has an interval by patient. Seconds for 5,000 slices and 1,000 resamples.
Shapes: S studies, R resamples, P patients.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import conformal, metrics, operating_points
from fastich.labels import LABELS
from fastich.report.calibration_numbers import calibration_numbers
from fastich.report.choices import Choices, calibrated, triage_score
from fastich.report.results import PROBABILITY_COLUMNS, estimate, judged, summarise

Floats = NDArray[np.float64]
COVERAGE_RESAMPLES = 100
ANY_LABEL = LABELS[-1]


@dataclass(frozen=True, kw_only=True)
class Tables:
    """One split as a model saw it: a table of slices and one of studies, with logits.

    ``decision`` says where a study's logits come from: ``study head`` or ``largest slice``.
    """

    slices: pd.DataFrame
    studies: pd.DataFrame
    decision: str


def apply(choices: Choices, tables: Tables) -> Tables:
    """``tables`` with the probabilities that ``choices`` make of their logits."""
    return Tables(
        slices=calibrated(tables.slices, choices.slices),
        studies=calibrated(tables.studies, choices.studies),
        decision=tables.decision,
    )


def trust(validation: Tables, found: Tables, choices: Choices, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """What metrics.json says of ``found``, calibrated tables of the judged split; see ``results.judged`` for the keys.

    ``validation`` are the tables that ``choices`` were made on.
    """
    how = {"num_resamples": num_resamples, "seed": seed}
    studies = _studies(found, choices, **how)
    return {
        **summarise(found.slices, choices.thresholds, **how),
        "study_any": {
            "rule": found.decision,
            "num_positive": studies["num_positive"][ANY_LABEL],
            "auc": studies["auc"][ANY_LABEL],
        },
        "studies": studies,
        "calibration": {
            "slices": calibration_numbers(validation.slices, found.slices, choices.slices, **how),
            "studies": calibration_numbers(validation.studies, found.studies, choices.studies, **how),
        },
        "triage": _triage(validation.studies, found.studies, choices, **how),
    }


def _studies(found: Tables, choices: Choices, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of studies, the AUC of the ways to decide about one, and what a positive answer means elsewhere."""
    numbers = judged(found.studies, choices.study_thresholds, num_resamples=num_resamples, seed=seed)
    patients = metrics.PatientCounts.draw(found.studies["patient_id"], num_resamples, seed)
    rules = {found.decision: found.studies[PROBABILITY_COLUMNS].to_numpy(np.float64), **slice_rules(found)}
    return {
        "decision": found.decision,
        "num_studies": len(found.studies),
        **numbers,
        "rules": {
            rule: {label: _auc(found.studies, scores[:, i], label, patients) for i, label in enumerate(LABELS)}
            for rule, scores in rules.items()
        },
        "predictive_values": operating_points.predictive_values(numbers["operating_points"]["at_thresholds"]),
    }


def _auc(studies: pd.DataFrame, score: Floats, label: str, patients: metrics.PatientCounts) -> dict[str, Any]:
    truth = studies[label].to_numpy() == 1
    values, _ = metrics.resampled_auc_and_ap(truth, score, patients.of_row, patients.counts_RP)
    return estimate(metrics.binary_auc(truth, score), metrics.percentile_interval(values))


def slice_rules(found: Tables) -> dict[str, Floats]:
    """Scores [S, 6] of studies from the probabilities of their slices, in the order of the table of studies."""
    groups = found.slices.groupby("study_uid", sort=False)[PROBABILITY_COLUMNS]
    of_study = {uid: group.to_numpy(np.float64) for uid, group in groups}
    parts = [of_study[uid] for uid in found.studies["study_uid"]]
    return {
        "largest slice": np.stack([part.max(axis=0) for part in parts]),
        "mean of the top 3": np.stack([np.sort(part, axis=0)[-3:].mean(axis=0) for part in parts]),
        "noisy-or": np.stack([1 - np.prod(1 - part, axis=0) for part in parts]),
    }


def _triage(
    validation: pd.DataFrame, judged_studies: pd.DataFrame, choices: Choices, *, num_resamples: int, seed: int
) -> dict[str, Any]:
    """The triage, what it did to the judged studies, and whether its bounds hold over resamplings of both splits."""
    score, bleed = triage_score(judged_studies), judged_studies[ANY_LABEL].to_numpy() == 1
    said = np.array([choices.triage.decide(value) for value in score.tolist()], dtype=object)
    patients = metrics.PatientCounts.draw(judged_studies["patient_id"], num_resamples, seed)
    every = np.ones(len(said), dtype=bool)
    shares = {
        "miss_rate": (bleed & (said == conformal.CLEAR), bleed),
        "alarm_rate": (~bleed & (said == conformal.FLAG), ~bleed),
        "flag": (said == conformal.FLAG, every),
        "clear": (said == conformal.CLEAR, every),
        "human_first": (said == conformal.HUMAN_FIRST, every),
    }
    pooled = pd.concat([validation, judged_studies])
    return {
        **choices.triage.to_document(),
        "score": "sigmoid of a study's largest raw logit",
        "judged": {name: _share(*of, patients) for name, of in shares.items()},
        "coverage": conformal.coverage(
            triage_score(pooled),
            pooled[ANY_LABEL],
            pooled["patient_id"],
            alpha_miss=choices.triage.alpha_miss,
            alpha_alarm=choices.triage.alpha_alarm,
            resamples=COVERAGE_RESAMPLES,
            seed=seed,
        ),
    }


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_], patients: metrics.PatientCounts) -> dict[str, Any]:
    """The ``estimate`` of ``sum(part) / sum(whole)``."""
    samples = metrics.counts_ratio(part, whole, patients.of_row, patients.counts_RP)
    value = float(part.sum() / whole.sum()) if whole.any() else None
    return estimate(value, metrics.percentile_interval(samples))
