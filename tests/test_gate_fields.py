import numpy as np
import pytest
from dicom_data import BIG_ENDIAN, DEFLATED, IMPLICIT, ct_dataset, ct_file, enhanced_dataset, slice_hu, write
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from fastich.gate_fields import NOTHING, GateFields, Uids, read_fields, read_uids

STORED = slice_hu(8, 8)


def fields(syntax: str = IMPLICIT, **changes: object) -> GateFields:
    return read_fields(ct_file(STORED, syntax, **changes))


def test_fields_of_a_full_header_are_read_in_every_uncompressed_syntax() -> None:
    values = {
        "BodyPartExamined": "HEAD",
        "StudyDescription": "CT HEAD W/O",
        "SeriesDescription": "5mm",
        "ProtocolName": "Routine",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "ConvolutionKernel": ["Hr38f", "3"],
        "Manufacturer": "ACME",
        "ManufacturerModelName": "One",
        "KVP": "120.0",
        "PatientAge": "045Y",
    }
    expected = GateFields(
        body_part="HEAD",
        study_description="CT HEAD W/O",
        series_description="5mm",
        protocol_name="Routine",
        image_type="ORIGINAL\\PRIMARY\\AXIAL",
        kernel="Hr38f\\3",
        manufacturer="ACME",
        model="One",
        kvp=120.0,
        age_years=45.0,
    )
    assert fields(**values) == fields(BIG_ENDIAN, **values) == expected


def test_bare_header_says_nothing() -> None:
    assert fields() == NOTHING


@pytest.mark.parametrize(
    ("values", "years"),
    [
        ({"PatientAge": "045Y"}, 45.0),
        ({"PatientAge": "006M"}, 0.5),
        ({"PatientAge": "002W"}, 14 / 365.25),
        ({"PatientAge": "003D"}, 3 / 365.25),
        ({"PatientAge": "000Y"}, None),
        ({"PatientAge": "old"}, None),
        ({"PatientBirthDate": "20000101", "StudyDate": "20250101"}, 25.0),
        ({"PatientBirthDate": "20000101", "SeriesDate": "20250101"}, 25.0),
        ({"PatientBirthDate": "20000101"}, None),
        ({"PatientBirthDate": "20260101", "StudyDate": "20250101"}, None),
        ({"PatientBirthDate": "2000", "StudyDate": "20250101"}, None),
    ],
)
def test_age_is_what_the_header_says_of_it(values: dict[str, str], years: float | None) -> None:
    found = fields(**values).age_years
    assert found == (years if years is None else pytest.approx(years, abs=0.01))


@pytest.mark.parametrize("kvp", ["0", "-1", "abc", ""])
def test_tube_voltage_that_is_none_is_absent(kvp: str) -> None:
    data = ct_file(STORED, KVP="999.9").replace(b"999.9 ", kvp.ljust(6).encode())
    assert read_fields(data).kvp is None


def test_contrast_is_a_name_or_a_sequence_that_is_not_empty() -> None:
    agent = Dataset()
    agent.CodeValue = "1"
    assert fields(ContrastBolusAgent="Iomeron 400").contrast_agent == "Iomeron 400"
    assert fields(ContrastBolusAgentSequence=Sequence([agent])).contrast_agent == "a sequence of agents"
    assert fields(ContrastBolusAgentSequence=Sequence([])).contrast_agent == ""


def test_enhanced_file_says_voltage_and_kernel_in_its_shared_group() -> None:
    dataset = enhanced_dataset(np.zeros((2, 8, 8), dtype=np.int16), [0.0, 5.0], [0, 0])
    x_ray, kernel = Dataset(), Dataset()
    x_ray.KVP, kernel.ConvolutionKernel = "100", "FC26"
    shared = dataset.SharedFunctionalGroupsSequence[0]
    shared.CTXRayDetailsSequence, shared.CTReconstructionSequence = Sequence([x_ray]), Sequence([kernel])
    found = read_fields(write(dataset))
    assert (found.kvp, found.kernel) == (100.0, "FC26")


def test_text_of_any_length_is_cut() -> None:
    assert len(fields(SeriesDescription="x" * 5000).series_description) == 200


def test_what_is_no_dicom_says_nothing() -> None:
    assert read_fields(b"") == read_fields(b"\x1f\x8b rubbish") == read_fields(bytes(500)) == NOTHING
    assert read_uids(b"") == Uids()


def test_deflated_files_are_not_inflated() -> None:
    data = ct_file(STORED, DEFLATED, KVP="120")
    assert read_fields(data) == NOTHING
    assert read_uids(data) == Uids(sop="ID_0000aee4b")


def test_uids_of_a_damaged_file_are_read_as_far_as_they_go() -> None:
    data = write(ct_dataset(STORED, StudyInstanceUID="1.2", SeriesInstanceUID="1.2.3", SOPInstanceUID="1.2.3.4"))
    assert read_uids(data[:-100]) == Uids(study="1.2", series="1.2.3", sop="1.2.3.4")
