"""A result as a structured report: Comprehensive 3D SR after TID 1500, which PACS store and viewers open.

One measurement group a label: probability, threshold, whether it is reached, the slice that it is likeliest on. The
report is UNVERIFIED and PRELIMINARY, and PARTIAL where slices were left out or the study was still arriving. Importing
highdicom costs 0.2 s and 20 MiB, the first report 0.4 s and 68 MiB (its tables of the standard), each other 0.1 s.
Source: PS3.16 TID 1500, 1501, 300, 4019, 1004; PS3.3 A.35.13.
"""

from collections.abc import Iterator, Mapping

from highdicom import sr as hd
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sr import CodedConcept, RelationshipTypeValues
from pydicom.dataset import Dataset
from pydicom.uid import Comprehensive3DSRStorage, ExplicitVRLittleEndian

import fastich
from fastich.labels import LABELS
from fastich.serve.outputs import codes, source, uids
from fastich.serve.outputs.codes import Concept
from fastich.serve.outputs.result import PRELIMINARY, KeySlice, Result

KIND = "sr"
MAKER, PRODUCT = "fastich", "fastich ICH triage"
SERIES_NUMBER = 9301
"""High, so that viewers sort it behind what the scanner made."""
SERIES_DESCRIPTION = "ICH triage: preliminary, not for diagnosis"
SOP_CLASS = str(Comprehensive3DSRStorage)
DIGITS = 6


def build(result: Result, header: Dataset, sop_classes: Mapping[str, str]) -> Dataset:
    """The report.

    Args:
        result: what was found.
        header: of one image of the study (``source.read_header``).
        sop_classes: SOP class UID of each scored instance by its UID.
    """
    sop_uid = result.uid(KIND)
    made = hd.Comprehensive3DSR(
        evidence=[_evidence(result, *one, sop_classes) for one in result.scored],
        content=_content(result, sop_classes)[0],
        series_instance_uid=uids.of_parts(sop_uid, "series"),
        series_number=SERIES_NUMBER,
        sop_instance_uid=sop_uid,
        instance_number=1,
        manufacturer=MAKER,
        is_complete=result.complete,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        series_description=SERIES_DESCRIPTION,
        manufacturer_model_name=PRODUCT,
        software_versions=fastich.__version__,
        device_serial_number=str(result.model["sha256"]),
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=codes.PRIVATE,
                name=codes.PRIVATE_NAME,
                responsible_organization=codes.PRIVATE_ORGANISATION,
            )
        ],
    )
    source.inherit(made, header)
    source.put_dates(made, source.stamp(result.created_at, header))
    for equipment in made.ContributingEquipmentSequence:  # highdicom's mention of itself carries the time of building
        del equipment.ContributionDateTime
    return made


def _evidence(result: Result, sop_uid: str, series_uid: str, sop_classes: Mapping[str, str]) -> Dataset:
    """What highdicom wants to know of a scored image; ``source.inherit`` fills in who the patient is."""
    one = Dataset()
    for keyword in source.REQUIRED:
        setattr(one, keyword, "")
    one.SOPClassUID, one.SOPInstanceUID = sop_classes[sop_uid], uids.legal(sop_uid)
    one.StudyInstanceUID, one.SeriesInstanceUID = uids.legal(result.study_uid), uids.legal(series_uid)
    return one


def _content(result: Result, sop_classes: Mapping[str, str]) -> hd.MeasurementReport:
    model = result.model
    device = hd.DeviceObserverIdentifyingAttributes(
        uid=uids.of_parts("device", str(model["sha256"])),
        name=PRODUCT,
        manufacturer_name=MAKER,
        model_name=f"{PRODUCT} {fastich.__version__}",
        serial_number=str(model["sha256"]),
    )
    observer = hd.ObserverContext(
        observer_type=CodedConcept("121007", "DCM", "Device"), observer_identifying_attributes=device
    )
    return hd.MeasurementReport(
        observation_context=hd.ObservationContext(observer_device_context=observer),
        procedure_reported=_coded(codes.CT_HEAD),
        imaging_measurements=[_group(result, label, sop_classes) for label in ("any", *LABELS[:-1])],
        title=CodedConcept("126000", "DCM", "Imaging Measurement Report"),
    )


def _group(result: Result, label: str, sop_classes: Mapping[str, str]) -> hd.MeasurementsAndQualitativeEvaluations:
    """What is said of one label; ``any`` carries what is said of the study as well."""
    numbers = ((codes.PROBABILITY, result.probability[label]), (codes.THRESHOLD, result.thresholds[label]))
    reached = codes.YES if label in result.found else codes.NO
    evaluations = [hd.QualitativeEvaluation(_coded(codes.REACHED), _coded(reached))]
    if label == "any":
        triage = codes.TRIAGE_VALUES[result.triage]
        evaluations.append(hd.QualitativeEvaluation(_coded(codes.TRIAGE), _coded(triage)))
    group = hd.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.TrackingIdentifier(uid=uids.of_parts(result.uid(KIND), label), identifier=label),
        finding_type=_coded(codes.FINDINGS[label]),
        algorithm_id=_algorithm(result),
        finding_sites=[hd.FindingSite(_coded(codes.SITES[label]))] if label in codes.SITES else None,
        measurements=[
            hd.Measurement(name=_coded(name), value=round(value, DIGITS), unit=_coded(codes.NO_UNITS))
            for name, value in numbers
        ],
        qualitative_evaluations=evaluations,
        source_images=[_reference(result.key_slices[label], sop_classes)],
    )
    if label == "any":
        group[0].ContentSequence.extend(_text(line) for line in remarks(result))
    return group


def _reference(key: KeySlice, sop_classes: Mapping[str, str]) -> hd.SourceImageForMeasurementGroup:
    sop_class = sop_classes[key.sop_uid]
    return hd.SourceImageForMeasurementGroup(
        referenced_sop_class_uid=sop_class,
        referenced_sop_instance_uid=uids.legal(key.sop_uid),
        referenced_frame_numbers=[key.frame + 1] if is_multi_frame(sop_class) else None,
    )


def is_multi_frame(sop_class_uid: str) -> bool:
    """Tell whether a reference to such an image names a frame: enhanced CT (PS3.3 A.38, A.70)."""
    return sop_class_uid.startswith("1.2.840.10008.5.1.4.1.1.2.")


def remarks(result: Result) -> Iterator[str]:
    """What the study as a whole needs said, in sentences."""
    yield f"{PRELIMINARY}. Made by software; not seen by a human when it was made."
    yield f"Slices scored: {result.num_slices}. Study decision: {result.study_rule}."
    yield f"Operating point: any >= {result.thresholds['any']:.{DIGITS}g} ({result.threshold_rule})."
    if result.model["triage"] is not None:
        yield f"Three-way rule: {result.model['triage']['guarantee']}"
    if result.left_out:
        counts = ", ".join(f"{reason} {count}" for reason, count in result.left_out.items())
        yield f"Instances left out: {counts}."
    if result.cautions:
        yield f"In doubt: {'; '.join(result.cautions)}."


def _algorithm(result: Result) -> hd.AlgorithmIdentification:
    """TID 4019."""
    model = result.model
    parameters = [f"model sha256 {model['sha256']}", f"weights sha256 {model['weights_sha256']}"]
    if model["study_sha256"] is not None:
        parameters.append(f"study model sha256 {model['study_sha256']}")
    parameters.append(f"{model['backend']} {model['precision']} {model['provider']}")
    return hd.AlgorithmIdentification(
        name=PRODUCT, version=fastich.__version__, parameters=parameters, manufacturer=MAKER
    )


def _text(line: str) -> hd.TextContentItem:
    return hd.TextContentItem(
        name=_coded(codes.COMMENT),
        value=source.ascii_text(line),
        relationship_type=RelationshipTypeValues.CONTAINS,
    )


def _coded(concept: Concept) -> CodedConcept:
    return CodedConcept(value=concept.code, scheme_designator=concept.scheme, meaning=concept.meaning)
