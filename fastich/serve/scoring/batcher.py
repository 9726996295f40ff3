"""Micro-batches: slices of equal shape from many studies through one model, one run at a time, in a thread of its own.

A batch runs when it is full or when its oldest slice has waited ``max_wait_ms``. Its size is one of few buckets, powers
of two, which all run once at the start: engines prepare for each new shape, and no study should wait for that. What
does not fill a bucket is not padded (a slice of air costs a CPU as much as a head does) but waits for the next run. The
queue is bounded: ``submit`` blocks, so decoders run ahead of the model by ``max_waiting`` slices (0.5 MB each) at most.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from fastich.errors import ArtifactError
from fastich.hu import AIR_HU
from fastich.serve.session import Scores, Session
from fastich.study_rule import SliceAnswer
from fastich.types import HuArray

WARM_UP_SHAPE = (512, 512)
"""Of nearly every CT slice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """What the network says of a slice, and which network it was (``identity_of``)."""

    answer: SliceAnswer
    model: str


@dataclass(slots=True)
class _Waiting:
    hu: HuArray
    since: float
    future: "Future[Scored]"


def identity_of(session: Session) -> str:
    """Names what runs, so that answers of different models are never mixed."""
    return f"model {session.sha256} {session.backend} {session.precision}"


def buckets(batch_size: int) -> tuple[int, ...]:
    """Sizes of batches, largest first: ``batch_size`` and the powers of two below it."""
    return (batch_size, *(2**k for k in range(batch_size.bit_length() - 1, -1, -1) if 2**k < batch_size))


def answers_of(scores: Scores) -> list[SliceAnswer]:
    """The answers of a batch, one a slice, with everything that the network said."""
    return [
        SliceAnswer(
            probability=scores.probability[i],
            logit=scores.logit[i],
            embedding=scores.embedding[i],
            cam=scores.cam[i],
        )
        for i in range(len(scores.probability))
    ]


class Batcher:
    """Runs slices through a model; ``submit`` may be called from any thread.

    Attributes:
        session: the model.
    """

    def __init__(self, session: Session, *, batch_size: int, max_wait_ms: int, max_waiting: int) -> None:
        self.session = session
        self._buckets = buckets(batch_size)
        self._max_wait_s, self._max_waiting = max_wait_ms / 1000, max_waiting
        self._waiting: dict[tuple[int, ...], deque[_Waiting]] = {}
        self._num_waiting = 0
        self._changed = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Run every bucket once, then start the thread.

        Raises:
            ArtifactError: the model fails.
        """
        for size in self._buckets:
            self.session.run(np.full((size, *WARM_UP_SHAPE), AIR_HU, dtype=np.int16))
        self._thread.start()

    def submit(self, hu: HuArray) -> "Future[Scored]":
        """Score ``hu`` int16 [H, W]; blocks while too many wait. The future fails with ``ArtifactError``.

        Raises:
            RuntimeError: the batcher is closed.
        """
        one = _Waiting(hu, time.monotonic(), Future())
        with self._changed:
            self._changed.wait_for(lambda: self._num_waiting < self._max_waiting or self._is_closing)
            if self._is_closing:
                raise RuntimeError("the batcher is closed")
            self._waiting.setdefault(hu.shape, deque()).append(one)
            self._num_waiting += 1
            self._changed.notify_all()
        return one.future

    def close(self) -> None:
        """Take nothing more; what waits is cancelled, what runs is finished."""
        with self._changed:
            self._is_closing = True
            left = [one for queue in self._waiting.values() for one in queue]
            self._waiting.clear()
            self._changed.notify_all()
        for one in left:
            one.future.cancel()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._run(batch)

    def _next(self) -> list[_Waiting]:
        """The next batch, [] at the end."""
        with self._changed:
            while not self._is_closing:
                shape, wait_s = self._choose()
                if shape is not None and wait_s <= 0:
                    return self._take(shape)
                self._changed.wait(wait_s if shape is not None else None)
        return []

    def _choose(self) -> tuple[tuple[int, ...] | None, float]:
        """The shape to run next and how long it may wait for more: the oldest slice's, or another that is full."""
        if not self._waiting:
            return None, 0.0
        oldest = min(self._waiting, key=lambda shape: self._waiting[shape][0].since)
        wait_s = self._waiting[oldest][0].since + self._max_wait_s - time.monotonic()
        full = next((shape for shape, queue in self._waiting.items() if len(queue) >= self._buckets[0]), None)
        return (full, 0.0) if full is not None and wait_s > 0 else (oldest, wait_s)

    def _take(self, shape: tuple[int, ...]) -> list[_Waiting]:
        queue = self._waiting[shape]
        size = next(size for size in self._buckets if size <= len(queue))
        batch = [queue.popleft() for _ in range(size)]
        if not queue:
            del self._waiting[shape]
        self._num_waiting -= size
        self._changed.notify_all()
        return batch

    def _run(self, batch: Sequence[_Waiting]) -> None:
        """Run a batch; where it fails each slice runs alone, so that a slice fails by its own fault only."""
        session = self.session
        try:
            answers = answers_of(session.run(np.stack([one.hu for one in batch])))
        except Exception as error:
            if len(batch) > 1:
                for one in batch:
                    self._run([one])
                return
            why = error if isinstance(error, ArtifactError) else ArtifactError(f"{type(error).__name__}: {error}")
            batch[0].future.set_exception(why)
            return
        for one, answer in zip(batch, answers, strict=True):
            one.future.set_result(Scored(answer=answer, model=identity_of(session)))
