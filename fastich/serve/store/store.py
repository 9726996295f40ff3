"""The Store: every method is one transaction of a module beside this one. Safe to call from any thread.

Whatever returns has been fsynced. Whatever raises ``StoreError`` has changed nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastich.errors import FastichError, StoreError
from fastich.files import fsync_folder
from fastich.serve.entities import (
    Comment,
    Delivery,
    Description,
    Event,
    Instance,
    InstanceState,
    Origin,
    Outcome,
    Score,
    ScoredSlice,
    Study,
)
from fastich.serve.store import events, outputs, postgres, reading, receiving, retention, schema, scoring, seen
from fastich.serve.store.door import Door
from fastich.serve.store.sqlite import BUSY_TIMEOUT_S, SqliteConnection

Clock = Callable[[], float]

HISTORY_PAGE = 500
"""Results read at a time: an iterator must not hold a transaction open while its reader thinks."""


def open_store(url_or_path: str | Path, *, clock: Clock = time.time, busy_timeout_s: float = BUSY_TIMEOUT_S) -> "Store":
    """The store in a SQLite file, which is made where there is none, or behind a URL of PostgreSQL.

    It is migrated where an older fastich made it. ``busy_timeout_s``: how long a transaction waits for a lock.

    Raises:
        StoreError: it cannot be opened, is damaged, or was made by a newer fastich.
    """
    is_postgres = isinstance(url_or_path, str) and postgres.is_url(url_or_path)
    opened = _open_postgres if is_postgres else _open_sqlite
    door = opened(str(url_or_path), busy_timeout_s)
    try:
        door.write(schema.migrate, door.where)
        if not is_postgres:
            fsync_folder(Path(url_or_path).parent)  # SQLite does so for its logs, not for the database that it makes
    except BaseException:
        door.close()
        raise
    return Store(door, clock)


def _open_postgres(url: str, busy_timeout_s: float) -> Door:
    where = postgres.place_of(url)
    return Door(lambda: postgres.PostgresConnection(url, where, busy_timeout_s), where)


def _open_sqlite(name: str, busy_timeout_s: float) -> Door:
    """A door to a file.

    Raises:
        StoreError: the file is there and empty, which SQLite would take for a new database.
    """
    path = Path(name)
    if path.is_file() and path.stat().st_size == 0:
        raise StoreError(f"{path}: damaged, the file is empty; restore it from a backup, or remove it to start anew")
    writers = threading.Lock()
    return Door(lambda: SqliteConnection(path, writers, busy_timeout_s), str(path))


class Store:
    """Studies, instances, results, deliveries, comments and events."""

    def __init__(self, door: Door, clock: Clock) -> None:
        self._door, self._clock = door, clock

    # Receiving.

    def add_instance(self, instance: Instance, description: Description) -> bool:
        """Take an instance in: its study is made if new and is receiving again; False where its UID is here already."""
        return self._door.write(receiving.add_instance, self._clock(), instance, description)

    def find_instance(self, sop_uid: str) -> Instance | None:
        """The instance of this UID."""
        return self._door.read(receiving.find_instance, sop_uid)

    def restore_object(self, sop_uid: str, object_name: str) -> None:
        """Say where the bytes of an instance are again, after they were deleted by age and sent once more."""
        self._door.write(receiving.restore_object, sop_uid, object_name)

    def take_again(self, sop_uid: str) -> bool:
        """Let an instance that failed, or whose study did, be tried anew; False where neither failed."""
        return self._door.write(receiving.take_again, self._clock(), sop_uid)

    def add_conflict(self, sop_uid: str, study_uid: str, object_name: str, origin: Origin) -> None:
        """Count another object under a UID that is taken; ``study_uid`` is that of the first one."""
        self._door.write(receiving.add_conflict, self._clock(), sop_uid, study_uid, object_name, origin)

    def is_own(self, sop_uid: str) -> bool:
        """Tell whether this server wrote the object of this UID."""
        return self._door.read(receiving.is_own, sop_uid)

    def add_own(self, sop_uid: str, study_uid: str, kind: str) -> None:
        """Remember the UID of an object that this server wrote, before it is sent."""
        self._door.write(receiving.add_own, self._clock(), sop_uid, study_uid, kind)

    def expect(self, study_uid: str, count: int) -> None:
        """Say how many instances make the study whole; one that is final and lacks some is receiving again."""
        self._door.write(receiving.expect, self._clock(), study_uid, count)

    def count_waiting(self) -> int:
        """Instances that wait to be scored, leased ones among them."""
        return self._door.read(receiving.count_waiting)

    def is_referenced(self, object_name: str) -> bool:
        """Tell whether a row speaks of an object of the spool."""
        return self._door.read(receiving.is_referenced, object_name)

    # Scoring.

    def lease_instances(
        self, limit: int, lease_s: float, *, max_attempts: int, held: Sequence[str] = ()
    ) -> list[Instance]:
        """Waiting instances that nobody else gets for ``lease_s``; those tried ``max_attempts`` times become failed.

        What the caller has ``held`` since before is neither. One that an earlier process never finished comes alone.
        """
        return self._door.write(scoring.lease_instances, self._clock(), limit, lease_s, max_attempts, held)

    def release_instances(self, sop_uids: Sequence[str]) -> None:
        """Give back work that was taken and not finished; the try does not count."""
        self._door.write(scoring.release_instances, sop_uids)

    def postpone_instance(self, sop_uid: str, delay_s: float) -> None:
        """Give back work that a fault of the machine stopped, for nobody within ``delay_s``; the try does not count."""
        self._door.write(scoring.postpone_instance, self._clock(), sop_uid, delay_s)

    def free_instances(self) -> None:
        """Free what a process that is gone had leased; the one that starts says so. The try counts."""
        self._door.write(scoring.free_instances)

    def finish_instance(
        self,
        sop_uid: str,
        state: InstanceState,
        reason: str = "",
        detail: str = "",
        slices: Sequence[ScoredSlice] = (),
    ) -> None:
        """Write what became of a waiting instance, with its slices; said twice, the first one counts."""
        self._door.write(scoring.finish_instance, sop_uid, state, reason, detail, slices)

    def rescore_instances(self, detail: str, slices_of: Mapping[str, Sequence[ScoredSlice]]) -> None:
        """Write slices, by SOP instance UID, that were scored once their study was complete, in place of any before."""
        self._door.write(scoring.rescore_instances, detail, slices_of)

    def due_studies(self, quiet_s: float, limit: int) -> list[Study]:
        """Receiving studies of which nothing waits, quiet for ``quiet_s`` or as many instances as expected."""
        return self._door.read(scoring.due_studies, self._clock(), quiet_s, limit)

    def partial_studies(self, limit: int) -> list[Study]:
        """Receiving studies with slices that were scored after their newest partial result."""
        return self._door.read(scoring.partial_studies, limit)

    def instances_of(self, study_uid: str) -> list[Instance]:
        """The instances of a study as they came."""
        return self._door.read(reading.instances_of, study_uid)

    def scored_slices(self, study_uid: str) -> list[ScoredSlice]:
        """Every scored slice of a study."""
        return self._door.read(scoring.scored_slices, study_uid)

    def add_partial(self, study_uid: str, revision: int, outcome: Outcome) -> None:
        """Write a partial result; it may raise a study, never lower it."""
        self._door.write(scoring.add_partial, self._clock(), study_uid, revision, outcome)

    def finish_study(
        self, study_uid: str, revision: int, outcome: Outcome, deliveries: Sequence[tuple[str, str]] = ()
    ) -> bool:
        """Write the final result and its ``deliveries`` (destination, kind), all or nothing.

        False, and nothing written, where more of the study has arrived, or it is final already.
        """
        return self._door.write(scoring.finish_study, self._clock(), study_uid, revision, outcome, deliveries)

    # Reading, and what people say.

    def study(self, study_uid: str) -> Study | None:
        """The study of this UID."""
        return self._door.read(reading.study, study_uid)

    def worklist(self, limit: int = 500) -> list[Study]:
        """Studies in the worklist's order; what does not fit is the longest here of those not raised."""
        return self._door.read(reading.worklist, limit)

    def scores_of(self, study_uid: str) -> list[Score]:
        """The results of a study, oldest first."""
        return self._door.read(reading.scores_of, study_uid)

    def score(self, score_id: int) -> Score | None:
        """One result."""
        return self._door.read(reading.score, score_id)

    def score_history(self, since_at: float) -> Iterator[Score]:
        """Final results from ``since_at`` on, in the order in which they were made."""
        last_id = 0
        while page := self._door.read(reading.scores_since, since_at, last_id, HISTORY_PAGE):
            yield from page
            last_id = page[-1].score_id

    def comments_of(self, study_uid: str) -> list[Comment]:
        """What was written about a study, oldest first."""
        return self._door.read(reading.comments_of, study_uid)

    def add_comment(self, study_uid: str, who: str, text: str) -> Comment:
        """Write a comment.

        Raises:
            FastichError: there is no such study.
        """
        made = self._door.write(reading.add_comment, self._clock(), study_uid, who, text)
        if made is None:
            raise FastichError(f"study {study_uid}: not here, or deleted")
        return made

    def acknowledge(self, study_uid: str, who: str, *, score_id: int | None) -> bool:
        """Note who has seen a study; False where there is none, or somebody has already.

        ``score_id`` is the result that they had before them, None where there was none.

        Raises:
            UnseenError: since then it was raised, or a finding came up.
        """
        return self._door.write(seen.acknowledge, self._clock(), study_uid, who, score_id)

    def unacknowledge(self, study_uid: str, who: str) -> bool:
        """Take an acknowledgement back; False where there was none. ``who`` is for the audit trail of the caller."""
        return self._door.write(seen.unacknowledge, self._clock(), study_uid)

    def events_after(self, event_id: int, limit: int) -> list[Event]:
        """Events behind ``event_id``, oldest first."""
        return self._door.read(events.after, event_id, limit)

    def last_event_id(self) -> int:
        """The number of the newest event, 0 before the first."""
        return self._door.read(events.last_id)

    def counts(self) -> dict[str, Any]:
        """Instances, studies and deliveries by state, ``waiting``, ``oldest_waiting_s`` (None: nothing waits)."""
        return self._door.read(reading.counts, self._clock())

    def notification_times(self) -> list[float]:
        """Seconds from the last instance stored to the final result, of the newest 1,000 results, newest first."""
        return self._door.read(reading.notification_times)

    # Outputs.

    def lease_deliveries(self, limit: int, lease_s: float, *, destination: str) -> list[Delivery]:
        """Messages for one destination that are due, that nobody else gets for ``lease_s``."""
        return self._door.write(outputs.lease_deliveries, self._clock(), limit, lease_s, destination)

    def release_deliveries(self) -> None:
        """Free what a process that is gone had leased, and try all of it now; the one that starts says so."""
        self._door.write(outputs.release_deliveries, self._clock())

    def destinations_waiting(self) -> list[str]:
        """Where pending messages go to, by name."""
        return self._door.read(outputs.destinations_waiting)

    def delivered(self, delivery_id: int, at: float) -> None:
        """Note that a message arrived."""
        self._door.write(outputs.delivered, self._clock(), delivery_id, at)

    def delivery_failed(self, delivery_id: int, error: str, next_at: float | None) -> None:
        """Note that a try failed: again at ``next_at``, or, where that is None, a dead letter."""
        self._door.write(outputs.delivery_failed, self._clock(), delivery_id, error, next_at)

    def superseded(self, delivery_id: int, newer_score_id: int) -> None:
        """Note that a pending message is not sent, for a newer result says more."""
        self._door.write(outputs.superseded, self._clock(), delivery_id, newer_score_id)

    def requeue(self, delivery_id: int) -> bool:
        """Try a dead letter again from its start; False where it is none."""
        return self._door.write(outputs.requeue, self._clock(), delivery_id)

    def dead_letters(self) -> list[Delivery]:
        """What waits for a person."""
        return self._door.read(outputs.dead_letters)

    def deliveries_of(self, study_uid: str) -> list[Delivery]:
        """Every message about a study, oldest first."""
        return self._door.read(outputs.deliveries_of, study_uid)

    # Housekeeping.

    def expired_objects(self, before_at: float, limit: int) -> list[Instance]:
        """Instances with bytes here, of studies that are final since before ``before_at`` with nothing left to send."""
        return self._door.read(retention.expired_objects, before_at, limit)

    def forget_objects(self, before_at: float, sop_uids: Sequence[str]) -> list[str]:
        """Note that the bytes of instances are gone, before they are deleted; UIDs of those that still may be."""
        return self._door.write(retention.forget_objects, before_at, sop_uids)

    def forget_conflicts(self, before_at: float, limit: int) -> list[str]:
        """Forget objects that were set aside before ``before_at``; their names, to be deleted now."""
        return self._door.write(retention.forget_conflicts, before_at, limit)

    def delete_studies(self, before_at: float, limit: int) -> tuple[list[str], list[str]]:
        """Delete studies that are done since before ``before_at``; UIDs, and names of objects, to be deleted now."""
        return self._door.write(retention.delete_studies, self._clock(), before_at, limit)

    def forget_events(self, before_at: float) -> int:
        """Delete events from before a time; how many."""
        return self._door.write(events.forget, before_at)

    def ping(self) -> None:
        """Touch the database.

        Raises:
            StoreError: it does not answer.
        """
        self._door.read(reading.ping)

    def close(self) -> None:
        """Close every connection."""
        self._door.close()
