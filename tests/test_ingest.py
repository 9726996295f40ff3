import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_data import CT_IMAGE, DEFLATED, ct_dataset, write
from serve_data import (
    ORIGIN,
    SPOOL,
    Clock,
    an_ingest,
    ct_bytes,
    files_below,
    outcome,
    received,
    scored_slice,
    study_uid,
    uid,
)

from fastich.errors import FastichError
from fastich.serve import spool as spool_module
from fastich.serve.config import SpoolConfig
from fastich.serve.entities import InstanceState, Outcome, Refused, StudyState
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.spool import Spool
from fastich.serve.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(open_store(tmp_path / "fastich.sqlite", clock=Clock(), busy_timeout_s=0.2)) as made:
        yield made


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", SPOOL)


@pytest.fixture
def ingest(store: Store, spool: Spool) -> Ingest:
    return an_ingest(store, spool, clock=Clock())


def refused(ingest: Ingest, spool: Spool, data: bytes, reason: Refused, match: str, **changes: object) -> None:
    """Nothing of what is refused is left, in the spool, in the tables or beside the spool."""
    beside = files_below(spool.folder.parent.parent)
    with pytest.raises(IngestRefused, match=match) as caught:
        ingest.accept(received(spool, data), ORIGIN, **changes)  # type: ignore[arg-type]
    assert caught.value.reason is reason
    assert "SECRET" not in str(caught.value)
    assert files_below(spool.folder.parent.parent) == beside


def test_accepted_object_is_in_the_spool_under_its_hash_and_in_the_store(
    ingest: Ingest, spool: Spool, store: Store
) -> None:
    data = ct_bytes(1)
    receipt = ingest.accept(received(spool, data), ORIGIN, announced=(CT_IMAGE, uid(1)))
    assert (receipt.sop_uid, receipt.sop_class_uid, receipt.study_uid) == (uid(1), CT_IMAGE, study_uid(1))
    assert (receipt.duplicate, receipt.conflict, receipt.own) == (False, False, False)
    found = store.find_instance(uid(1))
    assert found is not None
    assert found.object_name == hashlib.sha256(data).hexdigest()
    assert spool.path_of(found.object_name).read_bytes() == data
    assert (found.size_bytes, found.origin, found.state) == (len(data), ORIGIN, InstanceState.WAITING)
    assert not list((spool.folder / "incoming").iterdir())


def test_description_comes_from_the_header_without_control_characters(
    ingest: Ingest, spool: Spool, store: Store
) -> None:
    changes = {"PatientName": "A\x1b[31m^B\r\n", "AccessionNumber": "X1", "StudyDate": "20250102"}
    ingest.accept(received(spool, ct_bytes(1, **changes)), ORIGIN)
    study = store.study(study_uid(1))
    assert study is not None
    assert study.description.patient_name == "A[31m^B"
    assert (study.description.accession_number, study.description.study_date) == ("X1", "20250102")


def test_name_in_another_character_set_is_read_as_its_letters(ingest: Ingest, spool: Spool, store: Store) -> None:
    changes = {"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Иванов^Пётр"}
    ingest.accept(received(spool, ct_bytes(1, **changes)), ORIGIN)
    study = store.study(study_uid(1))
    assert study is not None
    assert study.description.patient_name == "Иванов^Пётр"


def test_scoring_is_woken_for_what_is_new_and_for_nothing_else(store: Store, spool: Spool) -> None:
    told: list[None] = []
    ingest = an_ingest(store, spool, notify=lambda: told.append(None))
    ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
    ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
    ingest.accept(received(spool, ct_bytes(1, seed=1)), ORIGIN)
    assert len(told) == 1


def test_fact_15_same_instance_twice_is_one_row_and_no_new_revision(ingest: Ingest, spool: Spool, store: Store) -> None:
    first, second = (ingest.accept(received(spool, ct_bytes(1)), ORIGIN) for _ in range(2))
    assert (first.duplicate, second.duplicate) == (False, True)
    study = store.study(study_uid(1))
    assert study is not None
    assert (study.num_instances, study.revision, study.num_conflicts) == (1, 1, 0)
    assert len(files_below(spool.folder / "objects")) == 1


def test_fact_15_same_pixels_under_a_corrected_header_are_a_duplicate(
    ingest: Ingest, spool: Spool, store: Store
) -> None:
    ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
    assert ingest.accept(received(spool, ct_bytes(1, PatientName="RIGHT^NAME")), ORIGIN).duplicate
    assert len(files_below(spool.folder / "objects")) == 1


def test_fact_15_same_uid_with_other_pixels_is_kept_aside_and_flagged(
    ingest: Ingest, spool: Spool, store: Store
) -> None:
    first, other = ct_bytes(1), ct_bytes(1, seed=1)
    ingest.accept(received(spool, first), ORIGIN)
    for _ in range(2):
        receipt = ingest.accept(received(spool, other), ORIGIN)
        assert receipt.conflict
        assert receipt.study_uid == study_uid(1)
    study, kept = store.study(study_uid(1)), store.find_instance(uid(1))
    assert study is not None
    assert kept is not None
    assert (study.num_conflicts, study.num_instances, study.revision) == (1, 1, 2)
    assert spool.path_of(kept.object_name).read_bytes() == first
    assert [path.read_bytes() for path in files_below(spool.folder / "aside")] == [other]


@pytest.mark.parametrize(
    "changes",
    [
        {"StudyInstanceUID": study_uid(2)},
        {"SeriesInstanceUID": "2.25.9001"},
        {"RescaleIntercept": "-1000"},
        {"ImagePositionPatient": [0, 0, 99]},
    ],
)
def test_fact_15_same_pixels_in_another_study_series_or_place_are_a_conflict(
    ingest: Ingest, spool: Spool, store: Store, changes: dict[str, Any]
) -> None:
    ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
    receipt = ingest.accept(received(spool, ct_bytes(1, **changes)), ORIGIN)
    assert (receipt.duplicate, receipt.conflict) == (False, True)
    study = store.study(study_uid(1))
    assert study is not None
    assert study.num_conflicts == 1


def test_conflict_that_names_another_study_counts_on_the_first_one(ingest: Ingest, spool: Spool, store: Store) -> None:
    ingest.accept(received(spool, ct_bytes(1, study=1)), ORIGIN)
    assert ingest.accept(received(spool, ct_bytes(1, study=2, seed=1)), ORIGIN).conflict
    assert store.study(study_uid(2)) is None
    first = store.study(study_uid(1))
    assert first is not None
    assert first.num_conflicts == 1


def test_own_result_that_a_pacs_sends_back_is_dropped(ingest: Ingest, spool: Spool, store: Store) -> None:
    store.add_own(uid(1), study_uid(1), "sc")
    assert ingest.accept(received(spool, ct_bytes(1)), ORIGIN).own
    assert store.find_instance(uid(1)) is None
    assert not files_below(spool.folder / "objects")
    assert not files_below(spool.folder / "incoming")


def test_fact_16_late_slice_makes_a_final_study_receiving_again(ingest: Ingest, spool: Spool, store: Store) -> None:
    ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
    store.finish_instance(uid(1), InstanceState.SCORED, slices=[scored_slice(1)])
    assert store.finish_study(study_uid(1), 1, Outcome(state=StudyState.SCORED, document={"n": 1}))
    ingest.accept(received(spool, ct_bytes(2, seed=2)), ORIGIN)
    study = store.study(study_uid(1))
    assert study is not None
    assert (study.state, study.revision, study.scored_revision) == (StudyState.RECEIVING, 2, 1)
    assert study.document == {"n": 1}


BAD_UIDS = {
    "path": "../../x",
    "absolute": "/etc/passwd",
    "NUL": "1.2.3\0.4",
    "65 characters": "1." + "2" * 63,
    "leading zero": "1.02.3",
    "empty component": "1..3",
    "ends in a dot": "1.2.",
    "letters": "ID_0000aee4b",
    "other digits": "1.2.٣",
    "two values": "1.2.3\\1.2.4",
    "none": "",
}


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("bad", BAD_UIDS.values(), ids=BAD_UIDS)
def test_fact_8_uid_against_the_rules_is_refused_and_nothing_is_written(
    ingest: Ingest, spool: Spool, bad: str, keyword: str
) -> None:
    marker = "1.2.3.99999"
    data = ct_bytes(1, **{keyword: marker})
    refused(ingest, spool, _with_value(data, marker, bad), Refused.INVALID_UID, f"{keyword}: expected 1 to 64 digits")


def _with_value(data: bytes, marker: str, value: str) -> bytes:
    """A file in explicit VR whose UID ``marker`` is ``value`` in the data set, whatever pydicom would say to that."""
    raw, old = value.encode() or b"\\", marker.encode() + b"\0"
    raw += b"\0" * (len(raw) % 2)
    at = data.rindex(b"UI" + len(old).to_bytes(2, "little") + old)
    return data[: at + 2] + len(raw).to_bytes(2, "little") + raw + data[at + 4 + len(old) :]


def test_uid_of_64_characters_is_taken(ingest: Ingest, spool: Spool) -> None:
    longest = "1." + "2" * 62
    assert ingest.accept(received(spool, ct_bytes(1, SOPInstanceUID=longest)), ORIGIN).sop_uid == longest


@pytest.mark.parametrize("announced", [(CT_IMAGE, uid(2)), ("1.2.3", uid(1))])
def test_object_that_is_not_the_announced_one_is_refused(
    ingest: Ingest, spool: Spool, announced: tuple[str, str]
) -> None:
    refused(ingest, spool, ct_bytes(1), Refused.MISMATCH, "not the announced one", announced=announced)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "no DICM prefix"),
        (b"GET / HTTP/1.1\r\n\r\n", "no DICM prefix"),
        (b"\x1f\x8b\x08" + bytes(50), "gzip-compressed: unpack it first"),
        (bytes(128) + b"DICM\x02\x00\x10\x00UI\xff\x00", "runs past the end"),
    ],
)
def test_what_is_no_dicom_object_is_refused(ingest: Ingest, spool: Spool, data: bytes, match: str) -> None:
    refused(ingest, spool, data, Refused.MALFORMED, match)


def test_deflated_bomb_is_refused_before_it_is_inflated(ingest: Ingest, spool: Spool) -> None:
    plain = write(ct_dataset(np.zeros((4, 4), dtype=np.int16)), DEFLATED)
    bomb = plain + zlib.compress(bytes(10_000_000))
    refused(ingest, spool, bomb, Refused.FORBIDDEN_SYNTAX, "deflated .*; send it uncompressed")


def test_object_above_the_cap_is_refused_unread(store: Store, spool: Spool) -> None:
    ingest = an_ingest(store, spool, SpoolConfig(max_object_mib=1))
    refused(ingest, spool, bytes(2**20 + 1), Refused.TOO_LARGE, r"at most 1 MiB .* found 1048577 bytes")


def test_object_of_another_kind_is_taken_in_too(ingest: Ingest, spool: Spool, store: Store) -> None:
    report = "1.2.840.10008.5.1.4.1.1.88.33"
    data = ct_bytes(1, SOPClassUID=report, PixelData=None)
    assert ingest.accept(received(spool, data), ORIGIN).sop_class_uid == report


def test_fact_15_reports_of_one_uid_that_differ_are_a_conflict_for_they_have_no_pixels(
    ingest: Ingest, spool: Spool
) -> None:
    first, other = (ct_bytes(1, PixelData=None, StudyDescription=words) for words in ("a", "b"))
    ingest.accept(received(spool, first), ORIGIN)
    assert ingest.accept(received(spool, other), ORIGIN).conflict


def test_large_object_is_taken_in_without_holding_it(ingest: Ingest, spool: Spool, store: Store) -> None:
    data = ct_bytes(1, PixelData=bytes(9 * 2**20))
    ingest.accept(received(spool, data), ORIGIN)
    found = store.find_instance(uid(1))
    assert found is not None
    assert (found.size_bytes, found.pixel_sha256) == (len(data), "")


FAULTS = [errno.ENOSPC, errno.EDQUOT, errno.EIO]


@pytest.mark.parametrize("number", FAULTS, ids=lambda number: errno.errorcode[number])
@pytest.mark.parametrize("call", ["fsync", "replace", "fsync_folder", "stat", "open"])
def test_fact_18_disk_fault_is_storage_full_and_recovers_by_itself(
    ingest: Ingest, spool: Spool, store: Store, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as broken:
        match call:
            case "fsync":
                broken.setattr(os, "fsync", fail)
            case "fsync_folder":
                broken.setattr(spool_module, "fsync_folder", fail)
            case "replace" | "stat" | "open":
                temporary = received(spool, ct_bytes(1))
                broken.setattr(Path, call, fail)
        if call in ("fsync", "fsync_folder"):
            temporary = received(spool, ct_bytes(1))
        with pytest.raises(IngestRefused, match=errno.errorcode[number]) as caught:
            ingest.accept(temporary, ORIGIN)
    assert caught.value.reason is Refused.STORAGE_FULL
    assert not files_below(spool.folder / "objects")
    assert not files_below(spool.folder / "incoming")
    assert store.find_instance(uid(1)) is None
    assert not ingest.accept(received(spool, ct_bytes(1)), ORIGIN).duplicate


def test_fact_18_too_little_free_space_is_storage_full(
    store: Store, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SpoolConfig(min_free_mib=100)
    tight = Spool(spool.folder, config)
    ingest = an_ingest(store, tight, config)
    usage = shutil.disk_usage(spool.folder)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=99 * 2**20))
        refused(ingest, tight, ct_bytes(1), Refused.STORAGE_FULL, r"99 MiB are free.*100 MiB must stay free")
        with pytest.raises(IngestRefused, match="99 MiB are free"):
            ingest.check_capacity()
    ingest.check_capacity()
    ingest.accept(received(tight, ct_bytes(1)), ORIGIN)


def test_too_many_waiting_instances_are_busy(store: Store, spool: Spool) -> None:
    ingest = an_ingest(store, spool, SpoolConfig(max_waiting=1, min_free_mib=0))
    ingest.check_capacity()
    ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
    with pytest.raises(IngestRefused, match="1 instances wait for scoring") as caught:
        ingest.check_capacity()
    assert caught.value.reason is Refused.BUSY
    store.finish_instance(uid(1), InstanceState.SCORED)
    ingest.check_capacity()


def test_fact_19_locked_database_is_refused_as_such_and_recovers(
    ingest: Ingest, spool: Spool, store: Store, tmp_path: Path
) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "fastich.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(IngestRefused, match=r"locked for 0\.2 s by another process") as caught:
            ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
        assert caught.value.reason is Refused.DATABASE
        other.execute("ROLLBACK")
    assert not files_below(spool.folder / "objects")
    assert not ingest.accept(received(spool, ct_bytes(1)), ORIGIN).duplicate


def test_database_that_is_gone_is_refused_as_such(ingest: Ingest, spool: Spool, store: Store) -> None:
    store.close()
    with pytest.raises(IngestRefused, match=r"the database cannot be written: .*closed") as caught:
        ingest.check_capacity()
    assert caught.value.reason is Refused.DATABASE


def test_object_of_a_crash_between_rename_and_commit_is_found_when_it_is_sent_again(
    ingest: Ingest, spool: Spool, store: Store
) -> None:
    data = ct_bytes(1)
    orphan = spool.path_of(hashlib.sha256(data).hexdigest())
    spool.keep(received(spool, data), orphan)
    assert not ingest.accept(received(spool, data), ORIGIN).duplicate
    assert files_below(spool.folder / "objects") == [orphan]
    assert store.count_waiting() == 1


def test_bytes_that_were_deleted_by_age_are_back_when_they_are_sent_again(
    ingest: Ingest, spool: Spool, store: Store
) -> None:
    ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
    name = store.instances_of(study_uid(1))[0].object_name
    store.finish_instance(uid(1), InstanceState.SCORED)
    store.finish_study(study_uid(1), 1, outcome())
    store.forget_objects(time.time() + 1, [uid(1)])
    spool.path_of(name).unlink()
    assert ingest.accept(received(spool, ct_bytes(1)), ORIGIN).duplicate
    assert store.instances_of(study_uid(1))[0].object_name == name
    assert spool.path_of(name).is_file()


def test_folder_of_objects_is_fsynced_with_its_parent_before_the_commit(
    ingest: Ingest, spool: Spool, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync_file, fsync_folder, add = spool_module.fsync_file, spool_module.fsync_folder, store.add_instance
    monkeypatch.setattr(spool_module, "fsync_file", lambda path: (order.append("file"), fsync_file(path)))
    monkeypatch.setattr(spool_module, "fsync_folder", lambda path: (order.append(path.name), fsync_folder(path)))
    monkeypatch.setattr(store, "add_instance", lambda *given: (order.append("commit"), add(*given))[1])
    ingest.accept(received(spool, ct_bytes(1)), ORIGIN)
    name = store.instances_of(study_uid(1))[0].object_name
    assert order == ["file", "objects", name[:2], "commit"]


def test_many_threads_that_send_one_instance_store_it_once(ingest: Ingest, spool: Spool, store: Store) -> None:
    receipts = []

    def send() -> None:
        receipts.append(ingest.accept(received(spool, ct_bytes(1)), ORIGIN))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receipt.duplicate for receipt in receipts) == [False] + [True] * 7
    assert store.count_waiting() == 1


def test_refusal_is_one_line_and_an_error_of_ours() -> None:
    error = IngestRefused(Refused.BUSY, "5 instances wait")
    assert isinstance(error, FastichError)
    assert str(error) == "too much is waiting: 5 instances wait"
