"""What is said of what arrives: once for a study and sender, and never of a patient."""

import json
import logging
from pathlib import Path

import pytest

from fastich.serve import reception
from fastich.serve.audit import Audit
from fastich.serve.config import AuditConfig
from fastich.serve.entities import Origin, Receipt, Refused
from fastich.serve.reception import Reception
from fastich.serve.spool import IngestRefused

SCANNER = Origin(way="dimse", sender="CT1", address="192.0.2.7")


@pytest.fixture
def heard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Reception:
    caplog.set_level(logging.INFO)
    logging.getLogger("fastich").propagate = True
    return Reception(Audit(AuditConfig(), tmp_path))


def lines(tmp_path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


def receipt(study: str, **values: bool) -> Receipt:
    return Receipt(sop_uid="1.2.3", sop_class_uid="1.2", study_uid=study, **values)


def test_a_study_is_one_audit_line_for_each_sender(heard: Reception, tmp_path: Path) -> None:
    for _ in range(40):
        heard.stored(receipt("1.2.8"), SCANNER)
    heard.stored(receipt("1.2.8"), Origin(way="stow", sender="ris"))
    heard.stored(receipt("1.2.9"), SCANNER)
    assert [(one["event"], one["who"], one["study_uid"]) for one in lines(tmp_path)] == [
        ("receive", "CT1", "1.2.8"),
        ("receive", "ris", "1.2.8"),
        ("receive", "CT1", "1.2.9"),
    ]


def test_only_so_many_studies_are_remembered(heard: Reception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reception, "REMEMBERED", 2)
    for study in ("1.1", "1.2", "1.3", "1.1"):
        heard.stored(receipt(study), SCANNER)
    assert [one["study_uid"] for one in lines(tmp_path)] == ["1.1", "1.2", "1.3", "1.1"]


def test_a_conflict_is_a_warning(heard: Reception, caplog: pytest.LogCaptureFixture) -> None:
    heard.stored(receipt("1.2.8", conflict=True), SCANNER)
    assert any("other content under a known UID, from CT1: kept aside" in line for line in caplog.messages)


def test_refusals_and_cut_connections_are_failures(heard: Reception, tmp_path: Path) -> None:
    heard.refused(IngestRefused(Refused.INVALID_UID, "SOP Instance UID"), SCANNER)
    heard.heard("rejected", {"calling": "EVIL", "address": "192.0.2.9", "reason": "not among dicom.peers"})
    heard.heard("accepted", {"calling": "CT1"})
    found = lines(tmp_path)
    assert [(one["event"], one["who"], one["outcome"]) for one in found] == [
        ("refused", "CT1", "failure"),
        ("refused", "EVIL", "failure"),
    ]
    assert found[1]["detail"] == "rejected: not among dicom.peers"
