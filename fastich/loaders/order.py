"""Which rows an epoch shows, in which order, on which rank: a pure function of (seed, epoch), so that runs repeat.

An epoch is one global order of rows; position p of it belongs to rank ``p % world_size``. Everything random about a
slice hangs on its position, so the same slice gets the same treatment for any number of ranks and any batch size.
Costs one permutation an epoch: 0.02 s for the 752,803 slices of RSNA 2019.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastich.labels import ANY, UNKNOWN

Int64Array = NDArray[np.int64]
ALL_ROWS = "all"
"""The split name that stands for every row, labelled or not."""
ORDER_STREAM = 0
"""Third word of the order's random seed; the augmentation uses another (``augment.AUGMENT_STREAM``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One batch to be made: ``rows`` of the reader's index and their ``positions`` in the epoch, int64 [N] each."""

    rows: Int64Array
    positions: Int64Array


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of every epoch for one rank.

    ``rows`` [M] are the split's rows in the reader's order, ``labels`` [M, 6] int8 theirs. Unshuffled, that is the
    order. ``shuffle`` permutes it; ``balanced`` draws M rows with replacement by ``balanced_weights`` instead.

    Every rank makes the same number of steps of the same sizes: with ``drop_last`` only full batches on every rank
    are made; without it the order is wrapped around to a multiple of ``world_size`` and the last batch may be short.
    """

    rows: Int64Array
    labels: NDArray[np.int8]
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    balanced: bool = False
    rank: int = 0
    world_size: int = 1
    drop_last: bool = False

    @property
    def num_positions(self) -> int:
        """Positions of an epoch over all ranks, after wrapping or dropping."""
        return self._slices_a_rank() * self.world_size

    @property
    def num_steps(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return -(-self._slices_a_rank() // self.batch_size)

    def _slices_a_rank(self) -> int:
        if self.drop_last:
            return len(self.rows) // (self.batch_size * self.world_size) * self.batch_size
        return -(-len(self.rows) // self.world_size)

    def epoch_rows(self, epoch: int) -> Int64Array:
        """The global order of ``epoch``: rows [num_positions], the same on every rank."""
        rng = np.random.default_rng([self.seed, epoch, ORDER_STREAM])
        rows = self.rows
        if self.balanced:
            rows = rng.choice(rows, size=len(rows), replace=True, p=balanced_weights(self.labels))
        elif self.shuffle:
            rows = rng.permutation(rows)
        return np.resize(rows, self.num_positions)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """This rank's batches of ``epoch`` from number ``start`` on."""
        rows = self.epoch_rows(epoch)
        mine = np.arange(self.rank, len(rows), self.world_size, dtype=np.int64)
        for begin in range(start * self.batch_size, len(mine), self.batch_size):
            positions = mine[begin : begin + self.batch_size]
            yield Step(rows=rows[positions], positions=positions)


@dataclass(frozen=True, kw_only=True)
class GroupOrder(Order):
    """Batches that were put together elsewhere, whole studies say: the same in every epoch, on one rank.

    ``places`` int64 [num_rows] stand for the positions: slices of equal place get equal random changes.
    """

    groups: tuple[Int64Array, ...]
    places: Int64Array

    @property
    def num_steps(self) -> int:
        """Groups."""
        return len(self.groups)

    def steps(self, epoch: int, start: int = 0) -> Iterator[Step]:
        """The groups from number ``start`` on."""
        for group in self.groups[start:]:
            yield Step(rows=group, positions=self.places[group])


def group_order(groups: Sequence[Int64Array], labels: NDArray[np.int8], places: Int64Array) -> GroupOrder:
    """The order that shows ``groups`` of rows, each as one batch; ``labels`` and ``places`` are of the whole index."""
    rows, most = np.concatenate(groups), max(map(len, groups))
    return GroupOrder(rows=rows, labels=labels[rows], batch_size=most, groups=tuple(groups), places=places)


def labelled(labels: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Tell for each row of ``labels`` [M, 6] whether its labels are known."""
    return np.asarray(labels[:, 0] != UNKNOWN, dtype=np.bool_)


def balanced_weights(labels: NDArray[np.int8]) -> NDArray[np.float64]:
    """Probability [M] of drawing each row of ``labels`` [M, 6], so that every kind of slice comes equally often.

    A row's kind is the rarest of the five subtypes that it shows (rarity counted in ``labels``), "any" alone where
    no subtype is marked, or "none" (also for unknown labels). Each kind that occurs gets the same share.
    """
    positive = labels == 1
    counts = positive.sum(axis=0)
    counts[ANY] = len(labels) + 1  # so "any" is a row's kind only where no subtype is
    kind = np.where(positive.any(axis=1), np.where(positive, counts, len(labels) + 2).argmin(axis=1), ANY + 1)
    sizes = np.bincount(kind, minlength=ANY + 2)
    return 1.0 / (sizes[kind] * np.count_nonzero(sizes))
