"""study.onnx, opened once and checked: what the slices of one series say together, on the CPU, without torch.

A series of 34 slices costs about 1 ms of one core, next to seconds for the network that looks at the slices.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastich.artifact import MANIFEST, read_manifest, read_verified
from fastich.errors import ArtifactError
from fastich.labels import NUM_LABELS
from fastich.serve.session import check_interface, open_onnx, signature
from fastich.study_contract import STUDY_FILE, STUDY_INPUTS, STUDY_OUTPUTS, StudyPart, from_document

SELF_CHECK_SLICES = 3

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyScores:
    """What the sequence model says of L slices and of the study that they make, float32, labels in label order.

    ``slice_probability`` [L, 6] and ``study_probability`` [6] are calibrated; ``slice_logit`` and ``study_logit`` raw.
    """

    slice_probability: Floats
    study_probability: Floats
    slice_logit: Floats
    study_logit: Floats


class StudySession:
    """One opened sequence model. ``run`` may be called from several threads.

    Attributes:
        part: what model.json says of it.
        sha256: of the file that runs.
    """

    def __init__(self, part: StudyPart, sha256: str, engine: Any, where: Path) -> None:
        self.part, self.sha256 = part, sha256
        self._engine, self._where = engine, where

    def run(self, embedding_LC: Floats, logit_LK: Floats, gap_mm_L: NDArray[np.floating]) -> StudyScores:
        """Scores of one series, slices in order.

        Args:
            embedding_LC: float32 [L, C] as model.onnx gave it.
            logit_LK: float32 [L, 6] as model.onnx gave it.
            gap_mm_L: distance from the slice before along the normal, mm; NaN where unknown and at the first.

        Raises:
            ValueError: a shape does not fit.
            ArtifactError: the model fails or answers with NaN or infinity.
        """
        length, channels = len(gap_mm_L), self.part.embedding_size
        expected = [(length, channels), (length, NUM_LABELS)]
        if length == 0 or [embedding_LC.shape, logit_LK.shape] != expected:
            raise ValueError(
                f"expected embedding [L, {channels}], logit [L, 6] and gap_mm [L], L at least 1, "
                f"found {list(embedding_LC.shape)}, {list(logit_LK.shape)} and {list(gap_mm_L.shape)}"
            )
        given = zip((spec.name for spec in STUDY_INPUTS), (embedding_LC, logit_LK, gap_mm_L), strict=True)
        names = [spec.name for spec in STUDY_OUTPUTS]
        try:
            found = self._engine.run(names, {name: np.asarray(value, dtype=np.float32) for name, value in given})
        except Exception as error:  # ONNX Runtime's own classes share no base but Exception
            raise ArtifactError(f"{self._where}: the model failed on {length} slices: {error}") from error
        for name, value in zip(names, found, strict=True):
            if not np.isfinite(value).all():
                raise ArtifactError(f"{self._where}: expected finite {name}, found NaN or infinity; export again")
        return StudyScores(**dict(zip(names, found, strict=True)))


def open_study_session(folder: Path) -> StudySession | None:
    """The sequence model of a model folder, checked and tried once; None where the folder has none.

    Raises:
        ArtifactError: model.json is damaged, study.onnx is missing, damaged, of another interface or of another
            network, or the trial failed.
    """
    artifact, manifest, path = read_manifest(folder), folder / MANIFEST, folder / STUDY_FILE
    if artifact.study is None:
        if STUDY_FILE in artifact.files:
            raise ArtifactError(f"{manifest}: names {STUDY_FILE} but does not describe it; export again")
        return None
    part = from_document(artifact.study, str(manifest))
    if part.cnn_weights_sha256 != artifact.weights_sha256:
        raise ArtifactError(
            f"{manifest}: expected a sequence model over network {artifact.weights_sha256[:12]}, "
            f"found one over {part.cnn_weights_sha256[:12]}; export both again"
        )
    if part.embedding_size != artifact.embedding_size:
        raise ArtifactError(
            f"{manifest}: expected a sequence model of {artifact.embedding_size} features, "
            f"found one of {part.embedding_size}; export both again"
        )
    engine = open_onnx(read_verified(folder, artifact, STUDY_FILE), "cpu", path)
    check_interface(path, "input", STUDY_INPUTS, [signature(item) for item in engine.get_inputs()])
    check_interface(path, "output", STUDY_OUTPUTS, [signature(item) for item in engine.get_outputs()])
    session = StudySession(part, artifact.files[STUDY_FILE].sha256, engine, path)
    _try(session)
    return session


def _try(session: StudySession) -> None:
    """Zeros for a series whose gaps are unknown: NaN weights and other features show themselves."""
    embedding = np.zeros((SELF_CHECK_SLICES, session.part.embedding_size), dtype=np.float32)
    session.run(embedding, np.zeros((SELF_CHECK_SLICES, NUM_LABELS), np.float32), np.full(SELF_CHECK_SLICES, np.nan))
