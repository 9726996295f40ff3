import csv
import gzip
import os
import random
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import imagecodecs
import jpeg_ls
import numpy as np
import pytest
from dicom_data import (
    BIG_ENDIAN,
    CT_IMAGE,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    RLE,
    ct_dataset,
    ct_file,
    ct_hu_file,
    enhanced_dataset,
    slice_hu,
    write,
)
from numpy.typing import NDArray
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.sequence import Sequence

from fastich import dicom, dicom_parse
from fastich.dicom import Decoder, group_studies, iter_folder, read_bytes, read_file, read_folder
from fastich.errors import DicomError, FastichError
from fastich.types import Reject, RejectReason, Slice

TORTURE = Path(__file__).parents[2] / "shared" / "data" / "dicom_torture"
PLAIN_LAYOUT: dict[str, Any] = {
    "rows": 40,
    "columns": 48,
    "samples_per_pixel": 1,
    "bits_allocated": 16,
    "bits_stored": 16,
    "pixel_representation": 0,
    "photometric_interpretation": "MONOCHROME2",
}
STORED = np.asarray(slice_hu() + 1024, dtype=np.int16)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


def hu_of(data: bytes, decoder: Decoder | None = None) -> NDArray[np.int16]:
    (only,) = read_bytes(data, "a.dcm", decoder=decoder)
    assert only.hu.dtype == np.int16
    return only.hu


def reason_of(data: bytes, decoder: Decoder | None = None) -> RejectReason:
    with pytest.raises(DicomError) as caught:
        read_bytes(data, "a.dcm", decoder=decoder)
    assert "\n" not in caught.value.detail
    assert "SECRET" not in caught.value.detail
    return caught.value.reason


# --- the two encodings of the RSNA data, and the wrap


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_twelve_bit_slice_with_illegal_uids_reads_without_warning(syntax: str) -> None:
    stored = STORED.astype(np.uint16)
    window = {"WindowCenter": ["00036", "00036"], "WindowWidth": ["00080", "00080"]}
    data = ct_file(stored, syntax, BitsStored=12, HighBit=11, SOPClassUID=None, **window)
    (found,) = read_bytes(data, "below/a.dcm")
    assert np.array_equal(found.hu, slice_hu())
    header = found.header
    assert (header.sop_uid, header.study_uid, header.series_uid) == ("ID_0000aee4b", "ID_study", "ID_series")
    assert (header.patient_id, header.path, header.frame) == ("ID_patient", "below/a.dcm", 0)
    assert (header.rows, header.columns, header.pixel_spacing_mm) == (40, 48, (0.5, 0.25))
    assert header.position_mm == (-125.0, -110.5, 33.25)
    assert header.orientation == (1, 0, 0, 0, 1, 0)
    assert (header.window, header.encoding, header.bits_stored, header.signed) == ((36, 80), "unsigned12", 12, False)
    assert (header.thickness_mm, header.instance_number, header.header_tilt_deg) == (None, None, None)
    assert header.transfer_syntax == syntax


def test_implicit_file_without_group_length_reads() -> None:
    data = ct_file(STORED, IMPLICIT)
    start = data.index(b"\x02\x00\x00\x00UL\x04\x00")
    assert np.array_equal(hu_of(data[:start] + data[start + 12 :]), slice_hu())


def test_values_beyond_int16_are_clipped_not_wrapped() -> None:
    stored = np.asarray([[-31788, 31573], [-2000, 8197]], dtype=np.int16)
    assert hu_of(ct_file(stored)).tolist() == [[-32768, 30549], [-3024, 7173]]


@pytest.mark.parametrize("intercept", ["0", "1", "-1"])
def test_wrapped_twelve_bit_values_are_unwrapped(intercept: str) -> None:
    hu = np.asarray([[-1000, -1, 0, 40, 3000]], dtype=np.int32)
    stored = (hu % 4096).astype(np.uint16)
    (found,) = read_bytes(ct_file(stored, BitsStored=12, HighBit=11, RescaleIntercept=intercept), "a")
    assert found.hu.tolist() == hu.tolist()
    assert found.header.encoding == "wrapped12"


def test_bits_above_bits_stored_are_masked_and_the_sign_extended() -> None:
    stored = np.asarray([[-5, 5], [-2048, 2047]], dtype=np.int16)
    dirty = (stored.astype(np.uint16) & 0x0FFF) | np.uint16(0x5000)
    data = ct_file(dirty, BitsStored=12, HighBit=11, PixelRepresentation=1, RescaleIntercept="0")
    assert hu_of(data).tolist() == stored.tolist()


# --- rescale and window


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"RescaleIntercept": "-1024.000000"}, -24),
        ({"RescaleSlope": "2.5", "RescaleIntercept": "-1000.25"}, 1500),
        ({"RescaleSlope": None}, -24),
        ({"RescaleType": "HU"}, -24),
        ({"PhotometricInterpretation": "MONOCHROME1"}, -24),
    ],
)
def test_rescale_gives_hounsfield_units(changes: dict[str, Any], expected: int) -> None:
    assert hu_of(ct_file(np.full((2, 2), 1000, np.int16), **changes)).tolist() == [[expected] * 2] * 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"RescaleSlope": "0"}, RejectReason.BAD_RESCALE),
        ({"RescaleSlope": b"NaN "}, RejectReason.BAD_RESCALE),
        ({"RescaleSlope": b"abc "}, RejectReason.BAD_RESCALE),
        ({"RescaleIntercept": b"inf "}, RejectReason.BAD_RESCALE),
        ({"RescaleIntercept": b"-1024\\0 "}, RejectReason.BAD_RESCALE),
        ({"RescaleIntercept": None}, RejectReason.BAD_RESCALE),
        ({"RescaleIntercept": None, "RescaleSlope": None}, RejectReason.BAD_RESCALE),
        ({"RescaleType": "US"}, RejectReason.NOT_HOUNSFIELD),
    ],
)
def test_bad_rescale_has_its_reason(changes: dict[str, Any], reason: RejectReason) -> None:
    raw = {key: value for key, value in changes.items() if isinstance(value, bytes)}
    data = ct_file(STORED, **{key: "12345678" if key in raw else value for key, value in changes.items()})
    for value in raw.values():
        data = data.replace(b"12345678", value.ljust(8))
    assert reason_of(data) is reason


@pytest.mark.parametrize("width", ["0", "-5", None])
def test_window_without_width_is_no_window(width: str | None) -> None:
    (found,) = read_bytes(ct_file(STORED, WindowWidth=width), "a")
    assert found.header.window is None


# --- what is not a CT slice


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Modality": "MR"}, RejectReason.NOT_CT),
        ({"Modality": None}, RejectReason.NOT_CT),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}, RejectReason.NOT_CT),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, RejectReason.DERIVED),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, RejectReason.DERIVED),
        ({"ImageType": ["ORIGINAL", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, RejectReason.DERIVED),
        ({"BurnedInAnnotation": "YES"}, RejectReason.DERIVED),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, RejectReason.LOCALIZER),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, RejectReason.COLOUR),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, RejectReason.COLOUR),
        ({"PixelData": None}, RejectReason.NO_PIXELS),
        ({"PixelData": None, "FloatPixelData": b"\0" * 16}, RejectReason.UNSUPPORTED_PIXELS),
        ({"BitsAllocated": 32}, RejectReason.UNSUPPORTED_PIXELS),
        ({"BitsStored": 17, "HighBit": 16}, RejectReason.UNSUPPORTED_PIXELS),
        ({"BitsStored": 12, "HighBit": 15}, RejectReason.UNSUPPORTED_PIXELS),
        ({"PixelRepresentation": None}, RejectReason.DAMAGED_HEADER),
        ({"Rows": None}, RejectReason.DAMAGED_HEADER),
        ({"Columns": 0}, RejectReason.DAMAGED_HEADER),
        ({"SeriesInstanceUID": None}, RejectReason.DAMAGED_HEADER),
        ({"Rows": 65535, "Columns": 65535}, RejectReason.TOO_LARGE),
        ({"NumberOfFrames": "2000000000"}, RejectReason.TOO_LARGE),
        ({"NumberOfFrames": "2"}, RejectReason.UNSUPPORTED_PIXELS),
    ],
)
def test_what_is_no_usable_slice_has_its_reason(changes: dict[str, Any], reason: RejectReason) -> None:
    assert reason_of(ct_file(STORED, **changes)) is reason


def test_reformatted_ct_is_used() -> None:
    data = ct_hu_file(slice_hu(), ImageType=["DERIVED", "SECONDARY", "AXIAL", "MPR"], BurnedInAnnotation="NO")
    assert np.array_equal(hu_of(data), slice_hu())


# --- containers


def as_if(data: bytes, syntax: str) -> bytes:
    """``data``, written in explicit little endian, with another transfer syntax UID in its meta."""
    plain = b"UI\x14\0" + EXPLICIT.encode() + b"\0"
    assert plain in data
    other = syntax.encode() + b"\0" * (len(syntax) % 2)
    return data.replace(plain, b"UI" + len(other).to_bytes(2, "little") + other, 1)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", RejectReason.EMPTY_FILE),
        (b"x", RejectReason.NOT_DICOM),
        (b"a text of some length" * 20, RejectReason.NOT_DICOM),
        (gzip.compress(b"a" * 4000), RejectReason.NOT_DICOM),
        (b"\0" * 128 + b"DICM", RejectReason.NO_PIXELS),
        (b"\0" * 128 + b"DICM\x02\x00\x10\x00UI\xff\xff", RejectReason.DAMAGED_HEADER),
        (ct_file(STORED, SOPClassUID="1.2.840.10008.1.3.10"), RejectReason.DICOMDIR),
        (ct_file(STORED)[:700], RejectReason.DAMAGED_PIXELS),
        (ct_file(STORED, JPEG + "100", [b"video"]), RejectReason.UNSUPPORTED_SYNTAX),
        (as_if(ct_file(STORED), JPEG + "70"), RejectReason.DAMAGED_PIXELS),
    ],
)
def test_container_faults_have_their_reason(data: bytes, reason: RejectReason) -> None:
    assert reason_of(data) is reason


def test_bare_data_set_without_preamble_and_meta_reads() -> None:
    for syntax in (EXPLICIT, IMPLICIT):
        data = ct_file(STORED, syntax)
        start = data.index(b"\x08\x00\x16\x00")
        assert np.array_equal(hu_of(data[start:]), slice_hu())


def test_nested_sequences_are_a_damaged_header() -> None:
    opened = b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    data = ct_file(STORED)
    start = data.index(b"\x10\x00\x10\x00PN")
    assert reason_of(data[:start] + opened * 2000 + data[start:]) is RejectReason.DAMAGED_HEADER


def test_endless_header_is_too_large() -> None:
    data = ct_file(STORED)
    start = data.index(b"\x10\x00\x10\x00PN")
    assert reason_of(data[:start] + b"\x09\x00\x10\x10LO\0\0" * 30_000 + data[start:]) is RejectReason.TOO_LARGE


@pytest.mark.parametrize("kind", ["folder", "fifo", "dangling"])
def test_what_is_no_regular_file_is_unreadable(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(DicomError) as caught:
        read_file(path)
    assert caught.value.reason is RejectReason.UNREADABLE


# --- pixel data


@pytest.mark.parametrize(
    ("change", "reason"),
    [(-2, RejectReason.DAMAGED_PIXELS), (96, RejectReason.DAMAGED_PIXELS), (94, None), (0, None)],
)
def test_length_of_pixel_data_is_compared(change: int, reason: RejectReason | None) -> None:
    raw = (STORED.tobytes() + b"\x07" * 96)[: STORED.nbytes + change]
    data = ct_file(STORED, PixelData=raw)
    if reason is None:
        assert np.array_equal(hu_of(data), slice_hu())
    else:
        with pytest.raises(DicomError, match=f"{len(raw)} bytes of pixel data, expected {STORED.nbytes}"):
            read_bytes(data, "a")


def test_file_cut_inside_its_pixel_data_names_found_and_expected() -> None:
    with pytest.raises(DicomError, match=r"damaged pixels: \d+ bytes of pixel data, expected 3840"):
        read_bytes(ct_file(STORED)[:-400], "ID_6431af929.dcm")


def encoded(syntax: str, stored: NDArray[Any]) -> bytes:
    """One frame of ``stored`` in a compressed syntax, lossless."""
    wide = stored.view(np.uint16)
    if syntax == RLE:
        return bytes(RLELosslessEncoder.encode(wide, number_of_frames=1, **PLAIN_LAYOUT))
    if syntax == JPEG + "80":
        return bytes(jpeg_ls.encode_buffer(wide.tobytes(), 40, 48, 1, 16))
    if syntax in (JPEG + "90", JPEG + "91"):
        return bytes(encode_array(stored, bits_stored=16))
    if syntax == JPEG + "201":
        return bytes(imagecodecs.htj2k_encode(wide, reversible=True))
    return bytes(imagecodecs.jpeg8_encode(wide, lossless=True, bitspersample=16))


COMPRESSED = [RLE, *(JPEG + number for number in ("57", "70", "80", "90", "201"))]


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_compressed_slice_equals_the_plain_one(syntax: str, decoder: Decoder) -> None:
    stored = STORED - np.int16(3000)  # negative values too
    data = ct_file(stored, syntax, [encoded(syntax, stored)])
    assert np.array_equal(hu_of(data, decoder), hu_of(ct_file(stored)))


def test_big_endian_and_deflated_slices_equal_the_plain_one() -> None:
    assert np.array_equal(hu_of(ct_file(STORED, BIG_ENDIAN, PixelData=STORED.astype(">i2").tobytes())), slice_hu())
    assert np.array_equal(hu_of(ct_file(STORED, DEFLATED)), slice_hu())


def test_lossy_jpeg_is_close(decoder: Decoder) -> None:
    stored = STORED.astype(np.uint16)
    stream = imagecodecs.jpeg8_encode(stored, level=98, bitspersample=12)
    data = ct_file(stored, JPEG + "51", [stream], BitsStored=12, HighBit=11)
    assert np.abs(hu_of(data, decoder).astype(int) - slice_hu()).max() < 40


def test_j2k_whose_sign_disagrees_with_the_header_follows_the_bits(decoder: Decoder) -> None:
    stored = np.asarray(slice_hu() // 4, dtype=np.int16)
    stream = encode_array((stored & 0x1FFF).astype(np.uint16), bits_stored=13)
    data = ct_file(stored, JPEG + "90", [bytes(stream)], BitsStored=13, HighBit=12, RescaleIntercept="0")
    assert np.array_equal(hu_of(data, decoder), stored)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("tail", [b"", b"\xff\xd9"])
def test_cut_codestream_is_damaged_pixels(syntax: str, tail: bytes, decoder: Decoder) -> None:
    stream = encoded(syntax, STORED)
    cut = stream[: len(stream) * 3 // 4] + tail
    assert reason_of(ct_file(STORED, syntax, [cut]), decoder) is RejectReason.DAMAGED_PIXELS


def test_lossy_stream_of_fewer_bits_than_stored_is_damaged_pixels(decoder: Decoder) -> None:
    stream = imagecodecs.jpeg8_encode((STORED.astype(np.uint16) >> 4).astype(np.uint8), level=98)
    data = ct_file(STORED.astype(np.uint16), JPEG + "50", [stream], BitsStored=12, HighBit=11)
    with pytest.raises(DicomError, match=r"codestream holds 40 x 48 x 1, 8 bit; the header says .* 12 of 16 bit"):
        read_bytes(data, "a", decoder=decoder)


def test_padding_behind_the_end_marker_is_no_damage(decoder: Decoder) -> None:
    data = ct_file(STORED, JPEG + "70", [encoded(JPEG + "70", STORED) + b" " * 100])
    assert np.array_equal(hu_of(data, decoder), slice_hu())


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_codestream_of_another_size_is_damaged_pixels(syntax: str, decoder: Decoder) -> None:
    data = ct_file(STORED, syntax, [encoded(syntax, STORED)], Rows=48, Columns=48)
    assert reason_of(data, decoder) is RejectReason.DAMAGED_PIXELS


def test_compressed_file_cut_inside_its_pixels_is_damaged_pixels(decoder: Decoder) -> None:
    data = ct_file(STORED, JPEG + "70", [encoded(JPEG + "70", STORED)])
    assert reason_of(data[:-40], decoder) is RejectReason.DAMAGED_PIXELS


def test_deflated_bomb_is_refused_before_it_fills_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_parse, "MAX_INFLATED_BYTES", 1000)
    with pytest.raises(DicomError, match=r"too large: .* inflate to more than 1000"):
        read_bytes(ct_file(STORED, DEFLATED), "a")


def test_deflated_data_can_be_refused_and_its_damage_is_named() -> None:
    data = ct_file(STORED, DEFLATED)
    with pytest.raises(DicomError, match="not taken from a network"):
        read_bytes(data, "a", allow_deflated=False)
    with pytest.raises(DicomError, match="deflated data set is cut"):
        read_bytes(data[:-200], "a")


# --- multi-frame


def test_enhanced_multi_frame_gives_a_slice_a_frame_with_its_own_geometry() -> None:
    stored = np.stack([STORED, STORED + 10, STORED + 20])
    data = write(enhanced_dataset(stored, [0.0, 2.5, 5.0], [-1024, -1034, -1044]))
    slices = read_bytes(data, "e.dcm")
    assert [found.header.sop_uid for found in slices] == ["ID_0000aee4b", "ID_0000aee4b#1", "ID_0000aee4b#2"]
    assert [found.header.frame for found in slices] == [0, 1, 2]
    assert [found.header.position_mm for found in slices] == [(0, 0, 0), (0, 0, 2.5), (0, 0, 5.0)]
    assert all(np.array_equal(found.hu, slice_hu()) for found in slices)
    assert slices[1].header.thickness_mm == 2.5
    assert slices[1].header.orientation == (1, 0, 0, 0, 1, 0)
    assert group_studies(found.header for found in slices)[0].series[0].geometry.spacing_mm == 2.5


def test_enhanced_file_with_a_missing_frame_group_is_a_damaged_header() -> None:
    dataset = enhanced_dataset(np.stack([STORED, STORED]), [0.0, 2.5], [-1024, -1024])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(list(dataset.PerFrameFunctionalGroupsSequence)[:1])
    assert reason_of(write(dataset)) is RejectReason.DAMAGED_HEADER


def test_enhanced_frame_of_another_kind_is_refused() -> None:
    dataset = enhanced_dataset(np.stack([STORED, STORED]), [0.0, 2.5], [-1024, -1024])
    kind = Dataset()
    kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    dataset.PerFrameFunctionalGroupsSequence[1].CTImageFrameTypeSequence = Sequence([kind])
    assert reason_of(write(dataset)) is RejectReason.LOCALIZER


# --- folders


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def test_folder_yields_slices_and_reasons_in_path_order(tmp_path: Path) -> None:
    first = ct_hu_file(slice_hu())
    fill(
        tmp_path,
        {
            "b/1.dcm": first,
            "b/2.dcm": ct_hu_file(slice_hu(), StudyInstanceUID="other"),
            "b/3.dcm": ct_hu_file(slice_hu(seed=1)),
            "a/z.dcm": ct_hu_file(slice_hu(), SOPInstanceUID="../../x"),
            "c.txt": b"hello",
        },
    )
    found = list(read_folder(tmp_path))
    assert [x.header.path if isinstance(x, Slice) else x.path for x in found] == [
        "a/z.dcm",
        "b/1.dcm",
        "b/2.dcm",
        "b/3.dcm",
        "c.txt",
    ]
    reasons = [x.reason if isinstance(x, Reject) else None for x in found]
    assert reasons == [None, None, RejectReason.DUPLICATE, RejectReason.CONFLICTING_DUPLICATE, RejectReason.NOT_DICOM]
    assert isinstance(found[3], Reject)
    assert "1.dcm" in found[3].detail


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    data = tmp_path / "data"
    fill(data, {"a.dcm": ct_hu_file(slice_hu()), os.fsdecode(b"\xff.txt"): b"odd name"})
    looped = tmp_path / "looped"
    looped.mkdir()
    (looped / "one").symlink_to(data)
    (looped / "two").symlink_to(looped)
    found = list(read_folder(looped))
    assert [x.header.path if isinstance(x, Slice) else x.path for x in found] == ["one/a.dcm", "one/\\xff.txt"]


def test_paths_that_do_not_exist_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(FastichError, match="expected a folder, found nothing"):
        dicom.find_files(tmp_path / "no")
    with pytest.raises(FastichError, match="expected a file or folder, found nothing"):
        list(iter_folder([tmp_path / "no"]))


def test_studies_are_grouped_and_a_mixed_series_is_split(tmp_path: Path) -> None:
    def file(index: int, **changes: Any) -> bytes:
        z = {"ImagePositionPatient": [0, 0, 5.0 * (9 - index)]}
        return ct_hu_file(slice_hu(seed=index), SOPInstanceUID=f"i{index}", **{**z, **changes})

    files = {f"{index}.dcm": file(index) for index in range(4)}
    files["4.dcm"] = file(4, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    files["5.dcm"] = file(5, PatientID="someone else")
    fill(tmp_path, files)
    headers = [x.header for x in read_folder(tmp_path) if isinstance(x, Slice)]
    studies = group_studies(headers)
    assert [(s.patient_id, [len(part.headers) for part in s.series]) for s in studies] == [
        ("ID_patient", [4, 1]),
        ("someone else", [1]),
    ]
    axial = studies[0].series[0]
    assert [header.sop_uid for header in axial.headers] == ["i3", "i2", "i1", "i0"]
    assert axial.geometry.spacing_mm == 5.0
    assert "split into 2" in axial.geometry.problems[0]


# --- robustness


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, JPEG + "70", JPEG + "90", JPEG + "80", RLE])
def test_damaged_bytes_end_in_a_reason_or_a_slice(syntax: str, decoder: Decoder) -> None:
    rng, reasons = random.Random(7), set[RejectReason]()
    whole = ct_file(STORED, syntax, [encoded(syntax, STORED)] if syntax in COMPRESSED else None)
    for attempt in range(80):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            data[rng.randrange(len(data) if attempt % 2 else 900)] = rng.choice([0, 255, rng.randrange(256)])
        cut = rng.randrange(len(data)) if attempt % 3 == 0 else len(data)
        try:
            slices = read_bytes(bytes(data[:cut]), "a", decoder=decoder)
        except DicomError as error:
            reasons.add(error.reason)
        else:
            assert all(found.hu.shape == (found.header.rows, found.header.columns) for found in slices)
    assert len(reasons) > 2
    assert RejectReason.DECODER_FAILED not in reasons


def test_quiet_restores_the_filters_when_the_last_thread_leaves() -> None:
    before = list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with dicom_parse.quiet():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    with dicom_parse.quiet():
        leave.set()
        thread.join()
        assert list(warnings.filters) != before
    assert list(warnings.filters) == before


def test_reading_in_threads_gives_the_same_slices() -> None:
    data = ct_hu_file(slice_hu())
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(i for i in range(40) if not np.array_equal(hu_of(data), slice_hu()))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- real files


@pytest.mark.skipif(not TORTURE.is_dir(), reason="needs ../shared/data/dicom_torture")
def test_torture_set_gives_equal_pixels_or_a_reason_in_a_minute(decoder: Decoder) -> None:
    started = time.monotonic()
    groups: dict[str, list[NDArray[np.int16]]] = defaultdict(list)
    reasons: Counter[RejectReason] = Counter()
    with (TORTURE / "MANIFEST.csv").open(newline="", encoding="utf-8") as table:
        rows = list(csv.DictReader(table))
    for row in rows:
        try:
            (found,) = read_file(TORTURE / "files" / row["file"], decoder=decoder)
        except DicomError as error:
            reasons[error.reason] += 1
            continue
        if row["pixel_sha1"]:
            groups[row["pixel_sha1"]].append(found.hu)
            low, high = (float(row[end]) * float(row["slope"]) + float(row["intercept"]) for end in ("min", "max"))
            tolerance = float(row["slope"]) if "lossy" in row["category"] else 0  # inverse DCTs differ by one level
            assert found.hu.min() == pytest.approx(np.rint(low), abs=tolerance), row["file"]
            assert found.hu.max() == pytest.approx(np.rint(high), abs=tolerance), row["file"]
    assert len(rows) == 106
    assert sum(map(len, groups.values())) + reasons.total() >= 104
    assert len(groups["30de80f6adfa"]) == 10
    assert len(groups["574c847be1b0"]) == 7
    assert all(np.array_equal(members[0], other) for members in groups.values() for other in members)
    assert RejectReason.DECODER_FAILED not in reasons
    assert reasons[RejectReason.LOCALIZER] == 3
    assert reasons[RejectReason.DICOMDIR] == 4
    assert time.monotonic() - started < 60


def test_absent_transfer_syntax_is_inferred() -> None:
    dataset = ct_dataset(STORED)
    data = write(dataset)
    start, stop = data.index(b"\x02\x00\x10\x00UI"), data.index(b"\x02\x00\x12\x00UI")
    (found,) = read_bytes(data[:start] + data[stop:], "a")
    assert found.header.transfer_syntax == EXPLICIT
    assert dataset.SOPClassUID == CT_IMAGE
