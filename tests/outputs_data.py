"""A scored study for tests of what leaves the server: phantom slices as legal DICOM in a spool, and their score."""

import dataclasses
import functools
import hashlib
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from toy_model import write_model

from fastich.conformal import Triage
from fastich.dicom import group_studies, read_file
from fastich.phantom import PhantomConfig, generate
from fastich.phantom.dicom_bytes import legal_uid
from fastich.score import model_row, study_row
from fastich.serve.entities import Description, Instance, Origin, Outcome, Priority, Score, ScoredSlice, StudyState
from fastich.serve.outputs.result import Result, result_of
from fastich.serve.session import open_session
from fastich.study_rule import MAX_RULE, SliceAnswer, judge, place

REAL_HEAD = Path(__file__).parents[2] / "shared" / "data" / "head_ct_tilt"
CREATED_AT = 1_764_000_000.25
TRIAGE = Triage(alpha_miss=0.05, alpha_alarm=0.1, num_bleed=40, num_without=40, clear=0.1, flag=0.6)
PATIENT = {
    "PatientName": "MUELLER^ANNA",
    "PatientID": "4711",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "StudyDate": "20260102",
    "StudyTime": "030405",
    "AccessionNumber": "A-1",
    "StudyID": "S1",
    "ReferringPhysicianName": "",
    "StudyDescription": "CT HEAD",
}


@dataclass(frozen=True)
class Scored:
    """A study in a spool folder, scored."""

    folder: Path
    score: Score
    instances: tuple[Instance, ...]
    slices: tuple[ScoredSlice, ...]

    @property
    def result(self) -> Result:
        return result_of(self.score, [self.score])

    @property
    def sop_classes(self) -> dict[str, str]:
        return {one.sop_uid: one.sop_class_uid for one in self.instances}

    @property
    def key_path(self) -> Path:
        return self.folder / self.result.key_slices["any"].object_name

    def path_of(self, object_name: str) -> Path:
        return self.folder / object_name

    def with_document(self, **changes: Any) -> "Scored":
        document = dict(self.score.outcome.document or {}) | changes
        outcome = dataclasses.replace(self.score.outcome, document=document)
        return dataclasses.replace(self, score=dataclasses.replace(self.score, outcome=outcome))


@functools.cache
def phantom_files() -> tuple[bytes, ...]:
    """Nine slices of a head with bleeds, 64 x 64, as the phantom writes them."""
    with tempfile.TemporaryDirectory() as folder:
        generate(PhantomConfig(out=Path(folder) / "out", studies=1, size=64, healthy=0))
        files = sorted((Path(folder) / "out").rglob("*.dcm"))
        return tuple(path.read_bytes() for path in files[8:17])


def phantom_study(folder: Path, **changes: Any) -> Scored:
    """The phantom in ``folder``, with legal UIDs and a patient; ``changes`` are DICOM keywords, None leaves one out."""
    found = []
    for data in phantom_files():
        dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(data))
        found.append(_legal(dataset, PATIENT | changes))
    return scored(folder, found)


def real_study(folder: Path) -> Scored:
    """The real head CT."""
    found = [pydicom.dcmread(path) for path in sorted(REAL_HEAD.glob("*.dcm"))]
    return scored(folder, found)


def _legal(dataset: Dataset, values: dict[str, Any]) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the phantom's ids are no UIDs
        for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            setattr(dataset, keyword, legal_uid(str(dataset[keyword].value)))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for keyword, value in values.items():
        if value is None and keyword in dataset:
            del dataset[keyword]
        elif value is not None:
            setattr(dataset, keyword, value)
    return dataset


def scored(folder: Path, datasets: Sequence[Dataset]) -> Scored:
    """Write ``datasets`` under names of hashes, and say something of every slice."""
    folder.mkdir(parents=True, exist_ok=True)
    instances, slices = [], []
    for number, dataset in enumerate(datasets):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            buffer = pydicom.filebase.DicomBytesIO()
            dataset.save_as(buffer, enforce_file_format=True)
        data = buffer.getvalue()
        name = hashlib.sha256(data).hexdigest()
        (folder / name).write_bytes(data)
        for one in read_file(folder / name):
            slices.append(ScoredSlice(header=one.header, answer=_answer(number)))
        instances.append(_instance(dataset, name, len(data)))
    return Scored(folder, _score(folder, slices), tuple(instances), tuple(slices))


def _answer(number: int) -> SliceAnswer:
    rng = np.random.default_rng(number)
    logit = rng.normal(-1, 2, 6)
    logit[5] = logit.max() + 0.1
    cam = rng.normal(0, 1, (6, 8, 8))
    cam[:, 3, 5] += 6
    return SliceAnswer(
        probability=(1 / (1 + np.exp(-logit))).astype(np.float32),
        logit=logit.astype(np.float32),
        embedding=np.zeros(4, dtype=np.float32),
        cam=cam.astype(np.float32),
    )


def _instance(dataset: Dataset, name: str, size_bytes: int) -> Instance:
    return Instance(
        sop_uid=str(dataset.SOPInstanceUID),
        sop_class_uid=str(dataset.SOPClassUID),
        study_uid=str(dataset.StudyInstanceUID),
        series_uid=str(dataset.SeriesInstanceUID),
        object_name=name,
        size_bytes=size_bytes,
        received_at=CREATED_AT - 10,
        origin=Origin(way="dimse"),
    )


@functools.cache
def model() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder) / "model", threshold=0.5)
        return model_row(open_session(Path(folder) / "model"), None) | {"triage": TRIAGE.to_document()}


def _score(folder: Path, slices: Sequence[ScoredSlice]) -> Score:
    (study,) = group_studies([one.header for one in slices])
    answers = {place(one.header): one.answer for one in slices}
    judged = judge(study, answers, None)
    limits = open_limits()
    row = study_row(study, judged, limits, TRIAGE, 3)
    document = row | {"model": model(), "study_rule": MAX_RULE, "left_out": [], "gate": gate()}
    outcome = Outcome(state=StudyState.SCORED, priority=Priority.FLAGGED, document=document)
    return Score(
        score_id=1, study_uid=study.study_uid, revision=1, created_at=CREATED_AT, partial=False, outcome=outcome
    )


def gate(*cautions: str) -> dict[str, Any]:
    """What the gate says, as the scoring engine writes it."""
    return {"rules_sha256": "ef" * 32, "cautions": list(cautions), "series": []}


def left_out(reason: str, *, missed: bool) -> dict[str, Any]:
    """A file that was not scored, as the scoring engine writes it."""
    return {"path": "", "sop_uid": "", "series_uid": "", "reason": reason, "detail": "", "missed": missed}


def open_limits() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return write_model(Path(folder) / "model", threshold=0.5).thresholds


def description() -> Description:
    return Description(patient_id="4711", patient_name="MUELLER^ANNA", accession_number="A-1")
