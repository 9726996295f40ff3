"""Taking an object in: once ``accept`` returns, its bytes and its row survive a power cut, and only then.

The order is the promise: fsync of the file, rename, fsync of the folder, commit, reply. Killed in between, a row never
speaks of bytes that are not there; an object without a row was never acknowledged, is found again when its sender sends
it again, and is swept up otherwise (``housekeeping``).
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fastich.errors import StoreError
from fastich.serve.config import SpoolConfig
from fastich.serve.entities import Instance, InstanceState, Origin, Receipt, Refused, StudyState
from fastich.serve.identity import Identity, identify
from fastich.serve.spool import MIB, IngestRefused, Spool, storage_errors
from fastich.serve.store import Store

__all__ = ["Ingest", "IngestRefused"]

NUM_LOCKS = 64
"""Two objects of one UID are taken in one after the other; others share a lock by chance only."""


class Ingest:
    """Takes objects in; may be called from any thread. ``notify`` tells that there is something to score.

    Attributes:
        spool: where receivers write what they hand over.
        max_object_bytes: receivers stop reading an object at this.
    """

    def __init__(
        self,
        store: Store,
        spool: Spool,
        config: SpoolConfig,
        *,
        notify: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.spool, self.max_object_bytes = spool, config.max_object_mib * MIB
        self._store, self._spool, self._config = store, spool, config
        self._notify, self._clock = notify, clock
        self._locks = [threading.Lock() for _ in range(NUM_LOCKS)]

    def check_capacity(self) -> None:
        """Say whether anything can be taken in now; a receiver asks before it reads a body.

        Raises:
            IngestRefused: BUSY, STORAGE_FULL or DATABASE.
        """
        self._spool.check_space()
        with store_errors():
            waiting = self._store.count_waiting()
        if waiting >= self._config.max_waiting:
            raise IngestRefused(Refused.BUSY, f"{waiting} instances wait for scoring (spool.max_waiting)")

    def accept(self, temporary: Path, origin: Origin, *, announced: tuple[str, str] | None = None) -> Receipt:
        """Take in the DICOM file at ``temporary``, which is moved or removed in any case.

        Args:
            temporary: a path that ``Spool.temporary`` gave, written and closed.
            origin: where it came from.
            announced: SOP class and SOP instance UID that the request named, if it named any.

        Raises:
            IngestRefused: it was not taken in; nothing of it is left.
        """
        try:
            with storage_errors():
                self._check_size(temporary)
                found = identify(temporary)
            if announced is not None and announced != (found.sop_class_uid, found.sop_uid):
                raise IngestRefused(Refused.MISMATCH, "its SOP class or instance UID is not the announced one")
            with self._locks[hash(found.sop_uid) % NUM_LOCKS], store_errors(), storage_errors():
                return self._take_in(temporary, found, origin)
        finally:
            with contextlib.suppress(OSError):  # a disk that fails here has failed above already
                temporary.unlink(missing_ok=True)

    def _check_size(self, temporary: Path) -> None:
        size_bytes = temporary.stat().st_size
        if size_bytes > self._config.max_object_mib * MIB:
            cap = f"{self._config.max_object_mib} MiB (spool.max_object_mib)"
            raise IngestRefused(Refused.TOO_LARGE, f"expected at most {cap}, found {size_bytes} bytes")

    def _take_in(self, temporary: Path, found: Identity, origin: Origin) -> Receipt:
        if self._store.is_own(found.sop_uid):
            return _receipt(found, own=True)
        self._spool.check_space()
        stored = self._store.find_instance(found.sop_uid)
        if stored is None:
            self._add(temporary, found, origin)
            return _receipt(found)
        if is_copy(found, stored):
            self._restore(temporary, found, stored)
            if self._has_failed(stored) and self._store.take_again(found.sop_uid):
                self._notify()
            return _receipt(found, duplicate=True)
        self._put_aside(temporary, found, stored, origin)
        return _receipt(found, conflict=True)

    def _add(self, temporary: Path, found: Identity, origin: Origin) -> None:
        instance = Instance(
            sop_uid=found.sop_uid,
            sop_class_uid=found.sop_class_uid,
            study_uid=found.study_uid,
            series_uid=found.series_uid,
            object_name=found.object_name,
            size_bytes=found.size_bytes,
            received_at=self._clock(),
            origin=origin,
            content_sha256=found.content_sha256,
            pixel_sha256=found.pixel_sha256,
        )
        with self._kept(temporary, found.object_name, self._spool.path_of(found.object_name)):
            if not self._store.add_instance(instance, found.description):
                raise IngestRefused(Refused.BUSY, "the same instance was taken in by another process; send it again")
        self._notify()

    def _restore(self, temporary: Path, found: Identity, stored: Instance) -> None:
        """Bring back bytes of a copy that were deleted by age, or lost: a reply of success says that they are here."""
        if stored.object_name and self._spool.path_of(stored.object_name).is_file():
            return
        with self._kept(temporary, found.object_name, self._spool.path_of(found.object_name)):
            self._store.restore_object(found.sop_uid, found.object_name)

    def _has_failed(self, stored: Instance) -> bool:
        """Whether sending a copy asks for another try: a machine that failed on the first may be mended."""
        if stored.state is InstanceState.FAILED:
            return True
        study = self._store.study(stored.study_uid)
        return study is not None and study.state is StudyState.FAILED

    def _put_aside(self, temporary: Path, found: Identity, stored: Instance, origin: Origin) -> None:
        with self._kept(temporary, found.object_name, self._spool.path_aside(found.object_name)):
            self._store.add_conflict(found.sop_uid, stored.study_uid, found.object_name, origin)

    @contextlib.contextmanager
    def _kept(self, temporary: Path, object_name: str, to: Path) -> Iterator[None]:
        """Keep a file at ``to`` while the body commits its row; where that fails the file goes again.

        It stays where the database cannot say whether the row was written: an orphan can be swept, a row without
        bytes cannot be mended.
        """
        try:
            with self._spool.claim(object_name):
                self._spool.keep(temporary, to)
                yield
        except BaseException:
            with contextlib.suppress(StoreError, OSError):
                self._spool.remove(to, self._store.is_referenced)
            raise


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Turn a database that fails into a refusal that senders understand.

    Raises:
        IngestRefused: DATABASE, or STORAGE_FULL where its disk is full.
    """
    try:
        yield
    except StoreError as error:
        raise IngestRefused(Refused.STORAGE_FULL if error.is_full else Refused.DATABASE, str(error)) from error


def is_copy(found: Identity, stored: Instance) -> bool:
    """Tell whether two objects of one UID are the same: the data set byte for byte, or the image in its series.

    Headers may differ where a PACS corrected a name; pixels, HU or a position that differ are another image, and a copy
    in another study or series is no copy: success would promise that this study is here.
    """
    if found.content_sha256 == stored.content_sha256:
        return True
    if (found.study_uid, found.series_uid) != (stored.study_uid, stored.series_uid):
        return False
    return bool(found.pixel_sha256) and found.pixel_sha256 == stored.pixel_sha256


def _receipt(found: Identity, *, duplicate: bool = False, conflict: bool = False, own: bool = False) -> Receipt:
    return Receipt(
        sop_uid=found.sop_uid,
        sop_class_uid=found.sop_class_uid,
        study_uid=found.study_uid,
        duplicate=duplicate,
        conflict=conflict,
        own=own,
    )
