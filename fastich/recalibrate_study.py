"""The part of a recalibration that falls to study.onnx: its constants, tried before anything is written.

Where the model folder has a sequence model, what scoring shows of slices and of studies is its answer, and each of the
two has constants, thresholds and calibration of its own. Outcomes of one kind change that kind alone. No torch; 0.1 s.
Shapes: L slices, C embedding channels, K labels.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.artifact import Artifact, read_verified
from fastich.calibration import Calibration
from fastich.calibration_graph import with_calibration
from fastich.parity import Answer, check_parity, difference, worse_of
from fastich.refit import Decision, outdated
from fastich.serve.session import open_onnx
from fastich.serve.study_session import StudySession
from fastich.study_contract import STUDY_FILE, StudyPart, to_document

PAIR = f"{STUDY_FILE} recalibrated vs numpy"
LENGTHS = (1, 2, 34)
"""Slices of the series that the new file is tried on: one, the shortest with a gap, the median of RSNA 2019."""
MOST_GAP_MM = 12.0
UNKNOWN_GAPS = 0.2

Floats = NDArray[np.float32]


def decision_of(part: StudyPart, unit: str) -> Decision:
    """What decides about each ``slice`` or about the ``study``."""
    if unit == "slice":
        return Decision(calibration=part.slice_calibration, thresholds=part.slice_thresholds, triage=part.triage)
    return Decision(calibration=part.study_calibration, thresholds=part.study_thresholds, triage=part.triage)


def with_decision(part: StudyPart, unit: str, now: Decision) -> StudyPart:
    """``part`` with ``now`` in place of what ``decision_of`` gave."""
    if unit == "slice":
        return dataclasses.replace(
            part, slice_calibration=now.calibration, slice_thresholds=now.thresholds, triage=now.triage
        )
    return dataclasses.replace(
        part, study_calibration=now.calibration, study_thresholds=now.thresholds, triage=now.triage
    )


def with_study(
    folder: Path, old: Artifact, session: StudySession, unit: str, now: Decision, calibration: Calibration
) -> tuple[Artifact, dict[str, bytes]]:
    """The new model.json, but for its files, and every file: study.onnx with new constants, the rest as it is.

    Args:
        folder: the model folder as it is.
        old: its model.json.
        session: its study.onnx.
        unit: ``slice`` or ``study``, whose constants change.
        now: what decides about them.
        calibration: that of ``now``.

    Raises:
        ArtifactError: study.onnx has no such constants, or the new one does not say what it should.
    """
    contents = {name: read_verified(folder, old, name) for name in sorted(old.files)}
    part = dataclasses.replace(with_decision(session.part, unit, now), metrics=outdated(session.part.metrics))
    made = with_calibration(contents[STUDY_FILE], calibration, prefix=f"{unit}_", where=STUDY_FILE)
    path = Path(STUDY_FILE)
    fresh = StudySession(part, hashlib.sha256(made).hexdigest(), open_onnx(made, "cpu", path), path)
    parity = {**old.parity, **compare(session, fresh, calibration, unit)}
    return dataclasses.replace(old, study=to_document(part), parity=parity), contents | {STUDY_FILE: made}


def compare(old: StudySession, new: StudySession, calibration: Calibration, unit: str) -> dict[str, Any]:
    """Parity of the new file with numpy's ``calibration`` of the old file's logits, and of the other unit with the old.

    Raises:
        ArtifactError: they differ: the file is not what it should be.
    """
    given = list(sequences(old.part.embedding_size))
    before, after = _answers(old, given), _answers(new, given)
    _, logit_old = before[unit]
    wanted = before | {unit: (calibration.probability(logit_old).astype(np.float32), logit_old)}
    cuts = {"slice": new.part.slice_thresholds, "study": new.part.study_thresholds}
    slices, studies = (difference(wanted[each], after[each], cut) for each, cut in cuts.items())
    lengths = ", ".join(map(str, LENGTHS))
    report = {PAIR: worse_of(slices, studies) | {"input": f"made-up series of {lengths} slices"}}
    check_parity(report)
    return report


def sequences(embedding_size: int, seed: int = 0) -> Iterator[tuple[Floats, Floats, Floats]]:
    """Made-up embedding [L, C], logit [L, 6] and gap_mm [L] of series of ``LENGTHS``; some gaps are unknown (NaN)."""
    random = np.random.default_rng([seed, embedding_size])
    for length in LENGTHS:
        gap_mm = random.uniform(0, MOST_GAP_MM, length).astype(np.float32)
        gap_mm[random.random(length) < UNKNOWN_GAPS] = np.nan
        gap_mm[0] = np.nan
        embedding = random.random((length, embedding_size), dtype=np.float32)
        yield embedding, random.normal(-1, 3, (length, 6)).astype(np.float32), gap_mm


def _answers(session: StudySession, given: list[tuple[Floats, Floats, Floats]]) -> dict[str, Answer]:
    """Of all slices [sum of L, 6], and of the studies [number of series, 6]."""
    said = [session.run(*one) for one in given]
    return {
        "slice": (
            np.concatenate([one.slice_probability for one in said]),
            np.concatenate([one.slice_logit for one in said]),
        ),
        "study": (np.stack([one.study_probability for one in said]), np.stack([one.study_logit for one in said])),
    }
