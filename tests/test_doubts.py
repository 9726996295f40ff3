"""A study in doubt is never clear, and what is in doubt is what the triage server doubts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from scoring_data import QUICK, slice_bytes, study_bytes, write_files
from toy_model import write_model

from fastich.artifact import write_manifest
from fastich.conformal import Triage
from fastich.doubts import conflicts, contradiction, settled
from fastich.errors import FastichError
from fastich.gate_rules import BUILT_IN
from fastich.score import ScoreConfig, main, score, table
from fastich.serve.config import ServeConfig
from fastich.serve.dry_run import explain
from fastich.serve.session import Session, open_session

TRIAGE = Triage(alpha_miss=0.1, alpha_alarm=0.1, num_bleed=20, num_without=20, clear=0.55, flag=0.9)
CLEAR, BETWEEN, FLAG = 0, 20, 80
"""HU whose p(any) is 0.5, 0.77 and 0.99."""
BONE = {"series": 2, "ConvolutionKernel": "BONE"}
SAGITTAL = {"series": 3, "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    artifact = write_model(tmp_path / "model", threshold=0.999)
    write_manifest(tmp_path / "model", dataclasses.replace(artifact, triage=TRIAGE.to_document()))
    return tmp_path / "model"


@pytest.fixture
def session(model: Path) -> Session:
    return open_session(model)


def scored(files: list[bytes], folder: Path, session: Session, **config: Any) -> dict[str, Any]:
    report = score([write_files(folder / "in", files)], session, ScoreConfig(model=folder / "model", **config))
    json.dumps(report, allow_nan=False)
    return report


def holed() -> list[bytes]:
    files = study_bytes([CLEAR] * 20)
    del files[8:11]
    return files


WHOLE = [CLEAR] * 16
CASES: dict[str, list[bytes]] = {
    "a whole head": study_bytes(WHOLE),
    "a whole head that bleeds": study_bytes([*WHOLE, FLAG]),
    "a whole head between the limits": study_bytes([*WHOLE, BETWEEN]),
    "one slice": [slice_bytes(0, CLEAR)],
    "one slice that bleeds": [slice_bytes(0, FLAG)],
    "nine slices": study_bytes([CLEAR] * 9),
    "ten slices of 68 mm": study_bytes([CLEAR] * 10),
    "a hole of 30 mm": holed(),
    "one slice missing": [*study_bytes(WHOLE)[:7], *study_bytes(WHOLE)[8:]],
    "one damaged file": [*study_bytes(WHOLE), slice_bytes(16, PixelData=b"\1\1")],
    "another file under a taken UID": [*study_bytes(WHOLE), slice_bytes(3, 1)],
    "the same file twice": [*study_bytes(WHOLE), slice_bytes(3, CLEAR)],
    "no positions": study_bytes(WHOLE, ImagePositionPatient=None, InstanceNumber=None),
    "no orientation": study_bytes(WHOLE, ImageOrientationPatient=None),
    "contrast": study_bytes(WHOLE, ContrastBolusAgent="X"),
    "a chest": study_bytes(WHOLE, BodyPartExamined="CHEST"),
    "a child": study_bytes(WHOLE, PatientAge="004Y"),
    "sagittal": study_bytes(WHOLE, **SAGITTAL),
    "sagittal beside a whole head": [*study_bytes(WHOLE), *study_bytes(WHOLE, **SAGITTAL)],
    "an angiogram beside a whole head": [*study_bytes(WHOLE), *study_bytes(WHOLE, series=2, ContrastBolusAgent="X")],
    "a bone series beside a whole head": [*study_bytes(WHOLE), *study_bytes(WHOLE, **BONE)],
    "a bone series beside a hole": [*holed(), *study_bytes(WHOLE, **BONE)],
    "two patients": [*study_bytes(WHOLE), *study_bytes(WHOLE, series=2, PatientID="another")],
}
CAN_BE_CLEAR = {
    "a whole head",
    "the same file twice",
    "sagittal beside a whole head",
    "an angiogram beside a whole head",
    "a bone series beside a whole head",
}


@pytest.mark.parametrize("case", CASES)
def test_score_clears_what_the_server_would_clear_and_doubts_what_it_doubts(
    case: str, tmp_path: Path, session: Session
) -> None:
    rows = scored(CASES[case], tmp_path, session)["studies"]
    (served,) = explain([tmp_path / "in"], session, None, ServeConfig(scoring=QUICK))["studies"]
    for row in rows:
        assert (row["triage"] == "clear") is (case in CAN_BE_CLEAR) is (served["triage"] == "clear")
        if served["triage"] is None:
            assert row["doubts"] == [served["reason"]], "what the server does not evaluate is scored here, in doubt"
        else:
            assert (row["triage"], "; ".join(row["doubts"])) == (
                served["triage"],
                served["reason"].removeprefix("in doubt: "),
            )


@pytest.mark.parametrize(("hu", "triage"), [(CLEAR, "human first"), (BETWEEN, "human first"), (FLAG, "flag")])
def test_lone_slice_is_flagged_or_goes_to_a_human(tmp_path: Path, session: Session, hu: int, triage: str) -> None:
    (row,) = scored([slice_bytes(0, hu)], tmp_path, session)["studies"]
    assert (row["triage"], row["doubts"]) == (triage, ["1 slices, expected 10 to 1200"])


def test_table_names_the_studies_in_doubt_and_that_the_guarantee_is_of_whole_ones(
    tmp_path: Path, session: Session
) -> None:
    files = [slice_bytes(0, study=study) for study in range(1, 8)] + study_bytes(WHOLE, study=9)
    lines = table(scored(files, tmp_path, session)).splitlines()
    (line,) = [line for line in lines if line.startswith("triage: ")]
    assert "human first 7" in line
    assert "clear 1" in line
    assert "and are whole." in line
    at = lines.index("in doubt, so without the guarantee and never clear: 7 of the studies")
    assert lines[at + 1] == "  1.2.1: 1 slices, expected 10 to 1200"
    assert lines[at + 6] == "  and 2 more (--json names all)"
    whole = table(scored(study_bytes(WHOLE), tmp_path / "whole", session))
    assert "in doubt" not in whole


def test_study_at_a_threshold_is_not_clear(tmp_path: Path) -> None:
    artifact = write_model(tmp_path / "model", threshold=0.5)
    triage = dataclasses.replace(TRIAGE, clear=0.8)
    write_manifest(tmp_path / "model", dataclasses.replace(artifact, triage=triage.to_document()))
    (row,) = scored(study_bytes([BETWEEN] * 16), tmp_path, open_session(tmp_path / "model"))["studies"]
    assert row["triage"] == "human first"
    assert row["doubts"][0].startswith("clear by the three-way rule, yet at the threshold of")


def test_rules_of_a_site_decide_what_is_whole(tmp_path: Path, model: Path, session: Session) -> None:
    mine = tmp_path / "mine.toml"
    text = BUILT_IN.read_text(encoding="utf-8").replace("minimum = 10\nmaximum = 1200", "minimum = 17\nmaximum = 1200")
    mine.write_text(text, encoding="utf-8")
    report = scored(study_bytes(WHOLE), tmp_path, session, rules=mine)
    assert report["studies"][0]["doubts"] == ["16 slices, expected 10 to 1200"]
    assert report["studies"][0]["triage"] == "human first"
    assert report["rules_sha256"] != scored(study_bytes(WHOLE), tmp_path, session)["rules_sha256"]
    mine.write_text("version = 2", encoding="utf-8")
    with pytest.raises(FastichError, match=r"mine\.toml: version: expected 1, found 2"):
        main(["--model", str(model), "--rules", str(mine), str(tmp_path / "in")])


def test_damaged_file_of_a_study_counts_for_that_study_only(tmp_path: Path, session: Session) -> None:
    files = [*study_bytes(WHOLE), *study_bytes(WHOLE, study=2), slice_bytes(16, study=2, PixelData=b"\1\1"), b"text"]
    rows = {row["study_uid"]: row for row in scored(files, tmp_path, session)["studies"]}
    assert (rows["1.2.1"]["triage"], rows["1.2.1"]["doubts"]) == ("clear", [])
    assert (rows["1.2.2"]["triage"], rows["1.2.2"]["doubts"]) == (
        "human first",
        ["1 files of the series were left out"],
    )


def test_without_a_three_way_rule_doubts_are_told_and_decide_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    report = scored([slice_bytes(0)], tmp_path, open_session(tmp_path / "model"))
    assert (report["studies"][0]["triage"], len(report["studies"][0]["doubts"])) == (None, 1)
    assert "in doubt" not in table(report)


def test_only_what_would_be_clear_is_changed_by_doubt() -> None:
    assert [settled(said, ["why"]) for said in ("clear", "flag", "human first", None)] == [
        "human first",
        "flag",
        "human first",
        None,
    ]
    assert settled("clear", []) == "clear"
    assert conflicts(0) == ()
    assert contradiction({"triage": "flag", "findings": ["any"], "flagged": True}) == ()
