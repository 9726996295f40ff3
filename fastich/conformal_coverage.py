"""Does a triage keep its bounds? Patients are halved again and again: one half calibrates, the other is judged.

A triage that never acts is never wrong, so only resamplings count in which the threshold in question exists, and
nothing is claimed where they are few. 100 resamplings of 100 studies take 30 ms.
Shapes: S studies.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastich.conformal import (
    CLEAR,
    FLAG,
    HUMAN_FIRST,
    Triage,
    checked,
    fit,
    needed,
    patient_numbers,
    shares,
)

ENOUGH = 0.5
"""The share of resamplings that must say something of a risk before anything is claimed of their mean."""


def rates(
    triage: Triage, p_any_S: ArrayLike, bleed_S: ArrayLike, patients_S: ArrayLike | None = None
) -> dict[str, float | None]:
    """What ``triage`` does to studies: ``miss_rate``, ``alarm_rate``, and the share of each decision.

    The two rates count each patient once, as the guarantee does; the shares count studies. ``None`` where no study has
    (or lacks) a bleed.
    """
    p, bleed = checked(p_any_S, bleed_S)
    patient = patient_numbers(patients_S, len(p))
    said = np.array([triage.decide(value) for value in p.tolist()], dtype=object)
    decided = {name.replace(" ", "_"): _mean(said == name) for name in (FLAG, CLEAR, HUMAN_FIRST)}
    return {
        "miss_rate": _mean(said[bleed] == CLEAR, patient[bleed]),
        "alarm_rate": _mean(said[~bleed] == FLAG, patient[~bleed]),
        **decided,
    }


def _mean(values: Any, patient: NDArray[np.intp] | None = None) -> float | None:
    """The mean; with ``patient`` that of the patients' means."""
    if not len(values):
        return None
    return float(np.average(values, weights=None if patient is None else shares(patient)))


def coverage(
    p_any_S: ArrayLike,
    bleed_S: ArrayLike,
    patients_S: ArrayLike,
    *,
    alpha_miss: float,
    alpha_alarm: float,
    resamples: int = 100,
    seed: int = 0,
) -> dict[str, Any]:
    """Does the bound hold? Half of the patients calibrate, the other half are judged, ``resamples`` times over.

    Returns JSON values: ``resamples``, the alphas, and for ``miss_rate``, ``alarm_rate``, ``flag``, ``clear`` and
    ``human_first`` each ``mean``, ``standard_error`` (over resamples; ``None`` for fewer than two) and
    ``num_undefined``: of a rate the resamples without its threshold, for what never acts is never wrong, and those
    without a study of the class among the judged. ``too_small`` says in how many resamples nothing could be cleared,
    or flagged. ``bounded`` says whether each mean is within its alpha, ``None`` where less than ``ENOUGH`` of the
    resamples have a figure; ``told`` says it in words.

    Raises:
        ValueError: there are fewer than two patients, or as ``fit``.
    """
    p, bleed = checked(p_any_S, bleed_S)
    patient_S = patient_numbers(patients_S, len(p))
    count = len(np.unique(patient_S))
    if count < 2:
        raise ValueError(f"coverage: expected studies of 2 or more patients, found {count}")
    rng = np.random.default_rng([seed, count])
    found: list[dict[str, float | None]] = []
    too_small = {CLEAR: 0, FLAG: 0}
    for _ in range(resamples):
        half = np.isin(patient_S, rng.permutation(count)[: count // 2])
        triage = fit(p[half], bleed[half], patient_S[half], alpha_miss=alpha_miss, alpha_alarm=alpha_alarm)
        made = rates(triage, p[~half], bleed[~half], patient_S[~half])
        without = {"miss_rate": triage.clear is None, "alarm_rate": triage.flag is None}
        found.append({name: None if without.get(name) else value for name, value in made.items()})
        too_small[CLEAR] += triage.clear is None
        too_small[FLAG] += triage.flag is None
    summary = {name: _summary([one[name] for one in found]) for name in found[0]}
    risks = {
        "miss_rate": _risk(summary["miss_rate"], resamples, alpha_miss, "with"),
        "alarm_rate": _risk(summary["alarm_rate"], resamples, alpha_alarm, "without"),
    }
    return {
        "resamples": resamples,
        "alpha_miss": alpha_miss,
        "alpha_alarm": alpha_alarm,
        **summary,
        "bounded": {name: bounded for name, (bounded, _) in risks.items()},
        "told": {name: told for name, (_, told) in risks.items()},
        "too_small": too_small,
    }


def _summary(values: list[float | None]) -> dict[str, Any]:
    defined = [value for value in values if value is not None]
    error = float(np.std(defined, ddof=1) / np.sqrt(len(defined))) if len(defined) > 1 else None
    return {"mean": _mean(defined), "standard_error": error, "num_undefined": len(values) - len(defined)}


def _risk(summary: Mapping[str, Any], resamples: int, alpha: float, kind: str) -> tuple[bool | None, str]:
    """Whether a mean risk is within ``alpha``, None where too few resamples say so, and the risk in words."""
    counted = resamples - summary["num_undefined"]
    if counted < max(1, ENOUGH * resamples):
        return None, (
            f"undefined: a threshold, and such studies to judge, in {counted} of {resamples} only; alpha {alpha:g} "
            f"needs {needed(alpha)} calibrating patients {kind} a bleed"
        )
    error = summary["standard_error"]
    told = f"{summary['mean']:.3f}" + (f" (s.e. {error:.3f})" if error is not None else "")
    told += f", of the {counted} that had a threshold and such studies" if counted < resamples else ""
    return summary["mean"] <= alpha, told
