"""The DICOM port against broken and hostile peers, over raw sockets."""

import contextlib
import gc
import hashlib
import inspect
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynetdicom
import pytest
from dicom_data import CT_IMAGE
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dul import DULServiceProvider
from pynetdicom.fsm import StateMachine
from pynetdicom.presentation import build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.transport import AssociationServer, AssociationSocket, RequestHandler, ThreadedAssociationServer
from receive_data import (
    ROOT,
    associate_rq,
    dicom_port,
    fragment,
    incoming_files,
    is_closed_within,
    open_ingest,
    pdu,
    raw_association,
    raw_store,
    scu,
    status_of,
    store_rq,
    stored_files,
    threads_of_dicom,
    wait_until,
)

from fastich.serve.entities import Refused
from fastich.serve.ingest import IngestRefused
from fastich.serve.receive import guards
from fastich.serve.receive.connection import Connection, Limits

UID = f"{ROOT}.7"
INTERNALS: tuple[Callable[..., Any], ...] = (
    Association.__init__,
    Association.kill,
    Association.run_reactor,
    Association._run_reactor,
    Association._serve_request,
    DIMSEServiceProvider.get_msg,
    DIMSEServiceProvider.receive_primitive,
    DIMSEMessage.decode_msg,
    DIMSEMessage.message_to_primitive,
    DULServiceProvider._read_pdu_data,
    DULServiceProvider._is_transport_event,
    DULServiceProvider.run_reactor,
    StateMachine.do_action,
    StorageServiceClass.SCP,
    AssociationSocket.__init__,
    AssociationSocket.recv,
    AssociationSocket.send,
    RequestHandler._create_association,
    AssociationServer.__init__,
    AssociationServer.service_actions,
    ThreadedAssociationServer.process_request_thread,
)


def test_the_internals_of_pynetdicom_that_the_guards_stand_on_are_those_that_were_read() -> None:
    source = "".join(inspect.getsource(one) for one in INTERNALS)
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    assert (pynetdicom.__version__, digest) == (guards.PYNETDICOM_VERSION, "dbe3cc34fa1ef352"), (
        f"guards.py stands on internals of pynetdicom {guards.PYNETDICOM_VERSION}; this is {pynetdicom.__version__}: "
        "read what changed in the functions of INTERNALS, then in guards.py, then write the new pair here"
    )


@pytest.mark.parametrize(
    "stimulus",
    [
        bytes(range(0x20, 0xFF)) * 20,
        b"GET / HTTP/1.1\r\nHost: pacs\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["random", "http", "tls"],
)
def test_what_is_no_dicom_is_closed_within_a_second(tmp_path: Path, stimulus: bytes) -> None:
    with dicom_port(tmp_path, acse_timeout_s=5.0) as port, socket.create_connection(("127.0.0.1", port.number)) as peer:
        peer.sendall(stimulus)
        assert is_closed_within(peer, 1.0)
        assert "expected a PDU" in port.wait_for("cut")["reason"]


@pytest.mark.parametrize("kind", [1, 4])
def test_a_pdu_of_4_gib_is_cut_at_its_header(tmp_path: Path, kind: int) -> None:
    with dicom_port(tmp_path, acse_timeout_s=5.0) as port:
        peer = raw_association(port.number) if kind == 4 else socket.create_connection(("127.0.0.1", port.number))
        with peer:
            peer.sendall(struct.pack(">BBL", kind, 0, 2**32 - 1) + bytes(4096))
            assert is_closed_within(peer, 1.0)
        assert "a PDU of 4294967295 bytes" in port.wait_for("cut")["reason"]


def test_a_pdu_of_a_mebibyte_is_taken_and_one_byte_more_is_not(tmp_path: Path) -> None:
    cap = guards.MAX_PDU_BYTES
    with dicom_port(tmp_path, ingest=open_ingest(tmp_path, max_object_mib=4)) as port:
        with raw_association(port.number) as peer:
            peer.sendall(pdu(4, fragment(store_rq(UID), 3)))
            peer.sendall(pdu(4, fragment(bytes(cap - 6), 0)))
            peer.sendall(pdu(4, fragment(b"\0", 2)))
            assert peer.recv(1) == b"\x04"
        assert not port.of("cut")
        with raw_association(port.number) as peer:
            peer.sendall(struct.pack(">BBL", 4, 0, cap + 1))
            assert is_closed_within(peer, 1.0)
        wait_until(lambda: not incoming_files(port.ingest))


@pytest.mark.parametrize(
    "body",
    [b"", b"\0\0", struct.pack(">L", 2**31) + b"xx", fragment(b"", 0) * 1025, struct.pack(">LB", 1, 1)],
    ids=["empty", "short", "beyond", "many", "headless"],
)
def test_fragments_that_do_not_fit_are_cut_before_they_are_parsed(tmp_path: Path, body: bytes) -> None:
    with dicom_port(tmp_path) as port, raw_association(port.number) as peer:
        peer.sendall(pdu(4, body))
        assert is_closed_within(peer, 1.0)
        assert "fragments do not fit" in port.wait_for("cut")["reason"]


@pytest.mark.parametrize(
    ("fragments", "reason"),
    [
        (fragment(b"\0" * 5000, 1), "a command of more than 4096 bytes"),
        (fragment(b"\xff" * 100, 3), "a message that is none"),
        (fragment(b"data", 0), "expected a command and then its data set"),
        (fragment(store_rq(UID), 3) + fragment(store_rq(UID), 3), "expected a command and then its data set"),
        (fragment(store_rq(UID), 3, context_id=9), "a presentation context that was not accepted"),
        (fragment(store_rq(UID, has_data=False), 3), "found another message"),
        (fragment(store_rq(UID, field=0x20), 3), "found another message"),
        (fragment(store_rq(UID, field=0x100), 3), "found another message"),
    ],
    ids=["long", "garbage", "no-command", "two-commands", "context", "no-data", "find", "event-report"],
)
def test_messages_that_no_honest_peer_sends_end_the_association(tmp_path: Path, fragments: bytes, reason: str) -> None:
    with dicom_port(tmp_path) as port, raw_association(port.number) as peer:
        peer.sendall(pdu(4, fragments))
        assert is_closed_within(peer, 1.0)
        assert reason in port.wait_for("cut")["reason"]
        wait_until(lambda: not incoming_files(port.ingest))


def test_200_silent_sockets_keep_no_other_peer_out(tmp_path: Path) -> None:
    silent: list[socket.socket] = []
    with dicom_port(tmp_path, acse_timeout_s=1.0, max_associations=4) as port:
        try:
            for _ in range(200):
                silent.append(socket.create_connection(("127.0.0.1", port.number)))
            assert threads_of_dicom() <= 2 * 8
            start = time.monotonic()
            other = socket.create_connection(("127.0.0.1", port.number), source_address=("127.0.0.2", 0))
            with other:
                other.settimeout(6)
                other.sendall(associate_rq())
                assert other.recv(1) == b"\x02", "an association for another address"
            assert time.monotonic() - start < 1, "before the silent ones are cut"

            assert wait_until(lambda: _is_served(port.number), 9.0) < 2, "acse_timeout_s and a little"
            with scu(port.number) as association:
                assert association.send_c_echo().Status == 0
        finally:
            for one in silent:
                one.close()


@pytest.mark.parametrize("phase", ["request", "object", "header"])
def test_a_sender_of_a_byte_a_tenth_of_a_second_is_cut_and_its_slot_freed(tmp_path: Path, phase: str) -> None:
    with dicom_port(tmp_path, max_sockets_per_address=1, max_associations=1) as port:
        if phase == "request":
            peer, slow = socket.create_connection(("127.0.0.1", port.number)), associate_rq()
        else:
            peer, slow = raw_association(port.number), pdu(4, bytes(1000))
        with peer:
            if phase == "object":
                peer.sendall(pdu(4, fragment(store_rq(UID), 3) + fragment(bytes(100), 0)))
            start = time.monotonic()
            try:
                for index in range(100):
                    peer.sendall(slow[index : index + 1])
                    time.sleep(0.1)
                    if port.of("cut"):
                        break
            except OSError:
                pass
            assert time.monotonic() - start < 3
            wanted = "no association within 1 s" if phase == "request" else "bytes/s, expected at least 1024"
            assert wanted in port.wait_for("cut")["reason"]
        wait_until(lambda: not incoming_files(port.ingest) and not threads_of_dicom())
        with scu(port.number) as association:
            assert association.is_established


def test_an_association_that_says_nothing_is_cut_after_the_dimse_timeout(tmp_path: Path) -> None:
    with dicom_port(tmp_path, dimse_timeout_s=0.5) as port, raw_association(port.number) as peer:
        assert is_closed_within(peer, 2.0)
        assert port.wait_for("cut")["reason"] == "nothing came for 0.5 s"


def test_a_fast_start_buys_no_slow_end() -> None:
    now = [0.0]
    limits = Limits(acse_timeout_s=5, dimse_timeout_s=30, min_bytes_per_s=1000, max_object_bytes=10**9)
    left, right = socket.socketpair()
    connection = Connection(left, "192.0.2.1", limits, clock=lambda: now[0])
    connection.established = True
    connection.begin()
    connection.received(10**8)
    now[0] = 6.0
    assert connection.overdue() == ""
    connection.received(10)
    now[0] = 10.0
    assert connection.overdue() == "", "the window is not over"
    now[0] = 11.5
    assert connection.overdue() == "2 bytes/s, expected at least 1000"
    connection.taken()
    now[0] = 1000.0
    assert connection.overdue() == "", "while we work, the sender owes nothing"
    connection.answered()
    now[0] = 1031.0
    assert connection.overdue() == "nothing came for 30 s"
    left.close()
    right.close()


@pytest.mark.parametrize(
    "uid", ["../../escaped", "1.2.3\x004", "1." + "2" * 64, "1.02.3", "1..2", "", "1.2.a", "ID_abc"]
)
def test_a_uid_that_breaks_the_rules_is_answered_0117_and_the_association_goes_on(tmp_path: Path, uid: str) -> None:
    with dicom_port(tmp_path / "spool") as port, raw_association(port.number) as peer:
        for _ in range(2):
            peer.sendall(pdu(4, fragment(store_rq(uid), 3) + fragment(b"x" * 100, 2)))
            assert status_of(peer) == 0x0117
        assert port.wait_for("refused")["reason"] == Refused.INVALID_UID.value
        assert not stored_files(port.ingest)
        assert not incoming_files(port.ingest)
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


def test_an_instance_of_another_class_than_its_context_is_answered_0122(tmp_path: Path) -> None:
    with dicom_port(tmp_path) as port, raw_association(port.number) as peer:
        peer.sendall(pdu(4, fragment(store_rq(UID, sop_class=CT_IMAGE + ".1"), 3) + fragment(b"x" * 100, 2)))
        assert status_of(peer) == 0x0122
        assert not incoming_files(port.ingest)


@pytest.mark.parametrize("reason", [Refused.STORAGE_FULL, Refused.BUSY, Refused.DATABASE])
def test_where_nothing_can_be_taken_the_sender_hears_a700_and_no_byte_is_written(
    tmp_path: Path, reason: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest = open_ingest(tmp_path)

    def refuse() -> None:
        raise IngestRefused(reason, "as asked")

    monkeypatch.setattr(ingest, "check_capacity", refuse)
    with dicom_port(tmp_path, ingest=ingest) as port, raw_association(port.number) as peer:
        peer.sendall(pdu(4, fragment(store_rq(UID), 3) + fragment(bytes(100), 0)))
        time.sleep(0.1)
        assert not incoming_files(ingest)
        peer.sendall(pdu(4, fragment(bytes(100), 2)))
        assert status_of(peer) == 0xA700


def test_requests_that_do_not_wait_for_answers_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest, gate = open_ingest(tmp_path), threading.Event()

    def accept(path: Path, *_: Any, **__: Any) -> None:
        assert gate.wait(10)
        path.unlink()
        raise IngestRefused(Refused.MALFORMED, "as asked")

    monkeypatch.setattr(ingest, "accept", accept)
    with dicom_port(tmp_path, ingest=ingest) as port, raw_association(port.number) as peer:
        for number in range(50):
            peer.sendall(pdu(4, fragment(store_rq(f"{ROOT}.{number}"), 3) + fragment(bytes(1000), 2)))
        time.sleep(0.3)
        assert len(incoming_files(ingest)) == 1
        gate.set()
        assert [status_of(peer) for _ in range(50)] == [0xC000] * 50


def test_an_object_beyond_the_cap_is_cut_and_leaves_nothing(tmp_path: Path) -> None:
    with dicom_port(tmp_path) as port, raw_association(port.number) as peer:
        with pytest.raises(OSError):
            peer.sendall(pdu(4, fragment(store_rq(UID), 3)))
            for _ in range(64):
                peer.sendall(pdu(4, fragment(bytes(2**17), 0)))
        assert port.wait_for("cut")["reason"] == "an object of more than 1048576 bytes"
        wait_until(lambda: not incoming_files(port.ingest))


def test_a_peer_that_vanishes_in_the_middle_of_an_object_leaves_nothing(tmp_path: Path) -> None:
    with dicom_port(tmp_path) as port:
        with raw_association(port.number) as peer:
            peer.sendall(pdu(4, fragment(store_rq(UID), 3) + fragment(bytes(1000), 0)))
            wait_until(lambda: len(incoming_files(port.ingest)) == 1)
        wait_until(lambda: not incoming_files(port.ingest) and not threads_of_dicom())
        assert not stored_files(port.ingest)


MEMORY_CHILD = """
import json, sys
from pathlib import Path
from receive_data import dicom_port, open_ingest, wait_until
def status(key):
    return next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith(key))
folder = Path(sys.argv[1])
with dicom_port(folder, ingest=open_ingest(folder, max_object_mib=500)) as port:
    before = status("VmRSS")
    print(port.number, flush=True)
    wait_until(lambda: bool(port.of("cut")), 60)
    print(json.dumps([status("VmHWM") - before, port.of("cut")[0]["reason"]]), flush=True)
"""


def test_an_object_of_500_mb_costs_less_than_150_mb_of_memory(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    child = subprocess.Popen(
        [sys.executable, "-c", MEMORY_CHILD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert child.stdout is not None
        with raw_association(int(child.stdout.readline())) as peer:
            peer.sendall(pdu(4, fragment(store_rq(UID), 3)))
            piece = pdu(4, fragment(bytes(2**17 - 6), 0))
            with pytest.raises(OSError):
                for _ in range(2**30 // len(piece)):
                    peer.sendall(piece)
        grown_mib, reason = json.loads(child.stdout.readline())
        assert reason == "an object of more than 524288000 bytes"
        assert grown_mib < 150
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_300_connections_that_close_leave_descriptors_and_threads_as_they_were(tmp_path: Path) -> None:
    with dicom_port(tmp_path, max_sockets_per_address=300) as port:
        with scu(port.number) as association:
            assert association.is_established
        wait_until(lambda: not threads_of_dicom())
        before = (threading.active_count(), _descriptors())
        for index in range(300):
            with socket.create_connection(("127.0.0.1", port.number)) as peer:
                if index % 3 == 1:
                    peer.sendall(associate_rq()[:40])
                elif index % 3 == 2:
                    peer.sendall(associate_rq())
        wait_until(lambda: not threads_of_dicom(), 20)
        gc.collect()
        wait_until(lambda: threading.active_count() <= before[0])
        wait_until(lambda: _descriptors() <= before[1])
        with scu(port.number) as association:
            assert association.is_established


def test_mutated_conversations_never_stop_the_server_and_leave_nothing(tmp_path: Path) -> None:
    rng = random.Random(7)
    whole = associate_rq() + raw_store(1) + pdu(5, bytes(4))
    with dicom_port(tmp_path, max_sockets_per_address=200, max_associations=200) as port:
        for index in range(150):
            content = bytearray(whole)
            for _ in range(rng.randrange(1, 8)):
                content[rng.randrange(len(content) if index % 2 else 600)] = rng.randrange(256)
            with socket.create_connection(("127.0.0.1", port.number)) as peer, contextlib.suppress(OSError):
                peer.sendall(content[: rng.randrange(200, len(content))] if index % 3 == 0 else content)
                peer.shutdown(socket.SHUT_WR)
        wait_until(lambda: not threads_of_dicom(), 20)
        assert not incoming_files(port.ingest)
        assert not port.of("error"), "each was taken, refused or cut for a reason"
        with raw_association(port.number) as peer:
            peer.sendall(raw_store(2))
            assert status_of(peer) == 0


def test_a_flood_fills_a_bounded_queue_and_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    ingest = open_ingest(tmp_path, max_waiting=60)
    num_senders, num_each = 4, 40
    statuses: dict[int, int] = {}

    def sender(index: int, port: int) -> None:
        with raw_association(port) as peer:
            for number in range(index * num_each, (index + 1) * num_each):
                peer.sendall(raw_store(number))
                statuses[number] = status_of(peer)

    with dicom_port(tmp_path, ingest=ingest) as port:
        threads = [threading.Thread(target=sender, args=(index, port.number)) for index in range(num_senders)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    taken = [number for number, status in statuses.items() if status == 0]
    assert {status for number, status in statuses.items() if number not in taken} == {0xA700}
    assert len(statuses) == num_senders * num_each
    assert 60 <= len(taken) < 60 + num_senders, "each sender may be past the check when the queue fills"
    for number in taken:
        found = ingest._store.find_instance(f"{ROOT}.1.1.{number}")
        assert found is not None
        assert ingest.spool.path_of(found.object_name).is_file()
    assert len(stored_files(ingest)) == len(taken)


def test_idle_associations_cost_less_than_half_of_those_of_the_library(tmp_path: Path) -> None:
    def cost(port: int) -> float:
        with contextlib.ExitStack() as stack:
            for _ in range(8):
                stack.enter_context(raw_association(port))
            time.sleep(0.2)
            start = time.process_time()
            time.sleep(1.0)
            return time.process_time() - start

    entity = ApplicationEntity("FASTICH")
    entity.supported_contexts = [build_context(CT_IMAGE)]
    stock = entity.start_server(("127.0.0.1", 0), block=False)
    assert stock is not None
    before = cost(stock.server_address[1])
    entity.shutdown()
    with dicom_port(tmp_path) as port:
        assert cost(port.number) < before / 2


def test_a_connection_that_closes_frees_its_place_at_once(tmp_path: Path) -> None:
    with dicom_port(tmp_path, acse_timeout_s=30.0, max_sockets_per_address=1) as port:
        for _ in range(3):
            socket.create_connection(("127.0.0.1", port.number)).close()
            assert wait_until(lambda: not threads_of_dicom(), 3.0) < 3


def _is_served(port: int) -> bool:
    """Whether an association is accepted; the sockets of this peer are closed in any case."""
    with socket.create_connection(("127.0.0.1", port)) as peer:
        try:
            peer.sendall(associate_rq())
            return peer.recv(1) == b"\x02"
        except OSError:
            return False


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
