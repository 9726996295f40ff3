"""An evaluation as one dict of plain numbers: what metrics.json holds and what the report shows.

Built from two prediction tables (columns of predictions.parquet: row, sop_uid, study_uid, patient_id, the six labels,
p_<label>), so a report can be made again from the files without the model. Thresholds come from validation only.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fastich import classification, metrics
from fastich.intervals import LEVEL, UNDEFINED, estimate, text
from fastich.labels import LABELS
from fastich.metrics import NO_POSITIVES
from fastich.resampling import Resampling

PROBABILITY_COLUMNS = [f"p_{label}" for label in LABELS]
LOGIT_COLUMNS = [f"logit_{label}" for label in LABELS]


def truth_and_scores(predictions: pd.DataFrame) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Labels int8 [N, 6] and probabilities float64 [N, 6] of a prediction table."""
    return predictions[list(LABELS)].to_numpy(np.int8), predictions[PROBABILITY_COLUMNS].to_numpy(np.float64)


def by_label(values: Any) -> dict[str, float]:
    """Six values as ``{label: value}``."""
    return {label: float(value) for label, value in zip(LABELS, values, strict=True)}


def summarise(
    predictions: pd.DataFrame, thresholds: dict[str, Any], *, num_resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Every number of the slices ``predictions``, JSON-ready (undefined is ``None``).

    ``thresholds`` is what thresholds.json holds of slices. Keys: counts, ``intervals``, and those of ``judged``.
    """
    resampling = Resampling.of(predictions["patient_id"], num_resamples=num_resamples, seed=seed)
    return {
        "num_slices": len(predictions),
        "num_studies": int(predictions["study_uid"].nunique()),
        "num_patients": int(predictions["patient_id"].nunique()),
        "intervals": {"level": LEVEL, "num_resamples": num_resamples, "unit": resampling.unit},
        **judged(predictions, thresholds, resampling),
    }


def judged(table: pd.DataFrame, thresholds: dict[str, Any], resampling: Resampling) -> dict[str, Any]:
    """The numbers of a table of slices or of studies, JSON-ready, with intervals by patient.

    Keys: ``prevalence``, ``num_positive``, ``log_loss``, ``thresholds``; per label ``auc``, ``average_precision``, and
    at the thresholds ``sensitivity``, ``specificity``; ``reports``, ``report_intervals`` and ``operating_points``, each
    ``at_0.5`` and ``at_thresholds``. An interval comes as an ``estimate``, in ``report_intervals`` without its value.
    """
    truth, scores = truth_and_scores(table)
    chosen = np.array([thresholds["thresholds"][label] for label in LABELS])
    points = {"at_0.5": np.full(len(LABELS), metrics.DEFAULT_THRESHOLD), "at_thresholds": chosen}
    operating = {name: metrics.operating_points(truth, scores, at) for name, at in points.items()}
    intervals = metrics.bootstrap_intervals(truth, scores, resampling, chosen)
    values = {"auc": metrics.roc_auc(truth, scores), "average_precision": metrics.average_precision(truth, scores)}
    for rate in ("sensitivity", "specificity"):
        values[rate] = {label: operating["at_thresholds"][label][rate] for label in LABELS}
    why = {label: metrics.why_undefined(truth[:, i]) for i, label in enumerate(LABELS)}
    why["macro"] = metrics.why_undefined(truth)
    return {
        "prevalence": metrics.prevalence(truth),
        "num_positive": dict(zip(LABELS, truth.sum(axis=0, dtype=np.int64).tolist(), strict=True)),
        "log_loss": estimate(metrics.log_loss_weighted(truth, scores), intervals["log_loss"]["all"]),
        **{
            name: {
                label: estimate(value, intervals[name].get(label), undefined=why[label])
                for label, value in found.items()
            }
            for name, found in values.items()
        },
        "thresholds": thresholds,
        "reports": {name: classification.classification_report(truth, scores, at) for name, at in points.items()},
        "report_intervals": {
            name: {
                row: {rate: asdict(found) for rate, found in rates.items()}
                for row, rates in classification.report_intervals(truth, scores, resampling, at).items()
            }
            for name, at in points.items()
        },
        "operating_points": operating,
    }


def report_table(measured: dict[str, Any]) -> pd.DataFrame:
    """The content of report.csv: both classification reports, one line a row of them, and words where it has none."""
    lines = [
        {
            "threshold": name.removeprefix("at_"),
            "row": row,
            **values,
            "undefined": NO_POSITIVES if values["recall"] is None else None,
        }
        for name, report in measured["reports"].items()
        for row, values in report.items()
    ]
    return pd.DataFrame(lines).astype({"support": np.int64})


def roc_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """The content of roc.csv: ``label, threshold, fpr, tpr``; a label with one class has no lines."""
    curves = metrics.roc_points(*truth_and_scores(predictions))
    parts = [
        pd.DataFrame({"label": label, "threshold": threshold, "fpr": fpr, "tpr": tpr})
        for label, (threshold, fpr, tpr) in curves.items()
    ]
    return pd.concat(parts) if parts else pd.DataFrame(columns=["label", "threshold", "fpr", "tpr"])


def interval_text(found: dict[str, Any]) -> str:
    """``(0.975 to 0.995)`` of an ``estimate``, in words why it has none, or nothing where it is undefined."""
    return "" if found["value"] is None else text(found).partition(" ")[2]


def text_table(measured: dict[str, Any]) -> str:
    """The headline for a terminal: one line a label, then the counts, the log loss and the studies."""
    columns = f"{'AUC, 95 % interval':>46}{'AP':>11}{'threshold':>11}{'sens.':>11}{'spec.':>11}"
    lines = [f"{'label':18}{'positives':>10}{columns}"]
    for label in LABELS:
        at = f"{measured['thresholds']['thresholds'][label]:>11.3f}"
        average, *rates = (
            _cell(measured[name][label]["value"]) for name in ("average_precision", "sensitivity", "specificity")
        )
        auc = text(measured["auc"][label])
        lines.append(f"{label:18}{measured['num_positive'][label]:>10}{auc:>46}{average}{at}{''.join(rates)}")
    lines.append(
        f"{measured['split']}: {measured['num_slices']} slices, {measured['num_studies']} studies, "
        f"{measured['num_patients']} patients; weighted log loss {text(measured['log_loss'], 4)}; "
        f"AUC of studies {text(measured['study_any']['auc'])}"
    )
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    """A figure whose words stand at the AUC of its line."""
    return f"{UNDEFINED:>11}" if value is None else f"{value:>11.3f}"
