"""A small site behind the web side: a store, a spool with phantom slices, a model that scored them, and tokens."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from starlette.testclient import TestClient
from toy_model import toy_onnx, write_model

from fastich.conformal import FLAG, HUMAN_FIRST
from fastich.dicom import group_studies, read_bytes
from fastich.phantom import dicom_bytes, scanner
from fastich.phantom.cohort import StudyPlan
from fastich.phantom.study import make_study
from fastich.score import model_row, study_row
from fastich.serve.audit import Audit
from fastich.serve.config import HttpConfig, ServeConfig, SpoolConfig
from fastich.serve.entities import (
    Description,
    Instance,
    InstanceState,
    Origin,
    Outcome,
    Priority,
    ScoredSlice,
    StudyState,
)
from fastich.serve.session import Session, open_session
from fastich.serve.spool import Spool
from fastich.serve.store import Store, open_store
from fastich.serve.web.parts import Parts
from fastich.serve.web.tokens import Tokens
from fastich.study_rule import SliceAnswer, judge, place, rule_of, thresholds_of

START = 1_780_000_000.0
BASE = "http://127.0.0.1"
MILD = 0.02
"""Scale of the toy model's weights at which a phantom's slices score about 0.4."""


@dataclass
class Clock:
    """A clock that tests set."""

    now: float = START

    def __call__(self) -> float:
        return self.now


@dataclass
class Site:
    """Everything that the pages stand on."""

    folder: Path
    session: Session
    clock: Callable[[], float]
    http: HttpConfig = field(default_factory=HttpConfig)
    min_free_mib: int = 1

    def __post_init__(self) -> None:
        spool = self.folder / "spool"
        self.config = ServeConfig(spool=SpoolConfig(folder=spool, min_free_mib=self.min_free_mib), http=self.http)
        self.spool = Spool(spool, self.config.spool)
        self.store: Store = open_store(spool / "store.sqlite", clock=self.clock)
        self.tokens = Tokens(spool)
        self.audit = Audit(self.config.audit, spool)
        self.stopping = threading.Event()

    def parts(self, **changes: Any) -> Parts:
        made = Parts(
            store=self.store,
            spool=self.spool,
            session=self.session,
            study_session=None,
            config=self.config,
            tokens=self.tokens,
            audit=self.audit,
            clock=self.clock,
            stopping=self.stopping,
        )
        return replace(made, **changes)

    def token(self, role: str = "viewer") -> str:
        return (self.folder / "spool" / f"{role}.token").read_text().strip()

    def close(self) -> None:
        self.stopping.set()
        self.store.close()


def small_model(folder: Path) -> Path:
    """A toy model folder whose probabilities are neither 0 nor 1."""
    write_model(folder, toy_onnx(scale=MILD))
    return folder


def log_in(client: TestClient, token: str, name: str = "Kim") -> None:
    """Give ``client`` the cookie of a session."""
    answer = client.post(
        "/login", data={"token": token, "name": name}, headers={"Origin": BASE}, follow_redirects=False
    )
    assert answer.status_code == 303, answer.text


def bearer(site: Site, role: str = "viewer") -> dict[str, str]:
    return {"Authorization": f"Bearer {site.token(role)}"}


def phantom_files(study_uid: str, subtypes: Sequence[str] = (), *, size: int = 64, step: int = 4) -> list[bytes]:
    """Every ``step``-th slice of a synthetic head as DICOM files with legal UIDs."""
    number = int.from_bytes(hashlib.sha256(study_uid.encode()).digest()[:3], "big")
    study = make_study(StudyPlan(number=number, patient=number, visit=0, subtypes=tuple(subtypes)), 0, size)
    return [
        dicom_bytes.encode(
            dicom_bytes.SliceFile(
                sop_uid=f"{study_uid}.{i + 1}",
                study_uid=study_uid,
                series_uid=f"{study_uid}.0",
                patient_id=f"P{number}",
                position_mm=scanner.position(study.scan, i, size),
                orientation=scanner.orientation(study.scan),
                pixel_mm=study.scan.pixel_mm,
                intercept=study.scan.intercept,
                window=("40", "80"),
                pixels=scanner.stored_values(study.hu[i], study.scan),
                implicit_vr=False,
            )
        )
        for i in range(0, len(study.hu), step)
    ]


def receive(site: Site, study_uid: str, files: Sequence[bytes], about: Description | None = None) -> list[Instance]:
    """Store files as a receiver would; they wait."""
    made = []
    for content in files:
        (one,) = read_bytes(content, "x")
        name = hashlib.sha256(content).hexdigest()
        path = site.spool.path_of(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        instance = Instance(
            sop_uid=one.header.sop_uid,
            sop_class_uid="1.2.840.10008.5.1.4.1.1.2",
            study_uid=study_uid,
            series_uid=one.header.series_uid,
            object_name=name,
            size_bytes=len(content),
            received_at=site.clock(),
            origin=Origin(way="dimse", sender="CT01", address="192.0.2.7"),
        )
        site.store.add_instance(instance, about or Description(patient_id="P1", patient_name="Doe^Jane"))
        made.append(instance)
    return made


def score(site: Site, study_uid: str, *, triage: str | None = None, partial: bool = False, **document: Any) -> Outcome:
    """Score what waits and write the result, as the engine would; ``triage`` overrules the model."""
    for instance in site.store.lease_instances(1000, 60.0, max_attempts=3):
        (one,) = read_bytes(site.spool.path_of(instance.object_name).read_bytes(), instance.object_name)
        found = site.session.run(one.hu[None])
        answer = SliceAnswer(
            probability=found.probability[0], logit=found.logit[0], embedding=found.embedding[0], cam=found.cam[0]
        )
        scored = ScoredSlice(header=one.header, answer=answer)
        site.store.finish_instance(instance.sop_uid, InstanceState.SCORED, slices=[scored])
    slices = site.store.scored_slices(study_uid)
    (study,) = group_studies([one.header for one in slices])
    judged = judge(study, {place(one.header): one.answer for one in slices}, None)
    row = study_row(study, judged, thresholds_of(site.session, None)[1], None, 3)
    beside = {
        "model": model_row(site.session, None),
        "study_rule": rule_of(None),
        "left_out": [],
        "gate": {"cautions": []},
        "protocol": {"kvp": 120.0, "thickness_mm": 5.0},
    }
    row |= beside | document | ({} if triage is None else {"triage": triage})
    raised = {FLAG: Priority.FLAGGED, HUMAN_FIRST: Priority.HUMAN_FIRST}
    fallback = Priority.FLAGGED if row["flagged"] else Priority.ROUTINE
    priority = fallback if triage is None else raised.get(triage, Priority.ROUTINE)
    state = StudyState.RECEIVING if partial else StudyState.SCORED
    outcome = Outcome(state=state, priority=priority, document=row)
    write(site, study_uid, outcome)
    return outcome


def write(site: Site, study_uid: str, outcome: Outcome, deliveries: Sequence[tuple[str, str]] = ()) -> None:
    """Write a result about the study as it stands."""
    study = site.store.study(study_uid)
    assert study is not None
    if outcome.state is StudyState.RECEIVING:
        site.store.add_partial(study_uid, study.revision, outcome)
    else:
        assert site.store.finish_study(study_uid, study.revision, outcome, deliveries)


def refuse(site: Site, study_uid: str, reason: str, *, deliveries: Sequence[tuple[str, str]] = ()) -> None:
    """Finish a study without a score."""
    for instance in site.store.lease_instances(1000, 60.0, max_attempts=3):
        site.store.finish_instance(instance.sop_uid, InstanceState.NOT_EVALUATED, "not CT", "Modality is 'MR'")
    write(site, study_uid, Outcome(state=StudyState.NOT_EVALUATED, reason=reason), deliveries)


def open_site(folder: Path, model: Path, clock: Callable[[], float] | None = None, **changes: Any) -> Site:
    return Site(folder=folder, session=open_session(model), clock=clock or Clock(), **changes)


def uid(number: int) -> str:
    return f"1.2.826.0.1.{number}"


def rng_documents(count: int, mean: float, seed: int) -> list[dict[str, Any]]:
    """Documents whose p(any) lie about ``mean``."""
    values = np.clip(np.random.default_rng(seed).normal(mean, 0.1, count), 0, 1)
    return [{"probability": {"any": float(value)}, "num_slices": 34} for value in values]
