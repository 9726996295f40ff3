"""Several batches to one optimiser step (``--accumulate``): a larger batch than the device has memory for.

The gradients of a group are those of the mean over its slices, as of one large batch; batch norm alone still sees the
small ones. Groups begin anew with each epoch, and the last one is as large as what is left.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A batch's place in the group that one optimiser step learns from: ``index`` from 0 out of ``count``."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether gradients begin at zero."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether the optimiser takes its step, and a checkpoint may be saved."""
        return self.index == self.count - 1


WHOLE = Part()
"""A batch that is a group of its own."""


def part_of(number: int, num_batches: int, accumulate: int) -> Part:
    """The place of batch ``number`` (from 0) of an epoch of ``num_batches``, ``accumulate`` of them to a step."""
    index = number % accumulate
    return Part(index=index, count=min(accumulate, num_batches - (number - index)))


def num_updates(num_batches: int, accumulate: int) -> int:
    """Optimiser steps of an epoch of ``num_batches``."""
    return -(-num_batches // accumulate)


def is_checkpoint_due(every: int, step: int, part: Part) -> bool:
    """Whether one of every ``every`` batches (0: none) ended in the group that ends with ``step``, counted from 0."""
    done = step + 1
    return every > 0 and part.is_last and done // every > (done - part.count) // every
