import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from outputs_data import Scored, phantom_study

from fastich.labels import LABELS
from fastich.serve.entities import Priority
from fastich.serve.outputs import fhir


@pytest.fixture
def study(tmp_path: Path) -> Scored:
    return phantom_study(tmp_path).with_document(findings=["any", "subdural"])


@pytest.fixture
def made(study: Scored) -> dict[str, Any]:
    return fhir.report(study.result)


def test_report_is_preliminary_and_names_the_study(study: Scored, made: dict[str, Any]) -> None:
    assert (made["resourceType"], made["status"]) == ("DiagnosticReport", "preliminary")
    (imaging,) = made["imagingStudy"]
    assert imaging["identifier"] == {"system": "urn:dicom:uid", "value": f"urn:oid:{study.score.study_uid}"}
    assert made["identifier"][0]["value"] == f"urn:oid:{study.result.uid('sr')}"
    assert made["issued"] == "2025-11-24T16:00:00.250+00:00"
    assert "not for diagnosis" in made["conclusion"].lower()


def test_each_label_is_an_observation_inside(study: Scored, made: dict[str, Any]) -> None:
    inside = {one["id"]: one for one in made["contained"]}
    assert [one["reference"] for one in made["result"]] == [f"#{label}" for label in ("any", *LABELS[:-1])]
    for label in LABELS:
        one = inside[label]
        assert one["valueQuantity"]["value"] == pytest.approx(study.result.probability[label], abs=1e-6)
        assert one["status"] == "preliminary"
    assert inside["subdural"]["code"]["coding"][0] == {
        "system": "http://snomed.info/sct",
        "code": "35486000",
        "display": "Subdural intracranial hemorrhage",
    }
    assert inside["intraventricular"]["code"]["coding"][0]["system"] == "urn:fastich:codes"


def interpretations(study: Scored, priority: Priority, **document: Any) -> dict[str, str]:
    made = study.with_document(**document)
    outcome = dataclasses.replace(made.score.outcome, priority=priority)
    report = fhir.report(dataclasses.replace(made, score=dataclasses.replace(made.score, outcome=outcome)).result)
    told = {one["id"]: one["interpretation"] for one in report["contained"] if "interpretation" in one}
    return {label: one[0]["coding"][0]["code"] for label, one in told.items()}


def test_12_interpretation_follows_the_triage(study: Scored) -> None:
    found = interpretations(study, Priority.FLAGGED, triage="flag", findings=[])
    assert found == {"any": "POS"}
    found = interpretations(study, Priority.HUMAN_FIRST, triage="human first", findings=["subdural"])
    assert found == {"subdural": "POS"}
    found = interpretations(study, Priority.ROUTINE, triage="clear", findings=[])
    assert found == dict.fromkeys(LABELS, "NEG")
    found = interpretations(study, Priority.HUMAN_FIRST, triage=None, flagged=False, findings=[])
    assert found == {}
    found = interpretations(study, Priority.FLAGGED, triage=None, flagged=True, findings=["any"])
    assert found == {"any": "POS"}


def test_every_reference_inside_leads_somewhere(made: dict[str, Any]) -> None:
    inside = {f"#{one['id']}" for one in made["contained"]}
    used = {one["reference"] for one in made["result"]} | {
        one["device"]["reference"] for one in made["contained"] if "device" in one
    }
    assert used == inside


def test_nobody_is_named(made: dict[str, Any]) -> None:
    text = json.dumps(made, allow_nan=False)
    assert "subject" not in made
    assert not any(secret in text for secret in ("MUELLER", "4711", "A-1", "19500102"))
