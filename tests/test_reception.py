"""What is said of what arrives: once for a study and sender, and never of a patient."""

import contextlib
import json
import logging
from pathlib import Path

import pytest

from fastich.serve import reception
from fastich.serve.audit import Audit, Seldom
from fastich.serve.config import AuditConfig, SpoolConfig
from fastich.serve.entities import Origin, Receipt, Refused
from fastich.serve.reception import HeardIngest, Reception
from fastich.serve.spool import IngestRefused, Spool
from fastich.serve.store import open_store

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


def test_a_full_disk_is_said_once_a_minute_with_how_many_were_refused(
    heard: Reception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    heard._seldom = Seldom(lambda: now[0])
    for at in (0.0, 1.0, 2.0, 60.0):
        now[0] = at
        heard.closed(IngestRefused(Refused.STORAGE_FULL, "0 MiB free"))
        heard.heard("refused", {"address": "192.0.2.7", "reason": "storage-full"})
    said = [line for line in caplog.messages if "nothing is taken in" in line]
    assert len(said) == 2
    assert "0 MiB free" in said[0]
    assert said[1].endswith("(3 of them since the last line)")
    assert [one["detail"] for one in lines(tmp_path)] == [
        "refused: storage-full",
        "refused: storage-full (3 of them since the last line)",
    ]


def test_whoever_asks_a_full_spool_is_heard(tmp_path: Path) -> None:
    spool = Spool(tmp_path, SpoolConfig(min_free_mib=2**40))
    with contextlib.closing(open_store(tmp_path / "fastich.db")) as store:
        ingest = HeardIngest(store, spool, SpoolConfig(), notify=lambda: None)
        told: list[IngestRefused] = []
        ingest.reception = Reception(Audit(AuditConfig(), tmp_path))
        ingest.reception.closed = told.append  # type: ignore[method-assign]
        with pytest.raises(IngestRefused):
            ingest.check_capacity()
    assert [one.reason for one in told] == [Refused.STORAGE_FULL]


def test_one_address_cannot_make_a_write_of_each_of_its_connections(heard: Reception, tmp_path: Path) -> None:
    for number in range(100):
        heard.heard("rejected", {"calling": f"EVIL{number}", "address": "192.0.2.9", "reason": "not among dicom.peers"})
        heard.refused(IngestRefused(Refused.INVALID_UID, "x"), SCANNER)
    heard.heard("rejected", {"calling": "OTHER", "address": "192.0.2.8", "reason": "not among dicom.peers"})
    assert [one["who"] for one in lines(tmp_path)] == ["EVIL0", "CT1", "OTHER"]
