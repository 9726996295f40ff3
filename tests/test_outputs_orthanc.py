"""Orthanc as the PACS that gets our results, in a network namespace of its own (``orthanc_peer.py``)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peers import needs

SCRIPT = Path(__file__).with_name("orthanc_peer.py")

pytestmark = [needs("Orthanc", "unshare", "ip")]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    allowed = subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0
    if not allowed and not os.environ.get("CI"):
        pytest.skip("no right to make a network namespace (unshare -n)")
    paths = os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parent)])
    found = subprocess.run(
        ["unshare", "-n", sys.executable, str(SCRIPT), str(tmp_path_factory.mktemp("orthanc"))],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert found.returncode == 0, found.stderr
    result: dict[str, Any] = json.loads(found.stdout.splitlines()[-1])
    return result


def results_in(held: list[dict[str, str]]) -> list[tuple[str, str]]:
    return sorted((one["Modality"], one["SOPInstanceUID"]) for one in held if one["Modality"] != "CT")


def test_pacs_holds_report_and_key_image_once_after_two_sends(told: dict[str, Any]) -> None:
    expected = told["expected"]
    assert told["dimse"] == ["delivered", "delivered"]
    assert results_in(told["held"]) == [("OT", expected["sc"]), ("SR", expected["sr"])]


def test_results_stand_in_the_study_of_the_images(told: dict[str, Any]) -> None:
    (study,) = told["studies"]
    assert study["MainDicomTags"]["StudyInstanceUID"] == told["expected"]["study"]
    assert len(study["Series"]) == 3
    assert len(told["held"]) == told["expected"]["slices"] + 2
    assert {one["PatientName"] for one in told["held"]} == {"MUELLER^ANNA"}


def test_stow_leaves_them_once_too(told: dict[str, Any]) -> None:
    if told["stow"] is None:
        pytest.skip("Orthanc without its DICOMweb plugin (orthanc-dicomweb)")
    assert told["stow"] == ["delivered", "delivered"]
    assert results_in(told["stowed"]) == [("OT", told["expected"]["sc"]), ("SR", told["expected"]["sr"])]
