"""A result as a FHIR R4 DiagnosticReport with one Observation a label inside, for what speaks no DICOM.

The study is named by its UID (a logical reference), the patient not at all: a receiver that knows the study knows whose
it is. Source: https://hl7.org/fhir/R4/diagnosticreport.html, observation.html, device.html; identifiers of DICOM UIDs:
https://hl7.org/fhir/R4/imagingstudy.html#notes. Not run through HL7's validator.
"""

from datetime import UTC, datetime
from typing import Any

import fastich
from fastich.conformal import FLAG
from fastich.labels import ANY, LABELS
from fastich.serve.entities import Priority
from fastich.serve.outputs import codes, sr, uids
from fastich.serve.outputs.codes import Concept
from fastich.serve.outputs.result import FLAGGED, PRELIMINARY, Result

SYSTEMS = {"SCT": "http://snomed.info/sct", "UCUM": "http://unitsofmeasure.org"}
PRIVATE_SYSTEM = "urn:fastich:codes"
LOINC_HEAD_CT = {"system": "http://loinc.org", "code": "24725-4", "display": "CT Head"}
RADIOLOGY = {"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD", "display": "Radiology"}
INTERPRETATION = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
STATUS = "preliminary"


def report(result: Result) -> dict[str, Any]:
    """The resource as JSON values."""
    at = datetime.fromtimestamp(result.created_at, UTC).isoformat(timespec="milliseconds")
    order = ("any", *LABELS[:-1])
    return {
        "resourceType": "DiagnosticReport",
        "contained": [_device(result), *(_observation(result, label, at) for label in order)],
        "identifier": [_uid(result.uid(sr.KIND))],
        "status": STATUS,
        "category": [{"coding": [RADIOLOGY]}],
        "code": {"coding": [LOINC_HEAD_CT], "text": "Intracranial hemorrhage triage of a head CT"},
        "effectiveDateTime": at,
        "issued": at,
        "result": [{"reference": f"#{label}"} for label in order],
        "imagingStudy": [{"type": "ImagingStudy", "identifier": _uid(uids.legal(result.study_uid))}],
        "conclusion": f"{PRELIMINARY}. {codes.TRIAGE_VALUES[result.triage].meaning}.",
        "conclusionCode": [{"coding": [_coding(codes.TRIAGE_VALUES[result.triage])]}],
    }


def _interpretation(result: Result, label: str) -> dict[str, Any]:
    """What a label means: of ``any`` what the triage says, negative only where the whole study is; else left out."""
    is_positive = result.triage in (FLAG, FLAGGED) if label == LABELS[ANY] else label in result.found
    is_negative = result.priority is Priority.ROUTINE and label not in result.found
    if not is_positive and not is_negative:
        return {}
    letters, word = ("POS", "Positive") if is_positive else ("NEG", "Negative")
    return {"interpretation": [{"coding": [{"system": INTERPRETATION, "code": letters, "display": word}]}]}


def _observation(result: Result, label: str, at: str) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": label,
        "status": STATUS,
        "code": {"coding": [_coding(codes.FINDINGS[label])], "text": f"Probability: {codes.FINDINGS[label].meaning}"},
        "effectiveDateTime": at,
        "device": {"reference": "#device"},
        "valueQuantity": {
            "value": round(result.probability[label], sr.DIGITS),
            "unit": "1",
            "system": SYSTEMS["UCUM"],
            "code": "1",
        },
        "referenceRange": [{"text": f"threshold {result.thresholds[label]:.{sr.DIGITS}g} ({result.threshold_rule})"}],
    } | _interpretation(result, label)


def _device(result: Result) -> dict[str, Any]:
    return {
        "resourceType": "Device",
        "id": "device",
        "manufacturer": sr.MAKER,
        "serialNumber": str(result.model["sha256"]),
        "deviceName": [{"name": sr.PRODUCT, "type": "model-name"}],
        "version": [{"value": fastich.__version__}],
    }


def _coding(concept: Concept) -> dict[str, str]:
    system = SYSTEMS.get(concept.scheme, PRIVATE_SYSTEM)
    return {"system": system, "code": concept.code, "display": concept.meaning}


def _uid(uid: str) -> dict[str, str]:
    return {"system": "urn:dicom:uid", "value": f"urn:oid:{uid}"}
