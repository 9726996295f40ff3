import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dicom_data import JPEG, ct_file, ct_hu_file, enhanced_dataset, slice_hu, write

from fastich import inspect
from fastich.errors import FastichError, UsageError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def make_study(folder: Path, places_mm: list[float]) -> None:
    for index, z in enumerate(places_mm):
        data = ct_hu_file(
            slice_hu(seed=index),
            SOPInstanceUID=f"i{index}",
            ImagePositionPatient=[0, 0, z],
            SliceThickness=5 if index < 3 else 7,
        )
        (folder / f"{index}.dcm").write_bytes(data)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastich.inspect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_json_counts_every_file_once_and_describes_the_series(tmp_path: Path) -> None:
    make_study(tmp_path, [0, 5, 10, 17, 24])
    (tmp_path / "copy.dcm").write_bytes((tmp_path / "0.dcm").read_bytes())
    (tmp_path / "mr.dcm").write_bytes(ct_hu_file(slice_hu(), Modality="MR"))
    found = inspect.as_json(inspect.inspect_folder(tmp_path))
    assert (found["num_files"], found["num_used"], len(found["rejects"])) == (7, 5, 2)
    (study,) = found["studies"]
    (series,) = study["series"]
    assert (study["study_uid"], study["patient_id"], series["series_uid"]) == ("ID_study", "ID_patient", "ID_series")
    assert (series["num_slices"], series["rows"], series["columns"]) == (5, 40, 48)
    assert series["spacing_mm"] == [0.5, 0.25, 5.0]
    assert series["thickness_mm"] == [5.0, 7.0]
    assert series["distances_mm"] == [5.0, 5.0, 7.0, 7.0]
    assert series["gaps_mm"] == [7.0]
    assert (series["tilt_deg"], series["encodings"]) == (0.0, ["signed16"])
    assert series["transfer_syntaxes"] == ["1.2.840.10008.1.2.1"]
    assert "slices of different thickness" in series["problems"]
    assert [(reject["path"], reject["reason"]) for reject in found["rejects"]] == [
        ("copy.dcm", "duplicate instance"),
        ("mr.dcm", "not CT"),
    ]


def test_multi_frame_file_counts_as_one_file(tmp_path: Path) -> None:
    (tmp_path / "e.dcm").write_bytes(
        write(enhanced_dataset(np.stack([slice_hu() + 1024] * 2), [0.0, 2.5], [-1024, -1024]))
    )
    found = inspect.as_json(inspect.inspect_folder(tmp_path))
    assert (found["num_files"], found["num_used"]) == (1, 1)
    assert found["studies"][0]["series"][0]["num_slices"] == 2


def test_text_shows_distances_as_runs_and_each_reject(tmp_path: Path) -> None:
    make_study(tmp_path, [0, 4, 8, 12, 13.08, 20.08, 27.08])
    (tmp_path / "bad\x1b[31m.txt").write_bytes(b"hello")
    text = inspect.as_text(inspect.inspect_folder(tmp_path))
    assert "8 files: 7 used, 1 left out" in text
    assert "distances  4.00 mm x3, 1.08 mm x1, 7.00 mm x2" in text
    assert "not DICOM (1)" in text
    assert "bad\\x1b[31m.txt" in text
    assert "\x1b" not in text


def test_several_processes_find_the_same_as_one(tmp_path: Path) -> None:
    make_study(tmp_path, [0, 5, 10])
    (tmp_path / "other.dcm").write_bytes(ct_hu_file(slice_hu(seed=9), SOPInstanceUID="i0"))
    (tmp_path / "x.dcm").write_bytes(ct_file(slice_hu(), JPEG + "70", [b"no jpeg"]))
    assert inspect.inspect_folder(tmp_path, workers=2) == inspect.inspect_folder(tmp_path, workers=1)


def test_verb_prints_json_and_ends_with_0(tmp_path: Path) -> None:
    make_study(tmp_path, [0, 5])
    done = run(str(tmp_path), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["num_used"] == 2


def test_folder_without_ct_prints_its_report_and_ends_with_1(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    done = run(str(tmp_path))
    assert done.returncode == 1
    assert "a.txt" in done.stdout
    assert done.stderr.count("\n") == 1
    assert "none of 1 files is a usable CT slice" in done.stderr


def test_missing_and_empty_folders_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FastichError, match="expected a folder, found nothing"):
        inspect.main([str(tmp_path / "no")])
    with pytest.raises(FastichError, match="the folder holds no file"):
        inspect.main([str(tmp_path)])
    with pytest.raises(UsageError, match="--workers"):
        inspect.main([str(tmp_path), "--workers", "-1"])


@pytest.mark.skipif(not (SHARED / "head_ct_tilt").is_dir(), reason="needs ../shared/data/head_ct_tilt")
def test_real_head_shows_two_thicknesses_the_tilt_and_the_gaps() -> None:
    findings = inspect.inspect_folder(SHARED / "head_ct_tilt")
    (series,) = inspect.as_json(findings)["studies"][0]["series"]
    assert (series["thickness_mm"], series["tilt_deg"], series["gaps_mm"]) == ([4.0, 7.0], 18.5, [1.08, 7.0])
    assert "4.00 mm x13, 1.08 mm x1, 7.00 mm x13" in inspect.as_text(findings)
