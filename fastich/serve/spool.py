"""The spool: where the bytes of everything that was taken in lie, under names made from their content.

``incoming/`` holds what is being received (random names: a name from the wire is never one of ours), ``objects/ab/``
what was taken in, ``aside/`` what came under a UID that was taken. An object's name is the SHA-256 of its file, so that
any copy proves itself: ``sha256sum`` of it gives its name. Keeping one costs an fsync of the file and two of folders.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from fastich.errors import FastichError
from fastich.files import fsync_folder
from fastich.serve.config import SpoolConfig
from fastich.serve.entities import Refused

SUFFIX = ".dcm"
OBJECT_NAME = re.compile(r"[0-9a-f]{64}")
MIB = 2**20

_locks: dict[Path, int] = {}
"""Lock files that this process holds open; the kernel lets go of them when the process ends, however it ends."""


class IngestRefused(FastichError):
    """An object that was not taken in.

    Attributes:
        reason: why, as a protocol can answer it.
        detail: one line for a log, without patient data.
    """

    def __init__(self, reason: Refused, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason, self.detail = reason, detail


class Spool:
    """One spool folder, used by one process.

    Raises:
        FastichError: it cannot be made or written, or another process uses it.
    """

    def __init__(self, folder: Path, config: SpoolConfig) -> None:
        self.folder, self._config = folder, config
        self._incoming, self._objects, self._aside = (folder / name for name in ("incoming", "objects", "aside"))
        self._lock = threading.Lock()
        self._claimed: Counter[str] = Counter()
        try:
            for below in (self._incoming, self._objects, self._aside):
                below.mkdir(parents=True, exist_ok=True, mode=0o700)
            _hold(folder)
            for left in self._incoming.iterdir():
                left.unlink()
            for one in (self._objects, folder):  # folders that an earlier process made and had no time to fsync
                fsync_folder(one)
        except OSError as error:
            raise FastichError(f"{error.filename or folder}: cannot use this spool ({error.strerror})") from error

    def temporary(self) -> Path:
        """A fresh path in the spool's own file system, for a receiver to write."""
        return self._incoming / secrets.token_hex(16)

    def check_space(self, size_bytes: int = 0) -> None:
        """Refuse where ``size_bytes`` more would leave less than ``min_free_mib``.

        Raises:
            IngestRefused: STORAGE_FULL.
        """
        with storage_errors():
            free = shutil.disk_usage(self.folder).free
        if free - size_bytes < self._config.min_free_mib * MIB:
            raise IngestRefused(
                Refused.STORAGE_FULL,
                f"{free // MIB} MiB are free, {size_bytes} bytes are to come, "
                f"and {self._config.min_free_mib} MiB must stay free (spool.min_free_mib)",
            )

    def path_of(self, object_name: str) -> Path:
        """Where an object lies."""
        assert OBJECT_NAME.fullmatch(object_name), "the name of an object is 64 hexadecimal digits"
        return self._objects / object_name[:2] / (object_name + SUFFIX)

    def path_aside(self, object_name: str) -> Path:
        """Where an object lies that came under a UID that was taken."""
        assert OBJECT_NAME.fullmatch(object_name), "the name of an object is 64 hexadecimal digits"
        return self._aside / (object_name + SUFFIX)

    @contextlib.contextmanager
    def claim(self, object_name: str) -> Iterator[None]:
        """Keep an object from being removed while its row is on its way."""
        with self._lock:
            self._claimed[object_name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._claimed[object_name] -= 1
                if not self._claimed[object_name]:
                    del self._claimed[object_name]

    def keep(self, temporary: Path, to: Path) -> None:
        """Move a received file to its place; once this returns it survives a power cut.

        Raises:
            OSError: the disk is full or fails.
        """
        fsync_file(temporary)
        if not to.parent.is_dir():
            to.parent.mkdir(exist_ok=True, mode=0o700)
        fsync_folder(to.parent.parent)  # a folder made a moment ago by another thread is not there for sure yet
        temporary.replace(to)
        fsync_folder(to.parent)

    def remove(self, path: Path, is_referenced: Callable[[str], bool]) -> bool:
        """Remove the file of an object that no row speaks of and no receiver is about to commit; False: it stays."""
        name = path.name.removesuffix(SUFFIX)
        with self._lock:
            if self._claimed[name] or is_referenced(name):
                return False
            path.unlink(missing_ok=True)
        return True

    def stored(self) -> Iterator[Path]:
        """The files of all objects, those aside too; other files in the folders are not ours to touch."""
        folders = [self._aside, *(below for below in sorted(self._objects.iterdir()) if below.is_dir())]
        for below in folders:
            for path in sorted(below.iterdir()):
                if path.suffix == SUFFIX and OBJECT_NAME.fullmatch(path.stem):
                    yield path


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what a full or failing disk says into a refusal that senders understand.

    Raises:
        IngestRefused: STORAGE_FULL.
    """
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        raise IngestRefused(Refused.STORAGE_FULL, f"{name}: {error.strerror}") from error


def fsync_file(path: Path) -> None:
    """Make the bytes of a file survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _hold(folder: Path) -> None:
    """Lock the spool for this process.

    Raises:
        FastichError: another process holds it.
    """
    path = folder.resolve() / "lock"
    if path in _locks:
        return
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise FastichError(
                f"{folder}: another process uses this spool; stop it, or take another --spool"
            ) from error
        raise
    _locks[path] = handle
