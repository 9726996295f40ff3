"""SIGKILL at random moments of receiving, scoring and sending: what was acknowledged is there, and ends once."""

import gc
import hashlib
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from dicom_peer import DicomPeer, dicom_peer
from dicom_sender import SUCCESS, send
from served_process import Served, served, until
from toy_model import write_model

from fastich import phantom
from fastich.phantom.as_sent import studies_as_sent
from fastich.serve.config import SpoolConfig
from fastich.serve.entities import DeliveryState, InstanceState, StudyState
from fastich.serve.spool import Spool

KILLS = 20
FINAL = {StudyState.SCORED, StudyState.NOT_EVALUATED, StudyState.FAILED}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[list[bytes]]:
    out = tmp_path_factory.mktemp("phantom") / "data"
    phantom.generate(phantom.PhantomConfig(out=out, studies=8, size=64, seed=21))
    return list(studies_as_sent(out / "stage_2_train"))


@pytest.fixture(autouse=True)
def sockets_of_killed_peers() -> Iterator[None]:
    """pynetdicom leaves the socket of a failed association to the garbage collector."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Scanner(threading.Thread):
    """Sends every study again and again until each of its instances was acknowledged, as a PACS does."""

    def __init__(self, studies: list[list[bytes]]) -> None:
        super().__init__(daemon=True)
        self.port = 0
        self.acknowledged: set[str] = set()
        self._waiting = [[(uid_of(data), data) for data in files] for files in studies]

    def run(self) -> None:
        while any(self._waiting):
            for files in self._waiting:
                statuses = send(self.port, [data for _, data in files]) if files and self.port else []
                done = {uid for (uid, _), status in zip(files, statuses, strict=False) if status == SUCCESS}
                self.acknowledged |= done
                files[:] = [one for one in files if one[0] not in done]
            time.sleep(0.05)


def uid_of(data: bytes) -> str:
    return str(pydicom.dcmread(pydicom.filebase.DicomBytesIO(data), stop_before_pixels=True).SOPInstanceUID)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # pynetdicom, where nobody listens
def test_twenty_kills_lose_nothing_and_send_each_result_once(tmp_path: Path, studies: list[list[bytes]]) -> None:
    write_model(tmp_path / "model", threshold=0.0)  # everything is flagged: reports and key images go out
    chance = random.Random(4)
    with dicom_peer() as pacs:
        destination = f"""
[[destinations]]
name = "pacs"
host = "127.0.0.1"
port = {pacs.port}
ae_title = "PACS"
[delivery]
first_retry_s = 0.2
"""
        # A slice that was in work at three kills would count as the one that killed: here it never is.
        scoring = f"quiet_s = 0.5\nmax_attempts = {KILLS + 2}"
        with served(tmp_path, tmp_path / "model", tables=destination, scoring=scoring) as server:
            scanner = Scanner(studies)
            for number in range(KILLS):
                scanner.port = server.start()["dicom_port"]
                if number == 0:
                    scanner.start()
                time.sleep(chance.uniform(0.0, 1.5))
                server.kill()
            scanner.port = server.start()["dicom_port"]
            scanner.join(120)
            assert not scanner.is_alive(), server.words()
            until(lambda: finished(server), 120, server.words)
            assert server.stop() == 0, server.words()
            everything = {uid_of(data) for files in studies for data in files}
            assert scanner.acknowledged == everything
            check(server, everything, pacs)


def finished(server: Served) -> bool:
    """Every study final and every message delivered, now."""
    store = server.store()
    try:
        found = store.worklist()
        sent = [one for study in found for one in store.deliveries_of(study.study_uid)]
        return all(study.state in FINAL for study in found) and all(one.state != DeliveryState.PENDING for one in sent)
    finally:
        store.close()


def check(server: Served, everything: set[str], pacs: DicomPeer) -> None:
    store = server.store()
    try:
        found = store.worklist()
        instances = [one for study in found for one in store.instances_of(study.study_uid)]
        sent = {study.study_uid: store.deliveries_of(study.study_uid) for study in found}
    finally:
        store.close()
    assert {study.state for study in found} == {StudyState.SCORED}
    assert {one.sop_uid for one in instances} == everything
    assert {one.state for one in instances} == {InstanceState.SCORED}
    spool = Spool(server.spool, SpoolConfig(min_free_mib=1))
    for one in instances:
        assert hashlib.sha256(spool.path_of(one.object_name).read_bytes()).hexdigest() in one.object_name
    assert not list((server.spool / "incoming").iterdir())
    kept = {str(one.SOPInstanceUID): one for one in pacs.stored}
    for study_uid, messages in sent.items():
        arrived = [one for one in messages if not one.last_error.startswith("superseded")]
        at_pacs = [one for one in kept.values() if str(one.StudyInstanceUID) == study_uid]
        # A kill between the archive's answer and our note of it sends again: the same object, so the archive has one.
        assert Counter(kind_of(one) for one in at_pacs) == Counter(one.kind for one in arrived)
        newest = max(one.score_id for one in messages)
        assert {one.kind for one in arrived if one.score_id == newest} == {"sr", "sc"}


def kind_of(data: pydicom.Dataset) -> str:
    return "sr" if data.Modality == "SR" else "sc"
