"""Records straight from a file's stored values against the long way: slices in HU, then records."""

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_data import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, ct_file, enhanced_dataset, slice_hu, write

from fastich.dicom import Decoder, read_file, read_records
from fastich.errors import DicomError
from fastich.hu import to_record
from fastich.types import RejectReason

TORTURE = Path(__file__).parents[2] / "shared" / "data" / "dicom_torture" / "files"
STORED = slice_hu(12, 16)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder() as made:
        yield made


def both_ways(path: Path, decoder: Decoder) -> tuple[Any, Any]:
    """What both ways say of a file: shapes and bytes of each frame, or reason and detail."""

    def outcome(read: Any) -> Any:
        try:
            return [(frame.dtype, frame.shape, frame.tobytes()) for frame in read()]
        except DicomError as error:
            return error.reason, error.detail

    short = outcome(lambda: read_records(str(path), decoder))
    return short, outcome(lambda: [to_record(one.hu) for one in read_file(path, decoder=decoder)])


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"RescaleIntercept": "0"},
        {"RescaleIntercept": "-32000"},
        {"RescaleSlope": "0.5", "RescaleIntercept": "-1024.5"},
        {"RescaleIntercept": None},
        {"RescaleType": "US"},
        {"StudyInstanceUID": None},
        {"Modality": "MR"},
        {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"FrameType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        {"PixelData": b"\0\0"},
    ],
    ids=lambda changes: "-".join(changes) or "usual",
)
def test_records_and_reasons_are_those_of_the_long_way(
    syntax: str, changes: dict[str, Any], tmp_path: Path, decoder: Decoder
) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(ct_file(STORED, syntax, **changes))
    short, long = both_ways(path, decoder)
    assert short == long


def test_wrapped_and_multi_frame_files_give_the_records_of_the_long_way(tmp_path: Path, decoder: Decoder) -> None:
    wrapped = ct_file((STORED % 4096).astype(np.uint16), BitsStored=12, HighBit=11, RescaleIntercept="0")
    enhanced = write(enhanced_dataset(STORED.reshape(2, 6, 16), [0.0, 5.0], [-1024, -1000]))
    for data, num_frames in ((wrapped, 1), (enhanced, 2)):
        (tmp_path / "a.dcm").write_bytes(data)
        short, long = both_ways(tmp_path / "a.dcm", decoder)
        assert short == long
        assert len(short) == num_frames


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT])
def test_damaged_bytes_give_the_record_or_reason_of_the_long_way(syntax: str, tmp_path: Path, decoder: Decoder) -> None:
    rng, seen = random.Random(11), Counter[str]()
    whole, path = ct_file(STORED, syntax), tmp_path / "a.dcm"
    for attempt in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(130, 900)] = rng.choice([0, 255, 0x20, 0x30, rng.randrange(256)])
        path.write_bytes(data[: rng.randrange(len(data)) if attempt % 3 == 0 else len(data)])
        short, long = both_ways(path, decoder)
        assert short == long
        seen["slice" if isinstance(short, list) else short[0].value] += 1
    assert len(seen) > 3
    assert seen["slice"] > 20


@pytest.mark.skipif(not TORTURE.is_dir(), reason="needs ../shared/data/dicom_torture")
def test_torture_set_gives_the_records_or_reasons_of_the_long_way(decoder: Decoder) -> None:
    num_read = 0
    for path in sorted(TORTURE.iterdir()):
        short, long = both_ways(path, decoder)
        assert short == long, path.name
        num_read += isinstance(short, list)
    assert num_read > 30


def test_a_file_that_is_not_there_has_its_reason(tmp_path: Path, decoder: Decoder) -> None:
    with pytest.raises(DicomError, match="FileNotFoundError") as caught:
        read_records(str(tmp_path / "none.dcm"), decoder)
    assert caught.value.reason is RejectReason.UNREADABLE
