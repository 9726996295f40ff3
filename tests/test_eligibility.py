import dataclasses
from typing import Any

import numpy as np
import pytest

from fastich.dicom import Series, Study, group_studies
from fastich.eligibility import (
    SeriesVerdict,
    centres_mm,
    gap_ratio,
    left_out,
    of_slice,
    plan,
    refusal,
    waits_for_study,
    why_nothing,
)
from fastich.gate_fields import NOTHING, GateFields, Uids
from fastich.gate_rules import load_rules
from fastich.study_rule import place
from fastich.types import RejectReason, SliceHeader

RULES = load_rules()
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def header(
    number: int = 0, *, series: str = "1.2", step_mm: float = 5.0, from_mm: float = 0.0, **changes: Any
) -> SliceHeader:
    values: dict[str, Any] = {
        "path": f"{series}-{number}",
        "frame": 0,
        "sop_uid": f"{series}.{number}",
        "study_uid": "1",
        "series_uid": series,
        "patient_id": "P",
        "rows": 512,
        "columns": 512,
        "pixel_spacing_mm": (0.5, 0.5),
        "position_mm": (-125.0, -125.0, from_mm + step_mm * number),
        "orientation": AXIAL,
        "thickness_mm": None,
        "header_tilt_deg": None,
        "instance_number": number,
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "bits_stored": 16,
        "signed": True,
        "encoding": "signed16",
        "window": None,
    }
    return SliceHeader(**(values | changes))


def stack(count: int = 30, **changes: Any) -> list[SliceHeader]:
    return [header(number, **changes) for number in range(count)]


def study(*stacks: list[SliceHeader]) -> Study:
    (one,) = group_studies([header for stack in stacks for header in stack])
    return one


def verdicts(
    *stacks: list[SliceHeader], fields: dict[str, GateFields] | None = None, **changes: Any
) -> tuple[SeriesVerdict, ...]:
    """By series UID what its slices say."""
    whole = study(*stacks)
    said = {
        place(one): (fields or {}).get(series.series_uid, NOTHING) for series in whole.series for one in series.headers
    }
    return plan(RULES, whole, said, {}, **changes)


def refused(fields: GateFields = NOTHING, **changes: Any) -> str:
    found = refusal(of_slice(RULES, header(**changes), fields))
    return "" if found is None else found.reason


def test_bare_header_is_eligible_without_doubts() -> None:
    (one,) = verdicts(stack())
    assert (one.is_scored, one.why, one.cautions, one.kind.id) == (True, "", (), "thick")


@pytest.mark.parametrize(
    "fields",
    [
        {"body_part": "HEAD"},
        {"body_part": "BRAIN"},
        {"series_description": "Head 5.0 H31s"},
        {"study_description": "CT HEAD AND NECK"},
        {"study_description": "CT TRAUMA: chest abdomen", "series_description": "BRAIN 5mm"},
        {"series_description": "ROUTINE 5mm"},
        {"body_part": "CHEST", "series_description": "Neuro Head"},
        {"study_description": "Schaedel nativ"},
    ],
)
def test_head_or_unknown_is_eligible(fields: dict[str, str]) -> None:
    assert refused(GateFields(**fields)) == ""


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"body_part": "CHEST"}, "body_part says CHEST"),
        ({"body_part": "CSPINE"}, "body_part says CSPINE"),
        ({"series_description": "C-SPINE 2.0"}, "series_description says C-SPINE"),
        ({"study_description": "CT Abdomen/Pelvis"}, "study_description says Abdomen"),
        ({"study_description": "CT HEAD", "series_description": "Thorax 1mm"}, "series_description says Thorax"),
        ({"body_part": "HEAD", "series_description": "CHEST"}, "series_description says CHEST"),
        ({"protocol_name": "facial bones"}, "protocol_name says facial"),
    ],
)
def test_other_body_parts_are_refused_and_the_most_specific_field_decides(fields: dict[str, str], says: str) -> None:
    assert refused(GateFields(**fields)) == f"not a head CT: {says}"


@pytest.mark.parametrize(
    "fields",
    [
        {"series_description": "HEAD C+"},
        {"series_description": "CTA HEAD"},
        {"series_description": "Head Angio 0.6"},
        {"study_description": "CT HEAD WITH CONTRAST"},
        {"protocol_name": "CT Perfusion"},
        {"series_description": "post contrast head"},
        {"series_description": "DELAYED HEAD"},
    ],
)
def test_words_of_contrast_are_refused(fields: dict[str, str]) -> None:
    assert refused(GateFields(**fields)).startswith("contrast study: ")


@pytest.mark.parametrize(
    "fields",
    [
        {"series_description": "HEAD C-"},
        {"series_description": "HEAD W/O 5mm", "study_description": "CTA HEAD"},
        {"series_description": "non-contrast head", "protocol_name": "CT Angio"},
        {"study_description": "CT HEAD WITHOUT CONTRAST"},
        {"study_description": "CT head w/wo"},
        {"contrast_agent": "NONE"},
        {"contrast_agent": "no contrast"},
        {"series_description": "Octa 5mm"},
    ],
)
def test_words_of_no_contrast_are_eligible(fields: dict[str, str]) -> None:
    assert refused(GateFields(**fields)) == ""


def test_contrast_agent_is_refused_without_repeating_its_text() -> None:
    assert refused(GateFields(contrast_agent="given by DOE^JOHN")) == "contrast agent was given (ContrastBolusAgent)"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kvp": 60.0}, "tube voltage 60 kV, expected 70 to 150"),
        ({"kvp": 160.0}, "tube voltage 160 kV, expected 70 to 150"),
        ({"kvp": 120.0}, ""),
        ({"age_years": 17.9}, "age below 18"),
        ({"age_years": 18.0}, ""),
    ],
)
def test_voltage_and_age_keep_their_bounds(changes: dict[str, float], reason: str) -> None:
    assert refused(GateFields(**changes)) == reason


@pytest.mark.parametrize(("degrees", "is_axial"), [(0, True), (30, True), (-34, True), (36, False), (90, False)])
def test_slices_up_to_35_degrees_from_axial_are_eligible(degrees: int, is_axial: bool) -> None:
    angle = np.radians(degrees)
    tilted = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(-np.sin(angle)))
    assert (refused(orientation=tilted) == "") is is_axial


def test_words_of_headers_are_cut_and_printable_in_reasons() -> None:
    rules = dataclasses.replace(RULES, rules=tuple(rule for rule in RULES.rules if rule.id == "non-contrast words"))
    found = refusal(of_slice(rules, header(), GateFields(series_description="angio" + "x" * 90)))
    assert found is not None
    assert found.reason == "contrast study: series_description says angio" + "x" * 35


@pytest.mark.parametrize(
    ("stacked", "why"),
    [
        (stack(9), "9 slices, expected 10 to 1200"),
        (stack(20, step_mm=11.0), "slices lie 11 mm apart, expected 0.2 to 10.5"),
        (
            stack(12, position_mm=None, instance_number=None),
            "12 slices have neither position nor number: their order is unknown",
        ),
        (stack(30, thickness_mm=12.0), "slice thickness 12 mm, expected 0.3 to 10"),
        (stack(10) + [header(number + 5) for number in range(10, 20)], "a gap of 30 mm, at most 20"),
    ],
)
def test_series_beyond_the_rules_is_not_scored(stacked: list[SliceHeader], why: str) -> None:
    (one,) = verdicts(stacked)
    assert (one.is_scored, one.why) == (False, why)


def test_thin_base_below_a_thick_vertex_has_no_gap_and_a_missing_slice_has() -> None:
    assert gap_ratio([2.5] * 10 + [5.0] * 10) == 1.0
    assert gap_ratio([5.0] * 5 + [10.0] + [5.0] * 5) == 2.0
    assert gap_ratio([2.5] * 5 + [5.0] + [2.5] * 5) == 2.0
    assert gap_ratio([5.0, 9.0]) is None


def test_order_by_number_is_a_doubt() -> None:
    (one,) = verdicts(stack(20, position_mm=None))
    assert one.is_scored
    assert "the header does not say how the slices lie" not in one.cautions
    assert "distances between slices are unknown" in one.cautions


def test_series_without_orientation_is_a_doubt() -> None:
    (one,) = verdicts(stack(20, orientation=None))
    assert one.is_scored
    assert "the header does not say how the slices lie" in one.cautions


def test_short_stretch_of_the_head_is_a_doubt() -> None:
    (one,) = verdicts(stack(12))
    assert one.cautions == ("55 mm of the head only, expected 70 or more",)


def test_partial_study_is_judged_by_its_slices_only() -> None:
    (one,) = verdicts(stack(2), partial=True)
    assert one.is_scored


def scored_of(*stacks: list[SliceHeader], fields: dict[str, GateFields] | None = None) -> list[str]:
    return [one.series.series_uid for one in verdicts(*stacks, fields=fields) if one.is_scored]


def test_thick_soft_series_is_preferred_over_thin_and_bone() -> None:
    thick, thin, bone = stack(series="1.1"), stack(150, series="1.2", step_mm=1.0), stack(series="1.3")
    fields = {"1.3": GateFields(kernel="BONEPLUS")}
    assert scored_of(thick, thin, bone, fields=fields) == ["1.1"]
    assert scored_of(thin, bone, fields=fields) == ["1.2"]
    assert scored_of(bone, fields=fields) == ["1.3"]


@pytest.mark.parametrize("kernel", ["BONE", "EDGE", "H60s", "H70h", "Br60f", "Hr64h\\3", "FC30", "FC81", "YC", "LUNG"])
def test_sharp_kernels_wait_for_the_study(kernel: str) -> None:
    assert waits_for_study(RULES, header(), GateFields(kernel=kernel))


@pytest.mark.parametrize("kernel", ["", "STANDARD", "SOFT", "STD+", "H31s", "Hr38f\\3", "J40s", "FC26", "FC68", "UB"])
def test_soft_kernels_are_scored_as_they_arrive(kernel: str) -> None:
    assert not waits_for_study(RULES, header(), GateFields(kernel=kernel))


def test_series_of_equal_rank_are_all_scored() -> None:
    assert scored_of(stack(series="1.1"), stack(series="1.2")) == ["1.1", "1.2"]


def test_less_preferred_series_is_scored_where_it_shows_what_the_others_do_not() -> None:
    vertex = stack(20, series="1.1", from_mm=50.0)
    base = stack(60, series="1.2", step_mm=1.0, from_mm=-9.0)
    assert scored_of(vertex, base) == ["1.1", "1.2"]
    inside = stack(60, series="1.2", step_mm=1.0, from_mm=40.0)
    assert scored_of(vertex, inside) == ["1.1"]


def test_series_that_does_not_say_where_it_lies_is_never_left_for_another() -> None:
    unknown = stack(20, series="1.2", position_mm=None)
    assert scored_of(stack(series="1.1"), unknown) == ["1.1", "1.2"]


def test_centres_are_where_the_middle_of_a_tilted_slice_is() -> None:
    angle = np.radians(20)
    tilted = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(-np.sin(angle)))
    (series,) = study(stack(3, orientation=tilted)).series
    assert centres_mm(series) == pytest.approx([5.0 * n - np.sin(angle) * 0.5 * 511 / 2 for n in range(3)])


def test_files_of_the_series_that_cannot_be_used_are_counted() -> None:
    whole = study(stack(28))
    (few,) = plan(RULES, whole, {}, {"1.2": 2})
    (many,) = plan(RULES, whole, {}, {"1.2": 4})
    assert few.cautions == ("2 files of the series were left out",)
    assert many.why == "12.5 % of its files cannot be used, at most 10"


@pytest.mark.parametrize("reason", list(RejectReason))
def test_only_files_that_were_never_slices_are_not_missed(reason: RejectReason) -> None:
    others = {"LOCALIZER", "DERIVED", "NOT_CT", "DICOMDIR", "COLOUR", "DUPLICATE", "CONFLICTING_DUPLICATE"}
    found = left_out(RULES, "x", Uids(), reason.value, "")
    assert found.is_missed is (reason.name not in others)


def test_slices_that_a_rule_refuses_are_missed_but_for_another_orientation() -> None:
    assert left_out(RULES, "x", Uids(), "contrast", "rule non-contrast agent").is_missed
    assert left_out(RULES, "x", Uids(), "anything", "rule that is gone").is_missed
    assert not left_out(RULES, "x", Uids(), "not axial", "rule axial").is_missed


def test_why_nothing_is_scored_names_at_most_three_reasons() -> None:
    left = [left_out(RULES, "x", Uids(), reason, "") for reason in ("a", "a", "b", "c", "d")]
    assert why_nothing((), left) == "a (2 files); b (1 file); c (1 file); and 1 more"
    assert why_nothing((), ()) == "no files"


def test_series_of_several_sizes_is_judged_in_parts() -> None:
    mixed = [*stack(20), *[header(number + 20, rows=256, columns=256) for number in range(3)]]
    large, small = verdicts(mixed)
    assert isinstance(large.series, Series)
    assert (large.is_scored, small.why) == (True, "3 slices, expected 10 to 1200")
