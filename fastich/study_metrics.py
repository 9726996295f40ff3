"""How good are whole studies? Study tables from slice tables, and per label the figures that triage is judged by.

A triage product is bought by its sensitivity at a specificity that readers can bear, so beside the AUC stand the
largest sensitivity at a specificity of at least 0.90 and 0.95, and the reverse. They are read off the ROC curve without
interpolation, and again in each resample of the patients, so the interval holds the choice of the point too; it does
not hold the choice of a threshold on other patients. Some seconds for 3,000 studies and 1,000 resamples.

Tables: slices ``row, sop_uid, study_uid, patient_id, <labels>, p_<label>[, logit_<label>]``; studies ``study_uid,
patient_id, num_slices, <labels> (largest of the slices), p_<label>[, logit_<label>]``. S studies, R resamples.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from fastich import metrics
from fastich.intervals import Floats, estimate, interval
from fastich.labels import LABELS
from fastich.metrics import CHALLENGE_CLIP
from fastich.resampling import Resampling, resampled_curves
from fastich.study_scores import largest, noisy_or, top_k_mean

Rate = Callable[[NDArray[np.bool_], Floats, NDArray[np.intp], Floats, float], Floats]
Pool = Callable[[NDArray[np.floating]], Floats]
RULES: dict[str, Pool] = {"max": largest, "top-k mean": top_k_mean, "noisy-or": noisy_or}
FIXED = (0.90, 0.95)
"""Specificities at which sensitivity is told, and the reverse."""
_TOLERANCE = 1e-9
"""A rate that equals its target is enough, whatever rounding did to the counts."""
PROBABILITIES, LOGITS = [f"p_{label}" for label in LABELS], [f"logit_{label}" for label in LABELS]


def study_table(slices: pd.DataFrame, rule: str = "max") -> pd.DataFrame:
    """The study table that ``rule`` (a key of ``RULES``) makes of a slice table, in the order of the slices' studies.

    ``logit_<label>`` is there if the slices have it: the rule on the sigmoid of the raw logits, as a logit again.

    Raises:
        ValueError: there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"rule: expected one of {', '.join(RULES)}, found {rule!r}")
    grouped = slices.groupby("study_uid", sort=False)
    table = grouped.agg(patient_id=("patient_id", "first"), num_slices=("study_uid", "size"))
    table[list(LABELS)] = grouped[list(LABELS)].max()
    rows_of_study = _rows_of_each(pd.factorize(slices["study_uid"])[0])
    table[PROBABILITIES] = _pooled(slices[PROBABILITIES].to_numpy(np.float64), rows_of_study, RULES[rule])
    if set(LOGITS) <= set(slices.columns):
        pooled = _pooled(expit(slices[LOGITS].to_numpy(np.float64)), rows_of_study, RULES[rule])
        table[LOGITS] = logit(np.clip(pooled, CHALLENGE_CLIP, 1 - CHALLENGE_CLIP))
    return table.reset_index()


def _rows_of_each(code: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The rows of each study, ascending; ``code`` [N] numbers the studies from 0."""
    return np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])


def _pooled(probability_N6: Floats, rows_of_study: list[NDArray[np.intp]], pool: Pool) -> Floats:
    return np.stack([pool(probability_N6[rows]) for rows in rows_of_study])


def summarise_studies(studies: pd.DataFrame, resampling: Resampling) -> dict[str, Any]:
    """Per label of a study table, JSON-ready: ``{label: {"num_positive", "auc", "sensitivity_at_specificity": {"0.90":
    ...}, "specificity_at_sensitivity": {...}}}``, each figure an ``estimate`` whose value is ``None`` with one class.
    """
    return {
        label: _of_label(studies[label].to_numpy() == 1, studies[f"p_{label}"].to_numpy(np.float64), resampling)
        for label in LABELS
    }


def _of_label(truth: NDArray[np.bool_], score: Floats, resampling: Resampling) -> dict[str, Any]:
    drawn, _ = resampling.auc_and_ap(truth, score)
    auc = interval(drawn, resampling.area_basis(truth))
    return {
        "num_positive": int(truth.sum()),
        "auc": estimate(metrics.binary_auc(truth, score), auc, undefined=metrics.why_undefined(truth)),
        "sensitivity_at_specificity": _at_fixed(sensitivity_at_specificity, truth, score, resampling, truth),
        "specificity_at_sensitivity": _at_fixed(specificity_at_sensitivity, truth, score, resampling, ~truth),
    }


def _at_fixed(
    rate: Rate, truth: NDArray[np.bool_], score: Floats, resampling: Resampling, is_judged: NDArray[np.bool_]
) -> dict[str, dict[str, Any]]:
    """An ``estimate`` for each of ``FIXED``; ``is_judged`` [S] marks the studies in the rate's denominator.

    It rests on both kinds of patient, for the others decide where it is read off.
    """
    everyone, each_once = np.arange(len(truth)), np.ones((1, len(truth)))
    basis = replace(resampling.area_basis(truth), trials=resampling.rate_basis(is_judged).trials)
    out = {}
    for target in FIXED:
        value = float(rate(truth, score, everyone, each_once, target)[0])
        found = interval(rate(truth, score, resampling.of_row, resampling.counts_RP, target), basis)
        why = metrics.why_undefined(truth)
        out[f"{target:.2f}"] = estimate(value if np.isfinite(value) else None, found, undefined=why)
    return out


def sensitivity_at_specificity(
    truth: NDArray[np.bool_], score: Floats, of_study: NDArray[np.intp], counts_RP: Floats, target: float
) -> Floats:
    """Of each resample the largest sensitivity whose specificity is at least ``target``, float64 [R].

    ``truth``, ``score`` and ``of_study`` (the number of the patient) are [S], ``counts_RP`` says how often each patient
    is drawn. NaN where one class is absent; 0 where only calling nothing is specific enough.
    """
    out = np.full(len(counts_RP), np.nan)
    for part, called_RK, tp_RK in resampled_curves(truth, score, of_study, counts_RP):
        positives, negatives = tp_RK[:, -1:], (called_RK - tp_RK)[:, -1:]
        specific = called_RK - tp_RK <= (1 - target + _TOLERANCE) * negatives
        out[part] = _ratio(np.where(specific, tp_RK, 0.0).max(axis=1), positives[:, 0], negatives[:, 0])
    return out


def specificity_at_sensitivity(
    truth: NDArray[np.bool_], score: Floats, of_study: NDArray[np.intp], counts_RP: Floats, target: float
) -> Floats:
    """Of each resample the largest specificity whose sensitivity is at least ``target``, float64 [R]; as above."""
    out = np.full(len(counts_RP), np.nan)
    for part, called_RK, tp_RK in resampled_curves(truth, score, of_study, counts_RP):
        positives, negatives = tp_RK[:, -1:], (called_RK - tp_RK)[:, -1:]
        sensitive = tp_RK >= (target - _TOLERANCE) * positives
        spared = np.where(sensitive, negatives - (called_RK - tp_RK), 0.0).max(axis=1)
        out[part] = _ratio(spared, negatives[:, 0], positives[:, 0])
    return out


def _ratio(part: Floats, whole: Floats, other: Floats) -> Floats:
    """``part / whole``; NaN where ``whole`` or ``other`` is 0."""
    return np.where((whole > 0) & (other > 0), part / np.maximum(whole, 1.0), np.nan)
