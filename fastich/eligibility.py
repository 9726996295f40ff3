"""What the eligibility rules say of slices and series, and which series of a study are scored: headers to verdicts.

Pure functions; a study of 40 slices costs about 3 ms. What decides stands in the rules (``gate.toml``).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastich.dicom import Series, Study
from fastich.gate_fields import NOTHING, GateFields, Uids
from fastich.gate_rules import ALLOW, CAUTION, COMPLETION, REFUSE, Kind, Rule, Rules, Values
from fastich.geometry import SAME_PLACE_MM, slice_normal
from fastich.study_rule import Place, place
from fastich.types import RejectReason, SliceHeader

MAX_SHOWN = 40
"""Characters of a header's words in a reason."""
NOT_A_PART = frozenset(
    reason.value
    for reason in (
        RejectReason.LOCALIZER,
        RejectReason.DERIVED,
        RejectReason.NOT_CT,
        RejectReason.DICOMDIR,
        RejectReason.COLOUR,
        RejectReason.DUPLICATE,
        RejectReason.CONFLICTING_DUPLICATE,
    )
)
"""Reasons of files that were never slices of the series they stand in; a file with any other one is missing there."""

FieldsOf = Mapping[Place, GateFields]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A rule that a slice or series breaks: its id, its effect (refuse or caution), and the reason in words."""

    rule: str
    effect: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SeriesVerdict:
    """What becomes of a series: scored or not, and why.

    ``num_left_out`` files of it cannot be used; ``why`` says in words why it is not scored, "" where it is.
    """

    series: Series
    kind: Kind
    findings: tuple[Finding, ...]
    num_left_out: int
    is_scored: bool
    why: str

    @property
    def cautions(self) -> tuple[str, ...]:
        """Why a study judged by it must not be called clear."""
        found = [one.reason for one in self.findings if one.effect == CAUTION]
        missing = f"{self.num_left_out} files of the series were left out"
        return (*found, missing) if self.num_left_out else tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A file that is not scored; UIDs are "" where it does not say them. ``is_missed``: its series lacks it."""

    path: str
    uids: Uids
    reason: str
    detail: str
    is_missed: bool


RULE_DETAIL = "rule "
"""What the detail of a file begins with that a rule refused; the rule's id follows."""


def left_out(rules: Rules, path: str, uids: Uids, reason: str, detail: str) -> LeftOut:
    """A file that is not scored, by a reason of the reader or of a rule."""
    others = {RULE_DETAIL + rule.id for rule in rules.rules if rule.another}
    is_missed = reason not in NOT_A_PART and detail not in others
    return LeftOut(path=path, uids=uids, reason=reason, detail=detail, is_missed=is_missed)


def slice_values(header: SliceHeader, fields: GateFields) -> dict[str, str | float | None]:
    """What rules on slices look at."""
    normal = slice_normal(header.orientation)
    angle = None if normal is None else math.degrees(math.acos(min(1.0, abs(float(normal[2])))))
    return {**dataclasses.asdict(fields), "thickness_mm": header.thickness_mm, "angle_deg": angle}


def series_values(series: Series, num_left_out: int) -> dict[str, str | float | None]:
    """What rules on series look at."""
    geometry, headers = series.geometry, series.headers
    steps = [step for step in geometry.distances_mm if step > SAME_PLACE_MM]
    thickness = [header.thickness_mm for header in headers if header.thickness_mm is not None]
    num_files = len({header.path for header in headers})
    placed = bool(geometry.distances_mm) or len(headers) < 2
    return {
        "num_slices": len(headers),
        "spacing_mm": geometry.spacing_mm or (float(np.median(thickness)) if thickness else None),
        "largest_step_mm": max(steps, default=None),
        "gap_ratio": gap_ratio(steps),
        "coverage_mm": sum(steps) if placed else None,
        "num_unplaced": 0 if placed else sum(header.instance_number is None for header in headers),
        "left_out_percent": 100 * num_left_out / (num_left_out + num_files),
    }


def gap_ratio(steps_mm: Sequence[float]) -> float | None:
    """The step that stands out most, against the larger of its neighbours; None for fewer than three steps."""
    if len(steps_mm) < 3:
        return None
    beside = [max((*steps_mm[max(i - 1, 0) : i], *steps_mm[i + 1 : i + 2])) for i in range(len(steps_mm))]
    return max(step / near for step, near in zip(steps_mm, beside, strict=True))


def finding(rule: Rule, values: Values) -> Finding | None:
    """What a rule says of ``values``; None where it is kept."""
    condition = rule.condition
    if condition.is_absent(values):
        if rule.absent == ALLOW:
            return None
        return Finding(rule=rule.id, effect=rule.absent, reason=rule.absent_reason)
    if condition.match is not None:
        found = condition.matched(values)
        return None if found is None else _found(rule, found[0], shown(found[1]))
    name = condition.fields[0]
    value = float(values[name] or 0)
    return None if condition.is_inside(value) else _found(rule, name, f"{value:.4g}")


def _found(rule: Rule, field: str, value: str) -> Finding:
    return Finding(rule=rule.id, effect=rule.effect, reason=rule.reason.format(field=field, value=value))


def shown(text: str) -> str:
    """Words of a header as reasons show them: short, without control characters."""
    return "".join(char if char.isprintable() else "?" for char in text[:MAX_SHOWN])


def of_slice(rules: Rules, header: SliceHeader, fields: GateFields) -> tuple[Finding, ...]:
    """What the rules on slices say of one; any with effect refuse keeps it from being scored."""
    values = slice_values(header, fields)
    found = (finding(rule, values) for rule in rules.rules if rule.condition.is_of_slices)
    return tuple(one for one in found if one is not None)


def refusal(findings: Iterable[Finding]) -> Finding | None:
    """The first finding that refuses."""
    return next((one for one in findings if one.effect == REFUSE), None)


def refused_slice(rules: Rules, header: SliceHeader, fields: GateFields) -> LeftOut | None:
    """A slice that a rule refuses, as what is left out; None where none does."""
    found = refusal(of_slice(rules, header, fields))
    if found is None:
        return None
    uids = Uids(study=header.study_uid, series=header.series_uid, sop=header.sop_uid)
    return left_out(rules, header.path, uids, found.reason, RULE_DETAIL + found.rule)


def waits_for_study(rules: Rules, header: SliceHeader, fields: GateFields) -> bool:
    """Whether a slice is of a kind that is scored only where a whole study needs it."""
    values = slice_values(header, fields)
    for kind in rules.kinds:
        if kind.condition is None or not kind.condition.is_of_slices:
            continue
        if kind.holds(values):
            return kind.score == COMPLETION
    return False


def of_series(
    rules: Rules, series: Series, fields: FieldsOf, num_left_out: int, *, partial: bool = False
) -> tuple[Finding, ...]:
    """What all rules say of a series, each once; of a ``partial`` one only those on slices."""
    said: dict[tuple[str, str], Finding] = {}
    for header in series.headers:
        for one in of_slice(rules, header, fields.get(place(header), NOTHING)):
            said.setdefault((one.rule, one.effect), one)
    values = series_values(series, num_left_out)
    whole = () if partial else (rule for rule in rules.rules if not rule.condition.is_of_slices)
    found = (finding(rule, values) for rule in whole)
    return (*said.values(), *(one for one in found if one is not None))


def kind_of(rules: Rules, series: Series, fields: FieldsOf) -> Kind:
    """The first kind that holds for a series, as its first slice describes it."""
    first = series.headers[0]
    values = slice_values(first, fields.get(place(first), NOTHING)) | series_values(series, 0)
    return next(kind for kind in rules.kinds if kind.holds(values))


def plan(
    rules: Rules, study: Study, fields: FieldsOf, num_left_out: Mapping[str, int], *, partial: bool = False
) -> tuple[SeriesVerdict, ...]:
    """What becomes of each series of a study, in order.

    Args:
        rules: the rules.
        study: slices that may be scored, grouped.
        fields: of its slices; a slice that is not there says nothing.
        num_left_out: by series UID, how many files of the series cannot be used.
        partial: the study still arrives, so nothing is said of what may yet come.
    """
    verdicts = []
    for series in study.series:
        missing = num_left_out.get(series.series_uid, 0)
        found = of_series(rules, series, fields, missing, partial=partial)
        refused = refusal(found)
        verdicts.append(
            SeriesVerdict(
                series=series,
                kind=kind_of(rules, series, fields),
                findings=found,
                num_left_out=missing,
                is_scored=refused is None,
                why="" if refused is None else refused.reason,
            )
        )
    return choose(verdicts, rules.cover_mm)


def choose(verdicts: Sequence[SeriesVerdict], cover_mm: float) -> tuple[SeriesVerdict, ...]:
    """Of the eligible series keep those of the lowest rank, and any that reaches beyond the kept ones."""
    eligible = sorted((one for one in verdicts if one.is_scored), key=lambda one: one.kind.rank)
    kept: list[SeriesVerdict] = []
    for one in eligible:
        if one.kind.rank == eligible[0].kind.rank or not _is_covered(one.series, [k.series for k in kept], cover_mm):
            kept.append(one)
    return tuple(one if not one.is_scored or one in kept else _left(one, kept[0]) for one in verdicts)


def _left(one: SeriesVerdict, better: SeriesVerdict) -> SeriesVerdict:
    why = f"left for a better series of the same part ({one.kind.id}, not {better.kind.id})"
    return dataclasses.replace(one, is_scored=False, why=why)


def _is_covered(series: Series, by: Sequence[Series], cover_mm: float) -> bool:
    """Whether every slice's centre lies within ``cover_mm`` of a series' stretch of the table; unknown is not."""
    stretches = [(min(z), max(z)) for z in map(centres_mm, by) if z]
    own = centres_mm(series)
    return bool(own) and all(any(low - cover_mm <= z <= high + cover_mm for low, high in stretches) for z in own)


def centres_mm(series: Series) -> list[float]:
    """Where the centres of slices lie along the table, mm; [] where any of them does not say.

    Centres, for the corner that ImagePositionPatient gives moves by centimetres with the gantry's tilt.
    """
    found = []
    for header in series.headers:
        if header.position_mm is None or header.orientation is None or header.pixel_spacing_mm is None:
            return []
        down, right = header.pixel_spacing_mm
        along_row = header.orientation[2] * right * (header.columns - 1) / 2
        along_column = header.orientation[5] * down * (header.rows - 1) / 2
        found.append(header.position_mm[2] + along_row + along_column)
    return found


def missed_by_series(left: Iterable[LeftOut]) -> Counter[str]:
    """How many files each series lacks, by its UID."""
    return Counter(one.uids.series for one in left if one.is_missed)


def why_nothing(verdicts: Sequence[SeriesVerdict], left: Sequence[LeftOut]) -> str:
    """Why no series of a study is scored: the reasons of its series, else of its files, the commonest first."""
    of_files = Counter(one.reason for one in left)
    parts = [*dict.fromkeys(one.why for one in verdicts)]
    parts += [f"{reason} ({count} file{'s'[: count > 1]})" for reason, count in of_files.most_common()]
    return "; ".join(parts[:3]) + (f"; and {len(parts) - 3} more" if len(parts) > 3 else "") or "no files"


def series_row(verdict: SeriesVerdict) -> dict[str, Any]:
    """A verdict as JSON shows it."""
    return {
        "series_uid": verdict.series.series_uid,
        "num_slices": len(verdict.series.headers),
        "kind": verdict.kind.id,
        "scored": verdict.is_scored,
        "why": verdict.why,
        "findings": [dataclasses.asdict(one) for one in verdict.findings],
        "num_left_out": verdict.num_left_out,
    }


def left_row(left: LeftOut) -> dict[str, Any]:
    """A file that is not scored as JSON shows it."""
    return {
        "path": left.path,
        "sop_uid": left.uids.sop,
        "series_uid": left.uids.series,
        "reason": left.reason,
        "detail": left.detail,
        "missed": left.is_missed,
    }
