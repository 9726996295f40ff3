"""What model.json says of study.onnx, the sequence model beside model.onnx: its tensors, operating points and triage.

The key ``study`` of model.json is optional: a model folder without it judges each slice alone, and a study by its
largest slice. Numpy and the standard library only.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastich.artifact import NOT_CALIBRATED, TensorSpec, Thresholds, parse_thresholds
from fastich.errors import ArtifactError
from fastich.labels import LABELS

STUDY_FILE = "study.onnx"
STUDY_ROLE = "sequence model over the slices of a study, with a study decision, for ONNX Runtime"
STUDY_INPUTS = (
    TensorSpec(name="embedding", dtype="float32", shape=("L", "C")),
    TensorSpec(name="logit", dtype="float32", shape=("L", len(LABELS))),
    TensorSpec(name="gap_mm", dtype="float32", shape=("L",)),
)
"""``embedding`` and ``logit`` as model.onnx gives them, slices in order; ``gap_mm[l]`` is the distance along the normal
from slice l-1 to slice l, NaN where unknown and at the first."""
STUDY_OUTPUTS = (
    TensorSpec(name="slice_probability", dtype="float32", shape=("L", len(LABELS))),
    TensorSpec(name="study_probability", dtype="float32", shape=(len(LABELS),)),
    TensorSpec(name="slice_logit", dtype="float32", shape=("L", len(LABELS))),
    TensorSpec(name="study_logit", dtype="float32", shape=(len(LABELS),)),
)
"""Probabilities are calibrated, and p(any) >= max p(subtype) of each slice and of the study; logits are raw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPart:
    """The key ``study`` of model.json.

    Attributes:
        variant: of the sequence model, ``gru`` or ``difference``.
        embedding_size: C, features of a slice.
        weights_sha256: identity of the sequence model; ``cnn_weights_sha256`` that of the network it listens to.
        slice_thresholds: at and above which a label counts as found in a slice, with the rule that chose them.
        study_thresholds: the same of the study's probabilities.
        slice_calibration: what turned slice logits into probabilities, as in ``Calibration.to_document``.
        study_calibration: the same of the study's logits.
        triage: the three-way rule and its guarantee, as ``fastich.conformal`` states them; None without.
        metrics: what the study run's evaluation measured; None without.
        config: of the study run's training.
    """

    variant: str
    embedding_size: int
    weights_sha256: str
    cnn_weights_sha256: str
    slice_thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    study_thresholds: Thresholds = dataclasses.field(default_factory=Thresholds)
    slice_calibration: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(NOT_CALIBRATED))
    study_calibration: Mapping[str, Any] = dataclasses.field(default_factory=lambda: dict(NOT_CALIBRATED))
    triage: Mapping[str, Any] | None = None
    metrics: Mapping[str, Any] | None = None
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def to_document(part: StudyPart) -> dict[str, Any]:
    """The JSON values of the key ``study``."""
    return {
        "file": STUDY_FILE,
        "variant": part.variant,
        "inputs": [dataclasses.asdict(spec) for spec in _inputs(part.embedding_size)],
        "outputs": [dataclasses.asdict(spec) for spec in STUDY_OUTPUTS],
        "embedding_size": part.embedding_size,
        "thresholds": {"slices": _thresholds(part.slice_thresholds), "study": _thresholds(part.study_thresholds)},
        "calibration": {"slices": dict(part.slice_calibration), "study": dict(part.study_calibration)},
        "triage": part.triage,
        "metrics": part.metrics,
        "weights_sha256": part.weights_sha256,
        "cnn_weights_sha256": part.cnn_weights_sha256,
        "config": dict(part.config),
    }


def _inputs(embedding_size: int) -> list[TensorSpec]:
    first, *rest = STUDY_INPUTS
    return [dataclasses.replace(first, shape=("L", embedding_size)), *rest]


def _thresholds(chosen: Thresholds) -> dict[str, Any]:
    return {"rule": chosen.rule, "values": dict(zip(LABELS, chosen.values, strict=True))}


def from_document(document: Mapping[str, Any], where: str) -> StudyPart:
    """What ``to_document`` wrote; ``where`` names the file in the message.

    Raises:
        ArtifactError: a field is missing or holds something else.
    """
    try:
        if document["file"] != STUDY_FILE:
            raise ValueError(f"file: expected {STUDY_FILE}, found {document['file']!r}")
        return StudyPart(
            variant=str(document["variant"]),
            embedding_size=int(document["embedding_size"]),
            weights_sha256=str(document["weights_sha256"]),
            cnn_weights_sha256=str(document["cnn_weights_sha256"]),
            slice_thresholds=_read_thresholds(document["thresholds"]["slices"]),
            study_thresholds=_read_thresholds(document["thresholds"]["study"]),
            slice_calibration=document["calibration"]["slices"],
            study_calibration=document["calibration"]["study"],
            triage=document["triage"],
            metrics=document["metrics"],
            config=document["config"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{where}: damaged, study: {type(error).__name__} {error}; export again") from error


def _read_thresholds(document: Mapping[str, Any]) -> Thresholds:
    return parse_thresholds(document["values"], str(document["rule"]))
