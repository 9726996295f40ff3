"""STOW-RS over a real server: dicomweb-client, bodies made by hand, and what must not get in."""

import contextlib
import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dicom_data import CT_IMAGE, DEFLATED
from dicomweb_client.api import DICOMwebClient
from http_data import BOUNDARY, STOW_TYPE, Answer, http_server, multipart, post
from pydicom import dcmread
from receive_data import ROOT, ct_bytes, incoming_files, is_closed_within, open_ingest, stored_files, wait_until

from fastich.serve.config import HttpConfig
from fastich.serve.entities import Refused
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive import stow
from fastich.serve.receive.bodies import Gate
from fastich.serve.receive.reasons import ANSWERS

PATH = "/dicom-web/studies"
STOW = {"Content-Type": STOW_TYPE}
STORED, FAILED, OTHER_FAILURES, REASON, SOP_UID = "00081199", "00081198", "0008119A", "00081197", "00081155"
CONFIG = HttpConfig(max_body_mib=4, max_parts=20, body_timeout_s=0.5)


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    return open_ingest(tmp_path)


@pytest.fixture
def port(ingest: Ingest) -> Iterator[int]:
    with http_server(stow.routes(ingest, CONFIG, Gate(CONFIG.max_uploads))) as number:
        yield number
    assert not incoming_files(ingest), "nothing temporary is left"


def with_meta(number: int, **changes: Any) -> bytes:
    """A CT file whose file meta names the instance too."""
    dataset = dcmread(_as_file(ct_bytes(number, **changes)))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return _bytes_of(dataset)


def store(port: int, *parts: bytes, path: str = PATH, **head: str) -> Answer:
    return post(port, path, {**STOW, **head}, multipart(parts))


def values(answer: Answer, sequence: str, tag: str) -> list[Any]:
    return [item[tag]["Value"][0] for item in answer.json().get(sequence, {"Value": []})["Value"]]


def test_dicomweb_client_stores_a_study_and_reads_the_answer(port: int, ingest: Ingest) -> None:
    datasets = [dcmread(_as_file(with_meta(number, value=number))) for number in range(5)]
    client = DICOMwebClient(f"http://127.0.0.1:{port}/dicom-web")
    answer = client.store_instances(datasets, study_instance_uid=f"{ROOT}.1")
    stored = [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence]
    assert stored == [f"{ROOT}.1.1.{number}" for number in range(5)]
    assert "FailedSOPSequence" not in answer
    assert len(stored_files(ingest)) == 5


def test_all_stored_is_200_and_names_each_instance(port: int, ingest: Ingest) -> None:
    answer = store(port, ct_bytes(1), ct_bytes(2))
    assert (answer.status, answer.headers["content-type"]) == (200, "application/dicom+json")
    assert values(answer, STORED, SOP_UID) == [f"{ROOT}.1.1.1", f"{ROOT}.1.1.2"]
    assert values(answer, STORED, "00081150") == [CT_IMAGE] * 2
    assert set(answer.json()) == {"00081190", STORED}
    found = ingest._store.find_instance(f"{ROOT}.1.1.1")
    assert (found.origin.way, found.origin.sender, found.origin.address) == ("stow", "alice", "127.0.0.1")


def test_the_same_request_again_is_200_and_stored_once(port: int, ingest: Ingest) -> None:
    assert [store(port, ct_bytes(1)).status for _ in range(2)] == [200, 200]
    assert len(stored_files(ingest)) == 1


def test_some_stored_is_202_with_a_reason_for_each_other(port: int, ingest: Ingest) -> None:
    answer = store(port, ct_bytes(1), b"no DICOM", with_meta(2, syntax=DEFLATED), ct_bytes(3))
    assert answer.status == 202
    assert values(answer, STORED, SOP_UID) == [f"{ROOT}.1.1.1", f"{ROOT}.1.1.3"]
    assert values(answer, FAILED, SOP_UID) == [f"{ROOT}.1.1.2"]
    assert values(answer, FAILED, REASON) == [0xC122]
    assert values(answer, OTHER_FAILURES, REASON) == [0xC000]
    assert len(stored_files(ingest)) == 2


def test_an_instance_of_another_study_than_the_url_is_409_with_a900(port: int, ingest: Ingest) -> None:
    path = f"{PATH}/{ROOT}.1"
    answer = store(port, with_meta(1, study=2), path=path)
    assert answer.status == 409
    assert values(answer, FAILED, REASON) == [0xA900]
    assert store(port, ct_bytes(1), with_meta(1, study=2), path=path).status == 202
    assert len(stored_files(ingest)) == 1


@pytest.mark.parametrize(
    ("part", "status", "reason"),
    [
        (b"", 400, 0xC000),
        (b"\x1f\x8b" + bytes(1000), 400, 0xC000),
        (b"\x89PNG" + bytes(1000), 400, 0xC000),
        (ct_bytes(1, syntax=DEFLATED), 415, 0xC122),
        (ct_bytes(1, SOPInstanceUID="../../escaped"), 409, 0xC001),
        (ct_bytes(1, StudyInstanceUID="1." + "2" * 64), 409, 0xC001),
        (bytes(2**20 + 1), 413, 0xC002),
    ],
    ids=["empty", "gzip", "png", "deflated", "uid", "long-uid", "large"],
)
def test_what_is_not_taken_is_refused_with_its_reason_and_leaves_nothing(
    port: int, ingest: Ingest, tmp_path: Path, part: bytes, status: int, reason: int
) -> None:
    answer = store(port, part)
    assert answer.status == status
    assert values(answer, FAILED, REASON) + values(answer, OTHER_FAILURES, REASON) == [reason]
    assert not stored_files(ingest)
    assert not (tmp_path.parent / "escaped").exists()


def test_huge_rows_and_columns_cost_nothing_and_are_stored_as_they_are(port: int, ingest: Ingest) -> None:
    answer = store(port, ct_bytes(1, Rows=65535, Columns=65535))
    assert answer.status == 200, "the scorer says what is wrong with it; nothing is allocated by its size here"
    assert stored_files(ingest)[0].stat().st_size < 4096


@pytest.mark.parametrize("reason", Refused)
def test_each_refusal_has_its_status(
    port: int, ingest: Ingest, monkeypatch: pytest.MonkeyPatch, reason: Refused
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        path.unlink()
        raise IngestRefused(reason, "as asked")

    monkeypatch.setattr(ingest, "accept", refuse)
    answer = store(port, with_meta(1))
    assert answer.status == ANSWERS[reason].http_status
    assert ("retry-after" in answer.headers) == ANSWERS[reason].is_temporary
    assert values(answer, FAILED, REASON) == [ANSWERS[reason].failure_reason]


@pytest.mark.parametrize(
    ("reason", "status"), [(Refused.STORAGE_FULL, 507), (Refused.BUSY, 503), (Refused.DATABASE, 503)]
)
def test_where_nothing_can_be_taken_no_body_is_read(
    port: int, ingest: Ingest, monkeypatch: pytest.MonkeyPatch, reason: Refused, status: int
) -> None:
    def refuse() -> None:
        raise IngestRefused(reason, "as asked")

    monkeypatch.setattr(ingest, "check_capacity", refuse)
    answer = post(port, PATH, {**STOW, "Content-Length": "1000000"})
    assert (answer.status, answer.headers["retry-after"]) == (status, "10")
    monkeypatch.undo()
    assert store(port, ct_bytes(1)).status == 200, "it recovers by itself"


def test_a_queue_that_fills_in_the_middle_refuses_the_rest(
    port: int, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        if len(stored_files(ingest)) >= 2:
            raise IngestRefused(Refused.BUSY, "as asked")

    monkeypatch.setattr(ingest, "check_capacity", check)
    answer = store(port, *(with_meta(number) for number in range(5)))
    assert answer.status == 202
    assert values(answer, FAILED, REASON) == [0xA700] * 3


@pytest.mark.parametrize(
    ("head", "status", "words"),
    [
        ({"Content-Length": str(4 * 2**30)}, 413, "http.max_body_mib"),
        ({"Content-Encoding": "gzip"}, 415, "without Content-Encoding"),
        ({"Content-Encoding": "deflate, br"}, 415, "without Content-Encoding"),
        ({"Content-Type": "application/json"}, 415, "expected multipart/related"),
        ({"Content-Type": ""}, 415, "expected multipart/related"),
        ({"Content-Type": f"multipart/related; boundary={BOUNDARY}"}, 415, 'type="application/dicom"'),
        ({"Content-Type": STOW_TYPE.replace("dicom", "dicom+json")}, 415, "expected multipart/related"),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, 400, "expected a boundary, found none"),
        ({"Content-Type": STOW_TYPE + "x" * 300}, 400, "expected a boundary of RFC 2046"),
        ({"Accept": "application/dicom+xml"}, 406, "expected application/dicom+json"),
        ({"Accept": "application/dicom+json;q=0"}, 406, "expected application/dicom+json"),
    ],
)
def test_a_request_is_refused_by_its_head_alone(port: int, head: dict[str, str], status: int, words: str) -> None:
    start = time.monotonic()
    answer = post(port, PATH, {**STOW, "Content-Length": "100000", **head})
    assert time.monotonic() - start < 0.4, "before its body, which never comes"
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    "accept", ["application/dicom+json", "*/*", "text/html, application/json;q=0.5", "application/*"]
)
def test_who_takes_json_gets_it(port: int, accept: str) -> None:
    assert store(port, ct_bytes(1), Accept=accept).status == 200


def test_a_study_uid_in_the_url_that_breaks_the_rules_is_400(port: int) -> None:
    for uid in ("1.02", "x", "..%2F..%2Fetc", "1" * 65):
        assert store(port, ct_bytes(1), path=f"{PATH}/{uid}").status in (400, 404)
    assert store(port, ct_bytes(1), path=f"{PATH}/1.02").json()["detail"].startswith("the study's UID in the URL")


def test_10000_parts_are_refused_at_the_first_one_too_many(port: int, ingest: Ingest) -> None:
    answer = store(port, *[b"x"] * 10_000)
    assert answer.status == 413
    assert "at most 20 parts" in answer.json()["detail"]
    assert not stored_files(ingest)


def test_what_was_stored_before_a_request_went_wrong_is_named_and_stays(port: int, ingest: Ingest) -> None:
    answer = store(port, *(ct_bytes(number) for number in range(25)))
    assert answer.status == 413
    assert len(values(answer, STORED, SOP_UID)) == len(stored_files(ingest)) == 20


def test_a_body_without_a_length_that_grows_beyond_the_cap_is_413(port: int, ingest: Ingest) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: {STOW_TYPE}\r\n\r\n"
        start = multipart([b""], end=False)[:-2]
        peer.sendall(head.encode() + b"%x\r\n%s\r\n" % (len(start), start))
        try:
            for _ in range(64):
                peer.sendall(b"20000\r\n" + bytes(2**17) + b"\r\n")
        except OSError:
            pass
        with contextlib.suppress(ConnectionError):  # it may close on us while we send
            assert b" 413 " in peer.recv(4096)
    wait_until(lambda: not incoming_files(ingest))
    assert not stored_files(ingest)


@pytest.mark.parametrize(
    "body",
    [b"", b"garbage", multipart([ct_bytes(1)], end=False), b"--%s--\r\n" % BOUNDARY.encode(), b"\0" * 100_000],
    ids=["empty", "garbage", "cut", "no-parts", "zeros"],
)
def test_a_body_that_is_no_multipart_or_is_cut_is_400(port: int, ingest: Ingest, body: bytes) -> None:
    assert post(port, PATH, STOW, body).status == 400


def test_a_part_of_another_type_is_refused(port: int) -> None:
    answer = post(port, PATH, STOW, multipart([ct_bytes(1)], kind="application/json"))
    assert answer.status == 400
    assert values(answer, FAILED, REASON) == [0xC000]


@pytest.mark.parametrize("num_bytes", [0, 1])
def test_a_body_that_stands_still_or_drips_is_cut(port: int, ingest: Ingest, num_bytes: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as peer:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\nContent-Type: {STOW_TYPE}\r\n\r\n"
        peer.sendall(head.encode() + multipart([b"x" * 500], end=False))
        start = time.monotonic()
        for _ in range(60 * num_bytes):
            try:
                peer.sendall(b"x" * num_bytes)
            except OSError:
                break
            if is_closed_within(peer, 0.1):
                break
        assert is_closed_within(peer, 3.0)
        assert time.monotonic() - start < 4
    wait_until(lambda: not incoming_files(ingest))


def test_a_client_that_goes_away_leaves_nothing_but_what_was_whole(port: int, ingest: Ingest) -> None:
    body = multipart([ct_bytes(1), bytes(2**19)], end=False)
    with socket.create_connection(("127.0.0.1", port)) as peer:
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nContent-Type: {STOW_TYPE}\r\n\r\n"
        peer.sendall(head.encode() + body[:-100])
        wait_until(lambda: len(stored_files(ingest)) == 1)
    wait_until(lambda: not incoming_files(ingest))
    assert len(stored_files(ingest)) == 1


def test_one_upload_too_many_is_told_to_come_back(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path)
    config = HttpConfig(max_uploads=1, body_timeout_s=10)
    with http_server(stow.routes(ingest, config, Gate(config.max_uploads))) as port:
        with socket.create_connection(("127.0.0.1", port)) as slow:
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\nContent-Type: {STOW_TYPE}\r\n\r\n"
            slow.sendall(head.encode() + multipart([bytes(2**19)], end=False))
            wait_until(lambda: len(incoming_files(ingest)) == 1)
            answer = store(port, ct_bytes(1))
            assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        wait_until(lambda: store(port, ct_bytes(1)).status == 200)


def test_no_answer_holds_a_name_or_an_id_of_a_patient(port: int) -> None:
    answer = store(port, ct_bytes(1, PatientID="SECRET4711"), ct_bytes(2, StudyInstanceUID="SECRET"))
    assert answer.status == 202
    assert b"SECRET" not in answer.body


def _as_file(data: bytes) -> Any:
    return io.BytesIO(data)


def _bytes_of(dataset: Any) -> bytes:
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()
