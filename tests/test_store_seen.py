"""Who acknowledges has seen a result: what came after it, and says more, is not acknowledged with it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_data import WHO, Clock, instance, outcome, study_uid

from fastich.serve.entities import InstanceState, Priority, Study, StudyState
from fastich.serve.store import Store, open_store
from fastich.serve.store.seen import UnseenError

ONE = study_uid(1)
RAISED = Priority.FLAGGED


@pytest.fixture
def store(database: str | Path) -> Iterator[Store]:
    with contextlib.closing(open_store(database, clock=Clock())) as made:
        yield made


def judged(store: Store, number: int, priority: Priority, *findings: str, partial: bool = False) -> int:
    """One more instance of the study, and its result; the result's number."""
    store.add_instance(instance(number), WHO)
    (one,) = store.lease_instances(9, 60, max_attempts=3)
    store.finish_instance(one.sop_uid, InstanceState.SCORED)
    state = StudyState.RECEIVING if partial else StudyState.SCORED
    said = outcome(priority, state, findings=list(findings))
    if partial:
        store.add_partial(ONE, number, said)
    else:
        assert store.finish_study(ONE, number, said)
    return store.scores_of(ONE)[-1].score_id


def study(store: Store) -> Study:
    found = store.study(ONE)
    assert found is not None
    return found


@pytest.mark.parametrize("partial", [True, False])
def test_11_positive_that_nobody_saw_is_not_acknowledged_with_the_routine_result_shown(
    store: Store, partial: bool
) -> None:
    shown = judged(store, 1, Priority.ROUTINE)
    newer = judged(store, 2, RAISED, "any", partial=partial)
    for score_id in (None, shown):
        with pytest.raises(UnseenError, match="a newer result says more than what was shown; nothing acknowledged"):
            store.acknowledge(ONE, "reader", score_id=score_id)
        assert study(store).acknowledged_at is None
    assert store.acknowledge(ONE, "reader", score_id=newer)


def test_11_finding_that_nobody_saw_is_not_acknowledged_with_the_one_shown(store: Store) -> None:
    shown = judged(store, 1, RAISED, "any")
    judged(store, 2, RAISED, "any", "subdural")
    with pytest.raises(UnseenError, match="look at it again"):
        store.acknowledge(ONE, "reader", score_id=shown)


def test_newer_result_that_says_no_more_is_acknowledged_with_the_one_shown(store: Store) -> None:
    shown = judged(store, 1, RAISED, "any", partial=True)
    judged(store, 2, Priority.ROUTINE, partial=True)
    judged(store, 3, RAISED, "any")
    assert store.acknowledge(ONE, "reader", score_id=shown)


def test_partial_result_that_says_less_was_seen_at_the_place_that_the_study_has(store: Store) -> None:
    judged(store, 1, RAISED, "any", partial=True)
    shown = judged(store, 2, Priority.ROUTINE, partial=True)
    assert study(store).priority is RAISED
    assert store.acknowledge(ONE, "reader", score_id=shown)


@pytest.mark.parametrize(("found", "still"), [(("any", "subdural"), False), (("any",), True)])
def test_11_later_final_result_with_a_further_finding_is_not_acknowledged_any_more(
    store: Store, found: tuple[str, ...], still: bool
) -> None:
    store.acknowledge(ONE, "reader", score_id=judged(store, 1, RAISED, "any"))
    judged(store, 2, RAISED, *found)
    assert (study(store).acknowledged_at is not None) is still


def test_11_study_that_fell_and_rises_again_is_not_acknowledged_any_more(store: Store) -> None:
    store.acknowledge(ONE, "reader", score_id=judged(store, 1, RAISED, "any"))
    judged(store, 2, Priority.ROUTINE)
    assert study(store).acknowledged_at is not None
    judged(store, 3, RAISED, "any")
    assert study(store).acknowledged_at is None
