"""Why a study must not be called clear: one rule for the triage server, its dry run and ``fastich.score``.

The three-way rule was calibrated on whole head studies, so its promise says nothing of a part of one: a lone slice, a
series with a hole, a study of which files were damaged. What counts as whole stands in the eligibility rules
(``gate.toml``); here is what follows from them. A study in doubt can be flagged; it is never cleared, a human looks at
it first. Pure functions, about 3 ms a study of 40 slices.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastich.conformal import CLEAR, HUMAN_FIRST
from fastich.dicom import Study, group_studies
from fastich.eligibility import (
    RULE_DETAIL,
    FieldsOf,
    LeftOut,
    SeriesVerdict,
    missed_by_series,
    plan,
    refused_slice,
    why_nothing,
)
from fastich.gate_fields import NOTHING
from fastich.gate_rules import Rules
from fastich.study_rule import place
from fastich.types import RejectReason, SliceHeader

LACKS = frozenset({"left_out_percent", "largest_step_mm", "gap_ratio"})
"""Values of a series that tell of files that it lacks."""


def settled(triage: str | None, doubts: Sequence[str]) -> str | None:
    """What the three-way rule's decision becomes: in doubt a human looks at what would be clear."""
    return HUMAN_FIRST if triage == CLEAR and doubts else triage


def contradiction(row: Mapping[str, Any]) -> tuple[str, ...]:
    """Doubt where the three-way rule, whose limits are its own, would clear what reaches a threshold.

    ``row`` is a study as ``score.study_row`` gives it.
    """
    reached = row["findings"] or (["any"] if row["flagged"] else [])
    if row["triage"] != CLEAR or not reached:
        return ()
    return (f"clear by the three-way rule, yet at the threshold of {', '.join(reached)}",)


def conflicts(count: int) -> tuple[str, ...]:
    """Doubt about files that came under the UIDs of others."""
    return (f"{count} files came under UIDs that were taken, with other pixels",) if count else ()


def mixed(num_patients: int) -> str:
    """Doubt about a study whose slices name several patients."""
    return f"slices of {num_patients} patients in one study"


def of_plan(verdicts: Sequence[SeriesVerdict], left: Sequence[LeftOut], rules: Rules) -> tuple[str, ...]:
    """Doubts about a study by what is said of its series, and by the files of it that cannot be used."""
    if not any(one.is_scored for one in verdicts):
        return (why_nothing(verdicts, left),)
    cautions = (caution for one in verdicts if one.is_scored for caution in one.cautions)
    return tuple(dict.fromkeys((*cautions, *_damaged_elsewhere(verdicts, left), *_set_aside(verdicts, rules))))


def _damaged_elsewhere(verdicts: Sequence[SeriesVerdict], left: Sequence[LeftOut]) -> list[str]:
    """Doubt about files that cannot be used and that belong to no scored series: they may be what it was made for.

    Not of files that a rule refused: those are another examination, such as an angiogram beside a plain head.
    """
    chosen = {one.series.series_uid for one in verdicts if one.is_scored}
    lost = [one for one in left if one.is_missed and one.uids.series not in chosen]
    count = sum(not one.detail.startswith(RULE_DETAIL) for one in lost)
    return [f"{count} files of series that are not scored cannot be used"] if count else []


def _set_aside(verdicts: Sequence[SeriesVerdict], rules: Rules) -> list[str]:
    """Doubts about series that would have been taken before a scored one, were it not for files that they lack."""
    about_lacks = {rule.id for rule in rules.rules if LACKS.intersection(rule.condition.fields)}
    worst = max(one.kind.rank for one in verdicts if one.is_scored)
    return [
        f"a series was set aside: {finding.reason}"
        for one in verdicts
        if not one.is_scored and one.kind.rank <= worst
        for finding in one.findings
        if finding.rule in about_lacks
    ]


def of_studies(
    studies: Sequence[Study], fields: FieldsOf, left: Iterable[LeftOut], rules: Rules
) -> list[tuple[str, ...]]:
    """Doubts about each of ``studies``, all of whose slices are scored: what the server, which gates, would doubt.

    Args:
        studies: as ``group_studies`` gives them.
        fields: of their slices; a slice that is not there says nothing.
        left: the files that cannot be used; those of unknown study are nobody's.
        rules: the eligibility rules.
    """
    left_of, patients_of = defaultdict(list), defaultdict(set)
    for one in left:
        left_of[one.uids.study].append(one)
    for study in studies:
        patients_of[study.study_uid].add(study.patient_id)
    return [
        (mixed(len(patients_of[study.study_uid])),)
        if len(patients_of[study.study_uid]) > 1
        else _of_study(study, fields, left_of[study.study_uid], rules)
        for study in studies
    ]


def _of_study(study: Study, fields: FieldsOf, left: Sequence[LeftOut], rules: Rules) -> tuple[str, ...]:
    kept: list[SliceHeader] = []
    refused: list[LeftOut] = []
    for header in (header for series in study.series for header in series.headers):
        found = refused_slice(rules, header, fields.get(place(header), NOTHING))
        if found is None:
            kept.append(header)
        else:
            refused.append(found)
    whole = group_studies(kept)
    out = [*left, *refused]
    verdicts = plan(rules, whole[0], fields, missed_by_series(out)) if whole else ()
    taken = sum(one.reason == RejectReason.CONFLICTING_DUPLICATE.value for one in left)
    return (*conflicts(taken), *of_plan(verdicts, out, rules))
