"""Every method of the Store, on SQLite and on PostgreSQL."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_data import ORIGIN, WHO, Clock, instance, outcome, scored_slice, study_uid, uid

from fastich.errors import FastichError, StoreError
from fastich.serve.entities import (
    Delivery,
    DeliveryState,
    InstanceState,
    Origin,
    Outcome,
    Priority,
    Study,
    StudyState,
)
from fastich.serve.ordering import in_worklist_order
from fastich.serve.store import Store, open_store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: str | Path, clock: Clock) -> Iterator[Store]:
    with contextlib.closing(open_store(database, clock=clock)) as made:
        yield made


def the_study(store: Store, number: int = 1) -> Study:
    found = store.study(study_uid(number))
    assert found is not None
    return found


def finish(store: Store, number: int = 1, priority: Priority = Priority.ROUTINE, **changes: Any) -> bool:
    """Score what waits of a study and write its final result."""
    for one in store.instances_of(study_uid(number)):
        store.finish_instance(one.sop_uid, InstanceState.SCORED)
    revision = the_study(store, number).revision
    return store.finish_study(study_uid(number), revision, outcome(priority), **changes)


def kinds(store: Store) -> list[tuple[str, str]]:
    return [(event.kind, str(event.values.get("what", ""))) for event in store.events_after(0, 1000)]


# Receiving.


def test_instance_makes_its_study(store: Store) -> None:
    assert store.add_instance(instance(1, at=5.0), WHO)
    study = the_study(store)
    assert (study.description, study.origin, study.arrived_at, study.last_at) == (WHO, ORIGIN, 5.0, 5.0)
    assert (study.revision, study.num_instances, study.num_waiting, study.num_conflicts) == (1, 1, 1, 0)
    assert (study.state, study.priority, study.scored_revision) == (StudyState.RECEIVING, Priority.ROUTINE, 0)
    assert (study.score_id, study.document, study.final_at, study.acknowledged_at) == (None, None, None, None)
    assert study.expected_instances is None


def test_instance_comes_back_as_it_was(store: Store) -> None:
    store.add_instance(instance(1, at=5.25), WHO)
    assert store.find_instance(uid(1)) == instance(1, at=5.25)
    assert store.find_instance(uid(2)) is None


def test_later_instance_moves_the_study_on_and_keeps_its_arrival_and_description(store: Store) -> None:
    store.add_instance(instance(1, at=5.0), WHO)
    store.add_instance(instance(2, at=9.0), dataclasses.replace(WHO, patient_name="OTHER"))
    store.add_instance(instance(3, at=7.0), WHO)
    study = the_study(store)
    assert (study.revision, study.num_instances, study.arrived_at, study.last_at) == (3, 3, 5.0, 9.0)
    assert study.description == WHO


def test_instance_that_is_here_already_changes_nothing(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    before = the_study(store), store.last_event_id()
    assert not store.add_instance(instance(1), WHO)
    assert not store.add_instance(instance(1, study=2), WHO)
    assert (the_study(store), store.last_event_id()) == before
    assert store.study(study_uid(2)) is None


def test_conflict_is_counted_once_for_each_object(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    for name in ("a" * 64, "a" * 64, "b" * 64):
        store.add_conflict(uid(1), study_uid(1), name, ORIGIN)
    assert the_study(store).num_conflicts == 2
    assert the_study(store).revision == 3
    assert kinds(store) == [("study", "instance"), ("study", "conflict"), ("study", "conflict")]


def test_conflict_after_the_final_result_has_the_study_judged_again(store: Store, clock: Clock) -> None:
    store.add_instance(instance(1), WHO)
    finish(store)
    clock.now += 100
    for _ in range(2):
        store.add_conflict(uid(1), study_uid(1), "a" * 64, ORIGIN)
        assert (the_study(store).state, the_study(store).revision) == (StudyState.RECEIVING, 2)
        assert (the_study(store).last_at, the_study(store).final_at) == (clock.now, None)
    assert not store.finish_study(study_uid(1), 1, outcome())


@pytest.mark.parametrize(
    ("counts", "num_judged"), [([2], 0), ([1], 0), ([3], 1), ([3, 3], 1), ([3, 2], 2), ([3, 4, 1], 3)]
)
def test_expected_count_that_is_not_here_has_the_study_judged_again(
    store: Store, counts: list[int], num_judged: int
) -> None:
    for number in (1, 2):
        store.add_instance(instance(number), WHO)
    for count in counts:
        finish(store)
        store.expect(study_uid(1), count)
    finals = [one.revision for one in store.scores_of(study_uid(1))]
    assert the_study(store).revision == 2 + num_judged
    assert (the_study(store).state is StudyState.RECEIVING) == (finals[-1] < 2 + num_judged)


def test_own_objects_are_known_again(store: Store) -> None:
    assert not store.is_own(uid(7))
    for _ in range(2):
        store.add_own(uid(7), study_uid(1), "sr")
    assert store.is_own(uid(7))


def test_expected_count_may_be_said_before_the_study_is_here_and_again(store: Store) -> None:
    store.expect(study_uid(1), 40)
    store.add_instance(instance(1), WHO)
    assert the_study(store).expected_instances == 40
    store.expect(study_uid(1), 41)
    assert the_study(store).expected_instances == 41


def test_waiting_instances_are_counted(store: Store) -> None:
    assert store.count_waiting() == 0
    for number in range(3):
        store.add_instance(instance(number), WHO)
    store.lease_instances(1, 10, max_attempts=3)
    assert store.count_waiting() == 3
    store.finish_instance(uid(0), InstanceState.FAILED)
    assert store.count_waiting() == 2


def test_object_is_referenced_by_its_instance_or_as_a_conflict(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    store.add_conflict(uid(1), study_uid(1), "a" * 64, ORIGIN)
    found = [store.is_referenced(name) for name in (f"{1:064x}", "a" * 64, "b" * 64)]
    assert found == [True, True, False]
    store.restore_object(uid(1), "b" * 64)
    assert [store.is_referenced(name) for name in (f"{1:064x}", "b" * 64)] == [False, True]


# Scoring.


def test_leases_are_the_oldest_first_and_go_to_one_taker(store: Store) -> None:
    for number in (3, 1, 2):
        store.add_instance(instance(number, at=float(number)), WHO)
    first = store.lease_instances(2, 10, max_attempts=3)
    second = store.lease_instances(2, 10, max_attempts=3)
    assert [one.sop_uid for one in first] == [uid(1), uid(2)]
    assert [one.sop_uid for one in second] == [uid(3)]
    assert [one.attempts for one in (*first, *second)] == [1, 1, 1]
    assert store.lease_instances(2, 10, max_attempts=3) == []


def test_lease_that_ran_out_is_given_again_and_counts_as_an_attempt(store: Store, clock: Clock) -> None:
    store.add_instance(instance(1), WHO)
    store.lease_instances(1, 10, max_attempts=3)
    clock.now += 9.9
    assert store.lease_instances(1, 10, max_attempts=3) == []
    clock.now += 0.1
    assert [one.attempts for one in store.lease_instances(1, 10, max_attempts=3)] == [2]


def test_instance_that_was_tried_too_often_becomes_failed_with_a_reason(store: Store, clock: Clock) -> None:
    store.add_instance(instance(1), WHO)
    for _ in range(3):
        assert len(store.lease_instances(5, 10, max_attempts=3)) == 1
        clock.now += 10
    assert store.lease_instances(5, 10, max_attempts=3) == []
    found = store.find_instance(uid(1))
    assert found is not None
    assert (found.state, found.reason, found.attempts) == (InstanceState.FAILED, "tried 3 times", 3)
    assert kinds(store)[-1] == ("study", "instance failed")
    assert [one.study_uid for one in store.due_studies(0, 10)] == [study_uid(1)]


def test_lease_that_ran_out_costs_nothing_that_is_still_held(store: Store, clock: Clock) -> None:
    for number in (1, 2):
        store.add_instance(instance(number, at=float(number)), WHO)
    held = [one.sop_uid for one in store.lease_instances(1, 10, max_attempts=1)]
    clock.now += 100
    assert [one.sop_uid for one in store.lease_instances(5, 10, max_attempts=1, held=held)] == [uid(2)]
    found = store.find_instance(uid(1))
    assert found is not None
    assert (found.state, found.attempts) == (InstanceState.WAITING, 1)


def test_object_that_ends_the_process_fails_alone_and_none_of_its_neighbours(store: Store) -> None:
    for number in range(1, 7):
        store.add_instance(instance(number, at=float(number)), WHO)
    for _ in range(20):  # processes
        store.free_instances()
        while taken := [one.sop_uid for one in store.lease_instances(5, 600, max_attempts=3)]:
            if uid(3) in taken:
                break  # it dies with all of them in hand
            for one in taken:
                store.finish_instance(one, InstanceState.SCORED)
    states = {one.sop_uid: one.state for one in store.instances_of(study_uid(1))}
    assert states.pop(uid(3)) is InstanceState.FAILED
    assert set(states.values()) == {InstanceState.SCORED}


def test_one_that_was_in_work_at_a_crash_waits_until_nothing_is_held(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    store.lease_instances(1, 600, max_attempts=3)
    store.free_instances()
    store.add_instance(instance(2), WHO)
    assert store.lease_instances(5, 600, max_attempts=3, held=[uid(7)]) == []
    assert [one.sop_uid for one in store.lease_instances(5, 600, max_attempts=3)] == [uid(1)]


def test_work_that_is_given_back_is_free_at_once_and_its_try_does_not_count(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    store.lease_instances(1, 10, max_attempts=3)
    store.release_instances([uid(1), uid(99)])
    assert [one.attempts for one in store.lease_instances(1, 10, max_attempts=3)] == [1]


def test_finished_work_is_not_given_back(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    store.lease_instances(1, 10, max_attempts=3)
    store.finish_instance(uid(1), InstanceState.NOT_EVALUATED, "not CT", "modality MR")
    store.release_instances([uid(1)])
    found = store.find_instance(uid(1))
    assert found is not None
    assert (found.state, found.reason, found.detail) == (InstanceState.NOT_EVALUATED, "not CT", "modality MR")
    assert store.lease_instances(1, 10, max_attempts=3) == []


def test_scored_slices_come_back_bit_for_bit(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    slices = [scored_slice(1, frame=frame) for frame in (0, 1)]
    store.finish_instance(uid(1), InstanceState.SCORED, slices=slices)
    found = store.scored_slices(study_uid(1))
    assert [one.header for one in found] == [one.header for one in slices]
    for read, written in zip(found, slices, strict=True):
        for name in ("probability", "logit", "embedding", "cam"):
            given_back, given = getattr(read.answer, name), getattr(written.answer, name)
            assert given_back.dtype == np.float32
            np.testing.assert_array_equal(given_back, given, strict=True)


def test_slice_without_embedding_and_map_comes_back_without(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    bare = scored_slice(1, position_mm=None, orientation=None, pixel_spacing_mm=None, window=(40.0, 80.0))
    bare = dataclasses.replace(bare, answer=dataclasses.replace(bare.answer, embedding=None, cam=None))
    store.finish_instance(uid(1), InstanceState.SCORED, slices=[bare])
    (found,) = store.scored_slices(study_uid(1))
    assert found.header == bare.header
    assert (found.answer.embedding, found.answer.cam) == (None, None)


def test_instance_that_is_finished_twice_keeps_the_first_result(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    store.finish_instance(uid(1), InstanceState.SCORED, slices=[scored_slice(1)])
    store.finish_instance(uid(1), InstanceState.FAILED, "late", slices=[scored_slice(2)])
    store.finish_instance(uid(99), InstanceState.SCORED)
    found = store.find_instance(uid(1))
    assert found is not None
    assert (found.state, found.reason) == (InstanceState.SCORED, "")
    assert [one.header.sop_uid for one in store.scored_slices(study_uid(1))] == [uid(1)]


def test_slices_that_are_scored_again_replace_those_before_and_are_no_news(store: Store) -> None:
    for number in (1, 2, 3):
        store.add_instance(instance(number), WHO)
    store.finish_instance(uid(1), InstanceState.SCORED, slices=[scored_slice(1)])
    store.finish_instance(uid(2), InstanceState.NOT_EVALUATED, "needs its neighbours")
    store.add_partial(study_uid(1), 3, outcome())
    again = {uid(number): [scored_slice(10 + number, frame=frame) for frame in (0, 1)] for number in (1, 2, 3, 99)}
    store.rescore_instances("in order", again)
    found = store.scored_slices(study_uid(1))
    assert [one.header for one in found] == [one.header for number in (1, 2) for one in again[uid(number)]]
    states = {one.sop_uid: (one.state, one.reason, one.detail) for one in store.instances_of(study_uid(1))}
    assert states[uid(1)] == states[uid(2)] == (InstanceState.SCORED, "", "in order")
    assert states[uid(3)] == (InstanceState.WAITING, "", "")
    assert store.partial_studies(10) == []


def test_study_is_due_when_it_was_quiet_and_nothing_waits(store: Store, clock: Clock) -> None:
    store.add_instance(instance(1, at=clock.now), WHO)
    clock.now += 100
    assert store.due_studies(5, 10) == []
    store.finish_instance(uid(1), InstanceState.SCORED)
    assert [one.study_uid for one in store.due_studies(5, 10)] == [study_uid(1)]
    assert [one.study_uid for one in store.due_studies(100, 10)] == [study_uid(1)]
    assert store.due_studies(100.5, 10) == []
    assert store.due_studies(5, 0) == []


def test_study_with_its_expected_count_is_due_without_quiet(store: Store, clock: Clock) -> None:
    store.expect(study_uid(1), 2)
    for number in (1, 2):
        assert store.due_studies(5, 10) == []
        store.add_instance(instance(number, at=clock.now), WHO)
        store.finish_instance(uid(number), InstanceState.SCORED)
    assert [one.study_uid for one in store.due_studies(5, 10)] == [study_uid(1)]


def test_study_with_more_than_its_expected_count_waits_for_quiet(store: Store, clock: Clock) -> None:
    store.expect(study_uid(1), 1)
    for number in (1, 2, 3):
        store.add_instance(instance(number, at=clock.now), WHO)
        store.finish_instance(uid(number), InstanceState.SCORED)
    assert store.due_studies(5, 10) == []
    clock.now += 5
    assert [one.study_uid for one in store.due_studies(5, 10)] == [study_uid(1)]


def test_clock_that_was_ahead_keeps_no_study_from_being_due(store: Store, clock: Clock) -> None:
    for number, study in ((1, 1), (2, 2)):
        store.add_instance(instance(number, study=study, at=clock.now + 86_400), WHO)
        store.finish_instance(uid(number), InstanceState.SCORED)
    store.add_instance(instance(3, study=2, at=clock.now), WHO)
    store.finish_instance(uid(3), InstanceState.SCORED)
    assert [one.study_uid for one in store.due_studies(5, 10)] == [study_uid(1)]
    clock.now += 5
    assert {one.study_uid for one in store.due_studies(5, 10)} == {study_uid(1), study_uid(2)}


def test_clock_that_was_ahead_keeps_no_work_and_no_message_after_a_start(store: Store, clock: Clock) -> None:
    for number in (1, 2):
        store.add_instance(instance(number, study=number), WHO)
    finish(store, 2, deliveries=[("pacs", "sr")])
    clock.now += 86_400
    store.lease_instances(1, 120, max_attempts=3)
    (message,) = store.lease_deliveries(1, 30, destination="pacs")
    store.delivery_failed(message.delivery_id, "no answer", clock.now + 600)
    clock.now -= 86_000
    store.free_instances()
    store.release_deliveries()
    assert len(store.lease_instances(1, 120, max_attempts=3)) == 1
    assert len(store.lease_deliveries(1, 30, destination="pacs")) == 1


def test_study_is_partial_when_slices_came_after_its_partial_result(store: Store) -> None:
    for number in (1, 2, 3):
        store.add_instance(instance(number), WHO)
    assert store.partial_studies(10) == []
    store.finish_instance(uid(1), InstanceState.SCORED, slices=[scored_slice(1)])
    assert [one.study_uid for one in store.partial_studies(10)] == [study_uid(1)]
    store.add_partial(study_uid(1), 3, outcome())
    assert store.partial_studies(10) == []
    store.finish_instance(uid(2), InstanceState.NOT_EVALUATED, "not CT")
    assert store.partial_studies(10) == []
    store.finish_instance(uid(3), InstanceState.SCORED, slices=[scored_slice(3)])
    assert [one.study_uid for one in store.partial_studies(10)] == [study_uid(1)]


def test_partial_result_is_shown_and_raises_but_never_lowers(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    store.add_partial(study_uid(1), 1, outcome(Priority.FLAGGED, n=1))
    store.add_partial(study_uid(1), 1, outcome(Priority.ROUTINE, n=2))
    study = the_study(store)
    assert (study.state, study.priority, study.document) == (StudyState.RECEIVING, Priority.FLAGGED, {"n": 2})
    assert [score.partial for score in store.scores_of(study_uid(1))] == [True, True]
    assert kinds(store)[1:] == [("study", "partial")] * 2


def test_partial_result_of_a_final_study_or_of_none_is_not_written(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    finish(store)
    store.add_partial(study_uid(1), 1, outcome(Priority.FLAGGED))
    store.add_partial(study_uid(2), 1, outcome(Priority.FLAGGED))
    assert the_study(store).priority is Priority.ROUTINE
    assert len(store.scores_of(study_uid(1))) == 1


@pytest.mark.parametrize("state", [state for state in StudyState if state is not StudyState.RECEIVING])
def test_final_result_is_score_state_deliveries_and_event(store: Store, clock: Clock, state: StudyState) -> None:
    store.add_instance(instance(1), WHO)
    store.finish_instance(uid(1), InstanceState.SCORED)
    clock.now += 7
    said = Outcome(state=state, reason="why", priority=Priority.HUMAN_FIRST, document={"any": 0.5})
    assert store.finish_study(study_uid(1), 1, said, [("pacs", "sr"), ("pacs", "sc")])
    study = the_study(store)
    assert (study.state, study.reason, study.priority) == (state, "why", Priority.HUMAN_FIRST)
    assert (study.scored_revision, study.document, study.final_at) == (1, {"any": 0.5}, clock.now)
    (score,) = store.scores_of(study_uid(1))
    assert (score.outcome, score.revision, score.partial, score.created_at) == (said, 1, False, clock.now)
    assert study.score_id == score.score_id
    assert store.score(score.score_id) == score
    sent = store.deliveries_of(study_uid(1))
    assert [(one.destination, one.kind, one.score_id) for one in sent] == [
        ("pacs", "sr", score.score_id),
        ("pacs", "sc", score.score_id),
    ]
    assert [(one.state, one.attempts, one.next_at) for one in sent] == [(DeliveryState.PENDING, 0, clock.now)] * 2
    (event,) = store.events_after(store.last_event_id() - 1, 10)
    assert event.values == {"what": "final", "state": state.value, "score_id": score.score_id, "priority": 1}


def test_result_without_a_document_has_none(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    assert store.finish_study(study_uid(1), 1, Outcome(state=StudyState.NOT_EVALUATED, reason="no head"))
    assert the_study(store).document is None
    assert store.scores_of(study_uid(1))[0].outcome.document is None


def test_fact_16_result_of_an_older_revision_is_refused_and_nothing_is_written(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    store.add_instance(instance(2), WHO)
    events = store.last_event_id()
    assert not store.finish_study(study_uid(1), 1, outcome(), [("pacs", "sr")])
    assert not store.finish_study(study_uid(9), 1, outcome(), [("pacs", "sr")])
    assert the_study(store).state is StudyState.RECEIVING
    assert (store.scores_of(study_uid(1)), store.deliveries_of(study_uid(1))) == ([], [])
    assert store.last_event_id() == events


def test_second_final_result_of_one_revision_is_refused(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    assert finish(store, deliveries=[("pacs", "sr")])
    assert not finish(store, deliveries=[("pacs", "sr")])
    assert len(store.deliveries_of(study_uid(1))) == 1


def test_final_result_that_cannot_be_written_whole_is_not_written_at_all(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    with pytest.raises(StoreError):
        store.finish_study(study_uid(1), 1, outcome(Priority.FLAGGED), [("pacs", "sr"), ("pacs", "sr")])
    study = the_study(store)
    assert (study.state, study.priority, study.score_id) == (StudyState.RECEIVING, Priority.ROUTINE, None)
    assert (store.scores_of(study_uid(1)), store.deliveries_of(study_uid(1))) == ([], [])


def test_fact_16_late_slice_gives_a_new_score_and_keeps_the_history(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    assert store.finish_study(study_uid(1), 1, outcome(Priority.FLAGGED, n=1), [("pacs", "sr")])
    store.add_instance(instance(2), WHO)
    study = the_study(store)
    assert (study.state, study.final_at, study.revision, study.scored_revision) == (StudyState.RECEIVING, None, 2, 1)
    assert (study.priority, study.document) == (Priority.FLAGGED, {"n": 1})
    assert store.finish_study(study_uid(1), 2, outcome(Priority.ROUTINE, n=2), [("pacs", "sr")])
    assert the_study(store).priority is Priority.ROUTINE
    assert [(one.revision, one.outcome.document) for one in store.scores_of(study_uid(1))] == [
        (1, {"n": 1}),
        (2, {"n": 2}),
    ]
    assert len(store.deliveries_of(study_uid(1))) == 2


# Reading.


def test_worklist_is_in_the_worklists_order(store: Store) -> None:
    for number in range(1, 7):
        store.add_instance(instance(number, study=number, at=float(number)), WHO)
    finish(store, 4, Priority.FLAGGED)
    finish(store, 5, Priority.HUMAN_FIRST)
    finish(store, 6, Priority.FLAGGED)
    finish(store, 1)
    store.acknowledge(study_uid(4), "reader", score_id=1)
    found = store.worklist()
    assert [one.study_uid for one in found] == [study_uid(number) for number in (6, 5, 1, 2, 3, 4)]
    assert found == in_worklist_order(found)


def test_short_worklist_shows_raised_studies_and_then_the_newest(store: Store) -> None:
    for number in range(1, 7):
        store.add_instance(instance(number, study=number, at=float(number)), WHO)
    finish(store, 1, Priority.FLAGGED)
    finish(store, 2, Priority.HUMAN_FIRST)
    assert [one.study_uid for one in store.worklist(limit=4)] == [study_uid(number) for number in (1, 2, 5, 6)]
    assert [one.study_uid for one in store.worklist(limit=1)] == [study_uid(1)]


def test_study_that_is_not_here_is_none(store: Store) -> None:
    assert store.study(study_uid(1)) is None
    assert store.score(1) is None
    assert store.worklist() == []
    assert store.instances_of(study_uid(1)) == store.scores_of(study_uid(1)) == []


def test_comments_are_kept_in_order(store: Store, clock: Clock) -> None:
    store.add_instance(instance(1), WHO)
    made = [store.add_comment(study_uid(1), "reader", text) for text in ("first <b>", "zwölf")]
    assert store.comments_of(study_uid(1)) == made
    assert [(one.who, one.text, one.created_at) for one in made] == [
        ("reader", "first <b>", clock.now),
        ("reader", "zwölf", clock.now),
    ]
    assert kinds(store)[1:] == [("comment", ""), ("comment", "")]


def test_comment_on_a_study_that_is_not_here_is_refused(store: Store) -> None:
    with pytest.raises(FastichError, match=r"study 2\.25\.77\.1: not here, or deleted"):
        store.add_comment(study_uid(1), "reader", "text")


def test_study_is_acknowledged_once_and_may_be_taken_back(store: Store, clock: Clock) -> None:
    store.add_instance(instance(1), WHO)
    assert not store.acknowledge(study_uid(2), "reader", score_id=None)
    assert store.acknowledge(study_uid(1), "reader", score_id=None)
    assert not store.acknowledge(study_uid(1), "other", score_id=None)
    study = the_study(store)
    assert (study.acknowledged_by, study.acknowledged_at) == ("reader", clock.now)
    assert store.unacknowledge(study_uid(1), "reader")
    assert not store.unacknowledge(study_uid(1), "reader")
    assert the_study(store).acknowledged_at is None
    assert kinds(store)[1:] == [("study", "acknowledged"), ("study", "unacknowledged")]


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        (Priority.ROUTINE, Priority.FLAGGED, False),
        (Priority.HUMAN_FIRST, Priority.FLAGGED, False),
        (Priority.FLAGGED, Priority.FLAGGED, True),
        (Priority.FLAGGED, Priority.ROUTINE, True),
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_acknowledgement_ends_when_a_later_result_raises_the_study(
    store: Store, before: Priority, after: Priority, stays: bool, partial: bool
) -> None:
    store.add_instance(instance(1), WHO)
    finish(store, priority=before)
    store.acknowledge(study_uid(1), "reader", score_id=1)
    store.add_instance(instance(2), WHO)
    if partial:
        store.add_partial(study_uid(1), 2, outcome(after))
    else:
        store.finish_study(study_uid(1), 2, outcome(after))
    assert (the_study(store).acknowledged_at is not None) == stays


def test_events_count_up_without_gaps(store: Store) -> None:
    assert store.last_event_id() == 0
    for number in range(5):
        store.add_instance(instance(number), WHO)
    with pytest.raises(StoreError):
        store.finish_study(study_uid(1), 5, outcome(), [("pacs", "sr")] * 2)
    store.acknowledge(study_uid(1), "reader", score_id=None)
    assert [event.event_id for event in store.events_after(0, 100)] == [1, 2, 3, 4, 5, 6]
    assert [event.event_id for event in store.events_after(3, 2)] == [4, 5]
    assert store.last_event_id() == 6


def test_events_are_forgotten_by_age_and_numbers_go_on(store: Store, clock: Clock) -> None:
    store.add_instance(instance(1), WHO)
    clock.now += 10
    store.add_instance(instance(2), WHO)
    assert store.forget_events(clock.now) == 1
    assert [event.event_id for event in store.events_after(0, 10)] == [2]
    assert store.forget_events(clock.now + 1) == 1
    assert store.last_event_id() == 2


def test_25_flagged_result_is_sent_before_a_routine_backlog(store: Store, clock: Clock) -> None:
    raised = (Priority.ROUTINE, Priority.ROUTINE, Priority.FLAGGED, Priority.HUMAN_FIRST)
    for number, priority in enumerate(raised, 1):
        clock.now += 1
        store.add_instance(instance(number, study=number), WHO)
        finish(store, number, priority, deliveries=[("pacs", "sr")])
    found = store.lease_deliveries(1, 10, destination="pacs") + store.lease_deliveries(9, 10, destination="pacs")
    assert [one.study_uid for one in found] == [study_uid(number) for number in (3, 4, 1, 2)]


def test_no_event_names_a_patient(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    finish(store, deliveries=[("pacs", "sr")])
    store.acknowledge(study_uid(1), "reader", score_id=None)
    store.add_comment(study_uid(1), "reader", "about SECRET^NAME")
    (leased,) = store.lease_deliveries(1, 10, destination="pacs")
    store.delivered(leased.delivery_id, 1.0)
    told = str(store.events_after(0, 100))
    assert "SECRET" not in told
    assert "4711" not in told


def test_counts_are_by_state_with_the_age_of_the_oldest_waiting(store: Store, clock: Clock) -> None:
    assert store.counts()["oldest_waiting_s"] is None
    for number in (1, 2, 3):
        store.add_instance(instance(number, study=number, at=clock.now - number), WHO)
    finish(store, 3, deliveries=[("pacs", "sr")])
    found = store.counts()
    assert found["instances"] == {"waiting": 2, "scored": 1, "not evaluated": 0, "failed": 0}
    assert found["studies"] == {"receiving": 2, "scored": 1, "not evaluated": 0, "failed": 0}
    assert found["deliveries"] == {"pending": 1, "delivered": 0, "dead": 0, "superseded": 0}
    assert (found["waiting"], found["oldest_waiting_s"]) == (2, 2.0)


def test_score_history_is_the_final_results_of_a_time(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastich.serve.store.store.HISTORY_PAGE", 2)
    for number in range(5):
        clock.now += 10
        store.add_instance(instance(number, study=number), WHO)
        store.add_partial(study_uid(number), 1, outcome(n=-1))
        store.finish_study(study_uid(number), 1, outcome(n=number))
    found = [one.outcome.document for one in store.score_history(clock.now - 30)]
    assert found == [{"n": number} for number in (1, 2, 3, 4)]


def test_notification_times_are_seconds_from_the_last_instance_newest_first(store: Store, clock: Clock) -> None:
    for number, wait in ((1, 6.5), (2, 8.0)):
        store.add_instance(instance(number, study=number, at=clock.now), WHO)
        clock.now += wait
        finish(store, number)
    store.add_instance(instance(3, study=3, at=clock.now), WHO)
    assert store.notification_times() == [8.0, 6.5]


# Outputs.


@pytest.fixture
def sent(store: Store) -> Callable[[], Delivery]:
    """A study with one message, which this reads."""
    store.add_instance(instance(1), WHO)
    finish(store, deliveries=[("pacs", "sr")])
    return lambda: store.deliveries_of(study_uid(1))[0]


def test_delivery_is_leased_to_one_taker_until_the_lease_runs_out(
    store: Store, clock: Clock, sent: Callable[[], Delivery]
) -> None:
    (leased,) = store.lease_deliveries(5, 30, destination="pacs")
    assert (leased.attempts, leased.state, leased.kind) == (1, DeliveryState.PENDING, "sr")
    assert store.lease_deliveries(5, 30, destination="pacs") == []
    clock.now += 30
    assert [one.attempts for one in store.lease_deliveries(5, 30, destination="pacs")] == [2]


def test_delivered_message_is_never_leased_again(store: Store, clock: Clock, sent: Callable[[], Delivery]) -> None:
    (leased,) = store.lease_deliveries(5, 30, destination="pacs")
    store.delivered(leased.delivery_id, 123.5)
    store.delivered(leased.delivery_id, 456.0)
    store.delivery_failed(leased.delivery_id, "late", None)
    clock.now += 1000
    assert store.lease_deliveries(5, 30, destination="pacs") == []
    assert (sent().state, sent().delivered_at, sent().last_error) == (DeliveryState.DELIVERED, 123.5, "")
    assert kinds(store)[-1] == ("delivery", "")
    assert store.events_after(0, 100)[-1].values["delivery"]["state"] == "delivered"


def test_failed_delivery_is_tried_again_at_its_time(store: Store, clock: Clock, sent: Callable[[], Delivery]) -> None:
    (leased,) = store.lease_deliveries(5, 30, destination="pacs")
    store.delivery_failed(leased.delivery_id, "refused", clock.now + 60)
    assert (sent().state, sent().last_error, sent().next_at) == (DeliveryState.PENDING, "refused", clock.now + 60)
    clock.now += 59
    assert store.lease_deliveries(5, 30, destination="pacs") == []
    clock.now += 1
    assert [one.attempts for one in store.lease_deliveries(5, 30, destination="pacs")] == [2]


def test_dead_letter_waits_until_somebody_sends_it_again(
    store: Store, clock: Clock, sent: Callable[[], Delivery]
) -> None:
    (leased,) = store.lease_deliveries(5, 30, destination="pacs")
    assert not store.requeue(leased.delivery_id)
    store.delivery_failed(leased.delivery_id, "gone", None)
    clock.now += 1000
    assert store.lease_deliveries(5, 30, destination="pacs") == []
    (dead,) = store.dead_letters()
    assert (dead.state, dead.last_error) == (DeliveryState.DEAD, "gone")
    assert store.requeue(dead.delivery_id)
    assert store.dead_letters() == []
    assert [one.attempts for one in store.lease_deliveries(5, 30, destination="pacs")] == [1]


def test_deliveries_are_leased_for_the_destination_that_asks(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    finish(store, deliveries=[("pacs", "sr"), ("archive", "sr"), ("archive", "sc")])
    assert store.destinations_waiting() == ["archive", "pacs"]
    assert [one.destination for one in store.lease_deliveries(5, 30, destination="archive")] == ["archive"] * 2
    assert [one.destination for one in store.lease_deliveries(5, 30, destination="pacs")] == ["pacs"]
    assert store.lease_deliveries(5, 30, destination="nobody") == []


def test_what_a_process_that_is_gone_had_leased_is_free_again(store: Store, sent: Callable[[], Delivery]) -> None:
    store.lease_deliveries(5, 30, destination="pacs")
    store.release_deliveries()
    assert [one.attempts for one in store.lease_deliveries(5, 30, destination="pacs")] == [2]


def test_superseded_message_is_never_sent_and_says_why(
    store: Store, clock: Clock, sent: Callable[[], Delivery]
) -> None:
    store.superseded(sent().delivery_id, 7)
    clock.now += 1000
    assert store.lease_deliveries(5, 30, destination="pacs") == []
    assert (sent().state.value, sent().last_error) == ("superseded", "superseded by score 7")
    assert (store.destinations_waiting(), store.requeue(sent().delivery_id)) == ([], False)
    assert store.events_after(0, 100)[-1].values["delivery"]["state"] == "superseded"
    assert len(store.expired_objects(clock.now, 10)) == 1


def test_delivered_message_is_not_superseded(store: Store, sent: Callable[[], Delivery]) -> None:
    store.delivered(sent().delivery_id, 5.0)
    store.superseded(sent().delivery_id, 7)
    assert sent().state is DeliveryState.DELIVERED


def test_deliveries_are_leased_longest_due_first_and_no_more_than_asked(store: Store, clock: Clock) -> None:
    for number in (1, 2, 3):
        store.add_instance(instance(number, study=number), WHO)
        finish(store, number, deliveries=[("pacs", "sr")])
        clock.now += 1
    assert [one.study_uid for one in store.lease_deliveries(2, 30, destination="pacs")] == [study_uid(1), study_uid(2)]


# Housekeeping.


def old_study(store: Store, clock: Clock, number: int = 1, **changes: Any) -> None:
    store.add_instance(instance(number, study=number), WHO)
    finish(store, number, **changes)
    clock.now += 100


def test_objects_expire_with_the_age_of_their_final_study(store: Store, clock: Clock) -> None:
    old_study(store, clock)
    assert store.expired_objects(clock.now - 100, 10) == []
    assert [one.sop_uid for one in store.expired_objects(clock.now - 99, 10)] == [uid(1)]
    assert store.forget_objects(clock.now, [uid(1)]) == [uid(1)]
    assert store.expired_objects(clock.now, 10) == []
    found = store.find_instance(uid(1))
    assert found is not None
    assert (found.object_name, found.state) == ("", InstanceState.SCORED)


@pytest.mark.parametrize("reason", ["pending delivery", "late slice"])
def test_nothing_of_a_study_with_work_left_expires(store: Store, clock: Clock, reason: str) -> None:
    store.add_instance(instance(1), WHO)
    store.add_conflict(uid(1), study_uid(1), "a" * 64, ORIGIN)
    finish(store, deliveries=[("pacs", "sr")] if reason == "pending delivery" else [])
    if reason == "late slice":
        store.add_instance(instance(9), WHO)
    clock.now += 1000
    assert store.expired_objects(clock.now, 10) == []
    assert store.forget_conflicts(clock.now, 10) == []
    assert store.delete_studies(clock.now, 10) == ([], [])


def test_dead_letter_does_not_keep_a_study(store: Store, clock: Clock) -> None:
    old_study(store, clock, deliveries=[("pacs", "sr")])
    store.delivery_failed(store.lease_deliveries(1, 1, destination="pacs")[0].delivery_id, "gone", None)
    assert len(store.expired_objects(clock.now, 10)) == 1


def test_conflicts_are_forgotten_with_the_age_of_their_final_study(store: Store, clock: Clock) -> None:
    old_study(store, clock)
    store.add_conflict(uid(1), study_uid(1), "a" * 64, ORIGIN)
    clock.now += 10
    finish(store)
    clock.now += 10
    assert store.forget_conflicts(clock.now, 10) == ["a" * 64]
    assert store.forget_conflicts(clock.now, 10) == []
    assert not store.is_referenced("a" * 64)


def test_conflict_whose_bytes_were_deleted_stays_a_doubt(store: Store, clock: Clock) -> None:
    old_study(store, clock)
    store.add_conflict(uid(1), study_uid(1), "a" * 64, ORIGIN)
    finish(store)
    clock.now += 10
    store.forget_conflicts(clock.now, 10)
    assert the_study(store).num_conflicts == 1
    revision = the_study(store).revision
    store.add_conflict(uid(1), study_uid(1), "a" * 64, ORIGIN)
    assert (the_study(store).num_conflicts, the_study(store).revision) == (1, revision)
    assert store.is_referenced("a" * 64)
    clock.now += 10
    assert store.forget_conflicts(clock.now, 10) == ["a" * 64]
    assert store.delete_studies(clock.now, 10) == ([study_uid(1)], [f"{1:064x}"])


def test_deleted_study_leaves_nothing_but_an_event(store: Store, clock: Clock) -> None:
    old_study(store, clock, deliveries=[("pacs", "sr")])
    store.delivered(store.lease_deliveries(1, 1, destination="pacs")[0].delivery_id, 1.0)
    store.add_conflict(uid(1), study_uid(1), "a" * 64, ORIGIN)
    store.add_own(uid(7), study_uid(1), "sr")
    store.add_comment(study_uid(1), "reader", "text")
    store.expect(study_uid(1), 3)
    finish(store)
    clock.now += 100
    old_study(store, clock, 2)
    uids, names = store.delete_studies(clock.now - 150, 10)
    assert uids == [study_uid(1)]
    assert sorted(names) == [f"{1:064x}", "a" * 64]
    assert store.study(study_uid(1)) is None
    assert store.find_instance(uid(1)) is None
    assert not store.is_own(uid(7))
    assert store.comments_of(study_uid(1)) == store.scores_of(study_uid(1)) == store.deliveries_of(study_uid(1)) == []
    assert store.study(study_uid(2)) is not None
    assert store.events_after(store.last_event_id() - 1, 1)[0].values == {"what": "deleted"}
    store.add_instance(instance(1), WHO)
    assert the_study(store).expected_instances is None


def test_store_answers_until_it_is_closed(store: Store) -> None:
    store.ping()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.ping()


def test_what_was_written_is_there_after_opening_again(database: str | Path) -> None:
    with contextlib.closing(open_store(database)) as first:
        first.add_instance(instance(1), WHO)
    with contextlib.closing(open_store(database)) as second:
        assert second.find_instance(uid(1)) == instance(1)


# Threads.


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work`` in ``count`` threads; an error of any of them is the test's."""
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_eight_threads_add_and_lease_with_nothing_lost_and_nothing_leased_twice(store: Store) -> None:
    each = 15
    taken: list[str] = []
    lock = threading.Lock()

    def work(thread: int) -> None:
        for number in range(each):
            store.add_instance(instance(100 * thread + number, study=number % 3), WHO)
            for one in store.lease_instances(3, 600, max_attempts=3):
                store.finish_instance(one.sop_uid, InstanceState.SCORED, slices=[scored_slice(1)])
                with lock:
                    taken.append(one.sop_uid)

    in_threads(8, work)
    taken += [one.sop_uid for one in store.lease_instances(1000, 600, max_attempts=3)]
    expected = sorted(uid(100 * thread + number) for thread in range(8) for number in range(each))
    assert sorted(taken) == expected
    assert [event.event_id for event in store.events_after(0, 1000)] == list(range(1, 8 * each + 1))
    assert sum(study.revision for study in store.worklist()) == 8 * each


def test_threads_that_finish_one_study_finish_it_once(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    done: list[bool] = []
    in_threads(6, lambda _: done.append(store.finish_study(study_uid(1), 1, outcome(), [("pacs", "sr")])))
    assert sorted(done) == [False] * 5 + [True]
    assert len(store.deliveries_of(study_uid(1))) == 1


def test_threads_that_add_one_instance_add_it_once(store: Store) -> None:
    added: list[bool] = []
    in_threads(6, lambda number: added.append(store.add_instance(instance(1, study=number), WHO)))
    assert sorted(added) == [False] * 5 + [True]
    assert len(store.worklist()) == 1


def test_threads_never_lease_one_delivery_twice(store: Store) -> None:
    for number in range(20):
        store.add_instance(instance(number, study=number), WHO)
        finish(store, number, deliveries=[("pacs", "sr"), ("pacs", "sc")])
    taken: list[int] = []

    def work(_: int) -> None:
        while leased := store.lease_deliveries(3, 600, destination="pacs"):
            taken.extend(one.delivery_id for one in leased)

    in_threads(6, work)
    assert len(taken) == len(set(taken))
    taken += [one.delivery_id for one in store.lease_deliveries(100, 600, destination="pacs")]
    assert len(set(taken)) == 40


@given(st.lists(st.tuples(st.sampled_from(["add", "partial", "final", "ack"]), st.integers(1, 4)), max_size=25))
def test_worklist_of_any_history_is_in_order_and_complete(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int]]
) -> None:
    clock = Clock()
    path = tmp_path_factory.mktemp("store") / "a.sqlite"
    known = set()
    with contextlib.closing(open_store(path, clock=clock)) as store:
        for step, (what, number) in enumerate(history):
            clock.now += 1
            match what:
                case "add":
                    store.add_instance(instance(step, study=number, at=clock.now), WHO)
                    known.add(study_uid(number))
                case "partial":
                    store.add_partial(study_uid(number), 1, outcome(Priority(step % 3)))
                case "final" if study_uid(number) in known:
                    finish(store, number, Priority(step % 3))
                case "ack" if study_uid(number) in known:
                    store.acknowledge(study_uid(number), "reader", score_id=the_study(store, number).score_id)
        shown = store.worklist()
    assert {one.study_uid for one in shown} == known
    assert shown == in_worklist_order(shown)


def test_origin_of_a_study_is_that_of_its_first_instance(store: Store) -> None:
    store.add_instance(instance(1), WHO)
    store.add_instance(instance(2, origin=Origin(way="stow", sender="me")), WHO)
    assert the_study(store).origin == ORIGIN
    assert [one.origin.way for one in store.instances_of(study_uid(1))] == ["dimse", "stow"]
