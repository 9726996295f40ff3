"""What is deleted, and when: pixels and studies by age, objects without a row, old events. One thread, once an hour.

Never a study that is not final or has something left to send. Rows go first and files after them, so that whoever is
killed in between leaves an object without a row, which the next sweep finds.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fastich.errors import StoreError
from fastich.serve.config import RetentionConfig
from fastich.serve.spool import Spool
from fastich.serve.store import Store

LOG = logging.getLogger("fastich.housekeeping")

DAY_S = 86_400.0
INTERVAL_S = 3_600.0
EVENTS_DAYS = 7.0
"""A page that was closed for longer reads the whole worklist again anyway."""
BATCH = 200
"""Rows a transaction deletes: receivers wait for it."""
MAX_ORPHANS = 1_000
"""A crash leaves at most the objects in flight and one batch of deletions. More of them mean that the database is not
the one of this spool, and then nothing may be deleted."""


Told = Callable[[str, str], None]
"""Hears of a study's UID and what was deleted of it."""


def _tell_nobody(study_uid: str, what: str) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Swept:
    """What one round deleted."""

    objects: int = 0
    studies: int = 0
    orphans: int = 0
    events: int = 0

    @property
    def words(self) -> str:
        """The counts that are not 0, in words."""
        counts = {"objects": self.objects, "studies": self.studies, "leftovers": self.orphans, "events": self.events}
        return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


class Housekeeping:
    """Deletes by age in a thread of its own between ``start`` and ``stop``."""

    def __init__(
        self,
        store: Store,
        spool: Spool,
        config: RetentionConfig,
        *,
        clock: Callable[[], float] = time.time,
        interval_s: float = INTERVAL_S,
        on_deleted: Told = _tell_nobody,
    ) -> None:
        self._store, self._spool, self._config = store, spool, config
        self._clock, self._interval_s, self._on_deleted = clock, interval_s, on_deleted
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin with a round at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after the batch at hand, and wait for that; may be called again."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def run_once(self) -> Swept:
        """One round; what it deleted.

        Raises:
            StoreError: the database fails.
            OSError: the disk does.
        """
        objects = self._delete_pixels()
        studies = self._delete_studies()
        events = self._store.forget_events(self._clock() - EVENTS_DAYS * DAY_S)
        return Swept(objects=objects, studies=studies, orphans=self._sweep_orphans(), events=events)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                swept = self.run_once()
                if swept != Swept():
                    LOG.info("deleted %s", swept.words)
                if swept.orphans:
                    LOG.warning("%d of these objects had no row: from a crash, or from before a restore", swept.orphans)
            except (StoreError, OSError) as error:
                LOG.error("put off: %s", error)
            self._stopped.wait(self._interval_s)

    def _delete_pixels(self) -> int:
        """Delete the bytes of instances, and what was set aside, of studies that are done since long."""
        if not self._config.pixels_days:
            return 0
        before_at, deleted = self._clock() - self._config.pixels_days * DAY_S, 0
        while not self._stopped.is_set():
            expired = self._store.expired_objects(before_at, BATCH)
            gone = set(self._store.forget_objects(before_at, [one.sop_uid for one in expired]))
            aside = self._store.forget_conflicts(before_at, BATCH)
            deleted += self._remove(self._spool.path_of(one.object_name) for one in expired if one.sop_uid in gone)
            deleted += self._remove(self._spool.path_aside(name) for name in aside)
            for uid in sorted({one.study_uid for one in expired}):
                self._on_deleted(uid, "pixels")
            if not expired and not aside:
                break
        return deleted

    def _delete_studies(self) -> int:
        """Delete studies with everything that was said of them."""
        if not self._config.studies_days:
            return 0
        before_at, deleted = self._clock() - self._config.studies_days * DAY_S, 0
        while not self._stopped.is_set():
            uids, names = self._store.delete_studies(before_at, BATCH)
            self._remove(self._spool.path_of(name) for name in names)
            self._remove(self._spool.path_aside(name) for name in names)
            deleted += len(uids)
            for uid in uids:
                self._on_deleted(uid, "study and results")
            if not uids:
                break
        return deleted

    def _sweep_orphans(self) -> int:
        """Delete objects that no row speaks of, unless they are suspiciously many."""
        orphans = []
        for path in self._spool.stored():
            if self._stopped.is_set():
                return 0
            if not self._store.is_referenced(path.stem):
                orphans.append(path)
        if len(orphans) > MAX_ORPHANS:
            LOG.error(
                "%d objects of the spool are unknown to the database, which a crash cannot explain: "
                "nothing was deleted; restore the database that belongs to this spool",
                len(orphans),
            )
            return 0
        return self._remove(orphans)

    def _remove(self, paths: Iterable[Path]) -> int:
        return sum(self._spool.remove(path, self._store.is_referenced) for path in paths)
