import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serve_data import ORIGIN, SPOOL, Clock, an_ingest, ct_bytes, files_below, outcome, received, study_uid, uid

from fastich.errors import StoreError
from fastich.serve import housekeeping
from fastich.serve.config import RetentionConfig
from fastich.serve.entities import Instance, InstanceState
from fastich.serve.housekeeping import DAY_S, Housekeeping, Swept
from fastich.serve.ingest import Ingest
from fastich.serve.spool import Spool
from fastich.serve.store import Store, open_store

PIXELS = RetentionConfig(pixels_days=7, studies_days=0)
STUDIES = RetentionConfig(pixels_days=0, studies_days=90)
NEVER = RetentionConfig(pixels_days=0, studies_days=0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with contextlib.closing(open_store(tmp_path / "fastich.sqlite", clock=clock)) as made:
        yield made


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", SPOOL)


@pytest.fixture
def ingest(store: Store, spool: Spool, clock: Clock) -> Ingest:
    return an_ingest(store, spool, clock=clock)


def a_study(ingest: Ingest, spool: Spool, store: Store, number: int, *, sent: bool = True) -> None:
    """A final study of one slice with another one aside, and one message."""
    for seed in (0, 1):
        ingest.accept(received(spool, ct_bytes(number, study=number, seed=seed)), ORIGIN)
    store.finish_instance(uid(number), InstanceState.SCORED)
    store.finish_study(study_uid(number), 2, outcome(), [("pacs", "sr")])
    if sent:
        store.delivered(store.deliveries_of(study_uid(number))[0].delivery_id, 1.0)


def swept(store: Store, spool: Spool, config: RetentionConfig, clock: Clock) -> Swept:
    return Housekeeping(store, spool, config, clock=clock).run_once()


def objects(spool: Spool) -> int:
    return len(list(spool.stored()))


def test_pixels_go_with_age_and_the_study_stays(ingest: Ingest, spool: Spool, store: Store, clock: Clock) -> None:
    a_study(ingest, spool, store, 1)
    clock.now += 6.9 * DAY_S
    a_study(ingest, spool, store, 2)
    assert swept(store, spool, PIXELS, clock).objects == 0
    clock.now += 0.2 * DAY_S
    assert swept(store, spool, PIXELS, clock).objects == 2
    assert objects(spool) == 2
    study = store.study(study_uid(1))
    assert study is not None
    assert study.num_instances == 1
    assert store.instances_of(study_uid(1))[0].object_name == ""
    assert spool.path_of(store.instances_of(study_uid(2))[0].object_name).is_file()


def test_studies_go_with_age_and_everything_of_them(ingest: Ingest, spool: Spool, store: Store, clock: Clock) -> None:
    a_study(ingest, spool, store, 1)
    clock.now += 91 * DAY_S
    a_study(ingest, spool, store, 2)
    assert swept(store, spool, STUDIES, clock).studies == 1
    assert [study.study_uid for study in store.worklist()] == [study_uid(2)]
    assert objects(spool) == 2


def test_studies_whose_pixels_are_gone_already_are_deleted_too(
    ingest: Ingest, spool: Spool, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 1)
    for number in (1, 2, 3):
        a_study(ingest, spool, store, number)
    clock.now += 91 * DAY_S
    assert swept(store, spool, PIXELS, clock).objects == 6
    assert swept(store, spool, STUDIES, clock).studies == 3
    assert store.worklist() == []


@pytest.mark.parametrize("config", [PIXELS, STUDIES])
@pytest.mark.parametrize("reason", ["not sent", "not final"])
def test_nothing_of_a_study_with_work_left_is_deleted_however_old(
    ingest: Ingest, spool: Spool, store: Store, clock: Clock, config: RetentionConfig, reason: str
) -> None:
    a_study(ingest, spool, store, 1, sent=reason != "not sent")
    if reason == "not final":
        ingest.accept(received(spool, ct_bytes(9, study=1)), ORIGIN)
    before = objects(spool)
    clock.now += 1000 * DAY_S
    found = swept(store, spool, config, clock)
    assert (found.objects, found.studies, objects(spool)) == (0, 0, before)


def test_slice_that_comes_while_pixels_are_deleted_keeps_those_of_its_study(
    ingest: Ingest, spool: Spool, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 2):
        a_study(ingest, spool, store, number)
    clock.now += 8 * DAY_S
    expired_objects = store.expired_objects

    def and_then_a_slice(before_at: float, limit: int) -> list[Instance]:
        found = expired_objects(before_at, limit)
        ingest.accept(received(spool, ct_bytes(9, study=1)), ORIGIN)
        return found

    monkeypatch.setattr(store, "expired_objects", and_then_a_slice)
    assert swept(store, spool, PIXELS, clock).objects == 2  # of the other study: its slice, and the one set aside
    kept = {one.sop_uid: one.object_name for one in store.instances_of(study_uid(1))}
    assert all(name and spool.path_of(name).is_file() for name in kept.values())
    assert [one.object_name for one in store.instances_of(study_uid(2))] == [""]


def test_zero_days_keep_everything(ingest: Ingest, spool: Spool, store: Store, clock: Clock) -> None:
    a_study(ingest, spool, store, 1)
    clock.now += 1000 * DAY_S
    found = swept(store, spool, NEVER, clock)
    assert (found.objects, found.studies, objects(spool)) == (0, 0, 2)


def test_orphans_are_swept_and_objects_with_a_row_stay(
    ingest: Ingest, spool: Spool, store: Store, clock: Clock
) -> None:
    a_study(ingest, spool, store, 1)
    for name, path in (("0" * 64, spool.path_of), ("1" * 64, spool.path_aside)):
        spool.keep(received(spool, b"orphan"), path(name))
    with spool.claim("2" * 64):
        spool.keep(received(spool, b"on its way"), spool.path_of("2" * 64))
        assert swept(store, spool, NEVER, clock).orphans == 2
    assert objects(spool) == 3


def test_too_many_orphans_mean_the_wrong_database_and_nothing_is_deleted(
    spool: Spool, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(housekeeping, "MAX_ORPHANS", 2)
    for number in range(3):
        spool.keep(received(spool, b"x"), spool.path_of(f"{number:064x}"))
    assert swept(store, spool, NEVER, clock).orphans == 0
    assert objects(spool) == 3
    assert "3 objects of the spool are unknown to the database" in caplog.text
    assert "restore the database that belongs to this spool" in caplog.text


def test_crash_between_rows_and_files_leaves_orphans_that_the_next_round_takes(
    ingest: Ingest, spool: Spool, store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_study(ingest, spool, store, 1)
    clock.now += 91 * DAY_S

    def crash(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(spool, "remove", crash)
        with pytest.raises(KeyboardInterrupt):
            swept(store, spool, STUDIES, clock)
    assert (store.worklist(), objects(spool)) == ([], 2)
    assert swept(store, spool, STUDIES, clock).orphans == 2
    assert files_below(spool.folder / "objects") == []


def test_old_events_are_deleted(ingest: Ingest, spool: Spool, store: Store, clock: Clock) -> None:
    a_study(ingest, spool, store, 1)
    told = store.last_event_id()
    clock.now += 7.1 * DAY_S
    assert swept(store, spool, NEVER, clock).events == told
    assert store.last_event_id() == told


def test_thread_sweeps_at_its_start_and_ends_when_it_is_stopped(spool: Spool, store: Store, clock: Clock) -> None:
    spool.keep(received(spool, b"orphan"), spool.path_of("0" * 64))
    made = Housekeeping(store, spool, NEVER, clock=clock)
    made.start()
    assert gone(spool)
    made.stop()
    made.stop()
    assert "housekeeping" not in {thread.name for thread in threading.enumerate()}


def gone(spool: Spool) -> bool:
    """Whether within 10 s nothing is left in the spool."""
    for _ in range(1000):
        if not objects(spool):
            return True
        time.sleep(0.01)
    return False


def test_thread_that_was_never_started_stops_too(spool: Spool, store: Store) -> None:
    Housekeeping(store, spool, NEVER).stop()


def test_round_that_fails_is_logged_and_tried_again(
    spool: Spool, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool.keep(received(spool, b"orphan"), spool.path_of("0" * 64))
    original, failures = store.forget_events, [StoreError("locked")]

    def fail_once(before_at: float) -> int:
        if failures:
            raise failures.pop()
        return original(before_at)

    monkeypatch.setattr(store, "forget_events", fail_once)
    thread = Housekeeping(store, spool, NEVER, interval_s=0.01)
    with caplog.at_level(logging.INFO, "fastich"):
        thread.start()
        assert gone(spool)
        thread.stop()
    assert "put off: locked" in caplog.text
    assert "deleted 1 leftovers" in caplog.text
    assert "1 of these objects had no row" in caplog.text


def test_each_study_of_which_something_was_deleted_is_told(
    ingest: Ingest, spool: Spool, store: Store, clock: Clock
) -> None:
    a_study(ingest, spool, store, 1)
    told: list[tuple[str, str]] = []
    clock.now += 8 * DAY_S
    Housekeeping(store, spool, PIXELS, clock=clock, on_deleted=lambda *said: told.append(said)).run_once()
    clock.now += 90 * DAY_S
    Housekeeping(store, spool, STUDIES, clock=clock, on_deleted=lambda *said: told.append(said)).run_once()
    assert told == [(study_uid(1), "pixels"), (study_uid(1), "study and results")]
