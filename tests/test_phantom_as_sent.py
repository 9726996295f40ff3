"""Phantom studies as a scanner would send them are legal DICOM with the same pixels."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pydicom
import pytest
from peers import needs

from fastich import phantom
from fastich.dicom import group_studies, read_bytes, read_file
from fastich.phantom.as_sent import as_sent, studies_as_sent


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "data"
    phantom.generate(phantom.PhantomConfig(out=out, studies=2, size=64, seed=5))
    return out / "stage_2_train"


def test_every_uid_is_legal_and_pixels_are_the_same(slices: Path) -> None:
    path = sorted(slices.glob("*.dcm"))[0]
    made = as_sent(path.read_bytes(), number=7)
    data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(made))
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert data[name].value.is_valid
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
    assert data.InstanceNumber == 7
    np.testing.assert_array_equal(read_bytes(made, "x")[0].hu, read_file(path)[0].hu)
    assert as_sent(path.read_bytes(), number=7) == made


def test_studies_come_whole_and_in_order(slices: Path) -> None:
    studies = list(studies_as_sent(slices))
    assert len(studies) == 2
    for files in studies:
        headers = [read_bytes(data, str(at))[0].header for at, data in enumerate(files)]
        (study,) = group_studies(headers)
        assert [header.path for header in study.series[0].headers] == [str(at) for at in range(len(files))]


@needs("dciodvfy")
def test_dciodvfy_finds_no_error(slices: Path, tmp_path: Path) -> None:
    target = tmp_path / "slice.dcm"
    target.write_bytes(next(studies_as_sent(slices))[0])
    found = subprocess.run([shutil.which("dciodvfy") or "", target], capture_output=True, text=True, check=False)
    assert "CTImage" in found.stderr
    assert "Error" not in found.stderr
