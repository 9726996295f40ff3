import gc
import os
from pathlib import Path

import pytest
from dicom_peer import dicom_peer
from outputs_data import Scored, phantom_study
from pydicom.uid import ImplicitVRLittleEndian

from fastich.serve.outputs import dimse_client, key_image, source, sr
from fastich.serve.outputs.send_error import SendError

REFUSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""pynetdicom drops the socket of a refused connection without closing it; Python closes it, and says so."""


@pytest.fixture
def study(tmp_path: Path) -> Scored:
    return phantom_study(tmp_path, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎")


@pytest.fixture
def report(study: Scored) -> bytes:
    return source.to_bytes(sr.build(study.result, source.read_header(study.key_path), study.sop_classes))


def test_report_is_stored_under_our_title(study: Scored, report: bytes) -> None:
    with dicom_peer() as peer:
        assert dimse_client.send(peer.destination(), "FASTICH", report, 5) == ""
    (stored,) = peer.stored
    assert stored.SOPInstanceUID == study.result.uid("sr")
    assert str(stored.PatientName) == "Yamada^Tarou=山田^太郎"
    assert peer.callers == ["FASTICH"]


def test_peer_that_takes_implicit_vr_only_gets_it(study: Scored, report: bytes) -> None:
    with dicom_peer(syntaxes=[ImplicitVRLittleEndian]) as peer:
        assert dimse_client.send(peer.destination(), "FASTICH", report, 5) == ""
    assert str(peer.stored[0].PatientName) == "Yamada^Tarou=山田^太郎"


@pytest.mark.parametrize("status", [0xB000, 0xB007, 0xBFFF, 0x0107])
def test_warning_counts_as_stored_and_is_said(report: bytes, status: int) -> None:
    with dicom_peer(status) as peer:
        found = dimse_client.send(peer.destination(), "FASTICH", report, 5)
    assert found == f"0x{status:04X}: stored with a warning"


def test_object_that_is_there_already_counts_as_stored(report: bytes) -> None:
    with dicom_peer(0x0111) as peer:
        assert dimse_client.send(peer.destination(), "FASTICH", report, 5) == "0x0111: it was there already"


@pytest.mark.parametrize(
    ("status", "words", "permanent"),
    [
        (0x0122, r"refused, 0x0122 \(SOP class not supported\)", True),
        (0xA900, r"refused, 0xA900 \(data set does not match its SOP class\)", True),
        (0xA700, r"failed, 0xA700 \(out of resources\)", False),
        (0xC123, r"failed, 0xC123", False),
        (0x0124, r"failed, 0x0124", False),
    ],
)
def test_failure_is_named_and_judged(report: bytes, status: int, words: str, permanent: bool) -> None:
    with (
        dicom_peer(status) as peer,
        pytest.raises(SendError, match=rf"^pacs \(PACS at 127\.0\.0\.1:[0-9]+\): C-STORE {words}$") as caught,
    ):
        dimse_client.send(peer.destination(), "FASTICH", report, 5)
    assert caught.value.permanent is permanent


def test_peer_that_knows_no_reports_will_not_tomorrow(report: bytes) -> None:
    with (
        dicom_peer(classes=[key_image.SOP_CLASS]) as peer,
        pytest.raises(SendError, match=rf": {sr.SOP_CLASS}: abstract syntax not supported$") as caught,
    ):
        dimse_client.send(peer.destination(), "FASTICH", report, 5)
    assert caught.value.permanent


def test_peer_that_rejects_us_may_be_mended(report: bytes) -> None:
    with (
        dicom_peer(required_title="OTHER") as peer,
        pytest.raises(SendError, match=r": association rejected \(Called AE title not recognised\)$") as caught,
    ):
        dimse_client.send(peer.destination(), "FASTICH", report, 5)
    assert not caught.value.permanent


@REFUSED
def test_nobody_listening_is_tried_again(report: bytes) -> None:
    with dicom_peer() as peer:
        destination = peer.destination()
    with pytest.raises(SendError, match=r": no association within 1 s") as caught:
        dimse_client.send(destination, "FASTICH", report, 1)
    assert not caught.value.permanent


@REFUSED
def test_peer_that_is_down_costs_no_descriptors(report: bytes) -> None:
    with dicom_peer() as peer:
        destination = peer.destination()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(SendError):
            dimse_client.send(destination, "FASTICH", report, 1)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_no_error_names_the_patient(report: bytes) -> None:
    with dicom_peer(0xC000) as peer, pytest.raises(SendError) as caught:
        dimse_client.send(peer.destination(), "FASTICH", report, 5)
    assert "Yamada" not in str(caught.value)
