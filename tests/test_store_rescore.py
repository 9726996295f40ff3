"""Slices that were scored once their study was complete, on SQLite and on PostgreSQL."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serve_data import WHO, Clock, instance, outcome, scored_slice, study_uid, uid

from fastich.serve.entities import InstanceState
from fastich.serve.store import Store, open_store


@pytest.fixture
def store(database: str | Path) -> Iterator[Store]:
    with contextlib.closing(open_store(database, clock=Clock())) as made:
        made.add_instance(instance(1), WHO)
        made.add_instance(instance(2), WHO)
        yield made


def test_slices_that_were_scored_late_make_their_instance_scored(store: Store) -> None:
    store.finish_instance(uid(1), InstanceState.NOT_EVALUATED, "waits for its study")
    store.rescore_instances("model x", {uid(1): [scored_slice(1)]})
    found = store.find_instance(uid(1))
    assert found is not None
    assert (found.state, found.reason, found.detail) == (InstanceState.SCORED, "", "model x")
    assert [one.header for one in store.scored_slices(study_uid(1))] == [scored_slice(1).header]


def test_slices_that_are_scored_again_replace_the_old_ones_and_keep_what_was_left_out(store: Store) -> None:
    store.finish_instance(uid(1), InstanceState.SCORED, "not axial", "model x", [scored_slice(1)])
    again = scored_slice(1)
    again.answer.logit[:] = 7
    store.rescore_instances("model y", {uid(1): [again]})
    (one,) = store.scored_slices(study_uid(1))
    found = store.find_instance(uid(1))
    assert found is not None
    assert (found.reason, found.detail) == ("not axial", "model y")
    assert np.array_equal(one.answer.logit, [7] * 6)


def test_late_slices_are_no_news_for_a_partial_result(store: Store) -> None:
    store.finish_instance(uid(1), InstanceState.SCORED, slices=[scored_slice(1)])
    store.add_partial(study_uid(1), 2, outcome())
    assert store.partial_studies(10) == []
    store.finish_instance(uid(2), InstanceState.NOT_EVALUATED, "waits for its study")
    store.rescore_instances("model x", {uid(1): [scored_slice(1)], uid(2): [scored_slice(2), scored_slice(2, frame=1)]})
    assert store.partial_studies(10) == []
    assert len(store.scored_slices(study_uid(1))) == 3


def test_waiting_or_unknown_instances_are_not_rescored(store: Store) -> None:
    store.rescore_instances("model x", {uid(1): [scored_slice(1)], uid(99): [scored_slice(9)]})
    found = store.find_instance(uid(1))
    assert found is not None
    assert found.state is InstanceState.WAITING
    assert store.scored_slices(study_uid(1)) == []
