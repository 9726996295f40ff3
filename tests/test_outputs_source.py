import warnings
from pathlib import Path
from typing import Any

import pydicom
import pytest
from outputs_data import PATIENT, phantom_study
from pydicom.dataset import Dataset

from fastich.errors import FastichError
from fastich.serve.outputs import source, sr

NAMES = [
    (None, "MUELLER^ANNA"),
    ("ISO_IR 100", "Müller^Änne"),
    ("ISO_IR 144", "Люкceмбypг"),
    ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ("GB18030", "Wang^XiaoDong=王^小东"),
]


def rewritten(folder: Path, **changes: Any) -> pydicom.Dataset:
    """A report of a study whose images say ``changes``, as a PACS would read it."""
    study = phantom_study(folder, **changes)
    made = sr.build(study.result, source.read_header(study.key_path), study.sop_classes)
    path = folder / "made.dcm"
    path.write_bytes(source.to_bytes(made))
    return pydicom.dcmread(path)


@pytest.mark.parametrize(("charset", "name"), NAMES, ids=[str(charset) for charset, _ in NAMES])
def test_name_survives_in_its_character_set(tmp_path: Path, charset: Any, name: str) -> None:
    found = rewritten(tmp_path, SpecificCharacterSet=charset, PatientName=name)
    assert str(found.PatientName) == name
    assert found.get("SpecificCharacterSet", None) == charset


def test_name_is_the_same_bytes(tmp_path: Path) -> None:
    study = phantom_study(tmp_path, SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎")
    made = sr.build(study.result, source.read_header(study.key_path), study.sop_classes)
    before = pydicom.dcmread(study.key_path).get_item("PatientName").value
    assert b"\x1b$B" in before
    assert before in source.to_bytes(made)


@pytest.mark.parametrize(("charset", "wrong"), [(None, "utf-8"), ("ISO_IR 192", "latin-1")])
def test_bytes_outside_the_stated_character_set_are_carried_over(tmp_path: Path, charset: str, wrong: str) -> None:
    name = "MÜLLER^ÄNNE".encode(wrong)
    study = phantom_study(tmp_path, SpecificCharacterSet=charset, PatientName="X" * len(name))
    path = study.key_path
    path.write_bytes(path.read_bytes().replace(b"X" * len(name), name))
    made = sr.build(study.result, source.read_header(path), study.sop_classes)
    assert name in source.to_bytes(made)


def test_patient_and_study_are_those_of_the_images(tmp_path: Path) -> None:
    found = rewritten(tmp_path)
    assert {keyword: str(found[keyword].value) for keyword in PATIENT} == PATIENT


@pytest.mark.parametrize("keyword", source.REQUIRED)
def test_what_the_images_lack_is_there_and_empty(tmp_path: Path, keyword: str) -> None:
    found = rewritten(tmp_path, **{keyword: None})
    assert keyword in found
    assert not found[keyword].value


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("PatientBirthDate", "1950-01-02x"), ("StudyTime", "half past"), ("PatientSex", "U"), ("PatientAge", "76")],
)
def test_illegal_values_are_not_carried_over(tmp_path: Path, keyword: str, value: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rewritten(tmp_path, **{keyword: value})
    assert not found.get(keyword)


def test_stamp_is_on_the_clock_that_the_images_state() -> None:
    header = Dataset()
    header.TimezoneOffsetFromUTC = "-0330"
    assert source.stamp(0.5, header) == ("19691231", "203000.500000")
    header.TimezoneOffsetFromUTC = "+0900"
    assert source.stamp(0, header) == ("19700101", "090000.000000")


def test_missing_file_is_named_by_its_hash(tmp_path: Path) -> None:
    with pytest.raises(
        FastichError, match=r"^abc: expected in the spool, found nothing; retention may have deleted it$"
    ):
        source.read_header(tmp_path / "abc")


def test_damaged_file_is_named_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"x" * 400)
    with pytest.raises(FastichError, match=r"^abc: cannot be read \(InvalidDicomError\)$"):
        source.read_header(tmp_path / "abc")


def test_added_text_is_ascii_on_one_line() -> None:
    assert source.ascii_text("naïve~\n\\ok\x1b") == "na?ve-?/ok?"
