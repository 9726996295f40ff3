import csv
import json
from pathlib import Path

import pytest
from scoring_data import slice_bytes, study_bytes, write_files

from fastich.decoder import Decoder
from fastich.errors import UsageError
from fastich.gate import as_json, examine, main
from fastich.gate_rules import BUILT_IN, load_rules

SHARED = Path(__file__).parents[2] / "shared" / "data"
TORTURE, REAL_HEAD = SHARED / "dicom_torture", SHARED / "head_ct_tilt"


def test_study_that_would_be_scored_is_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_files(tmp_path, study_bytes([0] * 12))
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "study 1.2.1: scored" in out
    assert "series 1.2.1.1  12 slices, thick: scored" in out


def test_reasons_are_given_for_studies_series_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [*study_bytes([0] * 4), slice_bytes(9, PixelData=b"\0\0")]
    folder = write_files(tmp_path, files)
    assert main([str(folder)]) == 1
    said = capsys.readouterr()
    assert "study 1.2.1: not evaluated: 4 slices, expected 10 to 1200; damaged pixels (1 file)" in said.out
    assert f"damaged pixels: 2 bytes of pixel data, expected {32 * 32 * 2}" in said.out
    assert "no study would be scored" in said.err


def test_json_names_rules_findings_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = study_bytes([0] * 12) + study_bytes([0] * 12, series=2, ContrastBolusAgent="X")
    folder = write_files(tmp_path, files)
    assert main([str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rules_sha256"] == load_rules().sha256
    (study,) = report["studies"]
    assert study["scored"]
    assert [one["scored"] for one in study["series"]] == [True]
    assert {one["series_uid"] for one in study["left_out"]} == {"1.2.1.2"}
    assert {one["detail"] for one in study["left_out"]} == {"rule non-contrast agent"}


def test_show_prints_the_rules_as_a_file_to_start_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show"]) == 0
    assert capsys.readouterr().out == BUILT_IN.read_text(encoding="utf-8")


def test_neither_paths_nor_show_is_bad_usage() -> None:
    with pytest.raises(UsageError, match="expected files or folders, or --show"):
        main([])


def test_doubled_file_is_left_out_as_the_server_does(tmp_path: Path) -> None:
    folder = write_files(tmp_path, [*study_bytes([0] * 12), slice_bytes(0), slice_bytes(1, 50)])
    with Decoder() as decoder:
        (study,) = examine([folder], load_rules(), decoder)
    assert sorted(one.reason for one in study.left) == ["duplicate instance", "same UID, other pixels"]


@pytest.mark.skipif(not TORTURE.is_dir(), reason="needs ../shared/data/dicom_torture")
def test_every_file_of_the_torture_set_has_a_named_outcome_and_none_is_scored() -> None:
    with (TORTURE / "MANIFEST.csv").open(encoding="utf-8") as handle:
        names = {row["file"] for row in csv.DictReader(handle)}
    with Decoder() as decoder:
        report = as_json(examine([TORTURE / "files"], load_rules(), decoder), load_rules())
    left = {Path(one["path"]).name: one for study in report["studies"] for one in study["left_out"]}
    in_series = sum(one["num_slices"] for study in report["studies"] for one in study["series"])
    assert all(one["reason"] for one in left.values())
    assert set(left) <= names
    assert len(left) + in_series == sum((TORTURE / "files" / name).is_file() for name in names)
    assert not any(study["scored"] for study in report["studies"])
    assert all(study["why"] for study in report["studies"])
    wrong = [name for name in left if name.startswith(("G-", "F-")) and "wrong-modality" in name]
    assert {left[name]["reason"] for name in wrong} == {"not CT"}


@pytest.mark.skipif(not REAL_HEAD.is_dir(), reason="needs ../shared/data/head_ct_tilt")
def test_real_tilted_head_is_scored_without_doubts() -> None:
    with Decoder() as decoder:
        found = examine([REAL_HEAD], load_rules(), decoder)
    study = next(one for one in found if one.series)
    (series,) = study.series
    assert (series.is_scored, series.cautions, len(series.series.headers)) == (True, (), 28)
