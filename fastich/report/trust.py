"""An evaluation's numbers, from tables with logits to metrics.json: calibrated, at thresholds, by study, in triage.

``choices`` decides on validation, ``results`` counts; here the two meet. Everything is JSON-ready, and whatever is
estimated from patients has an interval by patient (what follows by Bayes has none). Seconds for 5,000 slices and
1,000 resamples.
Shapes: S studies, R resamples, P patients.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import conformal, operating_points, study_metrics
from fastich.conformal_coverage import coverage
from fastich.intervals import UNDEFINED, estimate
from fastich.labels import LABELS
from fastich.metrics import NO_NEGATIVES, NO_POSITIVES
from fastich.report.calibration_numbers import calibration_numbers
from fastich.report.choices import LARGEST, Choices, Tables, calibrated, triage_score
from fastich.report.results import judged, summarise
from fastich.resampling import Resampling
from fastich.study_metrics import study_table

Floats = NDArray[np.float64]
COVERAGE_RESAMPLES = 100
NO_GUARANTEE = (
    "No guarantee: the thresholds come from single networks out of fold, and the mean of all networks is judged, whose "
    "scores are others."
)
ANY_LABEL = LABELS[-1]


def apply(choices: Choices, tables: Tables) -> Tables:
    """``tables`` with the probabilities that ``choices`` make of their logits."""
    return Tables(
        slices=calibrated(tables.slices, choices.slices),
        studies=calibrated(tables.studies, choices.studies),
        decision=tables.decision,
    )


def trust(
    validation: Tables,
    found: Tables,
    choices: Choices,
    *,
    num_resamples: int,
    seed: int,
    is_ensemble: bool = False,
) -> dict[str, Any]:
    """What metrics.json says of ``found``, calibrated tables of the judged split; see ``results.judged`` for the keys.

    ``validation`` are the tables that ``choices`` were made on; of an ensemble single members filled them.
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
        "triage": _triage(found.studies, choices, **how) | _evidence(validation, found, choices, seed, is_ensemble),
    }


def _studies(found: Tables, choices: Choices, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """The numbers of studies, the ways to decide about one side by side, and what an answer means elsewhere.

    ``rules`` holds ``study_metrics.summarise_studies`` of the decision itself and of each rule over slices.
    """

    def draws(table: pd.DataFrame) -> Resampling:
        return Resampling.of(table["patient_id"], num_resamples=num_resamples, seed=seed)

    numbers = judged(found.studies, choices.study_thresholds, draws(found.studies))
    rules = [rule for rule in study_metrics.RULES if (rule, found.decision) != ("max", LARGEST)]
    tables = {found.decision: found.studies} | {rule: study_table(found.slices, rule) for rule in rules}
    return {
        "decision": found.decision,
        "num_studies": len(found.studies),
        **numbers,
        "rules": {rule: study_metrics.summarise_studies(table, draws(table)) for rule, table in tables.items()},
        "predictive_values": operating_points.predictive_values(numbers["operating_points"]["at_thresholds"]),
    }


def _triage(studies: pd.DataFrame, choices: Choices, *, num_resamples: int, seed: int) -> dict[str, Any]:
    """The triage and what it did to ``studies``: both risks count each patient once, as their bounds do."""
    score, bleed = triage_score(studies), studies[ANY_LABEL].to_numpy() == 1
    said = np.array([choices.triage.decide(value) for value in score.tolist()], dtype=object)
    resampling = Resampling.of(studies["patient_id"], num_resamples=num_resamples, seed=seed)
    of_study, every = resampling.of_row, np.ones(len(said))
    with_bleed, without = (_once(rows, of_study) for rows in (bleed, ~bleed))
    shares = {
        "miss_rate": (said == conformal.CLEAR, with_bleed, NO_POSITIVES),
        "alarm_rate": (said == conformal.FLAG, without, NO_NEGATIVES),
        "flag": (said == conformal.FLAG, every, UNDEFINED),
        "clear": (said == conformal.CLEAR, every, UNDEFINED),
        "human_first": (said == conformal.HUMAN_FIRST, every, UNDEFINED),
    }
    return {
        **choices.triage.to_document(),
        "score": conformal.SCORE,
        "judged": {name: _share(*of, resampling) for name, of in shares.items()},
    }


def _evidence(validation: Tables, found: Tables, choices: Choices, seed: int, is_ensemble: bool) -> dict[str, Any]:
    """Whether the bounds hold over resamplings of both splits' patients; of an ensemble nothing of the kind.

    Its validation scores are of single networks, those that are judged of their mean: a mixture that nobody will ever
    calibrate with says nothing, so what triage did to the judged studies is all that is known of it.
    """
    if is_ensemble:
        return {"guarantee": NO_GUARANTEE, "coverage": None}
    pooled = pd.concat([validation.studies, found.studies])
    pooled = pooled.drop_duplicates("study_uid")  # the same, where validation is judged
    held = coverage(
        triage_score(pooled),
        pooled[ANY_LABEL],
        pooled["patient_id"],
        alpha_miss=choices.triage.alpha_miss,
        alpha_alarm=choices.triage.alpha_alarm,
        resamples=COVERAGE_RESAMPLES,
        seed=seed,
    )
    return {"coverage": held}


def _once(rows: NDArray[np.bool_], of_study: NDArray[np.intp]) -> Floats:
    """The weight of each study, float64 [S]: 0 outside of ``rows``, and those of one patient add up to 1."""
    weight = np.zeros(len(rows))
    weight[rows] = conformal.shares(of_study[rows])
    return weight


def _share(part: NDArray[np.bool_], weight: Floats, undefined: str, resampling: Resampling) -> dict[str, Any]:
    """The ``estimate`` of the weighted share of ``part``; ``undefined`` are the words where ``weight`` is all 0."""
    value = float((part * weight).sum() / weight.sum()) if weight.any() else None
    return estimate(value, resampling.rate(part * weight, weight), undefined=undefined)
