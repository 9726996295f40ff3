"""What a run's config and an evaluation folder give to model.json: thresholds, calibration, triage, metrics.

The folder is what ``fastich.evaluate`` wrote of a run, or of a study run; one of another network is refused.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fastich import verb
from fastich.artifact import FLOAT32, NOT_CALIBRATED, Thresholds, parse_thresholds
from fastich.calibration import Calibration
from fastich.conformal import Triage
from fastich.errors import UsageError
from fastich.report.folder import (
    CALIBRATION_FILE,
    METRICS_FILE,
    STUDY_CALIBRATION_FILE,
    STUDY_THRESHOLDS_FILE,
    THRESHOLDS_FILE,
    TRIAGE_FILE,
)

EVALUATION_KEYS = (
    "split",
    "num_slices",
    "num_studies",
    "num_patients",
    "prevalence",
    "num_positive",
    "auc",
    "average_precision",
    "sensitivity",
    "specificity",
    "log_loss",
    "intervals",
    "study_any",
)
"""What model.json repeats of an evaluation's metrics.json; the rest stays in the report."""
OPTIONAL_KEYS = ("calibration", "subgroups", "triage")
"""The same, of evaluations that have it."""
STUDY_KEYS = (
    "decision",
    "num_studies",
    "prevalence",
    "num_positive",
    "auc",
    "average_precision",
    "sensitivity",
    "specificity",
    "log_loss",
    "rules",
)
"""What it repeats of the key ``studies``, where there is one."""
PATHS_IN_CONFIG = ("records", "out", "run")
"""Fields of a training config that name folders of the machine it ran on: not for model.json."""


class Trained(Protocol):
    """What an evaluation must agree with: a loaded run or study run."""

    @property
    def config(self) -> dict[str, Any]:
        """The resolved training config."""

    @property
    def dataset_sha256(self) -> str:
        """Identity of the records that it was trained on."""

    @property
    def epoch(self) -> int:
        """The epoch whose weights these are."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation folder adds to model.json; ``study_`` is of the study's own outputs."""

    thresholds: Thresholds
    metrics: dict[str, Any]
    calibration: dict[str, Any]
    triage: dict[str, Any] | None
    study_thresholds: Thresholds
    study_calibration: dict[str, Any]


def read_evaluation(folder: Path, trained: Trained, where: Path, weights: Sequence[str] = ()) -> Evaluation:
    """What ``folder`` says of ``trained``, which lies at ``where`` and whose networks are ``weights`` (SHA-256).

    Without a calibration file the probabilities are the plain sigmoid, without triage.json there is no triage, without
    study-thresholds.json a study is cut at 0.5, and the rule says so.

    Raises:
        UsageError: a file is missing or holds something else, another network was evaluated, or with views (--tta) that
            no exported graph has.
    """
    path = folder
    try:
        path = folder / THRESHOLDS_FILE
        thresholds = _thresholds(json.loads(path.read_text(encoding="utf-8")))
        path = folder / STUDY_THRESHOLDS_FILE
        of_studies = _optional(path, _thresholds)
        path = folder / CALIBRATION_FILE
        calibration = _optional(path, Calibration.from_document) or dict(NOT_CALIBRATED)
        path = folder / STUDY_CALIBRATION_FILE
        study_calibration = _optional(path, Calibration.from_document) or dict(NOT_CALIBRATED)
        path = folder / TRIAGE_FILE
        triage = _optional(path, Triage.from_document)
        path = folder / METRICS_FILE
        metrics = json.loads(path.read_text(encoding="utf-8"))
        kept = _kept(metrics)
        found = (metrics["config"], metrics["model"]["epoch"], metrics["dataset"]["trained_on_sha256"])
        judged = metrics["model"].get("weights_sha256")
        views = metrics.get("evaluation", {}).get("tta", "none")
        precision = kept["precision"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__} {error}"
        raise UsageError(f"{path}: expected what fastich.evaluate writes, found {what}") from error
    if views != "none":
        raise UsageError(f"{path}: expected an evaluation without --tta, found {views}; an exported graph has none")
    is_other = bool(judged and weights) and list(judged) != list(weights)
    if is_other or found != (trained.config, trained.epoch, trained.dataset_sha256):
        raise UsageError(
            f"{path}: expected an evaluation of {where}, epoch {trained.epoch}, "
            f"found one of another network, epoch {found[1]}; evaluate this run again"
        )
    if precision != FLOAT32:
        verb.say(
            f"{folder}: judged in {precision}, and the graphs compute in {FLOAT32}: logits differ by some hundredths; "
            "evaluate without --amp for the thresholds and figures of what is exported"
        )
    return Evaluation(
        thresholds=thresholds,
        metrics=kept,
        calibration=calibration,
        triage=triage,
        study_thresholds=Thresholds() if of_studies is None else _thresholds(of_studies),
        study_calibration=study_calibration,
    )


def _thresholds(document: dict[str, Any]) -> Thresholds:
    fallback = document.get("fallback_labels")
    note = f", not {', '.join(fallback)} (0.5)" if fallback else ""
    return parse_thresholds(document["thresholds"], f"{document['rule']} on {document['split']}{note}")


def _kept(metrics: dict[str, Any]) -> dict[str, Any]:
    kept = {key: metrics[key] for key in EVALUATION_KEYS}
    kept |= {key: metrics[key] for key in OPTIONAL_KEYS if key in metrics}
    if "studies" in metrics:
        kept["studies"] = {key: metrics["studies"][key] for key in STUDY_KEYS}
    dataset = metrics["dataset"]
    leakage = {name: dataset.get(name) for name in ("leakage", "leakage_of_validation")}
    precision = metrics["machine"]["precision"]
    return kept | {"dataset_sha256": dataset["dataset_sha256"], "precision": precision, **leakage}


def _optional(path: Path, parse: Callable[[dict[str, Any]], object]) -> dict[str, Any] | None:
    """The JSON document of ``path``, once ``parse`` took it; ``None`` where there is no such file."""
    if not path.exists():
        return None
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    parse(document)
    return document


def shipped_config(config: dict[str, Any]) -> dict[str, Any]:
    """A training config without the paths of the machine that it ran on (a weights file keeps its bare name)."""
    kept = {key: value for key, value in config.items() if key not in PATHS_IN_CONFIG}
    return kept | ({"weights": Path(kept["weights"]).name} if "weights" in kept else {})
