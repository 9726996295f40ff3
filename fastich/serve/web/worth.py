"""What a flag is worth at this site: the model's operating points, for the prevalence slider of the worklist.

Only what model.json measured: where it holds no evaluation, the page says that it is unknown.
"""

from collections.abc import Mapping
from typing import Any

from fastich.artifact import Thresholds
from fastich.predictive_values import ppv_npv
from fastich.serve.session import Session
from fastich.serve.study_session import StudySession
from fastich.study_rule import thresholds_of

UNKNOWN = "unknown: this model folder has no evaluation"
DEFAULT_PREVALENCE = 0.1
"""Between a ward's few per cent and a trauma centre's third."""


def operating_points(session: Session, study_session: StudySession | None) -> list[dict[str, Any]]:
    """What ``any`` costs, of studies first and of slices: title, threshold, sensitivity, specificity and split.

    Empty where model.json holds no evaluation; a rate that is undefined (one class only) is None.
    """
    slices, studies = thresholds_of(session, study_session)
    metrics: Any = session.artifact.metrics if study_session is None else study_session.part.metrics
    if not isinstance(metrics, Mapping):
        return []
    told = [("Studies", metrics.get("studies"), studies), ("Slices", metrics, slices)]
    return [
        _point(title, found, limits, metrics)
        for title, found, limits in told
        if isinstance(found, Mapping) and {"sensitivity", "specificity"} <= found.keys()
    ]


def _point(title: str, found: Mapping[str, Any], limits: Thresholds, metrics: Mapping[str, Any]) -> dict[str, Any]:
    sensitivity, specificity = (_rate(found, name) for name in ("sensitivity", "specificity"))
    ppv, npv = ppv_npv(sensitivity, specificity, DEFAULT_PREVALENCE)
    return {
        "title": title,
        "threshold": limits.values[-1],
        "rule": limits.rule,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ppv,
        "npv": npv,
        "split": metrics.get("split"),
    }


def _rate(found: Mapping[str, Any], name: str) -> float | None:
    value = found[name].get("any") if isinstance(found[name], Mapping) else None
    if isinstance(value, Mapping):
        value = value.get("value")
    return float(value) if isinstance(value, int | float) else None
