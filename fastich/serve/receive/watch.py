"""A watched folder: files that stopped growing are taken in, then moved to done/ or refused/ inside it.

A file is left alone until its size and time stood still between two looks. Links are never followed: the folder is
walked by descriptor, so that one that is swapped for a link meanwhile leads nowhere else.
"""

import contextlib
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from fastich.errors import FastichError
from fastich.serve.config import WatchConfig
from fastich.serve.entities import Origin, Refused
from fastich.serve.ingest import Ingest, IngestRefused
from fastich.serve.receive.incoming import Incoming
from fastich.serve.receive.reasons import ANSWERS, Report

DONE, REFUSED = "done", "refused"
READ_BYTES = 2**20
MAX_NAME_BYTES = 200
"""Room is left for a number and ``.txt``; a file system takes 255."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A regular file in a folder that is held open."""

    folder: int
    name: str
    relative: str
    state: tuple[int, int, int]


class FolderWatch:
    """Looks at a folder every ``interval_s``, in a thread of its own.

    Raises:
        FastichError: there is no such folder, or it cannot be written.
    """

    def __init__(self, ingest: Ingest, config: WatchConfig, *, on_event: Report) -> None:
        assert config.folder is not None, "without a folder there is nothing to watch"
        self._ingest, self._folder, self._interval_s = ingest, config.folder, config.interval_s
        self._report = on_event
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._held_up_by = ""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            for below in (DONE, REFUSED):
                (self._folder / below).mkdir(exist_ok=True)
        except OSError as error:
            raise FastichError(
                f"watch.folder: {self._folder}: expected a folder that can be written, found {error.strerror}"
            ) from error

    def start(self) -> None:
        """Watch."""
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the file that is being taken in."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """One look: take in what stood still since the last one."""
        now: dict[str, tuple[int, int, int]] = {}
        with self._opened_targets() as targets:
            for found in self._walk():
                if self._stopping.is_set():
                    return
                now[found.relative] = found.state
                if self._seen.get(found.relative) != found.state:
                    continue
                try:
                    self._take(found, targets)
                except _Later as later:
                    self._say_once(later.reason)
                    return
        self._seen = now

    def _run(self) -> None:
        while not self._stopping.wait(self._interval_s):
            try:
                self.look()
            except OSError as error:  # the folder is gone for a while: a share that is remounted
                self._say_once(f"watch.folder: {error.strerror}")

    def _say_once(self, reason: str) -> None:
        """Report what holds everything up when it begins, not at every look."""
        if reason != self._held_up_by:
            self._report("waiting", {"way": "folder", "reason": reason})
        self._held_up_by = reason

    @contextlib.contextmanager
    def _opened_targets(self) -> Iterator[dict[str, int]]:
        """Descriptors of done/ and refused/, which must be folders and no links."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with contextlib.ExitStack() as stack:
            targets = {}
            for name in (DONE, REFUSED):
                targets[name] = os.open(self._folder / name, flags)
                stack.callback(os.close, targets[name])
            yield targets

    def _walk(self) -> Iterator[_Found]:
        """Regular files below the folder but in done/ and refused/; names that begin with a dot are being written."""
        for root, folders, names, handle in os.fwalk(self._folder, follow_symlinks=False):
            relative = os.path.relpath(root, self._folder)
            is_top = relative == os.curdir
            folders[:] = sorted(
                name for name in folders if not name.startswith(".") and not (is_top and name in (DONE, REFUSED))
            )
            for name in sorted(names):
                with contextlib.suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=handle, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and not name.startswith("."):
                        yield _Found(handle, name, os.path.join(relative, name), _state(status))

    def _take(self, found: _Found, targets: dict[str, int]) -> None:
        """Take one file in and move it, unless it changed meanwhile.

        Raises:
            _Later: nothing can be taken now.
        """
        incoming = Incoming(self._ingest.spool, self._ingest.max_object_bytes)
        try:
            self._ingest.check_capacity()
            self._copy(found, incoming)
            receipt = self._ingest.accept(incoming.finish(), Origin(way="folder"))
        except _Changed:
            return
        except IngestRefused as refusal:
            self._refuse(found, refusal, targets)
            return
        finally:
            incoming.discard()
        self._held_up_by = ""
        _move(found, targets[DONE])
        self._report("stored", {"way": "folder", "study_uid": receipt.study_uid, "duplicate": receipt.duplicate})

    def _copy(self, found: _Found, incoming: Incoming) -> None:
        """Copy the very file that was looked at.

        Raises:
            IngestRefused: it cannot be read.
            _Changed: it is another one by now.
        """
        try:
            handle = os.open(found.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=found.folder)
        except FileNotFoundError as error:
            raise _Changed from error
        except OSError as error:
            raise IngestRefused(Refused.MALFORMED, f"cannot be read: {error.strerror}") from error
        with open(handle, "rb", buffering=0) as source:
            if _state(os.fstat(handle)) != found.state:
                raise _Changed
            while incoming.refused is None and (piece := source.read(READ_BYTES)):
                incoming.write(piece)
            if incoming.refused is None and _state(os.fstat(handle)) != found.state:
                raise _Changed

    def _refuse(self, found: _Found, refusal: IngestRefused, targets: dict[str, int]) -> None:
        """Move a file aside with the reason beside it, unless the reason passes by itself."""
        if ANSWERS[refusal.reason].is_temporary:
            raise _Later(refusal.reason.value) from refusal
        self._report("refused", {"way": "folder", "reason": refusal.reason.value, "detail": refusal.detail})
        name = _move(found, targets[REFUSED])
        _write(targets[REFUSED], name + ".txt", f"{refusal.reason.value}: {refusal.detail}\n")


class _Later(Exception):
    """Nothing can be taken in at the moment."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Changed(Exception):
    """The file is not the one that was looked at."""


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _move(found: _Found, target: int) -> str:
    """Move a file into ``target`` under a name that is free there, and give that name."""
    stem = os.fsdecode(os.fsencode(found.name)[:MAX_NAME_BYTES])
    name, number = stem, 0
    while _exists(target, name) or _exists(target, name + ".txt"):
        number += 1
        name = f"{stem}.{number}"
    with contextlib.suppress(FileNotFoundError):  # somebody took it away: it is in the spool all the same
        os.rename(found.name, name, src_dir_fd=found.folder, dst_dir_fd=target)
    return name


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write(folder: int, name: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

    def opener(path: str, _: int) -> int:
        return os.open(path, flags, 0o644, dir_fd=folder)

    with open(name, "x", encoding="utf-8", opener=opener) as out:
        out.write(text)
