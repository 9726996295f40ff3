import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_model import WEIGHTS, write_model

from fastich.errors import ArtifactError
from fastich.serve.scoring.batcher import WARM_UP_SHAPE, Batcher, buckets, identity_of
from fastich.serve.session import Scores, Session, open_session
from fastich.types import HuArray


class Watched:
    """A session that remembers the shapes that it ran, waits where told to, and fails on slices of 13 HU."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.shapes: list[tuple[int, ...]] = []
        self.may_run = threading.Event()
        self.may_run.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, hu: HuArray) -> Scores:
        self.may_run.wait(10)
        self.shapes.append(hu.shape)
        if (hu == 13).any():
            raise ArtifactError("model.onnx: expected finite logit, found NaN or infinity; export again")
        if (hu == 14).any():
            raise MemoryError("no")
        return self._session.run(hu)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    write_model(tmp_path / "model")
    return Watched(open_session(tmp_path / "model"))


@pytest.fixture
def batcher(watched: Watched) -> Iterator[Batcher]:
    made = Batcher(watched, batch_size=4, max_wait_ms=20, max_waiting=8)  # type: ignore[arg-type]
    made.start()
    watched.shapes.clear()
    yield made
    watched.may_run.set()
    made.close()


def one(hu: int, side: int = 8) -> HuArray:
    return np.full((side, side), hu, dtype=np.int16)


def test_buckets_are_the_batch_size_and_the_powers_of_two_below() -> None:
    assert buckets(1) == (1,)
    assert buckets(8) == (8, 4, 2, 1)
    assert buckets(6) == (6, 4, 2, 1)


def test_every_bucket_runs_once_before_the_first_slice(watched: Watched) -> None:
    made = Batcher(watched, batch_size=4, max_wait_ms=1, max_waiting=8)  # type: ignore[arg-type]
    made.start()
    made.close()
    assert watched.shapes == [(4, *WARM_UP_SHAPE), (2, *WARM_UP_SHAPE), (1, *WARM_UP_SHAPE)]


def test_each_slice_gets_its_own_answer_and_the_models_name(batcher: Batcher, watched: Watched) -> None:
    futures = [batcher.submit(one(hu)) for hu in range(6)]
    for hu, future in enumerate(futures):
        found = future.result(10)
        assert found.answer.logit == pytest.approx([hu * weight for weight in WEIGHTS], abs=1e-6)
        assert found.model == identity_of(watched)  # type: ignore[arg-type]
    assert sum(shape[0] for shape in watched.shapes) == 6


def test_full_batch_runs_at_once_and_the_rest_in_smaller_buckets(batcher: Batcher, watched: Watched) -> None:
    watched.may_run.clear()
    first = batcher.submit(one(0))
    time.sleep(0.05)  # the first is running now, alone
    rest = [batcher.submit(one(hu)) for hu in range(1, 8)]
    watched.may_run.set()
    for future in (first, *rest):
        future.result(10)
    assert [shape[0] for shape in watched.shapes] == [1, 4, 2, 1]


def test_slices_of_different_shape_are_never_mixed(batcher: Batcher, watched: Watched) -> None:
    futures = [batcher.submit(one(1, side)) for side in (8, 16, 8, 16)]
    for future in futures:
        future.result(10)
    assert {shape[1:] for shape in watched.shapes} == {(8, 8), (16, 16)}
    assert sum(shape[0] for shape in watched.shapes) == 4


def test_lone_slice_of_an_odd_shape_is_not_starved_by_full_batches(batcher: Batcher) -> None:
    stop = threading.Event()

    def flood() -> None:
        while not stop.is_set():
            batcher.submit(one(1))

    thread = threading.Thread(target=flood)
    thread.start()
    odd = batcher.submit(one(1, 16))
    try:
        assert odd.result(5)
    finally:
        stop.set()
        thread.join()


def test_queue_is_bounded(batcher: Batcher, watched: Watched) -> None:
    watched.may_run.clear()
    done: list[int] = []

    def fill() -> None:
        for number in range(20):
            batcher.submit(one(0))
            done.append(number)

    thread = threading.Thread(target=fill)
    thread.start()
    time.sleep(0.2)
    assert len(done) <= 8 + 4
    watched.may_run.set()
    thread.join(10)
    assert len(done) == 20


@pytest.mark.parametrize(("hu", "says"), [(13, "expected finite logit"), (14, "MemoryError: no")])
def test_slice_that_the_model_fails_on_fails_alone(batcher: Batcher, hu: int, says: str) -> None:
    futures = [batcher.submit(one(value)) for value in (1, hu, 2, 3)]
    with pytest.raises(ArtifactError, match=says):
        futures[1].result(10)
    for future in (futures[0], *futures[2:]):
        assert future.result(10)


def test_what_waits_is_cancelled_when_the_batcher_closes(watched: Watched) -> None:
    made = Batcher(watched, batch_size=2, max_wait_ms=10_000, max_waiting=8)  # type: ignore[arg-type]
    made.start()
    future = made.submit(one(0))
    made.close()
    with pytest.raises(CancelledError):
        future.result(5)
    with pytest.raises(RuntimeError, match="the batcher is closed"):
        made.submit(one(0))


def test_another_model_takes_over_between_two_batches(batcher: Batcher, tmp_path: Path) -> None:
    assert batcher.submit(one(10)).result(10).answer.logit[5] == pytest.approx(0.6)
    write_model(tmp_path / "other", threshold=0.7)
    other = open_session(tmp_path / "other", precision="float32")
    batcher.session = other
    assert batcher.submit(one(10)).result(10).model == identity_of(other)
