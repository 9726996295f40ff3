"""Zips of DICOM files: what is in them is taken in, what they claim is not believed."""

import io
import random
import socket
import struct
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from dicom_data import DEFLATED
from http_data import STOW_TYPE, http_server, multipart, post
from receive_data import ROOT, ct_bytes, incoming_files, open_ingest, stored_files

from fastich.serve.config import HttpConfig
from fastich.serve.entities import Refused
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive import stow, upload
from fastich.serve.receive.bodies import Gate

ZIP = {"Content-Type": "application/zip"}
CONFIG = HttpConfig(max_body_mib=4, max_parts=50, body_timeout_s=2)


@pytest.fixture
def ingest(tmp_path: Path) -> Ingest:
    return open_ingest(tmp_path / "spool")


@pytest.fixture
def port(ingest: Ingest, tmp_path: Path) -> Iterator[int]:
    with http_server(upload.routes(ingest, CONFIG, Gate(CONFIG.max_uploads))) as number:
        yield number
    assert not incoming_files(ingest), "nothing temporary is left"
    assert [path.name for path in tmp_path.iterdir()] == ["spool"], "nothing is written beside the spool"


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def outcomes(answer: Any) -> list[str]:
    return [one["outcome"] for one in answer.json()["files"]]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_of_a_study_is_taken_in(port: int, ingest: Ingest, method: int) -> None:
    files = {f"head/IM{number}": ct_bytes(number) for number in range(5)}
    answer = post(port, "/studies", ZIP, zipped({"head/": b"", **files}, method))
    assert answer.status == 200
    assert answer.json()["studies"] == [f"{ROOT}.1"]
    assert outcomes(answer) == ["accepted"] * 5
    assert answer.json()["files"][3]["name"] == "head/IM3"
    assert len(stored_files(ingest)) == 5
    assert ingest._store.find_instance(f"{ROOT}.1.1.2").origin.way == "upload"


def test_a_zip_sent_twice_is_duplicates_and_one_with_other_pixels_conflicts(port: int, ingest: Ingest) -> None:
    post(port, "/studies", ZIP, zipped({"a": ct_bytes(1)}))
    answer = post(port, "/studies", ZIP, zipped({"a": ct_bytes(1), "b": ct_bytes(1, value=7), "c": ct_bytes(2)}))
    assert answer.status == 200
    assert outcomes(answer) == ["duplicate", "conflict", "accepted"]


def test_the_form_of_a_page_is_taken_too(port: int, ingest: Ingest) -> None:
    url = f"http://127.0.0.1:{port}/studies"
    content = zipped({"a": ct_bytes(1)})
    answer = httpx.post(url, data={"note": "x" * 100}, files={"file": ("study.zip", content, "application/zip")})
    assert (answer.status_code, answer.json()["files"][0]["outcome"]) == (200, "accepted")
    two = httpx.post(url, files=[("file", ("a.zip", content)), ("file", ("b.zip", content))])
    assert (two.status_code, two.json()["detail"]) == (400, "expected one file in the form, found more")
    none = httpx.post(url, files={"note": (None, "x")})
    assert (none.status_code, none.json()["detail"]) == (400, "expected one file in the form, found none")


def test_each_file_that_is_not_taken_says_why_and_the_rest_is(port: int, ingest: Ingest) -> None:
    inner = zipped({"a": ct_bytes(9)})
    answer = post(
        port,
        "/studies",
        ZIP,
        zipped({"README.txt": b"hello", "in.zip": inner, "d": ct_bytes(1, syntax=DEFLATED), "u": ct_bytes(2)}),
    )
    assert answer.status == 202
    assert outcomes(answer) == ["refused"] * 3 + ["accepted"]
    details = [one["detail"] for one in answer.json()["files"][:3]]
    assert "no DICM prefix" in details[0]
    assert "a zip inside the zip is not opened" in details[1]
    assert "deflated" in details[2]


def test_names_are_never_paths(port: int, ingest: Ingest) -> None:
    names = ["../../../escaped", "/etc/passwd", "..\\..\\escaped", "a\x1b[2J\n<script>", "C:\\x", "n" * 5000]
    answer = post(port, "/studies", ZIP, zipped({name: ct_bytes(i) for i, name in enumerate(names)}))
    assert answer.status == 200
    assert len(stored_files(ingest)) == len(names)
    told = [one["name"] for one in answer.json()["files"]]
    assert all(name.isprintable() and len(name) <= 200 for name in told)
    assert not Path("/tmp/escaped").exists()


def test_a_bomb_is_counted_while_it_is_unpacked(port: int, ingest: Ingest) -> None:
    answer = post(port, "/studies", ZIP, zipped({"bomb": bytes(64 * 2**20)}))
    assert answer.status == 413
    assert answer.json()["files"][0]["detail"] == "more than 1048576 bytes"


def test_a_size_that_lies_is_not_believed(port: int, ingest: Ingest) -> None:
    content = bytearray(zipped({"bomb": bytes(8 * 2**20)}))
    at = content.rindex(b"PK\x01\x02") + 24
    content[at : at + 4] = struct.pack("<L", 100)
    answer = post(port, "/studies", ZIP, bytes(content))
    assert answer.status == 400
    assert answer.json()["files"][0]["detail"] == "damaged in the zip: BadZipFile"
    assert not stored_files(ingest)


def test_the_total_is_capped_over_all_files(port: int, ingest: Ingest) -> None:
    pixels = {f"{number}": ct_bytes(number, side=600) for number in range(8)}
    answer = post(port, "/studies", ZIP, zipped(pixels))
    assert answer.status == 202
    assert outcomes(answer) == ["accepted"] * 5 + ["refused"] * 3
    details = {one.get("detail") for one in answer.json()["files"][5:]}
    assert details == {
        "with the files before it more than http.max_body_mib",
        "the files before it fill http.max_body_mib",
    }


def test_an_encrypted_file_and_an_odd_method_say_so(port: int, ingest: Ingest) -> None:
    content = bytearray(zipped({"a": ct_bytes(1)}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(magic) + offset] |= 1
    answer = post(port, "/studies", ZIP, bytes(content))
    assert (answer.status, answer.json()["files"][0]["detail"]) == (400, "encrypted; zip it without a password")
    answer = post(port, "/studies", ZIP, zipped({"a": ct_bytes(1)}, zipfile.ZIP_LZMA))
    assert "another method than deflate" in answer.json()["files"][0]["detail"]


def test_too_many_files_are_413_before_one_is_opened(port: int, ingest: Ingest) -> None:
    answer = post(port, "/studies", ZIP, zipped({str(number): ct_bytes(number) for number in range(51)}))
    assert (answer.status, answer.json()["detail"]) == (413, "expected at most 50 files (http.max_parts), found 51")
    assert not stored_files(ingest)


def test_a_directory_of_two_megabytes_is_413_before_it_is_read(port: int, ingest: Ingest) -> None:
    entry = b"PK\x01\x02" + bytes(42)
    directory = entry * (2 * 2**20 // len(entry))
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 0, 0)
    answer = post(port, "/studies", ZIP, directory + end)
    assert answer.status == 413
    assert "the zip's directory has" in answer.json()["detail"]


@pytest.mark.parametrize("body", [b"", b"PK", b"garbage" * 1000, bytes(70_000), zipped({}), zipped({"d/": b""})])
def test_what_is_no_zip_or_holds_nothing_is_400(port: int, ingest: Ingest, body: bytes) -> None:
    assert post(port, "/studies", ZIP, body).status == 400


def test_mutated_zips_are_answered_and_never_break_the_server(port: int, ingest: Ingest) -> None:
    rng = random.Random(5)
    whole = zipped({f"{number}": ct_bytes(number) for number in range(3)})
    seen = set()
    for _ in range(60):
        content = bytearray(whole)
        for _ in range(rng.randrange(1, 6)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        seen.add(
            post(port, "/studies", ZIP, bytes(content[: rng.randrange(len(content) // 2, len(content) + 1)])).status
        )
    assert seen <= {200, 202, 400, 409, 413, 415}
    assert post(port, "/studies", ZIP, whole).status == 200


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Type": "multipart/form-data"}, 400),
        ({**ZIP, "Content-Encoding": "gzip"}, 415),
        ({**ZIP, "Content-Length": str(4 * 2**30)}, 413),
    ],
)
def test_a_request_is_refused_by_its_head(port: int, ingest: Ingest, head: dict[str, str], status: int) -> None:
    assert post(port, "/studies", {"Content-Length": "100000", **head}).status == status


@pytest.mark.parametrize(("reason", "status"), [(Refused.STORAGE_FULL, 507), (Refused.BUSY, 503)])
def test_where_nothing_can_be_taken_it_says_when_to_come_back(
    port: int, ingest: Ingest, monkeypatch: pytest.MonkeyPatch, reason: Refused, status: int
) -> None:
    def refuse() -> None:
        raise IngestRefused(reason, "as asked")

    monkeypatch.setattr(ingest, "check_capacity", refuse)
    answer = post(port, "/studies", ZIP, zipped({"a": ct_bytes(1)}))
    assert (answer.status, answer.headers["retry-after"]) == (status, "10")


def test_a_disk_that_fills_is_507_at_once(port: int, ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, mode: str = "r", *_: Any, **__: Any) -> Any:
        if mode == "xb":
            raise OSError(28, "No space left on device")
        return open(path, mode)

    monkeypatch.setattr("pathlib.Path.open", full)
    assert post(port, "/studies", ZIP, zipped({"a": ct_bytes(1)})).status == 507


def test_uploads_and_stow_share_one_gate(ingest: Ingest) -> None:
    gate = Gate(1)
    with http_server([*upload.routes(ingest, CONFIG, gate), *stow.routes(ingest, CONFIG, gate)]) as port:
        head = b"POST /studies HTTP/1.1\r\nHost: x\r\nContent-Type: application/zip\r\nContent-Length: 9\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port), 10) as peer:
            peer.sendall(head)
            until = time.monotonic() + 10
            while not gate._num_inside and time.monotonic() < until:
                time.sleep(0.01)
            answer = post(port, stow.PREFIX, {"Content-Type": STOW_TYPE}, multipart([b"x"]))
    assert answer.status == 503
    assert "1 uploads are under way" in answer.json()["detail"]
