"""The scan of plain data sets against pydicom's parser: where it answers, both say the same."""

from pathlib import Path
from typing import Any

import pytest
from dicom_data import EXPLICIT, IMPLICIT, ct_dataset, ct_file, enhanced_dataset, slice_hu, write
from hypothesis import given, settings
from hypothesis import strategies as st

from fastich import dicom_parse, dicom_scan
from fastich.dicom_header import TAGS
from fastich.dicom_parse import NESTED, Elements, parse, read_meta
from fastich.dicom_scan import PIXEL_DATA, scan
from fastich.errors import DicomError

TORTURE = Path(__file__).parents[2] / "shared" / "data" / "dicom_torture" / "files"
STORED = slice_hu(6, 8)
PLAIN = {
    syntax: ct_file(STORED, syntax, InstanceNumber=7, SpecificCharacterSet="ISO_IR 100")
    for syntax in (EXPLICIT, IMPLICIT)
}
ENHANCED = write(enhanced_dataset(slice_hu(6, 8).reshape(2, 3, 8), [0.0, 5.0], [-1024, -1024]))


def scanned(data: bytes, start: int, implicit: bool) -> Elements | None:
    found = scan(data, start, TAGS, NESTED, implicit=implicit)
    return None if found is None else Elements(found)


def facts(elements: Elements) -> dict[int, Any]:
    """Everything that can be asked of the elements without their sequences."""
    found = {}
    for tag in TAGS:
        raw = elements.raw(tag)
        plain = None if raw is None else bytes(raw)
        asked = (elements.texts(tag), elements.whole(tag)) if tag != PIXEL_DATA else None
        found[tag] = (tag in elements, plain, elements.has_undefined_length(tag), asked, elements.is_cut)
    return found


def disagreement(data: bytes) -> str | None:
    """How the scan differs from pydicom on ``data``; "not plain" where it leaves the file to pydicom."""
    meta = read_meta(data)
    if meta.transfer_syntax in (dicom_parse.EXPLICIT_BIG, dicom_parse.DEFLATED):
        return "not plain"
    implicit = not dicom_parse._spells_vr(data, meta.dataset_offset)
    ours = scanned(data, meta.dataset_offset, implicit)
    if ours is None:
        return "not plain"
    theirs = dicom_parse._parse_any(data, meta.dataset_offset, TAGS, implicit=implicit, little=True)
    return None if facts(ours) == facts(theirs) else f"{facts(ours)} is not {facts(theirs)}"


@pytest.mark.parametrize("syntax", PLAIN)
def test_plain_files_are_scanned_as_pydicom_reads_them(syntax: str) -> None:
    assert disagreement(PLAIN[syntax]) is None


@pytest.mark.parametrize("syntax", PLAIN)
def test_plain_files_never_reach_pydicom(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(dicom_parse, "_parse_any")
    data = PLAIN[syntax]
    meta = read_meta(data)
    assert parse(data, meta.dataset_offset, meta.transfer_syntax, TAGS).raw(PIXEL_DATA) == STORED.tobytes()


@pytest.mark.parametrize("syntax", PLAIN)
def test_a_file_cut_anywhere_is_scanned_as_pydicom_reads_it(syntax: str) -> None:
    data = PLAIN[syntax]
    start = read_meta(data).dataset_offset
    answers = [disagreement(data[:end]) for end in range(start + 8, len(data))]
    assert set(answers) == {None, "not plain"}


@settings(max_examples=400)
@given(
    syntax=st.sampled_from(sorted(PLAIN)),
    edits=st.lists(st.tuples(st.integers(0, 900), st.integers(0, 255)), min_size=1, max_size=6),
    end=st.integers(300, 2000),
)
def test_where_the_scan_answers_on_damaged_bytes_pydicom_says_the_same(
    syntax: str, edits: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(PLAIN[syntax])
    start = read_meta(bytes(data)).dataset_offset
    for place, value in edits:
        data[start + place % (len(data) - start)] = value
    assert disagreement(bytes(data[:end])) in (None, "not plain")


@pytest.mark.skipif(not TORTURE.is_dir(), reason="needs ../shared/data/dicom_torture")
def test_torture_set_is_scanned_as_pydicom_reads_it() -> None:
    num_plain = 0
    for path in sorted(TORTURE.iterdir()):
        try:
            read_meta(path.read_bytes())
        except DicomError:
            continue
        found = disagreement(path.read_bytes())
        assert found in (None, "not plain"), path.name
        num_plain += found is None
    assert num_plain > 30


def element(group: int, number: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One explicit little-endian element of a short or long VR."""
    size = len(value) if length is None else length
    head = vr + (b"\0\0" + size.to_bytes(4, "little") if vr in dicom_scan.LONG_VRS else size.to_bytes(2, "little"))
    return group.to_bytes(2, "little") + number.to_bytes(2, "little") + head + value


ROWS = element(0x28, 0x10, b"US", b"\x06\x00")


@pytest.mark.parametrize(
    "data",
    [
        element(0x08, 0x1140, b"SQ", b"", 0xFFFFFFFF) + ROWS,
        element(0x5200, 0x9229, b"SQ", b""),
        element(0x08, 0x60, b"Zz", b"CT"),
        element(0x08, 0x60, b"CS", b"CT", 4000),
        element(0x09, 0x01, b"UN", b"CT", 4000) + ROWS,
        element(0x08, 0x05, b"CS", b"ISO 2022 IR 87"),
        (0xFFFE).to_bytes(2, "little") + (0xE00D).to_bytes(2, "little") + b"US\0\0",
        element(0x7FE0, 0x10, b"OW", b"", 0xFFFFFFFF),
        element(0x09, 0x01, b"UN", b"")[:10],
        ROWS * (dicom_scan.MAX_TOP_LEVEL_ELEMENTS + 1),
    ],
    ids=["sequence", "frame groups", "VR", "past the end", "skipped past the end", "character set", "delimiter",
         "encapsulated", "half a head", "endless"],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_pydicom(data: bytes) -> None:
    assert scanned(data, 0, implicit=False) is None


def test_multi_frame_groups_are_left_to_pydicom() -> None:
    assert disagreement(ENHANCED) == "not plain"


def test_scan_stops_behind_the_pixel_data_and_keeps_the_last_of_doubled_elements() -> None:
    pixels = element(0x7FE0, 0x10, b"OW", b"\1\2")
    behind = element(0xFFFC, 0xFFFC, b"OB", b"\0", 0xFFFFFFF0)
    found = scanned(ROWS + element(0x28, 0x10, b"US", b"\x07\x00") + pixels + behind, 0, implicit=False)
    assert found is not None
    assert (found.whole(0x00280010), found.raw(PIXEL_DATA)) == (7, b"\1\2")


def test_pixel_data_are_a_view_and_not_a_copy() -> None:
    data = PLAIN[EXPLICIT]
    found = scan(data, read_meta(data).dataset_offset, TAGS, NESTED, implicit=False)
    assert found is not None
    value = found[PIXEL_DATA].value
    assert isinstance(value, memoryview)
    assert value.obj is data


def test_an_unknown_character_set_warns_of_nothing() -> None:
    data = write(ct_dataset(STORED, SpecificCharacterSet="ISO_IR 99999"))
    meta = read_meta(data)
    assert PIXEL_DATA in parse(data, meta.dataset_offset, meta.transfer_syntax, TAGS)
