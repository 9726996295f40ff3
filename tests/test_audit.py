import contextlib
import errno
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from serve_data import Clock

from fastich.errors import FastichError
from fastich.serve import audit as module
from fastich.serve.audit import EVENTS, Audit, Syslog, audit_xml, syslog_message
from fastich.serve.config import AuditConfig

AT = 1735786995.25


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def repository() -> Iterator[socket.socket]:
    """An audit record repository on the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind(("127.0.0.1", 0))
        made.settimeout(10)
        yield made


def test_record_is_one_json_line_for_its_owner_only(tmp_path: Path) -> None:
    audit = Audit(AuditConfig(), tmp_path, clock=Clock(AT))
    audit.record("acknowledge", who="reader", outcome="success", study_uid="1.2.3", detail="flagged")
    audit.record("start", who="fastich", outcome="success")
    path = tmp_path / "audit.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    assert lines(path) == [
        {
            "at": "2025-01-02T03:03:15.250Z",
            "event": "acknowledge",
            "who": "reader",
            "outcome": "success",
            "study_uid": "1.2.3",
            "detail": "flagged",
        },
        {"at": "2025-01-02T03:03:15.250Z", "event": "start", "who": "fastich", "outcome": "success"},
    ]


def test_record_is_on_the_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(AuditConfig(), tmp_path)
    synced: list[bytes] = []
    fsync = os.fsync

    def told(handle: int) -> None:
        fsync(handle)
        synced.append((tmp_path / "audit.jsonl").read_bytes())

    monkeypatch.setattr(os, "fsync", told)
    audit.record("view", who="reader", outcome="success")
    assert synced == [(tmp_path / "audit.jsonl").read_bytes()]
    assert synced[0].endswith(b"}\n")


def test_file_may_stand_elsewhere_and_be_rotated(tmp_path: Path) -> None:
    path = tmp_path / "trail"
    audit = Audit(AuditConfig(file=path), tmp_path / "spool")
    audit.record("view", who="a", outcome="success")
    path.rename(tmp_path / "trail.1")
    audit.record("view", who="b", outcome="success")
    assert [line["who"] for line in (*lines(tmp_path / "trail.1"), *lines(path))] == ["a", "b"]


def test_caller_cannot_forge_a_record(tmp_path: Path) -> None:
    audit = Audit(AuditConfig(), tmp_path)
    audit.record("view", who='x"}\n{"who": "admin\x1b\udc80', outcome="success")
    (line,) = lines(tmp_path / "audit.jsonl")
    assert line["who"] == 'x"}\\n{"who": "admin\\x1b\\udc80'


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    audit = Audit(AuditConfig(), tmp_path)

    def work(number: int) -> None:
        for step in range(10):
            audit.record("view", who=f"{number}.{step}", outcome="success", detail="x" * 500)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = {line["who"] for line in lines(tmp_path / "audit.jsonl")}
    assert found == {f"{number}.{step}" for number in range(6) for step in range(10)}


def test_folder_that_is_absent_is_one_clear_line_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FastichError, match=r"absent/audit\.jsonl: cannot write the audit trail \(No such file"):
        Audit(AuditConfig(), tmp_path / "absent")


def test_disk_fault_never_reaches_the_caller_and_is_logged_once_with_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(AuditConfig(), tmp_path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with caplog.at_level(logging.INFO, "fastich"):
        with monkeypatch.context() as broken:
            broken.setattr(os, "write", full)
            for _ in range(3):
                audit.record("view", who="reader", outcome="success")
        assert len(caplog.records) == 1
        assert "file of the audit trail fails: [Errno 28] No space left on device" in caplog.text
        audit.record("view", who="reader", outcome="success")
        assert "works again; records in between are missing" in caplog.text
    assert len(lines(tmp_path / "audit.jsonl")) == 1


def test_syslog_message_is_rfc_5424_with_the_xml_of_ps3_15() -> None:
    values = {"event": "send", "who": "fastich", "outcome": "success", "study_uid": "1.2.3", "detail": "sr to pacs"}
    head, xml = syslog_message(AT, values).split(b"\xef\xbb\xbf", 1)
    expected = rf"<85>1 2025-01-02T03:03:15\.250Z \S+ fastich {os.getpid()} DICOM\+RFC3881 - "
    assert re.fullmatch(expected, head.decode("ascii"))
    root = ElementTree.fromstring(xml)
    assert root.tag == "AuditMessage"
    assert [child.tag for child in root] == [
        "EventIdentification",
        "ActiveParticipant",
        "ActiveParticipant",
        "AuditSourceIdentification",
        "ParticipantObjectIdentification",
    ]
    event = root[0]
    assert event.attrib == {
        "EventActionCode": "R",
        "EventDateTime": "2025-01-02T03:03:15.250Z",
        "EventOutcomeIndicator": "0",
    }
    assert [child.tag for child in event] == ["EventID", "EventOutcomeDescription"]
    assert event[0].attrib == {
        "csd-code": "110104",
        "codeSystemName": "DCM",
        "originalText": "DICOM Instances Transferred",
    }
    assert event[1].text == "send: success: sr to pacs"
    assert [child.attrib for child in root[1:3]] == [
        {"UserID": "fastich", "UserIsRequestor": "true"},
        {"UserID": "fastich", "UserIsRequestor": "false"},
    ]
    study = root[4]
    assert (study.attrib["ParticipantObjectID"], study.attrib["ParticipantObjectTypeCode"]) == ("1.2.3", "2")
    assert study.attrib["ParticipantObjectTypeCodeRole"] == "3"
    assert study[0].attrib["originalText"] == "Study Instance UID"


@pytest.mark.parametrize("event", [*EVENTS, "something new"])
def test_every_event_has_a_code_and_an_action_of_the_standard(event: str) -> None:
    root = ElementTree.fromstring(audit_xml(AT, {"event": event, "who": "", "outcome": "failure"}))
    found = root[0]
    assert re.fullmatch("1101[0-9]{2}", found[0].attrib["csd-code"])
    assert found.attrib["EventActionCode"] in "CRUDE"
    assert found.attrib["EventOutcomeIndicator"] == "4"
    described = found.find("EventOutcomeDescription")
    assert described is not None
    assert described.text == f"{event}: failure"
    assert root[1].attrib["UserID"] == "unknown"
    assert root.find("ParticipantObjectIdentification") is None


def test_markup_and_control_characters_of_a_caller_are_escaped_in_the_xml() -> None:
    xml = audit_xml(AT, {"event": "view", "who": 'a"><b>\0', "outcome": "success", "detail": "<script>"})
    assert b"<script>" not in xml
    assert ElementTree.fromstring(xml)[1].attrib["UserID"] == 'a"><b>\\x00'


def test_syslog_message_reaches_the_repository(tmp_path: Path, repository: socket.socket) -> None:
    config = AuditConfig(syslog_host="127.0.0.1", syslog_port=repository.getsockname()[1])
    with contextlib.closing(Audit(config, tmp_path)) as audit:
        audit.record("acknowledge", who="reader", outcome="success", study_uid="1.2.3")
        message = repository.recv(65536)
    assert message.startswith(b"<85>1 ")
    assert b'UserID="reader"' in message
    assert len(lines(tmp_path / "audit.jsonl")) == 1


def test_repository_that_has_no_address_never_stops_the_caller_and_is_asked_for_once_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def fail(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    audit = Audit(AuditConfig(syslog_host="audit.example"), tmp_path)
    for _ in range(5):
        audit.record("view", who="reader", outcome="success")
    assert asked == ["audit.example"]
    assert caplog.text.count("syslog of the audit trail fails") == 1
    assert len(lines(tmp_path / "audit.jsonl")) == 5


def test_name_is_looked_up_again_after_a_minute(repository: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    now = Clock(0.5)
    syslog = Syslog("127.0.0.1", repository.getsockname()[1], monotonic=now)

    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with monkeypatch.context() as down:
        down.setattr(socket, "getaddrinfo", fail)
        with pytest.raises(OSError, match="Temporary failure"):
            syslog.send(b"1")
    with pytest.raises(OSError, match="no address a moment ago"):
        syslog.send(b"2")
    now.now += module.RESOLVE_AGAIN_S
    syslog.send(b"3")
    assert repository.recv(10) == b"3"
    syslog.close()


def test_repository_that_is_down_never_stops_the_caller(tmp_path: Path, repository: socket.socket) -> None:
    port = repository.getsockname()[1]
    repository.close()
    with contextlib.closing(Audit(AuditConfig(syslog_host="127.0.0.1", syslog_port=port), tmp_path)) as audit:
        for _ in range(5):
            audit.record("view", who="reader", outcome="success")
    assert len(lines(tmp_path / "audit.jsonl")) == 5


def test_a_repository_whose_name_takes_long_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    def slow(*_: object) -> socket.socket:
        asked.set()
        answer.wait(10)
        raise OSError("no address")

    monkeypatch.setattr(module, "_connected", slow)
    monkeypatch.setattr(module, "MAX_QUEUED", 3)
    audit = Audit(AuditConfig(syslog_host="audit.example"), tmp_path)
    audit.record("view", who="first", outcome="success")
    assert asked.wait(10)
    for number in range(10):
        audit.record("view", who=str(number), outcome="success")
    assert len(lines(tmp_path / "audit.jsonl")) == 11
    answer.set()
    audit.close()
    assert not audit._thread.is_alive()
