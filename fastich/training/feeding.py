"""Does the loader keep up? Training steps fed by a loader beside the same steps on batches that are in memory already.

Both go through the very path of training (``on_device``, ``Learner.step``), in turns, so that a machine that slows down
slows both. What the loader's side lacks to the other is what the network waited for.
"""

import itertools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from fastich.loaders import Batch, Loader
from fastich.training.learner import Clock, Learner
from fastich.training.prefetch import on_device

NUM_IN_MEMORY = 4
"""Different batches held on the device; 50 MB each at 64 slices of 256 px."""


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """Slices a second of training, each a median over rounds with all rounds beside it."""

    with_loader: float
    in_memory: float
    rounds_with_loader: list[float]
    rounds_in_memory: list[float]

    @property
    def share(self) -> float:
        """What training with the loader reaches of training on memory, 1.0 where it costs nothing."""
        return self.with_loader / self.in_memory


def measure_feeding(learner: Learner, loader: Loader, *, steps: int, rounds: int = 5, lr: float = 1e-4) -> Feeding:
    """Time ``rounds`` of ``steps`` training steps from ``loader`` and as many from memory; the weights move on.

    ``loader`` should shuffle and drop its last batch, as in training. One round of each warms up and is not counted.
    """
    device = learner.precision.device
    learner.model.train()
    held = list(itertools.islice(on_device(_endless(loader), device), NUM_IN_MEMORY))
    given = on_device(_endless(loader), device)
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for found, batches in zip(rates, (given, itertools.cycle(held)), strict=True):
            found.append(_rate(learner, itertools.islice(batches, steps), lr))
    fed, memory = (found[1:] for found in rates)
    return Feeding(
        with_loader=statistics.median(fed),
        in_memory=statistics.median(memory),
        rounds_with_loader=fed,
        rounds_in_memory=memory,
    )


def _rate(learner: Learner, batches: Iterator[Batch], lr: float) -> float:
    """Slices a second, the device waited for at both ends."""
    clock, num_slices = Clock(learner.precision), 0
    for batch in batches:
        learner.step(batch, lr)
        num_slices += len(batch.rows)
    return num_slices / clock.seconds()


def _endless(loader: Loader) -> Iterator[Batch]:
    """Epoch after epoch."""
    for epoch in itertools.count():
        yield from loader.epoch(epoch)
