"""The storage SCP against real peers: DCMTK's storescu, echoscu and dcmsend, and pynetdicom as SCU."""

import contextlib
import hashlib
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from dicom_data import CT_IMAGE, DEFLATED, EXPLICIT, IMPLICIT, RLE
from peers import needs
from pydicom.dataset import FileMetaDataset
from pynetdicom.dsutils import encode
from pynetdicom.presentation import AllStoragePresentationContexts
from receive_data import (
    ROOT,
    Port,
    ct,
    ct_bytes,
    dicom_port,
    incoming_files,
    is_closed_within,
    open_ingest,
    raw_association,
    raw_store,
    scu,
    status_of,
    stored_files,
)

from fastich.dicom import read_file
from fastich.errors import FastichError
from fastich.serve.config import DicomConfig, Peer
from fastich.serve.entities import Refused
from fastich.serve.ingest import IngestRefused
from fastich.serve.receive.dimse import TRANSFER_SYNTAXES, DicomServer, supported_contexts
from fastich.serve.receive.reasons import ANSWERS


def storescu(port: Port, *args: object) -> int:
    return _run("storescu", "-aec", "FASTICH", "127.0.0.1", port.number, *args)


def send(port: Port, *, number: int = 1, **changes: Any) -> int:
    """The status that pynetdicom hears for one slice."""
    dataset = ct(number, **changes)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    with scu(port.number) as association:
        return int(association.send_c_store(dataset).Status)


@needs("echoscu")
def test_echoscu_is_answered(tmp_path: Path) -> None:
    with dicom_port(tmp_path) as port:
        assert _run("echoscu", "-aec", "FASTICH", "127.0.0.1", port.number) == 0


@needs("storescu")
def test_what_storescu_sends_is_stored_whole_and_readable(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.dcm").write_bytes(ct_bytes(number, value=number))
    with dicom_port(tmp_path / "spool") as port:
        assert storescu(port, "+sd", folder) == 0
        files = stored_files(port.ingest)
        assert len(files) == 5
        assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in files} == {path.stem for path in files}
        assert sorted(int(read_file(path)[0].hu[0, 0]) for path in files) == [-1024 + number for number in range(5)]
        assert [values["study_uid"] for values in port.of("stored")] == [f"{ROOT}.1"] * 5
        assert not incoming_files(port.ingest)


@needs("dcmsend")
def test_dcmsend_sends_the_same_study_twice_and_it_is_stored_once(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.dcm").write_bytes(ct_bytes(number, value=number))
    with dicom_port(tmp_path / "spool") as port:
        for _ in range(2):
            assert _run("dcmsend", "-aec", "FASTICH", "127.0.0.1", port.number, "+sd", folder) == 0
        assert len(stored_files(port.ingest)) == 4
        assert [values["duplicate"] for values in port.of("stored")] == [False] * 4 + [True] * 4


@needs("storescu")
@pytest.mark.parametrize(
    ("reason", "exit_status"), [(Refused.STORAGE_FULL, 0xA7), (Refused.MALFORMED, 0xC0), (Refused.MISMATCH, 0xA9)]
)
def test_storescu_hears_why_an_object_was_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Refused, exit_status: int
) -> None:
    (tmp_path / "one.dcm").write_bytes(ct_bytes())
    ingest = open_ingest(tmp_path / "spool")
    monkeypatch.setattr(ingest, "accept", _refuse(reason))
    with dicom_port(tmp_path, ingest=ingest) as port:
        assert storescu(port, tmp_path / "one.dcm") == exit_status
        assert port.of("refused") == [{"address": "127.0.0.1", "reason": reason.value, "detail": "as asked"}]
        assert not incoming_files(ingest)


@needs("storescu")
def test_a_uid_that_climbs_out_is_refused_to_storescu_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "one.dcm").write_bytes(ct_bytes(SOPInstanceUID="../../escaped"))
    with dicom_port(tmp_path / "a" / "spool") as port:
        assert storescu(port, "-nuc", tmp_path / "one.dcm") != 0
        assert not stored_files(port.ingest)
        assert not port.of("stored")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "one.dcm"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["spool"]


@pytest.mark.parametrize("reason", Refused)
def test_each_refusal_has_its_status_and_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Refused
) -> None:
    ingest = open_ingest(tmp_path)
    monkeypatch.setattr(ingest, "accept", _refuse(reason))
    dataset = ct()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = EXPLICIT
    with dicom_port(tmp_path, ingest=ingest) as port, scu(port.number) as association:
        status = association.send_c_store(dataset)
        assert status.Status == ANSWERS[reason].dimse_status
        assert status.ErrorComment == reason.value
        assert association.send_c_echo().Status == 0, "the association goes on"


def test_an_error_of_ours_is_0110_without_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("SECRET^NAME")

    ingest = open_ingest(tmp_path)
    monkeypatch.setattr(ingest, "accept", fail)
    with dicom_port(tmp_path, ingest=ingest) as port:
        assert send(port) == 0x0110
        assert port.of("error") == [{"address": "127.0.0.1", "reason": "RuntimeError"}]
        assert not incoming_files(ingest)


def test_a_data_set_that_is_not_what_was_announced_is_a900(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with dicom_port(tmp_path) as port, scu(port.number) as association:
        dataset = ct()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = EXPLICIT
        other = ct(2)
        monkeypatch.setattr("pynetdicom.association.encode", _encode_instead(other))
        assert association.send_c_store(dataset).Status == 0xA900


def test_the_promise_0x0000_comes_after_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest, order = open_ingest(tmp_path), list[str]()
    accept = ingest.accept

    def slow(*args: Any, **kwargs: Any) -> Any:
        receipt = accept(*args, **kwargs)
        time.sleep(0.3)
        order.append("row")
        return receipt

    monkeypatch.setattr(ingest, "accept", slow)
    with dicom_port(tmp_path, ingest=ingest) as port:
        assert send(port) == 0
        order.append("reply")
    assert order == ["row", "reply"]


def test_a_disk_that_fills_while_an_object_comes_is_a700_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with dicom_port(tmp_path) as port:
        with monkeypatch.context() as patch:
            patch.setattr("pathlib.Path.open", _full_disk)
            assert send(port) == 0xA700
        assert send(port) == 0
        assert len(stored_files(port.ingest)) == 1


def test_a_wrong_called_title_is_rejected_as_such(tmp_path: Path) -> None:
    with dicom_port(tmp_path) as port, scu(port.number, called="OTHER") as association:
        assert association.is_rejected
        assert _reason(association) == (1, 1, 7)


@pytest.mark.parametrize(
    ("peers", "is_taken"),
    [
        ((), True),
        ((Peer(ae_title="TESTER"),), True),
        ((Peer(ae_title="SCANNER"),), False),
        ((Peer(ae_title="SCANNER"), Peer(ae_title="TESTER", address="127.0.0.0/8")), True),
        ((Peer(ae_title="TESTER", address="192.0.2.0/24"),), False),
        ((Peer(address="127.0.0.1"),), True),
        ((Peer(address="::1"),), False),
    ],
)
def test_only_listed_callers_are_taken(tmp_path: Path, peers: tuple[Peer, ...], is_taken: bool) -> None:
    with dicom_port(tmp_path, peers=peers) as port, scu(port.number) as association:
        assert association.is_established == is_taken
        if not is_taken:
            assert _reason(association) == (1, 1, 3)
            rejected = port.wait_for("rejected")
            assert rejected == {"address": "127.0.0.1", "calling": "TESTER", "reason": "not among dicom.peers"}


def test_one_association_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    with dicom_port(tmp_path, max_associations=2, max_sockets_per_address=20) as port:
        with scu(port.number) as first, scu(port.number) as second:
            assert first.is_established
            assert second.is_established
            with scu(port.number) as third:
                assert third.is_rejected
                assert _reason(third) == (2, 3, 2)
        for _ in range(5):
            with scu(port.number) as again:
                assert again.is_established, "a place is free once its peer hears so"


def test_as_many_associations_as_the_configuration_says_are_open_at_a_time(tmp_path: Path) -> None:
    with dicom_port(tmp_path, max_sockets_per_address=25) as port, contextlib.ExitStack() as stack:
        for _ in range(DicomConfig().max_associations):
            stack.enter_context(raw_association(port.number))
        with pytest.raises(AssertionError, match="found PDU type 3"):
            raw_association(port.number)


def test_every_storage_class_is_offered_in_every_syntax_that_is_read_and_none_deflated(tmp_path: Path) -> None:
    offered = {str(one.abstract_syntax): [str(uid) for uid in one.transfer_syntax] for one in supported_contexts()}
    for known in AllStoragePresentationContexts:
        assert offered[str(known.abstract_syntax)] == list(TRANSFER_SYNTAXES)
    assert {EXPLICIT, IMPLICIT, RLE, "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.201"} <= set(TRANSFER_SYNTAXES)
    assert DEFLATED not in TRANSFER_SYNTAXES
    with dicom_port(tmp_path) as port, scu(port.number, syntaxes=[DEFLATED]) as association:
        assert [one.abstract_syntax for one in association.rejected_contexts] == [CT_IMAGE, "1.2.840.10008.1.1"]


def test_a_stop_waits_for_the_object_that_is_being_stored_and_for_no_idle_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, began = open_ingest(tmp_path), threading.Event()
    accept = ingest.accept

    def slow(*args: Any, **kwargs: Any) -> Any:
        began.set()
        time.sleep(0.5)
        return accept(*args, **kwargs)

    monkeypatch.setattr(ingest, "accept", slow)
    with (
        dicom_port(tmp_path, ingest=ingest) as port,
        raw_association(port.number) as idle,
        raw_association(port.number) as sender,
    ):
        sender.sendall(raw_store())
        assert began.wait(5)
        start = time.monotonic()
        port.server.stop(drain_s=10)
        assert 0.3 < time.monotonic() - start < 4
        assert status_of(sender) == 0
        assert is_closed_within(idle, 1.0)
    assert len(stored_files(ingest)) == 1


def test_a_stop_ends_what_does_not_end_by_itself(tmp_path: Path) -> None:
    with dicom_port(tmp_path, dimse_timeout_s=60) as port, raw_association(port.number) as peer:
        peer.sendall(b"\x04\0\0\0")
        start = time.monotonic()
        port.server.stop(drain_s=0.2)
        assert time.monotonic() - start < 2
        port.server.stop()


def test_no_event_holds_a_name_or_an_id_of_a_patient(tmp_path: Path) -> None:
    with dicom_port(tmp_path) as port:
        assert send(port, PatientName="SECRET^NAME", PatientID="SECRET4711") == 0
        send(port, number=2, StudyInstanceUID="SECRET^UID")
        assert "SECRET" not in repr(port.events)
        assert len(port.of("refused")) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ae_title": "A" * 17}, r"dicom.ae_title: expected 1 to 16 characters, found 'AAA"),
        ({"ae_title": " "}, r"dicom.ae_title: expected 1 to 16 characters, found ' '"),
        (
            {"peers": (Peer(address="pacs.example"),)},
            r"dicom.peers: expected an IP .* 'pacs.example'",
        ),
    ],
)
def test_a_configuration_that_means_nothing_is_one_line(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FastichError, match=message):
        DicomServer(open_ingest(tmp_path), DicomConfig(**changes), on_event=lambda *_: None)


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with dicom_port(tmp_path) as port:
        second = DicomServer(port.ingest, DicomConfig(port=port.number), on_event=lambda *_: None)
        with pytest.raises(FastichError, match=rf"127.0.0.1 port {port.number}: cannot listen \(.*in use\)"):
            second.start()


def _run(*command: object) -> int:
    done = subprocess.run([str(word) for word in command], capture_output=True, timeout=30, check=False)
    return done.returncode


def _reason(association: Any) -> tuple[int, int, int]:
    answer = association.acceptor.primitive
    return answer.result, answer.result_source, answer.diagnostic


def _refuse(reason: Refused) -> Any:
    def accept(path: Path, *_: Any, **__: Any) -> None:
        path.unlink()
        raise IngestRefused(reason, "as asked")

    return accept


def _full_disk(path: Path, mode: str = "r", *_: Any, **__: Any) -> Any:
    if "incoming" in str(path) and mode == "xb":
        raise OSError(28, "No space left on device")
    return open(path, mode)


def _encode_instead(other: Any) -> Any:
    def wrong(dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return encode(other if "PixelData" in dataset else dataset, *args, **kwargs)

    return wrong
