import time
from typing import Any

import torch
from test_epoch import CountingLoader, TinyNet

from fastich.loaders import Batch
from fastich.training.feeding import measure_feeding
from fastich.training.learner import Learner, make_learner
from fastich.training.precision import Precision


def learner() -> Learner:
    precision = Precision(dtype=torch.float32, device=torch.device("cpu"))
    return make_learner(TinyNet(), precision, lr=1e-3)  # type: ignore[arg-type]


class SlowLoader(CountingLoader):
    def epoch(self, epoch: int, start: int = 0) -> Any:
        for batch in super().epoch(epoch, start):
            time.sleep(0.05)
            yield batch


def test_a_loader_that_is_slow_is_found_out() -> None:
    loader: Any = SlowLoader(3)
    found = measure_feeding(learner(), loader, steps=4, rounds=2)
    assert len(found.rounds_with_loader) == len(found.rounds_in_memory) == 2
    assert found.with_loader <= 8 / 0.05
    assert found.share < 0.5


def test_memory_and_loader_give_batches_of_the_same_kind() -> None:
    shapes = set()

    class Seen:
        precision = Precision(dtype=torch.float32, device=torch.device("cpu"))
        model = TinyNet()

        def step(self, batch: Batch, lr: float) -> None:
            shapes.add(tuple(batch.images.shape))

    loader: Any = CountingLoader(3)
    measure_feeding(Seen(), loader, steps=5, rounds=1)  # type: ignore[arg-type]
    assert shapes == {(8, 3, 8, 8)}
