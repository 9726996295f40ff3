from hypothesis import given
from hypothesis import strategies as st
from serve_data import ORIGIN, WHO

from fastich.serve.entities import Priority, Study, StudyState
from fastich.serve.ordering import in_worklist_order, raised_to


def a_study(
    number: int, at: float, priority: Priority, state: StudyState = StudyState.SCORED, acknowledged: bool = False
) -> Study:
    return Study(
        study_uid=f"2.25.{number}",
        description=WHO,
        origin=ORIGIN,
        arrived_at=at,
        last_at=at,
        revision=1,
        num_instances=1,
        num_waiting=0,
        num_conflicts=0,
        state=state,
        reason="",
        priority=priority,
        scored_revision=1,
        score_id=None,
        document=None,
        final_at=None,
        acknowledged_by="reader" if acknowledged else None,
        acknowledged_at=at if acknowledged else None,
        expected_instances=None,
    )


def order(*studies: Study) -> list[str]:
    return [study.study_uid for study in in_worklist_order(studies)]


LISTS = st.lists(
    st.tuples(st.floats(0, 1e9), st.sampled_from(Priority), st.sampled_from(StudyState), st.booleans()),
    max_size=12,
).map(lambda rows: [a_study(i, at, *rest) for i, (at, *rest) in enumerate(rows)])


@given(LISTS)
def test_no_study_stands_below_one_that_arrived_later_unless_that_one_is_raised(studies: list[Study]) -> None:
    shown = in_worklist_order(studies)
    for place, study in enumerate(shown):
        for above in shown[:place]:
            assert above.arrived_at <= study.arrived_at or raised_to(above) > raised_to(study)


@given(LISTS)
def test_every_study_is_shown_once_and_none_lower_than_its_place_by_arrival_among_those_not_raised(
    studies: list[Study],
) -> None:
    shown = in_worklist_order(studies)
    assert sorted(study.study_uid for study in shown) == sorted(study.study_uid for study in studies)
    routine = [study.arrived_at for study in shown if raised_to(study) is Priority.ROUTINE]
    assert routine == sorted(routine)


def test_flagged_stand_above_human_first_and_both_above_the_rest_each_by_arrival() -> None:
    rest = a_study(1, 1.0, Priority.ROUTINE)
    human, late_human = a_study(2, 2.0, Priority.HUMAN_FIRST), a_study(3, 3.0, Priority.HUMAN_FIRST)
    flagged, late_flagged = a_study(4, 4.0, Priority.FLAGGED), a_study(5, 5.0, Priority.FLAGGED)
    expected = [one.study_uid for one in (flagged, late_flagged, human, late_human, rest)]
    assert order(rest, late_human, late_flagged, human, flagged) == expected


def test_acknowledged_study_goes_back_to_its_place_by_arrival() -> None:
    seen = a_study(1, 2.0, Priority.FLAGGED, acknowledged=True)
    assert order(seen, a_study(2, 1.0, Priority.ROUTINE), a_study(3, 3.0, Priority.ROUTINE)) == [
        "2.25.2",
        "2.25.1",
        "2.25.3",
    ]


def test_clear_not_evaluated_failed_and_receiving_are_treated_alike() -> None:
    studies = [a_study(i, 10.0 - i, Priority.ROUTINE, state) for i, state in enumerate(StudyState)]
    assert order(*studies) == [study.study_uid for study in reversed(studies)]


def test_equals_keep_one_order() -> None:
    twins = [a_study(i, 1.0, Priority.ROUTINE) for i in (2, 1)]
    assert order(*twins) == order(*reversed(twins)) == ["2.25.1", "2.25.2"]
