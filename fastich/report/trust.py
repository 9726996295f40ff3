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
        "triage": _triage(validation.studies, found.studies, choices, **how)
        | ({"guarantee": NO_GUARANTEE} if is_ensemble else {}),
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


def _triage(
    validation: pd.DataFrame, judged_studies: pd.DataFrame, choices: Choices, *, num_resamples: int, seed: int
) -> dict[str, Any]:
    """The triage, what it did to the judged studies, and whether its bounds hold over resamplings of both splits."""
    score, bleed = triage_score(judged_studies), judged_studies[ANY_LABEL].to_numpy() == 1
    said = np.array([choices.triage.decide(value) for value in score.tolist()], dtype=object)
    resampling = Resampling.of(judged_studies["patient_id"], num_resamples=num_resamples, seed=seed)
    every = np.ones(len(said), dtype=bool)
    shares = {
        "miss_rate": (bleed & (said == conformal.CLEAR), bleed, NO_POSITIVES),
        "alarm_rate": (~bleed & (said == conformal.FLAG), ~bleed, NO_NEGATIVES),
        "flag": (said == conformal.FLAG, every, UNDEFINED),
        "clear": (said == conformal.CLEAR, every, UNDEFINED),
        "human_first": (said == conformal.HUMAN_FIRST, every, UNDEFINED),
    }
    pooled = pd.concat([validation, judged_studies]).drop_duplicates(
        "study_uid"
    )  # the same, where validation is judged
    return {
        **choices.triage.to_document(),
        "score": conformal.SCORE,
        "judged": {name: _share(*of, resampling) for name, of in shares.items()},
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


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_], undefined: str, resampling: Resampling) -> dict[str, Any]:
    """The ``estimate`` of ``sum(part) / sum(whole)``; ``undefined`` are the words where ``whole`` is nobody."""
    value = float(part.sum() / whole.sum()) if whole.any() else None
    return estimate(value, resampling.rate(part, whole), undefined=undefined)
