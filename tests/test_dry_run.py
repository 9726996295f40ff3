from pathlib import Path

import pytest
from dicom_data import DEFLATED, ct_file, slice_hu
from scoring_data import QUICK, Site, slice_bytes, study_bytes, write_files
from toy_model import write_model

from fastich.serve.config import ServeConfig, SpoolConfig
from fastich.serve.dry_run import explain, table
from fastich.serve.session import Session, open_session

CONFIG = ServeConfig(scoring=QUICK)


@pytest.fixture
def session(tmp_path: Path) -> Session:
    write_model(tmp_path / "model", threshold=0.9)
    return open_session(tmp_path / "model")


def test_dry_run_says_what_the_server_then_does(tmp_path: Path, session: Session) -> None:
    files = [
        *study_bytes([0] * 12 + [80]),
        *study_bytes([0] * 12, study=2),
        *study_bytes([0] * 16, study=3)[:7],
        *study_bytes([0] * 16, study=3)[8:],
        *study_bytes([0] * 12, study=4, Modality="MR"),
        *study_bytes([0] * 12, study=5, ContrastBolusAgent="X"),
    ]
    folder = write_files(tmp_path / "in", files)
    said = {row["study_uid"]: row for row in explain([folder], session, None, CONFIG)["studies"]}
    site = Site(tmp_path)
    with site.running(session):
        site.receive(files)
        done = {uid: site.final(uid) for uid in said}
    site.store.close()
    assert len(done) == 5
    for uid, study in done.items():
        assert (said[uid]["state"], said[uid]["reason"], said[uid]["rank"]) == (
            study.state.value,
            study.reason,
            int(study.priority),
        )
        if study.document is not None:
            assert said[uid]["probability"] == pytest.approx(study.document["probability"], abs=1e-6)


def test_raised_studies_come_first_and_nothing_is_written(tmp_path: Path, session: Session) -> None:
    files = [*study_bytes([0] * 12), *study_bytes([80] * 12, study=2)]
    folder = write_files(tmp_path / "in", files)
    before = sorted(tmp_path.rglob("*"))
    text = table(explain([folder], session, None, CONFIG))
    assert text.splitlines()[0].startswith("flagged      1.2.2  scored, p(any) 0.99")
    assert "routine      1.2.1  scored, p(any) 0.500" in text
    assert text.endswith("nothing was stored and nothing was sent")
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_the_door_refuses_are_named(tmp_path: Path, session: Session) -> None:
    files = [b"no DICOM", slice_bytes(0, StudyInstanceUID="ID_x"), ct_file(slice_hu(8, 8), DEFLATED)]
    report = explain([write_files(tmp_path / "in", files)], session, None, CONFIG)
    reasons = sorted(one["reason"].partition(":")[0] for one in report["refused"])
    assert reasons == [
        "a UID that breaks PS3.5 9.1",
        "a transfer syntax that is not taken from a network",
        "not a DICOM object",
    ]
    assert report["studies"] == []


def test_file_above_the_cap_is_named(tmp_path: Path, session: Session) -> None:
    folder = write_files(tmp_path / "in", [slice_bytes(0)])
    config = ServeConfig(scoring=QUICK, spool=SpoolConfig(max_object_mib=0))
    (refused,) = explain([folder], session, None, config)["refused"]
    assert refused["reason"].startswith("larger than the cap: expected at most 0 MiB")


def test_conflicting_copy_is_a_doubt(tmp_path: Path, session: Session) -> None:
    folder = write_files(tmp_path / "in", [*study_bytes([0] * 12), slice_bytes(3, 7)])
    (row,) = explain([folder], session, None, CONFIG)["studies"]
    assert row["priority"] == "human first"
    assert "1 files came under UIDs that were taken" in row["reason"]
