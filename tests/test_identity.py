import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from dicom_data import EXPLICIT, IMPLICIT, JPEG, ct_dataset, slice_hu, write
from serve_data import CT, ct_bytes, study_uid, uid

from fastich.dicom_parse import decode_words
from fastich.serve import identity
from fastich.serve.entities import Refused
from fastich.serve.identity import Identity, identify, is_uid
from fastich.serve.spool import IngestRefused

UIDS = {"SOPInstanceUID": uid(1), "StudyInstanceUID": study_uid(1), "SeriesInstanceUID": "2.25.9000"}


def found(tmp_path: Path, data: bytes) -> Identity:
    path = tmp_path / "file"
    path.write_bytes(data)
    return identify(path)


def test_identity_is_the_uids_and_hashes_of_the_file(tmp_path: Path) -> None:
    data = ct_bytes(1)
    one = found(tmp_path, data)
    assert (one.sop_uid, one.sop_class_uid, one.study_uid, one.series_uid) == (uid(1), CT, study_uid(1), "2.25.9000")
    assert (one.size_bytes, one.object_name) == (len(data), hashlib.sha256(data).hexdigest())
    pixels = (slice_hu() + 1024).astype(np.int16).tobytes()
    assert len(one.pixel_sha256) == 64
    assert data.endswith(pixels)


def test_file_meta_is_no_part_of_the_content(tmp_path: Path) -> None:
    data = ct_bytes(1)
    moved = bytes([1]) * 128 + data[128:]
    first, second = found(tmp_path, data), found(tmp_path, moved)
    assert first.content_sha256 == second.content_sha256
    assert first.object_name != second.object_name


def test_same_pixels_in_another_encoding_have_the_same_pixel_hash(tmp_path: Path) -> None:
    stored = (slice_hu() + 1024).astype(np.int16)
    one, other = (found(tmp_path, write(ct_dataset(stored, **UIDS), syntax)) for syntax in (EXPLICIT, IMPLICIT))
    assert one.pixel_sha256 == other.pixel_sha256
    assert one.content_sha256 != other.content_sha256


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({"PatientName": "RIGHT^NAME"}, True),
        ({"RescaleSlope": "1.0"}, True),
        ({"RescaleSlope": "2"}, False),
        ({"RescaleIntercept": "-1000"}, False),
        ({"ImagePositionPatient": [0, 0, 99]}, False),
        ({"ImageOrientationPatient": [1, 0, 0, 0, -1, 0]}, False),
        ({"PixelSpacing": [2, 2]}, False),
        ({"PhotometricInterpretation": "MONOCHROME1"}, False),
        ({"PixelRepresentation": 0}, False),
    ],
)
def test_image_is_its_pixels_their_hounsfield_units_and_their_place(
    tmp_path: Path, changes: dict[str, Any], is_same: bool
) -> None:
    first = found(tmp_path, ct_bytes(1, RescaleSlope="1"))
    second = found(tmp_path, ct_bytes(1, **{"RescaleSlope": "1"} | changes))
    assert (first.pixel_sha256 == second.pixel_sha256) is is_same
    assert first.pixel_sha256


def test_object_whose_geometry_stands_in_sequences_has_no_pixel_hash(tmp_path: Path) -> None:
    assert found(tmp_path, ct_bytes(1, SharedFunctionalGroupsSequence=[pydicom.Dataset()])).pixel_sha256 == ""


def test_compressed_object_is_identified_without_decoding_it(tmp_path: Path) -> None:
    data = write(ct_dataset(slice_hu(), **UIDS), JPEG + "70", [b"no JPEG at all"])
    assert found(tmp_path, data).sop_uid == uid(1)
    assert len(found(tmp_path, data).pixel_sha256) == 64


def test_object_without_pixels_has_no_pixel_hash(tmp_path: Path) -> None:
    assert found(tmp_path, ct_bytes(1, PixelData=None)).pixel_sha256 == ""


def test_only_the_head_of_a_large_object_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "HEAD_BYTES", 1500)
    data = ct_bytes(1)
    one = found(tmp_path, data)
    assert (one.sop_uid, one.size_bytes, one.pixel_sha256) == (uid(1), len(data), "")
    assert one.object_name == hashlib.sha256(data).hexdigest()


def test_object_that_is_cut_in_its_pixels_is_taken_and_one_cut_in_its_uids_is_not(tmp_path: Path) -> None:
    data = ct_bytes(1)
    assert found(tmp_path, data[:-100]).sop_uid == uid(1)
    at = data.index(b"\x20\x00\x0d\x00")
    with pytest.raises(IngestRefused, match="StudyInstanceUID: expected 1 to 64 digits and dots, found nothing") as no:
        found(tmp_path, data[:at])
    assert no.value.reason is Refused.INVALID_UID


@pytest.mark.parametrize("syntax", sorted(identity.FORBIDDEN))
def test_every_deflated_syntax_is_refused(tmp_path: Path, syntax: str) -> None:
    data = ct_bytes(1)
    old = b"UI\x14\x001.2.840.10008.1.2.1\0"
    raw = syntax.encode() + b"\0" * (len(syntax) % 2)
    with pytest.raises(IngestRefused, match="deflated") as no:
        found(tmp_path, data.replace(old, b"UI" + len(raw).to_bytes(2, "little") + raw, 1))
    assert no.value.reason is Refused.FORBIDDEN_SYNTAX


def test_dicomdir_is_refused(tmp_path: Path) -> None:
    data = ct_bytes(1).replace(b"1.2.840.10008.5.1.4.1.1.2\0", b"1.2.840.10008.1.3.10\0\0\0\0\0\0", 1)
    with pytest.raises(IngestRefused, match="a DICOMDIR index is no object of a study"):
        found(tmp_path, data)


@pytest.mark.parametrize("text", ["1", "0.0", "2.25.0", "1." + "2" * 62])
def test_legal_uids(text: str) -> None:
    assert is_uid(text)


@pytest.mark.parametrize("text", ["", ".", "1.", ".1", "1..2", "01", "1.00", "1.2\n", "1.2 ", "a", "1." + "2" * 63])
def test_illegal_uids(text: str) -> None:
    assert not is_uid(text)


@pytest.mark.parametrize(
    ("raw", "character_sets", "expected"),
    [
        (b"Smith^A", (), "Smith^A"),
        (b"Smith^A", ("",), "Smith^A"),
        ("Müller".encode("latin-1"), ("ISO_IR 100",), "Müller"),
        ("Иванов".encode("iso8859-5"), ("ISO_IR 144",), "Иванов"),
        ("王^小東".encode("gb18030"), ("GB18030",), "王^小東"),
        (b"Yamada=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B", ("", "ISO 2022 IR 87"), "Yamada=山田^太郎"),
        ("Müller".encode("latin-1"), ("NONSENSE",), "Müller"),
        (b"\xff\xfe", ("ISO_IR 192",), "\ufffd\ufffd"),
    ],
)
def test_names_are_read_in_their_character_set(raw: bytes, character_sets: tuple[str, ...], expected: str) -> None:
    assert decode_words(raw, character_sets) == expected
