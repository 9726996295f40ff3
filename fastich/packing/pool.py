"""A process pool that survives being killed, and a lock that keeps two packs out of one folder.

Workers are spawned, not forked: a fork copies the locks of threads that do not exist in the child. A killed parent
leaves orphans that may still be writing, so each worker watches its parent and holds a share of the folder's lock:
the next pack waits until the last orphan is gone. Cost: about 0.3 s to start a worker, which happens while the parent
looks for files; one worker means no pool at all.
"""

import contextlib
import fcntl
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import IO, TypeVar

from fastich.errors import FastichError

J = TypeVar("J")
R = TypeVar("R")

LOCK_WAIT_S = 10.0
"""How long to wait for the orphans of a killed pack; they notice within WATCH_S."""
WATCH_S = 0.2
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(2**27)}
"""Of the workers: one BLAS thread each; and glibc keeps what is freed. It would else give half a megabyte back to the
system with each slice and take it anew, page by page: 15 % of the time of a slice. Other C libraries ignore it.
"""
JOBS_PER_WORKER = 4
"""Jobs handed over and not done yet: enough that no worker waits, few enough that a plan of millions is not copied."""


@contextlib.contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``: exclusively while taking it, then shared with this pack's own workers.

    Raises:
        FastichError: another pack, or what a killed one left running, holds it.
    """
    with path.open("a") as handle:
        deadline = time.monotonic() + LOCK_WAIT_S
        while not (_try_lock(handle, fcntl.LOCK_EX) and _try_lock(handle, fcntl.LOCK_SH)):
            if time.monotonic() > deadline:
                raise FastichError(f"{path.parent.parent}: another pack is writing here; wait for it or stop it")
            time.sleep(WATCH_S)
        yield


def _try_lock(handle: IO[str], kind: int) -> bool:
    """Take or change the lock without waiting; a change is not atomic, so it can be lost to another process."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class Workers:
    """``map`` over processes that share the lock; a context manager. One worker runs the jobs right here."""

    def __init__(self, num_workers: int, lock: Path) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._num_workers = num_workers
        self._stack = contextlib.ExitStack()
        self._not_ours = set(multiprocessing.active_children())
        if num_workers > 1:
            for name, value in ENVIRONMENT.items():
                self._stack.enter_context(_environment(name, value))
            self._pool = ProcessPoolExecutor(
                num_workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(os.getpid(), str(lock)),
            )
            self._start()

    def _start(self) -> None:
        """Start all processes now, by a job for each: they import what they need while the parent does other things."""
        assert self._pool is not None
        with contextlib.suppress(BrokenProcessPool), _interrupts_blocked(), _closed_pool_is_broken():
            for _ in range(self._num_workers):
                self._pool.submit(os.getpid)

    def map(self, function: Callable[[J], R], jobs: Iterable[J]) -> Iterator[R]:
        """Results in the order in which they are ready.

        Raises:
            FastichError: a worker process was killed.
        """
        if self._pool is None:
            yield from map(function, jobs)
            return
        try:
            waiting, limit = iter(jobs), self._num_workers * JOBS_PER_WORKER
            pending = self._submit(function, waiting, limit)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                pending |= self._submit(function, waiting, limit - len(pending))
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise FastichError(
                "a worker process was killed (out of memory?); what is done is kept: repeat with --resume, "
                "and with fewer --workers"
            ) from None

    def _submit(self, function: Callable[[J], R], jobs: Iterator[J], count: int) -> set[Future[R]]:
        """Hand over the next ``count`` jobs."""
        assert self._pool is not None
        with _interrupts_blocked(), _closed_pool_is_broken():
            return {self._pool.submit(function, job) for job in itertools.islice(jobs, count)}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for the workers; after an error stop them at once, for a shard half done is done again anyway."""
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self._not_ours:
                process.terminate()
        if self._pool is not None:
            with contextlib.suppress(BrokenProcessPool), _closed_pool_is_broken():
                self._pool.shutdown(wait=True, cancel_futures=True)
        self._stack.close()


@contextlib.contextmanager
def _closed_pool_is_broken() -> Iterator[None]:
    """Name the race in CPython's pool: one that breaks while it is woken says "handle is closed", without an errno."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # a real one, such as no memory to start a process
            raise
        raise BrokenProcessPool(str(error)) from error


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: it goes to the whole group, and only the parent has a say in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Let processes started meanwhile see ``name=value`` unless the user has set it."""
    before = os.environ.get(name)
    os.environ.setdefault(name, value)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)


_held_lock: IO[str] | None = None
"""A worker's share of the lock, open as long as the process lives."""


def _start_worker(parent: int, lock: str) -> None:
    global _held_lock
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    _held_lock = Path(lock).open("a")  # noqa: SIM115
    fcntl.flock(_held_lock, fcntl.LOCK_SH)


def _watch_parent(parent: int) -> None:
    """End this process soon after its parent has gone, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(1)
