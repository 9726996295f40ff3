"""From scored slices to what becomes of a study: pure functions, one for what is scored and one for what is said.

Safety stands in ``doubts.py`` and not in the rules file: a study is never called clear where a scored series lacks a
file that was sent, where another was damaged or set aside for what it lacks, where files are known to be missing, where
a rule has doubts, or where any label reaches its threshold; it goes to a human first. A study that is not
evaluated or failed keeps the place that a partial result raised it to. Judging a study of 40 slices costs about 5 ms.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastich.artifact import Thresholds
from fastich.conformal import CLEAR, FLAG, HUMAN_FIRST, Triage
from fastich.dicom import Study, group_studies
from fastich.doubts import contradiction, mixed, of_plan, settled
from fastich.eligibility import (
    LeftOut,
    SeriesVerdict,
    left_row,
    missed_by_series,
    plan,
    series_row,
    why_nothing,
)
from fastich.gate_rules import Rules
from fastich.score import model_row, study_row
from fastich.serve.entities import Outcome, Priority, StudyState
from fastich.serve.scoring.notes import Note, protocol
from fastich.serve.session import Session
from fastich.serve.study_session import StudySession
from fastich.study_rule import Answers, Place, judge, place, rule_of, thresholds_of, triage_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """What scores slices and studies, and the limits that decide."""

    session: Session
    study_session: StudySession | None
    limits: Thresholds
    triage: Triage | None

    @property
    def needs_order(self) -> bool:
        """Whether slices are scored beside their neighbours, so not before the study is complete."""
        return self.session.artifact.input_order == "series"


def model_of(session: Session, study_session: StudySession | None) -> Model:
    """An opened model folder.

    Raises:
        ArtifactError: model.json holds a damaged triage rule.
    """
    limits = thresholds_of(session, study_session)[1]
    return Model(session=session, study_session=study_session, limits=limits, triage=triage_of(session, study_session))


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A study as it stands: the slices that may be scored, the files that are left out, and doubts about the whole."""

    study_uid: str
    notes: Mapping[Place, Note]
    left: tuple[LeftOut, ...]
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A study whose series are those that are scored, and the verdicts over all; ``why`` says why none is."""

    study: Study
    verdicts: tuple[SeriesVerdict, ...]
    why: str


def planned(case: Case, rules: Rules, *, partial: bool = False) -> Plan:
    """Which series of a case are scored."""
    studies = group_studies(note.header for note in case.notes.values())
    empty = Study(study_uid=case.study_uid, patient_id="", series=())
    if len(studies) > 1:
        return Plan(study=empty, verdicts=(), why=mixed(len(studies)))
    if not studies:
        return Plan(study=empty, verdicts=(), why=why_nothing((), case.left))
    (whole,) = studies
    fields = {where: note.fields for where, note in case.notes.items()}
    verdicts = plan(rules, whole, fields, missed_by_series(case.left), partial=partial)
    chosen = tuple(one.series for one in verdicts if one.is_scored)
    study = Study(study_uid=whole.study_uid, patient_id=whole.patient_id, series=chosen)
    return Plan(study=study, verdicts=verdicts, why="" if chosen else why_nothing(verdicts, case.left))


def scored(case: Case, plan: Plan, found: Answers, model: Model, rules: Rules, top_k: int) -> Outcome:
    """The final result of a study whose planned slices are all answered.

    Raises:
        ArtifactError: the sequence model failed.
    """
    row = _row(plan.study, found, model, top_k)
    said = (*case.doubts, *of_plan(plan.verdicts, case.left, rules), *contradiction(row))
    doubts = tuple(dict.fromkeys(said))
    row["triage"] = settled(row["triage"], doubts)
    reason = "in doubt: " + "; ".join(doubts) if doubts else ""
    document = row | _beside(case, plan, doubts, model, rules)
    return Outcome(state=StudyState.SCORED, reason=reason, priority=_priority(row, doubts), document=document)


def partly_scored(case: Case, plan: Plan, found: Answers, model: Model, rules: Rules, top_k: int) -> Outcome:
    """A result of what has arrived so far: it may flag the study, and says nothing else (what is missing may bleed).

    Raises:
        ArtifactError: the sequence model failed.
    """
    row = _row(plan.study, found, model, top_k)
    row["triage"] = FLAG if row["triage"] == FLAG else None
    is_flagged = row["triage"] == FLAG or (model.triage is None and row["flagged"])
    priority = Priority.FLAGGED if is_flagged else Priority.ROUTINE
    document = row | _beside(case, plan, (), model, rules)
    return Outcome(state=StudyState.RECEIVING, priority=priority, document=document)


def _row(study: Study, found: Answers, model: Model, top_k: int) -> dict[str, Any]:
    judged = judge(study, found, model.study_session)
    return study_row(study, judged, model.limits, model.triage, top_k)


def _priority(row: Mapping[str, Any], doubts: Sequence[str]) -> Priority:
    """How far up a final result raises a study."""
    raised = {FLAG: Priority.FLAGGED, HUMAN_FIRST: Priority.HUMAN_FIRST, CLEAR: Priority.ROUTINE}
    if row["triage"] is not None:
        return raised[row["triage"]]
    if row["flagged"]:
        return Priority.FLAGGED
    return Priority.HUMAN_FIRST if doubts else Priority.ROUTINE


def _beside(case: Case, plan: Plan, doubts: Sequence[str], model: Model, rules: Rules) -> dict[str, Any]:
    """What the document holds beside the row of ``fastich.score``."""
    first = plan.study.series[0]
    notes = [case.notes[place(header)] for header in first.headers]
    return {
        "model": model_row(model.session, model.study_session),
        "study_rule": rule_of(model.study_session),
        "left_out": [left_row(left) for left in case.left],
        "gate": {
            "rules_sha256": rules.sha256,
            "cautions": list(doubts),
            "series": [series_row(verdict) for verdict in plan.verdicts],
        },
        "protocol": protocol(notes, first.geometry.spacing_mm, first.geometry.tilt_deg),
    }
