import dataclasses
from pathlib import Path
from typing import Any

import pydicom
import pytest
from outputs_data import (
    CREATED_AT,
    PATIENT,
    REAL_HEAD,
    TRIAGE,
    Scored,
    gate,
    left_out,
    phantom_study,
    real_study,
)
from peers import needs
from pydicom.dataset import Dataset
from validators import assert_valid, report_text

from fastich.labels import LABELS
from fastich.serve.outputs import codes, source, sr, uids
from fastich.serve.outputs.result import PRELIMINARY

VALIDATORS = needs("dciodvfy", "dcmdump", "dsrdump")


def built(study: Scored) -> Dataset:
    return sr.build(study.result, source.read_header(study.key_path), study.sop_classes)


def written(study: Scored, folder: Path) -> Path:
    path = folder / "report.dcm"
    path.write_bytes(source.to_bytes(built(study)))
    return path


def groups(made: Dataset) -> dict[str, list[Dataset]]:
    """Content of the measurement group of each label."""
    (measurements,) = (item for item in made.ContentSequence if item.ValueType == "CONTAINER")
    found = {}
    for group in measurements.ContentSequence:
        (label,) = (item.TextValue for item in group.ContentSequence if meaning(item) == "Tracking Identifier")
        found[label] = list(group.ContentSequence)
    return found


def meaning(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeMeaning)


def named(items: list[Dataset], name: str) -> list[Any]:
    values = []
    for item in items:
        if meaning(item) == name:
            kinds = {"TEXT": "TextValue", "CODE": "ConceptCodeSequence", "NUM": "MeasuredValueSequence"}
            value = item[kinds[item.ValueType]].value
            values.append(value if item.ValueType == "TEXT" else value[0])
    return values


@VALIDATORS
def test_report_of_a_phantom_is_valid(tmp_path: Path) -> None:
    path = written(phantom_study(tmp_path / "in"), tmp_path)
    assert_valid(path, "Comprehensive3DSR")
    text = report_text(path)
    assert PRELIMINARY in text
    for label in LABELS:
        assert f'"{codes.FINDINGS[label].meaning}"' in text


@VALIDATORS
@pytest.mark.skipif(not REAL_HEAD.is_dir(), reason="needs ../shared/data/head_ct_tilt")
def test_report_of_a_real_head_is_valid(tmp_path: Path) -> None:
    path = written(real_study(tmp_path / "in"), tmp_path)
    assert_valid(path, "Comprehensive3DSR")
    report_text(path)


@VALIDATORS
def test_report_of_images_without_patient_data_is_valid(tmp_path: Path) -> None:
    """As the images of the RSNA 2019 challenge are."""
    path = written(phantom_study(tmp_path / "in", **dict.fromkeys(PATIENT)), tmp_path)
    assert_valid(path, "Comprehensive3DSR")


@VALIDATORS
def test_report_in_another_character_set_is_valid(tmp_path: Path) -> None:
    study = phantom_study(
        tmp_path / "in", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎"
    )
    assert_valid(written(study, tmp_path), "Comprehensive3DSR")


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    assert source.to_bytes(built(study)) == source.to_bytes(built(study))


def test_report_stands_in_the_study_of_the_images(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    made = built(study)
    assert made.StudyInstanceUID == study.score.study_uid
    assert made.SOPInstanceUID == study.result.uid("sr")
    assert made.SeriesInstanceUID not in {one.series_uid for one in study.instances}


@pytest.mark.parametrize("label", LABELS)
def test_each_label_has_code_probability_threshold_and_answer(tmp_path: Path, label: str) -> None:
    study = phantom_study(tmp_path).with_document(findings=["any", "subdural"])
    items = groups(built(study))[label]
    (finding,), (answer,) = named(items, "Finding"), named(items, "Probability reaches the threshold")
    concept = codes.FINDINGS[label]
    assert (finding.CodeValue, finding.CodingSchemeDesignator) == (concept.code, concept.scheme)
    assert answer.CodeMeaning == ("Yes" if label in ("any", "subdural") else "No")
    (probability,), (threshold,) = named(items, "Probability"), named(items, "Threshold Value")
    assert float(probability.NumericValue) == pytest.approx(study.result.probability[label], abs=1e-6)
    assert float(threshold.NumericValue) == 0.5
    assert probability.MeasurementUnitsCodeSequence[0].CodeValue == "1"
    assert probability.MeasurementUnitsCodeSequence[0].CodingSchemeDesignator == "UCUM"


def test_snomed_codes_have_right_check_digits() -> None:
    """Verhoeff's scheme, as SNOMED CT identifiers end with."""
    for concept in (*codes.FINDINGS.values(), *codes.SITES.values(), codes.CT_HEAD, codes.YES, codes.NO):
        if concept.scheme == "SCT":
            assert verhoeff(concept.code) == 0, concept
    assert verhoeff("274110009") != 0  # a code that is in circulation for intraventricular bleeds, and is none


def verhoeff(digits: str) -> int:
    """Zero for a number with a right check digit (group D5, permutation of period 8)."""
    permutation, turned = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4], list(range(10))
    check = 0
    for digit in reversed(digits):
        value = turned[int(digit)]
        if check < 5:
            check = (check + value) % 5 if value < 5 else 5 + (check + value - 5) % 5
        else:
            check = 5 + (check - 5 - value) % 5 if value < 5 else (check - value) % 5
        turned = [turned[permutation[place]] for place in range(10)]
    return check


def test_triage_state_stands_with_any(tmp_path: Path) -> None:
    for said, code in (("flag", "FLAG"), ("clear", "CLEAR"), ("human first", "HUMANFIRST")):
        made = built(phantom_study(tmp_path / code).with_document(triage=said))
        (triage,) = named(groups(made)["any"], "Triage proposal")
        assert (triage.CodeValue, triage.CodingSchemeDesignator) == (code, "99FASTICH")
        assert named(groups(made)["subdural"], "Triage proposal") == []


def test_private_scheme_is_declared(tmp_path: Path) -> None:
    (scheme,) = built(phantom_study(tmp_path)).CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == "99FASTICH"


def test_device_and_algorithm_are_named_with_version_and_hash(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    made = built(study)
    sha256 = study.result.model["sha256"]
    top = list(made.ContentSequence)
    assert named(top, "Device Observer Serial Number") == [sha256]
    assert named(top, "Device Observer Model Name")[0].startswith("fastich ICH triage ")
    items = groups(made)["epidural"]
    assert named(items, "Algorithm Name") == ["fastich ICH triage"]
    assert named(items, "Algorithm Version")
    assert f"model sha256 {sha256}" in named(items, "Algorithm Parameters")
    assert made.DeviceSerialNumber == sha256


def test_key_slices_and_evidence_are_references(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    made = built(study)
    for label, items in groups(made).items():
        (image,) = (item for item in items if item.ValueType == "IMAGE")
        reference = image.ReferencedSOPSequence[0]
        assert reference.ReferencedSOPInstanceUID == study.result.key_slices[label].sop_uid
        assert "ReferencedFrameNumber" not in reference
    (evidence,) = made.CurrentRequestedProcedureEvidenceSequence
    assert evidence.StudyInstanceUID == study.score.study_uid
    (series,) = evidence.ReferencedSeriesSequence
    found = {item.ReferencedSOPInstanceUID for item in series.ReferencedSOPSequence}
    assert found == {one.sop_uid for one in study.instances}


def test_reference_to_an_enhanced_image_names_the_frame(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    classes = dict.fromkeys(study.sop_classes, "1.2.840.10008.5.1.4.1.1.2.1")
    made = sr.build(study.result, source.read_header(study.key_path), classes)
    (image,) = (item for item in groups(made)["any"] if item.ValueType == "IMAGE")
    assert image.ReferencedSOPSequence[0].ReferencedFrameNumber == 1


def test_report_is_unverified_and_preliminary(tmp_path: Path) -> None:
    made = built(phantom_study(tmp_path))
    assert (made.VerificationFlag, made.PreliminaryFlag, made.CompletionFlag) == (
        "UNVERIFIED",
        "PRELIMINARY",
        "COMPLETE",
    )
    remarks = named(groups(made)["any"], "Comment")
    assert remarks[0].startswith(PRELIMINARY)
    assert any("Operating point: any >= 0.5 (made for a test)" in line for line in remarks)
    assert any(TRIAGE.guarantee in line for line in remarks)


def test_report_with_slices_left_out_is_partial_and_says_so(tmp_path: Path) -> None:
    study = phantom_study(tmp_path)
    left = [left_out("damaged pixels", missed=True), left_out("localizer", missed=False)]
    made = built(study.with_document(left_out=left, gate=gate("gap of 12 mm")))
    assert made.CompletionFlag == "PARTIAL"
    remarks = named(groups(made)["any"], "Comment")
    assert "Instances left out: damaged pixels 1, localizer 1." in remarks
    assert "In doubt: gap of 12 mm." in remarks


def test_reasons_in_other_scripts_leave_the_report_legal(tmp_path: Path) -> None:
    made = built(phantom_study(tmp_path).with_document(gate=gate("Lücke\\größer")))
    assert "In doubt: L?cke/gr??er." in named(groups(made)["any"], "Comment")


def test_times_are_those_of_the_score(tmp_path: Path) -> None:
    study = phantom_study(tmp_path, TimezoneOffsetFromUTC="+0000")
    made = pydicom.dcmread(written(study, tmp_path))
    assert (made.ContentDate, made.ContentTime) == ("20251124", "160000.250000")
    assert (made.InstanceCreationDate, made.SeriesDate) == ("20251124", "20251124")
    later = dataclasses.replace(study.score, created_at=CREATED_AT + 86_400)
    assert built(dataclasses.replace(study, score=later)).ContentDate == "20251125"


def test_illegal_uids_never_reach_what_is_written(tmp_path: Path) -> None:
    """As in the data of the RSNA 2019 challenge; the server refuses such images, but a result may be made elsewhere."""
    study = phantom_study(tmp_path)
    document = study.score.outcome.document
    assert document is not None
    (series,) = document["series"]
    slices = [dict(row, sop_uid=f"ID_{number:09x}") for number, row in enumerate(series["slices"])]
    key = dict(document["key_slice"])
    illegal = study.with_document(series=[dict(series, series_uid="ID_series", slices=slices)], key_slice=key)
    score = dataclasses.replace(illegal.score, study_uid="ID_study")
    result = dataclasses.replace(illegal, score=score).result
    classes = {row["sop_uid"]: "1.2.840.10008.5.1.4.1.1.2" for row in slices}
    data = source.to_bytes(sr.build(result, source.read_header(study.key_path), classes))
    assert b"ID_" not in data
    path = tmp_path / "made.dcm"
    path.write_bytes(data)
    made = pydicom.dcmread(path)
    found = [element.value for element in made.iterall() if element.VR == "UI"]
    assert all(uids.is_legal(uid) for uid in found)
    assert made.StudyInstanceUID == uids.legal("ID_study")
