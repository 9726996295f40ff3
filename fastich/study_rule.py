"""From what the network said of each slice to what is said of a study: by the sequence model, or by the largest slice.

With study.onnx each series is judged as a whole, and of several series the largest study probability of each label
counts: a bleed seen in one of them is never outvoted by another, at the price of false alarms in studies of many
series. Without it a study is its largest slice. The three-way triage looks at raw logits, for its guarantee wants a
score that was not fitted on the studies that it is calibrated with (``report/choices.py``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich.artifact import MANIFEST, Thresholds
from fastich.conformal import Triage, study_score
from fastich.dicom import Series, Study
from fastich.errors import ArtifactError
from fastich.serve.session import Session
from fastich.serve.study_session import StudySession
from fastich.types import SliceHeader

HEAD_RULE = "study head of study.onnx; of several series the largest"
MAX_RULE = "largest slice probability (the model folder has no study.onnx)"

Place = tuple[str, int]
"""A slice by file and frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceAnswer:
    """What the network says of a slice: ``probability`` and ``logit`` [6], and if kept ``embedding`` [C] and ``cam``
    [6, h, w].
    """

    probability: NDArray[np.float32]
    logit: NDArray[np.float32]
    embedding: NDArray[np.float32] | None = None
    cam: NDArray[np.float32] | None = None


Answers = Mapping[Place, SliceAnswer]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """Probabilities and raw logits, float64: [L, 6] of each series in order, and [6] of the study."""

    slice_probability: tuple[NDArray[np.float64], ...]
    slice_logit: tuple[NDArray[np.float64], ...]
    study_probability: NDArray[np.float64]
    study_logit: NDArray[np.float64]


def place(header: SliceHeader) -> Place:
    """What tells one slice from another."""
    return header.path, header.frame


def rule_of(study_session: StudySession | None) -> str:
    """What decides about a study, in words."""
    return MAX_RULE if study_session is None else HEAD_RULE


def thresholds_of(session: Session, study_session: StudySession | None) -> tuple[Thresholds, Thresholds]:
    """Thresholds of slices and of studies (those of slices in folders from before there were others)."""
    if study_session is None:
        return session.artifact.thresholds, session.artifact.largest_slice_thresholds
    return study_session.part.slice_thresholds, study_session.part.study_thresholds


def triage_of(session: Session, study_session: StudySession | None) -> Triage | None:
    """The three-way rule of the model folder, fitted on what decides about a study; None without.

    Raises:
        ArtifactError: model.json holds a damaged one.
    """
    document = session.artifact.triage if study_session is None else study_session.part.triage
    try:
        return None if document is None else Triage.from_document(document)
    except ValueError as error:
        raise ArtifactError(f"{MANIFEST}: damaged, {error}; export again") from error


def triage_score(study_logit_K: NDArray[np.float64]) -> float:
    """What triage decides on: ``study_score`` of one study."""
    return float(study_score(study_logit_K[None])[0])


def judge(study: Study, found: Answers, study_session: StudySession | None) -> Judged:
    """Slices and study by the rule of ``rule_of``."""
    answers = [[found[place(header)] for header in series.headers] for series in study.series]
    if study_session is None:
        return _by_largest_slice(answers)
    return _by_sequence(study.series, answers, study_session)


def _by_largest_slice(answers: Sequence[Sequence[SliceAnswer]]) -> Judged:
    probability = tuple(np.stack([one.probability for one in series]).astype(np.float64) for series in answers)
    logit = tuple(np.stack([one.logit for one in series]).astype(np.float64) for series in answers)
    return Judged(
        slice_probability=probability,
        slice_logit=logit,
        study_probability=np.concatenate(probability).max(axis=0),
        study_logit=np.concatenate(logit).max(axis=0),
    )


def _by_sequence(series: Sequence[Series], answers: Sequence[Sequence[SliceAnswer]], session: StudySession) -> Judged:
    said = [
        session.run(
            np.stack([one.embedding for one in inside if one.embedding is not None]),
            np.stack([one.logit for one in inside]),
            gaps_mm(outer),
        )
        for outer, inside in zip(series, answers, strict=True)
    ]
    return Judged(
        slice_probability=tuple(one.slice_probability.astype(np.float64) for one in said),
        slice_logit=tuple(one.slice_logit.astype(np.float64) for one in said),
        study_probability=np.stack([one.study_probability for one in said]).max(axis=0).astype(np.float64),
        study_logit=np.stack([one.study_logit for one in said]).max(axis=0).astype(np.float64),
    )


def gaps_mm(series: Series) -> NDArray[np.float64]:
    """Distance of each slice from the one before along the normal, mm; NaN at the first and where it is unknown.

    Slices at one place are 0 mm apart. The same as ``training/study_data.py``, which this side may not import.
    """
    return np.abs(np.diff(np.asarray(series.geometry.z_mm, dtype=np.float64), prepend=np.nan))
