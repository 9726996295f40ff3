"""study.onnx into a model folder that holds model.onnx: the sequence model of a study run, measured, then written.

Parity is measured on sequences made of what the network says of the parity slices, in the lengths that a site meets,
with known and unknown gaps: the file against torch, logits and calibrated probabilities. Seconds.
Shapes: L slices, C embedding channels, K labels.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from fastich.artifact import Artifact, FileEntry, Thresholds
from fastich.calibration import Calibration
from fastich.checkpoint import weights_sha256
from fastich.errors import UsageError
from fastich.export_evaluation import read_evaluation, shipped_config
from fastich.files import atomic_path
from fastich.model_card import publish
from fastich.models.sequence import SequenceNetwork
from fastich.models.study_onnx import study_onnx_bytes
from fastich.parity import Answer, check_parity, difference, worse_of
from fastich.study_contract import STUDY_FILE, STUDY_INPUTS, STUDY_OUTPUTS, STUDY_ROLE, StudyPart, to_document
from fastich.study_run import LoadedStudyRun

PAIR = f"{STUDY_FILE} vs torch"
PARITY_LENGTHS = (1, 2, 34, 800)
"""One slice, the shortest with a gap, the median of RSNA 2019, and a thin-slice series."""
MOST_GAP_MM = 12.0
"""Of the gaps drawn: from doubles (0 mm) to missing slices."""
UNKNOWN_GAPS = 0.2

Floats = NDArray[np.float32]
Sequence3 = tuple[Floats, Floats, Floats]
"""Embedding [L, C], logit [L, 6] and gap_mm [L] of one series."""


def add_study(
    out: Path, artifact: Artifact, loaded: LoadedStudyRun, evaluation: Path | None, seen: tuple[Floats, Floats]
) -> Artifact:
    """Write study.onnx, then model.json with it.

    Args:
        out: the model folder.
        artifact: what its model.json says.
        loaded: the study run, whose CNN is the one in the folder.
        evaluation: the evaluation folder of the study run; None for plain sigmoids cut at 0.5.
        seen: embedding [N, C] and logit [N, 6] of some slices, as the network gives them.

    Raises:
        UsageError: the study run listens to another CNN, or another study run was evaluated.
        ArtifactError: the file does not agree with the network; nothing was written.
    """
    part = study_part(artifact, loaded, evaluation)
    calibrations = [Calibration.from_document(found) for found in (part.slice_calibration, part.study_calibration)]
    content = study_onnx_bytes(loaded.sequence, *calibrations)
    thresholds = part.slice_thresholds, part.study_thresholds
    report = {PAIR: measure(content, loaded.sequence, calibrations, list(sequences(*seen)), thresholds)}
    check_parity(report)
    entry = FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content), role=STUDY_ROLE)
    finished = dataclasses.replace(
        artifact,
        study=to_document(part),
        files={**artifact.files, STUDY_FILE: entry},
        parity={**artifact.parity, **report},
    )
    with atomic_path(out / STUDY_FILE) as temporary:
        temporary.write_bytes(content)
    publish(out, finished)
    return finished


def study_part(artifact: Artifact, loaded: LoadedStudyRun, evaluation: Path | None) -> StudyPart:
    """What model.json will say of the study run.

    Raises:
        UsageError: as ``add_study``.
    """
    cnn = weights_sha256(loaded.cnn.model)
    if cnn != artifact.weights_sha256:
        raise UsageError(
            f"{loaded.path}: expected a sequence model over network {artifact.weights_sha256[:12]}, found one over "
            f"{cnn[:12]}; give the run that it was trained with, or another --out"
        )
    part = StudyPart(
        variant=loaded.sequence.variant,
        embedding_size=loaded.embedding_size,
        weights_sha256=weights_sha256(loaded.sequence),
        cnn_weights_sha256=cnn,
        config=shipped_config(loaded.config),
    )
    if evaluation is None:
        return part
    found = read_evaluation(
        evaluation, loaded, loaded.path, [weights_sha256(loaded.cnn.model), weights_sha256(loaded.sequence)]
    )
    return dataclasses.replace(
        part,
        slice_thresholds=found.thresholds,
        study_thresholds=found.study_thresholds,
        slice_calibration=found.calibration,
        study_calibration=found.study_calibration,
        triage=found.triage,
        metrics=found.metrics,
    )


def sequences(embedding_NC: Floats, logit_NK: Floats, seed: int = 0) -> Iterator[Sequence3]:
    """Series of ``PARITY_LENGTHS`` drawn from what the network said of N slices; the same for the same input."""
    random = np.random.default_rng([seed, len(embedding_NC)])
    for length in PARITY_LENGTHS:
        chosen = random.integers(0, len(embedding_NC), length)
        gap_mm = random.uniform(0, MOST_GAP_MM, length).astype(np.float32)
        gap_mm[random.random(length) < UNKNOWN_GAPS] = np.nan
        gap_mm[0] = np.nan
        yield embedding_NC[chosen], logit_NK[chosen], gap_mm


def measure(
    content: bytes,
    model: SequenceNetwork,
    calibrations: list[Calibration],
    series: list[Sequence3],
    thresholds: tuple[Thresholds, Thresholds],
) -> dict[str, Any]:
    """How far the file is from torch, the worse of slices and studies: as ``parity.difference``."""
    answers = [(_torch_answers(model, calibrations, one), _file_answers(content, one)) for one in series]
    found = []
    for which, cut in enumerate(thresholds):
        true, file = (_joined([pair[side][which] for pair in answers]) for side in (0, 1))
        found.append(difference(true, file, cut))
    slices, studies = found
    lengths = ", ".join(map(str, PARITY_LENGTHS))
    return worse_of(slices, studies) | {"input": f"series of {lengths} of the parity slices"}


def _joined(parts: list[Answer]) -> Answer:
    probability, logit = (np.concatenate(one) for one in zip(*parts, strict=True))
    return probability, logit


def _torch_answers(model: SequenceNetwork, calibrations: list[Calibration], given: Sequence3) -> tuple[Answer, Answer]:
    """Of the slices and of the study, [1, 6]."""
    embedding, logit, gap_mm = (torch.from_numpy(one)[None] for one in given)
    with torch.inference_mode():
        said = model(embedding, logit, gap_mm, torch.ones(1, logit.shape[1], dtype=torch.bool))
    logits = said.slices[0].numpy(), said.study.numpy()
    slices, study = (
        (one.probability(found).astype(np.float32), found) for one, found in zip(calibrations, logits, strict=True)
    )
    return slices, study


def _file_answers(content: bytes, given: Sequence3) -> tuple[Answer, Answer]:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [spec.name for spec in STUDY_OUTPUTS]
    inputs = dict(zip((spec.name for spec in STUDY_INPUTS), given, strict=True))
    found = dict(zip(names, session.run(names, inputs), strict=True))
    slices = found["slice_probability"], found["slice_logit"]
    return slices, (found["study_probability"][None], found["study_logit"][None])
