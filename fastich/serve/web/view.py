"""What is shown of a study, as plain JSON values: the page's templates and the API give the same. Pure functions.

Text from DICOM headers is made one clean line here (``names``); whoever shows it escapes it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastich.conformal import CLEAR, FLAG, HUMAN_FIRST
from fastich.labels import ANY, LABELS, SUBTYPES
from fastich.serve.entities import Comment, Delivery, Instance, InstanceState, Priority, Score, Study, StudyState
from fastich.serve.ordering import raised_to
from fastich.serve.web import names

BELOW, RECEIVING = "below threshold", "receiving"
TITLES = {
    FLAG: "Flagged",
    HUMAN_FIRST: "Human first",
    CLEAR: "Clear",
    BELOW: "Below threshold",
    RECEIVING: "Receiving",
    StudyState.NOT_EVALUATED.value: "Not evaluated",
    StudyState.FAILED.value: "Failed",
}
"""Verdicts and how they are written. A model folder without a three-way rule clears nothing: "below threshold"."""

Json = dict[str, Any]


def verdict(study: Study) -> str:
    """One of ``TITLES``: what the newest result says, or why there is none.

    While more is on its way a study is what raised it or else receiving: what is missing may bleed.
    """
    if study.state in (StudyState.NOT_EVALUATED, StudyState.FAILED):
        return study.state.value
    document = study.document
    if study.state is StudyState.RECEIVING or document is None:
        return {Priority.FLAGGED: FLAG, Priority.HUMAN_FIRST: HUMAN_FIRST}.get(study.priority, RECEIVING)
    if document.get("triage") is not None:
        return str(document["triage"])
    return FLAG if document.get("flagged") else BELOW


def is_partial(study: Study) -> bool:
    """Whether more of the study is on its way than its newest result is about."""
    return study.state is StudyState.RECEIVING or study.scored_revision != study.revision


def study_view(study: Study) -> Json:
    """Everything that a line of the worklist shows."""
    said, document = verdict(study), study.document or {}
    about = study.description
    return {
        "study_uid": study.study_uid,
        "patient": {"name": names.person_name(about.patient_name), "id": names.clean(about.patient_id, 64)},
        "accession_number": names.clean(about.accession_number, 32),
        "study_date": names.dicom_date(about.study_date),
        "study_time": names.dicom_time(about.study_time),
        "description": names.clean(about.study_description, 64),
        "origin": {"way": study.origin.way, "sender": names.clean(study.origin.sender, 32)},
        "arrived_at": study.arrived_at,
        "last_at": study.last_at,
        "final_at": study.final_at,
        "state": study.state.value,
        "score_id": study.score_id,
        "verdict": said,
        "title": TITLES.get(said, said),
        "reason": names.clean(study.reason, 400),
        "priority": study.priority.name.lower().replace("_", " "),
        "is_raised": raised_to(study) > Priority.ROUTINE,
        "was_raised": study.priority > Priority.ROUTINE,
        "is_partial": is_partial(study),
        "num_instances": study.num_instances,
        "num_waiting": study.num_waiting,
        "num_conflicts": study.num_conflicts,
        "expected_instances": study.expected_instances,
        "num_slices": document.get("num_slices", 0),
        "probability": document.get("probability"),
        "threshold": _study_thresholds(document),
        "findings": list(document.get("findings", ())),
        "study_rule": document.get("study_rule"),
        "left_out": left_out(document),
        "cautions": [names.clean(str(one), 400) for one in document.get("gate", {}).get("cautions", ())],
        "key_slice": key_slice(document),
        "acknowledged": _acknowledged(study),
        "revision": study.revision,
        "scored_revision": study.scored_revision,
    }


def _study_thresholds(document: Mapping[str, Any]) -> Mapping[str, float] | None:
    found: Mapping[str, float] | None = (document.get("model") or {}).get("study_thresholds")
    return found


def _acknowledged(study: Study) -> Json | None:
    if study.acknowledged_at is None:
        return None
    return {"by": names.clean(study.acknowledged_by or "", 128), "at": study.acknowledged_at}


def left_out(document: Mapping[str, Any]) -> list[Json]:
    """Why instances were left out, the commonest reason first: ``reason`` and ``count``."""
    counted = Counter(names.clean(str(row.get("reason", "")), 120) for row in document.get("left_out", ()))
    return [{"reason": reason, "count": count} for reason, count in counted.most_common()]


def slices(document: Mapping[str, Any] | None) -> list[Json]:
    """The slices of a result, series after series, in order: what the page numbers from 0."""
    return [dict(row, series=number) for number, row in _rows(document or {})]


def _rows(document: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, series in enumerate(document.get("series", ())):
        for row in series["slices"]:
            yield number, row


def key_slice(document: Mapping[str, Any]) -> Json | None:
    """Number, place and p(any) of the key slice; None where nothing was scored."""
    key = document.get("key_slice")
    if key is None:
        return None
    wanted = (key["path"], key["frame"])
    number = next((n for n, row in enumerate(slices(document)) if (row["path"], row["frame"]) == wanted), 0)
    return {"number": number, "z_mm": key["z_mm"], "probability": key["probability"]}


def strip(document: Mapping[str, Any] | None) -> Json:
    """Per-slice numbers for the strip below the picture: ``z_mm`` [N] and for each label its probabilities [N]."""
    rows = slices(document)
    return {
        "z_mm": [row["z_mm"] for row in rows],
        "series": [row["series"] for row in rows],
        "probability": {label: [round(row["probability"][label], 5) for row in rows] for label in LABELS},
    }


def finding_rows(view: Json) -> list[Json]:
    """The labels of a study as the page lists them: ``any`` first, then the likeliest subtype."""
    probability, threshold = view["probability"], view["threshold"] or {}
    if not probability:
        return []
    order = [LABELS[ANY], *sorted(SUBTYPES, key=lambda label: -probability[label])]
    return [
        {
            "label": label,
            "probability": probability[label],
            "threshold": threshold.get(label),
            "is_found": label in view["findings"],
        }
        for label in order
    ]


def score_view(score: Score) -> Json:
    """One line of a study's history."""
    document = score.outcome.document or {}
    model = document.get("model") or {}
    return {
        "score_id": score.score_id,
        "created_at": score.created_at,
        "revision": score.revision,
        "is_partial": score.partial,
        "state": score.outcome.state.value,
        "triage": document.get("triage"),
        "flagged": document.get("flagged"),
        "reason": names.clean(score.outcome.reason, 400),
        "num_slices": document.get("num_slices", 0),
        "probability": document.get("probability"),
        "model_sha256": model.get("sha256"),
        "provider": model.get("provider"),
    }


def delivery_view(delivery: Delivery) -> Json:
    """One message and where it stands."""
    return {
        "delivery_id": delivery.delivery_id,
        "study_uid": delivery.study_uid,
        "score_id": delivery.score_id,
        "destination": names.clean(delivery.destination, 64),
        "kind": delivery.kind,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "next_at": delivery.next_at,
        "last_error": names.clean(delivery.last_error, 400),
        "delivered_at": delivery.delivered_at,
    }


def comment_view(comment: Comment) -> Json:
    """One comment; its text keeps its lines."""
    lines = [names.clean(line, 2000) for line in comment.text.splitlines()]
    return {
        "comment_id": comment.comment_id,
        "who": names.clean(comment.who, 128),
        "created_at": comment.created_at,
        "text": "\n".join(lines),
    }


def instance_views(instances: Sequence[Instance]) -> list[Json]:
    """What was not scored of a study, and why: ``state``, ``reason``, ``detail`` and how many are alike."""
    unscored = [one for one in instances if one.state in (InstanceState.NOT_EVALUATED, InstanceState.FAILED)]
    alike = Counter((one.state.value, names.clean(one.reason, 120), names.clean(one.detail, 400)) for one in unscored)
    return [
        {"state": state, "reason": reason, "detail": detail, "count": count}
        for (state, reason, detail), count in alike.most_common()
    ]
