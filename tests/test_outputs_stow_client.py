import json
from pathlib import Path
from typing import Any

import pytest
from http_peer import http_peer
from outputs_data import phantom_study

from fastich.errors import FastichError
from fastich.serve.config import Destination
from fastich.serve.outputs import source, sr, stow_client
from fastich.serve.outputs.send_error import SendError

DATA = b"\0" * 128 + b"DICM and the rest"
UID = "2.25.1234"


def where(url: str, **changes: Any) -> Destination:
    return Destination(name="cloud", kind="stow", url=url, **changes)


def failed(reason: int) -> bytes:
    return json.dumps({"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [reason]}}]}}).encode()


def test_request_is_one_part_of_multipart_related() -> None:
    with http_peer() as peer:
        assert stow_client.send(where(peer.url + "/dicom-web/"), UID, DATA, 5) == ""
    (asked,) = peer.asked
    assert asked.path == "/dicom-web/studies"
    kind = asked.headers["Content-Type"]
    assert kind == 'multipart/related; type="application/dicom"; boundary="fastich-2.25.1234"'
    head, _, rest = asked.body.partition(b"\r\n\r\n")
    assert head == b"--fastich-2.25.1234\r\nContent-Type: application/dicom"
    assert rest == DATA + b"\r\n--fastich-2.25.1234--\r\n"
    assert "Authorization" not in asked.headers


def test_token_is_sent_and_never_said(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc.def\n")
    with (
        http_peer((401, {}, b"")) as peer,
        pytest.raises(SendError, match=r"^cloud \(STOW-RS\): answered 401$") as caught,
    ):
        stow_client.send(where(peer.url, token_file=tmp_path / "token"), UID, DATA, 5)
    assert peer.asked[0].headers["Authorization"] == "Bearer abc.def"
    assert not caught.value.permanent


def test_missing_token_is_said(tmp_path: Path) -> None:
    with pytest.raises(FastichError, match=r"^cloud: token_file: .*token: cannot be read \(FileNotFoundError\)$"):
        stow_client.send(where("http://127.0.0.1:1", token_file=tmp_path / "token"), UID, DATA, 5)


@pytest.mark.parametrize(
    ("status", "reason", "permanent"), [(409, 0x0122, True), (202, 0xA700, False), (200, 0xA900, True)]
)
def test_failure_inside_an_answer_counts_whatever_its_status(status: int, reason: int, permanent: bool) -> None:
    with (
        http_peer((status, {}, failed(reason))) as peer,
        pytest.raises(SendError, match=rf"^cloud \(STOW-RS\): not stored, reason 0x{reason:04X}$") as caught,
    ):
        stow_client.send(where(peer.url), UID, DATA, 5)
    assert caught.value.permanent is permanent


@pytest.mark.parametrize("status", [200, 409])
def test_what_is_there_already_is_delivered(status: int) -> None:
    with http_peer((status, {}, failed(0x0111))) as peer:
        assert stow_client.send(where(peer.url), UID, DATA, 5) == "0x0111: it was there already"


@pytest.mark.parametrize("answer", [b"", b"{}", b"<xml/>", b"[1]", b'{"00081198": 3}'])
def test_answer_without_failures_is_success(answer: bytes) -> None:
    with http_peer((200, {}, answer)) as peer:
        assert stow_client.send(where(peer.url), UID, DATA, 5) == ""


@pytest.mark.parametrize(("status", "permanent"), [(415, True), (503, False), (409, False)])
def test_refusal_without_a_reason_goes_by_its_status(status: int, permanent: bool) -> None:
    with (
        http_peer((status, {}, b"no json")) as peer,
        pytest.raises(SendError, match=rf"answered {status}$") as caught,
    ):
        stow_client.send(where(peer.url), UID, DATA, 5)
    assert caught.value.permanent is permanent


def test_report_arrives_as_the_bytes_that_were_built(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    data = source.to_bytes(sr.build(study.result, source.read_header(study.key_path), study.sop_classes))
    with http_peer() as peer:
        stow_client.send(where(peer.url), study.result.uid("sr"), data, 5)
    assert data in peer.asked[0].body
