"""The engine on a real store and spool with a toy model: from received files to final states."""

import contextlib
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_data import JPEG, ct_dataset, write
from scoring_data import QUICK, Site, slice_bytes, study_bytes, write_files
from toy_model import toy_onnx, write_model

from fastich.decoder import Decoder
from fastich.errors import ArtifactError, DicomError
from fastich.gate_rules import load_rules
from fastich.score import ScoreConfig, score
from fastich.serve.entities import Instance, InstanceState, Outcome, Priority, StudyState
from fastich.serve.scoring import completion, gathering
from fastich.serve.scoring import engine as engine_module
from fastich.serve.session import Scores, Session, open_session
from fastich.types import HuArray, RejectReason

REAL_HEAD = Path(__file__).parents[2] / "shared" / "data" / "head_ct_tilt"
HEAD = [0, 10, 20, 30, 80, 30, 20, 10, 0, -10, -20, 5]
"""p(any) of 80 HU is 0.99, of the others at most 0.86."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    with contextlib.closing(made.store):
        yield made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_model(tmp_path / "model", threshold=0.9)
    return tmp_path / "model"


@pytest.fixture
def session(model: Path) -> Session:
    return open_session(model)


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(completion, "FIRST_RETRY_S", 0.3)


class Failing:
    """A session that fails where a slice of the batch has a certain value."""

    def __init__(self, session: Session, value: int) -> None:
        self._session, self._value = session, value
        self.num_failures = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, hu: HuArray) -> Scores:
        if (hu[:, 0, 0] == self._value).any():
            self.num_failures += 1
            raise ArtifactError("model.onnx: expected finite logit, found NaN or infinity; export again")
        return self._session.run(hu)


def reasons(site: Site, study_uid: str = "1.2.1") -> dict[str, str]:
    return {one.sop_uid: f"{one.state.value}: {one.reason}" for one in site.store.instances_of(study_uid)}


def test_study_ends_with_the_numbers_of_score_on_the_same_files(
    site: Site, session: Session, model: Path, tmp_path: Path
) -> None:
    files = study_bytes(HEAD)
    (expected,) = score([write_files(tmp_path / "in", files)], session, ScoreConfig(model=model))["studies"]
    with site.running(session):
        site.receive(files)
        study = site.final()
    assert (study.state, study.reason, study.priority) == (StudyState.SCORED, "", Priority.FLAGGED)
    assert study.document is not None
    found = dict(study.document)
    for name in ("probability", "logit", "top_k_mean"):
        assert found[name] == pytest.approx(expected[name], abs=1e-6)
    assert found["key_slice"]["sop_uid"] == expected["key_slice"]["sop_uid"] == "1.2.1.1.5"
    assert (found["flagged"], found["findings"]) == (expected["flagged"], expected["findings"])
    ordered = [one["sop_uid"] for one in found["series"][0]["slices"]]
    assert ordered == [one["sop_uid"] for one in expected["series"][0]["slices"]]
    assert found["model"]["sha256"] == session.sha256
    assert found["left_out"] == []
    assert found["gate"]["cautions"] == []


@pytest.mark.skipif(not REAL_HEAD.is_dir(), reason="needs ../shared/data/head_ct_tilt")
def test_real_tilted_head_has_the_numbers_of_score(site: Site, session: Session, model: Path) -> None:
    (expected,) = score([REAL_HEAD], session, ScoreConfig(model=model))["studies"]
    with site.running(session):
        site.receive([path.read_bytes() for path in sorted(REAL_HEAD.glob("*.dcm"))])
        study = site.final(expected["study_uid"])
    assert (study.state, study.reason) == (StudyState.SCORED, "")
    assert study.document is not None
    assert study.document["logit"] == pytest.approx(expected["logit"], abs=1e-5)
    assert study.document["protocol"]["tilt_deg"] == pytest.approx(18.5, abs=0.1)


def test_protocol_of_a_scored_study_says_how_it_was_made(site: Site, session: Session) -> None:
    made = {"KVP": "120", "ConvolutionKernel": "H31s", "Manufacturer": "ACME", "ManufacturerModelName": "One"}
    with site.running(session):
        site.receive(study_bytes([-100, -5] + [42] * 8, SliceThickness="5", **made))
        study = site.final()
    assert study.document is not None
    protocol = study.document["protocol"]
    assert (protocol["kvp"], protocol["kernel"], protocol["manufacturer"], protocol["model"]) == (
        120.0,
        "H31s",
        "ACME",
        "One",
    )
    assert (protocol["thickness_mm"], protocol["spacing_mm"], protocol["num_slices"]) == (5.0, 7.5, 10)
    fractions = dict(zip(protocol["hu_edges"], protocol["hu_fractions"], strict=False))
    assert (fractions[-100], fractions[-10]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert fractions[40] == pytest.approx(0.8)


def test_deliveries_are_those_of_the_outcome_and_written_with_it(site: Site, session: Session) -> None:
    seen: list[Outcome] = []

    def deliveries_for(outcome: Outcome) -> list[tuple[str, str]]:
        seen.append(outcome)
        return [("pacs", "sr")]

    with site.running(session, deliveries_for=deliveries_for):
        site.receive(study_bytes(HEAD))
        study = site.final()
    (delivery,) = site.store.deliveries_of("1.2.1")
    assert (delivery.destination, delivery.kind, delivery.score_id) == ("pacs", "sr", study.score_id)
    assert seen[-1].document is not None


def test_partial_result_raises_a_study_that_still_arrives(site: Site, session: Session) -> None:
    config = type(QUICK)(**{**vars(QUICK), "quiet_s": 60.0})
    with site.running(session, config=config):
        site.receive(study_bytes([0, 80]))
        until = time.monotonic() + 10
        while (study := site.store.study("1.2.1")) is None or study.priority is not Priority.FLAGGED:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert study.state is StudyState.RECEIVING
        site.store.expect("1.2.1", 12)
        site.receive(study_bytes(HEAD)[2:])
        final = site.final()
    assert final.document is not None
    assert final.document["num_slices"] == 12
    assert [one.partial for one in site.store.scores_of("1.2.1")][-1] is False


def test_partial_result_never_says_clear_or_not_eligible(site: Site, session: Session) -> None:
    config = type(QUICK)(**{**vars(QUICK), "quiet_s": 60.0})
    with site.running(session, config=config):
        site.receive(study_bytes([0, 1]))
        until = time.monotonic() + 10
        while not (found := site.store.scores_of("1.2.1")):
            assert time.monotonic() < until
            time.sleep(0.02)
    assert found[0].partial
    assert (found[0].outcome.state, found[0].outcome.priority) == (StudyState.RECEIVING, Priority.ROUTINE)
    assert found[0].outcome.document is not None
    assert found[0].outcome.document["triage"] is None


# FACTS, section 6.


@pytest.mark.parametrize("length", [10, 32 * 32 * 2 - 2, 32 * 32 * 2 + 4000, 0])
def test_11_short_long_or_odd_pixel_data_is_not_evaluated_damaged_pixels(
    site: Site, session: Session, length: int
) -> None:
    files = study_bytes(HEAD, PixelData=b"\1" * length)
    with site.running(session):
        site.receive(files)
        study = site.final()
    assert study.state is StudyState.NOT_EVALUATED
    assert study.reason == "damaged pixels (12 files)"
    assert study.document is None
    assert study.priority is Priority.ROUTINE


def test_11_partly_damaged_series_is_scored_in_doubt_and_goes_to_a_human_first(site: Site, session: Session) -> None:
    files = study_bytes([0] * 12)
    files[5] = slice_bytes(5, PixelData=b"\1\1")
    with site.running(session):
        site.receive(files)
        study = site.final()
    assert (study.state, study.priority) == (StudyState.SCORED, Priority.HUMAN_FIRST)
    assert study.reason.startswith("in doubt: ")
    assert "1 files of the series were left out" in study.reason
    assert study.document is not None
    (left,) = study.document["left_out"]
    assert (left["sop_uid"], left["reason"], left["missed"]) == ("1.2.1.1.6", "damaged pixels", True)
    assert study.document["num_slices"] == 11


def test_11_partly_damaged_series_with_a_bleed_is_flagged(site: Site, session: Session) -> None:
    files = study_bytes(HEAD)
    files[8] = slice_bytes(8, PixelData=b"\1\1")
    with site.running(session):
        site.receive(files)
        study = site.final()
    assert (study.state, study.priority) == (StudyState.SCORED, Priority.FLAGGED)


def test_11_series_damaged_beyond_the_rule_is_not_evaluated(site: Site, session: Session) -> None:
    files = study_bytes([0] * 12)
    for number in (3, 7):
        files[number] = slice_bytes(number, PixelData=b"\1\1")
    with site.running(session):
        site.receive(files)
        study = site.final()
    assert study.state is StudyState.NOT_EVALUATED
    assert study.reason == "16.67 % of its files cannot be used, at most 10; damaged pixels (2 files)"


def jpeg_bytes(number: int, stream: bytes) -> bytes:
    dataset = ct_dataset(
        np.zeros((32, 32), dtype=np.int16),
        SOPInstanceUID=f"1.2.1.1.{number + 1}",
        StudyInstanceUID="1.2.1",
        SeriesInstanceUID="1.2.1.1",
    )
    return write(dataset, JPEG + "90", [stream])


class Dying(Decoder):
    """A decoder whose worker dies of each frame."""

    def __init__(self) -> None:
        super().__init__(command=("/bin/sh", "-c", "exit 7"))


def test_12_worker_that_dies_costs_one_instance_its_tries_and_the_server_lives(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "Decoder", Dying)
    files = [*study_bytes([0] * 12), jpeg_bytes(12, b"\xff\x4f\xff\x51" + os.urandom(200) + b"\xff\xd9")]
    with site.running(session):
        site.receive(files)
        study = site.final()
        site.receive(study_bytes(HEAD, study=2))
        other = site.final("1.2.2")
    assert reasons(site)["1.2.1.1.13"] == "failed: decoder failed"
    assert (study.state, study.priority) == (StudyState.SCORED, Priority.HUMAN_FIRST)
    assert other.priority is Priority.FLAGGED


def test_12_mutated_codestream_is_damaged_pixels(site: Site, session: Session) -> None:
    with site.running(session):
        site.receive([jpeg_bytes(0, b"\xff\x4f\xff\x51" + bytes(200) + b"\xff\xd9")])
        study = site.final()
    assert (study.state, study.reason) == (StudyState.NOT_EVALUATED, "damaged pixels (1 file)")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RescaleSlope": "0"}, "bad rescale"),
        ({"RescaleSlope": "nan"}, "bad rescale"),
        ({"RescaleType": "US"}, "not Hounsfield units"),
        ({"Modality": "MR"}, "not CT"),
        ({"Modality": None}, "not CT"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "colour image"),
    ],
)
def test_13_what_is_no_hounsfield_unit_is_not_evaluated(
    site: Site, session: Session, changes: dict[str, Any], reason: str
) -> None:
    with site.running(session):
        site.receive(study_bytes(HEAD, **changes))
        study = site.final()
    assert (study.state, study.reason) == (StudyState.NOT_EVALUATED, f"{reason} (12 files)")


def test_13_monochrome1_and_the_12_bit_wrap_are_scored_in_right_hu(site: Site, session: Session) -> None:
    wrapped = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "RescaleIntercept": "1"}
    files = study_bytes(HEAD, PhotometricInterpretation="MONOCHROME1")
    pixels = [np.full((32, 32), (hu - 1000 + 1000) % 4096, dtype="<u2").tobytes() for hu in HEAD]
    files += [slice_bytes(number, study=2, **wrapped, PixelData=one) for number, one in enumerate(pixels)]
    with site.running(session):
        site.receive(files)
        plain, unwrapped = site.final("1.2.1"), site.final("1.2.2")
    assert plain.document is not None
    assert unwrapped.document is not None
    assert plain.document["logit"]["any"] == pytest.approx(80 * 0.06, rel=1e-5)
    assert unwrapped.document["logit"]["any"] == pytest.approx(80 * 0.06, rel=1e-5)


def test_14_reversed_series_is_scored_in_slice_order(site: Site, session: Session) -> None:
    with site.running(session):
        site.receive(study_bytes(HEAD)[::-1])
        study = site.final()
    assert study.document is not None
    z = [one["z_mm"] for one in study.document["series"][0]["slices"]]
    assert z == sorted(z)


def test_14_tilted_series_is_scored(site: Site, session: Session) -> None:
    tilted = [1, 0, 0, 0, float(np.cos(np.radians(25))), float(-np.sin(np.radians(25)))]
    with site.running(session):
        site.receive(study_bytes(HEAD, ImageOrientationPatient=tilted))
        study = site.final()
    assert (study.state, study.reason, study.priority) == (StudyState.SCORED, "", Priority.FLAGGED)
    assert study.document is not None
    assert study.document["protocol"]["spacing_mm"] == pytest.approx(7.5 * np.cos(np.radians(25)), abs=1e-3)


def test_14_gap_is_a_doubt_and_a_large_one_a_reason(site: Site, session: Session) -> None:
    with site.running(session):
        site.receive(study_bytes([0] * 16)[:7] + study_bytes([0] * 16)[8:])
        site.receive(study_bytes([0] * 20, study=2)[:7] + study_bytes([0] * 20, study=2)[12:])
        small, large = site.final("1.2.1"), site.final("1.2.2")
    assert (small.state, small.priority) == (StudyState.SCORED, Priority.HUMAN_FIRST)
    assert small.reason == "in doubt: a slice seems to be missing: a step 2 times as long as its neighbours"
    assert (large.state, large.reason) == (StudyState.NOT_EVALUATED, "a gap of 45 mm, at most 20")


def test_14_coronal_series_and_localizer_are_left_out_with_reasons(site: Site, session: Session) -> None:
    coronal = study_bytes([0] * 12, series=2, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    scout = slice_bytes(0, series=3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    with site.running(session):
        site.receive([*coronal, scout])
        alone = site.final(revision=13)
        site.receive(study_bytes([0] * 16))
        study = site.final(revision=29)
    assert alone.state is StudyState.NOT_EVALUATED
    assert alone.reason == "not axial: 90 degrees from it, at most 35 (12 files); localizer (1 file)"
    assert (study.state, study.reason, study.priority) == (StudyState.SCORED, "", Priority.ROUTINE)
    assert study.document is not None
    assert len(study.document["left_out"]) == 13
    assert {one["missed"] for one in study.document["left_out"]} == {False}


def test_14_slices_of_two_patients_in_one_study_are_not_evaluated(site: Site, session: Session) -> None:
    with site.running(session):
        site.receive([*study_bytes(HEAD), *study_bytes(HEAD, series=2, PatientID="ANOTHER")])
        study = site.final(revision=24)
    assert (study.state, study.reason) == (StudyState.NOT_EVALUATED, "slices of 2 patients in one study")


def test_15_conflicting_copy_keeps_a_study_from_being_clear(site: Site, session: Session) -> None:
    site.receive(study_bytes([0] * 16))
    assert site.receive([slice_bytes(3, 50)])[0].conflict
    with site.running(session):
        study = site.final()
    assert study.priority is Priority.HUMAN_FIRST
    assert "1 files came under UIDs that were taken" in study.reason


def test_16_late_slices_make_a_new_score_and_history_is_kept(site: Site, session: Session) -> None:
    files = study_bytes([0] * 20)
    with site.running(session):
        site.receive(files[:16])
        first = site.final()
        site.receive([slice_bytes(16, 80), *files[17:]])
        second = site.final(revision=20)
    assert (first.priority, second.priority) == (Priority.ROUTINE, Priority.FLAGGED)
    finals = [one.revision for one in site.store.scores_of("1.2.1") if not one.partial]
    assert (finals[0], finals[-1]) == (16, 20)
    assert second.document is not None
    assert second.document["num_slices"] == 20


def test_fewer_files_than_expected_is_a_doubt(site: Site, session: Session) -> None:
    site.store.expect("1.2.1", 20)
    with site.running(session):
        site.receive(study_bytes([0] * 16))
        study = site.final()
    assert (study.priority, study.reason) == (Priority.HUMAN_FIRST, "in doubt: 16 of 20 expected files arrived")


def test_20_slices_of_another_model_are_scored_again_and_never_mixed(
    site: Site, session: Session, tmp_path: Path
) -> None:
    write_model(tmp_path / "new", toy_onnx(scale=2.0), threshold=0.9)
    other = open_session(tmp_path / "new")
    files = study_bytes(HEAD)
    with site.running(session):
        site.receive(files[:10])
        site.final()
    with site.running(other):
        site.receive(files[10:])
        study = site.final(revision=12)
    assert study.document is not None
    slices = study.document["series"][0]["slices"]
    assert [one["logit"]["any"] for one in slices] == pytest.approx([2 * 0.06 * hu for hu in HEAD], rel=1e-5)
    assert {one.detail for one in site.store.instances_of("1.2.1")} == {f"model {other.sha256} onnxruntime float32"}


def test_21_cuda_that_is_missing_when_demanded_is_refused(model: Path) -> None:
    with pytest.raises(ArtifactError, match="device cuda: "):
        open_session(model, "cuda")


@pytest.mark.slow
def test_22_a_thousand_studies_are_all_finished_and_none_is_lost(site: Site, session: Session) -> None:
    waiting: list[int] = []
    with site.running(session) as engine:
        for number in range(1, 1001):
            site.receive([slice_bytes(0, 0, study=number, side=8)])
            waiting.append(len(engine._leased))
        until = time.monotonic() + 120
        while site.store.counts()["studies"]["not evaluated"] < 1000:
            assert time.monotonic() < until, site.store.counts()
            time.sleep(0.05)
    counts = site.store.counts()
    assert counts["instances"]["scored"] == 1000
    assert counts["studies"]["receiving"] == 0
    assert max(waiting) <= QUICK.decode_workers + engine_module.BATCHES_AHEAD * QUICK.batch_size


# Failures of the model and of the machine.


def test_slice_that_the_model_fails_on_fails_its_instance_only(site: Site, session: Session) -> None:
    failing = Failing(session, 10)
    values = [0] * 12
    values[4] = 10
    with site.running(failing):  # type: ignore[arg-type]
        site.receive(study_bytes(values))
        study = site.final()
    assert (study.state, study.priority) == (StudyState.SCORED, Priority.HUMAN_FIRST)
    (failed,) = [one for one in site.store.instances_of("1.2.1") if one.state is InstanceState.FAILED]
    assert (failed.sop_uid, failed.reason) == ("1.2.1.1.5", "model failed")
    assert failed.detail.startswith("model.onnx: expected finite logit")
    assert failing.num_failures >= QUICK.max_attempts


def test_study_whose_slices_all_fail_is_failed_with_a_reason_and_the_engine_goes_on(
    site: Site, session: Session
) -> None:
    with site.running(Failing(session, 10)):  # type: ignore[arg-type]
        site.receive(study_bytes([10] * 12))
        study = site.final()
        site.receive(study_bytes(HEAD[:1] * 12, study=2))
        other = site.final("1.2.2")
    assert (study.state, study.reason) == (StudyState.FAILED, "model failed (12 files)")
    assert other.state is StudyState.SCORED


def test_file_that_is_gone_from_the_spool_fails_its_instance(site: Site, session: Session) -> None:
    site.receive(study_bytes([0] * 12))
    lost = site.store.instances_of("1.2.1")[3]
    site.spool.path_of(lost.object_name).unlink()
    with site.running(session):
        study = site.final()
    assert reasons(site)[lost.sop_uid] == "failed: unreadable file"
    assert study.priority is Priority.HUMAN_FIRST


def test_disk_that_is_gone_for_a_moment_fails_no_instance(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "FIRST_RETRY_S", 0.6)
    site.receive(study_bytes(HEAD))
    site.spool.folder.rename(site.spool.folder.with_name("unplugged"))
    with site.running(session):
        time.sleep(0.3)
        site.spool.folder.with_name("unplugged").rename(site.spool.folder)
        study = site.final()
    assert (study.state, study.reason, study.priority) == (StudyState.SCORED, "", Priority.FLAGGED)


def read_and_held(site: Site, session: Session, files: list[bytes]) -> None:
    """Let an engine take on files, and end before any study is judged."""
    config = type(QUICK)(**{**vars(QUICK), "quiet_s": 60.0})
    with site.running(session, config=config):
        site.receive(files)
        until = time.monotonic() + 10
        while site.store.count_waiting():
            assert time.monotonic() < until
            time.sleep(0.01)


def held(site: Site, session: Session) -> list[Path]:
    """A study of the bone kernel, received and held for its study, and its files; nothing is known but the tables."""
    read_and_held(site, session, study_bytes(HEAD, ConvolutionKernel="BONE"))
    return [site.spool.path_of(one.object_name) for one in site.store.instances_of("1.2.1")]


def test_disk_that_is_gone_for_a_moment_while_a_study_is_judged_costs_no_result(
    site: Site, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    files = held(site, session)
    for path in files[:2]:
        path.rename(path.with_suffix(".gone"))
    with site.running(session):
        until = time.monotonic() + 10
        while "could not be judged (try 1 of 2)" not in caplog.text:
            assert time.monotonic() < until
            time.sleep(0.01)
        for path in files[:2]:
            path.with_suffix(".gone").rename(path)
        study = site.final()
    assert (study.state, study.reason, study.priority) == (StudyState.SCORED, "", Priority.FLAGGED)


def test_files_that_are_gone_while_a_study_is_judged_fail_it_and_a_copy_mends_it(site: Site, session: Session) -> None:
    for path in held(site, session)[:2]:
        path.unlink()
    with site.running(session):
        study = site.final()
        assert study.state is StudyState.FAILED
        assert study.reason == "16.67 % of its files cannot be used, at most 10; unreadable file (2 files)"
        site.receive(study_bytes(HEAD, ConvolutionKernel="BONE"))
        assert site.final(revision=13).state is StudyState.SCORED


def test_decoder_that_is_closed_under_the_judge_ends_no_study(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    held(site, session)
    made = engine_module.Engine(
        site.store, site.spool, session, None, type(QUICK)(max_attempts=1), deliveries_for=lambda _: ()
    )
    made._is_over.set()
    made._completion._config = type(QUICK)(max_attempts=1, quiet_s=0)
    monkeypatch.setattr(
        gathering.NoteBook, "of", lambda *_: (_ for _ in ()).throw(DicomError(RejectReason.DECODER_FAILED, "closed"))
    )
    made._completion.run(Decoder())
    study = site.store.study("1.2.1")
    assert study is not None
    assert study.state is StudyState.RECEIVING


def test_copy_of_an_instance_that_failed_is_scored(site: Site, session: Session) -> None:
    files = study_bytes([0] * 16)
    site.receive(files)
    lost = site.store.instances_of("1.2.1")[3]
    site.spool.path_of(lost.object_name).unlink()
    with site.running(session):
        first = site.final()
        assert site.receive([files[3]])[0].duplicate
        study = site.final(revision=17)
        assert site.receive([files[3]])[0].duplicate
    assert (first.priority, study.priority, study.reason) == (Priority.HUMAN_FIRST, Priority.ROUTINE, "")
    assert reasons(site)[lost.sop_uid] == "scored: "
    again = site.store.study("1.2.1")
    assert again is not None
    assert (again.revision, again.state) == (17, StudyState.SCORED)


def test_stopped_engine_gives_back_what_it_did_not_finish(site: Site, session: Session) -> None:
    gate = threading.Event()

    class Stuck(Failing):
        def run(self, hu: HuArray) -> Scores:
            if hu.shape[1] == 32:
                gate.wait(10)
            return self._session.run(hu)

    site.receive(study_bytes(HEAD))
    stuck = Stuck(session, 0)
    made = engine_module.Engine(site.store, site.spool, stuck, None, QUICK, deliveries_for=lambda _: ())  # type: ignore[arg-type]
    made.start()
    until = time.monotonic() + 10
    while not made._leased:
        assert time.monotonic() < until
        time.sleep(0.01)
    threading.Timer(0.3, gate.set).start()
    made.stop(drain_s=0.1)
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"lease", "write", "judge", "model"})
    with site.running(session):
        assert site.final().priority is Priority.FLAGGED


def test_slices_that_take_longer_than_their_lease_are_scored(site: Site, session: Session) -> None:
    class Slow(Failing):
        def run(self, hu: HuArray) -> Scores:
            time.sleep(0.25 if hu.shape[1] == 32 else 0)
            return self._session.run(hu)

    config = type(QUICK)(**{**vars(QUICK), "lease_s": 0.05, "max_attempts": 1})
    with site.running(Slow(session, 0), config=config):  # type: ignore[arg-type]
        site.receive(study_bytes(HEAD * 2))
        study = site.final(revision=24)
    assert set(reasons(site).values()) == {"scored: "}
    assert study.priority is Priority.FLAGGED


def test_engine_takes_nothing_beside_one_that_was_in_work_at_a_crash(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.receive(study_bytes(HEAD))
    site.store.lease_instances(3, 600, max_attempts=3)
    together: list[int] = []
    put = engine_module.Engine._begin

    def begin(self: engine_module.Engine, instance: Instance, decoder: Decoder) -> Any:
        if instance.attempts > 1:
            together.append(len(self._leased))
            time.sleep(0.1)
            together.append(len(self._leased))
        return put(self, instance, decoder)

    monkeypatch.setattr(engine_module.Engine, "_begin", begin)
    with site.running(session, config=type(QUICK)(**{**vars(QUICK), "max_attempts": 3})):
        assert site.final().state is StudyState.SCORED
    assert together == [1] * 6


def test_restarted_engine_finishes_what_another_one_scored(site: Site, session: Session) -> None:
    config = type(QUICK)(**{**vars(QUICK), "quiet_s": 60.0})
    with site.running(session, config=config):
        site.receive(study_bytes(HEAD))
        until = time.monotonic() + 10
        while site.store.count_waiting():
            assert time.monotonic() < until
            time.sleep(0.01)
    with site.running(Failing(session, 80)):  # type: ignore[arg-type]
        study = site.final()
    assert study.priority is Priority.FLAGGED
    assert study.document is not None
    assert study.document["protocol"]["hu_fractions"] is not None


def test_study_whose_pixels_were_deleted_is_scored_again_by_what_is_stored(site: Site, session: Session) -> None:
    files = study_bytes([0] * 20)
    with site.running(session):
        site.receive(files[:16])
        site.final()
    uids = [one.sop_uid for one in site.store.instances_of("1.2.1")]
    names = [one.object_name for one in site.store.instances_of("1.2.1")]
    assert len(site.store.forget_objects(time.time() + 1, uids)) == 16
    for name in names:
        site.spool.path_of(name).unlink()
    with site.running(session):
        site.receive(files[16:])
        study = site.final(revision=20)
    assert study.state is StudyState.SCORED
    assert study.document is not None
    assert study.document["num_slices"] == 20


# What is scored once the study is complete.


def test_model_of_neighbours_is_scored_at_completion_as_score_does(site: Site, tmp_path: Path) -> None:
    write_model(tmp_path / "model", adjacent=True)
    adjacent = open_session(tmp_path / "model")
    files = study_bytes(HEAD)
    config = ScoreConfig(model=tmp_path / "model")
    (expected,) = score([write_files(tmp_path / "in", files)], adjacent, config)["studies"]
    with site.running(adjacent):
        site.receive(files[::-1])
        study = site.final()
    assert study.document is not None
    found = [one["logit"]["any"] for one in study.document["series"][0]["slices"]]
    assert found == pytest.approx([one["logit"]["any"] for one in expected["series"][0]["slices"]], abs=1e-6)
    assert len(site.store.scored_slices("1.2.1")) == 12
    assert {one.state for one in site.store.instances_of("1.2.1")} == {InstanceState.SCORED}


def test_stop_ends_scoring_at_completion_between_batches_and_the_next_start_goes_on(
    site: Site, session: Session
) -> None:
    class Slow(Failing):
        def run(self, hu: HuArray) -> Scores:
            self.num_failures += hu.shape[1] == 32
            time.sleep(0.2 if hu.shape[1] == 32 else 0)
            return self._session.run(hu)

    slow = Slow(session, 0)
    with site.running(slow, config=type(QUICK)(**{**vars(QUICK), "max_attempts": 1})):  # type: ignore[arg-type]
        site.receive(study_bytes([*HEAD, *[0] * 28], ConvolutionKernel="BONE"))
        until = time.monotonic() + 10
        while not slow.num_failures:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert slow.num_failures <= 2
    stopped = site.store.study("1.2.1")
    assert stopped is not None
    assert stopped.state is StudyState.RECEIVING
    with site.running(session):
        assert site.final().priority is Priority.FLAGGED


def test_study_that_is_scored_is_finished_before_one_that_has_to_be(site: Site, session: Session) -> None:
    class Slow(Failing):
        def run(self, hu: HuArray) -> Scores:
            if (hu == 90).all() and hu.shape[1] == 32:
                finals.append(site.store.study("1.2.3").state)  # type: ignore[union-attr]
            return self._session.run(hu)

    finals: list[StudyState] = []
    bone = [one for study in (1, 2) for one in study_bytes([90] * 12, study=study, ConvolutionKernel="BONE")]
    read_and_held(site, session, [*bone, *study_bytes([0] * 12, study=3)])
    time.sleep(QUICK.quiet_s)
    with site.running(Slow(session, 0)):  # type: ignore[arg-type]
        site.final("1.2.1")
        site.final("1.2.2")
    assert finals == [StudyState.SCORED] * 6


def test_error_that_is_not_ours_is_told_by_its_type_and_place_only() -> None:
    with pytest.raises(ValueError, match="SECRET") as caught:
        int("SECRET^NAME")
    assert re.fullmatch(r"ValueError in test_scoring_engine\.py, line \d+", completion.words_of(caught.value))
    assert completion.words_of(ArtifactError("model.onnx: damaged")) == "model.onnx: damaged"


def test_neither_log_nor_database_repeats_the_words_of_a_strange_error(
    site: Site, session: Session, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def strange(*_: Any) -> None:
        raise ValueError("SECRET^NAME")

    monkeypatch.setattr(engine_module, "read_object", strange)
    monkeypatch.setattr(completion, "planned", strange)
    with site.running(session):
        site.receive(study_bytes([0]))
        study = site.final()
    (failed,) = site.store.instances_of("1.2.1")
    assert "ValueError in test_scoring_engine.py" in failed.detail
    assert "ValueError in test_scoring_engine.py" in study.reason
    assert "SECRET" not in caplog.text + failed.detail + study.reason


def test_bone_series_waits_and_is_left_for_the_soft_one(site: Site, session: Session) -> None:
    bone = study_bytes([90] * 16, series=2, ConvolutionKernel="BONE")
    with site.running(session):
        site.receive([*bone, *study_bytes([0] * 16)])
        study = site.final(revision=32)
    assert (study.state, study.priority) == (StudyState.SCORED, Priority.ROUTINE)
    assert study.document is not None
    assert [one["series_uid"] for one in study.document["series"]] == ["1.2.1.1"]
    left = next(one for one in study.document["gate"]["series"] if not one["scored"])
    assert left["why"] == "left for a better series of the same part (bone kernel, not thick)"


def test_bone_series_alone_is_scored(site: Site, session: Session) -> None:
    with site.running(session):
        site.receive(study_bytes(HEAD, ConvolutionKernel="BONE"))
        study = site.final()
    assert (study.state, study.priority) == (StudyState.SCORED, Priority.FLAGGED)
    assert len(site.store.scored_slices("1.2.1")) == 12


def test_contrast_slices_are_never_shown_to_the_model(site: Site, session: Session) -> None:
    failing = Failing(session, 10)
    with site.running(failing):  # type: ignore[arg-type]
        site.receive(study_bytes([10] * 12, ContrastBolusAgent="Iomeron"))
        study = site.final()
    assert failing.num_failures == 0
    assert study.state is StudyState.NOT_EVALUATED
    assert study.reason == "contrast agent was given (ContrastBolusAgent) (12 files)"


def test_rules_of_a_file_take_the_place_of_the_built_in_ones(site: Site, session: Session, tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('version = 1\ncover_mm = 20\n[[kinds]]\nid = "all"\nrank = 1\n', encoding="utf-8")
    config = type(QUICK)(**{**vars(QUICK), "rules": rules})
    with site.running(session, config=config):
        site.receive(study_bytes([0, 80], ContrastBolusAgent="Iomeron"))
        study = site.final()
    assert study.priority is Priority.FLAGGED
    assert study.document is not None
    assert study.document["gate"]["rules_sha256"] == hashlib.sha256(rules.read_bytes()).hexdigest()
    assert study.document["gate"]["rules_sha256"] != load_rules().sha256
